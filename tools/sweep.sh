#!/usr/bin/env bash
# make sweep: METAL_SDPA_SWEEP (20,000) random problems and as many bad ones on the wheel, then a
# tenth of them on the sanitized build. METAL_SDPA_SEED sets the seed; the tests print it.
source "$(dirname "$0")/common.sh"

count=${METAL_SDPA_SWEEP:-20000}
tools/system_packages.sh test
tools/build_wheel.sh
ensure_venv dev
stage "$count problems on the wheel" \
  env METAL_SDPA_SWEEP="$count" "$PYTHON" -m pytest -m sweep -s
stage "$((count / 10)) problems under AddressSanitizer and UndefinedBehaviorSanitizer" \
  env METAL_SDPA_SWEEP="$((count / 10))" tools/sanitize.sh asan -m "sweep and not frameworks" -s
finish_stages
