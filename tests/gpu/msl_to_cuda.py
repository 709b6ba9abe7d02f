"""Translate a shader of ours to CUDA C++ source for NVRTC.

The text stays as it is; only what CUDA spells otherwise is changed: includes are put in place,
function constants become constants, attributes go, and each `SDPA_INSTANTIATE("name", ...)` becomes
an extern "C" __global__ function of that name whose parameters are the kernel's buffers in index
order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SHIM = Path(__file__).with_name("metal_shim.cuh")
N_FUNCTION_CONSTANTS = 16

BUILT_INS = {
    "threadgroup_position_in_grid": "msl::group_position()",
    "thread_position_in_threadgroup": "msl::thread_position()",
    "thread_index_in_threadgroup": "msl::thread_index()",
    "threads_per_threadgroup": "msl::group_threads()",
    "thread_index_in_simdgroup": "msl::lane()",
    "simdgroup_index_in_threadgroup": "msl::simdgroup()",
}
ATTRIBUTE = re.compile(r"\[\[(?:[^\[\]]|\[[^\[\]]*\])*\]\]")
KERNEL = re.compile(r"template\s*<([^>]*)>\s*\[\[kernel\]\]\s*void\s+(\w+)\s*\(")
INSTANTIATE_DEFINITION = re.compile(r"^#define SDPA_INSTANTIATE\((?:[^\n]*\\\n)*[^\n]*\n", re.M)
INSTANTIATION = re.compile(r'^SDPA_INSTANTIATE\("(\w+)",\s*([^)]*)\)\s*$', re.M)


class TranslationError(Exception):
    """The shader has something that this translator does not handle."""


@dataclass(frozen=True)
class Buffer:
    """One parameter of a translated kernel: a device address, or a struct by value."""

    index: int
    by_value: bool
    type_name: str


@dataclass(frozen=True)
class Translation:
    """CUDA source of some kernels of one shader, and their parameters in order."""

    source: str
    kernels: list[str]
    buffers: list[Buffer]


@dataclass(frozen=True)
class _Kernel:
    template: str
    name: str
    begin: int
    body: int
    parameters: list[str]


def with_includes(path: Path, seen: set[Path] | None = None) -> str:
    """The file's text with each quoted include in place, once, and the <> ones dropped."""
    seen = set() if seen is None else seen
    seen.add(path.resolve())

    def include(match: re.Match[str]) -> str:
        if match[1] == "<":
            return ""
        file = path.parent / match[2]
        return "" if file.resolve() in seen else with_includes(file, seen)

    return re.sub(r'^#include ([<"])([^>"]+)[>"]$', include, path.read_text(), flags=re.M)


def host_names(path: Path) -> list[str]:
    """Names of all kernels that a shader instantiates."""
    return [match[1] for match in INSTANTIATION.finditer(path.read_text())]


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


def _closing(text: str, begin: int) -> int:
    """Index of the bracket that closes the one at text[begin]."""
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise TranslationError(f"unbalanced brackets near {text[begin : begin + 60]!r}")


def _split(text: str) -> list[str]:
    """Parts between commas that stand outside every bracket."""
    parts, depth, last = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and depth == 0:
            parts.append(text[last:i].strip())
            last = i + 1
    return [*parts, text[last:].strip()]


def _find_kernel(text: str) -> _Kernel:
    matches = list(KERNEL.finditer(text))
    if len(matches) != 1:
        raise TranslationError(f"a shader has one kernel template, found {len(matches)}")
    match = matches[0]
    close = _closing(text, match.end() - 1)
    parameters = _split(text[match.end() : close])
    return _Kernel(match[1], match[2], match.start(), close + 1, parameters)


def _template_scope(template: str, arguments: str) -> str:
    """Names the template parameters, for use in the parameter types of a wrapper."""
    lines = []
    for declaration, argument in zip(_split(template), _split(arguments), strict=True):
        kind, name = declaration.split()
        is_type = kind in ("typename", "class")
        lines.append(
            f"using {name} = {argument};" if is_type else f"constexpr {kind} {name} = {argument};"
        )
    return "\n".join(lines)


def _wrapper(
    kernel: _Kernel, host_name: str, arguments: str, bounds: str
) -> tuple[str, list[Buffer]]:
    """The __global__ function of one instantiation, and its buffers."""
    declared: list[tuple[int, str, Buffer]] = []
    call = []
    setup = ""
    for parameter in kernel.parameters:
        attributes = " ".join(ATTRIBUTE.findall(parameter))
        plain = " ".join(ATTRIBUTE.sub("", parameter).split())
        type_text, _, name = plain.rpartition(" ")
        built_in = next((code for word, code in BUILT_INS.items() if word in attributes), None)
        if built_in is not None:
            call.append(built_in)
            continue
        if "[[threadgroup(" in attributes:
            setup = "extern __shared__ __align__(16) unsigned char msl_threadgroup[];"
            call.append(f"({type_text})msl_threadgroup")
            continue
        index = re.search(r"buffer\((\d+)\)", attributes)
        if index is None:
            raise TranslationError(f"{kernel.name}: what is {parameter!r}?")
        by_value = type_text.endswith("&")
        value_type = type_text.removesuffix("&").removeprefix("constant").strip()
        code = f"const __grid_constant__ {value_type} {name}" if by_value else f"{type_text} {name}"
        buffer = Buffer(int(index[1]), by_value, value_type if by_value else "")
        declared.append((buffer.index, code, buffer))
        call.append(name)
    declared.sort(key=lambda item: item[0])
    source = f"""namespace wrap_{host_name} {{
{_template_scope(kernel.template, arguments)}
extern "C" __global__ void {bounds} {host_name}({", ".join(item[1] for item in declared)}) {{
  {setup}
  ::{kernel.name}<{arguments}>({", ".join(call)});
}}
}}
"""
    return source, [item[2] for item in declared]


def _expand_buffer_indices(text: str) -> str:
    """Replaces the SDPA_ macros inside attributes by their numbers."""
    numbers = dict(re.findall(r"^#define (SDPA_\w+) (\d+)\b", text, re.M))
    return ATTRIBUTE.sub(
        lambda match: re.sub(r"\bSDPA_\w+\b", lambda m: numbers.get(m[0], m[0]), match[0]), text
    )


def translate(
    path: Path,
    names: list[str] | None = None,
    constants: dict[int, bool] | None = None,
    bounds: str = "",
) -> Translation:
    """CUDA source of the named kernels (default: all) of a shader with these function constants.

    bounds: what stands before each kernel's name, such as __launch_bounds__(128).
    """
    text = _expand_buffer_indices(_without_comments(with_includes(path)))
    instantiations = {m[1]: m[2] for m in INSTANTIATION.finditer(text)}
    names = list(instantiations) if names is None else names
    text = INSTANTIATION.sub("", INSTANTIATE_DEFINITION.sub("", text))
    text = re.sub(
        r"constant bool (\w+) \[\[function_constant\((\d+)\)\]\];",
        r"constant bool \1 = MSL_FUNCTION_CONSTANT(\2);",
        text,
    )
    kernel = _find_kernel(text)
    plain = ", ".join(ATTRIBUTE.sub("", parameter) for parameter in kernel.parameters)
    signature = f"template <{kernel.template}> __forceinline__ void {kernel.name}({plain})"
    text = text[: kernel.begin] + signature + text[kernel.body :]
    text = text.replace('_Pragma("clang loop unroll(full)")', '_Pragma("unroll")')
    text = text.replace('_Pragma("clang loop unroll(disable)")', '_Pragma("unroll 1")')
    text = re.sub(r"^inline ", "__forceinline__ ", text, flags=re.M)
    buffers: list[Buffer] = []
    for name in names:
        wrapper, buffers = _wrapper(kernel, name, instantiations[name], bounds)
        text += wrapper
    defines = "".join(
        f"#define MSL_FUNCTION_CONSTANT_{i} {str(bool((constants or {}).get(i))).lower()}\n"
        for i in range(N_FUNCTION_CONSTANTS)
    )
    return Translation(defines + SHIM.read_text() + text, names, buffers)
