// The Metal objects behind metal-cpp's interfaces: device, buffer, library, function, pipeline.
#pragma once

#include <Metal/Metal.hpp>
#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../objc/foundation.hpp"
#include "../objc/runtime.hpp"
#include "report.hpp"
#include "shader_abi.hpp"

namespace software_metal {

constexpr unsigned long kMaxThreadgroupMemory = 32768;
constexpr unsigned long kMaxThreads = 1024;
constexpr unsigned long kMaxBufferLength = 1ul << 34;
constexpr unsigned long kMaxInlineBytes = 4096;
constexpr unsigned long kMaxCommandBuffers = 64;
constexpr unsigned kMaxBindings = msl_host::kMaxBindings;

void register_device_classes(Registry& registry);
void register_library_classes(Registry& registry);
void register_command_classes(Registry& registry);
void register_encoder_classes(Registry& registry);

/// A label, as most objects have one.
class Labelled : public Object {
 public:
  using Object::Object;
  std::string label;
  Object* get_label() { return label.empty() ? nullptr : String::make(label); }
  void set_label(String* text) { label = text_of(text); }
  /// "MTLBuffer 'keys'" for reports.
  std::string title() const { return cls().name() + (label.empty() ? "" : " '" + label + "'"); }
};

class Device : public Object {
 public:
  static constexpr const char* kClassName = "MTLDevice";
  Device() : Object(class_of<Device>()) {}
  ~Device() override;
  /// The device of this process, retained; made on first use and again after its last release.
  static Device* create();
};

class Buffer : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLBuffer";
  explicit Buffer(Device* device) : Labelled(class_of<Buffer>()), device(device) {}
  ~Buffer() override;
  /// False where there is no memory.
  bool allocate(unsigned long bytes, unsigned long resource_options);
  void wrap(void* memory, unsigned long bytes, unsigned long resource_options, const void* block);

  Ref<Device> device;
  unsigned char* contents = nullptr;
  unsigned long length = 0;
  unsigned long options = 0;
  /// By command buffers that do not retain it.
  std::shared_ptr<std::atomic<int>> uses_in_flight = std::make_shared<std::atomic<int>>(0);

 private:
  void check_margin() const;
  bool owns_memory_ = false;
  const void* deallocator_ = nullptr;
};

class Fence : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLFence";
  Fence() : Labelled(class_of<Fence>()) {}
  std::atomic<bool> is_updated = false;  ///< by an encoder, recorded or run
};

class CompileOptions : public Object {
 public:
  static constexpr const char* kClassName = "MTLCompileOptions";
  CompileOptions() : Object(class_of<CompileOptions>()) {}
  unsigned long language_version = MTL::LanguageVersion3_1;
  bool fast_math = true;
  long math_mode = MTL::MathModeFast;
  long math_functions = 0;
  long optimization_level = 0;
  unsigned long max_threads = 0;
  Ref<Dictionary> macros;
};

class Library : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLLibrary";
  Library(Device* device, const msl_host::Module& module)
      : Labelled(class_of<Library>()), device(device), module(module) {}
  const msl_host::Function* find(const std::string& name) const;

  Ref<Device> device;
  const msl_host::Module& module;
};

/// A library from MSL source; nil with the error set where it does not compile.
Library* new_library(Device* device, const std::string& source, CompileOptions* options,
                     Error** error);

class FunctionConstantValues : public Object {
 public:
  static constexpr const char* kClassName = "MTLFunctionConstantValues";
  struct Value {
    unsigned long type;
    std::array<unsigned char, 16> bytes;
  };
  FunctionConstantValues() : Object(class_of<FunctionConstantValues>()) {}
  std::map<unsigned long, Value> by_index;
  std::map<std::string, Value> by_name;
};

/// One function constant with the value it gets before a dispatch.
struct SetConstant {
  const msl_host::FunctionConstant* constant;
  std::array<unsigned char, 16> bytes;
};

class Function : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLFunction";
  Function(Library* library, const msl_host::Function& function)
      : Labelled(class_of<Function>()), library(library), function(function) {}

  Ref<Library> library;
  const msl_host::Function& function;
  std::vector<SetConstant> constants;
};

class PipelineDescriptor : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLComputePipelineDescriptor";
  PipelineDescriptor() : Labelled(class_of<PipelineDescriptor>()) {}
  Ref<Function> function;
  unsigned long max_threads = 0;
  bool whole_simdgroups = false;
};

class Pipeline : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLComputePipelineState";
  Pipeline(Function* function, unsigned long max_threads);

  /// Puts the values of its function constants into the loaded shader. Call with
  /// `shader_state_mutex` held, which must stay held while the shader runs.
  void apply_constants() const;
  /// Arguments that exist with these constants.
  const std::vector<const msl_host::Argument*>& arguments() const { return arguments_; }
  const char* name() const { return function->function.name; }

  Ref<Function> function;
  unsigned long max_threads;
  bool whole_simdgroups = false;

 private:
  std::vector<const msl_host::Argument*> arguments_;
};

/// A pipeline state; nil with the error set where it cannot be made.
Pipeline* new_pipeline(Function* function, unsigned long max_threads, Error** error);

/// Guards the variables of loaded shaders.
std::mutex& shader_state_mutex();

}  // namespace software_metal
