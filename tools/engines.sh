#!/usr/bin/env bash
# make engines: tests/engines with the real engines, on the wheel of dist/, in .venv-engines (or
# METAL_SDPA_ENGINES_VENV). Arguments go to pytest.
source "$(dirname "$0")/common.sh"

compgen -G 'dist/metal_sdpa-*.whl' >/dev/null || tools/build_wheel.sh
VENV=${METAL_SDPA_ENGINES_VENV:-$ROOT/.venv-engines}
PYTHON=$VENV/bin/python
ensure_venv test engines
"$PYTHON" -m pip install --quiet --no-deps --group engines-no-deps
"$PYTHON" -m pip install --quiet --force-reinstall --no-deps dist/metal_sdpa-*.whl
"$PYTHON" -m pip install --quiet dist/metal_sdpa-*.whl  # its dependencies, where they are missing
# vLLM brings other versions of the same packages: tools/engines_vllm.sh.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest tests/engines --ignore-glob='*/test_vllm*' "$@"
