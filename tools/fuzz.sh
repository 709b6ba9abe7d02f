#!/usr/bin/env bash
# make fuzz: random problems and dispatches by hand on the C++ API for FUZZ_SECONDS (3600), under
# AddressSanitizer and UndefinedBehaviorSanitizer, in $JOBS processes; it stops at the first report.
# FUZZ_ISAS: instruction sets, all that this machine runs unless set; they are compiled for minutes.
#
# Inputs that reach something new stay in build/fuzz/corpus for the next run, those that fail in
# build/fuzz/findings. tests/fuzz/corpus.txt holds the committed ones, which ctest tries once each.
source "$(dirname "$0")/common.sh"

seconds=${FUZZ_SECONDS:-3600}
fuzzer=build/fuzz/tests/fuzz/fuzz_sdpa
findings=build/fuzz/findings

tools/system_packages.sh test
ensure_venv build
build_preset fuzz -DMETAL_SDPA_ISAS="${FUZZ_ISAS:-runnable}" fuzz_sdpa
mkdir -p build/fuzz/corpus "$findings"
"$PYTHON" tests/fuzz/unpack_corpus.py tests/fuzz/corpus.txt build/fuzz/seeds

heading "$seconds s on $JOBS processes"
export UBSAN_OPTIONS=print_stacktrace=1
"$fuzzer" -fork="$JOBS" -max_total_time="$seconds" -max_len=256 -len_control=0 -timeout=60 -rss_limit_mb=4096 \
  -artifact_prefix="$findings/" build/fuzz/corpus build/fuzz/seeds && exit 0

die "" "An input failed. It is printed as C++ above the report; to see it again:" \
    "  $fuzzer $(find "$findings" -type f -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)"
