// Windows, lengths and starts; the core checks their values.
#include "visibility.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kWindowTypes = "an int, or a pair (left, right) of ints or None";

std::int64_t read_side(Argument argument, nb::handle value) {
  return value.is_none() ? Visibility::kUnlimited : to_int64(argument, value);
}

/// One number for all sequences, or a list with an entry for each.
template <typename Number>
void read_numbers(Argument argument, nb::handle value, ReadNumbers read, Number& one,
                  std::vector<std::int64_t>& each, std::int64_t& count) {
  IntOrList numbers = read(argument, value);
  each.clear();
  if (numbers.single) {
    one = numbers.value;
    return;
  }
  each = std::move(numbers.list);
  count = static_cast<std::int64_t>(each.size());
}

void check_count(Argument argument, std::int64_t count, std::int64_t batch) {
  if (count < 0 || count == batch) return;
  fail_argument(argument.call, ": ", argument.name, ": ", count, " entries, but the batch has ",
                batch);
}

}  // namespace

void read_window(Argument argument, nb::handle value, Visibility& visibility) {
  const nb::object entries = PyLong_Check(value.ptr()) ? nb::object() : entries_of(value);
  if (entries.is_valid()) {
    const nb::list pair = nb::borrow<nb::list>(entries);
    if (nb::len(pair) != 2) {
      fail_argument(argument.call, ": ", argument.name, ": got ", nb::len(pair), " entries, takes ",
                    kWindowTypes);
    }
    visibility.window_left = read_side(argument, pair[0]);
    visibility.window_right = read_side(argument, pair[1]);
    return;
  }
  if (!PyIndex_Check(value.ptr())) fail_type(argument, value, kWindowTypes);
  const std::int64_t keys = to_int64(argument, value);
  if (keys < 1) {
    fail_argument(argument.call, ": ", argument.name, ": ", keys,
                  ", takes 1 or more keys, the query's own included, or a pair (left, right)");
  }
  visibility.window_left = keys - 1;
  visibility.window_right = 0;
}

void read_kv_lengths(Argument argument, nb::handle value, Visibility& visibility,
                     LengthCounts& counts) {
  read_numbers(argument, value, counts.read, visibility.kv_len, visibility.kv_lengths,
               counts.kv_lengths);
}

void read_kv_starts(Argument argument, nb::handle value, Visibility& visibility,
                    LengthCounts& counts) {
  read_numbers(argument, value, counts.read, visibility.kv_start, visibility.kv_starts,
               counts.kv_starts);
}

void read_q_start(Argument argument, nb::handle value, Visibility& visibility,
                  LengthCounts& counts) {
  read_numbers(argument, value, counts.read, visibility.q_start, visibility.q_starts,
               counts.q_start);
}

void read_query_lengths(Argument argument, nb::handle value, Visibility& visibility,
                        LengthCounts& counts) {
  read_numbers(argument, value, counts.read, visibility.query_len, visibility.query_lengths,
               counts.query_lengths);
}

void check_counts(const char* call, const LengthCounts& counts, std::int64_t batch) {
  check_count({call, "kv_lengths"}, counts.kv_lengths, batch);
  check_count({call, "kv_starts"}, counts.kv_starts, batch);
  check_count({call, "q_start"}, counts.q_start, batch);
  check_count({call, "query_lengths"}, counts.query_lengths, batch);
}

// --- update() ------------------------------------------------------------------------------------

namespace {

struct Change {
  const char* name;
  void (*take)(Argument argument, nb::handle value, Visibility& visibility, LengthCounts& counts);
};

constexpr Change kChanges[] = {
    {"causal", [](Argument argument, nb::handle value, Visibility& visibility,
                  LengthCounts&) { visibility.causal = to_bool(argument, value); }},
    {"window",
     [](Argument argument, nb::handle value, Visibility& visibility, LengthCounts&) {
       visibility.window_left = visibility.window_right = Visibility::kUnlimited;
       if (!value.is_none()) read_window(argument, value, visibility);
     }},
    {"q_start",
     [](Argument argument, nb::handle value, Visibility& visibility, LengthCounts& counts) {
       visibility.q_start.reset();
       visibility.q_starts.clear();
       if (!value.is_none()) read_q_start(argument, value, visibility, counts);
     }},
    {"query_lengths",
     [](Argument argument, nb::handle value, Visibility& visibility, LengthCounts& counts) {
       visibility.query_len.reset();
       visibility.query_lengths.clear();
       if (!value.is_none()) read_query_lengths(argument, value, visibility, counts);
     }},
    {"kv_lengths", read_kv_lengths},
    {"kv_starts", read_kv_starts},
    {"key_offset", [](Argument argument, nb::handle value, Visibility& visibility,
                      LengthCounts&) { visibility.key_offset = to_int64(argument, value); }},
    {"key_stride", [](Argument argument, nb::handle value, Visibility& visibility,
                      LengthCounts&) { visibility.key_stride = to_int64(argument, value); }},
};

}  // namespace

void change_visibility(nb::handle key, nb::handle value, Visibility& visibility,
                       LengthCounts& counts) {
  const std::string name = to_text({"update", "names"}, key);
  for (const Change& change : kChanges) {
    if (name == change.name) return change.take({"update", change.name}, value, visibility, counts);
  }
  PyErr_SetString(PyExc_TypeError,
                  text_of("update: got an unexpected argument '", name, "'").c_str());
  nb::raise_python_error();
}

void require_entries(const LengthCounts& counts) {
  const auto require = [](const char* name, std::int64_t count) {
    if (count == 0) fail_argument("update: ", name, ": 0 entries, takes one for each sequence");
  };
  require("kv_lengths", counts.kv_lengths);
  require("kv_starts", counts.kv_starts);
  require("q_start", counts.q_start);
  require("query_lengths", counts.query_lengths);
}

}  // namespace metal_sdpa::python
