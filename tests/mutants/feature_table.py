"""Faults of what happens to scores and of which keys a row sees, for each device.

Those of the host and of the shaders are planted by CI; those of the CPU's kernels, which are
compiled for every instruction set, by `make mutants`.
"""

from __future__ import annotations

from fault import mutant

BAND = "shaders/sdpa_band.h"
CORE_BAND = "csrc/core/band.cpp"
ARGS = "csrc/core/plan_args.cpp"
RULE = "csrc/cpu/fast/score_rule.h"
FINISH = "csrc/cpu/fast/finish_row.h"
ITEM = "csrc/cpu/fast/prefill_item.h"
SHADER_RULE = "shaders/score_rule.h"
SHADER_FINISH = "shaders/row_finish.h"
MERGE = "csrc/cpu/merge_states.cpp"
WRITE = "csrc/core/write_kv.cpp"

BAND_TEST = "band_test"
ROWS = "a row's band holds the keys that it sees and no others, and never moves back"
UNION = "the bands of rows are their union and what all of them see"
PAIRS = "pairs in closed form are those that a count finds"

FEATURES_TEST = "sdpa_features_test"
EVERY_PAIR = "every pair of features"
VISIBILITY_TEST = "sdpa_visibility_test"
BEHIND_MASK = "what stands behind a mask never reaches a row, be it boolean or -inf"
EDGES = "a key more or less at every edge of blocks and spans"
SCORES_TEST = "sdpa_scores_test"
SINKS = "sinks of any size, once a row whatever its spans"

METAL_TEST = "metal_features_test"
METAL_PAIRS = "metal features: every pair of them, on every kernel, within the bounds of float64"

MERGE_TEST = "merge_states_test"
WRITE_TEST = "write_kv_test"

# Of a header that every kernel includes: a minute each.
BAND_MUTANTS = (
    mutant(
        "band: a window of a key less",
        BAND,
        "at - window.left + window.key_stride - 1",
        "at - window.left + window.key_stride",
        BAND_TEST,
        ROWS,
    ),
    mutant(
        "band: the start is ignored",
        BAND,
        "begin = sequence.kv_start;",
        "begin = 0;",
        BAND_TEST,
        ROWS,
    ),
    mutant(
        "band: rows out of use see on",
        BAND,
        "if (i >= sequence.query_len) return band;",
        "",
        BAND_TEST,
        ROWS,
    ),
    mutant(
        "band: the union ends with the last row, in use or not",
        BAND,
        "sdpa_least(last, sequence.query_len - 1)",
        "last",
        BAND_TEST,
        UNION,
    ),
    mutant(
        "band: all see what the first row begins with",
        BAND,
        "band.begin = sdpa_band(sequence, window, last).begin;",
        "band.begin = sdpa_band(sequence, window, first).begin;",
        BAND_TEST,
        UNION,
    ),
)

HOST_MUTANTS = (
    mutant(
        "band: pairs of all rows",
        CORE_BAND,
        "std::min(row_end, sequence.query_len)",
        "row_end",
        BAND_TEST,
        PAIRS,
    ),
    mutant(
        "merge_states: a state without keys counts",
        MERGE,
        "if (lse == -kInfinity) continue;",
        "",
        MERGE_TEST,
        "states that saw nothing count for nothing, whatever they hold",
    ),
    mutant(
        "write_kv: one slot past the last",
        WRITE,
        "slot >= n_slots",
        "slot > n_slots",
        WRITE_TEST,
        "bad writes are refused by name, and nothing is written",
        within="check_slots",
    ),
    mutant(
        "write_kv: equal slots",
        WRITE,
        "if (twice != used.end())",
        "if (false)",
        WRITE_TEST,
        "bad writes are refused by name, and nothing is written",
    ),
)

SHADER_MUTANTS = (
    mutant(
        "metal scores: a mask row's stride is ignored",
        SHADER_RULE,
        "(first_packed(sequence.q_row) + i) * args.mask_stride.row",
        "0 * args.mask_stride.row",
        METAL_TEST,
        METAL_PAIRS,
    ),
    mutant(
        "metal scores: slopes of another sequence",
        SHADER_RULE,
        "b * args.alibi_batch",
        "0 * args.alibi_batch",
        METAL_TEST,
        METAL_PAIRS,
    ),
    mutant(
        "metal scores: distances from slot 0",
        SHADER_RULE,
        "- args.window.key_offset - first_key",
        "- first_key",
        METAL_TEST,
        METAL_PAIRS,
    ),
    mutant(
        "metal scores: the sink is left out of the sum",
        SHADER_FINISH,
        "has_sinks ? sum + weight_of(sink, subtrahend(reference)) : sum",
        "sum",
        METAL_TEST,
        METAL_PAIRS,
    ),
)

KERNEL_MUTANTS = (
    mutant("scores: a mask row's stride is ignored", RULE,
           "h * stride.head + i * stride.row", "h * stride.head", FEATURES_TEST, EVERY_PAIR),
    mutant("scores: the cap comes behind the mask", RULE,
           "if (args_.softcap != 0) cap_scores(n_keys, scores);", "", FEATURES_TEST, EVERY_PAIR),
    mutant("scores: a block's last word of a mask is not looked at", RULE,
           "if (word != hiding_word()) return end;",
           "if (word != hiding_word()) return end - per_word;", VISIBILITY_TEST, BEHIND_MASK),
    mutant("scores: a sink once a span is none", FINISH,
           "return write_row<T>(launch, row, finish_with_sink(",
           "if (false) return write_row<T>(launch, row, finish_with_sink(", SCORES_TEST, SINKS),
    mutant("bands: the first block is the next one", ITEM,
           "begin + before / block_len_ * block_len_",
           "begin + (before / block_len_ + 1) * block_len_", VISIBILITY_TEST, EDGES),
)  # fmt: skip
