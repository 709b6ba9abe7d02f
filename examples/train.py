"""Trains the example's language model on the Python standard library's own source.

    pip install torch==2.13.0 safetensors numpy
    python examples/train.py                      # writes examples/stdlib.safetensors

The weights that ship were made by this script with its default settings. It runs on one CPU core
and stops after --steps or --minutes, whichever comes first; the learning rate falls to zero over
the same stretch. generate.py needs neither this script nor torch.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tokenizer import FILE_START, Tokenizer, train_merges

HERE = Path(__file__).resolve().parent

CONFIG = {
    "vocab_size": 1024,
    "context": 1024,
    "n_layers": 4,
    "dim": 160,
    "n_heads": 8,
    "n_kv_heads": 2,
    "head_dim": 32,
    "hidden_dim": 448,
    "rope_theta": 10000.0,
    "norm_eps": 1e-5,
}
TOKENS_PER_STEP = 2048
# (share of the run, context from there on): short contexts first, where a step costs half as much.
CONTEXTS = ((0.0, 256), (0.55, 512), (0.75, CONFIG["context"]))
HELD_OUT = 40  # one file in this many is kept for the validation loss

# Tests repeat themselves, and these folders hold tables rather than code.
LEFT_OUT = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "lib2to3"}


# --- the text ------------------------------------------------------------------------------------


def stdlib_files() -> list[str]:
    """The text of every module of the running interpreter's standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.rglob("*.py")) if not LEFT_OUT & set(path.parts)]
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def encode_files(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts as one row of tokens, each behind FILE_START; i64 [n_tokens]."""
    tokens: list[int] = []
    for text in texts:
        tokens += [FILE_START, *tokenizer.encode(text)]
    return torch.tensor(tokens, dtype=torch.int64)


# --- the model -----------------------------------------------------------------------------------


def rope_tables(n_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [n_positions, head_dim / 2] of the rotary position embedding."""
    half = CONFIG["head_dim"] // 2
    frequencies = CONFIG["rope_theta"] ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[d], x[d + D / 2]) of x [B, H, L, D] by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        dim, width = CONFIG["dim"], CONFIG["n_heads"] * CONFIG["head_dim"]
        kv_width = CONFIG["n_kv_heads"] * CONFIG["head_dim"]
        self.attention_norm = nn.Parameter(torch.ones(dim))
        self.wq = nn.Linear(dim, width, bias=False)
        self.wk = nn.Linear(dim, kv_width, bias=False)
        self.wv = nn.Linear(dim, kv_width, bias=False)
        self.wo = nn.Linear(width, dim, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(dim))
        self.w_gate = nn.Linear(dim, CONFIG["hidden_dim"], bias=False)
        self.w_up = nn.Linear(dim, CONFIG["hidden_dim"], bias=False)
        self.w_down = nn.Linear(CONFIG["hidden_dim"], dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(rms_norm(x, self.attention_norm), cos, sin)
        y = rms_norm(x, self.mlp_norm)
        return x + self.w_down(functional.silu(self.w_gate(y)) * self.w_up(y))

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (self.heads(w(x)) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = functional.scaled_dot_product_attention(
            q, k, v.to(q.dtype), is_causal=True, enable_gqa=True
        )
        return self.wo(out.transpose(1, 2).flatten(2))

    @staticmethod
    def heads(x: Tensor) -> Tensor:
        """[B, L, H * D] as [B, H, L, D]."""
        return x.unflatten(2, (-1, CONFIG["head_dim"])).transpose(1, 2)


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CONFIG["vocab_size"], CONFIG["dim"])
        self.layers = nn.ModuleList(Block() for _ in range(CONFIG["n_layers"]))
        self.final_norm = nn.Parameter(torch.ones(CONFIG["dim"]))
        nn.init.normal_(self.embedding.weight, std=0.02)
        for layer in self.layers:  # each block starts as the identity
            nn.init.zeros_(layer.wo.weight)
            nn.init.zeros_(layer.w_down.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, L, vocab_size] of the token after each of tokens [B, L]."""
        cos, sin = rope_tables(tokens.shape[1])
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return functional.linear(rms_norm(x, self.final_norm), self.embedding.weight)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, CONFIG["norm_eps"])


# --- training ------------------------------------------------------------------------------------


def random_batch(tokens: Tensor, context: int, generator: torch.Generator) -> Tensor:
    """Random stretches of the text, i64 [TOKENS_PER_STEP / context, context + 1]."""
    n_rows = TOKENS_PER_STEP // context
    starts = torch.randint(len(tokens) - context - 1, (n_rows,), generator=generator)
    return torch.stack([tokens[start : start + context + 1] for start in starts])


def loss_of(model: LanguageModel, batch: Tensor) -> Tensor:
    """Mean cross entropy of the next token, in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: LanguageModel, tokens: Tensor) -> float:
    """Mean loss over the first rows of the held-out text."""
    context = CONFIG["context"]
    rows = tokens[: 33 * context].unfold(0, context + 1, context)
    return float(np.mean([loss_of(model, row[None]).item() for row in rows]))


def make_optimizers(model: LanguageModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the embedding and the norms."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=6e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(progress: float) -> float:
    """The learning rate's factor: a short rise, level, then a straight fall to zero."""
    return min(1.0, progress / 0.02, (1.0 - progress) / 0.5)


def train(model: LanguageModel, tokens: Tensor, steps: int, minutes: float) -> int:
    """Trains in place; returns how many steps ran."""
    optimizers = make_optimizers(model)
    base = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(1)
    start, step, average = time.monotonic(), 0, math.log(CONFIG["vocab_size"])
    while True:
        progress = max(step / steps, (time.monotonic() - start) / (60 * minutes))
        if progress >= 1:
            return step
        for optimizer, lr in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = lr * max(rate(progress), 1e-3)
        context = max(length for begin, length in CONTEXTS if progress >= begin)
        loss = loss_of(model, random_batch(tokens, context, generator))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average = 0.98 * average + 0.02 * loss.item()
        step += 1
        if step % 50 == 0:
            seconds = time.monotonic() - start
            print(f"step {step:5d}  loss {average:.3f}  {seconds:6.0f} s", flush=True)


def save(path: Path, model: LanguageModel, merges: np.ndarray, facts: dict[str, str]) -> None:
    """One safetensors file: f16 weights, the tokenizer's merges, the configuration as metadata."""
    tensors = {name: p.detach().half().contiguous() for name, p in model.named_parameters()}
    tensors["tokenizer.merges"] = torch.from_numpy(merges.astype(np.int32)).to(torch.int16)
    save_file(tensors, path, metadata={"config": json.dumps(CONFIG), **facts})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--out", type=Path, default=HERE / "stdlib.safetensors")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    texts = stdlib_files()
    training = [text for i, text in enumerate(texts) if i % HELD_OUT != HELD_OUT // 2]
    held_out = [text for i, text in enumerate(texts) if i % HELD_OUT == HELD_OUT // 2]
    merges = train_merges(training, CONFIG["vocab_size"])
    tokenizer = Tokenizer(merges)
    tokens, held_out_tokens = (encode_files(tokenizer, part) for part in (training, held_out))
    model = LanguageModel()
    print(
        f"{len(texts)} files, {sum(map(len, texts)) / 1e6:.1f} MB, {len(tokens) / 1e6:.2f} M tokens"
        f", {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters",
        flush=True,
    )

    start = time.monotonic()
    steps = train(model, tokens, arguments.steps, arguments.minutes)
    loss = validation_loss(model, held_out_tokens)
    facts = {
        "trained_on": f"the standard library of Python {platform.python_version()}",
        "steps": str(steps),
        "tokens": str(steps * TOKENS_PER_STEP),
        "held_out_loss": f"{loss:.3f}",
    }
    save(arguments.out, model, merges, facts)
    print(
        f"held-out loss {loss:.3f} after {steps} steps, {(time.monotonic() - start) / 60:.1f} min"
    )
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
