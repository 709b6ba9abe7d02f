// The one file that holds metal-cpp's own definitions.
#define NS_PRIVATE_IMPLEMENTATION
#define MTL_PRIVATE_IMPLEMENTATION
#include "metal/metal_cpp.h"

#include <objc/message.h>
#include <objc/runtime.h>

#include "core/text.h"

namespace metal_sdpa {

bool responds_to(const NS::Object* object, const char* selector) {
  using RespondsTo = bool (*)(const void*, SEL, SEL);
  const auto responds = reinterpret_cast<RespondsTo>(&objc_msgSend);
  return responds(object, sel_registerName("respondsToSelector:"), sel_registerName(selector));
}

std::string error_text(const NS::Error* error) {
  if (error == nullptr) return {};
  std::string text = std_string(error->localizedDescription());
  const std::string reason = std_string(error->localizedFailureReason());
  if (!reason.empty() && text.find(reason) == std::string::npos) text += ": " + reason;
  const std::string domain = std_string(error->domain());
  return text_of(text, " (", domain, " code ", error->code(), ")");
}

}  // namespace metal_sdpa
