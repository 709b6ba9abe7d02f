// MTLLibraries and the pipelines made from them.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>

#include "core/backend.h"
#include "metal/queue.h"

namespace metal_sdpa {

class MetalPipeline final : public Pipeline {
 public:
  MetalPipeline(std::string function, NS::SharedPtr<MTL::ComputePipelineState> state,
                std::shared_ptr<MetalQueue> queue, const Backend* owning_backend);
  ~MetalPipeline() override;

  MTL::ComputePipelineState* state() const noexcept { return state_.get(); }
  /// The function name, for labels.
  NS::String* label() const noexcept { return label_.get(); }
  std::uint32_t static_threadgroup_memory() const noexcept { return static_memory_; }

 private:
  std::shared_ptr<MetalQueue> queue_;
  NS::SharedPtr<MTL::ComputePipelineState> state_;
  NS::SharedPtr<NS::String> label_;
  std::uint32_t static_memory_ = 0;
};

class MetalLibrary final : public Library {
 public:
  MetalLibrary(std::string name, NS::SharedPtr<MTL::Library> library,
               std::shared_ptr<MetalQueue> queue, const Backend* owning_backend);
  ~MetalLibrary() override;

  bool has_function(std::string_view function) const override;
  std::shared_ptr<Pipeline> make_pipeline(std::string_view function,
                                          const FunctionConstants& constants) override;

 private:
  std::string name_;
  NS::SharedPtr<MTL::Library> library_;
  std::shared_ptr<MetalQueue> queue_;
  const Backend* backend_;
  std::set<std::string, std::less<>> functions_;
};

/// Compiles MSL 3.1 with IEEE arithmetic; ShaderCompilationError with the compiler's whole log.
NS::SharedPtr<MTL::Library> compile_source(MTL::Device& device, const std::string& name,
                                           const char* source);

}  // namespace metal_sdpa
