// What an engine relies on across the library boundary: a result, an exception caught by its type,
// a native kernel of its own, and one version in header and package.
#include <metal_sdpa/metal_sdpa.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

using namespace metal_sdpa;

namespace {

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("consumer: %s\n", what);
  std::exit(1);
}

/// Doubles the f32 numbers of buffer 0, one a threadgroup.
void twice(const NativeLaunch& launch, WorkRange work, StopToken&) {
  for (std::uint64_t i = work.begin; i < work.end; ++i) launch.buffer<float>(0)[i] *= 2;
}

void attention_over_equal_keys_is_the_mean(const Device& device) {
  const KernelRegistry registry(device);
  const Buffer q = device.empty({1, 2, 1, 4}, DType::f32);
  const Buffer k = device.empty({1, 1, 3, 4}, DType::f32);
  const Buffer v = device.empty({1, 1, 3, 4}, DType::f32);
  const Buffer out = device.empty({1, 2, 1, 4}, DType::f32);
  for (int i = 0; i < 12; ++i) v.host<float>()[i] = static_cast<float>(i);
  const SdpaParams params{
      .n_heads = 2, .n_kv_heads = 1, .head_dim = 4, .seq_len = 1, .kv_seq_len = 3};
  CommandEncoder encoder = device.command_encoder();
  encode_sdpa(encoder, registry, device, q, k, v, out, params, 1);
  encoder.commit_and_wait();
  for (int i = 0; i < 8; ++i) {
    expect(std::fabs(out.host<float>()[i] - static_cast<float>(4 + i % 4)) < 1e-5f, "mean of v");
  }
}

void errors_keep_their_type() {
  SdpaParams params{.n_heads = 16, .n_kv_heads = 7, .head_dim = 64, .seq_len = 1, .kv_seq_len = 1};
  try {
    params.validate();
  } catch (const Error& error) {
    expect(error.code() == ErrorCode::invalid_argument, "code of the error");
    expect(std::strlen(error.what()) > 0, "text of the error");
    return;
  }
  expect(false, "16 against 7 heads must throw");
}

void native_kernels_run(const Device& device) {
  KernelRegistry registry(device);
  registry.register_native("twice", &twice);
  const Buffer numbers = device.empty({5}, DType::f32);
  for (int i = 0; i < 5; ++i) numbers.host<float>()[i] = static_cast<float>(i);
  CommandEncoder encoder = device.command_encoder();
  encoder.encode_threadgroups(registry.get_pipeline("twice"), {{0, numbers}}, {5, 1, 1}, {1, 1, 1});
  encoder.commit_and_wait();
  for (int i = 0; i < 5; ++i) {
    expect(numbers.host<float>()[i] == static_cast<float>(2 * i), "native kernel");
  }
}

}  // namespace

int main() {
  const Device cpu("cpu");
  attention_over_equal_keys_is_the_mean(cpu);
  errors_keep_their_type();
  native_kernels_run(cpu);
  expect(std::string(METAL_SDPA_VERSION).find('.') != std::string::npos, "version");
  std::printf("consumer: ok, metal_sdpa %s\n", METAL_SDPA_VERSION);
}
