// Libraries: compiles at run time, their diagnostics and cache, function constants, faults.
#include <cstdlib>

#include "fixture.hpp"

using namespace tests;

namespace {

const char* const kFill = R"(
constant uint value [[function_constant(0)]];
constant bool negative [[function_constant(1)]];
constant int shift [[function_constant(2)]];
constant int offset = is_function_constant_defined(shift) ? shift : 100;

kernel void fill(device int* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  out[i] = (negative ? -int(value) : int(value)) + offset;
}
)";

int filled(Fixture& fixture, const NS::SharedPtr<MTL::ComputePipelineState>& state) {
  auto out = fixture.buffer(16);
  REQUIRE(fixture.run(state, {out}, {1, 1, 1}, {4, 1, 1}) == MTL::CommandBufferStatusCompleted);
  return Fixture::data<int>(out)[3];
}

}  // namespace

TEST_CASE("what does not compile gives an error with file, line and text") {
  Fixture fixture;
  Compiled compiled = fixture.compile("kernel void broken(device float* x [[buffer(0)]]) {\n"
                                      "  x[0] = unknown;\n}\n");
  CHECK(!compiled.library);
  CHECK_CONTAINS(compiled.error, "program_source:4:");
  CHECK_CONTAINS(compiled.error, "use of undeclared identifier 'unknown'");
}

TEST_CASE("the error of a library has Metal's domain and code") {
  Fixture fixture;
  NS::Error* error = nullptr;
  CHECK(fixture.device->newLibrary(str("kernel void k( {}"), nullptr, &error) == nullptr);
  REQUIRE(error != nullptr);
  CHECK(std::string(error->domain()->utf8String()) == "MTLLibraryErrorDomain");
  CHECK(error->code() == MTL::LibraryErrorCompileFailure);
}

TEST_CASE("a source is compiled once, whatever comes between") {
  Fixture fixture;
  const std::string one = "kernel void one(device int* x [[buffer(0)]]) { x[0] = 1; }\n";
  fixture.compile(one);
  software_metal_reset_counts();
  fixture.compile(one);
  fixture.compile(one);
  CHECK(software_metal_count(SOFTWARE_METAL_COMPILES) == 0);
  CHECK(software_metal_count(SOFTWARE_METAL_LIBRARIES) == 2);
}

TEST_CASE("macros are part of what is compiled") {
  Fixture fixture;
  const std::string source = "kernel void fill(device int* x [[buffer(0)]], "
                             "uint i [[thread_position_in_grid]]) { x[i] = VALUE; }\n";
  for (int value : {3, 4}) {
    auto options = NS::TransferPtr(MTL::CompileOptions::alloc()->init());
    const NS::Object* values[] = {NS::Number::number(value)};
    const NS::Object* keys[] = {str("VALUE")};
    options->setPreprocessorMacros(NS::Dictionary::dictionary(values, keys, 1));
    Compiled compiled = fixture.compile(source, options.get());
    REQUIRE_MESSAGE(compiled.library, compiled.error);
    CHECK(filled(fixture, fixture.pipeline(compiled.library.get(), "fill")) == value);
  }
}

TEST_CASE("function constants belong to their pipeline and need no compile") {
  Fixture fixture;
  Compiled compiled = fixture.compile(kFill);
  REQUIRE_MESSAGE(compiled.library, compiled.error);
  MTL::Library* library = compiled.library.get();
  software_metal_reset_counts();
  auto plus = fixture.pipeline(library, "fill", {{0, 7u}, {1, false}, {2, 1}});
  auto minus = fixture.pipeline(library, "fill", {{0, 9u}, {1, true}, {2, -2}});
  CHECK(filled(fixture, plus) == 8);
  CHECK(filled(fixture, minus) == -11);
  CHECK(filled(fixture, plus) == 8);
  CHECK(software_metal_count(SOFTWARE_METAL_COMPILES) == 0);
  CHECK(software_metal_count(SOFTWARE_METAL_PIPELINES) == 2);
}

TEST_CASE("a constant that the source asks about may be left out") {
  Fixture fixture;
  Compiled compiled = fixture.compile(kFill);
  REQUIRE(compiled.library);
  CHECK(filled(fixture, fixture.pipeline(compiled.library.get(), "fill", {{0, 7u}, {1, false}})) ==
        107);
}

TEST_CASE("a constant without a value, and one of the wrong type, are errors with its name") {
  Fixture fixture;
  Compiled compiled = fixture.compile(kFill);
  REQUIRE(compiled.library);
  CHECK(!fixture.pipeline(compiled.library.get(), "fill", {{0, 7u}}));
  CHECK_CONTAINS(fixture.error, "'negative' (index 1)");
  CHECK(!fixture.pipeline(compiled.library.get(), "fill", {{0, 7}, {1, false}}));
  CHECK_CONTAINS(fixture.error, "'value' (index 0) got a value of another type");
}

TEST_CASE("functions of a library, by host name") {
  Fixture fixture;
  Compiled compiled = fixture.compile(R"(
template <typename T>
kernel void copy(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],
                 uint i [[thread_position_in_grid]]) {
  y[i] = x[i];
}
template [[host_name("copy_f32")]] kernel void copy<float>(device const float*, device float*, uint);
template [[host_name("copy_f16")]] kernel void copy<half>(device const half*, device half*, uint);
)");
  REQUIRE_MESSAGE(compiled.library, compiled.error);
  CHECK(compiled.library->functionNames()->count() == 2);
  CHECK(!fixture.pipeline(compiled.library.get(), "copy"));
  CHECK_CONTAINS(fixture.error, "Function copy was not found in the library");
  CHECK(fixture.pipeline(compiled.library.get(), "copy_f16"));
}

TEST_CASE("faults: a library, a function and a pipeline that fail once") {
  Fixture fixture;
  software_metal_fail_library("the log\nof two lines");
  CHECK_CONTAINS(fixture.compile(kFill).error, "the log\nof two lines");
  Compiled compiled = fixture.compile(kFill);
  REQUIRE(compiled.library);
  software_metal_hide_function("fill");
  CHECK(!fixture.pipeline(compiled.library.get(), "fill", {{0, 7u}, {1, false}}));
  software_metal_hide_function(nullptr);
  software_metal_fail_pipeline("out of registers");
  CHECK(!fixture.pipeline(compiled.library.get(), "fill", {{0, 7u}, {1, false}}));
  CHECK_CONTAINS(fixture.error, "out of registers");
  CHECK(fixture.pipeline(compiled.library.get(), "fill", {{0, 7u}, {1, false}}));
}

TEST_CASE("faults: an allocation, and the whole device") {
  Fixture fixture;
  software_metal_fail_allocation(1);
  auto first = fixture.buffer(64), second = fixture.buffer(64), third = fixture.buffer(64);
  CHECK(first);
  CHECK(!second);
  CHECK(third);
  software_metal_set_device_absent(1);
  CHECK(MTL::CreateSystemDefaultDevice() == nullptr);
}
