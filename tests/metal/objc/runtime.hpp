// A small Objective-C runtime: classes as tables from selector to function, retain counts, zombies.
//
// metal-cpp sends every message through objc_msgSend, cast to the signature of the method. A class
// here maps interned selectors to plain functions of that signature; Builder writes the functions
// from member functions of C++ types.
#pragma once

#include <atomic>
#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace software_metal {

using Selector = const char*;  // interned: equal names are equal pointers
using Method = void (*)();

Selector intern_selector(std::string_view name);

class Class;

/// Base of all objects that messages reach. Created with a retain count of 1.
class Object {
 public:
  explicit Object(Class& cls);
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  virtual ~Object();

  Object* retain();
  void release();
  Object* autorelease();
  unsigned long retain_count() const { return static_cast<unsigned long>(count_.load()); }
  Class& cls() const { return *class_; }

  virtual std::string describe() const;
  virtual bool is_equal(Object* other) { return other == this; }
  virtual unsigned long hash() const { return reinterpret_cast<unsigned long>(this) >> 4; }

  static void* operator new(std::size_t size);
  static void* operator new(std::size_t, void* place) { return place; }
  static void operator delete(void* memory);

 protected:
  struct Uncounted {};
  Object(Class* cls, Uncounted) : class_(cls) {}

 private:
  void deallocate();

  Class* class_;
  std::atomic<long> count_{1};
};

/// A class: a name, a superclass, methods, and (through its metaclass) class methods.
class Class : public Object {
 public:
  Class(std::string name, Class* superclass, Class* metaclass);

  const std::string& name() const { return name_; }
  Method find(Selector selector) const;
  void add(const char* selector, Method method);
  Class* metaclass() const { return metaclass_; }
  Class* superclass() const { return superclass_; }

  std::atomic<long> live{0};  ///< instances alive

 private:
  std::string name_;
  Class* superclass_;
  Class* metaclass_;
  std::unordered_map<Selector, Method> methods_;
};

/// All classes by name. Filled once, read without locks afterwards.
class Registry {
 public:
  static Registry& instance();
  Class* find(std::string_view name) const;
  Class& define(const char* name, const char* superclass);
  const std::vector<Class*>& classes() const { return classes_; }

 private:
  Registry();
  std::vector<Class*> classes_;
};

template <class T>
Class& class_of() {
  static Class& cls = *Registry::instance().find(T::kClassName);
  return cls;
}

namespace detail {
template <auto F>
struct Send;
template <class C, class R, class... A, R (C::*F)(A...)>
struct Send<F> {
  static R instance(C* self, Selector, A... a) { return (self->*F)(a...); }
};
template <class C, class R, class... A, R (C::*F)(A...) const>
struct Send<F> {
  static R instance(C* self, Selector, A... a) { return (self->*F)(a...); }
};
template <class R, class... A, R (*F)(A...)>
struct Send<F> {
  static R of_class(Object*, Selector, A... a) { return F(a...); }
};
}  // namespace detail

/// Fills the method tables of one class from the members of T.
template <class T>
class Builder {
 public:
  explicit Builder(Registry& registry, const char* superclass = "NSObject")
      : class_(registry.define(T::kClassName, superclass)) {}

  template <auto F>
  Builder& method(const char* selector) {
    class_.add(selector, reinterpret_cast<Method>(&detail::Send<F>::instance));
    return *this;
  }
  template <auto F>
  Builder& class_method(const char* selector) {
    class_.metaclass()->add(selector, reinterpret_cast<Method>(&detail::Send<F>::of_class));
    return *this;
  }
  /// `alloc` makes a T by its default constructor.
  Builder& allocatable() {
    return class_method<&make>("alloc").template class_method<&make>("new");
  }

 private:
  static Object* make() { return new T(); }
  Class& class_;
};

/// An owning pointer: retains on copy, releases when dropped.
template <class T>
class Ref {
 public:
  Ref() = default;
  Ref(T* object) : object_(object) {
    if (object_ != nullptr) object_->retain();
  }
  Ref(const Ref& other) : Ref(other.object_) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  ~Ref() {
    if (object_ != nullptr) object_->release();
  }
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  T* get() const { return object_; }
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  T* object_ = nullptr;
};

/// Objects to release when the pool is drained. Pools nest per thread.
class AutoreleasePool : public Object {
 public:
  static constexpr const char* kClassName = "NSAutoreleasePool";
  AutoreleasePool();
  ~AutoreleasePool() override;
  void add(Object* object) { objects_.push_back(object); }
  static AutoreleasePool* current();

 private:
  AutoreleasePool* parent_;
  std::vector<Object*> objects_;
};

}  // namespace software_metal
