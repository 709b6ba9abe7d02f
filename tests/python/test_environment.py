"""The process around a call: floating-point mode, environment variables, output."""

from __future__ import annotations

import sys

import pytest

import child


@pytest.mark.skipif(sys.platform != "linux", reason="the mode is set through glibc")
def test_the_callers_floating_point_mode() -> None:
    """Results ignore FTZ, DAZ and the rounding direction; the mode is as before afterwards."""
    out = child.run(
        """
import ctypes, ctypes.util
import numpy as np, metal_sdpa
libm = ctypes.CDLL(ctypes.util.find_library("m"))
FE_UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}[__import__("platform").machine()]
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 4, 150, 64), np.float32) for _ in range(3))
half = (v * 2.0**-18).astype(np.float16)  # subnormal in f16
ones = np.ones_like(half)
device = metal_sdpa.Device("cpu", threads=2)

def results():
    return [metal_sdpa.sdpa(q, k, v, causal=True, device=device).view(np.uint32).copy(),
            metal_sdpa.sdpa(ones, ones, half, device=device).view(np.uint16).copy()]

want = results()
assert libm.fesetround(FE_UPWARD) == 0
got = results()
direction = libm.fegetround()
libm.fesetround(0)
assert direction == FE_UPWARD, direction
assert all(np.array_equal(a, b) for a, b in zip(want, got))

class Environment(ctypes.Structure):  # fenv_t of x86-64: x87 state, then MXCSR
    _fields_ = [("x87", ctypes.c_uint32 * 7), ("mxcsr", ctypes.c_uint32)]

if __import__("platform").machine() == "x86_64":
    environment = Environment()
    libm.fegetenv(ctypes.byref(environment))
    plain = environment.mxcsr
    environment.mxcsr = plain | 0x8040 | 0x4000  # FTZ, DAZ, round up
    libm.fesetenv(ctypes.byref(environment))
    got = results()
    libm.fegetenv(ctypes.byref(environment))
    flags = environment.mxcsr
    environment.mxcsr = plain
    libm.fesetenv(ctypes.byref(environment))
    assert flags & 0xe040 == 0xc040, hex(flags)
    assert all(np.array_equal(a, b) for a, b in zip(want, got))
print("fine")
"""
    )
    assert out.split() == ["fine"]


def test_the_environment_is_read_once_at_load() -> None:
    program = """
import os, metal_sdpa
print(metal_sdpa.get_num_threads())
os.environ["METAL_SDPA_NUM_THREADS"] = "7"
metal_sdpa.Device("cpu")
print(metal_sdpa.get_num_threads())
metal_sdpa.set_num_threads(2)
print(metal_sdpa.get_num_threads())
"""
    assert child.run(program, METAL_SDPA_NUM_THREADS="3").split() == ["3", "3", "2"]
    assert "METAL_SDPA_ISA" in child.run(REFUSED, METAL_SDPA_ISA="z80")


REFUSED = """
import numpy as np, metal_sdpa
metal_sdpa.get_num_threads()
x = np.ones((1, 1, 1, 8), np.float32)
for call in (lambda: metal_sdpa.Device("cpu"), lambda: metal_sdpa.sdpa(x, x, x)):
    try:
        call()
    except metal_sdpa.InvalidArgument as error:
        print(error)
"""


@pytest.mark.parametrize("text", ["abc", "0", "-3", "1025", "2x", " 2", "1.5", "99999999999"])
def test_a_bad_number_of_threads_in_the_environment(text: str) -> None:
    """The first use of the CPU device says so; the import does not."""
    said = f'METAL_SDPA_NUM_THREADS: "{text}", takes 1 to 1024'
    assert child.run(REFUSED, METAL_SDPA_NUM_THREADS=text).splitlines() == [said, said]
    report = child.run(
        "import metal_sdpa._report as r; print(r.environment_report())", METAL_SDPA_NUM_THREADS=text
    )
    assert said in report


def test_an_empty_number_of_threads_is_none() -> None:
    count = "import metal_sdpa; metal_sdpa.Device('cpu'); print(metal_sdpa.get_num_threads())"
    assert child.run(count, METAL_SDPA_NUM_THREADS="") == child.run(count)


def test_nothing_is_printed() -> None:
    out = child.run(
        """
import metal_sdpa, numpy as np
x = np.ones((1, 2, 3, 8), np.float32)
metal_sdpa.sdpa(x, x, x, return_lse=True)
try:
    metal_sdpa.sdpa(x, x, x, scale=float("nan"))
except metal_sdpa.InvalidArgument:
    pass
"""
    )
    assert out == ""
