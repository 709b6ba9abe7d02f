"""The command line: `python -m metal_sdpa` reports on the environment."""

from __future__ import annotations

import argparse

from ._paths import get_cmake_dir, get_include, get_library
from ._report import environment_report


def main() -> None:
    """Prints what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m metal_sdpa", description="Without an option: a report for bug reports."
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--cmakedir", action="store_true", help="directory of the CMake package")
    choice.add_argument("--includedir", action="store_true", help="directory of the headers")
    choice.add_argument("--library", action="store_true", help="path of the shared library")
    options = parser.parse_args()
    if options.cmakedir:
        print(get_cmake_dir())
    elif options.includedir:
        print(get_include())
    elif options.library:
        print(get_library())
    else:
        print(environment_report())


if __name__ == "__main__":
    main()
