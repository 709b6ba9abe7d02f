"""Where the C++ half of the package lies."""

from pathlib import Path

_ROOT = Path(__file__).resolve().parent


def get_include() -> str:
    """Directory of the C++ headers: `#include "metal_sdpa/metal_sdpa.h"`."""
    return str(_ROOT / "include")


def get_cmake_dir() -> str:
    """Directory of metal_sdpaConfig.cmake: `cmake -Dmetal_sdpa_ROOT=...`."""
    return str(_ROOT / "cmake")


def get_library_dir() -> str:
    """Directory of libmetal_sdpa, and of the compiled shaders on a Mac."""
    return str(_ROOT / "lib")


def get_library() -> str:
    """Path of the libmetal_sdpa that this package runs on, to link or to load (ctypes, dlopen)."""
    # A build tree has symbolic links beside it, a Mac its compiled shaders.
    libraries = (
        path
        for path in Path(get_library_dir()).glob("libmetal_sdpa.*")
        if not path.is_symlink() and (".so" in path.name or path.suffix == ".dylib")
    )
    return str(next(libraries))
