"""python -m bench.engines_vllm: decode steps of vLLM's CPU engine, its own attention against ours.

Two processes hold an engine each, with the same random weights, and take turns: some steps of one,
some of the other. Wants the environment that tools/engines_vllm.sh makes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.stats import median, paired_ratio

MODES = ("stock", "ours")
DTYPES = {"bf16": "bfloat16", "f32": "float32"}


@dataclass(frozen=True)
class Model:
    """Little besides attention."""

    layers: int = 8
    heads: int = 16
    kv_heads: int = 4
    head_dim: int = 128
    hidden: int = 512

    def config(self, context: int) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 512,
            "hidden_size": self.hidden,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(": ")[1].split("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 12288, 32768])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=9, help="turns of each engine")
    parser.add_argument("--steps", type=int, default=8, help="decode steps of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--layers", type=int, default=Model.layers)
    parser.add_argument("--json", type=Path, help="where the results go besides the terminal")
    parser.add_argument("--engine", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- one engine, in a process of its own ----------------------------------------------------------


def hide_attention_while_filling(flag: dict[str, bool]) -> None:
    """The prompt's own attention is left out: how long a decode step takes does not depend on what
    the cache holds, and a prompt of 32768 tokens would take minutes."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    from metal_sdpa.integrations.vllm.backend import MetalSdpaImpl

    for cls in (CPUAttentionBackendImpl, MetalSdpaImpl):
        original = cls.forward

        def forward(self: Any, *arguments: Any, original: Any = original, **options: Any) -> Any:
            output = options.get("output")
            if output is None:
                output = arguments[6]
            return output.zero_() if flag["filling"] else original(self, *arguments, **options)

        cls.forward = forward


def serve(arguments: argparse.Namespace) -> None:
    """Reads numbers of steps, one a line, and writes their times in ms, one list a line."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM writes to standard output
    from vllm import LLM, SamplingParams

    from metal_sdpa.integrations import vllm as plugin

    if arguments.engine == "ours":
        plugin.register()
    context = arguments.contexts[0]
    flag = {"filling": True}
    hide_attention_while_filling(flag)
    llm = LLM(
        str(arguments.model),
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype=DTYPES[arguments.dtypes[0]],
        max_model_len=context + 4096,
        max_num_seqs=1,
        max_num_batched_tokens=2048,
        seed=0,
    )
    engine = llm.llm_engine
    params = SamplingParams(max_tokens=4000, temperature=0, ignore_eos=True, detokenize=False)
    prompt = [3 + i * 7919 % 500 for i in range(context)]
    engine.add_request("0", {"prompt_token_ids": prompt}, params)
    while not engine.step():
        pass
    flag["filling"] = False
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            engine.step()
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(times), file=replies, flush=True)


# --- both of them, in turns -----------------------------------------------------------------------


class Engine:
    """The process of one engine."""

    def __init__(self, mode: str, dtype: str, context: int, threads: int, model: Path) -> None:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "METAL_SDPA_NUM_THREADS": str(threads),
            "METAL_SDPA_VLLM": "0",
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_KVCACHE_SPACE": "3",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        command = [sys.executable, "-m", "bench.engines_vllm", "--engine", mode]
        command += ["--dtypes", dtype, "--contexts", str(context), "--model", str(model)]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.reply()

    def reply(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine ended with status {self.process.wait()}")
        return line

    def steps(self, count: int) -> list[float]:
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)
        times: list[float] = json.loads(self.reply())
        return times

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=60)


def measure(arguments: argparse.Namespace, dtype: str, context: int, model: Path) -> dict[str, Any]:
    """Medians of a turn's steps, turn by turn."""
    (model / "config.json").write_text(
        json.dumps(Model(layers=arguments.layers).config(context + 4096))
    )
    engines = {mode: Engine(mode, dtype, context, arguments.threads, model) for mode in MODES}
    turns: dict[str, list[float]] = {mode: [] for mode in MODES}
    for mode in MODES:
        engines[mode].steps(arguments.steps)  # warms up
    for turn in range(arguments.rounds):
        for mode in MODES if turn % 2 == 0 else reversed(MODES):
            turns[mode].append(median(engines[mode].steps(arguments.steps)))
    for engine in engines.values():
        engine.close()
    return {
        "dtype": dtype,
        "context": context,
        **{f"{mode}_ms": median(turns[mode]) for mode in MODES},
        **{f"{mode}_tokens_per_s": 1e3 / median(turns[mode]) for mode in MODES},
        "stock_over_ours": asdict(paired_ratio(turns["stock"], turns["ours"])),
        "turns_ms": turns,
    }


def main() -> None:
    arguments = parse_arguments()
    if arguments.engine:
        serve(arguments)
        return
    results = []
    with tempfile.TemporaryDirectory() as model:
        for context in arguments.contexts:
            for dtype in arguments.dtypes:
                found = measure(arguments, dtype, context, Path(model))
                results.append(found)
                print(
                    f"{dtype:4} context {context:6}: stock {found['stock_ms']:8.2f} ms a token, "
                    f"ours {found['ours_ms']:8.2f}, ratio {found['stock_over_ours']['ratio']:.2f}",
                    flush=True,
                )
    report = {
        "model": asdict(Model(layers=arguments.layers)),
        "threads": arguments.threads,
        "results": results,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
