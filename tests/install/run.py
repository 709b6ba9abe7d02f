"""Uses the installed wheel as its kinds of user do, from an empty directory.

1. Every ```python block of README.md runs as a program of its own.
2. The README's ```cmake and ```cpp blocks are a C++ project that finds the package with
   find_package; it must print what the comment in it says.
3. So is this directory, with consumer.cpp.
4. consumer.c is a C11 program linked with the library by hand, the quickstart of docs/engines/c.md
   one that is built as it says there, and examples/c a project in C that finds the package.
   consumer.rs is a Rust program, built where there is a rustc.
5. The library, the package and the CMake package agree on the version.
6. The shared libraries export names of their own and no others.

Run with the interpreter that has the wheel; cmake must be on the path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
README = ROOT / "README.md"
C_PAGE = ROOT / "docs" / "engines" / "c.md"

# In ```cpp and ```c blocks: `std::printf(...);  // prints TEXT`.
PRINTS = re.compile(r"// prints (.+)$", re.MULTILINE)


def blocks(language: str, page: Path = README) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def run(command: list[str | Path], cwd: Path) -> str:
    """Runs a command that must succeed; returns what it printed."""
    # The wheel is under test, not a build tree that the caller may have put on the path.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def check_python_blocks(directory: Path) -> None:
    sources = blocks("python")
    assert sources, "README.md has no python block"
    for number, source in enumerate(sources, start=1):
        path = directory / f"readme_{number}.py"
        path.write_text(source)
        run([sys.executable, "-W", "error", path], directory)
    print(f"README: {len(sources)} python blocks ran")


def check_cpp_block(directory: Path) -> None:
    """The project that the README shows, in files of the names that it uses."""
    (project,), (example,) = blocks("cmake"), blocks("cpp")
    (expected,) = PRINTS.findall(example)
    source = directory / "readme_project"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(project)
    (source / "main.cpp").write_text(example)
    printed = run([build_consumer(source, directory / "readme_build") / "engine"], directory)
    assert printed.strip() == expected, f"README: the cpp block printed {printed!r}"
    print(f"README: the cpp block printed {expected}")


def check_consumer(directory: Path) -> None:
    build = build_consumer(HERE, directory / "consumer_build")
    print(run([build / "consumer"], directory).strip())


def check_c_consumer(directory: Path) -> None:
    """A C compiler alone, as pedantic as they come."""
    program = directory / "c_consumer"
    strict = ["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wstrict-prototypes"]
    library = ask_package("--library", directory)
    run(
        [
            os.environ.get("CC", "cc"),
            *strict,
            f"-I{ask_package('--includedir', directory)}",
            HERE / "consumer.c",
            library,
            f"-Wl,-rpath,{Path(library).parent}",
            "-lm",
            "-o",
            program,
        ],
        directory,
    )
    print(run([program], directory).strip())


def check_c_quickstart(directory: Path) -> None:
    """docs/engines/c.md, its command line included."""
    (source,), (commands,) = blocks("c", C_PAGE), blocks("sh", C_PAGE)
    (expected,) = PRINTS.findall(source)
    (directory / "quickstart.c").write_text(source)
    # `python` in it is the interpreter that has the wheel.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = run(["env", f"PATH={path}", "sh", "-ec", commands], directory)
    assert printed.strip() == expected, f"{C_PAGE.name}: the quickstart printed {printed!r}"
    print(f"docs/engines/c.md: the quickstart printed {expected}")


def check_c_example(directory: Path) -> None:
    build = build_consumer(ROOT / "examples" / "c", directory / "c_example_build")
    print(run([build / "decode", "cpu"], directory).strip())


def check_rust_consumer(directory: Path) -> None:
    if shutil.which("rustc") is None:
        print("Rust consumer: NOT RUN, there is no rustc")
        return
    library = ask_package("--library", directory)
    program = directory / "rust_consumer"
    arguments = [f"link-arg={library}", f"link-arg=-Wl,-rpath,{Path(library).parent}"]
    options = [part for argument in arguments for part in ("-C", argument)]
    run(["rustc", "--edition", "2021", *options, "-o", program, HERE / "consumer.rs"], directory)
    print(run([program], directory).strip())


def ask_package(option: str, directory: Path) -> str:
    return run([sys.executable, "-m", "metal_sdpa", option], directory).strip()


def build_consumer(source: Path, build: Path) -> Path:
    """Configures as the README says and builds; returns the build folder."""
    package = ask_package("--cmakedir", build.parent)
    run(["cmake", "-S", source, "-B", build, f"-Dmetal_sdpa_ROOT={package}"], build.parent)
    run(["cmake", "--build", build], build.parent)
    return build


def check_versions(directory: Path) -> None:
    versions = run(
        [
            sys.executable,
            "-c",
            "import importlib.metadata, metal_sdpa;"
            "print(metal_sdpa.__version__, importlib.metadata.version('metal-sdpa'))",
        ],
        directory,
    ).split()
    text = (Path(ask_package("--includedir", directory)) / "metal_sdpa" / "version.h").read_text()
    versions += re.findall(r'#define METAL_SDPA_VERSION "(.+)"', text)
    assert versions == versions[:1] * 3, f"versions differ: {versions}"
    print(f"version {versions[0]} everywhere")


# Members of the namespace metal_sdpa, and what exceptions and virtual calls of its classes need.
OURS = re.compile(r"_?_Z(N|NK|TIN|TSN|TVN)10metal_sdpa")
# A function that metal_sdpa/c.h declares.
C_FUNCTION = re.compile(r"\bmetal_sdpa_\w+(?=\()")
# Exceptions are caught by it.
ERROR_TYPE = "_ZTIN10metal_sdpa5ErrorE"


def exported(binary: Path, directory: Path) -> list[str]:
    """Names that other binaries can link or replace."""
    command = ["nm", "-gU"] if sys.platform == "darwin" else ["nm", "-D", "--defined-only"]
    lines = run([*command, binary], directory).splitlines()
    names = [line.split()[-1].split("@")[0] for line in lines if len(line.split()) > 1]
    return [name.removeprefix("_") if sys.platform == "darwin" else name for name in names]


def c_functions(header: str) -> set[str]:
    """What a header in C declares, its comments left out."""
    return set(C_FUNCTION.findall(re.sub(r"//.*", "", header)))


def check_symbols(directory: Path) -> None:
    """No template of the standard library, no unique symbol, nothing of metal-cpp or nanobind."""
    names = "import metal_sdpa._core as c, metal_sdpa; print(c.__file__)"
    module = Path(run([sys.executable, "-c", names], directory).strip())
    assert exported(module, directory) == ["PyInit__core"], exported(module, directory)
    (library,) = [path for path in (module.parent / "lib").glob("*.[sd]*") if is_library(path)]
    symbols = exported(library, directory)
    header = Path(ask_package("--includedir", directory)) / "metal_sdpa" / "c.h"
    declared = c_functions(header.read_text())
    strangers = [name for name in symbols if not OURS.match(name) and name not in declared]
    assert not strangers, f"{library.name} exports {len(strangers)} strangers: {strangers[:3]}"
    missing = declared.difference(symbols)
    assert not missing, f"{library.name} lacks functions of c.h: {sorted(missing)}"
    assert ERROR_TYPE in symbols, f"{library.name} keeps the type of its errors to itself"
    print(f"{library.name} exports {len(symbols)} symbols, all its own")


def is_library(path: Path) -> bool:
    return not path.is_symlink() and (".so" in path.name or path.suffix == ".dylib")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        check_versions(directory)
        check_symbols(directory)
        check_python_blocks(directory)
        check_cpp_block(directory)
        check_consumer(directory)
        check_c_consumer(directory)
        check_c_quickstart(directory)
        check_c_example(directory)
        check_rust_consumer(directory)


if __name__ == "__main__":
    main()
