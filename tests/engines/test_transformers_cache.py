"""metal_sdpa.integrations.transformers.Cache does what DynamicCache of transformers does."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, Lfm2Config, LlamaConfig
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING

import metal_sdpa
import zoo
from metal_sdpa.integrations import transformers as metal

pytestmark = pytest.mark.filterwarnings("default")

HEADS, DIM, VALUE_DIM = 2, 4, 3


def config(*layer_types: str, window: int = 5) -> LlamaConfig:
    made = LlamaConfig(num_hidden_layers=len(layer_types), num_attention_heads=HEADS)
    made.layer_types = list(layer_types)
    made.sliding_window = window
    return made


CONFIGS = {
    "full": config("full_attention", "full_attention"),
    "window": config("sliding_attention", "sliding_attention"),
    "wide_window": config("sliding_attention", window=150),
    "mixed": config("full_attention", "sliding_attention", window=8),
    "lazy": None,
}


def pair(settings: Any) -> tuple[metal.Cache, DynamicCache]:
    return metal.Cache(settings), DynamicCache(config=settings)


def rows(batch: int, n: int, extent: int, generator: torch.Generator) -> torch.Tensor:
    """[B, H, n, E] as models make it: [B, n, H, E] in memory."""
    return torch.randn((batch, n, HEADS, extent), generator=generator).transpose(1, 2)


def update_both(
    caches: tuple[Any, Any], batch: int, n: int, generator: torch.Generator
) -> list[torch.Tensor]:
    returned = []
    for layer in range(2 if len(caches[1].layers) != 1 else 1):
        new = rows(batch, n, DIM, generator), rows(batch, n, VALUE_DIM, generator)
        sizes = [cache.get_mask_sizes(n, layer) for cache in caches]
        assert sizes[0] == sizes[1]
        ours, theirs = (cache.update(*new, layer) for cache in caches)
        for got, wanted in zip(ours, theirs, strict=True):
            assert torch.equal(got, wanted)
            returned.append(got)
    return returned


def assert_same(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.is_sliding == theirs.is_sliding
    assert ours.is_compileable == theirs.is_compileable
    assert ours.is_croppable == theirs.is_croppable
    assert ours.is_initialized == theirs.is_initialized
    for got, wanted in zip(ours, theirs, strict=True):
        for x, y in zip(got, wanted, strict=True):
            assert (x is None) == (y is None)
            assert x is None or (torch.equal(x, y) and x.dtype == y.dtype)


def both(caches: tuple[Any, Any], call: Callable[[Any], Any]) -> None:
    """The same call of both, or the same error."""
    errors = []
    for cache in caches:
        try:
            call(cache)
            errors.append(None)
        except (RuntimeError, ValueError) as error:
            errors.append(type(error))
    assert errors[0] is errors[1]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", range(12))
def test_random_operations(name: str, seed: int) -> None:
    generator = torch.manual_seed(seed)

    def pick(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    caches, batch = pair(CONFIGS[name]), 2
    recording = pick(True, False)
    if recording:
        for cache in caches:
            cache.activate_past_recording()
    for _ in range(60):
        match pick("update", "update", "update", "update", "crop", "crop", "beams", "rest"):
            case "update":
                update_both(caches, batch, pick(1, 1, 1, 1, 2, 7, 40, 200), generator)
            case "crop":
                n_rows = pick(0, 1, 2, 3)
                if all(cache.get_seq_length() > 8 + n_rows for cache in caches):
                    both(caches, lambda cache, n=n_rows: cache.crop(-n))
            case "beams":
                indices = pick(
                    torch.arange(batch),
                    torch.randint(batch, (batch,), generator=generator),
                    torch.randperm(batch, generator=generator),
                )
                both(caches, lambda cache, i=indices: cache.reorder_cache(i))
            case _:
                caches, batch = rarer(caches, batch, pick)
        assert_same(*caches)


def rarer(caches: tuple[Any, Any], batch: int, pick: Any) -> tuple[tuple[Any, Any], int]:
    recording = caches[0].is_recording_past(0) if len(caches[0]) else False
    match pick("repeat", "select", "reset", "deepcopy", "pickle", "save", "copy", "foreign"):
        case "repeat" if batch <= 4 and caches[0].get_seq_length():
            for cache in caches:
                cache.batch_repeat_interleave(2)
            return caches, 2 * batch
        case "select" if batch > 1 and caches[0].get_seq_length():
            for cache in caches:
                cache.batch_select_indices(torch.arange(batch - 1))
            return caches, batch - 1
        case "reset" if not recording:
            for cache in caches:
                cache.reset()
        case "deepcopy":
            return tuple(map(copy.deepcopy, caches)), batch
        case "pickle":
            return tuple(pickle.loads(pickle.dumps(cache)) for cache in caches), batch
        case "save":
            return tuple(map(saved, caches)), batch
        case "copy":
            for cache in caches:
                cache.layers = [copy.copy(layer) for layer in cache.layers]
        case "foreign":
            for cache in caches:
                for layer in cache.layers:
                    if layer.keys is not None and layer.keys.dim() == 4:
                        layer.keys = layer.keys + 1
    return caches, batch


def saved(cache: Any) -> Any:
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_grows_in_place_and_what_was_returned_stays() -> None:
    """Appending moves no row but when memory is used up, which is seldom."""
    caches, generator = pair(CONFIGS["full"]), torch.manual_seed(0)
    kept, places = [], []
    for _ in range(500):
        returned = update_both(caches, 2, 1, generator)
        kept.append((returned[0], returned[0].clone()))
        places.append(returned[0].data_ptr())
    assert all(torch.equal(view, copied) for view, copied in kept)
    assert len(set(places)) < 8
    view = caches[0].layers[0].keys
    batch_stride, head_stride, row_stride, one = view.stride()
    assert (row_stride, one) == (DIM, 1)
    assert head_stride >= 500 * DIM  # [B, H, capacity, D]
    assert batch_stride == HEADS * head_stride


def test_a_window_holds_little() -> None:
    """Whatever was appended, memory is that of the window."""
    cache, generator = metal.Cache(CONFIGS["window"]), torch.manual_seed(0)
    for n in (3, 5000, 1, 1, 300, 700) + 400 * (1,):
        cache.update(rows(1, n, DIM, generator), rows(1, n, DIM, generator), 0)
        held = cache.layers[0].keys
        assert held.untyped_storage().nbytes() <= 4 * HEADS * DIM * 400


def test_crop_is_in_place() -> None:
    caches, generator = pair(CONFIGS["full"]), torch.manual_seed(0)
    update_both(caches, 1, 20, generator)
    place = caches[0].layers[0].keys.data_ptr()
    for n in (1, 3, 7):
        for cache in caches:
            cache.crop(-n)
        update_both(caches, 1, n + 2, generator)
        assert caches[0].layers[0].keys.data_ptr() == place
        assert_same(*caches)


def test_a_copy_is_apart() -> None:
    """The rows of a copied layer and of the original do not write into each other's memory."""
    for copier in (copy.copy, copy.deepcopy):
        cache, generator = metal.Cache(), torch.manual_seed(0)
        cache.update(rows(1, 3, DIM, generator), rows(1, 3, DIM, generator), 0)
        layers = cache.layers[0], copier(cache.layers[0])
        news = [rows(1, 2, DIM, generator) for _ in range(2)]
        keys = [layer.update(new, new)[0] for layer, new in zip(layers, news, strict=True)]
        for key, new in zip(keys, news, strict=True):
            assert torch.equal(key[:, :, 3:], new)


def test_pickles_hold_rows_alone() -> None:
    cache, generator = metal.Cache(), torch.manual_seed(0)
    cache.update(rows(1, 3, DIM, generator), rows(1, 3, DIM, generator), 0)
    again = pickle.loads(pickle.dumps(cache))
    assert again.layers[0].keys.untyped_storage().nbytes() == 4 * 3 * HEADS * DIM


def test_copies_of_what_inference_mode_made_are_apart() -> None:
    """Outside of inference mode, where generate leaves its cache."""
    cache, generator = metal.Cache(), torch.manual_seed(0)
    with torch.inference_mode():
        cache.update(rows(1, 3, DIM, generator), rows(1, 3, DIM, generator), 0)
    again = pickle.loads(pickle.dumps(cache))
    assert again.layers[0].keys.untyped_storage().nbytes() == 4 * 3 * HEADS * DIM
    layer = copy.copy(cache.layers[0])
    kept = layer.keys.clone()
    with torch.inference_mode():
        cache.crop(-2)
        cache.update(rows(1, 2, DIM, generator), rows(1, 2, DIM, generator), 0)
    assert torch.equal(layer.keys, kept)


@pytest.mark.parametrize(("first", "end", "cropped"), [(100, 500, 400), (150, 550, 500)])
def test_rows_that_were_handed_out_are_appended_again(first: int, end: int, cropped: int) -> None:
    """Where they lie and where they are written to may overlap."""
    caches, generator = pair(None), torch.manual_seed(0)
    update_both(caches, 2, 600, generator)
    returned = []
    for cache in caches:
        layer = cache.layers[0]
        again = layer.keys[:, :, first:end], layer.values[:, :, first:end]
        cache.crop(-cropped)
        returned.append(cache.update(*again, 0))
    for got, wanted in zip(*returned, strict=True):
        assert torch.equal(got, wanted)


def test_inference_mode_and_no_grad_in_turns() -> None:
    caches, generator = pair(CONFIGS["mixed"]), torch.manual_seed(0)
    for mode in 3 * (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            update_both(caches, 1, 2, generator)
            assert_same(*caches)


def test_gradients_flow_as_through_dynamic_cache() -> None:
    generator = torch.manual_seed(0)
    new = rows(1, 3, DIM, generator).requires_grad_()
    for cache in pair(CONFIGS["mixed"]):
        for layer in range(2):
            cache.update(rows(1, 2, DIM, generator), rows(1, 2, DIM, generator), layer)
            keys, _ = cache.update(new, new, layer)
            keys, _ = cache.update(new, new, layer)
            keys.sum().backward()
            assert torch.equal(new.grad, torch.full_like(new, 2))
            new.grad = None


def test_shapes_that_do_not_fit_raise_and_change_nothing() -> None:
    caches, generator = pair(CONFIGS["full"]), torch.manual_seed(0)
    update_both(caches, 2, 3, generator)
    for batch, heads, extent in ((1, HEADS, DIM), (2, 1, DIM), (2, HEADS, 1)):
        new = torch.zeros((batch, heads, 1, extent))
        for cache in caches:
            with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
                cache.update(new, new, 0)
        assert_same(*caches)
    for cache in caches:
        with pytest.raises((IndexError, RuntimeError)):
            cache.reorder_cache(torch.tensor([0, 9]))
        caches[1].layers[0].keys.shape  # noqa: B018
    assert_same(*caches)
    update_both(caches, 2, 1, generator)


def test_another_dtype_is_promoted_as_by_cat() -> None:
    caches = pair(CONFIGS["full"])
    for dtype in (torch.float16, torch.float32, torch.float32):
        new = torch.ones((1, HEADS, 2, DIM), dtype=dtype)
        for cache in caches:
            cache.update(new, new, 0)
        assert torch.equal(*(cache.layers[0].keys for cache in caches))
        assert caches[0].layers[0].keys.dtype == caches[1].layers[0].keys.dtype


@pytest.mark.parametrize("extent", [0, 1])
def test_values_without_elements(extent: int) -> None:
    """Latent attention may keep one tensor alone."""
    caches = pair(None)
    for n in (3, 1, 0, 1):
        new = torch.randn((2, 1, n, 6)), torch.randn((2, 1, n, extent))
        for cache in caches:
            cache.update(*new, 0)
        again = [cache.layers[0].update(*new) for cache in caches]
        assert torch.equal(again[0][0], again[1][0])
        assert torch.equal(again[0][1], again[1][1])
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == 10


def test_early_initialization_and_data_to_begin_with() -> None:
    caches, generator = pair(CONFIGS["mixed"]), torch.manual_seed(0)
    for cache in caches:
        cache.early_initialization(2, HEADS, DIM, torch.float32, torch.device("cpu"))
        assert cache.is_initialized
    data = [(rows(2, 6, DIM, generator), rows(2, 6, DIM, generator)) for _ in range(2)]
    filled = metal.Cache(CONFIGS["mixed"], ddp_cache_data=data)
    assert_same(filled, DynamicCache(data, config=CONFIGS["mixed"]))
    again = metal.Cache(ddp_cache_data=list(filled))
    assert_same(again, DynamicCache(list(filled)))


def test_offloading_is_refused() -> None:
    with pytest.raises(metal_sdpa.Unsupported, match="Cache: offloading"):
        metal.Cache(offloading=True)


def test_dynamic_cache_grows_while_registered() -> None:
    before = dict(DYNAMIC_LAYER_TYPE_MAPPING)
    metal.register()
    metal.register()
    try:
        assert type(DynamicCache(config=CONFIGS["full"]).layers[0]).__name__ == "GrowingLayer"
        metal.register(cache=False)
        assert before == DYNAMIC_LAYER_TYPE_MAPPING
        metal.register()
        model = zoo.DECODERS["mistral"].build()
        model.set_attn_implementation("metal_attention")
        out = model.generate(
            torch.tensor([[3, 4, 5]]), max_new_tokens=3, return_dict_in_generate=True
        )
        kinds = {type(layer).__name__ for layer in out.past_key_values.layers}
        assert kinds == {"GrowingSlidingWindowLayer"}
    finally:
        metal.unregister()
    assert before == DYNAMIC_LAYER_TYPE_MAPPING


WAYS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 4, "num_return_sequences": 3},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {},
    "sampling": {"do_sample": True, "num_return_sequences": 3, "top_k": 5},
    "chunks": {"prefill_chunk_size": 4},
}


# transformers rolls no model with a recurrent state back.
WAYS_OF_MODELS = [
    (way, name)
    for way in WAYS
    for name in ("llama", "mistral", "gemma3", "lfm2", "falcon_h1")
    if name != "falcon_h1" or way not in ("prompt_lookup", "assisted")
]


@pytest.mark.parametrize(("way", "name"), WAYS_OF_MODELS)
def test_ways_of_generating(name: str, way: str) -> None:
    """The same tokens as with DynamicCache and the model's own attention."""
    model = zoo.DECODERS[name].build()
    keywords: dict[str, Any] = {"do_sample": False} | WAYS[way]
    batch = 1 if way in ("prompt_lookup", "assisted") else 2
    ids = torch.randint(3, zoo.VOCABULARY, (batch, 11), generator=torch.manual_seed(4))
    if way == "assisted":
        keywords["assistant_model"] = zoo.DECODERS["llama"].build()
    metal.register(cache=False)
    try:
        found = []
        for attention, cache in (
            ("eager", DynamicCache(config=model.config)),
            ("metal_attention", metal.Cache(model.config)),
        ):
            model.set_attn_implementation(attention)
            torch.manual_seed(5)
            found.append(model.generate(ids, cache=cache, max_new_tokens=12, **keywords).tolist())
        assert found[0] == found[1]
    finally:
        metal.unregister()


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_beams_of_encoder_decoders(name: str) -> None:
    model = zoo.ENCODER_DECODERS[name].build()
    ids = torch.randint(3, zoo.VOCABULARY, (2, 11), generator=torch.manual_seed(4))
    found = []
    for kind in (DynamicCache, metal.Cache):
        both = EncoderDecoderCache(kind(config=model.config), kind(config=model.config))
        generated = model.generate(ids, cache=both, num_beams=3, max_new_tokens=8)
        found.append(generated.tolist())
        both.crop(-2)
        both.batch_select_indices(torch.tensor([0]))
    assert found[0] == found[1]


def test_a_conversation_goes_on_with_its_cache() -> None:
    model = zoo.DECODERS["gemma2"].build()
    ids = torch.randint(3, zoo.VOCABULARY, (1, 9), generator=torch.manual_seed(6))
    found = []
    for cache in (metal.Cache(model.config), DynamicCache(config=model.config)):
        text = ids
        for _ in range(3):
            text = model.generate(text, cache=cache, max_new_tokens=4, do_sample=False)
            text = torch.cat((text, ids[:, :3]), dim=1)
        found.append(text.tolist())
    assert found[0] == found[1]


def test_threads_with_a_cache_each() -> None:
    model = zoo.DECODERS["qwen3"].build()
    prompts = torch.randint(3, zoo.VOCABULARY, (4, 9), generator=torch.manual_seed(7))
    metal.register(cache=False)
    try:
        model.set_attn_implementation("metal_attention")

        def run(row: int) -> list[int]:
            cache = metal.Cache(model.config)
            keywords = {"max_new_tokens": 8, "do_sample": False}
            return model.generate(prompts[row : row + 1], cache=cache, **keywords)[0].tolist()

        wanted = [run(row) for row in range(4)]
        found: dict[int, list[int]] = {}
        threads = [
            threading.Thread(target=lambda row=row: found.update({row: run(row)}))
            for row in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[row] for row in range(4)] == wanted
    finally:
        metal.unregister()


def test_hybrid_layers_reorder_all_they_hold() -> None:
    settings = Lfm2Config(num_hidden_layers=2, num_attention_heads=HEADS)
    settings.layer_types = ["hybrid", "conv"]
    caches = pair(settings)
    generator = torch.manual_seed(8)
    for cache in caches:
        generator.manual_seed(8)
        new = rows(3, 4, DIM, generator)
        cache.update(new, new, 0)
        for layer in range(2):
            cache.update_conv_state(torch.randn((3, 5, 4), generator=generator), layer)
        cache.reorder_cache(torch.tensor([2, 0, 0]))
        cache.update(new[:, :, :1], new[:, :, :1], 0)
    assert torch.equal(*(cache.layers[0].keys for cache in caches))
    for layer in range(2):
        assert torch.equal(*(cache.layers[layer].conv_states[0] for cache in caches))
