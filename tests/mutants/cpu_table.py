"""Faults of the CPU's kernels and of how their work is cut, one test case for each.

A fault in a kernel is compiled for every instruction set: some ten seconds each. `make mutants`
plants these, CI does not. Those of bf16 pairs and of AMX need a processor with AVX512_BF16.
"""

from __future__ import annotations

from fault import mutant

ITEM = "csrc/cpu/fast/prefill_item.h"
SOFTMAX = "csrc/cpu/fast/prefill_softmax.h"
PACK = "csrc/cpu/fast/prefill_pack.h"
PAIRS = "csrc/cpu/fast/prefill_pairs.h"
PRODUCTS = "csrc/cpu/fast/prefill_tile.h"
TOTALS = "csrc/cpu/fast/prefill_totals.h"
AMX = "csrc/cpu/fast/prefill_amx.h"
SPANS = "csrc/cpu/fast/span_memory.h"
SHARES = "csrc/cpu/fast/sdpa_prefill_kernel.cpp"
CUT = "csrc/cpu/fast/sdpa_prefill_plan.cpp"
DECODE = "csrc/cpu/fast/decode_item.h"
DOT = "csrc/cpu/fast/decode_dot.h"
VALUES = "csrc/cpu/fast/decode_values.h"
WEIGHTS = "csrc/cpu/fast/decode_softmax.h"
TAKES = "csrc/cpu/fast/sdpa_decode_plan.cpp"

PREFILL_TEST = "sdpa_prefill_test"
PLAN_TEST = "sdpa_prefill_plan_test"
DECODE_TEST = "sdpa_decode_test"

RANDOM = "random problems are within the bounds"
EDGES = "lengths around the edges of panels, blocks, spans, tiles and items"
PACKED = "what a thread packed before never reaches a result"
ROUNDED = "rounded weights stay within the bound where a row hangs on few of them, or they repeat"
LONG = "long sums stay within the bounds: equal scores of equal values, and wide keys"
MANY = "sums over many spans stay within the bound, also when a late maximum rescales them"
GROWING = "scores stay within the bounds where queries lie along keys: partial sums only grow"
DEALT = "bits do not depend on how rows and spans are dealt out to items"
ORDER = "items that share spans may run in any order"
LONG_ITEMS = "items are long where they are plenty and narrow"
TWICE = "encoded twice, items that share spans count anew"
SHARED = "spans are shared out where rows are few, and only then"
DECODED = "random problems are within the bounds, with the same bits on two threads"
SPANNED = "groups, rows, widths and lengths around the edges of spans"
TILES = "tiles of any number of rows, and what is left of a unit and of a vector"
TAKEN = "the planner takes sdpa_decode for a few rows under a KV head"
WALL = "nothing is read behind the last key and value, and how they come near is not seen"

LONE = "csrc/cpu/lone_row.cpp"
LONE_RULE = "csrc/cpu/lone_row.h"
FINISH = "csrc/cpu/fast/finish_row.h"
STRAIGHT = "csrc/cpu/sdpa.cpp"

EXTREME_TEST = "extreme_rows_test"
SEARCH_TEST = "accuracy_search_test"

HUGE = "finite scores of any size give finite rows"
UNSEEN = "what a row does not see never reaches it"
EMPTY_ROW = "a row that sees no key is 0 beside poisoned ones"
MINUS_INFINITY = "a key whose score is -inf counts as hidden"
LARGE_VALUES = "values near the largest float have their mean"
RISING = "maxima that move from span to span leave no rounding behind"
EQUAL_ELEMENTS = "rows of equal elements are within the bound"
EVEN_WEIGHTS = "rows of nearly equal weights are within the bound"

EXTREME_MUTANTS = (
    mutant(
        "cpu rows: positive overflow of scores is taken as it is",
        LONE_RULE,
        "if (row.largest_score == kInfinity || row.sum == kInfinity) return true;",
        "if (row.sum == kInfinity) return true;",
        EXTREME_TEST,
        HUGE,
    ),
    mutant(
        "cpu rows: negative overflow of scores is a row without keys",
        LONE_RULE,
        "if (row.sum == 0) return row.sees_keys;",
        "if (row.sum == 0) return false;",
        EXTREME_TEST,
        HUGE,
    ),
    mutant(
        "cpu rows: hidden values reach rows",
        LONE_RULE,
        "return row.sum < kInfinity && !row.has_finite_numerators;",
        "return false;",
        EXTREME_TEST,
        UNSEEN,
    ),
    mutant(
        "cpu rows: only the first vector is looked at",
        FINISH,
        "for (int d = 0; d < n_slots; d += kLanes) zero",
        "for (int d = 0; d < kLanes; d += kLanes) zero",
        EXTREME_TEST,
        UNSEEN,
    ),
    mutant(
        "cpu lone row: a score of -inf counts",
        LONE,
        "if (x == -kInfinity) continue;",
        "",
        EXTREME_TEST,
        MINUS_INFINITY,
    ),
    mutant(
        "cpu lone row: values in f32",
        LONE,
        "double values_[kMaxHeadDim];",
        "float values_[kMaxHeadDim];",
        EXTREME_TEST,
        LARGE_VALUES,
    ),
    mutant(
        "cpu: straightforward rows are never attended alone",
        STRAIGHT,
        "const bool is_lone = needs_lone_row(",
        "const bool is_lone = false && needs_lone_row(",
        EXTREME_TEST,
        UNSEEN,
    ),
    mutant(
        "cpu spans: references are not whole numbers",
        "csrc/cpu/fast/prefill_totals.h",
        "smaller(step, kMostStep) + kToWhole - kToWhole",
        "smaller(step, kMostStep)",
        EXTREME_TEST,
        RISING,
    ),
    mutant(
        "cpu decode: one chain along D",
        DOT,
        "while (kScoreChain<kPairs<T>> << level < n_units) ++level;",
        "",
        SEARCH_TEST,
        EQUAL_ELEMENTS,
    ),
    mutant(
        "cpu decode: chains of a dot product are lost",
        DOT,
        "sums[r][c] = tree[level][r][c] + sums[r][c];",
        "sums[r][c] = sums[r][c];",
        SEARCH_TEST,
        EQUAL_ELEMENTS,
    ),
    mutant(
        "cpu decode: all blocks in one group",
        VALUES,
        "inline constexpr int kGroupBlocks = 8;",
        "inline constexpr int kGroupBlocks = 1 << 20;",
        SEARCH_TEST,
        EVEN_WEIGHTS,
    ),
    mutant(
        "cpu decode: weights in one chain",
        WEIGHTS,
        "inline constexpr int kWeightChain = 8;",
        "inline constexpr int kWeightChain = 1 << 20;",
        SEARCH_TEST,
        EVEN_WEIGHTS,
    ),
    mutant(
        "cpu: one chain along D in the straightforward kernel",
        STRAIGHT,
        "constexpr int kDotBlock = 256;",
        "constexpr int kDotBlock = 1 << 20;",
        SEARCH_TEST,
        EQUAL_ELEMENTS,
    ),
)

PREFILL_MUTANTS = (
    mutant(
        "cpu prefill: wrong scale",
        "csrc/cpu/fast/score_rule.h",
        "return args.scale * kLog2E;",
        "return args.scale * kLog2E * 1.01f;",
        PREFILL_TEST,
        RANDOM,
    ),
    mutant(
        "cpu prefill: off-by-one causal",
        "csrc/cpu/fast/prefill_item.h",
        "seen_keys(band(first + r), begin",
        "seen_keys(band(first + r + 1), begin",
        PREFILL_TEST,
        RANDOM,
    ),
    mutant(
        "cpu prefill: wrong query head",
        ITEM,
        "return kv_h_ * group_ + (row_begin_ + row) % group_;",
        "return kv_h_ + (row_begin_ + row) % group_;",
        PREFILL_TEST,
        RANDOM,
    ),
    mutant(
        "cpu prefill: keys of a tile end with those of its first row",
        "csrc/cpu/fast/prefill_item.h",
        "all.end = larger(all.end, seen[r].end);",
        "all.end = all.end == 0 ? seen[r].end : all.end;",
        PREFILL_TEST,
        EDGES,
    ),
    mutant(
        "cpu prefill: numerators of the span before stay",
        ITEM,
        "i < n_rows_ * out_step(); i += kLanes) store(numerators_ + i, splat(0.0f));",
        "i < 0; i += kLanes) store(numerators_ + i, splat(0.0f));",
        PREFILL_TEST,
        PACKED,
    ),
    mutant(
        "cpu prefill: earlier weights keep their maximum",
        SOFTMAX,
        "store(states.sum + r, load(states.sum + r) * factor);",
        "store(states.sum + r, load(states.sum + r));",
        PREFILL_TEST,
        EDGES,
    ),
    mutant(
        "cpu prefill: scores of hidden keys count",
        "csrc/cpu/fast/prefill_softmax.h",
        "for (int j = visible.end; j % kLanes != 0; ++j) scores[j] = -kInfinity;",
        "",
        PREFILL_TEST,
        RANDOM,
    ),
    mutant(
        "cpu prefill: slots past the last key are read",
        PACK,
        "j + i < n_keys ? k[j + i] : zero_row<T>()",
        "k[j + i]",
        PREFILL_TEST,
        "nothing is touched behind the last row of an operand",
    ),
    mutant(
        "cpu prefill: keys are not filled up to a register",
        PACK,
        "clear_slots(packed, (n_keys + kPanel - 1) / kPanel, panel_slots, slots_for<T>(head_dim),"
        " depth);",
        "",
        PREFILL_TEST,
        PACKED,
    ),
    mutant(
        "cpu prefill: values are not filled up to a register",
        PACK,
        "panel_slots, depth, whole_depth<T>(depth));",
        "panel_slots, depth, depth);",
        PREFILL_TEST,
        PACKED,
    ),
    mutant(
        "cpu prefill: chains of scores are too long",
        PRODUCTS,
        "inline constexpr int kScoreChain = kOfPairs ? 32 : 22;",
        "inline constexpr int kScoreChain = kOfPairs ? 32 : 1024;",
        PREFILL_TEST,
        GROWING,
    ),
    mutant(
        "cpu prefill: chains of values are too long",
        PRODUCTS,
        "sizeof(T) == sizeof(float) ? 22 : kMaxBlock",
        "kMaxBlock",
        PREFILL_TEST,
        LONG,
    ),
    mutant(
        "cpu prefill: totals forget their rounding errors",
        TOTALS,
        "const Vec corrected = value * factor - load(compensation) * keep;",
        "const Vec corrected = value * factor;",
        PREFILL_TEST,
        MANY,
    ),
    mutant(
        "cpu prefill: a rounding error is not rescaled",
        TOTALS,
        "const Vec corrected = value * factor - load(compensation) * keep;",
        "const Vec corrected = value * factor - load(compensation);",
        PREFILL_TEST,
        MANY,
    ),
    mutant(
        "cpu prefill: log-sum-exp in other units",
        "csrc/cpu/fast/support.cpp",
        "(reference + std::log2(sum)) * kLn2",
        "(reference + std::log2(sum)) * (1.01f * kLn2)",
        PREFILL_TEST,
        RANDOM,
    ),
    mutant(
        "cpu prefill: no weight is heavy",
        PAIRS,
        "inline constexpr float kHeavyShare = 1.0f / 16;",
        "inline constexpr float kHeavyShare = 16;",
        PREFILL_TEST,
        ROUNDED,
    ),
    mutant(
        "cpu prefill: weights are rounded to nearest",
        PAIRS,
        "fractions[j] = (j * kInverseGoldenRatio + kInverseGoldenRatio / 2 + block * kRootOfTwo)"
        " >> 16;",
        "fractions[j] = 0x8000 + 0 * (kInverseGoldenRatio + kRootOfTwo + block);",
        PREFILL_TEST,
        ROUNDED,
    ),
    mutant(
        "cpu prefill: the norm of the last keys stands for all",
        PAIRS,
        "most = max(norm, most);",
        "most = norm;",
        PREFILL_TEST,
        ROUNDED,
    ),
    mutant(
        "cpu prefill: a heavy pair is added to its neighbour",
        PAIRS,
        "slot_[count_] = slot + i;",
        "slot_[count_] = slot + (i ^ 1);",
        PREFILL_TEST,
        ROUNDED,
    ),
    mutant(
        "cpu prefill: AMX's second rows are its first",
        AMX,
        "amx_load<5>(a + kAmxRows * a_step + k, a_step);",
        "amx_load<5>(a + k, a_step);",
        PREFILL_TEST,
        EDGES,
    ),
)

SHARE_MUTANTS = (
    mutant(
        "cpu prefill: states are merged before all are there",
        SPANS,
        "static_cast<std::uint32_t>(n_spans);",
        "static_cast<std::uint32_t>(n_spans > 0 ? n_done : 0);",
        PLAN_TEST,
        ORDER,
    ),
    mutant(
        "cpu prefill: sets of rows count their spans together",
        SHARES,
        "* run.head_counters + set;",
        "* run.head_counters;",
        PLAN_TEST,
        ORDER,
    ),
    mutant(
        "cpu prefill: KV heads leave their states in one place",
        SPANS,
        "(before * args.n_kv_heads + kv_h * n_states)",
        "(before * args.n_kv_heads + 0 * kv_h * n_states)",
        PLAN_TEST,
        ORDER,
    ),
    mutant(
        "cpu prefill: the last part of the spans is lost",
        SHARES,
        "larger<sdpa_u32>((args.n_spans + run.n_parts - 1) / run.n_parts, 1)",
        "larger<sdpa_u32>(args.n_spans / run.n_parts, 1)",
        PLAN_TEST,
        DEALT,
    ),
    mutant(
        "cpu prefill: counters of encoded calls are not set to zero",
        "csrc/cpu/execute.cpp",
        "if (binding.zero_first) std::memset(memory.data, 0, memory.byte_len);",
        "",
        PLAN_TEST,
        TWICE,
    ),
    mutant(
        "cpu prefill: counters of immediate calls are not set to zero",
        "csrc/cpu/immediate.cpp",
        "if (binding.zero_first) std::memset(memory.data, 0, memory.byte_len);",
        "",
        PLAN_TEST,
        DEALT,
    ),
    mutant(
        "cpu prefill: long items are never taken",
        CUT,
        "return std::clamp(plenty, ceil_div(rows, most), ceil_div(rows, kPrefillItemRows));",
        "return ceil_div(rows, most + plenty < 0 ? most : kPrefillItemRows);",
        PLAN_TEST,
        LONG_ITEMS,
    ),
    mutant(
        "cpu prefill: long items are always taken",
        CUT,
        "constexpr std::int64_t kPlentyPerThread = 24;",
        "constexpr std::int64_t kPlentyPerThread = 1;",
        PLAN_TEST,
        LONG_ITEMS,
    ),
    mutant(
        "cpu prefill: keys that no query sees are shared out",
        "csrc/core/plan_args.cpp",
        "return visible_band(problem, b).end;",
        "return problem.sequence_kv_len(b);",
        PLAN_TEST,
        SHARED,
    ),
    mutant(
        "cpu prefill: states may take any memory",
        CUT,
        "static_cast<double>(states)) <= kMostStateBytes;",
        "static_cast<double>(states)) <= 100 * kMostStateBytes;",
        PLAN_TEST,
        SHARED,
    ),
)

DECODE_MUTANTS = (
    mutant(
        "cpu decode: wrong scale",
        "csrc/cpu/fast/score_rule.h",
        "return args.scale * kLog2E;",
        "return args.scale * kLog2E * 1.01f;",
        DECODE_TEST,
        DECODED,
    ),
    mutant(
        "cpu decode: off-by-one causal",
        "csrc/cpu/fast/decode_item.h",
        "seen_keys(band(row + r), first_key_",
        "seen_keys(band(row + r + 1), first_key_",
        DECODE_TEST,
        DECODED,
    ),
    mutant(
        "cpu decode: states are merged before all are there",
        DECODE,
        "n_spans > 1 && !states_.is_last(",
        "n_spans > 1 && states_.is_last(",
        DECODE_TEST,
        SPANNED,
    ),
    mutant(
        "cpu decode: keys behind the last one are read",
        DOT,
        "k[smaller(key + group * kGroupKeys + step + j, n_keys - 1)]",
        "k[smaller(key + group * kGroupKeys + step + j, n_keys + 99)]",
        DECODE_TEST,
        WALL,
    ),
    mutant(
        "cpu decode: what is left of a unit is not multiplied",
        DOT,
        "for (; d < end; d += Shape::kUnit) {",
        "for (; d + Shape::kUnit <= end; d += Shape::kUnit) {",
        DECODE_TEST,
        TILES,
    ),
    mutant(
        "cpu decode: hidden keys count",
        "csrc/cpu/fast/decode_softmax.h",
        "key % kGroupKeys] = -kInfinity;",
        "key % kGroupKeys] = 0.0f;",
        DECODE_TEST,
        DECODED,
    ),
    mutant(
        "cpu decode: the fourth key of a group has the weight of the third",
        VALUES,
        "return splat_lane<3>(fours_[row]);",
        "return splat_lane<2>(fours_[row]);",
        DECODE_TEST,
        DECODED,
    ),
    mutant(
        "cpu decode: blocks overwrite each other's numerators",
        VALUES,
        "if (!place.is_in_first_group) sums = load(numerators) + sums;",
        "if (!place.is_in_first_group) sums = load(numerators) * splat(0.0f) + sums;",
        DECODE_TEST,
        DECODED,
    ),
    mutant(
        "cpu decode: chains of values follow the processor",
        VALUES,
        "line_slots * n_rows > kMostSlotsToLoad ?",
        "line_slots * n_rows > most_slots_to_load ?",
        DECODE_TEST,
        WALL,
    ),
    mutant(
        "cpu decode: rows of a batch take the first ones' parts",
        DECODE,
        "return scores_ + row / kPartRows * part_slots_;",
        "return scores_ + 0 * row / kPartRows * part_slots_;",
        DECODE_TEST,
        TILES,
    ),
    mutant(
        "cpu decode: taken for a row too many",
        "csrc/cpu/fast/sdpa_decode_plan.cpp",
        "rows <= most_rows(problem.dtype, target.isa)",
        "rows <= 1 + most_rows(problem.dtype, target.isa)",
        DECODE_TEST,
        TAKEN,
    ),
)

CPU_MUTANTS = PREFILL_MUTANTS + SHARE_MUTANTS + DECODE_MUTANTS + EXTREME_MUTANTS
