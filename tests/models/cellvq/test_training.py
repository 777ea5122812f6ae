"""The pieces of training: what is shown, what is asked, schedules, and how codes are counted."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cfm.models.cellvq import SIZES, CellVQModule
from cfm.models.cellvq._additions import CentredProjection
from cfm.models.cellvq._data import CellReader, Cells, CellStream
from cfm.models.cellvq._training import (
    CellVQPlan,
    Weights,
    balance_loss,
    centred_projection,
    perplexity,
    pooled_cells,
    property_loss,
    separation_loss,
    training_losses,
    warn_of_collapse,
)
from cfm.nn._soft_codes import Quantised
from tests._planted_codes import SMALL, planted_cells, untrained


def stream(n: int = 20, **kwargs: Any) -> CellStream:
    model = untrained(planted_cells(n))
    reader = CellReader(model.adata, model.vocabulary)
    settings = {"batch_size": 8, "seed": 0, "keep_share": (0.3, 0.7), "code_only_share": 0.5}
    return CellStream(reader, np.zeros((n, 0), np.int64), np.arange(n), **(settings | kwargs))


def plan(module: CellVQModule, **kwargs: Any) -> CellVQPlan:
    settings: dict[str, Any] = {
        **{"weights": Weights(1.0, 0.1, 0.0), "code_heads": [], "checked": [], "examples": []},
        **{"frozen": [], "schedule": "cosine", "last_temperature": 0.02, "anneal_share": 0.8},
        **{"lr": 1e-3, "weight_decay": 0.01, "n_steps": 100},
    }
    return CellVQPlan(module, **(settings | kwargs))


def test_what_is_shown_is_not_asked_and_the_rest_is() -> None:
    cells = planted_cells(20)
    for batch in stream(fixed=True):
        for i in range(len(batch.total)):
            shown = batch.gene_ids[i][~batch.padding[i]][:-2]
            expressed = batch.counts[i] > 0
            assert expressed[shown].all()
            assert not batch.hidden[i, shown].any()
            assert batch.hidden[i].sum() == 60 - len(shown)
            assert 0.05 < len(shown) / expressed.sum() < 0.95
        torch.testing.assert_close(batch.total, batch.counts.sum(1))
    first = next(iter(stream(fixed=True)))
    np.testing.assert_array_equal(first.counts, cells.X[:8])
    # values are those of the whole cell, not of what is shown
    whole = np.log1p(cells.X[0] / cells.X[0].sum() * 1e4)
    np.testing.assert_allclose(
        first.values[0][~first.padding[0]][:-2],
        whole[first.gene_ids[0][~first.padding[0]][:-2]],
        rtol=1e-5,
    )


@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_each_cell_shows_at_least_one_gene(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix((rng.random((5, 12)) < 0.4) * rng.integers(1, 9, (5, 12)))
    cells = Cells.from_counts(counts)
    part = cells.part(np.full(5, share), rng.random(cells.values.nnz))
    assert ((part.n_expressed >= 1) == (cells.n_expressed >= 1)).all()
    assert (part.n_expressed <= cells.n_expressed).all()
    kept = part.values.toarray()
    np.testing.assert_array_equal(kept[kept > 0], cells.values.toarray()[kept > 0])
    if share == 1.0:
        assert part.values.nnz == cells.values.nnz


@pytest.mark.parametrize("schedule", ["cosine", "geometric"])
def test_the_temperature_falls_and_stays(schedule: Any) -> None:
    made = plan(untrained().module, schedule=schedule)
    found = [made.temperature(step) for step in range(100)]
    assert found[0] == 1.0
    assert (np.diff(found) <= 1e-12).all()
    np.testing.assert_allclose(found[80:], 0.02)
    assert found[79] > 0.02
    middle = math.sqrt(0.02) if schedule == "geometric" else 0.51
    assert found[40] == pytest.approx(middle)
    assert plan(untrained().module, schedule=None).temperature(3) == 0.0


@pytest.mark.parametrize("n_steps", [1, 2, 10, 1000])
def test_the_rate_goes_up_and_down(n_steps: int) -> None:
    made = plan(untrained().module, n_steps=n_steps)
    found = np.array([made.rate(step) for step in range(n_steps + 1)])
    assert found.max() == pytest.approx(1.0)
    assert (found >= 0).all()
    peak = found.argmax()
    assert (np.diff(found[: peak + 1]) > 0).all()
    assert (np.diff(found[peak:]) <= 0).all()
    assert found[-1] == pytest.approx(1e-3)


def test_perplexity_by_hand() -> None:
    assert perplexity(torch.tensor([3, 3, 3]), 8) == (pytest.approx(1.0), 1)
    assert perplexity(torch.tensor([0, 1, 2, 7]), 8) == (pytest.approx(4.0), 4)
    found, live = perplexity(torch.tensor([0, 0, 0, 1]), 8)
    assert (round(found, 4), live) == (1.7548, 2)


@pytest.mark.parametrize(
    ("perplexities", "n_cells", "n_codes", "collapsed"),
    [
        ([9.0, 1.2, 1.1, 1.0], 100, 256, True),
        ([1.0], 100, 256, True),
        ([1.0, 1.0, 2.5], 100, 256, False),
        ([3.0, 3.0, 3.0], 4096, 4096, True),
        ([40.0, 40.0, 40.0], 4096, 4096, False),
        ([1.0, 1.0, 1.0], 2, 256, False),
        ([], 100, 256, False),
    ],
)
def test_a_collapse_is_named(
    perplexities: list[float], n_cells: int, n_codes: int, collapsed: bool
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert warn_of_collapse(perplexities, n_cells, n_codes) == collapsed
    assert len(caught) == collapsed
    if collapsed:
        assert "codes have collapsed" in str(caught[0].message)
        assert "balance_weight" in str(caught[0].message)


def test_training_warns_of_a_collapse() -> None:
    """Cells that are all the same can only have one code."""
    cells = planted_cells(40)
    cells.X[:] = cells.X[0]
    model = untrained(cells)
    with pytest.warns(UserWarning, match=r"40? cells.*|codes have collapsed"):
        model.train(max_steps=2, enable_progress_bar=False, accelerator="cpu")
    assert model.history["n_live_codes"]["n_live_codes"].iloc[-1] == 1


def test_balance_and_crowding_by_hand() -> None:
    def of(probability: torch.Tensor) -> Quantised:
        nothing = torch.zeros(0)
        return Quantised(nothing, nothing, nothing, nothing, probability, nothing)

    assert float(balance_loss(of(torch.full((3, 4), 0.25)))) == pytest.approx(0.0, abs=1e-6)
    one = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(3, -1)
    assert float(balance_loss(of(one))) == pytest.approx(1.0, abs=1e-6)
    assert float(balance_loss(of(torch.eye(4)))) == pytest.approx(0.0, abs=1e-6)
    angle = torch.tensor([0.0, 0.1, 2.0])
    codes = torch.stack([angle.cos(), angle.sin()], dim=1).requires_grad_()
    expected = (2 * math.cos(0.1) + math.cos(1.9)) / 3
    found = separation_loss(codes, all_codes=True)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-6)
    found.backward()
    assert codes.grad.abs().sum() > 0
    many = torch.nn.functional.normalize(torch.randn(1500, 3), dim=1)
    exact = float(separation_loss(many, all_codes=True))
    assert float(separation_loss(many, all_codes=False)) == pytest.approx(exact, abs=2e-3)


def test_cells_without_a_label_do_not_count() -> None:
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    loss, accuracy = property_loss(logits, torch.tensor([0, 1, -1]), None)
    assert float(accuracy) == 1.0
    assert float(loss) == pytest.approx(math.log1p(math.exp(-5.0)), rel=1e-4)
    loss, accuracy = property_loss(logits, torch.tensor([1, 1, -1]), torch.tensor([1.0, 0.0]))
    assert float(accuracy) == 0.5


def test_classes_weigh_alike_however_many_cells_have_them() -> None:
    labels = np.array([[0, -1], [0, -1], [0, -1], [2, -1]])
    first, second = Weights(1.0, 0.0, 0.0).balanced(labels, [3, 2]).classes
    weight = first.numpy()
    assert weight[1] == 0.0
    assert 3 * weight[0] == pytest.approx(weight[2])
    assert (3 * weight[0] + weight[2]) / 4 == pytest.approx(1.0)
    assert second is None


def test_the_code_alone_hides_all_genes_from_the_decoder() -> None:
    model = untrained(code_term=False)  # whose decoder starts silent
    module = model.module.eval()
    made = next(iter(stream(fixed=True)))
    parts = []
    for alone in (True, False):
        batch = made._replace(code_only=torch.full_like(made.code_only, alone))
        with torch.no_grad():
            encoded = 10.0 * module.encode(batch.values, batch.gene_ids, batch.padding)
            vector = torch.ones(len(encoded), module.size.dim)
            hidden = batch.padding | batch.code_only.unsqueeze(1)
            parts.append(module.decode(encoded, batch.gene_ids, hidden, vector=vector)[0])
    torch.testing.assert_close(parts[0], parts[0][:1].expand_as(parts[0]))
    assert not torch.allclose(parts[1], parts[1][:1].expand_as(parts[1]), rtol=1e-3)
    one = training_losses(module, made, weights=Weights(1.0, 0.0, 0.0), temperature=0.0)
    other = made._replace(code_only=~made.code_only)
    two = training_losses(module, other, weights=Weights(1.0, 0.0, 0.0), temperature=0.0)
    assert not torch.equal(one["loss"], two["loss"])


def test_cells_start_apart_and_stay_apart_when_the_encoder_drifts() -> None:
    cells = planted_cells(120)
    torch.manual_seed(0)
    module = CellVQModule(60, size=replace(SIZES["mini"], **SMALL))
    reader = stream(120).reader
    whole = reader.whole_cells(np.arange(len(cells)), 32)
    pooled = pooled_cells(module, whole)

    def spread(x: torch.Tensor) -> float:
        module.eval()
        return perplexity(module.quantize(x).code, 32)[0]

    before = spread(pooled)
    with centred_projection(module, whole, fresh=True):
        projection = module.quantiser.proj
        assert isinstance(projection, CentredProjection)
        assert spread(pooled) > max(8.0, before)
        module.train()
        drifted = pooled + 5.0  # all cells move together
        assert torch.allclose(projection(drifted).mean(0), torch.zeros(32), atol=1e-3)
        module.eval()
        module.norm.bias.data += 5.0  # the encoder goes where they went
        moved = pooled_cells(module, whole)
    assert type(module.quantiser.proj) is torch.nn.Linear
    torch.testing.assert_close(moved, drifted, atol=1e-3, rtol=0.0)
    assert spread(moved) > 8.0
    pooled = moved
    latent = module.quantize(pooled).latent.detach()
    with centred_projection(module, whole, fresh=False):  # going on changes nothing by itself
        module.eval()
        torch.testing.assert_close(module.quantize(pooled).latent, latent, atol=1e-3, rtol=0.0)
    module.eval()
    torch.testing.assert_close(module.quantize(pooled).latent, latent, atol=1e-3, rtol=0.0)
