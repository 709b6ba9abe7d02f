# Finds Apple's metal-cpp headers and defines the INTERFACE target metal_cpp.
#
#   METAL_CPP_DIR          a directory that holds Metal/Metal.hpp; nothing is downloaded when given
#   METAL_SDPA_CACHE_DIR   where the downloaded headers are kept (default: <source>/.cache); they
#                          land in metal-cpp/ below it, and a second configure needs no network
#
# Without METAL_CPP_DIR the headers are taken out of a pinned wheel, whose SHA-256 is checked.

set(METAL_CPP_DIR "" CACHE PATH "Directory that holds Metal/Metal.hpp (empty: download)")

set(_metal_cpp_version 0.32.4)
set(_metal_cpp_sha256 9f0a3cc26d89724434d9684932fc6f3e4e83669d2a895d858ed2c8a55eb84e8b)

# Downloads the wheel, checks it and leaves its metal_cpp folder at `destination`.
function(_metal_cpp_download destination)
  find_package(Python3 COMPONENTS Interpreter)
  if(NOT Python3_Interpreter_FOUND)
    message(FATAL_ERROR "metal-cpp: no Python to download the headers with; set METAL_CPP_DIR to a "
                        "directory that holds Metal/Metal.hpp")
  endif()
  string(RANDOM LENGTH 8 _suffix)
  set(_work "${destination}.partial-${_suffix}")
  file(MAKE_DIRECTORY "${_work}")
  message(STATUS "metal-cpp: downloading the headers (mlx-metal ${_metal_cpp_version}, 45 MB)")
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -m pip download --quiet --disable-pip-version-check --no-deps
            --only-binary=:all: --platform macosx_15_0_arm64 --python-version 3.12
            --dest "${_work}" "mlx-metal==${_metal_cpp_version}"
    RESULT_VARIABLE _result ERROR_VARIABLE _error OUTPUT_VARIABLE _output)
  if(NOT _result EQUAL 0)
    file(REMOVE_RECURSE "${_work}")
    message(FATAL_ERROR "metal-cpp: the download failed; set METAL_CPP_DIR to a directory that "
                        "holds Metal/Metal.hpp, or configure with a network once.\n"
                        "${_output}${_error}")
  endif()
  file(GLOB _wheel "${_work}/*.whl")
  file(SHA256 "${_wheel}" _actual)
  if(NOT _actual STREQUAL _metal_cpp_sha256)
    file(REMOVE_RECURSE "${_work}")
    message(FATAL_ERROR "metal-cpp: the wheel's SHA-256 is ${_actual}, expected "
                        "${_metal_cpp_sha256}")
  endif()
  file(ARCHIVE_EXTRACT INPUT "${_wheel}" DESTINATION "${_work}"
       PATTERNS "mlx/include/metal_cpp/*")
  file(REMOVE_RECURSE "${destination}")
  file(RENAME "${_work}/mlx/include/metal_cpp" "${destination}")
  file(WRITE "${destination}/.complete" "${_metal_cpp_sha256}\n")
  file(REMOVE_RECURSE "${_work}")
endfunction()

function(_metal_cpp_find out)
  if(METAL_CPP_DIR)
    if(NOT EXISTS "${METAL_CPP_DIR}/Metal/Metal.hpp")
      message(FATAL_ERROR "metal-cpp: METAL_CPP_DIR is ${METAL_CPP_DIR}, but there is no "
                          "Metal/Metal.hpp in it")
    endif()
    set(${out} "${METAL_CPP_DIR}" PARENT_SCOPE)
    return()
  endif()
  if(NOT METAL_SDPA_CACHE_DIR)
    set(METAL_SDPA_CACHE_DIR "${CMAKE_SOURCE_DIR}/.cache")
  endif()
  set(_directory "${METAL_SDPA_CACHE_DIR}/metal-cpp")
  set(_stamp "")
  if(EXISTS "${_directory}/.complete")
    file(STRINGS "${_directory}/.complete" _stamp LIMIT_COUNT 1)
  endif()
  if(NOT _stamp STREQUAL _metal_cpp_sha256)
    _metal_cpp_download("${_directory}")
  endif()
  set(${out} "${_directory}" PARENT_SCOPE)
endfunction()

if(NOT TARGET metal_cpp)
  _metal_cpp_find(_metal_cpp_directory)
  add_library(metal_cpp INTERFACE)
  target_include_directories(metal_cpp SYSTEM INTERFACE "${_metal_cpp_directory}")
  message(STATUS "metal-cpp: ${_metal_cpp_directory}")
endif()
