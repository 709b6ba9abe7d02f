"""Facts of the machine, each guarded: what cannot be found out is a value, not an error."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

CPU_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
FALLBACK_CACHE_BYTES = 32 << 20


def sysctl(name: str) -> str:
    """A value of macOS, or empty."""
    try:
        command = ["sysctl", "-n", name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor_name() -> str:
    if sys.platform == "darwin":
        return sysctl("machdep.cpu.brand_string") or platform.processor()
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return match.group(1) if match else platform.machine()


def parse_size(text: str) -> int:
    """ "32768K" as bytes."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    text = text.strip()
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def last_level_cache_bytes() -> int:
    """The largest cache of the first processor."""
    if sys.platform == "darwin":
        sizes = [sysctl("hw.perflevel0.l2cachesize"), sysctl("hw.l3cachesize")]
        found = [int(size) for size in sizes if size.isdigit()]
    else:
        found = []
        for path in CPU_CACHE.glob("index*/size"):
            try:
                found.append(parse_size(path.read_text()))
            except (OSError, ValueError):
                continue
    return max(found, default=0) or FALLBACK_CACHE_BYTES


def memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def load_average() -> float | None:
    """Of the last minute: well above the bench's own threads, other programs disturb it."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def machine_facts() -> dict[str, object]:
    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": memory_bytes(),
        "load_average_before": load_average(),
    }
