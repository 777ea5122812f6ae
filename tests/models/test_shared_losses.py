"""Losses of parts of a batch: the value of the whole, and gradients whose mean is its gradient."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cfm.models.cellpulse._module import CellPulseModule, Tokens
from cfm.models.cellvq._additions import CentredProjection
from cfm.models.cellvq._training import (
    Weights,
    property_loss,
    separation_loss,
    training_losses,
)
from cfm.models.lingshu import Conditions
from cfm.models.pulsar._module import SIZES, PulsarModule
from cfm.models.pulsar._training import agreement_loss, pretraining_losses
from tests import _bulk, _cellvq, _lingshu
from tests._together import together
from tests.models.test_shared_batches import coded_stream, flat, paired_stream

N = 12
#: Rows of three processes.
PARTS = (np.arange(0, 5), np.arange(5, 6), np.arange(6, 12))
#: A network, a batch, what makes losses of both, and how many rows in a batch are of one thing.
Case = tuple[nn.Module, Any, Callable[[Any, Any], dict[str, torch.Tensor]], int]


def bulkformer() -> Case:
    module = _bulk.untrained().module
    x = torch.from_numpy(_bulk.toy_log_tpm().X[:N])
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    hidden[5] = False  # a process of which nothing is asked
    return module, (x, hidden), lambda m, b: m.losses(*b), 1


def lingshu() -> Case:
    module = _lingshu.untrained().module
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(-1, 9, (N, _lingshu.N_GENES), generator=generator)
    time = torch.rand(N, generator=generator) * 0.8 + 0.1
    hidden = torch.rand(tokens.shape, generator=generator) < time[:, None]
    source, none = torch.arange(N) % 3, torch.zeros(N, 0, dtype=torch.int64)
    conditions = Conditions(source, source[:, None], none, torch.full((N,), 100.0))
    return module, (tokens, hidden, time, conditions), lambda m, b: m.losses(*b), 1


def pulsar() -> Case:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ff": 16, "decoder_ff": 16}
    heads = {"encoder_heads": 2, "decoder_heads": 2}
    size = replace(
        SIZES["mini"], input_dim=5, dim=16, dropout=0.0, masked_input=True, **layers, **heads
    )
    module = PulsarModule(size)
    batch = next(iter(paired_stream(batch_size=N)))
    weights = {"reconstruction_weight": 1.0, "contrastive_weight": 0.5, "temperature": 0.1}
    return module, batch, lambda m, b: pretraining_losses(m, b, **weights), 2


def cellpulse() -> Case:
    sizes = {"n_factors": 6, "dim": 16, "n_heads": 2, "dropout": 0.0}
    module = CellPulseModule(30, **sizes)
    generator = torch.Generator().manual_seed(0)
    module.set_gene_factors(torch.randn(30, 6, generator=generator), torch.zeros(6).long())
    gene = torch.rand(N, 30, generator=generator).argsort(1)[:, :20]
    state = torch.randint(0, 3, gene.shape, generator=generator)
    target = Tokens(gene, state, torch.rand(gene.shape, generator=generator))
    asked = torch.rand(gene.shape, generator=generator) < 0.5
    magnitude = target.magnitude.masked_fill(asked, torch.nan)
    hidden = Tokens(gene, state.masked_fill(asked, 3), magnitude)
    groups = torch.arange(N) % 5

    def losses(module: Any, batch: Any) -> dict[str, torch.Tensor]:
        hidden, target, asked, groups = batch
        found = module.losses(hidden, target, asked, groups=groups)
        linear = {"linear": module.linear_loss(hidden, target, asked)}
        return {"loss": sum(found.values()) + linear["linear"]} | found | linear

    return module, (hidden, target, asked, groups), losses, 1


def cellvq() -> Case:
    module = _cellvq.small_model(dropout=0.0).module
    batch = next(iter(coded_stream(batch_size=N)))
    batch = batch._replace(labels=batch.labels.repeat(1, 2) % 2 - 1)
    assert bool((batch.labels < 0).any())
    mean, variance = torch.zeros(8), torch.ones(8)
    module.quantiser.proj = CentredProjection(module.quantiser.proj, mean, variance, keep=True)
    weights = Weights(1.0, 0.1, 0.3, (1.0, 0.5), 0.0, (torch.tensor([0.2, 1.0, 1.0]), None))
    return (
        module,
        batch,
        lambda m, b: training_losses(m, b, weights=weights, temperature=0.4),
        1,
    )


def rows_of(batch: Any, rows: np.ndarray) -> Any:
    """Some rows of all tensors of a batch."""
    if isinstance(batch, torch.Tensor):
        return batch[rows]
    if batch is None:
        return None
    parts = [rows_of(part, rows) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


def step(module: nn.Module, batch: Any, losses: Any) -> tuple[dict[str, float], list[Any], Any]:
    found = losses(module, batch)
    found["loss"].backward()
    gradients = [p.grad for p in module.parameters()]
    return {k: v.item() for k, v in found.items()}, gradients, dict(module.named_buffers())


@pytest.mark.parametrize("make", [bulkformer, lingshu, pulsar, cellpulse, cellvq])
def test_parts_of_a_batch_teach_what_the_whole_does(
    make: Callable[[], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module, batch, losses, n_draws = make()
    module.train().double()
    batch = rows_of(batch, np.arange(len(flat(batch)[0])))
    batch = in_double(batch)
    modules = [deepcopy(module) for _ in PARTS]
    parts = [np.concatenate([rows + N * i for i in range(n_draws)]) for rows in PARTS]
    torch.manual_seed(5)
    values, gradients, buffers = step(module, batch, losses)
    torch.manual_seed(5)
    found = together(3, lambda i: step(modules[i], rows_of(batch, parts[i]), losses), monkeypatch)
    for own, _, own_buffers in found:
        assert own == pytest.approx(values, rel=1e-6)
        for name, buffer in own_buffers.items():
            torch.testing.assert_close(buffer, buffers[name], rtol=1e-6, atol=1e-9)
    for i, expected in enumerate(gradients):
        own = [g[i] for _, g, _ in found]
        if expected is None:
            assert own == [None] * 3
        else:
            mean = sum(torch.zeros_like(expected) if g is None else g for g in own) / 3
            torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-7)


def test_draws_that_every_process_has_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a last batch with fewer donors than processes."""
    torch.manual_seed(0)
    draws, donor, label = torch.randn(4, 6), torch.arange(4) % 2, torch.tensor([-1] * 4)
    expected = agreement_loss(draws, donor, label, 0.1)
    found = together(3, lambda _: agreement_loss(draws, donor, label, 0.1), monkeypatch)
    torch.testing.assert_close(torch.stack(found), expected.expand(3))


def test_classes_weigh_what_they_are_given() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(6, 3), torch.tensor([0, 1, 2, -1, 1, 1])
    classes = torch.tensor([0.2, 1.5, 3.0])
    known = label >= 0
    expected = nn.functional.cross_entropy(logits[known], label[known], weight=classes)
    torch.testing.assert_close(property_loss(logits, label, classes)[0], expected)


def test_all_processes_look_at_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many codes, some are drawn whose neighbours are looked for."""
    codes = nn.functional.normalize(torch.randn(600, 3), dim=1)
    torch.manual_seed(1)
    expected = separation_loss(codes, all_codes=False)
    torch.manual_seed(1)
    found = together(2, lambda _: separation_loss(codes, all_codes=False), monkeypatch)
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)


def in_double(batch: Any) -> Any:
    """The batch with all floating numbers in double precision."""
    if isinstance(batch, torch.Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if batch is None:
        return None
    parts = [in_double(part) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
