#!/usr/bin/env bash
# Tests of metal_sdpa.integrations.vllm with vLLM's CPU engine, on the wheel in dist/, in an
# environment of their own (3.5 GB, METAL_SDPA_VLLM_VENV, .venv-vllm unless set). Arguments go to
# pytest.
METAL_SDPA_VENV=${METAL_SDPA_VLLM_VENV:-$(cd "$(dirname "$0")/.." && pwd)/.venv-vllm}
source "$(dirname "$0")/common.sh"

# These are built for another torch than vLLM's CPU engine takes, and fail when imported.
drop_what_does_not_fit() {
  [ ! -e "$VENV/.fits" ] || [ "$VENV/.installed-vllm" -nt "$VENV/.fits" ] || return 0
  "$PYTHON" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
  touch "$VENV/.fits"
}

install_wheel() {
  local wheels=(dist/metal_sdpa-*.whl)
  [ -e "${wheels[0]}" ] || die "There is no wheel in dist/: run tools/build_wheel.sh first."
  "$PYTHON" -m pip install --quiet --force-reinstall --no-deps "${wheels[@]}"
}

ensure_venv vllm
drop_what_does_not_fit
install_wheel
# vLLM's own warnings are not ours to turn into errors.
"$PYTHON" -m pytest tests/engines/test_vllm.py tests/engines/test_vllm_backend.py \
  -o filterwarnings=default "$@"
