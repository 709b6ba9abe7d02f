#!/usr/bin/env bash
# make sweep: METAL_SDPA_SWEEP (20,000) random problems and as many bad ones on the wheel, then a
# tenth of them on the sanitized build. METAL_SDPA_SEED sets the seed; the tests print it.
source "$(dirname "$0")/common.sh"

count=${METAL_SDPA_SWEEP:-20000}
tools/system_packages.sh test
tools/build_wheel.sh
ensure_venv dev
stage "$count problems on the wheel" \
  env METAL_SDPA_SWEEP="$count" "$PYTHON" -m pytest -m sweep -n "$JOBS"
stage "$((count / 10)) problems under AddressSanitizer and UndefinedBehaviorSanitizer" \
  env METAL_SDPA_SWEEP="$((count / 10))" PYTEST_EXPRESSION="sweep and not frameworks" \
  tools/sanitize.sh asan
finish_stages
