// Foundation classes, as far as users of metal-cpp meet them.
#include "foundation.hpp"

#include <strings.h>

#include <cstring>

#include "../device/report.hpp"

namespace software_metal {
namespace {

// ----- NSObject

struct Root : Object {
  static constexpr const char* kClassName = "NSObject";
  Root() : Object(class_of<Root>()) {}
  Object* init() { return this; }
  bool is_equal_to(Object* other) { return is_equal(other); }
  unsigned long hash_value() { return hash(); }
  Object* description() { return String::make(describe()); }
  bool responds_to(Selector selector) { return cls().find(selector) != nullptr; }
  Object* method_signature(Selector) { return nullptr; }
  Object* object_class() { return &cls(); }
  Object* copy() { return retain(); }
};

void register_root(Registry& registry) {
  Builder<Root>(registry, nullptr)
      .allocatable()
      .method<&Root::init>("init")
      .method<&Object::retain>("retain")
      .method<&Object::release>("release")
      .method<&Object::autorelease>("autorelease")
      .method<&Object::retain_count>("retainCount")
      .method<&Root::is_equal_to>("isEqual:")
      .method<&Root::hash_value>("hash")
      .method<&Root::description>("description")
      .method<&Root::description>("debugDescription")
      .method<&Root::responds_to>("respondsToSelector:")
      .method<&Root::method_signature>("methodSignatureForSelector:")
      .method<&Root::object_class>("class")
      .method<&Root::copy>("copy");
}

// ----- NSAutoreleasePool

struct PoolMethods : AutoreleasePool {
  void drain() { release(); }
  void add_object(Object* object) { add(object); }
  static void add_to_current(Object* object) { object->autorelease(); }
  static void show() {}
};

void register_pool(Registry& registry) {
  Builder<AutoreleasePool>(registry)
      .allocatable()
      .method<&PoolMethods::drain>("drain")
      .method<&PoolMethods::add_object>("addObject:")
      .class_method<&PoolMethods::add_to_current>("addObject:")
      .class_method<&PoolMethods::show>("showPools");
}

// ----- NSString

struct StringMethods : String {
  static Object* empty() { return make(""); }
  static Object* with_string(String* other) { return make(text_of(other)); }
  static Object* with_c_string(const char* text, unsigned long) {
    return text != nullptr ? make(text) : nullptr;
  }
  static Object* with_utf8(const char* text) { return with_c_string(text, 4); }
  Object* init_string(String* other) {
    text = text_of(other);
    return this;
  }
  Object* init_c_string(const char* from, unsigned long) {
    if (from == nullptr) {
      release();
      return nullptr;
    }
    text = from;
    return this;
  }
  Object* init_bytes(void* bytes, unsigned long length, unsigned long, bool free_when_done) {
    text.assign(static_cast<const char*>(bytes), length);
    if (free_when_done) std::free(bytes);
    return this;
  }
  unsigned short character(unsigned long index) {
    if (index < text.size()) return static_cast<unsigned char>(text[index]);
    violation("characterAtIndex: %lu of a string of %zu", index, text.size());
    return 0;
  }
  // Counts UTF-16 units, as NSString does.
  unsigned long length() {
    unsigned long units = 0;
    for (unsigned char c : text) units += (c & 0xc0) != 0x80 ? (c >= 0xf0 ? 2 : 1) : 0;
    return units;
  }
  const char* c_string(unsigned long) { return text.c_str(); }
  const char* utf8() { return text.c_str(); }
  unsigned long max_bytes(unsigned long) { return text.size() * 3; }
  unsigned long bytes(unsigned long) { return text.size(); }
  bool equals(String* other) { return other != nullptr && text == other->text; }
  Object* appending(String* other) { return make(text + text_of(other)); }
  long compare(String* other) {
    int order = strcasecmp(text.c_str(), text_of(other).c_str());
    return order < 0 ? -1 : order > 0;
  }
};

void register_string(Registry& registry) {
  Builder<String>(registry)
      .allocatable()
      .class_method<&StringMethods::empty>("string")
      .class_method<&StringMethods::with_string>("stringWithString:")
      .class_method<&StringMethods::with_c_string>("stringWithCString:encoding:")
      .class_method<&StringMethods::with_utf8>("stringWithUTF8String:")
      .method<&StringMethods::init_string>("initWithString:")
      .method<&StringMethods::init_c_string>("initWithCString:encoding:")
      .method<&StringMethods::init_bytes>("initWithBytesNoCopy:length:encoding:freeWhenDone:")
      .method<&StringMethods::character>("characterAtIndex:")
      .method<&StringMethods::length>("length")
      .method<&StringMethods::c_string>("cStringUsingEncoding:")
      .method<&StringMethods::utf8>("UTF8String")
      .method<&StringMethods::utf8>("fileSystemRepresentation")
      .method<&StringMethods::max_bytes>("maximumLengthOfBytesUsingEncoding:")
      .method<&StringMethods::bytes>("lengthOfBytesUsingEncoding:")
      .method<&StringMethods::equals>("isEqualToString:")
      .method<&StringMethods::appending>("stringByAppendingString:")
      .method<&StringMethods::compare>("caseInsensitiveCompare:");
}

// ----- NSArray

Array* fill(Array* array, Object* const* objects, unsigned long count) {
  array->items.assign(objects, objects + count);
  return array;
}

struct ArrayMethods : Array {
  static Object* empty() { return make({}); }
  static Object* with_object(Object* object) { return make({object}); }
  static Object* with_objects(Object* const* objects, unsigned long count) {
    return fill(new Array, objects, count)->autorelease();
  }
  Object* init_objects(Object* const* objects, unsigned long n) { return fill(this, objects, n); }
};

void register_array(Registry& registry) {
  Builder<Array>(registry)
      .allocatable()
      .class_method<&ArrayMethods::empty>("array")
      .class_method<&ArrayMethods::with_object>("arrayWithObject:")
      .class_method<&ArrayMethods::with_objects>("arrayWithObjects:count:")
      .method<&ArrayMethods::init_objects>("initWithObjects:count:")
      .method<&Array::count>("count")
      .method<&Array::at>("objectAtIndex:");
}

// ----- NSDictionary

struct DictionaryMethods : Dictionary {
  Object* init_objects(Object* const* objects, Object* const* keys, unsigned long count) {
    for (unsigned long i = 0; i < count; ++i) items.emplace_back(keys[i], objects[i]);
    return this;
  }
  static Object* with_objects(Object* const* objects, Object* const* keys, unsigned long count) {
    auto* made = new DictionaryMethods;
    return made->init_objects(objects, keys, count)->autorelease();
  }
  static Object* with_object(Object* object, Object* key) { return with_objects(&object, &key, 1); }
  static Object* empty() { return with_objects(nullptr, nullptr, 0); }
};

void register_dictionary(Registry& registry) {
  Builder<Dictionary>(registry)
      .allocatable()
      .class_method<&DictionaryMethods::empty>("dictionary")
      .class_method<&DictionaryMethods::with_object>("dictionaryWithObject:forKey:")
      .class_method<&DictionaryMethods::with_objects>("dictionaryWithObjects:forKeys:count:")
      .method<&DictionaryMethods::init_objects>("initWithObjects:forKeys:count:")
      .method<&Dictionary::count>("count")
      .method<&Dictionary::get>("objectForKey:");
}

// ----- NSNumber

struct NumberMethods : Number {
  template <class T>
  Object* init_value(T value) {
    is_real = std::is_floating_point_v<T>;
    whole = static_cast<long long>(value);
    real = static_cast<double>(value);
    return this;
  }
  template <class T>
  static Object* with(T value) {
    return (new NumberMethods)->init_value(value)->autorelease();
  }
  template <class T>
  T value() {
    return is_real ? static_cast<T>(real) : static_cast<T>(whole);
  }
  Object* text() { return String::make(describe()); }
  bool equals(Number* other) { return is_equal(other); }
};

template <class T>
void add_number(Builder<Number>& builder, const std::string& name) {
  std::string lower = name;
  lower[0] = static_cast<char>(lower[0] + 32);
  builder.class_method<&NumberMethods::with<T>>(("numberWith" + name + ":").c_str())
      .template method<&NumberMethods::init_value<T>>(("initWith" + name + ":").c_str())
      .template method<&NumberMethods::value<T>>((lower + "Value").c_str());
}

void register_number(Registry& registry) {
  Builder<Number> builder(registry);
  builder.allocatable()
      .method<&NumberMethods::value<long>>("integerValue")
      .method<&NumberMethods::value<unsigned long>>("unsignedIntegerValue")
      .method<&NumberMethods::text>("stringValue")
      .method<&NumberMethods::equals>("isEqualToNumber:");
  add_number<char>(builder, "Char");
  add_number<unsigned char>(builder, "UnsignedChar");
  add_number<short>(builder, "Short");
  add_number<unsigned short>(builder, "UnsignedShort");
  add_number<int>(builder, "Int");
  add_number<unsigned int>(builder, "UnsignedInt");
  add_number<long>(builder, "Long");
  add_number<unsigned long>(builder, "UnsignedLong");
  add_number<long long>(builder, "LongLong");
  add_number<unsigned long long>(builder, "UnsignedLongLong");
  add_number<float>(builder, "Float");
  add_number<double>(builder, "Double");
  add_number<bool>(builder, "Bool");
}

// ----- NSURL

struct UrlMethods : Url {
  Object* init_path(String* from) {
    path = text_of(from);
    return this;
  }
  Object* init_string(String* from) {
    std::string text = text_of(from);
    path = text.rfind("file://", 0) == 0 ? text.substr(7) : text;
    return this;
  }
  static Object* file_url(String* from) { return (new UrlMethods)->init_path(from)->autorelease(); }
  const char* representation() { return path.c_str(); }
};

void register_url(Registry& registry) {
  Builder<Url>(registry)
      .allocatable()
      .class_method<&UrlMethods::file_url>("fileURLWithPath:")
      .method<&UrlMethods::init_path>("initFileURLWithPath:")
      .method<&UrlMethods::init_string>("initWithString:")
      .method<&UrlMethods::representation>("fileSystemRepresentation");
}

// ----- NSError

struct ErrorMethods : Error {
  Object* init_domain(String* from, long with_code, Dictionary* info) {
    domain = text_of(from);
    code = with_code;
    user_info = info;
    return this;
  }
  static Object* with_domain(String* domain, long code, Dictionary* info) {
    return (new ErrorMethods)->init_domain(domain, code, info)->autorelease();
  }
  long code_value() { return code; }
  Object* domain_value() { return String::make(domain); }
  Object* info() { return user_info.get(); }
  Object* text_value() {
    if (!text.empty()) return String::make(text);
    return String::make(
        format("The operation couldn't be completed. (%s error %ld.)", domain.c_str(), code));
  }
  Object* nothing() { return nullptr; }
};

void register_error(Registry& registry) {
  Builder<Error>(registry)
      .allocatable()
      .class_method<&ErrorMethods::with_domain>("errorWithDomain:code:userInfo:")
      .method<&ErrorMethods::init_domain>("initWithDomain:code:userInfo:")
      .method<&ErrorMethods::code_value>("code")
      .method<&ErrorMethods::domain_value>("domain")
      .method<&ErrorMethods::info>("userInfo")
      .method<&ErrorMethods::text_value>("localizedDescription")
      .method<&ErrorMethods::nothing>("localizedRecoveryOptions")
      .method<&ErrorMethods::nothing>("localizedRecoverySuggestion")
      .method<&ErrorMethods::nothing>("localizedFailureReason");
}

// ----- NSProcessInfo

struct SystemVersion {
  long major, minor, patch;
};
constexpr SystemVersion kSystemVersion{15, 0, 0};  // has residency sets, and MSL 3.2

struct ProcessInfo : Object {
  static constexpr const char* kClassName = "NSProcessInfo";
  ProcessInfo() : Object(class_of<ProcessInfo>()) {}
  static Object* shared() { return (new ProcessInfo)->autorelease(); }
  SystemVersion version() { return kSystemVersion; }
  bool at_least(SystemVersion v) {
    if (v.major != kSystemVersion.major) return v.major < kSystemVersion.major;
    if (v.minor != kSystemVersion.minor) return v.minor < kSystemVersion.minor;
    return v.patch <= kSystemVersion.patch;
  }
  Object* version_text() { return String::make("Version 15.0 (software Metal)"); }
};

void register_process_info(Registry& registry) {
  Builder<ProcessInfo>(registry)
      .class_method<&ProcessInfo::shared>("processInfo")
      .method<&ProcessInfo::version>("operatingSystemVersion")
      .method<&ProcessInfo::version_text>("operatingSystemVersionString")
      .method<&ProcessInfo::at_least>("isOperatingSystemAtLeastVersion:");
}

}  // namespace

void register_foundation_classes(Registry& registry) {
  register_root(registry);
  register_pool(registry);
  register_string(registry);
  register_array(registry);
  register_dictionary(registry);
  register_number(registry);
  register_url(registry);
  register_error(registry);
  register_process_info(registry);
}

String* String::make(std::string text) {
  auto* string = new String(std::move(text));
  string->autorelease();
  return string;
}

bool String::is_equal(Object* other) {
  auto* string = dynamic_cast<String*>(other);
  return string != nullptr && string->text == text;
}

Array* Array::make(std::vector<Ref<Object>> items) {
  auto* array = new Array;
  array->items = std::move(items);
  array->autorelease();
  return array;
}

std::string Array::describe() const {
  std::string text = "(";
  for (const auto& item : items) text += (text.size() > 1 ? ", " : "") + item->describe();
  return text + ")";
}

Object* Array::at(unsigned long index) {
  if (index < items.size()) return items[index].get();
  violation("objectAtIndex: %lu of an array of %zu", index, items.size());
  return nullptr;
}

Object* Dictionary::get(Object* key) {
  for (auto& [own, value] : items) {
    if (own->is_equal(key)) return value.get();
  }
  return nullptr;
}

std::string Number::describe() const {
  return is_real ? format("%.17g", real) : format("%lld", whole);
}

bool Number::is_equal(Object* other) {
  auto* number = dynamic_cast<Number*>(other);
  return number != nullptr && number->real == real && number->whole == whole;
}

Error* Error::make(std::string domain, long code, std::string text) {
  auto* error = new Error;
  error->domain = std::move(domain);
  error->code = code;
  error->text = std::move(text);
  error->autorelease();
  return error;
}

std::string Error::describe() const {
  return format("Error Domain=%s Code=%ld \"%s\"", domain.c_str(), code, text.c_str());
}

void set_error(Error** slot, const char* domain, long code, const std::string& text) {
  if (slot != nullptr) *slot = Error::make(domain, code, text);
}

}  // namespace software_metal
