"""Every Attention case of the installed onnx, with Y from this library."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.frameworks

CASES_OF_ONNX = {"1.23.2": 93}


@functools.cache
def cases() -> dict[str, Any]:
    import onnx
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases of other operators divide by zero as they are made
        collected = collect_testcases("Attention")
    found = {
        case.name: case
        for case in collected
        if any(node.op_type == "Attention" for node in case.model.graph.node)
    }
    assert len(found) == CASES_OF_ONNX.get(onnx.__version__, len(found)) > 0
    return found


def test_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx.reference import ReferenceEvaluator

    from metal_sdpa.integrations import onnx as integration

    calls = []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(keywords)
        return metal_sdpa.sdpa(*arguments, **keywords)

    import metal_sdpa

    monkeypatch.setattr(integration, "sdpa", counted)
    failures = []
    for name, case in cases().items():
        evaluator = ReferenceEvaluator(case.model, new_ops=[integration.Attention])
        names = [value.name for value in case.model.graph.input]
        for inputs, outputs in case.data_sets:
            before = len(calls)
            got = evaluator.run(None, dict(zip(names, inputs, strict=True)))
            assert len(calls) == before + 1, name
            for output, wanted in zip(got, outputs, strict=True):
                # As onnx's own runner compares: bfloat16 within two units of the last place.
                is_bf16 = output.dtype.name == "bfloat16"
                tolerance = {"rtol": max(case.rtol, 2**-6 * is_bf16), "atol": case.atol}
                try:
                    assert output.dtype == wanted.dtype
                    got64, wanted64 = (x.astype(np.float64) for x in (output, wanted))
                    np.testing.assert_allclose(got64, wanted64, **tolerance)
                except AssertionError as error:
                    failures.append(f"{name}: {error}")
    assert not failures, "\n".join(failures)
