# Compiler flags of every target of ours: metal_sdpa_compile_options(target).
include(HideRuntime)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, RelWithDebInfo or Debug" FORCE)
endif()

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(METAL_SDPA_SANITIZE)
  # Program-wide: the linker of every target needs the runtime.
  add_compile_options(-fsanitize=${METAL_SDPA_SANITIZE} -fno-sanitize-recover=all
                      -fno-omit-frame-pointer -g)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options(-Wno-maybe-uninitialized)  # false in instrumented code of <regex>
  endif()
  add_link_options(-fsanitize=${METAL_SDPA_SANITIZE})
endif()

function(metal_sdpa_compile_options target)
  # Contraction is off everywhere: a fused multiply-add is one that the source asks for, so that
  # every compiler gives the same bits. Nothing of the fast-math family is ever on.
  target_compile_options(${target} PRIVATE -ffp-contract=off)
  metal_sdpa_hide_runtime(${target})

  if(METAL_SDPA_DEVELOPER)
    # Tests reach internals through the very library that ships, hence default visibility here.
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Werror)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(${target} PRIVATE -fno-semantic-interposition)
    endif()
  else()
    set_target_properties(${target} PROPERTIES
      CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  endif()
endfunction()
