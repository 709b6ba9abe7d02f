"""diffusers, litgpt, Keras and Flax with attention sent here, as docs/engines/others.md has it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import metal_sdpa

# f32 arithmetic through a few layers whose numbers are about 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def assert_close_to_float64(model: torch.nn.Module, run: Callable[[Any], Any]) -> None:
    """With attention sent here, against the model in float64 with torch's own."""
    from metal_sdpa.integrations import torch as ours

    ours.reset_stats()
    with ours.enabled(), torch.no_grad():
        got = run(model)
    assert ours.stats().taken > 0
    assert not ours.stats().fell_back
    with torch.no_grad():
        wanted = run(copy.deepcopy(model).double())
    assert wanted.dtype == torch.float64
    assert wanted.std() > 0.05
    torch.testing.assert_close(got.double(), wanted, **CLOSE)


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights of a size that keeps numbers about 1, so that attention matters."""
    torch.manual_seed(22)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1.2 * weight[0].numel() ** -0.5)
    return model.eval()


def cast(model: torch.nn.Module, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.to(next(model.parameters()).dtype) for x in tensors]


# --- diffusers -----------------------------------------------------------------------------------


def test_diffusers_transformer() -> None:
    """Through its attention dispatcher, whose native backend asks torch."""
    from diffusers import FluxTransformer2DModel

    model = spread(
        FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
        )
    )
    hidden, text, pooled = torch.randn(2, 12, 4), torch.randn(2, 7, 32), torch.randn(2, 32)
    ids = {"img_ids": torch.randn(12, 3).abs(), "txt_ids": torch.zeros(7, 3)}

    def run(model: Any) -> Any:
        h, t, p, at = cast(model, hidden, text, pooled, torch.tensor([0.3, 0.7]))
        return model(h, encoder_hidden_states=t, pooled_projections=p, timestep=at, **ids).sample

    assert_close_to_float64(model, run)


def test_diffusers_unet_with_a_mask() -> None:
    from diffusers import UNet2DConditionModel

    model = spread(
        UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    )
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 9, 24)
    mask = torch.arange(9) < torch.tensor([[9], [4]])

    def run(model: Any) -> Any:
        x, t = cast(model, sample, text)
        return model(x, 10, encoder_hidden_states=t, encoder_attention_mask=mask).sample

    assert_close_to_float64(model, run)


# --- litgpt --------------------------------------------------------------------------------------


def litgpt_model(**changes: Any) -> Any:
    from litgpt import GPT, Config

    config = {
        "block_size": 64,
        "vocab_size": 101,
        "padded_vocab_size": 101,
        "n_layer": 2,
        "n_head": 4,
        "n_query_groups": 2,
        "n_embd": 64,
        "rotary_percentage": 1.0,
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
        "intermediate_size": 96,
        "bias": False,
        "parallel_residual": False,
    }
    model = spread(GPT(Config(**config | changes)))
    torch.nn.init.normal_(model.transformer.wte.weight)
    return model


def test_litgpt_prompt() -> None:
    tokens = torch.randint(0, 101, (2, 20), generator=torch.Generator().manual_seed(0))

    def run(model: Any) -> Any:
        for name in ("cos", "sin"):
            setattr(model, name, getattr(model, name).to(model.lm_head.weight.dtype))
        return model(tokens)

    assert_close_to_float64(litgpt_model(), run)


@pytest.mark.parametrize("window", [None, 8])
def test_litgpt_generates_the_same_tokens(window: int | None) -> None:
    """With its cache: boolean masks over the cache's whole capacity."""
    from litgpt.generate.base import generate

    from metal_sdpa.integrations import torch as ours

    changes = {} if window is None else {"sliding_window_size": window}
    model = litgpt_model(**changes)
    prompt = torch.randint(0, 101, (12,), generator=torch.Generator().manual_seed(1))

    def run() -> list[int]:
        with torch.no_grad():
            model.max_seq_length = 32
            model.set_kv_cache(batch_size=1)
            return generate(model, prompt, 32, top_k=1).tolist()

    wanted = run()
    ours.reset_stats()
    with ours.enabled():
        assert run() == wanted
    assert ours.stats().taken >= 2 * 20
    assert not ours.stats().fell_back
    assert len(set(wanted[12:])) > 4


# --- Keras ---------------------------------------------------------------------------------------

KERAS = """
import os, sys
import numpy as np
import keras
from metal_sdpa.integrations import {backend} as ours

rng = np.random.default_rng(0)
x, y = (rng.standard_normal((2, n, 32)).astype("float32") for n in (7, 9))
padding = np.arange(9) < np.array([[9], [4]])
keras.utils.set_random_seed(0)
layers = {{
    "heads": keras.layers.MultiHeadAttention(4, 8, flash_attention=False),
    "groups": keras.layers.GroupQueryAttention(8, 4, 2, flash_attention=False),
}}
calls = [
    dict(query=x, value=y),
    dict(query=x, value=y, value_mask=padding),
    dict(query=y, value=y, use_causal_mask=True),
]
for name, layer in layers.items():
    for call in calls:
        wanted = np.asarray(layer(**call))
        ours.reset_stats()
        with ours.enabled():
            got = np.asarray(layer(**call))
            predicted = keras.ops.convert_to_numpy(layer(**call))
        stats = ours.stats()
        assert stats.taken == 2 and not stats.fell_back, (name, list(call), stats)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(predicted, got)
inputs = keras.Input((9, 32))
model = keras.Model(inputs, keras.layers.MultiHeadAttention(4, 8)(inputs, inputs))
wanted = model.predict(y, verbose=0)
model.predict_function = None  # what was compiled keeps what it was compiled with
ours.reset_stats()
with ours.enabled():
    got = model.predict(y, verbose=0)
assert ours.stats().taken >= 1, ours.stats()
np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
print("done")
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_keras(backend: str) -> None:
    environment = os.environ | {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
    if backend == "torch":
        code = KERAS.replace("np.asarray(layer(**call))", "layer(**call).detach().numpy()")
        code = "import torch; torch.set_grad_enabled(False)\n" + code.format(backend=backend)
    else:
        code = KERAS.format(backend=backend)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("done")


# --- Flax ----------------------------------------------------------------------------------------


def flax_attention(**options: Any) -> tuple[Any, Any]:
    """The same layer with our attention and with Flax's."""
    from flax import nnx

    from metal_sdpa.integrations.jax import attention_fn

    common = {"num_heads": 4, "in_features": 32, "qkv_features": 64, "decode": False} | options
    return (
        nnx.MultiHeadAttention(**common, attention_fn=attention_fn, rngs=nnx.Rngs(0)),
        nnx.MultiHeadAttention(**common, rngs=nnx.Rngs(0)),
    )


@pytest.mark.parametrize("shape", [(2, 7, 32), (7, 32), (2, 3, 7, 32)])
def test_flax_nnx(shape: tuple[int, ...]) -> None:
    from flax import nnx

    ours, theirs = flax_attention()
    x = 2 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    # Flax's masks hold numbers, 0 for hidden.
    causal = nnx.make_causal_mask(np.ones(shape[:-1]))
    padding = (np.arange(7) < 4).reshape((1,) * len(shape) + (7,))
    for mask in (None, causal, padding, nnx.combine_masks(causal, padding)):
        got = nnx.jit(lambda layer, x, mask=mask: layer(x, mask=mask))(ours, x)
        np.testing.assert_allclose(got, theirs(x, mask=mask), **CLOSE)


def test_flax_nnx_decodes_with_a_cache() -> None:
    layers = flax_attention(decode=True)
    for layer in layers:
        layer.init_cache((2, 7, 32))
    x = np.random.default_rng(1).standard_normal((2, 7, 32)).astype(np.float32)
    for i in range(7):
        ours, theirs = (layer(x[:, i : i + 1]) for layer in layers)
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_flax_linen() -> None:
    import jax
    from flax import linen

    from metal_sdpa.integrations.jax import attention_fn

    x = np.random.default_rng(2).standard_normal((2, 7, 32)).astype(np.float32)
    theirs = linen.MultiHeadDotProductAttention(4)
    ours = linen.MultiHeadDotProductAttention(4, attention_fn=attention_fn)
    weights = theirs.init(jax.random.key(0), x)
    mask = linen.make_causal_mask(np.ones((2, 7)))
    for given in (None, mask):
        got, wanted = (layer.apply(weights, x, mask=given) for layer in (ours, theirs))
        np.testing.assert_allclose(got, wanted, **CLOSE)


def test_what_flax_cannot_have() -> None:
    from flax import nnx

    ours, _ = flax_attention(dropout_rate=0.5)
    x = np.ones((2, 7, 32), np.float32)
    with pytest.raises(metal_sdpa.Unsupported, match=r"dropout_rate: 0\.5, takes 0"):
        ours(x, deterministic=False, rngs=nnx.Rngs(0))
    assert ours(x, deterministic=True).shape == x.shape
    with pytest.raises(metal_sdpa.Unsupported, match="sow_weights"):
        ours(x, deterministic=True, sow_weights=True)
    with pytest.raises(metal_sdpa.Unsupported, match="has no gradient"):
        nnx.grad(lambda layer: layer(x, deterministic=True).sum())(ours)
