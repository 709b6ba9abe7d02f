// What must hold of a problem: refused without a trace, or right to the bound of the README.
#include "differential.h"

#include <bit>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "oracle.h"
#include "report.h"
#include "runs.h"
#include "support.h"

namespace metal_sdpa::fuzz {
namespace {

/// Multiply-adds up to which float64 is asked: some milliseconds under sanitizers.
constexpr std::int64_t kMostOracleWork = 60000;

/// Of the text by which a kernel that is asked for by name refuses a problem.
constexpr const char* kNotTaken = "does not take this problem";

bool is_written(const CaseMemory& memory) {
  const std::vector<bool> none_of_out(static_cast<std::size_t>(memory.out.elements()));
  const std::vector<bool> none_of_lse(static_cast<std::size_t>(memory.lse.elements()));
  return !memory.out.holds_pattern(none_of_out) || !memory.lse.holds_pattern(none_of_lse);
}

/// Elements of the output that the problem owns. Its layout has been accepted.
std::vector<bool> owned_elements(const SdpaProblem& p, std::int64_t elements) {
  std::vector<bool> owned(static_cast<std::size_t>(elements));
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      for (std::int64_t i = 0; i < p.seq_len; ++i) {
        const std::int64_t first = p.out.offset + (b == 0 ? 0 : b * p.out.batch_stride) +
                                   (h == 0 ? 0 : h * p.out.head_stride) +
                                   (i == 0 ? 0 : i * p.out.row_stride);
        for (std::int64_t d = 0; d < p.value_dim; ++d) {
          owned[static_cast<std::size_t>(first + d)] = true;
        }
      }
    }
  }
  return owned;
}

void check_only_owned_written(const FuzzCase& c, const CaseMemory& memory) {
  const SdpaProblem& p = c.problem;
  if (!memory.out.holds_pattern(owned_elements(p, memory.out.elements()))) {
    fail_case("bytes of the output's buffer outside its rows were written");
  }
  std::vector<bool> lse(static_cast<std::size_t>(memory.lse.elements()));
  const std::int64_t count = p.return_lse ? p.batch * p.n_heads * p.seq_len : 0;
  for (std::int64_t i = 0; i < count; ++i) lse[static_cast<std::size_t>(i)] = true;
  if (!memory.lse.holds_pattern(lse)) fail_case("bytes outside of the lse were written");
}

enum class Kind { finite, nan, infinite };

Kind kind_of(float value) {
  if (std::isnan(value)) return Kind::nan;
  return std::isinf(value) ? Kind::infinite : Kind::finite;
}

/// Bits of every element; NaN is NaN, whatever its payload: IEEE 754 leaves open which operand's a
/// sum of two keeps.
std::vector<std::uint32_t> bits_of(const Buffer& buffer) {
  std::vector<std::uint32_t> bits;
  for (std::size_t i = 0; i < buffer.element_count(); ++i) {
    const float value = test::get_element(buffer, i);
    bits.push_back(std::isnan(value) ? 0x7fc00000 : std::bit_cast<std::uint32_t>(value));
  }
  return bits;
}

std::vector<float> values_of(const Buffer& buffer) {
  std::vector<float> values;
  for (std::size_t i = 0; i < buffer.element_count(); ++i) {
    values.push_back(test::get_element(buffer, i));
  }
  return values;
}

/// The problem without the strides that nothing uses, which the oracle multiplies by 0.
SdpaProblem for_oracle(SdpaProblem p) {
  for (TensorLayout* layout : {&p.q, &p.k, &p.v, &p.out}) {
    if (p.batch == 1) layout->batch_stride = 0;
  }
  for (TensorLayout* layout : {&p.q, &p.out}) {
    if (p.n_heads == 1) layout->head_stride = 0;
    if (p.seq_len == 1) layout->row_stride = 0;
  }
  for (TensorLayout* layout : {&p.k, &p.v}) {
    if (p.n_kv_heads == 1) layout->head_stride = 0;
    if (p.kv_capacity == 1) layout->row_stride = 0;
  }
  return p;
}

using Results = std::pair<std::vector<std::uint32_t>, std::vector<std::uint32_t>>;

/// The case on other instruction sets and kernels, by the direct way.
class Comparison {
 public:
  Comparison(const FuzzCase& c, CaseMemory& memory)
      : case_(c), memory_(memory), problem_(for_oracle(c.problem)) {
    case_.way = Way::direct;
    const bool is_wild = c.values == Values::wild || c.v_values == Values::wild;
    asks_oracle_ = !is_wild && work_of(problem_) <= kMostOracleWork;
    if (asks_oracle_) reference_ = test::reference_sdpa(problem_, operands());
  }

  /// Runs the case; false where the kernel does not take it.
  bool run(const std::string& isa, const std::string& kernel, int threads) {
    describe_step("// then direct: isa " + isa + ", kernel \"" + kernel + "\", threads " +
                  std::to_string(threads));
    FuzzCase c = case_;
    c.options = {threads, isa};
    c.problem.kernel = kernel;
    memory_.clear_results();
    const Device device("cpu", c.options);
    const std::string refusal = run_case(c, device, memory_.operands(device, true));
    if (refusal.empty()) return true;
    if (refusal.find(kNotTaken) == std::string::npos) fail_case("refused: " + refusal);
    return false;
  }

  /// What the memory holds is the yardstick where float64 is not asked.
  void keep_straightforward() { straight_ = values_of(memory_.out.buffer(Device("cpu"))); }

  /// Bits of out and lse.
  Results results() const {
    const SdpaOperands x = operands();
    return {bits_of(x.out), bits_of(x.lse)};
  }

  void check() const {
    check_only_owned_written(case_, memory_);
    if (asks_oracle_) check_error();
    if (!asks_oracle_ && !straight_.empty()) check_kinds();
  }

 private:
  SdpaOperands operands() const { return memory_.operands(Device("cpu"), true); }

  void check_error() const {
    const double error = test::worst_error(problem_, operands(), reference_);
    if (error <= 1.0) return;
    fail_case("the error is " + std::to_string(error) + " times its bound");
  }

  /// Where float64 is not asked (NaN and infinities are about, or there is too much to work out),
  /// every element is of the straightforward kernel's kind: finite, infinite or NaN.
  void check_kinds() const {
    const std::vector<float> values = values_of(memory_.out.buffer(Device("cpu")));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (kind_of(values[i]) == kind_of(straight_[i])) continue;
      fail_case("element " + std::to_string(i) + " of out is " + std::to_string(values[i]) +
                ", the straightforward kernel gives " + std::to_string(straight_[i]));
    }
  }

  FuzzCase case_;
  CaseMemory& memory_;
  SdpaProblem problem_;
  bool asks_oracle_ = false;
  test::Reference reference_;
  std::vector<float> straight_;
};

/// `memory` holds what the case's own way gave.
void compare(const FuzzCase& c, CaseMemory& memory) {
  Comparison comparison(c, memory);
  const Results by_way = comparison.results();
  comparison.check();
  comparison.run("baseline", "sdpa", 1);
  comparison.check();
  comparison.keep_straightforward();
  for (const std::string& isa : isa_names()) {
    const bool is_same = isa == c.options.isa;
    const int threads = is_same ? c.options.threads % 3 + 1 : 1;
    if (!comparison.run(isa, c.problem.kernel, threads)) continue;
    comparison.check();
    // A row that shares a tile with hidden values that are not finite is attended by itself, within
    // the bound; which rows share one hangs on the number of threads.
    if (is_same && c.v_values != Values::wild && comparison.results() != by_way) {
      fail_case("the bits depend on the way or on the number of threads");
    }
  }
}

}  // namespace

void try_problem(ByteReader& bytes) {
  const FuzzCase c = make_case(bytes);
  describe_case(text_of_case(c));
  CaseMemory memory(c);
  fill_inputs(c, memory);
  const Device device("cpu", c.options);
  const std::string refusal =
      run_case(c, device, memory.operands(device, c.problem.return_lse || c.seed % 2 == 0));
  if (!refusal.empty()) {
    if (is_written(memory)) fail_case("refused, but written: " + refusal);
    const bool is_expected = c.is_hostile || refusal.find(kNotTaken) != std::string::npos;
    if (!is_expected) fail_case("a good problem was refused: " + refusal);
    return;
  }
  if (c.way != Way::captured) compare(c, memory);
}

}  // namespace metal_sdpa::fuzz
