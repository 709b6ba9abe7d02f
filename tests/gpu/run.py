"""Run our Metal shaders on an NVIDIA GPU: correctness, checkers, timings, bytes.

    python tests/gpu/run.py                 everything, and write docs/gpu-results.json and .md
    python tests/gpu/run.py correctness     the case table against the float64 oracle
    python tests/gpu/run.py checkers        compute-sanitizer, all four tools
    python tests/gpu/run.py speed           times against the copy bandwidth of the same run
    python tests/gpu/run.py bytes           DRAM bytes read, by ncu

Needs an sm_90 GPU and its driver, the dependency group `gpu`, a C++ compiler, and
compute-sanitizer and ncu for `checkers` and `bytes`.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import csv
import datetime
import io
import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cases
import cuda_driver
import problem as problems
import speed
from harness import Library, Run
from hashes import RESULT_FILE, shader_hashes
from report import write_report

HERE = Path(__file__).resolve().parent
CHECKERS = ("memcheck", "racecheck", "initcheck", "synccheck")


def _check(library: Library, chosen: list[problems.Case]) -> dict[str, object]:
    """Judges every case; prints the failures."""
    runs = [Run(library, problems.make_problem(case)) for case in chosen]
    library.prepare([key for run in runs for key in run.kernel_keys()])
    worst: dict[str, float] = collections.defaultdict(float)
    failures = []
    # The oracle runs beside the GPU.
    with concurrent.futures.ProcessPoolExecutor(
        8, multiprocessing.get_context("forkserver")
    ) as pool:
        expected = pool.map(problems.reference, [run.problem for run in runs], chunksize=8)
        results = []
        for run in runs:
            run.launch()
            results.append(run.results())
        for run, (out, lse), want in zip(runs, results, expected, strict=True):
            case = run.case
            verdict = problems.judge(case, want, out, lse)
            label = f"{run.plan.steps[0].key.shader.removesuffix('.metal')} {case.dtype}"
            worst[label] = max(worst[label], verdict.output, verdict.lse)
            if not verdict.good:
                failures.append(case.name())
                print(f"FAIL {run.plan.steps[0].key.name} {case.name()}: {verdict}", flush=True)
    print(f"{len(chosen)} cases, {len(failures)} failures; largest error over its bound:")
    for label, ratio in worst.items():
        print(f"  {label:24} {ratio:.3f}")
    return {"cases": len(chosen), "failures": failures, "largest_error_over_bound": dict(worst)}


def correctness() -> dict[str, object]:
    return _check(Library(), cases.correctness_cases())


def checker_workload() -> None:
    """What `checkers` runs under each tool: launches only, no host threads."""
    library = Library()
    runs = [
        Run(library, problems.make_problem(case), poison=False) for case in cases.checker_cases()
    ]
    library.prepare([key for run in runs for key in run.kernel_keys()])
    for run in runs:
        run.launch()
        run.results()


def checkers() -> dict[str, str]:
    """Last line of each tool's report."""
    reports = {}
    for tool in CHECKERS:
        command = [
            "compute-sanitizer",
            "--tool",
            tool,
            sys.executable,
            __file__,
            "checker-workload",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
        reports[tool] = lines[-1].strip("= ") if lines else f"no summary: {done.stderr[-300:]}"
        print(f"{tool}: {reports[tool]}", flush=True)
        if done.stdout.count("========= ") > 2 and "0 errors" not in reports[tool]:
            print(done.stdout[:3000])
    return reports


def bytes_read() -> dict[str, float]:
    """DRAM bytes read over bytes of K and V, decode and merge together, by hardware counters."""
    ratios = {}
    for name, case in speed.BYTES_CASES.items():
        command = [
            "ncu", "--clock-control", "none", "--metrics", "dram__bytes_read.sum", "--csv",
            "--print-units", "base", sys.executable, __file__, "bytes-workload", name,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        table = done.stdout[done.stdout.find('"ID"') :]
        rows = [row for row in csv.DictReader(io.StringIO(table)) if row.get("Metric Value")]
        if not rows:
            print(f"{name}: ncu gave no figures: {done.stdout[-500:]} {done.stderr[-500:]}")
            continue
        read = sum(float(row["Metric Value"].replace(",", "")) for row in rows)
        ratios[name] = read / speed.kv_bytes(case)
        print(f"{name}: {ratios[name]:.3f} x (K + V)", flush=True)
    return ratios


def write_results(results: dict[str, object]) -> None:
    results["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    results["nvrtc"] = cuda_driver.nvrtc_version()
    results["device"] = cuda_driver.start()
    results["sha256"] = shader_hashes()
    RESULT_FILE.write_text(json.dumps(results, indent=1) + "\n")
    write_report()
    print(f"wrote {RESULT_FILE} and its report")


def _failed(results: dict[str, Any]) -> bool:
    reports = results.get("checkers", {}).values()
    wrong = results.get("correctness", {}).get("failures", [])
    return bool(wrong) or any("0 errors" not in report for report in reports)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="*", default=["correctness", "checkers", "bytes", "speed", "write"]
    )
    what = parser.parse_args().what
    if what[0] == "checker-workload":
        checker_workload()
        return 0
    if what[0] == "bytes-workload":
        speed.run_once(speed.BYTES_CASES[what[1]])
        return 0
    steps = {
        "correctness": correctness,
        "checkers": checkers,
        "bytes": bytes_read,
        "speed": speed.speed,
    }
    results: dict[str, Any] = {}
    for name in what:
        begin = time.monotonic()
        if name == "write":
            write_results(results)
            continue
        results[name] = steps[name]()
        print(f"[{name}: {time.monotonic() - begin:.0f} s]", flush=True)
    return 1 if _failed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
