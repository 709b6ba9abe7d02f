// What the tests of the software device share: a device in record mode, short ways to dispatch.
#pragma once

#include <doctest/doctest.h>

#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "software_metal.h"

namespace tests {

inline NS::String* str(const std::string& text) {
  return NS::String::string(text.c_str(), NS::UTF8StringEncoding);
}

inline std::string text_of(const NS::Error* error) {
  return error != nullptr ? error->localizedDescription()->utf8String() : "";
}

struct Compiled {
  NS::SharedPtr<MTL::Library> library;
  std::string error;
};

/// One function constant.
struct Constant {
  unsigned index;
  MTL::DataType type;
  std::uint64_t bits;
  Constant(unsigned i, bool value) : index(i), type(MTL::DataTypeBool), bits(value) {}
  Constant(unsigned i, int value) : index(i), type(MTL::DataTypeInt), bits(0) {
    bits = static_cast<std::uint32_t>(value);
  }
  Constant(unsigned i, unsigned value) : index(i), type(MTL::DataTypeUInt), bits(value) {}
};

/// A device, a queue and a pool in record mode. When it goes, no violation may be left unread and
/// no object alive.
class Fixture {
 public:
  Fixture() {
    software_metal_reset();
    software_metal_set_validation(SOFTWARE_METAL_RECORD);
    pool_ = NS::TransferPtr(NS::AutoreleasePool::alloc()->init());
    device = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
    queue = NS::TransferPtr(device->newCommandQueue());
  }
  ~Fixture() {
    queue.reset();
    device.reset();
    pool_.reset();
    software_metal_reset_faults_and_wait();
    CHECK(take_violations() == "");
    CHECK(std::string(software_metal_live_report()) == "");
  }
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;

  Compiled compile(const std::string& source, MTL::CompileOptions* options = nullptr) const {
    NS::Error* error = nullptr;
    Compiled out;
    out.library = NS::TransferPtr(device->newLibrary(
        str("#include <metal_stdlib>\nusing namespace metal;\n" + source), options, &error));
    out.error = text_of(error);
    return out;
  }

  /// A pipeline of the function `name` of `source`; null with `error` set otherwise.
  NS::SharedPtr<MTL::ComputePipelineState> pipeline(
      const std::string& source, const std::string& name,
      std::initializer_list<Constant> constants = {}) {
    Compiled compiled = compile(source);
    error = compiled.error;
    if (!compiled.library) {
      FAIL_CHECK(error);
      return {};
    }
    return pipeline(compiled.library.get(), name, constants);
  }

  NS::SharedPtr<MTL::ComputePipelineState> pipeline(
      MTL::Library* library, const std::string& name,
      std::initializer_list<Constant> constants = {}) {
    NS::Error* failure = nullptr;
    auto values = NS::TransferPtr(MTL::FunctionConstantValues::alloc()->init());
    for (const Constant& constant : constants) {
      values->setConstantValue(&constant.bits, constant.type, NS::UInteger(constant.index));
    }
    auto function = NS::TransferPtr(library->newFunction(str(name), values.get(), &failure));
    if (!function) {
      error = text_of(failure);
      return {};
    }
    auto made = NS::TransferPtr(device->newComputePipelineState(function.get(), &failure));
    error = text_of(failure);
    return made;
  }

  NS::SharedPtr<MTL::Buffer> buffer(std::size_t bytes) const {
    return NS::TransferPtr(device->newBuffer(bytes, MTL::ResourceStorageModeShared));
  }
  template <class T>
  NS::SharedPtr<MTL::Buffer> buffer(const std::vector<T>& values) const {
    return NS::TransferPtr(device->newBuffer(values.data(), values.size() * sizeof(T),
                                             MTL::ResourceStorageModeShared));
  }
  template <class T>
  static T* data(const NS::SharedPtr<MTL::Buffer>& buffer) {
    return static_cast<T*>(buffer->contents());
  }

  /// Binds `buffers` from index 0, dispatches once, commits and waits. The status it ended in.
  MTL::CommandBufferStatus run(const NS::SharedPtr<MTL::ComputePipelineState>& state,
                               std::initializer_list<NS::SharedPtr<MTL::Buffer>> buffers,
                               MTL::Size groups, MTL::Size group_size,
                               std::initializer_list<unsigned> threadgroup_memory = {}) {
    MTL::CommandBuffer* command_buffer = queue->commandBuffer();
    MTL::ComputeCommandEncoder* encoder =
        command_buffer->computeCommandEncoder(MTL::DispatchTypeConcurrent);
    encoder->setComputePipelineState(state.get());
    unsigned index = 0;
    for (const auto& bound : buffers) encoder->setBuffer(bound.get(), 0, index++);
    index = 0;
    for (unsigned bytes : threadgroup_memory) encoder->setThreadgroupMemoryLength(bytes, index++);
    encoder->dispatchThreadgroups(groups, group_size);
    encoder->endEncoding();
    command_buffer->commit();
    command_buffer->waitUntilCompleted();
    error = text_of(command_buffer->error());
    return command_buffer->status();
  }

  /// The recorded violations, one a line; forgets them.
  static std::string take_violations() {
    std::string all;
    for (int i = 0; i < software_metal_violation_count(); ++i) {
      all += std::string(all.empty() ? "" : "\n") + software_metal_violation(i);
    }
    software_metal_clear_violations();
    return all;
  }

  NS::SharedPtr<MTL::Device> device;
  NS::SharedPtr<MTL::CommandQueue> queue;
  std::string error;

 private:
  static void software_metal_reset_faults_and_wait() {
    software_metal_clear_faults();
    software_metal_wait();
  }
  NS::SharedPtr<NS::AutoreleasePool> pool_;
};

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

#define CHECK_CONTAINS(text, part) CHECK_MESSAGE(tests::contains(text, part), text)

}  // namespace tests
