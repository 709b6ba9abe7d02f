// State behind software_metal.h: what the device asks before it acts, and what it counts.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "../software_metal.h"

namespace software_metal {

struct CommandBufferFault {
  long code;
  std::string text;
};

/// Each take_ function says whether the fault strikes now, and uses it up.
bool take_allocation_fault();
std::optional<std::string> take_library_fault();
std::optional<std::string> take_pipeline_fault();
std::optional<CommandBufferFault> take_command_buffer_fault();
bool is_function_hidden(const std::string& name);
bool is_device_absent();
unsigned command_buffer_delay_us();

void count(int what, std::uint64_t n = 1);

/// Number of violations so far on this thread; lets a caller notice one in what it called.
std::uint64_t violations_on_this_thread();

}  // namespace software_metal
