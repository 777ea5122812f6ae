"""What the models share in training: precision and held-out studies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfm.models._training import held_out_studies, training_precision


@pytest.mark.parametrize(
    ("accelerator", "expected"), [("auto", "bf16-mixed"), ("gpu", "bf16-mixed"), ("cpu", "32-true")]
)
def test_a_gpu_that_is_not_used_does_not_decide_the_precision(
    accelerator: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert training_precision("auto", accelerator) == expected
    assert training_precision("64-true", accelerator) == "64-true"
    assert training_precision("float32", accelerator) == "32-true"
    assert training_precision("bfloat16", accelerator) == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert training_precision("auto", accelerator) == "32-true"


def test_studies_are_held_out_whole_and_some_are_left() -> None:
    studies = np.array(["a", "a", "b", "c", ""], dtype=object)
    assert len(held_out_studies(studies, 0.1, 0)) == 1
    assert len(held_out_studies(studies, 0.99, 0)) == 2  # one is left to train on
    assert held_out_studies(studies, 0.5, 1) == held_out_studies(studies, 0.5, 1)
    assert held_out_studies(studies, 0.0, 0) == held_out_studies(studies[:3], 0.5, 0) == []
    assert "" not in held_out_studies(studies, 0.99, 0)
