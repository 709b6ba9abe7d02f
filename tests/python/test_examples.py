"""The example engine of examples/: tokenizer, arithmetic, KV cache, command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import metal_sdpa  # noqa: E402
from float64_check import Accuracy  # noqa: E402
from host_dtypes import UNIT_ROUNDOFF, from_storage, to_storage  # noqa: E402
from inference import Engine  # noqa: E402
from model import ModelConfig, Transformer, load_model  # noqa: E402
from paged_cache import PagedCache  # noqa: E402
from sampling import Sampler  # noqa: E402
from server import Request, Server, Totals  # noqa: E402
from targets import device_kinds  # noqa: E402
from tokenizer import Tokenizer, train_merges  # noqa: E402

DTYPES = ("f32", "f16", "bf16")

CONFIG = ModelConfig(
    vocab_size=61,
    context=96,
    n_layers=2,
    dim=24,
    n_heads=6,
    n_kv_heads=2,
    head_dim=16,
    hidden_dim=40,
    rope_theta=100.0,
    norm_eps=1e-5,
)
CAPACITY = 80
TOKENS = np.random.default_rng(7).integers(CONFIG.vocab_size, size=70).tolist()


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that keep activations near 1 and spread the softmax (scores stay below 6)."""
    random = np.random.default_rng(seed)
    config = CONFIG

    def matrix(n_out: int, n_in: int, gain: float = 1.0) -> np.ndarray:
        return (gain * random.standard_normal((n_out, n_in)) / n_in**0.5).astype(np.float32)

    def norm() -> np.ndarray:
        return random.uniform(0.5, 1.5, config.dim).astype(np.float32)

    weights = {"embedding.weight": matrix(config.vocab_size, config.dim, 3.0), "final_norm": norm()}
    for layer in range(config.n_layers):
        weights |= {
            f"layers.{layer}.{name}": weight
            for name, weight in {
                "attention_norm": norm(),
                "wq.weight": matrix(config.n_heads * config.head_dim, config.dim),
                "wk.weight": matrix(config.n_kv_heads * config.head_dim, config.dim),
                "wv.weight": matrix(config.n_kv_heads * config.head_dim, config.dim),
                "wo.weight": matrix(config.dim, config.n_heads * config.head_dim),
                "mlp_norm": norm(),
                "w_gate.weight": matrix(config.hidden_dim, config.dim),
                "w_up.weight": matrix(config.hidden_dim, config.dim),
                "w_down.weight": matrix(config.dim, config.hidden_dim),
            }.items()
        }
    return weights


@pytest.fixture
def device(device_kind: str) -> metal_sdpa.Device:
    return metal_sdpa.Device(device_kind)


def make_engine(device: metal_sdpa.Device, dtype: str) -> Engine:
    return Engine(Transformer(CONFIG, random_weights()), device, CAPACITY, dtype)


# --- a float64 reference, one token and one head at a time, without a cache ----------------------


def reference_logits(tokens: list[int]) -> np.ndarray:
    """Logits [vocab_size] after the last token, by a loop over positions in float64."""
    weights = {name: weight.astype(np.float64) for name, weight in random_weights().items()}
    states = [weights["embedding.weight"][token] for token in tokens]
    for layer in range(CONFIG.n_layers):
        prefix = f"layers.{layer}."
        part = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        normed = [reference_norm(x, part["attention_norm"]) for x in states]
        attended = [reference_attention(normed[: i + 1], part) for i in range(len(states))]
        states = [x + part["wo.weight"] @ y for x, y in zip(states, attended, strict=True)]
        states = [x + reference_mlp(reference_norm(x, part["mlp_norm"]), part) for x in states]
    return weights["embedding.weight"] @ reference_norm(states[-1], weights["final_norm"])


def reference_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x * weight / (x @ x / x.size + CONFIG.norm_eps) ** 0.5


def reference_mlp(x: np.ndarray, part: dict[str, np.ndarray]) -> np.ndarray:
    gate = part["w_gate.weight"] @ x
    return part["w_down.weight"] @ (gate / (1 + np.exp(-gate)) * (part["w_up.weight"] @ x))


def reference_attention(normed: list[np.ndarray], part: dict[str, np.ndarray]) -> np.ndarray:
    """The last position's query against every position up to it; [n_heads * head_dim]."""
    out = []
    for head in range(CONFIG.n_heads):
        kv_head = head // (CONFIG.n_heads // CONFIG.n_kv_heads)
        rows = slice(kv_head * CONFIG.head_dim, (kv_head + 1) * CONFIG.head_dim)
        q_rows = slice(head * CONFIG.head_dim, (head + 1) * CONFIG.head_dim)
        q = as_turned(part["wq.weight"][q_rows] @ normed[-1], len(normed) - 1)
        weights = [
            np.exp((as_turned(part["wk.weight"][rows] @ x, position) @ q.conj()).real / 16**0.5)
            for position, x in enumerate(normed)
        ]
        values = [part["wv.weight"][rows] @ x for x in normed]
        out.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return np.concatenate(out)


def as_turned(x: np.ndarray, position: int) -> np.ndarray:
    """Rotary positions as complex numbers: pair d is x[d] + i x[d + D / 2], turned by its angle."""
    half = x.size // 2
    angles = position * CONFIG.rope_theta ** -(np.arange(half) / half)
    return (x[:half] + 1j * x[half:]) * np.exp(1j * angles)


def logits_tolerance(dtype: str) -> float:
    """Relative error that rounding may cause in the norm of the logits.

    In f32 each of a layer's matrix products of length n may add n roundings, and so may each norm
    and the attention row. With a smaller dtype q, k, v and the output are rounded once more, q and
    k with their effect multiplied by the scores, which stay below 6 here.
    """
    c = CONFIG
    lengths = 5 * c.dim + c.n_heads * c.head_dim + c.hidden_dim + 16 + 6 * 6
    in_f32 = UNIT_ROUNDOFF["f32"] * c.n_layers * lengths
    return in_f32 if dtype == "f32" else in_f32 + c.n_layers * (2 + 2 * 6) * UNIT_ROUNDOFF[dtype]


def assert_close(logits: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"relative error {error:.2e}, may be {tolerance:.2e}"


# --- the tokenizer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "def f(x):\n    return x + 1\n",
        "\t\r\n \x00\x7f  end ",
        "na\u00efve \u4e2d\u6587 \U0001f600 \u00a0\u2028",
        "a" * 300 + "_" * 40 + "\n" * 30 + " " * 50,
    ],
)
def test_tokenizer_gives_the_text_back(text: str) -> None:
    tokenizer = Tokenizer(train_merges([Path(__file__).read_text()], 400))
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)


def test_tokenizer_merges_what_is_frequent() -> None:
    tokenizer = Tokenizer(train_merges(["self self self selfish"], 261))
    assert tokenizer.vocab_size == 261
    assert len(tokenizer.encode(" self")) < 3
    assert tokenizer.encode("xyz") == list(b"xyz")


def test_shipped_tokenizer_shortens_code() -> None:
    _, tokenizer, _ = load_model(EXAMPLES / "stdlib.safetensors")
    text = (EXAMPLES / "prompt.txt").read_text()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert len(tokens) < len(text) / 2.5


# --- the engine ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", [1, 2, 33, 70])
def test_prefill_equals_the_float64_model(
    device: metal_sdpa.Device, dtype: str, n_tokens: int
) -> None:
    engine = make_engine(device, dtype)
    logits = engine.prefill(TOKENS[:n_tokens])
    assert_close(logits, reference_logits(TOKENS[:n_tokens]), logits_tolerance(dtype))
    assert engine.check_accuracy().good


@pytest.mark.parametrize("dtype", DTYPES)
def test_replayed_decode_equals_the_float64_model_at_every_length(
    device: metal_sdpa.Device, dtype: str
) -> None:
    engine = make_engine(device, dtype)
    for n_tokens, token in enumerate(TOKENS[:40], start=1):
        logits = engine.decode(token)
        assert_close(logits, reference_logits(TOKENS[:n_tokens]), logits_tolerance(dtype))
    assert engine.cache.length == 40
    assert engine.check_accuracy().good


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_prompt", [1, 31, 32, 65])
def test_replayed_decode_equals_direct_prefill(
    device: metal_sdpa.Device, dtype: str, n_prompt: int
) -> None:
    engine = make_engine(device, dtype)
    engine.prefill(TOKENS[:n_prompt])
    for token in TOKENS[n_prompt:]:
        logits = engine.decode(token)
    direct = make_engine(device, dtype).prefill(TOKENS)
    assert_close(logits, direct, 2 * logits_tolerance(dtype))


def test_prefill_in_parts_equals_prefill_at_once(device: metal_sdpa.Device) -> None:
    engine = make_engine(device, "f32")
    for begin, end in [(0, 5), (5, 37), (37, 70)]:
        logits = engine.prefill(TOKENS[begin:end])
    at_once = make_engine(device, "f32").prefill(TOKENS)
    assert_close(logits, at_once, 2 * logits_tolerance("f32"))


def test_free_slots_of_the_cache_are_poisoned(device: metal_sdpa.Device) -> None:
    engine = make_engine(device, "bf16")
    engine.prefill(TOKENS[:3])
    k = from_storage(engine.cache.keys[1].numpy().view(np.uint16), "bf16")
    assert np.isfinite(k[0, :, :3]).all()
    assert np.isnan(k[0, :, 3:]).all()


def test_a_full_cache_takes_no_more(device: metal_sdpa.Device) -> None:
    engine = make_engine(device, "f32")
    engine.prefill((TOKENS * 2)[:CAPACITY])
    with pytest.raises(ValueError, match=f"holds {CAPACITY} tokens, but got {CAPACITY + 1}"):
        engine.decode(TOKENS[0])


@pytest.mark.parametrize("bad", [np.nan, 3.0])
def test_the_accuracy_check_sees_one_wrong_row(device: metal_sdpa.Device, bad: float) -> None:
    engine = make_engine(device, "f16")
    engine.prefill(TOKENS[:20])
    engine.decode(TOKENS[20])
    assert engine.check_accuracy().good
    assert engine.check_accuracy().n_rows == 21 * CONFIG.n_heads * CONFIG.n_layers
    engine.attention.log[-1].out[4, 0, 5] = bad
    assert not engine.check_accuracy().good
    assert not Accuracy().good  # nothing was compared


def test_bfloat16_rounds_to_nearest_even() -> None:
    halfway = np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, -(1 + 2.0**-8)])
    rounded = from_storage(to_storage(halfway, "bf16"), "bf16")
    assert rounded.tolist() == [1, 1 + 2.0**-6, 1 + 2.0**-7, -1]


def test_sampler() -> None:
    logits = np.linspace(-3, 3, 61, dtype=np.float32)
    assert Sampler(0, seed=1).pick(logits) == 60
    picked = [Sampler(0.8, seed).pick(logits) for seed in range(200)]
    assert [Sampler(0.8, seed).pick(logits) for seed in range(200)] == picked
    assert len(set(picked)) > 5
    assert min(picked) >= 61 - 40


# --- the server ----------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("page_len", [1, 4, 7])
def test_requests_that_are_served_together(
    device: metal_sdpa.Device, page_len: int, merge: bool
) -> None:
    """Arrivals, waiting for pages, shared pages, chunks: all get what they get alone."""
    model = Transformer(CONFIG, random_weights())
    common, pick = TOKENS[:20], Sampler(0, seed=1).pick

    def serve(requests: list[Request], n_pages: int, **options: object) -> Totals:
        cache = PagedCache(CONFIG, n_pages, page_len, "f32")
        server = Server(model, device, cache, pick, budget=9, **options)
        for batch in server.run(requests):
            assert 1 <= sum(request.n_running for request in batch) <= max(9, len(batch))
        assert cache.n_free == n_pages
        return server.totals

    requests = [Request(common + TOKENS[30 : 31 + i], 6, 2 * i) for i in range(5)]
    n_pages = -(-31 // page_len) * 3
    totals = serve(requests, n_pages, common=common, merge=merge)
    alone = [Request(request.prompt, request.n_new) for request in requests]
    for request in alone:
        serve([request], -(-31 // page_len), check=False)
    assert [r.generated for r in requests] == [r.generated for r in alone]
    assert totals.worst_share <= 1
    assert (totals.equal_rows < totals.rows) == merge
    assert (totals.worst_share > 0) == merge


def test_a_request_that_needs_the_room_of_the_common_pages(device: metal_sdpa.Device) -> None:
    """Whoever does not share the common beginning gets its pages, if nothing else is left."""
    cache = PagedCache(CONFIG, 6, 4, "f32")
    model = Transformer(CONFIG, random_weights())
    server = Server(model, device, cache, Sampler(0, 1).pick, common=TOKENS[:9])
    requests = [Request(TOKENS[:12], 3), Request(TOKENS[40:58], 4, 1)]
    assert sum(1 for _ in server.run(requests)) < 30
    assert [len(request.generated) for request in requests] == [3, 4]


def test_a_common_beginning_of_less_than_a_page_holds_nobody_up(device: metal_sdpa.Device) -> None:
    cache = PagedCache(CONFIG, 12, 16, "f32")
    model = Transformer(CONFIG, random_weights())
    server = Server(model, device, cache, Sampler(0, 1).pick, common=TOKENS[:9])
    requests = [Request(TOKENS[: 10 + i], 5) for i in range(3)]
    assert sum(1 for _ in server.run(requests)) < 8


def test_a_request_that_no_cache_of_this_size_can_take(device: metal_sdpa.Device) -> None:
    cache = PagedCache(CONFIG, 4, 4, "f32")
    server = Server(Transformer(CONFIG, random_weights()), device, cache, Sampler(0, 1).pick)
    with pytest.raises(
        ValueError, match="a request of 17 tokens takes 5 pages, but the cache has 4"
    ):
        list(server.run([Request(TOKENS[:10], 7)]))


# --- the command line ----------------------------------------------------------------------------


def run_example(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_example("generate.py", "--device", device_kinds()[0], *arguments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_generate_runs_and_says_so(dtype: str) -> None:
    done = generate("--prompt", "import os\n\ndef main(", "--tokens", "6", "--dtype", dtype)
    assert done.returncode == 0, done.stderr
    assert "import os" in done.stdout
    assert "--- 6 tokens generated" in done.stdout
    for line in ("prefill", "decode", "accuracy"):
        assert f"\n{line}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("OK: ")


def test_generate_gives_the_same_text_for_the_same_seed() -> None:
    def text(seed: str) -> str:
        done = generate("--prompt", "class A:\n", "--tokens", "12", "--seed", seed)
        return done.stdout.partition("class A:")[2].partition("\n---")[0]

    assert text("5") == text("5") != text("6")


@pytest.mark.parametrize("arguments", [[], ["--merge"], ["--dtype", "f16", "--page", "5"]])
def test_serve_checks_itself(arguments: list[str]) -> None:
    few = ["--requests", "3", "--tokens", "4", "--device", "cpu"]
    done = run_example("serve.py", *few, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK: every request got what it would have got alone" in done.stdout
    assert "texts     3 of 3" in done.stdout
    assert ("merged ones" in done.stdout) == ("--merge" in arguments)


def test_serve_says_what_it_takes() -> None:
    done = run_example("serve.py", "--tokens", "2000")
    assert done.returncode == 2
    assert "--tokens takes at most" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt-file", "missing.txt"], "missing.txt: No such file or directory"),
        (["--tokens", "0"], "--tokens takes 1 or more, but got 0"),
        (["--tokens", "-3"], "--tokens takes 1 or more, but got -3"),
        (["--tokens", "many"], "invalid int value: 'many'"),
        (["--tokens", "2000", "--prompt", "x"], "--tokens takes at most 1022 here, but got 2000"),
        (["--prompt", "x y " * 800], "give a shorter prompt"),
        (["--temperature", "-1"], "--temperature takes 0 or more, but got -1.0"),
        (["--temperature", "nan"], "--temperature takes 0 or more, but got nan"),
        (["--seed", "-1"], "--seed takes 0 or more, but got -1"),
        (["--dtype", "f64"], "invalid choice: 'f64'"),
        (["--prompt-file", str(EXAMPLES / "stdlib.safetensors")], "is not UTF-8 text"),
        (["--prompt-file", str(EXAMPLES)], "Is a directory"),
    ],
)
def test_wrong_input_gets_one_friendly_message(arguments: list[str], message: str) -> None:
    done = generate(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_weights_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="is not a weights file of"):
        load_model(path)
