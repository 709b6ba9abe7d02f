# Chooses the sources of the Metal device. An absent device is another source file, not an #ifdef.
#
#   OFF        csrc/metal/no_metal.cpp
#   ON         csrc/metal/metal.cmake: the device on Apple's Metal
#   SOFTWARE   the same sources on the software Metal device of tests/metal; test builds only

set(METAL_SDPA_METAL_MODE ${METAL_SDPA_METAL})
if(METAL_SDPA_METAL_MODE STREQUAL "AUTO")
  if(APPLE)
    set(METAL_SDPA_METAL_MODE ON)
  else()
    set(METAL_SDPA_METAL_MODE OFF)
  endif()
endif()

if(METAL_SDPA_METAL_MODE STREQUAL "SOFTWARE" AND NOT METAL_SDPA_DEVELOPER)
  message(FATAL_ERROR "METAL_SDPA_METAL=SOFTWARE is for test builds: set METAL_SDPA_DEVELOPER=ON")
endif()
if(METAL_SDPA_METAL_MODE STREQUAL "ON" AND NOT APPLE)
  message(FATAL_ERROR "METAL_SDPA_METAL=ON needs macOS; on other systems use OFF, or SOFTWARE to test")
endif()

if(METAL_SDPA_METAL_MODE STREQUAL "OFF")
  target_sources(metal_sdpa PRIVATE csrc/metal/no_metal.cpp)
elseif(METAL_SDPA_METAL_MODE MATCHES "^(ON|SOFTWARE)$")
  include(${CMAKE_CURRENT_SOURCE_DIR}/csrc/metal/metal.cmake)
else()
  message(FATAL_ERROR "METAL_SDPA_METAL is ${METAL_SDPA_METAL}; it takes AUTO, ON, OFF or SOFTWARE")
endif()
message(STATUS "Metal device: ${METAL_SDPA_METAL_MODE}")
