"""Every installed library that the benchmark measures computes what it is measured on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

pytest.importorskip("ml_dtypes", reason="the benchmark makes bfloat16 inputs with ml_dtypes")

from bench.data import Inputs, Pool, make_inputs
from bench.oracle import WRONG_ABOVE, Oracle
from bench.peers import PEERS, Peer, UnsupportedCaseError, load_peer, load_peers
from bench.shapes import Case

pytestmark = pytest.mark.frameworks

CASES = [
    Case("x", "f32", 1, 40, D=16, Hq=4, Hkv=2),
    Case("x", "f16", 1, 40, D=16, Hq=4, Hkv=4, B=2),
    Case("x", "bf16", 5, 40, D=16, Hq=4, Hkv=2),
    Case("x", "f32", 24, 24, D=16, Hq=4, Hkv=2, B=2),
    Case("x", "f16", 24, 24, D=16, Hq=2, Hkv=2, causal=False),
    Case("x", "f32", 5, 24, D=16, Hq=4, Hkv=1, causal=False),
    Case("x", "f32", 1, 24, D=16, Hq=4, Hkv=2, arrays="torch"),
]


@pytest.fixture(scope="module", autouse=True)
def settings_of_the_process() -> Iterator[None]:
    """The peers change them for good."""
    metal_sdpa = pytest.importorskip("metal_sdpa")
    threads = metal_sdpa.get_num_threads()
    yield
    metal_sdpa.set_num_threads(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_grad_enabled(True)


def installed(name: str) -> Peer:
    if name == "ours":
        return load_peer("ours", "Ours", 2)
    peers, absent = load_peers([name], 2)
    if absent:
        pytest.skip(f"{name}: {absent[name]}")
    return peers[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("name", ["ours", *PEERS])
def test_every_variant_is_right_over_every_cache(name: str, case: Case) -> None:
    peer = installed(name)
    if case.arrays == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    pool = Pool()
    one = make_inputs(case, pool, 1 << 20)
    other = make_inputs(case, pool, 1 << 20)
    inputs = Inputs(case, one.q, [one.caches[0], other.caches[0]])
    oracle = Oracle(inputs)
    second = Oracle(Inputs(case, one.q, [other.caches[0]]))
    try:
        variants = peer.variants(case)
    except UnsupportedCaseError as error:
        pytest.skip(str(error))
    assert variants
    tried = 0
    for variant in variants:
        try:
            bound = peer.bind(inputs, variant)
        except UnsupportedCaseError:
            continue
        assert len(bound.calls) == 2
        with peer.awake():
            # The first call's output is the first cache's, also after the other one was read.
            bound.calls[1]()
            bound.calls[0]()
            out = np.asarray(bound.output(), np.float32)
        assert out.shape == (case.B, case.Hq, case.L, case.D), variant
        assert max(oracle.errors(out)) < WRONG_ABOVE, variant
        assert max(second.errors(out)) > WRONG_ABOVE, variant
        tried += 1
    assert tried, f"every variant of {variants} was refused"


def test_ours_and_torchs_names_and_versions() -> None:
    for name in ("ours", "pytorch", "mlx"):
        peer = installed(name)
        assert peer.name
        assert peer.version[0].isdigit()


def test_what_is_not_installed_is_absent_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "nobody", ("nobody", "Nobody"))
    peers, absent = load_peers(["nobody"], 1)
    assert peers == []
    assert absent["nobody"].startswith("ModuleNotFoundError: ")
