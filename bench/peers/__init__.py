"""The libraries that are measured."""

from __future__ import annotations

from importlib import import_module

from .base import Bound, Peer, UnsupportedCaseError

# Name on the command line: module and class. Ours first, then the quickest to bind.
PEERS = {
    "pytorch": ("pytorch", "PyTorch"),
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "openvino": ("openvino", "OpenVino"),
    "ggml": ("ggml", "Ggml"),
    "mlx": ("mlx", "Mlx"),
    "flex": ("flex", "Flex"),
}

__all__ = ["PEERS", "Bound", "Peer", "UnsupportedCaseError", "load_peer", "load_peers"]


def load_peer(module: str, cls: str, threads: int) -> Peer:
    return getattr(import_module(f".{module}", __name__), cls)(threads)


def load_peers(names: list[str], threads: int) -> tuple[list[Peer], dict[str, str]]:
    """The installed ones of `names`, and why each of the others is absent."""
    peers: list[Peer] = []
    absent: dict[str, str] = {}
    for name in names:
        try:
            peers.append(load_peer(*PEERS[name], threads))
        except (ImportError, OSError, AttributeError) as error:
            absent[name] = f"{type(error).__name__}: {error}"
    return peers, absent
