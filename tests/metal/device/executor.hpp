// The thread that runs committed command buffers.
#pragma once

namespace software_metal {

class CommandBuffer;

/// Hands a committed command buffer over; buffers of one queue run in the order of their commits.
void submit_to_executor(CommandBuffer* command_buffer);

/// Returns when nothing is in flight.
void wait_for_executor();

/// Finishes what is in flight and ends the thread; a later submit starts it anew.
void shut_down_executor();

}  // namespace software_metal
