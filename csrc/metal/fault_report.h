// Says what went wrong in a command buffer.
#pragma once

#include <string>

#include "metal/in_flight.h"
#include "metal/metal_cpp.h"

namespace metal_sdpa {

/// The command buffer's label, its NSError in full, and which dispatch the device had reached
/// where Metal tells.
std::string fault_report(const Submission& submission, const MTL::CommandBuffer& command_buffer);

}  // namespace metal_sdpa
