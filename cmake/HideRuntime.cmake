# What a library keeps to itself: metal_sdpa_hide_runtime(target), metal_sdpa_export_only(target
# PATTERN...).

# A compiler may link its C++ runtime from archives. Exported, the runtime's unique symbols (the
# identities of locale facets, for one) would replace those of every library that a process loads
# later; and so would what the standard library's templates make in our own code.
function(metal_sdpa_hide_runtime target)
  target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
  if(NOT APPLE)
    target_link_options(${target} PRIVATE
      LINKER:--exclude-libs,libstdc++.a:libsupc++.a:libgcc.a:libgcc_eh.a:libc++.a:libc++abi.a)
  endif()
endfunction()

# Of the symbols that are visible, a shared library exports those alone whose names match a pattern
# ("*" stands for any text). The standard library's headers make their templates visible whatever a
# compiler is told, and another library's copy of one would take the place of ours, or ours of its.
function(metal_sdpa_export_only target)
  set(_file "${CMAKE_CURRENT_BINARY_DIR}/${target}.exports")
  if(APPLE)
    list(TRANSFORM ARGN PREPEND "_" OUTPUT_VARIABLE _lines)
    list(JOIN _lines "\n" _text)
    set(_option LINKER:-exported_symbols_list,${_file})
  else()
    list(JOIN ARGN "; " _names)
    set(_text "{ global: ${_names}; local: *; };")
    set(_option LINKER:--version-script=${_file})
  endif()
  file(CONFIGURE OUTPUT "${_file}" CONTENT "${_text}\n" @ONLY)
  target_link_options(${target} PRIVATE ${_option})
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${_file}")
endfunction()
