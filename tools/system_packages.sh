#!/usr/bin/env bash
# Checks for what pip cannot bring. system_packages.sh demo|test|ci
#
# As root on a system with apt-get the missing packages are installed; everybody else gets one
# message that names them.
source "$(dirname "$0")/common.sh"

level=${1:-test}
apt_packages=()
messages=()

# need APT_PACKAGE WHAT PROBE...: the probe fails where the thing is missing.
need() {
  local package=$1 what=$2
  shift 2
  if ! "$@" >/dev/null 2>&1; then
    apt_packages+=("$package")
    messages+=("  $what  (Debian, Ubuntu: $package)")
  fi
}

compiles() { printf '%s\n' "$2" | "$1" -x c++ -fsyntax-only -; }
links_with_sanitizer() {
  local out status
  out=$(mktemp)
  printf 'int main() {}\n' | "$1" -x c++ "-fsanitize=$2" -o "$out" - || status=$?
  rm -f "$out"
  return "${status:-0}"
}
python_has_headers() {
  local include
  include=$("$(find_python)" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [ -e "$include/Python.h" ]
}
python_has_venv() { "$(find_python)" -c 'import venv, ensurepip'; }

check_demo() {
  need g++ "a C++20 compiler" compiles c++ '#include <concepts>'
  need python3-dev "the headers of Python" python_has_headers
  need python3-venv "Python's venv module" python_has_venv
}

check_test() {
  need doctest-dev "the C++ test library doctest" compiles c++ '#include <doctest/doctest.h>'
  on_macos && return
  need clang-19 "Clang 19, which compiles Metal's headers and shaders" command -v clang++-19
  need libclang-rt-19-dev "Clang's sanitizer runtimes" links_with_sanitizer clang++-19 address
  need libblocksruntime-dev "the blocks runtime" test -e /usr/include/Block.h
}

check_ci() {
  on_macos && return
  need g++-aarch64-linux-gnu "a C++ compiler for arm64 Linux" command -v aarch64-linux-gnu-g++
  need rustc "a Rust compiler" command -v rustc
  need ccache "a cache of what was compiled" command -v ccache
  need qemu-user "qemu's user-mode emulation of arm64" command -v qemu-aarch64
}

check_demo
[ "$level" = demo ] || check_test
[ "$level" != ci ] || check_ci

[ "${#apt_packages[@]}" -gt 0 ] || exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "installing ${apt_packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${apt_packages[@]}" >/dev/null
  exit 0
fi

die "Something that pip cannot install is missing:" "${messages[@]}" "" \
    "On Debian or Ubuntu:  sudo apt-get install ${apt_packages[*]}" \
    "On macOS:             xcode-select --install; brew install doctest" \
    "Then run the same command again."
