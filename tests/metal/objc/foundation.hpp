// The Foundation classes that metal-cpp users meet: strings, errors, URLs, arrays, numbers.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "runtime.hpp"

namespace software_metal {

void register_foundation_classes(Registry& registry);

/// NSString: UTF-8 text.
class String : public Object {
 public:
  static constexpr const char* kClassName = "NSString";
  String() : Object(class_of<String>()) {}
  explicit String(std::string text) : Object(class_of<String>()), text(std::move(text)) {}
  /// A new autoreleased string.
  static String* make(std::string text);
  std::string describe() const override { return text; }
  bool is_equal(Object* other) override;
  unsigned long hash() const override { return std::hash<std::string>()(text); }

  std::string text;
};

/// The text of a string, "" for nil.
inline std::string text_of(const String* string) { return string ? string->text : std::string(); }

class Array : public Object {
 public:
  static constexpr const char* kClassName = "NSArray";
  Array() : Object(class_of<Array>()) {}
  static Array* make(std::vector<Ref<Object>> items);
  std::string describe() const override;
  unsigned long count() { return items.size(); }
  Object* at(unsigned long index);

  std::vector<Ref<Object>> items;
};

/// NSDictionary with equality by isEqual:, in the order of insertion.
class Dictionary : public Object {
 public:
  static constexpr const char* kClassName = "NSDictionary";
  Dictionary() : Object(class_of<Dictionary>()) {}
  Object* get(Object* key);
  unsigned long count() { return items.size(); }

  std::vector<std::pair<Ref<Object>, Ref<Object>>> items;
};

class Number : public Object {
 public:
  static constexpr const char* kClassName = "NSNumber";
  Number() : Object(class_of<Number>()) {}
  std::string describe() const override;
  bool is_equal(Object* other) override;
  unsigned long hash() const override { return std::hash<double>()(real); }

  bool is_real = false;
  long long whole = 0;
  double real = 0;
};

class Url : public Object {
 public:
  static constexpr const char* kClassName = "NSURL";
  Url() : Object(class_of<Url>()) {}
  std::string describe() const override { return "file://" + path; }

  std::string path;
};

class Error : public Object {
 public:
  static constexpr const char* kClassName = "NSError";
  Error() : Object(class_of<Error>()) {}
  /// A new autoreleased error.
  static Error* make(std::string domain, long code, std::string text);
  std::string describe() const override;

  std::string domain;
  long code = 0;
  std::string text;
  Ref<Dictionary> user_info;
};

/// Sets *slot to an autoreleased error; a null slot is allowed.
void set_error(Error** slot, const char* domain, long code, const std::string& text);

}  // namespace software_metal
