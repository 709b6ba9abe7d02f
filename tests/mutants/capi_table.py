"""Faults of the C interface: structs of other versions, memory of the caller, messages, fields."""

from __future__ import annotations

from fault import mutant

STRUCTS = "csrc/capi/structs.h"
HANDLES = "csrc/capi/handles.h"
BUFFER = "csrc/capi/buffer.cpp"
STATUS = "csrc/capi/status.cpp"
SDPA = "csrc/capi/sdpa.cpp"
PACKED = "csrc/capi/packed.cpp"
MERGE = "csrc/capi/merge_states.cpp"
PREPARED = "csrc/capi/prepared.cpp"

BITS = "c_api_test"
ERRORS = "c_api_errors_test"
VERSIONS = "structs say their size, and callers of other versions are understood"
RELEASED = "wrapped memory is given back once, when nothing refers to it"
RANDOM = "random problems with all features give the bits of the C++ call"
SOME_ROWS = "packed rows of which only some are in use"
CU_SEQLENS = "packed rows by cu_seqlens, and by first rows and lengths"
MERGED = "merges give the bits of the C++ call"
UNUSED = "memory that is missing, read-only, too short or without a use is refused"
MESSAGES = "each thread has a message of its own, which success leaves"
SCHEDULES = "bad schedules, runs and updates are refused"
DEVICES = "devices: kinds, options, facts, features, threads"

CAPI_MUTANTS = (
    mutant(
        "C: a newer struct's fields are passed over",
        STRUCTS,
        "if (bytes[i] == 0) continue;",
        "if (bytes[i] == 0 || size > 0) continue;",
        ERRORS,
        VERSIONS,
    ),
    mutant(
        "C: a field is written that an older struct lacks",
        STRUCTS,
        "std::memcpy(given, &read, std::min(read.struct_size, sizeof(T)));",
        "std::memcpy(given, &read, sizeof(T));",
        ERRORS,
        VERSIONS,
    ),
    mutant(
        "C: a field that an older struct lacks is 0",
        STRUCTS,
        "T read{}; set_defaults(read);",
        "T read{};",
        ERRORS,
        VERSIONS,
    ),
    mutant(
        "C: a handle is left where none is made",
        HANDLES,
        "*place = nullptr;",
        "",
        ERRORS,
        DEVICES,
    ),
    mutant(
        "C: memory is given back though the wrap failed",
        BUFFER,
        "if (wrapped_ && release_ != nullptr)",
        "if (release_ != nullptr)",
        ERRORS,
        RELEASED,
    ),
    mutant("C: memory is never given back", BUFFER, "owner->set_wrapped();", "", ERRORS, RELEASED),
    mutant(
        "C: a read-only buffer is none",
        BUFFER,
        "read_only != 0, std::move(owner)",
        "read_only > 1, std::move(owner)",
        ERRORS,
        RELEASED,
    ),
    mutant(
        "C: threads share the message",
        STATUS,
        "thread_local std::string last_message;",
        "std::string last_message;",
        ERRORS,
        MESSAGES,
    ),
    mutant(
        "C: the window's right side is its left",
        SDPA,
        "problem.window_right = given.window_right;",
        "problem.window_right = given.window_left;",
        BITS,
        RANDOM,
    ),
    mutant(
        "C: a negative q_start is none",
        SDPA,
        "given.q_start != METAL_SDPA_UNSET",
        "given.q_start >= 0",
        BITS,
        RANDOM,
    ),
    mutant(
        "C: sinks and slopes change places",
        SDPA,
        "operand_of(given.sinks), operand_of(given.alibi_slopes)",
        "operand_of(given.alibi_slopes), operand_of(given.sinks)",
        BITS,
        RANDOM,
    ),
    mutant(
        "C: a mask without a layout is passed over",
        SDPA,
        'refuse_unused(call, "mask", given.mask, used.mask, "mask is NULL");',
        "",
        ERRORS,
        UNUSED,
    ),
    mutant(
        "C: lengths of packed rows are their ranges",
        PACKED,
        "if (!given) lengths[b] = range;",
        "if (!given || lengths[b] > 0) lengths[b] = range;",
        BITS,
        SOME_ROWS,
    ),
    mutant(
        "C: the last sequence's length is the longest",
        PACKED,
        "return *std::max_element(lengths.begin(), lengths.end());",
        "return lengths.back();",
        BITS,
        CU_SEQLENS,
    ),
    mutant(
        "C: a merge's out has the dtype of its states",
        MERGE,
        'dtype_of(call, "out_dtype", given.out_dtype)',
        'dtype_of(call, "out_dtype", given.dtype)',
        BITS,
        MERGED,
    ),
    mutant(
        "C: an update passes over another number of rows",
        PREPARED,
        "return given.seq_len == prepared.seq_len;",
        "return true;",
        "c_api_prepared_test",
        SCHEDULES,
    ),
)
