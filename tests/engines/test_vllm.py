"""vLLM's CPU engine, as pip installs it, attending with metal_sdpa."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_CI_ENV="1",  # no compilation, no warming up
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)
sys.path.insert(0, str(Path(__file__).parent))

import torch
import transformers
import vllm.model_executor.models.registry as vllm_registry
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

import vllm_models
import vllm_switch

KINDS = tuple(kind for kind in vllm_models.CONFIGS if kind != "bert")
DTYPES = ("float32", "bfloat16")
NEW_TOKENS = 10
# Chunks of a prompt; also so that steps hold decode rows and a piece of a prompt.
BUDGET = 64
PAGE = 32

# Of the largest value of a row of attention. Ours keeps sums in f32; bf16 rounds the weights too.
MOST_ROUNDOFFS = {"float32": 64.0, "bfloat16": 4.0}
# Of logprobs, against float64 attention in the same engine: logits are up to some 10, and what the
# layers round differently adds up.
LOGPROB_TOLERANCE = {"float32": 2e-5, "bfloat16": 0.15}


# vLLM imports each architecture in a process of its own first, only to look at it: seconds each.
vllm_registry._run_in_subprocess = lambda look: look()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("models")
    return {kind: vllm_models.make(kind, where) for kind in vllm_models.CONFIGS}


@contextlib.contextmanager
def running(path: Path, dtype: str, **options: Any) -> Iterator[LLM]:
    """An engine with the switch."""
    vllm_switch.install()
    options = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 32,
        "max_num_batched_tokens": BUDGET,
        "block_size": PAGE,
        "num_gpu_blocks_override": 320,
        "enable_prefix_caching": True,
        "seed": 0,
        **options,
    }
    llm = LLM(str(path), dtype=dtype, **options)
    try:
        yield llm
    finally:
        del llm
        cleanup_dist_env_and_memory()


@pytest.fixture(scope="module", params=[(k, d) for d in DTYPES for k in KINDS], ids="-".join)
def engine(request: pytest.FixtureRequest, models: dict[str, Path]) -> Any:
    """(dtype, an engine with the switch)."""
    kind, dtype = request.param
    with running(models[kind], dtype) as llm:
        yield dtype, llm


def prompts_of(count: int, seed: int, shared: int = 0) -> list[list[int]]:
    """Prompts of 1 to 150 tokens, of which the first `shared` are common."""
    rng = random.Random(seed)
    common = [rng.randrange(3, vllm_models.VOCAB) for _ in range(shared)]
    lengths = [1, 2, 33, 150, 64, 25] + [rng.randrange(1, 100) for _ in range(count)]
    return [
        common + [rng.randrange(3, vllm_models.VOCAB) for _ in range(length)]
        for length in lengths[:count]
    ]


def generate(llm: LLM, mode: str, prompts: list[list[int]], *, reset: bool = True) -> list[Any]:
    """Greedy outputs with the attention `mode`, from an empty cache unless `reset` is False."""
    if reset:
        assert llm.reset_prefix_cache()
    vllm_switch.STATE.start(mode)
    params = SamplingParams(
        max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True, detokenize=False, logprobs=5
    )
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    return llm.generate(requests, params, use_tqdm=False)


def tokens_of(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def logprobs_of(output: Any) -> list[dict[int, float]]:
    return [{t: x.logprob for t, x in step.items()} for step in output.outputs[0].logprobs]


def require_ours_was_seen(dtype: str) -> None:
    """Ours ran in every kind of step, and every row of every layer was what float64 gives."""
    state = vllm_switch.STATE
    assert state.calls > 0
    assert {"decode", "mixed", "chunk"} <= state.kinds
    assert 0 < state.worst <= MOST_ROUNDOFFS[dtype]


def require_like(outputs: list[Any], reference: list[Any], tolerance: float) -> int:
    """Same tokens, unless two were within the tolerance of each other, and logprobs within it, up
    to there. How many texts were the same to the end."""
    same = 0
    for ours, theirs in zip(outputs, reference, strict=True):
        steps = zip(
            ours.outputs[0].token_ids,
            theirs.outputs[0].token_ids,
            logprobs_of(ours),
            logprobs_of(theirs),
            strict=True,
        )
        for token, wanted, got, expected in steps:
            for candidate in got.keys() & expected.keys():
                assert abs(got[candidate] - expected[candidate]) <= tolerance
            if token != wanted:
                assert expected[wanted] - expected[token] <= 2 * tolerance
                break
        else:
            same += 1
    return same


def test_tokens_are_those_of_vllm_and_logprobs_those_of_float64(engine: Any) -> None:
    dtype, llm = engine
    prompts = prompts_of(8, seed=1)
    ours = generate(llm, "ours", prompts)
    require_ours_was_seen(dtype)
    stock = generate(llm, "stock", prompts)
    exact = generate(llm, "float64", prompts)
    same = require_like(ours, exact, LOGPROB_TOLERANCE[dtype])
    require_like(stock, exact, LOGPROB_TOLERANCE[dtype])
    if dtype == "float32":
        assert same == len(prompts)
        assert tokens_of(ours) == tokens_of(stock)


def test_32_requests_at_once_with_a_common_beginning(engine: Any) -> None:
    dtype, llm = engine
    prompts = prompts_of(32, seed=2, shared=2 * PAGE + 3)
    ours = generate(llm, "ours", prompts)
    require_ours_was_seen(dtype)
    assert sum(output.num_cached_tokens for output in ours) >= 20 * 2 * PAGE
    again = generate(llm, "ours", prompts, reset=False)
    assert sum(output.num_cached_tokens for output in again) >= 30 * 2 * PAGE
    stock = generate(llm, "stock", prompts)
    # Each of two is within the tolerance of float64.
    require_like(again, ours, 2 * LOGPROB_TOLERANCE[dtype])
    require_like(ours, stock, 2 * LOGPROB_TOLERANCE[dtype])
    if dtype == "float32":
        assert tokens_of(again) == tokens_of(ours) == tokens_of(stock)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_of_an_encoder(models: dict[str, Path], dtype: str) -> None:
    prompts = [{"prompt_token_ids": prompt} for prompt in prompts_of(8, seed=3)]
    options = {
        "runner": "pooling",
        "skip_tokenizer_init": False,
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 256,
    }
    found = {}
    with running(models["bert"], dtype, **options) as llm:
        for mode in vllm_switch.MODES:
            vllm_switch.STATE.start(mode)
            outputs = llm.embed(prompts, use_tqdm=False)
            assert vllm_switch.STATE.calls > 0
            if mode == "ours":
                assert 0 < vllm_switch.STATE.worst <= MOST_ROUNDOFFS[dtype]
            found[mode] = [output.outputs.embedding for output in outputs]
    tolerance = {"float32": 1e-5, "bfloat16": 0.05}[dtype]
    for name in ("ours", "stock"):
        for embedding, exact in zip(found[name], found["float64"], strict=True):
            assert embedding == pytest.approx(exact, abs=tolerance)


def test_the_installed_plugin_in_a_server_of_several_processes(models: dict[str, Path]) -> None:
    """As users switch it on: an environment variable, and vLLM's own processes."""
    prompts = prompts_of(4, seed=4)
    code = (
        "import json, sys\n"
        "from vllm import LLM, SamplingParams\n"
        "if __name__ == '__main__':\n"
        "    path, prompts = sys.argv[1], json.loads(sys.argv[2])\n"
        "    llm = LLM(path, dtype='float32', skip_tokenizer_init=True, enforce_eager=True,\n"
        "              max_model_len=256, num_gpu_blocks_override=64)\n"
        f"    params = SamplingParams(max_tokens={NEW_TOKENS}, temperature=0, ignore_eos=True,\n"
        "                            detokenize=False)\n"
        "    requests = [{'prompt_token_ids': p} for p in prompts]\n"
        "    out = llm.generate(requests, params, use_tqdm=False)\n"
        "    print('TOKENS', json.dumps([list(o.outputs[0].token_ids) for o in out]))\n"
    )
    script = models["llama"] / "serve.py"
    script.write_text(code)
    environment = {
        **os.environ,
        "METAL_SDPA_VLLM": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    command = [sys.executable, str(script), str(models["llama"]), json.dumps(prompts)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "Attention by metal_sdpa" in result.stdout + result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("TOKENS"))
    model = transformers.AutoModelForCausalLM.from_pretrained(models["llama"])
    for prompt, tokens in zip(prompts, json.loads(line.split(" ", 1)[1]), strict=True):
        ids = torch.tensor([prompt])
        for token in tokens:
            logits = model(ids).logits[0, -1]
            assert int(logits.argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
