# The layout of the package directory, which is the install prefix:
#
#   _core.*.so   lib/libmetal_sdpa.*   include/metal_sdpa/*.h   cmake/metal_sdpaConfig.cmake
#
# A wheel holds it as metal_sdpa/; `cmake --build BUILD --target stage` lays the same thing out in
# BUILD/stage/metal_sdpa, so that PYTHONPATH=BUILD/stage imports what was built.

include(CMakePackageConfigHelpers)

# A wheel cannot hold symbolic links, and the linker name would become a second copy of the library.
if(SKBUILD)
  set(_namelink NAMELINK_SKIP)
else()
  set(_namelink "")
endif()
install(TARGETS metal_sdpa EXPORT metal_sdpaTargets
        LIBRARY DESTINATION lib ${_namelink} COMPONENT metal_sdpa
        INCLUDES DESTINATION include)
install(FILES ${METAL_SDPA_PUBLIC_HEADERS} DESTINATION include/metal_sdpa COMPONENT metal_sdpa)
install(EXPORT metal_sdpaTargets NAMESPACE metal_sdpa:: DESTINATION cmake COMPONENT metal_sdpa)

configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/metal_sdpaConfig.cmake.in" "${CMAKE_BINARY_DIR}/metal_sdpaConfig.cmake"
  INSTALL_DESTINATION cmake NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${CMAKE_BINARY_DIR}/metal_sdpaConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_BINARY_DIR}/metal_sdpaConfig.cmake"
              "${CMAKE_BINARY_DIR}/metal_sdpaConfigVersion.cmake"
        DESTINATION cmake COMPONENT metal_sdpa)

if(TARGET _core)
  install(TARGETS _core LIBRARY DESTINATION . COMPONENT metal_sdpa)
  if(METAL_SDPA_INSTALL_PYTHON)
    install(DIRECTORY python/metal_sdpa/ DESTINATION . COMPONENT metal_sdpa
            PATTERN __pycache__ EXCLUDE)
  endif()
  add_custom_target(stage
    COMMAND "${CMAKE_COMMAND}" --install "${CMAKE_BINARY_DIR}" --component metal_sdpa
            --prefix "${CMAKE_BINARY_DIR}/stage/metal_sdpa"
    DEPENDS metal_sdpa _core VERBATIM)
endif()
