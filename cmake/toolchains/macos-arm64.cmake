# Cross-compiles for arm64 macOS on any machine with zig (the PyPI package ziglang), which brings
# libc++ and the Darwin headers. Checks that the sources compile and link; nothing can run.
#
# Frameworks are not there: tools/zig_macos_cxx.sh leaves their symbols to be looked up at load.

set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_ARCHITECTURES "")
set(CMAKE_OSX_DEPLOYMENT_TARGET "")
set(CMAKE_OSX_SYSROOT "")

get_filename_component(_tools "${CMAKE_CURRENT_LIST_DIR}/../../tools" ABSOLUTE)
set(CMAKE_CXX_COMPILER "${_tools}/zig_macos_cxx.sh")
set(CMAKE_AR "${_tools}/zig_ar.sh" CACHE FILEPATH "" FORCE)
set(CMAKE_RANLIB true CACHE FILEPATH "" FORCE)
set(CMAKE_INSTALL_NAME_TOOL true CACHE FILEPATH "" FORCE)
# The driver's checks would need an SDK.
set(CMAKE_CXX_COMPILER_WORKS TRUE)
set(CMAKE_SKIP_RPATH TRUE)
