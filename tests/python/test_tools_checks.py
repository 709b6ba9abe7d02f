"""The checks of tools/ find what they look for, in a small project made to hold it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"

GOOD_WORKFLOW = """
on: push
jobs:
  build:
    runs-on: x
    timeout-minutes: 5
    steps:
      - uses: owner/action@0123456789012345678901234567890123456789
      - run: tools/lint.sh
"""


class Project:
    """A repository of git's with the tools in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tools").mkdir()
        for tool in TOOLS.glob("*.*"):
            shutil.copy(tool, root / "tools")
        subprocess.run(["git", "init", "--quiet", str(root)], check=True)

    def write(self, path: str, text: str | bytes) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def run(self, tool: str, *arguments: str) -> tuple[int, str]:
        """The exit status, and what was printed."""
        command = [sys.executable, "-B", str(self.root / "tools" / tool), *arguments]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def shell(self, script: str) -> tuple[int, str]:
        command = ["bash", "-c", f"source tools/common.sh\n{script}"]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    return Project(tmp_path)


# ----- hygiene ------------------------------------------------------------------------------------


def test_a_clean_project_passes(project: Project) -> None:
    project.write("csrc/a.cpp", "int a;  // see /proc/cpuinfo, $HOME/work and a/root/b\n")
    project.write("picture.png", b"\x89\xff")
    assert project.run("check_hygiene.py") == (0, "")


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("x = 1\ny = '/home" + "/somebody/file'\n", "a.py:2: a path of one machine"),
        ("see /work" + "/shared\n", "a.py:1: a path of one machine"),
        ("see (/root" + "/x)\n", "a.py:1: a path of one machine"),
        ("see /Users" + "/me/x\n", "a.py:1: a path of one machine"),
        ("\n\nhttps://" + "PyPI" + ".org/simple\n", "a.py:3: a package registry's host"),
        ("https://registry." + "npmjs.com\n", "a.py:1: a package registry's host"),
        ("files.python" + "hosted.org\n", "a.py:1: a package registry's host"),
        ("deb.debian" + ".org\n", "a.py:1: a package registry's host"),
        ("caf\u00e9\n", "a.py:1: text that is not ASCII"),
    ],
)
def test_each_forbidden_thing_is_found(project: Project, text: str, finding: str) -> None:
    project.write("a.py", text)
    status, output = project.run("check_hygiene.py")
    assert status == 1
    assert finding in output
    assert len(output.splitlines()) == 1


def test_files_that_git_ignores_are_not_the_projects(project: Project) -> None:
    project.write(".gitignore", "/build/\n")
    project.write("build/a.py", "caf\u00e9\n")
    assert project.run("check_hygiene.py")[0] == 0


# ----- the project's files ------------------------------------------------------------------------


def test_files_of_each_formatter(project: Project) -> None:
    for name in ("a.cpp", "b.h", "c.hpp", "d.cuh", "e.metal", "f.py", "g.pyi", "h.txt"):
        project.write(f"src/{name}", "")
    project.write("tests/metal/stubs/theirs.h", "")
    deleted = project.write("src/deleted.cpp", "")
    subprocess.run(["git", "add", "."], cwd=project.root, check=True)
    deleted.unlink()
    cpp = project.run("project_files.py", "cpp")[1].split()
    assert sorted(cpp) == [f"src/{name}" for name in ("a.cpp", "b.h", "c.hpp", "d.cuh", "e.metal")]
    python = [
        path for path in project.run("project_files.py", "python")[1].split() if "src" in path
    ]
    assert sorted(python) == ["src/f.py", "src/g.pyi"]


def test_sizes_by_area_and_long_files(project: Project) -> None:
    project.write("csrc/cpu/a.cpp", "x\n" * 601)
    project.write("csrc/cpu/fast/b.h", "x\n" * 9)
    project.write("csrc/c.cmake", "x\n" * 600)
    project.write("top.py", "x\n" * 4)
    project.write("notes.md", "x\n" * 5000)
    status, output = project.run("code_size.py")
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.split()}
    assert status == 0
    assert rows["csrc/cpu"] == ["2", "610", "601"]
    assert rows["csrc"] == ["1", "600", "600"]
    assert rows["."] == ["1", "4", "4"]
    assert output.count("past 600 lines") == 1
    assert "past 600 lines: csrc/cpu/a.cpp (601)" in output
    total = sum(int(row[1]) for name, row in rows.items() if name not in ("area", "total", "past"))
    assert rows["total"][1] == str(total)


# ----- workflows ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", ""),
        ("0123456789012345678901234567890123456789", "v4", "not pinned to a commit"),
        ("    timeout-minutes: 5\n", "", "build: no time limit"),
        ("    runs-on: x\n", "", "build: no runner or no steps"),
        ("tools/lint.sh", "tools/none.sh", "build: tools/none.sh is not there"),
        ("on: push", "off: push", "no events"),
        ("- run:", "- run: x\n        uses: o/a@v1\n      - run:", "either uses or run"),
    ],
)
def test_workflows(project: Project, old: str, new: str, problem: str) -> None:
    pytest.importorskip("yaml")
    project.write(
        ".github/workflows/a.yml", GOOD_WORKFLOW.replace(old, new) if old else GOOD_WORKFLOW
    )
    status, output = project.run("check_workflows.py")
    assert status == (1 if problem else 0)
    assert problem in output


def test_no_workflow_at_all_is_a_problem(project: Project) -> None:
    pytest.importorskip("yaml")
    assert project.run("check_workflows.py")[0] == 1


# ----- shaders ------------------------------------------------------------------------------------


def shaders(project: Project) -> list[str]:
    project.write("s/common.h", "#pragma once\nint common;\n")
    project.write("s/middle.h", '#include "common.h"\nint middle;\n')
    project.write("s/b.metal", '#include <metal_stdlib>\n#include "middle.h"\nint b;\n')
    project.write("s/a.metal", '  #  include "common.h"\nint a;\n')
    return ["s/b.metal", "s/a.metal"]


def test_flattened_shaders_hold_each_header_once_in_order_of_name(project: Project) -> None:
    status, output = project.run(
        "flatten_shaders.py", *shaders(project), "--output", "o/flat.metal"
    )
    assert (status, output) == (0, "")
    assert (project.root / "o" / "flat.metal").read_text().splitlines() == [
        '#line 1 "a.metal"',
        '#line 1 "common.h"',
        "",
        "int common;",
        '#line 2 "a.metal"',
        "int a;",
        '#line 1 "b.metal"',
        "#include <metal_stdlib>",
        '#line 1 "middle.h"',
        '#line 2 "middle.h"',
        "int middle;",
        '#line 3 "b.metal"',
        "int b;",
    ]


def test_the_embedding_file_and_what_verifies_a_binary(project: Project) -> None:
    names = shaders(project)
    arguments = [*names, "--output", "flat.metal", "--cpp", "embedded.cpp"]
    assert project.run("flatten_shaders.py", *arguments)[0] == 0
    text = (project.root / "flat.metal").read_text()
    digest = hashlib.sha256(text.encode()).hexdigest()
    embedded = (project.root / "embedded.cpp").read_text()
    assert f'R"metal_sdpa_msl({text})metal_sdpa_msl"' in embedded
    assert f'kEmbeddedShaderSha256 = "{digest}"' in embedded

    def verified(content: bytes) -> tuple[int, str]:
        project.write("binary", content)
        return project.run("flatten_shaders.py", *names, "--verify", "binary")

    both = b"\1" + text.encode() + b"\0" + digest.encode() + b"\0"
    assert verified(both)[0] == 0
    assert verified(both.replace(b"int b;", b"int B;"))[0] == 1
    status, output = verified(text.encode() + b"\0")
    assert status == 1
    assert digest in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('#include "none.h"\n', "a.metal:1: there is no none.h"),
        ("caf\u00e9\n", "ascii"),
        (")metal_sdpa_msl\n", "ends the embedded literal"),
    ],
)
def test_shaders_that_cannot_be_flattened(project: Project, text: str, message: str) -> None:
    project.write("s/a.metal", text)
    status, output = project.run("flatten_shaders.py", "s/a.metal", "--output", "o")
    assert status == 1
    assert message in output
    assert not (project.root / "o").exists()


# ----- stages of scripts --------------------------------------------------------------------------


def test_a_failed_stage_fails_the_script_after_all_others_ran(project: Project) -> None:
    script = """
    fails() { echo one; false; echo two; }
    stage "first" fails
    stage "second" echo three
    finish_stages
    """
    status, output = project.shell(script)
    assert status == 1
    assert "one\n" in output
    assert "two\n" not in output
    assert "three\n" in output
    assert "first: FAILED (1)" in output
    assert "second: ok" in output
    assert "1 of 2 stages failed" in output


def test_stages_that_pass(project: Project) -> None:
    status, output = project.shell('stage "only" true\nfinish_stages')
    assert status == 0
    assert "only: ok" in output
    assert "failed" not in output


def test_dying_says_why_and_fails(project: Project) -> None:
    assert project.shell('die "a reason" "another"; echo no') == (1, "a reason\nanother\n")


def test_a_python_that_is_too_old_is_not_taken(project: Project) -> None:
    old = project.write("old", "#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    status, output = project.shell(f"METAL_SDPA_PYTHON={old} find_python")
    assert status == 0
    assert str(old) not in output
