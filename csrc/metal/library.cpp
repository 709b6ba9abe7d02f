// Compiling sources, making pipelines.
#include "metal/library.h"

#include <utility>
#include <variant>

#include "core/text.h"

namespace metal_sdpa {
namespace {

MTL::DataType data_type(bool) { return MTL::DataTypeBool; }
MTL::DataType data_type(std::int32_t) { return MTL::DataTypeInt; }
MTL::DataType data_type(std::uint32_t) { return MTL::DataTypeUInt; }
MTL::DataType data_type(float) { return MTL::DataTypeFloat; }

NS::SharedPtr<MTL::FunctionConstantValues> constant_values(const FunctionConstants& constants) {
  auto values = NS::TransferPtr(MTL::FunctionConstantValues::alloc()->init());
  for (const FunctionConstant& constant : constants) {
    std::visit(
        [&](const auto& value) {
          values->setConstantValue(&value, data_type(value), constant.index);
        },
        constant.value);
  }
  return values;
}

NS::SharedPtr<MTL::CompileOptions> compile_options() {
  auto options = NS::TransferPtr(MTL::CompileOptions::alloc()->init());
  options->setLanguageVersion(MTL::LanguageVersion3_1);
  // The same arithmetic as -fno-fast-math gives the packaged library; mathMode is macOS 15.
  if (responds_to(options.get(), "setMathMode:")) {
    options->setMathMode(MTL::MathModeSafe);
  } else {
    options->setFastMathEnabled(false);
  }
  return options;
}

}  // namespace

NS::SharedPtr<MTL::Library> compile_source(MTL::Device& device, const std::string& name,
                                           const char* source) {
  NS::Error* error = nullptr;
  auto library =
      NS::TransferPtr(device.newLibrary(ns_string(source), compile_options().get(), &error));
  if (!library) {
    fail(ErrorCode::shader_compilation, "compile: library \"", name, "\": ", error_text(error));
  }
  return library;  // with warnings there is both a library and an error
}

MetalPipeline::MetalPipeline(std::string function, NS::SharedPtr<MTL::ComputePipelineState> state,
                             std::shared_ptr<MetalQueue> queue, const Backend* owning_backend)
    : queue_(std::move(queue)),
      state_(std::move(state)),
      label_(NS::RetainPtr(ns_string(function))),
      static_memory_(static_cast<std::uint32_t>(state_->staticThreadgroupMemoryLength())) {
  name = std::move(function);
  backend = owning_backend;
  max_threads_per_threadgroup = static_cast<std::uint32_t>(state_->maxTotalThreadsPerThreadgroup());
}

MetalPipeline::~MetalPipeline() {
  if (!queue_->same_process()) {
    state_.detach();
    label_.detach();
    return;
  }
  const AutoreleaseScope pool;
  state_.reset();
  label_.reset();
}

MetalLibrary::MetalLibrary(std::string name, NS::SharedPtr<MTL::Library> library,
                           std::shared_ptr<MetalQueue> queue, const Backend* owning_backend)
    : name_(std::move(name)),
      library_(std::move(library)),
      queue_(std::move(queue)),
      backend_(owning_backend) {
  library_->setLabel(ns_string(name_));
  const NS::Array* names = library_->functionNames();
  for (NS::UInteger i = 0; i < names->count(); ++i) {
    functions_.insert(std_string(names->object<NS::String>(i)));
  }
}

MetalLibrary::~MetalLibrary() {
  if (!queue_->same_process()) {
    library_.detach();
    return;
  }
  const AutoreleaseScope pool;
  library_.reset();
}

bool MetalLibrary::has_function(std::string_view function) const {
  return functions_.find(function) != functions_.end();
}

std::shared_ptr<Pipeline> MetalLibrary::make_pipeline(std::string_view function,
                                                      const FunctionConstants& constants) {
  queue_->require_same_process("get_pipeline");
  const AutoreleaseScope pool;
  const std::string name(function);
  NS::String* const label = ns_string(name);
  NS::Error* error = nullptr;
  const auto specialised =
      NS::TransferPtr(library_->newFunction(label, constant_values(constants).get(), &error));
  if (!specialised) {
    fail(ErrorCode::shader_compilation, "get_pipeline: function: \"", name, "\" of library \"",
         name_, "\": ", error_text(error));
  }
  const auto descriptor = NS::TransferPtr(MTL::ComputePipelineDescriptor::alloc()->init());
  descriptor->setLabel(label);
  descriptor->setComputeFunction(specialised.get());
  auto state = NS::TransferPtr(queue_->device().newComputePipelineState(
      descriptor.get(), MTL::PipelineOptionNone, nullptr, &error));
  if (!state) {
    fail(ErrorCode::shader_compilation, "get_pipeline: function: \"", name, "\" of library \"",
         name_, "\": no pipeline: ", error_text(error));
  }
  return std::make_shared<MetalPipeline>(name, std::move(state), queue_, backend_);
}

}  // namespace metal_sdpa
