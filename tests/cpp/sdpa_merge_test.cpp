// sdpa_merge against float64: states of spans to one row.
#include <cmath>
#include <cstring>

#include "core/registry.h"
#include "shaders/sdpa_args.h"
#include "shaders/sdpa_params.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

InlineBytes bytes_of_args(const SdpaArgs& args) {
  InlineBytes bytes(sizeof(args));
  std::memcpy(bytes.data(), &args, sizeof(args));
  return bytes;
}

}  // namespace

TEST_CASE("partial states merge in log2 units, stale spans are not read") {
  const Device device("cpu");
  const KernelRegistry registry(device);
  constexpr int kRows = 40, kSpans = 5, kWidth = 6, kSpanLen = 10;
  SdpaArgs args{};
  args.n_heads = args.n_kv_heads = args.batch = 1;
  args.seq_len = args.row_end = kRows;
  args.value_dim = kWidth;
  args.out_stride = {0, 0, kWidth};
  args.span_len = kSpanLen;
  args.n_spans = kSpans;
  args.window = {-1, 0, 0, 1};
  args.sequence.kv_len = 43;
  args.sequence.query_len = 1 << 20;
  args.sequence.q_start = -2;  // rows 0 and 1 see nothing, row 2 one key, the last 38

  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  const Buffer partial_o = device.empty({kRows, kSpans, kWidth}, DType::f32);
  const Buffer partial_ms = device.empty({kRows, kSpans, 2}, DType::f32);
  const Buffer out = device.empty({kRows, kWidth}, DType::f32);
  const Buffer lse = device.empty({kRows}, DType::f32);
  fill_bytes(partial_o, 0xff);
  fill_bytes(partial_ms, 0xff);
  for (int i = 2; i < kRows; ++i) {
    const int spans = (i - 1 + kSpanLen - 1) / kSpanLen;
    for (int s = 0; s < spans; ++s) {
      partial_ms.host<float>()[(i * kSpans + s) * 2] = 20 * normal(rng);
      partial_ms.host<float>()[(i * kSpans + s) * 2 + 1] = 1 + std::fabs(normal(rng));
      for (int d = 0; d < kWidth; ++d) {
        partial_o.host<float>()[(i * kSpans + s) * kWidth + d] = normal(rng);
      }
    }
  }
  CommandEncoder encoder(device);
  encoder.encode_threadgroups(plan_pipeline(registry, "sdpa_merge", {}),
                              {{SDPA_BUFFER_OUT, out},
                               {SDPA_BUFFER_ARGS, bytes_of_args(args)},
                               {SDPA_BUFFER_LSE, lse},
                               {SDPA_BUFFER_PARTIAL_O, partial_o},
                               {SDPA_BUFFER_PARTIAL_MS, partial_ms}},
                              {1, 1, (kRows + SDPA_TILE_Q - 1) / SDPA_TILE_Q}, {32, 1, 1});
  encoder.commit_and_wait();

  for (int i = 0; i < kRows; ++i) {
    const int spans = i < 2 ? 0 : (i - 1 + kSpanLen - 1) / kSpanLen;
    double denominator = 0;
    double numerators[kWidth] = {};
    for (int s = 0; s < spans; ++s) {
      const double factor =
          std::exp2(static_cast<double>(partial_ms.host<float>()[(i * kSpans + s) * 2]));
      denominator += factor * partial_ms.host<float>()[(i * kSpans + s) * 2 + 1];
      for (int d = 0; d < kWidth; ++d) {
        numerators[d] += factor * partial_o.host<float>()[(i * kSpans + s) * kWidth + d];
      }
    }
    INFO("row ", i);
    if (spans == 0) {
      CHECK(out.host<float>()[i * kWidth] == 0);
      CHECK(lse.host<float>()[i] == -INFINITY);
      continue;
    }
    CHECK(lse.host<float>()[i] == doctest::Approx(std::log(denominator)).epsilon(1e-6));
    for (int d = 0; d < kWidth; ++d) {
      const double want = numerators[d] / denominator;
      CHECK(std::fabs(out.host<float>()[i * kWidth + d] - want) <=
            0x1p-24 * 16 * (std::fabs(want) + 1));
    }
  }
}
