#!/usr/bin/env python3
"""Checks every shader for what Apple's compiler takes and this machine's would not notice.

* Types: the shader as C++14, extensions as errors, with real address spaces, each template as the
  types that it is instantiated with.
* Lint: what Metal Shading Language forbids (RULES below).
* Memory: what a dispatch of each kernel gets as threadgroup memory is within 32 KB.

Every rule is tried first on an example that breaks it and on one that only looks like it: a rule
that does not fire is a failure. The exit status is 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHADERS = ROOT / "shaders"
EXAMPLES = Path(__file__).resolve().parent / "shader_examples"
BUILD = ROOT / "build" / "software-metal"
COMPILER = os.environ.get("SOFTWARE_METAL_CXX", "clang++-19")

MAX_THREADGROUP_BYTES = 32768
MAX_BUFFER_INDEX = 30  # Metal has 31 buffer arguments

TYPECHECK_FLAGS = (
    *("-x", "c++", "-std=c++14", "-fsyntax-only", "-nostdinc", "-nostdinc++", "-ferror-limit=0"),
    *("-Wno-everything", "-Werror=c++17-extensions", "-Werror=c++20-extensions"),
    *("-Werror=c++2b-extensions", "-Werror=vla-extension", "-Werror=gnu", "-Wno-gnu-line-marker"),
    "-Werror=microsoft",
)

STANDARD_HEADERS = re.compile(r"#\s*include\s*<(?!metal_)([^>]+)>")


# --- the lint ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """Something that Metal Shading Language forbids, and where."""

    line: int
    rule: str
    text: str


# A word or a construct, by rule. The text has no comments and no string literals any more.
RULES = {
    "double": re.compile(r"\b(?:long\s+double|double[234]?)\b"),
    "lambda": re.compile(
        r"(?:[=(,{;]|\breturn\b)\s*\[[^\[\]]*\]\s*(?:\([^()]*\)\s*(?:mutable\s*)?(?:->[^{]*)?)?\{"
    ),
    "virtual": re.compile(r"\bvirtual\b"),
    "new or delete": re.compile(r"\bnew\b|(?<!=)(?<!= )\bdelete\b"),
    "exception": re.compile(r"\b(?:throw|try|catch)\b"),
    "run-time type": re.compile(r"\b(?:dynamic_cast|typeid)\b"),
    "goto": re.compile(r"\bgoto\b"),
    "function pointer": re.compile(
        r"\(\s*(?:\w+\s*::\s*)?\*\s*(?:const\s+)?\w*\s*(?:\[\w*\]\s*)?\)\s*\("
    ),
    "function reference": re.compile(r"\(\s*&\s*\w+\s*\)\s*\("),
    "thread_local": re.compile(r"\bthread_local\b"),
    "standard library": re.compile(r"\bstd\s*::"),
    "inline assembly": re.compile(r"\b(?:asm|__asm__)\b"),
    "variadic function": re.compile(r",\s*\.\.\.\s*\)\s*\{"),
}
BUFFER_INDEX = re.compile(r"\[\[\s*buffer\s*\(\s*(\w+)\s*\)")
DEFINITION = re.compile(r"^\s*#\s*define\s+(\w+)\s+(\d+)\s*$", re.MULTILINE)
# A declaration at program scope that has no parameter list: `float total = 0;`
GLOBAL = re.compile(
    r"^(?!\s*(?:using|typedef|struct|class|enum|union|namespace|template|friend|static_assert|"
    r"SDPA_\w+|extern)\b)(?P<head>[\w:<>,\s*&]+?[\s*&])(?P<name>\w+)\s*"
    r"(?:\[[^;=]*\]\s*)*(?:\[\[[^;]*\]\]\s*)?(?:=[^;]*|\{[^;]*\})?;$"
)
FUNCTION = re.compile(r"(?P<name>\w+)\s*\([^;{}]*\)\s*(?:const\s*)?$")
DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.MULTILINE)
CALL = re.compile(r"(?<![.:\w])(\w+)\s*(?:<[^;<>(){}]*>\s*)?\(")
CONDITIONAL = re.compile(r"[ \t]*#[ \t]*(ifdef|ifndef|if|else|elif|endif)\b[ \t]*(\w*)")


def blank(match: re.Match[str]) -> str:
    """White space of the same lines."""
    return re.sub(r"[^\n]", " ", match.group())


def without_comments(text: str) -> str:
    """The text with comments and string literals blanked; lines stay where they are."""

    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.DOTALL)


def as_metal_sees(source: str) -> str:
    """The source with what stands behind `#ifdef __METAL_VERSION__ ... #else` blanked: shared
    headers have parts for the host alone."""
    lines = []
    open_ifs: list[bool | None] = []  # whether Metal takes this part; None: not its question
    for line in source.split("\n"):
        match = CONDITIONAL.match(line)
        word = match.group(1) if match else ""
        if match and word.startswith("if"):
            asks = match.group(2) == "__METAL_VERSION__"
            open_ifs.append(word == "ifdef" if asks else None)
        elif word == "else" and open_ifs[-1] is not None:
            open_ifs[-1] = not open_ifs[-1]
        elif word == "endif":
            open_ifs.pop()
        lines.append("" if False in open_ifs else line)
    return "\n".join(lines)


def line_at(text: str, offset: int) -> int:
    """Line number of an offset, from 1."""
    return text.count("\n", 0, offset) + 1


def lint(source: str) -> list[Finding]:
    """What one file holds that Metal forbids; macros and includes are not expanded."""
    source = as_metal_sees(source)
    findings = [
        Finding(line_at(source, match.start()), "standard header", match.group(1))
        for match in STANDARD_HEADERS.finditer(source)
    ]
    text = without_comments(source)
    for rule, pattern in RULES.items():
        for match in pattern.finditer(text):
            findings.append(Finding(line_at(text, match.start()), rule, match.group().strip()))
    findings += high_buffer_indices(text)
    blocks = list(program_scope(DIRECTIVE.sub(blank, text)))
    findings += mutable_globals(blocks)
    findings += recursion(blocks)
    return sorted(findings, key=lambda finding: finding.line)


def high_buffer_indices(text: str) -> list[Finding]:
    """Buffer arguments over the last index, as numbers or as names of #defines in the file."""
    values = {name: int(value) for name, value in DEFINITION.findall(text)}
    findings = []
    for match in BUFFER_INDEX.finditer(text):
        word = match.group(1)
        index = int(word) if word.isdigit() else values.get(word, 0)
        if index > MAX_BUFFER_INDEX:
            findings.append(Finding(line_at(text, match.start()), "buffer index", match.group()))
    return findings


@dataclass(frozen=True)
class Block:
    """One declaration at program or namespace scope, and the body behind it where it has one."""

    line: int
    head: str
    body: str


def program_scope(text: str) -> Iterator[Block]:
    """Declarations and definitions outside of functions and structs."""
    at = begin = 0
    while at < len(text):
        if text[at] == ";":
            yield Block(first_line(text, begin), text[begin : at + 1].strip(), "")
            begin = at + 1
        elif text[at] == "}":  # of a namespace
            begin = at + 1
        elif text[at] == "{":
            head = text[begin:at].strip()
            if re.search(r"(?:^|\s)namespace(?:\s+[\w:]+)?$", head):
                begin = at + 1
            else:
                end = closing(text, at)
                if "=" not in head and not re.match(r"(?:struct|class|enum|union)\b", head):
                    yield Block(first_line(text, begin), head, text[at:end])
                    begin = end
                at = end - 1
        at += 1


def first_line(text: str, begin: int) -> int:
    """Line of the first character at or behind `begin` that is not white space."""
    match = re.compile(r"\S").search(text, begin)
    return line_at(text, match.start() if match else begin)


def closing(text: str, at: int) -> int:
    """Offset behind the brace that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    return len(text)


def mutable_globals(blocks: list[Block]) -> list[Finding]:
    """Variables at program scope outside of the constant address space."""
    findings = []
    for block in blocks:
        statement = " ".join(block.head.split())
        match = GLOBAL.match(statement) if not block.body else None
        if match and not re.search(r"\bconstant\b|\bconstexpr\b", match.group("head")):
            findings.append(Finding(block.line, "mutable global", statement))
    return findings


def recursion(blocks: list[Block]) -> list[Finding]:
    """Functions that reach themselves. Overloads are told apart only so far: where a name has
    several, a call in one of them is taken for a call of the others."""
    functions = [
        (match.group("name"), block)
        for block in blocks
        if block.body and (match := FUNCTION.search(block.head))
    ]
    by_name: dict[str, set[int]] = {}
    for i, (name, _) in enumerate(functions):
        by_name.setdefault(name, set()).add(i)
    calls: list[set[int]] = []
    for i, (_, block) in enumerate(functions):
        called: set[int] = set()
        for name in CALL.findall(block.body):
            overloads = by_name.get(name, set())
            called |= overloads if len(overloads) < 2 else overloads - {i}
        calls.append(called)
    return [
        Finding(block.line, "recursion", name)
        for i, (name, block) in enumerate(functions)
        if reaches(i, calls)
    ]


def reaches(function: int, calls: list[set[int]]) -> bool:
    """Whether a function reaches itself through calls."""
    seen: set[int] = set()
    work = set(calls[function])
    while work:
        called = work.pop()
        if called == function:
            return True
        if called not in seen:
            seen.add(called)
            work |= calls[called]
    return False


# --- types ---------------------------------------------------------------------------------------


def build_msl_tool() -> Path:
    """The tool in the build of the preset software-metal, made where it is missing or old."""
    configure = ["cmake", "--preset", "software-metal", "--log-level=WARNING"]
    run([*configure, f"-DPython_EXECUTABLE={sys.executable}"])
    run(["cmake", "--build", str(BUILD), "--target", "msl_tool"])
    return BUILD / "tests" / "metal" / "msl_tool"


def run(command: list[str]) -> None:
    """Runs a command of the build; its output is shown where it fails."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"check_shaders: {' '.join(command)}\n{result.stdout}{result.stderr}")


def type_errors(tool: Path, shader: Path) -> str:
    """What the compiler says about a shader; empty: nothing."""
    command = [str(tool), "typecheck", "-I", str(SHADERS), str(shader)]
    form = subprocess.run(command, capture_output=True, text=True, check=False)
    if form.returncode != 0:
        return form.stderr or "msl_tool failed"
    with tempfile.NamedTemporaryFile("w", suffix=".cpp") as file:
        file.write(form.stdout)
        file.flush()
        include = f"-I{ROOT / 'tests' / 'metal' / 'msl'}"
        command = [COMPILER, *TYPECHECK_FLAGS, include, file.name]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stderr if result.returncode != 0 else ""


# --- threadgroup memory --------------------------------------------------------------------------

DECLARED = re.compile(r"^\s*threadgroup\s+(?!\w[\w:<>, ]*[*&])[\w:<>, ]+?\s\w+\s*\[", re.MULTILINE)

# The sizes that the host binds, from the headers that it takes them from.
MEMORY_PROGRAM = """
#include "{shaders}/sdpa_tiles.h"
template <bool prefill, int bytes, int dim>
struct Check {{
  // The fewest row teams leave the most states there.
  static constexpr int bytes_used = sdpa_tile_threadgroup_bytes(
      prefill, bytes, dim, sdpa_tile_row_teams(prefill, bytes, dim, 1));
  static_assert(bytes_used <= {limit}, "threadgroup memory over the limit");
  static_assert(bytes_used % 16 == 0, "not a multiple of 16");
  static_assert(sdpa_tile_simdgroups(prefill, bytes, dim) * 32 <= 1024, "too many threads");
}};
template <int dim>
struct All {{
  Check<false, 2, dim> a;
  Check<false, 4, dim> b;
  Check<true, 2, dim> c;
  Check<true, 4, dim> d;
  All<dim - 1> below;
}};
template <>
struct All<0> {{}};
All<SDPA_TILE_MAX_HEAD_DIM> all;
"""


def memory_errors(sources: dict[Path, str], limit: int = MAX_THREADGROUP_BYTES) -> list[str]:
    """Kernels whose threadgroup memory is over the limit or escapes this check."""
    problems = []
    for path, source in sources.items():
        for match in DECLARED.finditer(without_comments(source)):
            line = line_at(source, match.end())
            problems.append(f"{path.name}:{line}: threadgroup memory that no host sizes")
    program = MEMORY_PROGRAM.format(shaders=SHADERS, limit=limit)
    command = [COMPILER, "-x", "c++", "-std=c++14", "-fsyntax-only", "-ftemplate-depth=2048", "-"]
    result = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        problems.append(f"sdpa_tiles.h: {result.stderr}")
    return problems


# --- the checks themselves -----------------------------------------------------------------------

EXPECT = re.compile(r"// expect: (.+)$", re.MULTILINE)


def example_problems(tool: Path) -> list[str]:
    """Where a rule is silent on an example that breaks it, or speaks on one that does not.

    The examples are files: `// expect: RULE` at a line that a lint rule must name, `// expect: type
    error TEXT` where the type-check must fail with that text; a file without either must pass.
    """
    problems = []
    fired: set[str] = set()
    for path in sorted(EXAMPLES.glob("*.metal")):
        source = path.read_text(encoding="ascii")
        expected = {
            (line_at(source, match.start()), match.group(1))
            for match in EXPECT.finditer(source)
            if not match.group(1).startswith("type error")
        }
        found = {(finding.line, finding.rule) for finding in lint(source)}
        fired |= {rule for _, rule in expected & found}
        for line, rule in sorted(expected ^ found):
            state = "not found" if (line, rule) in expected else "found, but not there"
            problems.append(f"{path.name}:{line}: {rule}: {state}")
        problems += typecheck_problems(tool, path, source, bool(expected))
    missing = set(RULES) | {"standard header", "buffer index", "mutable global", "recursion"}
    problems += [f"no example breaks the rule: {rule}" for rule in sorted(missing - fired)]
    if not memory_errors({}, limit=1024):
        problems.append("the check of threadgroup memory does not notice a limit of 1 KB")
    declared = "kernel void k() {\n  threadgroup float tile[9000];\n}\n"
    if len(memory_errors({Path("k"): declared})) != 1:
        problems.append("the check of threadgroup memory does not notice an array in a kernel")
    return problems


def typecheck_problems(tool: Path, path: Path, source: str, linted: bool) -> list[str]:
    """The same for the type-check."""
    texts = [text[11:] for text in EXPECT.findall(source) if text.startswith("type error")]
    if linted and not texts:
        return []  # an example for the lint alone
    errors = type_errors(tool, path)
    if not texts:
        return [f"{path.name}: refused:\n{errors}"] if errors else []
    return [
        f"{path.name}: the type-check does not say: {text.strip()}\n{errors}"
        for text in texts
        if text.strip() not in errors
    ]


def main(arguments: list[str]) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--msl-tool", type=Path, help="the tool, built already")
    options = parser.parse_args(arguments)
    tool = options.msl_tool or build_msl_tool()
    problems = [f"examples: {problem}" for problem in example_problems(tool)]
    shaders = sorted(SHADERS.glob("*.metal"))
    sources = {
        path: path.read_text(encoding="ascii") for path in [*shaders, *sorted(SHADERS.glob("*.h"))]
    }
    for path, source in sources.items():
        problems += [f"{path.name}:{f.line}: {f.rule}: {f.text}" for f in lint(source)]
    for shader in shaders:
        errors = type_errors(tool, shader)
        problems += [f"{shader.name}: type-check:\n{errors}"] if errors else []
    problems += memory_errors(sources)
    for problem in problems:
        print(f"check_shaders: {problem}", file=sys.stderr)
    print(f"{len(shaders)} shaders, {len(sources)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
