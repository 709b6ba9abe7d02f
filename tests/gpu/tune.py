"""Scratch: span lengths and register bounds for decode."""
import sys
import cuda_driver, speed
from dataclasses import replace
from harness import Library, Run
which = sys.argv[1:] 
copy = speed.copy_bandwidth(1 << 30)
for bounds in ("", ", 3", ", 4"):
    lib = Library(bounds=bounds)
    for name, spans in {"B1 32/8 S32768 D128 bf16": (64, 512), "B16 32/8 S8192 D128 bf16": (64, 128, 256, 512),
        "B1 32/32 S16384 D128 f16": (64, 256, 512), "B1 24/8 S16384 D64 f16": (64, 128, 256), "B1 16/8 S16384 D256 f16": (32, 128, 256),
        "B1 32/8 S4096 D128 bf16": (32, 64, 128), "B16 32/8 S8192 D256 bf16": (64, 256), "B16 32/8 S8192 D128 f32": (64, 256), "B16 32/8 S8192 D64 bf16": (128, 256, 512)}.items():
        row = []
        for s in spans:
            t = speed.time_case(lib, replace(speed.DECODE[name], span_len=s), 3)
            row.append(f"{s}: {t*1e6:.1f}us {speed.kv_bytes(speed.DECODE[name])/t/1e9:.0f}")
        print(repr(bounds), name, "; ".join(row), flush=True)
    print({k.name: (v.registers, v.local_bytes) for k, v in lib.kernels.items()})
lib = Library()
for name in ("L2048 32/8 D128 f16", "L4096 16/16 D64 f16"):
    for bounds in ("", ", 3"):
        print(name, bounds, speed.causal_flops(speed.PREFILL[name]) / speed.time_case(Library(bounds=bounds), speed.PREFILL[name], 3) / 1e12)
