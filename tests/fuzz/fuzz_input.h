// One input of the fuzzer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace metal_sdpa::fuzz {

/// The first byte says what is tried, the others how. Ends the process where something is wrong.
void try_input(const std::uint8_t* data, std::size_t size);

}  // namespace metal_sdpa::fuzz
