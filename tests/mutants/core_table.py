"""Faults of the core: what is given by hand, ranges, graphs, work in flight."""

from __future__ import annotations

from fault import mutant

PACKED = "csrc/core/packed_launch.cpp"
ARGS = "csrc/core/plan_args.cpp"
OPERANDS = "csrc/core/operands.cpp"

BY_HAND = "sdpa_packed_test"
MEMORY = "parameters and grids that do not fit the memory are refused"
BINDINGS = "bindings that do not fit the parameters are refused"
PLACES = "places that elements cannot start at, read-only and inline outputs, short blocks"

RANGES_TEST = "plan_ranges_test"
RANGES = "ranges of every step hold what it touches, and scratch is written before it is read"
SHARED = "one operand in common gives a barrier where either call writes it, and none elsewhere"

CORE_MUTANTS = (
    mutant(
        "by hand: one tile more", PACKED, "grid.z > tiles", "grid.z > tiles + 1", BY_HAND, MEMORY
    ),
    mutant(
        "by hand: memory for one sequence",
        PACKED,
        "batch = launch.threadgroups.x;",
        "batch = 1;",
        BY_HAND,
        MEMORY,
    ),
    mutant(
        "by hand: memory for the keys in use alone",
        PACKED,
        "params.n_kv_heads, params.kv_capacity",
        "params.n_kv_heads, params.kv_seq_len",
        BY_HAND,
        MEMORY,
    ),
    mutant(
        "by hand: an output that ends where an input begins",
        PACKED,
        "b.address < a.address + a_bytes;",
        "b.address <= a.address && a_bytes > 0;",
        BY_HAND,
        BINDINGS,
    ),
    mutant(
        "by hand: a read-only output",
        PACKED,
        "if (out.storage->read_only) return",
        "if (false) return",
        BY_HAND,
        PLACES,
    ),
    mutant(
        "by hand: inline parameters are left to the kernel",
        PACKED,
        "bytes.empty() || dispatch.pipeline->checks_parameters",
        "bytes.empty() || !dispatch.pipeline->checks_parameters",
        BY_HAND,
        BINDINGS,
    ),
    mutant(
        "ranges: of one sequence",
        OPERANDS,
        "return {p.batch, heads, rows, width,",
        "return {1, heads, rows, width,",
        RANGES_TEST,
        RANGES,
    ),
    mutant(
        "ranges: the last element is left out",
        OPERANDS,
        "(last - first + 1) * view.element_size",
        "(last - first) * view.element_size",
        RANGES_TEST,
        RANGES,
    ),
    mutant(
        "ranges: nobody reads the values",
        ARGS,
        "step.reads.push_back(operand_range(problem, info));",
        "if (info.operand != PlanOperand::v) step.reads.push_back(operand_range(problem, info));",
        RANGES_TEST,
        SHARED,
    ),
    mutant(
        "ranges: the log-sum-exp of one sequence",
        OPERANDS,
        "{0, p.n_heads * rows, rows, 1}",
        "{0, 0, rows, 1}",
        RANGES_TEST,
        RANGES,
    ),
)
