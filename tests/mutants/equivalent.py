"""Random mutants that change nothing anybody could see, by the hash that names them, with why."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    "af5d1ba4160f8428": "check_hygiene.py: __name__ >= '__main__' is as true of a script",
    "d7d63629faac1155": "check_workflows.py: a message for people, told beside the exit status",
    "ea84af1932a184f7": "mlx.py: arrays made from NumPy's are there already when mx.eval asks",
}
