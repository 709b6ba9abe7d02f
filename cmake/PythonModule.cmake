# The extension module metal_sdpa._core, which links libmetal_sdpa beside it in lib/.

# SKBUILD_SABI_COMPONENT is empty but in a wheel build for the stable ABI (CPython 3.12 and later).
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module ${SKBUILD_SABI_COMPONENT})
execute_process(COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
                OUTPUT_VARIABLE nanobind_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE
                RESULT_VARIABLE nanobind_missing ERROR_QUIET)
if(nanobind_missing)
  message(FATAL_ERROR "nanobind is not installed for ${Python_EXECUTABLE}: "
                      "install the dependency group 'build' of pyproject.toml, "
                      "or set METAL_SDPA_PYTHON=OFF")
endif()
find_package(nanobind 3.0 CONFIG REQUIRED)

file(GLOB METAL_SDPA_BINDING_SOURCES CONFIGURE_DEPENDS csrc/bindings/*.cpp)
# Profilers and sanitizers want the symbols.
set(METAL_SDPA_STRIP "")
if(METAL_SDPA_DEVELOPER)
  set(METAL_SDPA_STRIP NOSTRIP)
endif()
# NOMINSIZE: nanobind's default -Os costs time in the one place where a tiny call spends it.
nanobind_add_module(_core STABLE_ABI FREE_THREADED NOMINSIZE NB_STATIC ${METAL_SDPA_STRIP}
                    NB_DOMAIN metal_sdpa
                    ${METAL_SDPA_BINDING_SOURCES})
metal_sdpa_compile_options(_core)
metal_sdpa_export_only(_core PyInit__core)
# Nothing outside needs a symbol of the bindings, test builds included.
set_target_properties(_core PROPERTIES
  CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
  BUILD_RPATH "${CMAKE_BINARY_DIR}/lib"
  INSTALL_RPATH "$<IF:$<PLATFORM_ID:Darwin>,@loader_path/lib,$ORIGIN/lib>"
  LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/python")
target_include_directories(_core PRIVATE csrc csrc/bindings)
target_link_libraries(_core PRIVATE metal_sdpa::metal_sdpa)
if(METAL_SDPA_DEVELOPER)
  target_compile_definitions(_core PRIVATE METAL_SDPA_LEAK_WARNINGS=1)
endif()
