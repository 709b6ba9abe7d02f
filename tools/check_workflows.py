#!/usr/bin/env python3
"""Checks the hosted workflows, which cannot run here: they parse, and every action is pinned.

The exit status is 1 where a file is no workflow, where an action is named by tag or branch instead
of a commit, where a job has no time limit, or where a script that a step runs is not in the tree.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PINNED = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")
SCRIPT = re.compile(r"(?<![\w./$-])(?:\.ci|tools|tests)/[\w./-]+")


def problems_of(text: str) -> Iterator[str]:
    """What is wrong with one workflow."""
    workflow: dict[Any, Any] = yaml.safe_load(text)
    # YAML 1.1 reads the key `on` as true.
    if not isinstance(workflow, dict) or not (workflow.get("on") or workflow.get(True)):
        yield "no events"
        return
    for name, job in workflow.get("jobs", {}).items():
        if "timeout-minutes" not in job:
            yield f"{name}: no time limit"
        if "runs-on" not in job or not job.get("steps"):
            yield f"{name}: no runner or no steps"
        for step in job.get("steps", []):
            yield from step_problems(name, step)


def step_problems(name: str, step: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one step."""
    if ("uses" in step) == ("run" in step):
        yield f"{name}: a step has either uses or run: {step}"
    if "uses" in step and not PINNED.match(step["uses"]):
        yield f"{name}: {step['uses']} is not pinned to a commit"
    for script in SCRIPT.findall(step.get("run", "")):
        if not (ROOT / script).exists():
            yield f"{name}: {script} is not there"


def main() -> int:
    """Checks all workflows, after an example that must fail."""
    bad = "on: push\njobs: {a: {runs-on: x, steps: [{uses: o/r@v1}, {run: tools/none.sh}]}}\n"
    if len(list(problems_of(bad))) != 3:
        print("check_workflows: the bad example has passed", file=sys.stderr)
        return 1
    paths = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    problems = [f"{path.name}: {p}" for path in paths for p in problems_of(path.read_text())]
    for problem in problems:
        print(f"check_workflows: {problem}", file=sys.stderr)
    print(f"{len(paths)} workflows, {len(problems)} problems")
    return 1 if problems or not paths else 0


if __name__ == "__main__":
    raise SystemExit(main())
