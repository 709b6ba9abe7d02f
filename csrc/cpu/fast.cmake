# The fast kernel families. Every *_kernel.cpp here is compiled once for each instruction set, into a
# namespace of that name; what chooses among them is compiled with the flags of everything else.
# METAL_SDPA_ISAS leaves instruction sets out of builds that only test something else.

set(_fast "${CMAKE_CURRENT_LIST_DIR}/fast")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(_fast_tables kernel_tables_x86.cpp)
  set(_fast_isas baseline avx2 avx512 avx512_bf16 avx512_amx)
  set(_fast_flags_baseline "")
  set(_fast_flags_avx2 -mavx2 -mfma -mf16c)
  set(_fast_flags_avx512 ${_fast_flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
                         -mprefer-vector-width=512)
  set(_fast_flags_avx512_bf16 ${_fast_flags_avx512} -mavx512bf16)
  set(_fast_flags_avx512_amx ${_fast_flags_avx512_bf16} -mamx-tile -mamx-bf16)
  if(METAL_SDPA_EMULATE_AVX512)
    set(_fast_flags_avx512 ${_fast_flags_avx2} -O2
                           -include "${PROJECT_SOURCE_DIR}/tests/emulated/avx512.h")
    set(_fast_flags_avx512_bf16 ${_fast_flags_avx512} -DMETAL_SDPA_EMULATE_AVX512_BF16)
    target_compile_definitions(metal_sdpa PRIVATE METAL_SDPA_EMULATE_AVX512)
  endif()
  set(_fast_kernels_avx512_amx sdpa_prefill_kernel.cpp)
  if(METAL_SDPA_DEVELOPER)
    # So that tests take the same ways on processors without AMX.
    list(APPEND _fast_isas amx_emulated)
    set(_fast_flags_amx_emulated ${_fast_flags_avx512_bf16})
    set(_fast_kernels_amx_emulated ${_fast_kernels_avx512_amx})
    target_compile_definitions(metal_sdpa PRIVATE METAL_SDPA_EMULATE_AMX)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(_fast_tables kernel_tables_arm.cpp)
  set(_fast_isas neon neon_bf16)
  set(_fast_flags_neon "")
  set(_fast_flags_neon_bf16 -march=armv8.2-a+bf16)
else()
  return()  # no_fast.cpp stays
endif()

# Those that the build holds; missing_kernels.cpp stands in for the others.
if(METAL_SDPA_ISAS STREQUAL "all")
  set(_held_isas ${_fast_isas})
elseif(METAL_SDPA_ISAS STREQUAL "runnable" AND CMAKE_CROSSCOMPILING)
  set(_held_isas ${_fast_isas})
elseif(METAL_SDPA_ISAS STREQUAL "runnable")
  include(RunnableIsas)
  metal_sdpa_runnable_isas(_held_isas)
else()
  list(GET _fast_isas 0 _least_isa)
  set(_held_isas ${_least_isa} ${METAL_SDPA_ISAS})
endif()
list(JOIN _held_isas "," _held_text)
set_source_files_properties(csrc/cpu/isa.cpp PROPERTIES
  COMPILE_DEFINITIONS "METAL_SDPA_ISAS=\"${_held_text}\"")

# no_fast.cpp stands in for fast/ where the processor is none of these.
get_target_property(_sources metal_sdpa SOURCES)
list(FILTER _sources EXCLUDE REGEX "/no_fast\\.cpp$")
set_property(TARGET metal_sdpa PROPERTY SOURCES ${_sources})

file(GLOB _fast_sources CONFIGURE_DEPENDS "${_fast}/*.cpp")
list(FILTER _fast_sources EXCLUDE REGEX "_kernels?\\.cpp$|/kernel_tables_[^/]*$")
target_sources(metal_sdpa PRIVATE ${_fast_sources} "${_fast}/${_fast_tables}")

file(GLOB _fast_kernels CONFIGURE_DEPENDS "${_fast}/*_kernel.cpp")
foreach(isa IN LISTS _fast_isas)
  set(_target metal_sdpa_${isa})
  set(_kernels ${_fast_kernels})
  if(DEFINED _fast_kernels_${isa})  # what others lend it is left out
    list(TRANSFORM _fast_kernels_${isa} PREPEND "${_fast}/" OUTPUT_VARIABLE _kernels)
  endif()
  if(NOT isa IN_LIST _held_isas)
    set(_kernels "${_fast}/missing_kernels.cpp")
  endif()
  add_library(${_target} OBJECT ${_kernels})
  metal_sdpa_compile_options(${_target})
  target_compile_options(${_target} PRIVATE ${_fast_flags_${isa}})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # False inside g++ 12's own AVX-512 intrinsics, which start from an undefined register.
    target_compile_options(${_target} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
  target_compile_definitions(${_target} PRIVATE METAL_SDPA_ISA=${isa})
  if(isa STREQUAL "amx_emulated")
    target_compile_definitions(${_target} PRIVATE METAL_SDPA_EMULATE_AMX)
  endif()
  target_include_directories(${_target} PRIVATE
    "${PROJECT_SOURCE_DIR}/csrc/include" "${PROJECT_SOURCE_DIR}/csrc" "${PROJECT_SOURCE_DIR}")
  target_sources(metal_sdpa PRIVATE $<TARGET_OBJECTS:${_target}>)
  if(METAL_SDPA_DEVELOPER AND NOT METAL_SDPA_SANITIZE)
    add_test(NAME kernel_objects_${isa}
             COMMAND "${CMAKE_COMMAND}" -D NM=${CMAKE_NM} -D ISA=${isa}
                     -D "OBJECTS=$<TARGET_OBJECTS:${_target}>"
                     -P "${PROJECT_SOURCE_DIR}/cmake/CheckKernelObjects.cmake")
  endif()
endforeach()
