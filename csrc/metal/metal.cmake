# The Metal device: sources, shaders, and what they link. Included where METAL_SDPA_METAL_MODE is ON
# (Apple's Metal) or SOFTWARE (the software Metal device of tests/metal, test builds only).

include(MetalCpp)
find_package(Python3 REQUIRED COMPONENTS Interpreter)

# --- host code -------------------------------------------------------------------------------------

file(GLOB _metal_sources CONFIGURE_DEPENDS csrc/metal/*.cpp)
list(REMOVE_ITEM _metal_sources "${CMAKE_CURRENT_SOURCE_DIR}/csrc/metal/no_metal.cpp")
# metal-cpp's own symbols stay inside: another library of the process may have its own copy.
set_source_files_properties(${_metal_sources} PROPERTIES
  COMPILE_DEFINITIONS METALCPP_SYMBOL_VISIBILITY_HIDDEN
  COMPILE_OPTIONS -fblocks)
target_sources(metal_sdpa PRIVATE ${_metal_sources})
target_link_libraries(metal_sdpa PRIVATE metal_cpp)

if(METAL_SDPA_METAL_MODE STREQUAL "SOFTWARE")
  # All of it: tests reach the device's control functions through libmetal_sdpa.
  target_link_libraries(metal_sdpa PRIVATE "$<LINK_LIBRARY:WHOLE_ARCHIVE,software_metal>")
  # The one device of a process lives until its end; all else must be gone.
  set(SOFTWARE_METAL_KEPT "MTLDevice 1, MTLCommandQueue 1, MTLCommandBufferDescriptor 1, MTLFence 1, \
MTLResidencySet 1, MTLLibrary 1" CACHE STRING "" FORCE)
  # clang++ takes std::stable_sort of libstdc++ for a use of something deprecated.
  target_compile_options(metal_sdpa PUBLIC -Wno-deprecated-declarations)
else()
  # CoreGraphics: without it MTLCreateSystemDefaultDevice finds nothing in command-line programs.
  target_link_libraries(metal_sdpa PRIVATE
    "-framework Metal" "-framework Foundation" "-framework CoreGraphics")
endif()

# --- shaders: one flattened text, embedded and compiled ----------------------------------------------

file(GLOB _shaders CONFIGURE_DEPENDS shaders/*.metal)
file(GLOB _shader_headers CONFIGURE_DEPENDS shaders/*.h)
set(_flatten "${CMAKE_CURRENT_SOURCE_DIR}/tools/flatten_shaders.py")
set(_flat_source "${CMAKE_BINARY_DIR}/shaders/metal_sdpa.metal")
set(_embedded "${CMAKE_BINARY_DIR}/shaders/embedded_source.cpp")

add_custom_command(
  OUTPUT "${_flat_source}" "${_embedded}"
  COMMAND Python3::Interpreter "${_flatten}" --output "${_flat_source}" --cpp "${_embedded}"
          ${_shaders}
  DEPENDS "${_flatten}" ${_shaders} ${_shader_headers}
  COMMENT "Flattening the shaders" VERBATIM)
# C++ compilers need take no more than 65536 characters in one literal; clang and g++ do.
set_source_files_properties("${_embedded}" PROPERTIES COMPILE_OPTIONS -Wno-overlength-strings)
target_sources(metal_sdpa PRIVATE "${_embedded}")

# The embedded text is the one of the shaders that are here now.
add_test(NAME embedded_shaders
         COMMAND Python3::Interpreter "${_flatten}" --verify $<TARGET_FILE:metal_sdpa> ${_shaders})

# --- the packaged .metallib (macOS) ------------------------------------------------------------------

# The same language version and arithmetic as compile_options() in library.cpp.
set(METAL_SDPA_SHADER_FLAGS -std=metal3.1 -O3 -fno-fast-math -mmacosx-version-min=14.0)

# Xcode comes without the Metal toolchain; whether it is there shows only when it compiles.
function(_metal_toolchain_works out)
  file(WRITE "${CMAKE_BINARY_DIR}/shaders/trial.metal"
       "#include <metal_stdlib>\nkernel void trial(device float* x [[buffer(0)]]) { *x = 1; }\n")
  execute_process(
    COMMAND xcrun -sdk macosx metal ${METAL_SDPA_SHADER_FLAGS} -c trial.metal -o trial.air
    WORKING_DIRECTORY "${CMAKE_BINARY_DIR}/shaders"
    RESULT_VARIABLE _result OUTPUT_QUIET ERROR_VARIABLE _error)
  if(_result EQUAL 0)
    set(${out} TRUE PARENT_SCOPE)
    return()
  endif()
  message(STATUS "Metal shaders: no Metal toolchain (xcodebuild -downloadComponent MetalToolchain "
                 "installs it): ${_error}")
  set(${out} FALSE PARENT_SCOPE)
endfunction()

if(METAL_SDPA_METAL_MODE STREQUAL "ON")
  if(CMAKE_HOST_APPLE)
    _metal_toolchain_works(_has_toolchain)
  else()
    set(_has_toolchain FALSE)
  endif()
  if(_has_toolchain)
    set(_metallib "${CMAKE_BINARY_DIR}/lib/metal_sdpa.metallib")
    set(_air "${CMAKE_BINARY_DIR}/shaders/metal_sdpa.air")
    add_custom_command(
      OUTPUT "${_metallib}"
      COMMAND xcrun -sdk macosx metal ${METAL_SDPA_SHADER_FLAGS} -c "${_flat_source}" -o "${_air}"
      COMMAND xcrun -sdk macosx metallib "${_air}" -o "${_metallib}"
      DEPENDS "${_flat_source}"
      COMMENT "Compiling metal_sdpa.metallib" VERBATIM)
    add_custom_target(metal_sdpa_metallib ALL DEPENDS "${_metallib}")
    add_dependencies(metal_sdpa metal_sdpa_metallib)
    install(FILES "${_metallib}" DESTINATION lib COMPONENT metal_sdpa)
    message(STATUS "Metal shaders: metal_sdpa.metallib and embedded source")
  else()
    message(STATUS "Metal shaders: embedded source only, compiled at first use")
  endif()
endif()
