"""Faults of the CPU device's queue and of how uneven batches are dealt out.

Each is one small file to build.
"""

from __future__ import annotations

from fault import mutant

QUEUE = "csrc/cpu/queue.cpp"
LIST = "csrc/cpu/fast/work_list.cpp"
EXECUTE = "csrc/cpu/execute.cpp"

QUEUE_TEST = "queue_test"
LIST_TEST = "work_list_test"

BEFORE = "synchronize and shutdown wait for what was committed before, not for an idle device"
OWN = "an interrupt of synchronize cancels the work of its own thread alone"
NESTED = "an interrupt check may call the library in the middle of sdpa"
REFUSED = "an interrupt check is refused what would wait for the work it holds up"
THROWN = "what a kernel throws fails its command buffer, whatever it is"
NO_THREADS = "a system that gives no threads: the caller's own does everything"
BUSY = "one long sequence beside short ones keeps all threads busy, wherever it stands"
FIRST = "items that cost most come first"
GIVEN_BACK = "memory goes back when work is done or cancelled, also where its encoder is kept"
BEHIND = "what is committed while shutdown waits is run, although nobody waits for it"
COUNTED = "the states that a list counts are those that memory is taken for"
ALONE = "sequences of an uneven batch have the bits that they have alone"

FLIGHT_TEST = "asynchronous_test"
OVERTAKEN = "a call behind committed work reads what that work writes"
SCRATCH = "submissions in flight have scratch and tables of their own"

COVERED = "each row and span of an uneven batch is in one item, and no item is empty"

QUEUE_MUTANTS = (
    mutant(
        "cpu queue: synchronize waits for an idle device",
        QUEUE,
        "const std::uint64_t last = last_number_;",
        "const std::uint64_t last = UINT64_MAX;",
        QUEUE_TEST,
        BEFORE,
    ),
    mutant(
        "cpu queue: an interrupt cancels the jobs of other threads",
        QUEUE,
        "return job.owner == self && job.number <= last && !job.ends_threads;",
        "return job.number <= last && !job.ends_threads;",
        QUEUE_TEST,
        OWN,
    ),
    mutant(
        "cpu queue: a nested call works in the memory of the suspended one",
        QUEUE,
        "  const ScratchAside aside;\n  const FpModeScope fp_mode;\n",
        "  const FpModeScope fp_mode;\n",
        QUEUE_TEST,
        NESTED,
    ),
    mutant(
        "cpu queue: a nested call runs ahead of what its thread has committed",
        QUEUE,
        "return pending_.find(is_own) == nullptr;",
        "return pending_.find(is_own) == nullptr || true;",
        QUEUE_TEST,
        REFUSED,
    ),
    mutant(
        "cpu queue: what nobody waits for is left to a thread that is not there",
        QUEUE,
        "return !thread_.joinable() && job.waiters == 0;",
        "return !thread_.joinable() && job.waiters < 0;",
        "queue_without_threads_test",
        NO_THREADS,
    ),
    mutant(
        "cpu kernels: only std::exception is caught",
        EXECUTE,
        "  } catch (...) {\n    fail(ErrorCode::command_buffer,",
        "  } catch (const char*) {\n    fail(ErrorCode::command_buffer,",
        QUEUE_TEST,
        THROWN,
    ),
    mutant(
        "cpu work list: threadgroups are as large as the whole",
        LIST,
        "const double smallest = total / (kSmallestPerThread * threads);",
        "const double smallest = total / threads;",
        LIST_TEST,
        BUSY,
    ),
    mutant(
        "cpu work list: items stand in the order of the batch",
        LIST,
        "return a.item_cost > b.item_cost;",
        "return a.sequence < b.sequence;",
        LIST_TEST,
        FIRST,
    ),
    mutant(
        "cpu work list: the last items are in no threadgroup",
        LIST,
        "  first_items.push_back(item);\n  return first_items;",
        "  return first_items;",
        LIST_TEST,
        COVERED,
    ),
    mutant(
        "cpu work list: batches that differ in their starts alone have none",
        LIST,
        "if (has_side && other.q_start != first.q_start) return true;",
        "",
        LIST_TEST,
        "batches of equal sequences have no list",
    ),
    mutant(
        "cpu work list: states are counted that nobody leaves",
        "csrc/cpu/fast/work_list.h",
        "has_states ? spans * rows : 0",
        "spans * rows",
        LIST_TEST,
        COUNTED,
    ),
    mutant(
        "cpu work list: every sequence has counters of its own number",
        LIST,
        "static_cast<std::uint32_t>(head_counters)",
        "static_cast<std::uint32_t>(work.n_sets)",
        LIST_TEST,
        ALONE,
    ),
    mutant(
        "cpu queue: an error is told twice",
        QUEUE,
        "std::erase(failed_, job);",
        "",
        "encoder_test",
        "an error surfaces at wait, and later work is unaffected",
    ),
    mutant(
        "cpu queue: what was cancelled is an error of the device",
        QUEUE,
        """std::erase_if(failed_, [self](const std::shared_ptr<Job>& job) {
             return job->owner == self && job->cancelled.load();
           });""",
        "",
        QUEUE_TEST,
        OWN,
    ),
    mutant(
        "cpu queue: a job that is done keeps its memory",
        QUEUE,
        "job->dispatches.clear();",
        "",
        QUEUE_TEST,
        GIVEN_BACK,
        within="execute",
    ),
    mutant(
        "cpu queue: a cancelled job keeps its memory",
        QUEUE,
        "job->dispatches.clear();",
        "",
        QUEUE_TEST,
        GIVEN_BACK,
        within="cancel",
    ),
    mutant(
        "cpu queue: what waits behind a shutdown is left there",
        QUEUE,
        """if (pending_.find([this](const Job& left) { return is_orphan(left); }) != nullptr)
             start_thread();""",
        "",
        QUEUE_TEST,
        BEHIND,
    ),
    mutant(
        "cpu queue: synchronize leaves out the last job",
        QUEUE,
        "work->number <= last",
        "work->number < last",
        FLIGHT_TEST,
        SCRATCH,
    ),
    mutant(
        "cpu queue: calls overtake what is committed",
        QUEUE,
        "running_ != Running::nothing || !pending_.empty()",
        "running_ != Running::nothing",
        FLIGHT_TEST,
        OVERTAKEN,
    ),
)
