// Error texts of command buffers.
#include "metal/fault_report.h"

#include "core/text.h"

namespace metal_sdpa {
namespace {

// So many names of dispatches are told where Metal does not tell which one failed.
constexpr std::size_t kMaxNames = 8;

/// Metal's execution status of the one encoder; nullptr where the error has none.
const MTL::CommandBufferEncoderInfo* encoder_info(const NS::Error& error) {
  const NS::Dictionary* info = error.userInfo();
  if (info == nullptr) return nullptr;
  const NS::String* key = MTL::CommandBufferEncoderInfoErrorKey;
  if (key == nullptr) key = ns_string("MTLCommandBufferEncoderInfoErrorKey");
  const auto* infos = info->object<NS::Array>(key);
  if (infos == nullptr || infos->count() == 0) return nullptr;
  return infos->object<MTL::CommandBufferEncoderInfo>(0);
}

/// Dispatches that the device had begun: each puts down one signpost.
std::size_t dispatches_begun(const NS::Error* error) {
  const MTL::CommandBufferEncoderInfo* info = error == nullptr ? nullptr : encoder_info(*error);
  const NS::Array* signposts = info == nullptr ? nullptr : info->debugSignposts();
  return signposts == nullptr ? 0 : signposts->count();
}

std::string dispatch_names(const Submission& submission) {
  std::string text = "its dispatches: ";
  const std::size_t count = submission.pipelines.size();
  for (std::size_t i = 0; i < count && i < kMaxNames; ++i) {
    text += text_of(i == 0 ? "" : ", ", submission.pipelines[i]->name);
  }
  return count > kMaxNames ? text_of(text, " and ", count - kMaxNames, " more") : text;
}

}  // namespace

std::string fault_report(const Submission& submission, const MTL::CommandBuffer& command_buffer) {
  const NS::Error* error = command_buffer.error();
  const std::string what = error == nullptr ? "failed without an error object" : error_text(error);
  const std::string begin = text_of("command buffer \"", submission.label, "\": ", what, "; ");
  const std::size_t begun = dispatches_begun(error);
  const std::size_t count = submission.pipelines.size();
  if (begun == 0 || begun > count) return begin + dispatch_names(submission);
  return text_of(begin, "at dispatch ", begun, " of ", count, ", ",
                 submission.pipelines[begun - 1]->name);
}

}  // namespace metal_sdpa
