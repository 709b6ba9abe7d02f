# metal_sdpa_runnable_isas(variable): the instruction sets of the CPU kernels that the processor of
# this machine runs, those of its architecture that every processor has included. cpu/isa.cpp itself
# is asked, in a program of one line.

function(metal_sdpa_runnable_isas variable)
  set(_main "${CMAKE_BINARY_DIR}/runnable_isas.cpp")
  file(WRITE "${_main}" [[
#include <cstdio>
#include "cpu/isa.h"
int main() {
  for (const auto isa : metal_sdpa::cpu::supported_isas()) {
    std::printf("%s;", metal_sdpa::cpu::isa_name(isa));
  }
}
]])
  # A developer build's library emulates AMX's registers for its tests.
  try_run(_status _compiles "${CMAKE_BINARY_DIR}/runnable_isas"
    SOURCES "${_main}" "${PROJECT_SOURCE_DIR}/csrc/cpu/isa.cpp"
    CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${PROJECT_SOURCE_DIR}/csrc"
    COMPILE_DEFINITIONS -DMETAL_SDPA_EMULATE_AMX
    CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON
    RUN_OUTPUT_VARIABLE _names COMPILE_OUTPUT_VARIABLE _log)
  if(NOT _compiles OR NOT _status EQUAL 0)
    message(FATAL_ERROR "The instruction sets of this processor are not known:\n${_log}")
  endif()
  string(REGEX REPLACE ";$" "" _names "${_names}")
  set(${variable} ${_names} PARENT_SCOPE)
endfunction()
