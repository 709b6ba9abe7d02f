"""Compile every shader for the GPU architecture; compare hashes with the results. Needs no GPU.

    python tests/gpu/compile_all.py [--jobs N]

Fails where a kernel does not compile. Warns where docs/gpu-results.json was measured with other
shaders.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys

import cuda_driver
import msl_to_cuda
from harness import SHADERS
from hashes import RESULT_FILE, shader_hashes

# Function constants that add code, and those of span states with rows that are not aligned.
CONSTANT_SETS = ((0, 1, 3, 4, 7), (5, 6, 7))
# What happens to scores and outputs, with both kinds of mask, and pages: for every third head dim.
FEATURE_SETS = ((0, 1, 3, 8, 9, 10, 11, 13, 14), (0, 5, 7, 8, 9, 12, 15), (0, 1, 3, 7, 15))
CHUNK = 9  # kernels of one translation unit


def compile_unit(unit: tuple[str, list[str], dict[int, bool]]) -> str:
    shader, names, constants = unit
    translation = msl_to_cuda.translate(SHADERS / shader, names, constants)
    cuda_driver.compile_cubin(translation.source)
    return f"{shader} {names[0]} .. {names[-1]} {sorted(constants)}"


def units() -> list[tuple[str, list[str], dict[int, bool]]]:
    result = []
    for shader in sorted(SHADERS.glob("*.metal")):
        names = msl_to_cuda.host_names(shader)
        if not names:
            raise SystemExit(f"{shader.name} instantiates no kernel")
        for begin in range(0, len(names), CHUNK):
            chunk = names[begin : begin + CHUNK]
            some = chunk[1::3] if len(chunk) == CHUNK else chunk
            for constants in CONSTANT_SETS:
                result.append((shader.name, chunk, dict.fromkeys(constants, True)))
            for constants in FEATURE_SETS:
                result.append((shader.name, some, dict.fromkeys(constants, True)))
    return result


def warn_of_stale_results() -> None:
    if not RESULT_FILE.exists():
        print(f"warning: no {RESULT_FILE.name}: run tests/gpu/run.py on a GPU")
        return
    recorded = json.loads(RESULT_FILE.read_text())["sha256"]
    current = shader_hashes()
    changed = sorted(
        n for n in recorded.keys() | current.keys() if recorded.get(n) != current.get(n)
    )
    if changed:
        print(
            f"warning: {RESULT_FILE.name} was measured with other versions of {', '.join(changed)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for done in pool.map(compile_unit, units()):
            print(done, flush=True)
    warn_of_stale_results()
    return 0


if __name__ == "__main__":
    sys.exit(main())
