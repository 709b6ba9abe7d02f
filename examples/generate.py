"""Generates text with a small language model whose attention runs on metal_sdpa.

The model was trained by train.py on the Python standard library's own source. A causal prefill
takes the whole prompt in; each new token then replays attention that was recorded once. At the end
every attention row of the run is compared with float64.
"""

from __future__ import annotations

import argparse
import codecs
import sys
from pathlib import Path

import metal_sdpa
from float64_check import Accuracy
from host_dtypes import STORAGE
from inference import Engine, Phase
from model import Transformer, load_model
from sampling import Sampler
from tokenizer import FILE_START, Tokenizer

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "stdlib.safetensors"
PROMPT = HERE / "prompt.txt"
SHOWN_LINES = 12  # of the prompt


class UserError(Exception):
    """Something that the caller can put right; the text says what."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="text to continue")
    source.add_argument("--prompt-file", type=Path, default=PROMPT, help="file to continue")
    parser.add_argument("--tokens", type=int, default=240, help="how many tokens to generate")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest")
    parser.add_argument("--seed", type=int, default=1, help="of the choice among likely tokens")
    parser.add_argument("--device", choices=("auto", "cpu", "metal"), default="auto")
    parser.add_argument("--dtype", choices=tuple(STORAGE), default="f16", help="of the KV cache")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    try:
        return run(arguments)
    except (UserError, metal_sdpa.Error) as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def run(arguments: argparse.Namespace) -> int:
    check_numbers(arguments)
    prompt = read_prompt(arguments)
    model, tokenizer, notes = read_model()
    # A line end and the indentation after it are one token: the model has to write both.
    prompt = prompt.rstrip()
    tokens = [FILE_START, *tokenizer.encode(prompt)]
    capacity = model.config.context
    check_capacity(len(tokens), arguments.tokens, capacity)
    device = metal_sdpa.Device(arguments.device)
    engine = Engine(model, device, capacity, arguments.dtype)

    print_setup(model, notes, device, arguments, len(tokens))
    print_prompt(prompt)
    sampler = Sampler(arguments.temperature, arguments.seed)
    n_generated = stream(engine, tokenizer, sampler, tokens, arguments.tokens)
    return report(engine, n_generated)


# --- what the caller gave ------------------------------------------------------------------------


def check_numbers(arguments: argparse.Namespace) -> None:
    if arguments.tokens < 1:
        raise UserError(f"--tokens takes 1 or more, but got {arguments.tokens}")
    if not 0 <= arguments.temperature < float("inf"):
        raise UserError(f"--temperature takes 0 or more, but got {arguments.temperature}")
    if arguments.seed < 0:
        raise UserError(f"--seed takes 0 or more, but got {arguments.seed}")


def read_prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return arguments.prompt.encode("utf-8", errors="replace").decode()
    try:
        return arguments.prompt_file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--prompt-file {arguments.prompt_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file {arguments.prompt_file} is not UTF-8 text") from error


def read_model() -> tuple[Transformer, Tokenizer, dict[str, str]]:
    try:
        return load_model(WEIGHTS)
    except OSError as error:
        raise UserError(f"{WEIGHTS}: {error.strerror}; train.py makes it") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def check_capacity(n_prompt: int, n_new: int, capacity: int) -> None:
    """The model knows positions below `capacity`, and the KV cache holds as many."""
    if n_prompt >= capacity:
        raise UserError(
            f"the prompt is {n_prompt} tokens long, but the KV cache holds {capacity}, "
            "new tokens included; give a shorter prompt"
        )
    if n_prompt + n_new > capacity:
        raise UserError(
            f"the prompt is {n_prompt} tokens long and the KV cache holds {capacity}: "
            f"--tokens takes at most {capacity - n_prompt} here, but got {n_new}"
        )


# --- the run -------------------------------------------------------------------------------------


def stream(
    engine: Engine, tokenizer: Tokenizer, sampler: Sampler, prompt: list[int], n_new: int
) -> int:
    """Prints up to n_new tokens as they come; fewer where the model ends the file."""
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    token = sampler.pick(engine.prefill(prompt))
    n_generated = 0
    while token != FILE_START:
        write(characters.decode(tokenizer.token_bytes(token)))
        n_generated += 1
        if n_generated == n_new:
            break
        token = sampler.pick(engine.decode(token))
    write(characters.decode(b"", final=True))
    return n_generated


def write(text: str) -> None:
    """To the terminal at once, whatever characters it can show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


# --- what is printed around it -------------------------------------------------------------------


def dimmed(text: str) -> str:
    return f"\033[2m{text}\033[0m" if sys.stdout.isatty() else text


def print_setup(
    model: Transformer,
    notes: dict[str, str],
    device: metal_sdpa.Device,
    arguments: argparse.Namespace,
    n_prompt: int,
) -> None:
    config = model.config
    source = "--prompt" if arguments.prompt is not None else arguments.prompt_file.name
    print(
        f"model     {model.n_parameters / 1e6:.2f} M parameters, {config.n_layers} layers, "
        f"{config.n_heads} query heads on {config.n_kv_heads} KV heads of {config.head_dim}\n"
        f"          trained on {notes.get('trained_on', 'unknown text')}\n"
        f"device    {device.kind}: {device.name}\n"
        f"KV cache  {arguments.dtype}, {config.context} slots a layer, free ones filled with NaN\n"
        f"prompt    {n_prompt} tokens of {source}\n"
    )


def print_prompt(prompt: str) -> None:
    """The last lines of the prompt; what follows on the terminal is the model's."""
    lines = prompt.splitlines(keepends=True)
    if len(lines) > SHOWN_LINES:
        print(
            f"--- the prompt's last {SHOWN_LINES} of {len(lines)} lines, then the model's own text"
        )
    else:
        print("--- the prompt, then the model's own text")
    write(dimmed("".join(lines[-SHOWN_LINES:])))


def report(engine: Engine, n_generated: int) -> int:
    """Prints what the run cost and how exact it was; the exit status."""
    accuracy = engine.check_accuracy()
    print(f"\n--- {n_generated} tokens generated\n")
    print(phase_line("prefill", engine.prefill_phase))
    print(phase_line("decode", engine.decode_phase))
    print(
        f"accuracy  {accuracy.n_rows:,} rows against attention in float64: "
        f"largest difference {accuracy.largest_difference:.1e}\n"
        f"          worst row: error {accuracy.worst_error:.1e}, where it may be "
        f"{accuracy.worst_bound:.1e}"
    )
    return verdict(accuracy)


def phase_line(name: str, phase: Phase) -> str:
    if phase.tokens == 0:
        return f"{name:<8}  no tokens"
    return (
        f"{name:<8}  {phase.tokens} tokens in {phase.seconds:.3f} s: "
        f"{phase.tokens_per_second:,.0f} tokens/s, {phase.attention_share:.0%} of it in attention"
    )


def verdict(accuracy: Accuracy) -> int:
    if not accuracy.good:
        print("\nFAILED: an attention row is further from float64 than it may be")
        return 1
    print("\nOK: every attention row of the run is as close to float64 as it must be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
