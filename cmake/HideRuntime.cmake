# What a library keeps to itself of the C++ runtime: metal_sdpa_hide_runtime(target).

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
