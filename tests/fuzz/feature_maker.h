// What happens to the scores of a problem, from the fuzzer's bytes.
#pragma once

#include "problem_maker.h"

namespace metal_sdpa::fuzz {

/// Some of: window, starts, lengths, sharded keys, softcap, mask, slopes, sinks, an f32 output.
void make_features(ByteReader& bytes, FuzzCase& c);

/// One number or type of them is replaced by what no one expects.
void make_features_hostile(ByteReader& bytes, SdpaProblem& problem);

/// The features as C++.
std::string text_of_features(const SdpaProblem& problem);

}  // namespace metal_sdpa::fuzz
