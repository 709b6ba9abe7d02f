"""The CMake package of the library, found through the entry point `cmake.root`."""
