"""KernelRegistry: names, libraries, the cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import metal_sdpa
from metal_sdpa import Device, KernelRegistry

SOURCE = """
#include <metal_stdlib>
kernel void double_it(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  x[i] = x[i] * 2.0f;
}
"""


@pytest.mark.parametrize("name", ["sdpa", "sdpa_f16", "sdpa_bf16"])
def test_every_registry_has_the_attention_kernels(device: Device, name: str) -> None:
    registry = KernelRegistry(device)
    assert registry.get_pipeline(name) is not None
    metal_sdpa.register_sdpa(registry)  # once more is harmless
    assert registry.get_pipeline(name) is not None


@pytest.mark.parametrize("name", ["sdpa_merge", "sdpa_merge_bf16"])
def test_internal_kernels_are_not_given(device: Device, name: str) -> None:
    registry = KernelRegistry(device)
    for library in (None, "metal_sdpa"):
        with pytest.raises(metal_sdpa.KernelNotFound, match=f"{name}.*is internal"):
            registry.get_pipeline(name, library=library)


def test_unknown_names(device: Device) -> None:
    registry = KernelRegistry(device)
    with pytest.raises(metal_sdpa.KernelNotFound, match='get_pipeline: function: "no_such"'):
        registry.get_pipeline("no_such")
    with pytest.raises(metal_sdpa.KernelNotFound, match='get_pipeline: library: "nowhere"'):
        registry.get_pipeline("sdpa", library="nowhere")


def test_a_kernel_with_msl_only_is_not_found_on_the_cpu_and_says_why() -> None:
    registry = KernelRegistry(Device("cpu"))
    registry.register_source("mine", SOURCE)
    with pytest.raises(metal_sdpa.KernelNotFound, match=r'double_it.*cpu.*"mine".*MSL'):
        registry.get_pipeline("double_it")


@pytest.mark.parametrize(("library", "source"), [("", SOURCE), ("mine", "")])
def test_sources_need_a_name_and_a_text(device: Device, library: str, source: str) -> None:
    with pytest.raises(metal_sdpa.InvalidArgument, match="register_source"):
        KernelRegistry(device).register_source(library, source)


def test_pipelines_are_safe_from_any_thread(device: Device) -> None:
    registry = KernelRegistry(device)
    names = ["sdpa", "sdpa_f16", "sdpa_bf16"] * 25
    with ThreadPoolExecutor(8) as pool:
        pipelines = list(pool.map(registry.get_pipeline, names))
    assert all(pipeline is not None for pipeline in pipelines)
