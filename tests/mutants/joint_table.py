"""Faults of packed rows and pages that outlived the first tests of them."""

from __future__ import annotations

from fault import mutant

PACKED_TEST = "packed_rows_test"
PAGED_TEST = "paged_test"
CUTS = "sequences that are cut differently, on many threads"
CHECKED = "pages are checked"

JOINT_MUTANTS = (
    mutant(
        "cpu joint: sequences of other rows are a grid",
        "csrc/cpu/fast/work_list.cpp",
        "if (other.query_len != first.query_len) return true;",
        "",
        PACKED_TEST,
        CUTS,
    ),
    mutant(
        "cpu joint: the last part says how much memory states take",
        "csrc/cpu/fast/fast.cpp",
        "plan.scratch_bytes[0] = std::max(plan.scratch_bytes[0], bytes);",
        "plan.scratch_bytes[0] = bytes;",
        PACKED_TEST,
        CUTS,
    ),
    mutant(
        "cpu joint: sets of rows count by their own number",
        "csrc/cpu/fast/sdpa_prefill_kernel.cpp",
        "* run.head_counters + set;",
        "* run.n_sets + set;",
        PACKED_TEST,
        CUTS,
    ),
    mutant(
        "joint: the page in which a window begins is not checked",
        "csrc/core/validation.cpp",
        "std::int64_t i = band.begin / pages.page_len;",
        "std::int64_t i = (band.begin + pages.page_len - 1) / pages.page_len;",
        PAGED_TEST,
        CHECKED,
    ),
    mutant(
        "joint: a table ends with the first sequence's entries",
        "csrc/core/operands.cpp",
        "pages.starts.empty() ? p.batch : 1;",
        "pages.starts.empty() ? 1 : 1;",
        PAGED_TEST,
        "an output over any sequence's entries is refused",
    ),
    mutant(
        "cpu joint: a page ends a row late",
        "csrc/cpu/fast/key_rows.h",
        "smaller(place_.page_len - row, n)",
        "smaller(place_.page_len - row + 1, n)",
        PAGED_TEST,
        "pages of every length",
    ),
)
