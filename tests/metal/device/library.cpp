// MTLLibrary, MTLFunction, function constants, pipeline states.
#include <cstring>
#include <unordered_map>

#include "control.hpp"
#include "objects.hpp"
#include "shader_compiler.hpp"

namespace software_metal {
namespace {

constexpr const char* kLibraryDomain = "MTLLibraryErrorDomain";
constexpr const char* kPipelineDomain = "AGXMetalSoftware";

// ----- Function constants

struct ConstantTypeInfo {
  unsigned long metal_type;
  msl_host::ConstantType type;
  unsigned size;
};
using Type = msl_host::ConstantType;
constexpr ConstantTypeInfo kConstantTypes[] = {
    {MTL::DataTypeBool, Type::boolean, 1}, {MTL::DataTypeChar, Type::i8, 1},
    {MTL::DataTypeUChar, Type::u8, 1},     {MTL::DataTypeShort, Type::i16, 2},
    {MTL::DataTypeUShort, Type::u16, 2},   {MTL::DataTypeInt, Type::i32, 4},
    {MTL::DataTypeUInt, Type::u32, 4},     {MTL::DataTypeLong, Type::i64, 8},
    {MTL::DataTypeULong, Type::u64, 8},    {MTL::DataTypeHalf, Type::f16, 2},
    {MTL::DataTypeFloat, Type::f32, 4},
};

const ConstantTypeInfo* find_type(unsigned long metal_type) {
  for (const ConstantTypeInfo& info : kConstantTypes) {
    if (info.metal_type == metal_type) return &info;
  }
  return nullptr;
}

struct ConstantMethods : FunctionConstantValues {
  bool read(const void* from, unsigned long type, Value& out) {
    const ConstantTypeInfo* info = find_type(type);
    if (info == nullptr || from == nullptr) {
      violation("setConstantValue: type %lu with value at %p", type, from);
      return false;
    }
    out.type = type;
    out.bytes.fill(0);
    std::memcpy(out.bytes.data(), from, info->size);
    return true;
  }
  void set_at_index(const void* value, unsigned long type, unsigned long index) {
    Value made;
    if (read(value, type, made)) by_index[index] = made;
  }
  void set_with_name(const void* value, unsigned long type, String* name) {
    Value made;
    if (read(value, type, made)) by_name[text_of(name)] = made;
  }
  void set_range(const void* values, unsigned long type, NS::Range range) {
    const ConstantTypeInfo* info = find_type(type);
    auto* at = static_cast<const unsigned char*>(values);
    for (unsigned long i = 0; i < range.length; ++i) {
      set_at_index(info != nullptr ? at + i * info->size : nullptr, type, range.location + i);
    }
  }
  void reset() {
    by_index.clear();
    by_name.clear();
  }
};

const FunctionConstantValues::Value* find_value(const FunctionConstantValues& values,
                                                const msl_host::FunctionConstant& constant) {
  auto index = values.by_index.find(constant.index);
  if (index != values.by_index.end()) return &index->second;
  auto name = values.by_name.find(constant.name);
  return name != values.by_name.end() ? &name->second : nullptr;
}

// Fills the function's constants; the text of what is wrong, or "".
std::string set_constants(Function& function, const FunctionConstantValues& values) {
  const msl_host::Module& module = function.library->module;
  for (unsigned i = 0; i < module.n_constants; ++i) {
    const msl_host::FunctionConstant& constant = module.constants[i];
    const FunctionConstantValues::Value* value = find_value(values, constant);
    if (value == nullptr) continue;
    const ConstantTypeInfo* info = find_type(value->type);
    if (info->type != constant.type) {
      return format("function constant '%s' (index %u) got a value of another type", constant.name,
                    constant.index);
    }
    function.constants.push_back({&constant, value->bytes});
  }
  return "";
}

// The first constant that the function needs and has no value for.
std::string missing_constant(const Function& function) {
  const msl_host::Module& module = function.library->module;
  for (unsigned i = 0; i < function.function.n_required_constants; ++i) {
    const auto* constant = &module.constants[function.function.required_constants[i]];
    bool found = false;
    for (const SetConstant& set : function.constants) found = found || set.constant == constant;
    if (!found) {
      return format("function constant '%s' (index %u) of '%s' has no value", constant->name,
                    constant->index, function.function.name);
    }
  }
  return "";
}

// ----- Methods

struct OptionMethods : CompileOptions {
  unsigned long get_version() { return language_version; }
  void set_version(unsigned long value) { language_version = value; }
  bool get_fast() { return fast_math; }
  void set_fast(bool value) {
    fast_math = value;
    math_mode = value ? MTL::MathModeFast : MTL::MathModeSafe;
  }
  long get_mode() { return math_mode; }
  void set_mode(long value) {
    math_mode = value;
    fast_math = value == MTL::MathModeFast;
  }
  long get_functions() { return math_functions; }
  void set_functions(long value) { math_functions = value; }
  long get_optimization() { return optimization_level; }
  void set_optimization(long value) { optimization_level = value; }
  unsigned long get_max_threads() { return max_threads; }
  void set_max_threads(unsigned long value) { max_threads = value; }
  Object* get_macros() { return macros.get(); }
  void set_macros(Dictionary* value) { macros = value; }
};

struct LibraryMethods : Library {
  Object* names() {
    std::vector<Ref<Object>> names;
    for (unsigned i = 0; i < module.n_functions; ++i) {
      Ref<String> name = String::make(module.functions[i].name);
      names.emplace_back(name.get());
    }
    return Array::make(std::move(names));
  }
  Object* new_function(String* name) {
    const msl_host::Function* found = find(text_of(name));
    if (found == nullptr) return nullptr;
    return new Function(this, *found);
  }
  Object* new_function_with(String* name, FunctionConstantValues* values, Error** error) {
    auto* function = static_cast<Function*>(new_function(name));
    if (function == nullptr) {
      set_error(error, kLibraryDomain, MTL::LibraryErrorFunctionNotFound,
                "Function " + text_of(name) + " was not found in the library");
      return nullptr;
    }
    std::string wrong = values != nullptr ? set_constants(*function, *values) : "";
    if (wrong.empty()) wrong = missing_constant(*function);
    if (wrong.empty()) return function;
    set_error(error, kLibraryDomain, MTL::LibraryErrorCompileFailure, wrong);
    function->release();
    return nullptr;
  }
  Object* get_device() { return device.get(); }
  long type() { return MTL::LibraryTypeExecutable; }
  Object* install_name() { return nullptr; }
};

struct FunctionMethods : Function {
  Object* get_name() { return String::make(function.name); }
  long type() { return MTL::FunctionTypeKernel; }
  Object* get_device() { return library->device.get(); }
};

struct DescriptorMethods : PipelineDescriptor {
  Object* get_function() { return function.get(); }
  void set_function(Function* value) { function = value; }
  unsigned long get_max_threads() { return max_threads; }
  void set_max_threads(unsigned long value) { max_threads = value; }
  bool get_whole() { return whole_simdgroups; }
  void set_whole(bool value) { whole_simdgroups = value; }
  void reset() {
    function = nullptr;
    max_threads = 0;
  }
};

struct PipelineMethods : Pipeline {
  unsigned long get_max_threads() { return max_threads; }
  unsigned long width() { return msl_host::kLanes; }
  unsigned long static_memory() { return 0; }
  Object* get_device() { return function->library->device.get(); }
  bool no() { return false; }
};

}  // namespace

void register_library_classes(Registry& registry) {
  using O = OptionMethods;
  Builder<CompileOptions>(registry)
      .allocatable()
      .method<&O::get_version>("languageVersion")
      .method<&O::set_version>("setLanguageVersion:")
      .method<&O::get_fast>("fastMathEnabled")
      .method<&O::set_fast>("setFastMathEnabled:")
      .method<&O::get_mode>("mathMode")
      .method<&O::set_mode>("setMathMode:")
      .method<&O::get_functions>("mathFloatingPointFunctions")
      .method<&O::set_functions>("setMathFloatingPointFunctions:")
      .method<&O::get_optimization>("optimizationLevel")
      .method<&O::set_optimization>("setOptimizationLevel:")
      .method<&O::get_max_threads>("maxTotalThreadsPerThreadgroup")
      .method<&O::set_max_threads>("setMaxTotalThreadsPerThreadgroup:")
      .method<&O::get_macros>("preprocessorMacros")
      .method<&O::set_macros>("setPreprocessorMacros:");
  using L = LibraryMethods;
  Builder<Library>(registry)
      .method<&L::names>("functionNames")
      .method<&L::new_function>("newFunctionWithName:")
      .method<&L::new_function_with>("newFunctionWithName:constantValues:error:")
      .method<&L::get_device>("device")
      .method<&L::type>("type")
      .method<&L::install_name>("installName")
      .method<&Labelled::get_label>("label")
      .method<&Labelled::set_label>("setLabel:");
  using F = FunctionMethods;
  Builder<Function>(registry)
      .method<&F::get_name>("name")
      .method<&F::type>("functionType")
      .method<&F::get_device>("device")
      .method<&Labelled::get_label>("label")
      .method<&Labelled::set_label>("setLabel:");
  using C = ConstantMethods;
  Builder<FunctionConstantValues>(registry)
      .allocatable()
      .method<&C::set_at_index>("setConstantValue:type:atIndex:")
      .method<&C::set_with_name>("setConstantValue:type:withName:")
      .method<&C::set_range>("setConstantValues:type:withRange:")
      .method<&C::reset>("reset");
  using D = DescriptorMethods;
  Builder<PipelineDescriptor>(registry)
      .allocatable()
      .method<&D::get_function>("computeFunction")
      .method<&D::set_function>("setComputeFunction:")
      .method<&D::get_max_threads>("maxTotalThreadsPerThreadgroup")
      .method<&D::set_max_threads>("setMaxTotalThreadsPerThreadgroup:")
      .method<&D::get_whole>("threadGroupSizeIsMultipleOfThreadExecutionWidth")
      .method<&D::set_whole>("setThreadGroupSizeIsMultipleOfThreadExecutionWidth:")
      .method<&D::reset>("reset")
      .method<&Labelled::get_label>("label")
      .method<&Labelled::set_label>("setLabel:");
  using P = PipelineMethods;
  Builder<Pipeline>(registry)
      .method<&P::get_max_threads>("maxTotalThreadsPerThreadgroup")
      .method<&P::width>("threadExecutionWidth")
      .method<&P::static_memory>("staticThreadgroupMemoryLength")
      .method<&P::get_device>("device")
      .method<&P::no>("supportIndirectCommandBuffers")
      .method<&Labelled::get_label>("label");
}

// ----- Library

Library* new_library(Device* device, const std::string& source, CompileOptions* options,
                     Error** error) {
  if (std::optional<std::string> fault = take_library_fault()) {
    set_error(error, kLibraryDomain, MTL::LibraryErrorCompileFailure, *fault);
    return nullptr;
  }
  ShaderOptions shader_options;
  if (options != nullptr && options->macros) {
    for (const auto& [key, value] : options->macros->items) {
      shader_options.macros.emplace_back(key->describe(), value->describe());
    }
  }
  ShaderResult result = load_shader(source, shader_options);
  if (result.module == nullptr) {
    set_error(error, kLibraryDomain, MTL::LibraryErrorCompileFailure,
              "Compilation failed:\n\n" + result.log);
    return nullptr;
  }
  if (error != nullptr) *error = nullptr;
  count(SOFTWARE_METAL_LIBRARIES);
  return new Library(device, *result.module);
}

const msl_host::Function* Library::find(const std::string& name) const {
  if (is_function_hidden(name)) return nullptr;
  for (unsigned i = 0; i < module.n_functions; ++i) {
    if (name == module.functions[i].name) return &module.functions[i];
  }
  return nullptr;
}

// ----- Pipeline

std::mutex& shader_state_mutex() {
  static std::mutex& mutex = *new std::mutex;
  return mutex;
}

Pipeline::Pipeline(Function* from, unsigned long threads)
    : Labelled(class_of<Pipeline>()), function(from), max_threads(threads) {
  label = from->label;
  std::lock_guard<std::mutex> lock(shader_state_mutex());
  apply_constants();
  for (unsigned i = 0; i < from->function.n_arguments; ++i) {
    const msl_host::Argument& argument = from->function.arguments[i];
    if (argument.enabled == nullptr || *argument.enabled) arguments_.push_back(&argument);
  }
}

void Pipeline::apply_constants() const {
  const msl_host::Module& module = function->library->module;
  for (unsigned i = 0; i < module.n_constants; ++i) {
    const msl_host::FunctionConstant& constant = module.constants[i];
    std::memset(constant.value, 0, constant.size);
    *constant.defined = false;
  }
  for (const SetConstant& set : function->constants) {
    std::memcpy(set.constant->value, set.bytes.data(), set.constant->size);
    *set.constant->defined = true;
  }
  module.derive_constants();
}

Pipeline* new_pipeline(Function* function, unsigned long max_threads, Error** error) {
  if (function == nullptr) {
    violation("newComputePipelineState: function is nil");
    return nullptr;
  }
  std::string wrong = missing_constant(*function);
  if (std::optional<std::string> fault = take_pipeline_fault()) wrong = *fault;
  unsigned long stated = function->function.max_threads;
  unsigned long limit = stated != 0 ? stated : kMaxThreads;
  if (max_threads > kMaxThreads) {
    wrong = format("maxTotalThreadsPerThreadgroup %lu, but the device has %lu", max_threads,
                   kMaxThreads);
  }
  if (!wrong.empty()) {
    set_error(error, kPipelineDomain, 3, wrong);
    return nullptr;
  }
  if (error != nullptr) *error = nullptr;
  count(SOFTWARE_METAL_PIPELINES);
  return new Pipeline(function, max_threads != 0 ? max_threads : limit);
}

}  // namespace software_metal
