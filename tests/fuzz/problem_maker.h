// Attention problems from the fuzzer's bytes: good ones, and ones with numbers that no one expects.
#pragma once

#include <array>
#include <string>

#include "byte_reader.h"
#include "memory_block.h"
#include "metal_sdpa/metal_sdpa.h"

namespace metal_sdpa::fuzz {

/// How a problem is given to the library.
enum class Way {
  direct,     ///< sdpa()
  encoded,    ///< encode_sdpa, commit_and_wait
  committed,  ///< encode_sdpa twice, commit, wait_until_completed
  replayed,   ///< captured, reordered, replayed twice
  updated,    ///< captured at another length, updated, replayed
  captured,   ///< only captured: too much work to run
};
const char* way_name(Way way);

struct FuzzCase {
  SdpaProblem problem;
  bool is_hostile =
      false;  ///< some number was replaced: the library may refuse, and must not crash
  std::array<BlockShape, 8> blocks;  ///< q, k, v, out, lse, mask, sinks, slopes
  DType dtype = DType::f32;          ///< of the memory
  Values values = Values::normal;    ///< of q and k
  Values v_values = Values::normal;
  std::uint32_t seed = 0;
  DeviceOptions options;
  Way way = Way::direct;
  std::int64_t recorded_kv_len = 1;  ///< of a capture that is updated
};

/// Multiply-adds of a problem, saturated.
std::int64_t work_of(const SdpaProblem& problem);

FuzzCase make_case(ByteReader& bytes);

/// The case as C++.
std::string text_of_case(const FuzzCase& c);

/// Instruction sets of this machine, by name.
const std::vector<std::string>& isa_names();

}  // namespace metal_sdpa::fuzz
