#!/usr/bin/env bash
# make bench: measures this machine's limits, then every shape against the installed peers.
# Arguments go to `python -m bench`: tools/bench.sh --quick, tools/bench.sh --only 'decode.*f16'.
source "$(dirname "$0")/common.sh"

# The published ggml is built for AVX2. A peer is measured at its best, so it is compiled for this
# processor; where that fails the published one has to do.
install_ggml() {
  local stamp=$VENV/.installed-ggml
  if [ -e "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ]; then return; fi
  echo "building dependency group 'ggml' of pyproject.toml for this processor (minutes, once)"
  # By CMAKE_ARGS: pip passes no --config-settings to what a group names. Nor may it take a wheel
  # that it built earlier without them.
  if ! CMAKE_ARGS=-DGGML_NATIVE=ON "$PYTHON" -m pip install --quiet --no-cache-dir \
      --force-reinstall --no-deps --no-binary libggml-python --group ggml; then
    echo "that failed; taking the published build"
    "$PYTHON" -m pip install --quiet --group ggml || echo "none; going on without ggml"
  fi
  touch "$stamp"
}

tools/system_packages.sh demo
ensure_venv build bench
install_ggml
heading "build"
build_preset release stage
cmake -S bench -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release --log-level=WARNING
cmake --build build/bench
heading "bench"
export PYTHONPATH=$ROOT/build/release/stage
exec "$PYTHON" -m bench "$@"
