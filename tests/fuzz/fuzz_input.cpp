// Chooses what an input tries.
#include "fuzz_input.h"

#include "by_hand.h"
#include "byte_reader.h"
#include "differential.h"
#include "front_end.h"

namespace metal_sdpa::fuzz {

void try_input(const std::uint8_t* data, std::size_t size) {
  ByteReader bytes(data, size);
  switch (bytes.between(0, 15)) {
    case 0:
      return try_names(bytes);
    case 1:
    case 2:
    case 3:
    case 4:
      return try_by_hand(bytes);
    case 5:
    case 6:
      return try_params(bytes);
    default:
      return try_problem(bytes);
  }
}

}  // namespace metal_sdpa::fuzz
