// Apple's metal-cpp, and the few conversions that every file of the Metal device needs. No type of
// metal-cpp leaves this directory.
#pragma once

#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>
#include <string>
#include <string_view>
#include <utility>

namespace metal_sdpa {

/// An autorelease pool for one scope: every entry point has one, since threads of the caller and
/// of Metal's completion queue may have none.
class AutoreleaseScope {
 public:
  AutoreleaseScope() : pool_(NS::AutoreleasePool::alloc()->init()) {}
  ~AutoreleaseScope() { pool_->release(); }
  AutoreleaseScope(const AutoreleaseScope&) = delete;
  AutoreleaseScope& operator=(const AutoreleaseScope&) = delete;

 private:
  NS::AutoreleasePool* pool_;
};

/// An autoreleased NSString.
inline NS::String* ns_string(const char* text) {
  return NS::String::string(text, NS::UTF8StringEncoding);
}
inline NS::String* ns_string(const std::string& text) { return ns_string(text.c_str()); }

/// The text of an NSString; empty for nil.
inline std::string std_string(const NS::String* text) {
  const char* bytes = text == nullptr ? nullptr : text->utf8String();
  return bytes == nullptr ? std::string() : std::string(bytes);
}

/// Whether an object of the running system has a method that metal-cpp only declares.
bool responds_to(const NS::Object* object, const char* selector);

/// Everything that an NSError says: description, reason, domain and code; empty for nil.
std::string error_text(const NS::Error* error);

}  // namespace metal_sdpa
