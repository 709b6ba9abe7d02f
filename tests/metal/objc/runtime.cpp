// Classes, retain counts and the C interface of the small Objective-C runtime.
#include "runtime.hpp"

#include <cstdlib>
#include <deque>
#include <mutex>
#include <unordered_set>

#include "../device/report.hpp"
#include "foundation.hpp"

namespace software_metal {

void register_metal_classes(Registry& registry);

namespace {

constexpr std::size_t kMaxZombies = 1 << 15;

struct Zombie : Object {
  static constexpr const char* kClassName = "SoftwareMetalZombie";
  explicit Zombie(const Class& was) : Object(&class_of<Zombie>(), Uncounted{}), was(&was) {}
  const Class* was;
};

// Released objects stay as zombies for a while, so that a late message names its class.
void bury(void* memory) {
  static std::mutex& mutex = *new std::mutex;
  static std::deque<void*>& graves = *new std::deque<void*>;
  std::lock_guard<std::mutex> lock(mutex);
  graves.push_back(memory);
  if (graves.size() <= kMaxZombies) return;
  std::free(graves.front());
  graves.pop_front();
}

std::unordered_map<std::string_view, Class*>& class_table() {
  static auto& table = *new std::unordered_map<std::string_view, Class*>;
  return table;
}

bool is_zombie(const Object* object) { return &object->cls() == &class_of<Zombie>(); }

long answer_nothing() { return 0; }

void respond_to_unknown(const Object* object, Selector selector) {
  if (is_zombie(object)) {
    violation("message '%s' sent to a deallocated %s", selector,
              static_cast<const Zombie*>(object)->was->name().c_str());
    return;
  }
  violation("-[%s %s]: the software device does not implement this method",
            object->cls().name().c_str(), selector);
}

}  // namespace

Selector intern_selector(std::string_view name) {
  static std::mutex& mutex = *new std::mutex;
  static auto& names = *new std::unordered_set<std::string>;
  std::lock_guard<std::mutex> lock(mutex);
  return names.emplace(name).first->c_str();
}

// ----- Object

Object::Object(Class& cls) : class_(&cls) { class_->live.fetch_add(1, std::memory_order_relaxed); }

Object::~Object() { class_->live.fetch_sub(1, std::memory_order_relaxed); }

void* Object::operator new(std::size_t size) {
  void* memory = std::malloc(size < sizeof(Zombie) ? sizeof(Zombie) : size);
  if (memory == nullptr) std::abort();
  return memory;
}

void Object::operator delete(void* memory) { std::free(memory); }

Object* Object::retain() {
  count_.fetch_add(1, std::memory_order_relaxed);
  return this;
}

void Object::release() {
  if (is_zombie(this)) return respond_to_unknown(this, "release");
  if (count_.fetch_sub(1, std::memory_order_acq_rel) == 1) deallocate();
}

Object* Object::autorelease() {
  AutoreleasePool* pool = AutoreleasePool::current();
  if (pool == nullptr) {
    violation("%s autoreleased on a thread without an autorelease pool: it leaks",
              class_->name().c_str());
    return this;
  }
  pool->add(this);
  return this;
}

void Object::deallocate() {
  const Class& was = *class_;
  void* memory = this;
  this->~Object();
  new (memory) Zombie(was);
  bury(memory);
}

std::string Object::describe() const { return "<" + class_->name() + ">"; }

// ----- Class

// The class of a metaclass is itself: no message ever looks further up.
Class::Class(std::string name, Class* superclass, Class* metaclass)
    : Object(metaclass != nullptr ? metaclass : this, Uncounted{}),
      name_(std::move(name)),
      superclass_(superclass),
      metaclass_(metaclass) {}

Method Class::find(Selector selector) const {
  for (const Class* cls = this; cls != nullptr; cls = cls->superclass_) {
    auto found = cls->methods_.find(selector);
    if (found != cls->methods_.end()) return found->second;
  }
  return nullptr;
}

void Class::add(const char* selector, Method method) {
  methods_[intern_selector(selector)] = method;
}

// ----- Registry

Registry& Registry::instance() {
  static Registry& registry = *new Registry;
  return registry;
}

Registry::Registry() {
  define(Zombie::kClassName, nullptr);
  register_foundation_classes(*this);
  register_metal_classes(*this);
}

Class* Registry::find(std::string_view name) const {
  auto found = class_table().find(name);
  return found == class_table().end() ? nullptr : found->second;
}

Class& Registry::define(const char* name, const char* superclass) {
  Class* parent = superclass != nullptr ? find(superclass) : nullptr;
  auto* meta =
      new Class(std::string(name) + " class", parent ? parent->metaclass() : nullptr, nullptr);
  auto* cls = new Class(name, parent, meta);
  class_table()[cls->name()] = cls;
  classes_.push_back(cls);
  return *cls;
}

// ----- AutoreleasePool

namespace {
thread_local AutoreleasePool* current_pool = nullptr;
}

AutoreleasePool* AutoreleasePool::current() { return current_pool; }

AutoreleasePool::AutoreleasePool()
    : Object(class_of<AutoreleasePool>()), parent_(std::exchange(current_pool, this)) {}

AutoreleasePool::~AutoreleasePool() {
  // Pools above this one that were not drained go with it, as on the real runtime.
  while (current_pool != nullptr && current_pool != this) current_pool->release();
  // Releasing may autorelease more objects into this pool.
  for (std::size_t i = 0; i < objects_.size(); ++i) objects_[i]->release();
  current_pool = parent_;
}

}  // namespace software_metal

// ----- C interface

using software_metal::Class;
using software_metal::Object;
using software_metal::Registry;

extern "C" {

// Called by the trampolines with the receiver and the selector of a message.
__attribute__((visibility("hidden"))) software_metal::Method software_metal_find_method(
    Object* receiver, software_metal::Selector selector) {
  if (receiver == nullptr)
    return reinterpret_cast<software_metal::Method>(&software_metal::answer_nothing);
  if (software_metal::Method method = receiver->cls().find(selector)) return method;
  software_metal::respond_to_unknown(receiver, selector);
  return reinterpret_cast<software_metal::Method>(&software_metal::answer_nothing);
}

SOFTWARE_METAL_EXPORT Object* objc_lookUpClass(const char* name) {
  return Registry::instance().find(name);
}
SOFTWARE_METAL_EXPORT Object* objc_getClass(const char* name) { return objc_lookUpClass(name); }
SOFTWARE_METAL_EXPORT Object* objc_getRequiredClass(const char* name) {
  return objc_lookUpClass(name);
}
SOFTWARE_METAL_EXPORT Object* objc_getProtocol(const char*) { return nullptr; }
SOFTWARE_METAL_EXPORT const char* sel_registerName(const char* name) {
  return software_metal::intern_selector(name);
}
SOFTWARE_METAL_EXPORT const char* sel_getName(const char* selector) { return selector; }
SOFTWARE_METAL_EXPORT Object* object_getClass(Object* object) {
  return object != nullptr ? &object->cls() : nullptr;
}
SOFTWARE_METAL_EXPORT const char* object_getClassName(Object* object) {
  return object != nullptr ? object->cls().name().c_str() : "nil";
}
SOFTWARE_METAL_EXPORT bool class_respondsToSelector(Class* cls, const char* selector) {
  return cls != nullptr && cls->find(selector) != nullptr;
}
SOFTWARE_METAL_EXPORT const char* class_getName(Class* cls) {
  return cls != nullptr ? cls->name().c_str() : "nil";
}

}  // extern "C"
