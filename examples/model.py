"""A small decoder-only transformer in NumPy: RMSNorm, rotary positions, grouped-query attention,
SwiGLU. Attention itself is left to an object with an `attend` method (attention.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model; train.py writes it into the weights file."""

    vocab_size: int
    context: int  # positions that the model was trained on
    n_layers: int
    dim: int  # width between the blocks
    n_heads: int  # query heads
    n_kv_heads: int  # query head h reads KV head h // (n_heads // n_kv_heads)
    head_dim: int
    hidden_dim: int  # width inside the SwiGLU
    rope_theta: float
    norm_eps: float

    @property
    def scale(self) -> float:
        """The factor of the attention scores, as the f32 number that the kernels take."""
        return float(np.float32(self.head_dim**-0.5))


class Attention(Protocol):
    def attend(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Adds the new keys and values to the layer's cache, then attends causally to all of it.

        q f32 [n_heads, L, head_dim], k and v f32 [n_kv_heads, L, head_dim], L new tokens;
        returns f32 [n_heads, L, head_dim].
        """


class Transformer:
    """The model's own arithmetic, in f32."""

    def __init__(self, config: ModelConfig, weights: dict[str, np.ndarray]) -> None:
        self.config = config
        self._weights = weights
        self._cos, self._sin = rope_tables(config)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """By the names of train.py."""
        return self._weights

    @property
    def n_parameters(self) -> int:
        return sum(weight.size for weight in self._weights.values())

    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], attention: Attention
    ) -> np.ndarray:
        """Runs new tokens, each at its own position; returns hidden states f32 [L, dim]."""
        turns = np.asarray(positions)
        cos, sin = self._cos[turns], self._sin[turns]
        x = self._weights["embedding.weight"][list(tokens)]
        for layer in range(self.config.n_layers):
            x = x + self._attention_block(layer, x, cos, sin, attention)
            x = x + self._mlp_block(layer, x)
        return x

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Scores of the next token after hidden state [dim] or states [L, dim]."""
        x = rms_norm(hidden, self._weights["final_norm"], self.config.norm_eps)
        return x @ self._weights["embedding.weight"].T

    def _attention_block(
        self, layer: int, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, attention: Attention
    ) -> np.ndarray:
        x = rms_norm(x, self._weight(layer, "attention_norm"), self.config.norm_eps)
        q = rotate(self._heads(x @ self._weight(layer, "wq.weight").T), cos, sin)
        k = rotate(self._heads(x @ self._weight(layer, "wk.weight").T), cos, sin)
        v = self._heads(x @ self._weight(layer, "wv.weight").T)
        out = attention.attend(layer, q, k, v)
        return out.transpose(1, 0, 2).reshape(len(x), -1) @ self._weight(layer, "wo.weight").T

    def _mlp_block(self, layer: int, x: np.ndarray) -> np.ndarray:
        x = rms_norm(x, self._weight(layer, "mlp_norm"), self.config.norm_eps)
        gate = x @ self._weight(layer, "w_gate.weight").T
        up = x @ self._weight(layer, "w_up.weight").T
        return (silu(gate) * up) @ self._weight(layer, "w_down.weight").T

    def _heads(self, x: np.ndarray) -> np.ndarray:
        """[L, H * head_dim] as [H, L, head_dim]."""
        return x.reshape(len(x), -1, self.config.head_dim).transpose(1, 0, 2)

    def _weight(self, layer: int, name: str) -> np.ndarray:
        return self._weights[f"layers.{layer}.{name}"]


# --- the pieces ----------------------------------------------------------------------------------


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(-x) is infinite for very negative x, and 0 is right
        return x / (1 + np.exp(-x))


def rope_tables(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, f32 [context, head_dim / 2], of the rotary position embedding."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** -(np.arange(half) / half)
    angles = np.arange(config.context)[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turns each pair (x[d], x[d + D / 2]) of x [H, L, D] by the angle of its position."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


# --- the weights file ----------------------------------------------------------------------------


def load_model(path: Path) -> tuple[Transformer, Tokenizer, dict[str, str]]:
    """The model, its tokenizer, and what train.py noted about the training.

    ValueError where the file is not one of train.py's.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            notes = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = ModelConfig(**json.loads(notes.pop("config")))
        merges = tensors.pop("tokenizer.merges")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a weights file of train.py: {error}") from error
    weights = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return Transformer(config, weights), Tokenizer(merges), notes
