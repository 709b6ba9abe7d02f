# cmake -D NM=... -D ISA=... -D OBJECTS=a;b -P CheckKernelObjects.cmake
#
# Fails where an object compiled for one instruction set defines a function that the linker may take
# for the same function of other code (a weak symbol outside of that instruction set's namespace).

# Some names of lambdas in templates are beyond some demanglers.
string(LENGTH "${ISA}" _length)
set(_own "metal_sdpa::cpu::${ISA}::|_ZNK?10metal_sdpa3cpu${_length}${ISA}")

foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" --demangle --defined-only "${object}"
                  OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REPLACE "\n" ";" symbols "${symbols}")
  list(FILTER symbols INCLUDE REGEX " [WVu] ")
  list(FILTER symbols EXCLUDE REGEX "${_own}| [VW] DW\\.ref\\.")
  if(symbols)
    list(JOIN symbols "\n" symbols)
    message(FATAL_ERROR "${object} defines for everybody:\n${symbols}")
  endif()
endforeach()
