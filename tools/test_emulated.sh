#!/usr/bin/env bash
# Builds the kernels of AVX-512 and AVX512_BF16 from AVX2's instructions (tests/emulated/avx512.h)
# and runs the tests of the CPU's kernels on them. AMX's registers are emulated in memory.
source "$(dirname "$0")/common.sh"

tests=(sdpa_test sdpa_decode_test sdpa_prefill_test sdpa_features_test sdpa_visibility_test
  sdpa_scores_test extreme_rows_test accuracy_search_test work_list_test oracle_test fuzz_corpus)

build_preset emulated-avx512 "${tests[@]}"
pattern=$(IFS='|' && echo "^(${tests[*]})\$")
ctest --preset emulated-avx512 -R "$pattern"
