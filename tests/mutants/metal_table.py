"""The faults of the Metal device, the dispatch and the shaders, and which one test must notice."""

from __future__ import annotations

from fault import Edit, Mutant, mutant

STREAM = "csrc/metal/stream.cpp"
STORAGE = "csrc/metal/storage.cpp"
BACKEND = "csrc/metal/backend.cpp"
QUEUE = "csrc/metal/queue.cpp"
LIBRARY = "csrc/metal/library.cpp"
IN_FLIGHT = "csrc/metal/in_flight.cpp"
PLAN = "csrc/metal/plan.cpp"
STEPS = "csrc/metal/plan_steps.cpp"
PARAMS = "shaders/sdpa_params.h"
PACKED = "csrc/core/packed_launch.cpp"
TEAMS = "shaders/attention.h"
TILE = "shaders/attention_tile.h"
FRAGMENT = "shaders/fragment.h"
STATE = "shaders/softmax_state.h"

DEVICE = "metal_device_test"
FAULT = "metal_software_fault_test"
LIFETIME = "metal_software_lifetime_test"
EMPTY = "empty_test"
BARRIER = "metal_software_barrier_test"
PLANNER = "metal_plan_test"
PLAN_TILES = "metal_plan_tiles_test"
ATTENTION = "metal_attention_test"
BY_HAND = "sdpa_packed_test"
HIDDEN = "metal_hidden_test"
NUMERICS = "metal_numerics_test"
ACCURACY = "metal_accuracy_test"

HOST_MUTANTS = (
    mutant(
        "wrong buffer index",
        STREAM,
        "target.setBuffer(buffer, binding.byte_offset, binding.index);",
        "target.setBuffer(buffer, binding.byte_offset, binding.index ^ 1);",
        DEVICE,
        "metal device: bindings reach their indices, at their offsets",
    ),
    mutant(
        "wrong offset",
        STREAM,
        "target.setBuffer(buffer, binding.byte_offset, binding.index);",
        "target.setBuffer(buffer, 0, binding.index);",
        DEVICE,
        "metal device: bindings reach their indices, at their offsets",
    ),
    mutant(
        "missing barrier between dispatches",
        STREAM,
        "encoder_->memoryBarrier(MTL::BarrierScopeBuffers);",
        "",
        BARRIER,
        "software metal: a barrier stands between dependent dispatches, whatever the order",
    ),
    mutant(
        "hazard tracker forgets reads",
        "csrc/core/hazards.cpp",
        "overlap(a.writes, b.writes) || overlap(a.writes, b.reads) || overlap(a.reads, b.writes)",
        "overlap(a.writes, b.writes) || overlap(a.writes, b.reads)",
        BARRIER,
        "software metal: write after read waits too",
    ),
    mutant(
        "no queries are planned all the same",
        "csrc/core/dispatch.cpp",
        "if (problem.batch > 0 && problem.seq_len > 0) return backend.plan_sdpa(problem, options);",
        "if (problem.batch > 0) return backend.plan_sdpa(problem, options);",
        EMPTY,
        "rows without keys are 0 with lse -inf, and no rows are nothing to run",
    ),
    mutant(
        "no keys are refused",
        "csrc/core/validation.cpp",
        'check.extent("kv_capacity", p.kv_capacity, 0);',
        'check.extent("kv_capacity", p.kv_capacity, 1);',
        EMPTY,
        "rows without keys are 0 with lse -inf, and no rows are nothing to run",
    ),
    mutant(
        "missing retain of a wrapped buffer",
        BACKEND,
        "NS::RetainPtr(static_cast<MTL::Buffer*>(handle))",
        "NS::TransferPtr(static_cast<MTL::Buffer*>(handle))",
        LIFETIME,
        "software metal: a wrapped MTLBuffer is retained, and given back once",
    ),
    mutant(
        "missing retain of the command buffer",
        QUEUE,
        "NS::RetainPtr(queue_->commandBuffer(descriptor_.get()))",
        "NS::TransferPtr(queue_->commandBuffer(descriptor_.get()))",
        LIFETIME,
        "software metal: a device takes everything with it",
    ),
    mutant(
        "one release too few",
        LIBRARY,
        "auto state = NS::TransferPtr(",
        "auto state = NS::RetainPtr(",
        LIFETIME,
        "software metal: a device takes everything with it",
    ),
    mutant(
        "double release",
        STORAGE,
        "  buffer_.reset();\n",
        "  buffer_->release();\n  buffer_.reset();\n",
        LIFETIME,
        "software metal: a device takes everything with it",
    ),
    mutant(
        "pipelines are not kept alive",
        STREAM,
        "  submission_->pipelines.push_back(dispatch.pipeline);\n",
        "",
        FAULT,
        "software metal: a lost command buffer names itself, the error and the dispatch",
    ),
    mutant(
        "wrapped memory is let go at once",
        BACKEND,
        "static_cast<void>(owner);",
        "",
        LIFETIME,
        "software metal: wrapped memory is let go after its buffer, and not before",
    ),
    mutant(
        "wrong function constant index",
        LIBRARY,
        "values->setConstantValue(&value, data_type(value), constant.index);",
        "values->setConstantValue(&value, data_type(value), constant.index + 1);",
        DEVICE,
        "metal device: function constants of every type reach the function",
    ),
    mutant(
        "wrong function constant type",
        LIBRARY,
        "data_type(std::int32_t) { return MTL::DataTypeInt; }",
        "data_type(std::int32_t) { return MTL::DataTypeFloat; }",
        DEVICE,
        "metal device: function constants of every type reach the function",
    ),
    mutant(
        "wrong threadgroup size",
        STREAM,
        "mtl_size(dispatch.threadgroup_size))",
        "MTL::Size(dispatch.threadgroup_size.count(), 2, 1))",
        DEVICE,
        "metal device: every threadgroup and thread runs once, where it should",
    ),
    mutant(
        "wrong threadgroup size in a plan",
        PLAN,
        "kernel.block = kernel.threads = SDPA_TILE_Q;",
        "kernel.block = SDPA_TILE_Q;\n  kernel.threads = SDPA_TILE_Q - 1;",
        ATTENTION,
        "metal attention: within the bounds of float64, as the CPU is",
    ),
    Mutant(
        "params struct field order",
        (
            Edit(
                PARAMS,
                "  sdpa_u32 seq_len;      ///< query rows a head\n",
                "",
            ),
            Edit(
                PARAMS,
                "  float scale;  ",
                "  sdpa_u32 seq_len;\n  float scale;  ",
            ),
            Edit(PARAMS, "seq_len) == 12", "seq_len) == 16"),
            Edit(PARAMS, "kv_seq_len) == 16", "kv_seq_len) == 12"),
        ),
        ATTENTION,
        "metal attention: the packed form takes its 32 bytes in the documented order",
    ),
    Mutant(
        "threadgroup memory over 32 KB",
        (
            Edit(
                "csrc/core/encoder.cpp",
                "if (total > limits.max_threadgroup_memory) {",
                "if (false) {",
            ),
            Edit(STREAM, "if (total <= limit) return;", "if (limit != 0) return;"),
        ),
        DEVICE,
        "metal device: too much threadgroup memory is refused, and nothing runs",
    ),
    mutant(
        "by hand: more heads than the parameters have",
        PACKED,
        "if (grid.y > params.n_heads) {",
        "if (grid.y == 0) {",
        BY_HAND,
        "parameters and grids that do not fit the memory are refused",
    ),
    mutant(
        "by hand: sizes that wrap 64 bits",
        PACKED,
        "if (__builtin_mul_overflow(result, factor, &result)) return false;",
        "result *= factor;",
        BY_HAND,
        "sizes are counted without overflow for any parameters",
    ),
    mutant(
        "by hand: an output over the keys",
        PACKED,
        "if (i == SDPA_BUFFER_OUT) continue;",
        "if (i == SDPA_BUFFER_OUT || i == SDPA_BUFFER_K) continue;",
        BY_HAND,
        "bindings that do not fit the parameters are refused",
    ),
    mutant(
        "by hand: parameters in a buffer are trusted",
        "csrc/cpu/sdpa_packed.cpp",
        "if (!fault.empty()) throw std::invalid_argument(fault);",
        "static_cast<void>(fault);",
        BY_HAND,
        "parameters in a buffer are checked as they are when the cpu's kernel runs",
    ),
    mutant(
        "internal kernels are given by name",
        "csrc/core/registry.cpp",
        "if (library->is_own() && !packed_kernel_dtype(function).has_value()) {",
        "if (false) {",
        "registry_test",
        "kernels whose arguments are no contract are found by plans only",
    ),
    mutant(
        "a stride that nothing uses reaches the kernels",
        "csrc/core/plan_args.cpp",
        "problem.batch > 1 ? layout.batch_stride : 0",
        "problem.batch > 0 ? layout.batch_stride : 0",
        "sdpa_test",
        "a stride that no second entry uses may be any number",
    ),
    mutant(
        "encode after commit",
        "csrc/core/encoder.cpp",
        "if (status == CommandStatus::encoding) return;",
        "return;",
        DEVICE,
        "metal device: an encoder is used once",
    ),
    mutant(
        "memory is not zeroed",
        BACKEND,
        "std::memset(buffer->contents(), 0, byte_len);",
        "std::memset(buffer->contents(), 1, byte_len);",
        DEVICE,
        "metal device: new memory is zero and aligned",
    ),
    mutant(
        "a failed command buffer counts as done",
        STREAM,
        "if (command_buffer.status() == MTL::CommandBufferStatusError) {",
        "if (command_buffer.status() == MTL::CommandBufferStatusNotEnqueued) {",
        FAULT,
        "software metal: a lost command buffer names itself, the error and the dispatch",
    ),
    mutant(
        "errors that nobody waits for are dropped",
        IN_FLIGHT,
        "    failed_.push_back(submission);\n",
        "",
        FAULT,
        "software metal: an error that nobody waits for comes at synchronize, once",
    ),
    mutant(
        "an interrupt does not wait for the device",
        IN_FLIGHT,
        "    interrupted = poller.poll();\n    lock.lock();\n",
        "    interrupted = poller.poll();\n    lock.lock();\n    if (interrupted) break;\n",
        FAULT,
        "software metal: an interrupt is raised when nothing writes any more",
    ),
    mutant(
        "commit waits",
        STREAM,
        "  command_buffer_->commit();\n",
        "  command_buffer_->commit();\n  command_buffer_->waitUntilCompleted();\n",
        FAULT,
        "software metal: commit returns before the device is done",
    ),
    mutant(
        "an open encoder is let go",
        STREAM,
        "if (encoder_) encoder_->endEncoding();",
        "",
        LIFETIME,
        "software metal: an encoder that is dropped uncommitted leaves nothing and runs nothing",
    ),
    mutant(
        "dispatches are never cut",
        STEPS,
        "box, kernel.rate) <= facts.max_dispatch_seconds;",
        "box, kernel.rate) <= 1e30;",
        PLANNER,
        "metal plan: no dispatch of a long problem is above the limit",
    ),
    mutant(
        "cuts lose their rows",
        STEPS,
        "    args.row_begin = static_cast<sdpa_u32>(box_.row_begin);\n",
        "",
        ATTENTION,
        "metal attention: a cut plan gives the bits of the whole one",
    ),
    mutant(
        "cuts inside tiles",
        "csrc/metal/plan_tiles.cpp",
        "return {shape.rows / std::gcd(static_cast<std::int64_t>(shape.rows), group), group};",
        "return {std::max<std::int64_t>(shape.rows * shape.teams / group, 1), group};",
        PLAN_TILES,
        "metal plan: cuts of groups that do not divide a tile are at its edges",
    ),
    mutant(
        "16-bit sums that never restart",
        "csrc/metal/plan_tiles.cpp",
        "rule.limit = sdpa_longest_span(shape.prefill, f16) * shape.sharing_teams();",
        "rule.limit = f16 ? std::int64_t{1} << 30 : std::int64_t{1} << 31;",
        PLAN_TILES,
        "metal plan: 16-bit sums restart, at every number of queries and length of the cache",
    ),
    mutant(
        "states of any size",
        STEPS,
        "state_bytes(problem, kernel.spans, box) <= facts.max_state_bytes &&",
        "",
        PLAN_TILES,
        "metal plan: no dispatch is estimated above half a second or leaves more than 64 MB",
    ),
    mutant(
        "the shortest sequence first",
        "csrc/metal/plan_steps.cpp",
        "std::stable_sort(items.begin(), items.end(),",
        "std::stable_sort(items.rbegin(), items.rend(),",
        PLAN_TILES,
        "metal plan: a list of work holds the spans that there are, the longest sequence first",
    ),
)

BOUNDS_CASE = "metal attention: within the bounds of float64, as the CPU is"
HIDDEN_CASE = "metal hidden: NaN and infinities of a key that a row does not see do not reach it"

SHADER_MUTANTS = (
    mutant(
        "missing barrier in a shader",
        "shaders/sdpa_merge.metal",
        "  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);\n",
        "",
        ATTENTION,
        "metal attention: states of spans merge; spans of unseen keys are not read",
    ),
    mutant(
        "off-by-one causal",
        "shaders/sdpa_band.h",
        "sdpa_most(last + 1, 0)",
        "sdpa_most(last, 0)",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "wrong scale",
        "shaders/sdpa.metal",
        "row.rule.score(scores[j], row.own",
        "row.rule.score(scores[j] * 1.01f, row.own",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "wrong query group",
        "shaders/sdpa.metal",
        "h / long(args.n_heads / args.n_kv_heads)",
        "h % long(args.n_kv_heads)",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "last key of a tile twice",
        "shaders/sdpa.metal",
        "j < tile.count ? row.rule",
        "j <= tile.count ? row.rule",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "log-sum-exp in log2 units",
        STATE,
        "return (whole_exponent(reference) + exponent) * kLn2;",
        "return whole_exponent(reference) + exponent;",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "missing barrier between simdgroups of a team",
        TILE,
        "      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);\n",
        "",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "barrier of a simdgroup where the threadgroup needs one",
        TILE,
        "metal::threadgroup_barrier(",
        "metal::simdgroup_barrier(",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "wrong lane layout of a fragment",
        FRAGMENT,
        "position.pair = (lane % 16 / 8) * 2 + lane % 2;",
        "position.pair = lane % 16 / 8 + lane % 2 * 2;",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "wrong lane of a transposition",
        FRAGMENT,
        "return row / 4 * 16 + pair / 2 * 8 + row % 4 * 2 + pair % 2;",
        "return row / 4 * 16 + pair / 2 * 8 + row % 2 * 4 + pair % 2;",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "states are added before they stand there",
        TEAMS,
        "      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);\n",
        "",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "teams that share keys skip some",
        "shaders/attention.h",
        "return place.key_team * kKeys;",
        "return 2 * place.key_team * kKeys;",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "states of other teams at their own reference",
        TILE,
        "row_factor[t] = element_of_row(factor, at);",
        "row_factor[t] = 1.0f;",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "row teams leave their states in one place",
        TEAMS,
        "exchange + row_team * Tile::kStateFloat2s;",
        "exchange;",
        ATTENTION,
        BOUNDS_CASE,
    ),
    mutant(
        "states of a cut where those of the whole would be",
        "shaders/sdpa_problem.h",
        "const long row = (h - long(args.head_begin)) * n_rows",
        "const long row = h * n_rows",
        ATTENTION,
        "metal attention: a cut plan gives the bits of the whole one",
    ),
    mutant(
        "heads and items of a list mixed up",
        "shaders/sdpa_problem.h",
        "  group.y = head;\n",
        "",
        ATTENTION,
        "metal attention: a sequence has the same bits alone and in a batch",
    ),
    mutant(
        "factors of the first 32 spans for all",
        "shaders/sdpa_merge.metal",
        "if (first % kLanes == 0) {",
        "if (first == 0) {",
        ATTENTION,
        "metal attention: states of spans merge; spans of unseen keys are not read",
    ),
    mutant(
        "the last run of spans is lost",
        "shaders/sdpa_merge.metal",
        "run * run_spans < n_spans;",
        "(run + 1) * run_spans < n_spans;",
        ATTENTION,
        "metal attention: states of spans merge; spans of unseen keys are not read",
    ),
    mutant(
        "blocks of columns that leave some out",
        "shaders/sdpa_merge.metal",
        "first_column = int(group.z % blocks) * SDPA_MERGE_COLUMNS;",
        "first_column = int(group.z % blocks) * (SDPA_MERGE_COLUMNS + 1);",
        ATTENTION,
        "metal attention: states of spans merge; spans of unseen keys are not read",
    ),
    
    mutant(
        "weights rounded to the dtype",
        TILE,
        "weights[r][j] = transposed(weight, at);",
        "weights[r][j] = transposed(float2(float(T(weight.x)), float(T(weight.y))), at);",
        ATTENTION,
        "metal attention: rows that hang on one element of one key",
    ),
    mutant(
        "log2 e multiplies scores",
        STATE,
        "metal::exp2((score - from) * kLog2E)",
        "metal::exp2(score * kLog2E - from * kLog2E)",
        NUMERICS,
        "metal numerics: no finite score becomes infinite",
    ),
    mutant(
        "references are whole however large",
        STATE,
        "kWholeReference = 1048576.0f;",
        "kWholeReference = 1e38f;",
        ATTENTION,
        "metal attention: states whose references are largest scores merge",
    ),
    mutant(
        "adding nothing changes a sum",
        STATE,
        "compensation = ((next - added) - sum) + (added - corrected);",
        "compensation = (next - sum) - corrected;",
        NUMERICS,
        "metal numerics: the rows that share its tile do not change a row's bits",
    ),
    mutant(
        "rows with hidden NaN stay as they are",
        TEAMS,
        "&& tile.has_special(r);",
        "&& false;",
        HIDDEN,
        HIDDEN_CASE,
    ),
    mutant(
        "a row is put right from keys that it does not see",
        "shaders/attention.h",
        "keys.end = seen.end;",
        "keys.end = seen.end + 1;",
        HIDDEN,
        HIDDEN_CASE,
    ),
    mutant(
        "no weight is too small for an infinite value",
        "shaders/sdpa_merge.metal",
        "if (!metal::isfinite(numerator)) numerator = special_sum",
        "if (false) numerator = special_sum",
        HIDDEN,
        "metal hidden: an infinite value shows through a weight that is too small for a float",
    ),
    mutant(
        "one long chain of additions over head_dim",
        TILE,
        "kScoreChain = kCompensated ? 2 : 3,",
        "kScoreChain = 128,",
        ACCURACY,
        "metal accuracy: rows of equal elements",
    ),
)

METAL_MUTANTS = HOST_MUTANTS + SHADER_MUTANTS
