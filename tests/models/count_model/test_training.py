"""Fitting of the count model: what was measured is shrunk, what was not is predicted."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

from cfm.metrics import delta_pearson
from cfm.models import PerturbationCountModel
from cfm.models.count_model._module import CONTROL, FIRST_PART
from tests._screen import KEYS, log_mean, of, screen, seen


def fitted(adata: ad.AnnData, **arguments: object) -> PerturbationCountModel:
    PerturbationCountModel.setup_anndata(adata, **KEYS)
    model = PerturbationCountModel(adata, **arguments)
    model.train()
    return model


@pytest.fixture(scope="module", name="screen")
def the_screen() -> ad.AnnData:
    return screen()


@pytest.fixture(scope="module")
def held_out() -> PerturbationCountModel:
    """T cells under IFNB1 and the pair of IFNG and TNF in any cell are not seen."""
    return fitted(seen())


def check_shrunk(found: np.ndarray, measured: np.ndarray, control: np.ndarray) -> None:
    """Large effects are met; all lie between what was measured and none, by chance's share."""
    effect, real = found - control, measured - control
    large = np.abs(real) > 1
    np.testing.assert_allclose(effect[large], real[large], atol=0.1)
    assert (np.abs(effect) <= np.abs(real) + 1e-5).all()
    assert (effect * real >= -1e-5).all()


def test_measured_effects_are_shrunk_by_what_chance_explains(
    screen: ad.AnnData, held_out: PerturbationCountModel
) -> None:
    term = held_out.module
    levels = held_out.levels
    source = levels.sources.index("Monocyte") + 1
    part = levels.perturbations.index("IFNG") + FIRST_PART
    control, want = (
        log_mean(screen, np.flatnonzero(of(screen, "Monocyte", name)))
        for name in ("control", "IFNG")
    )
    np.testing.assert_allclose(term.expected_log(source, [CONTROL]), control, atol=1e-5)
    found = term.expected_log(source, [part]).numpy()
    check_shrunk(found, want, control)
    # halves of the cells: a shrunk effect of one is nearer to the effect in the other
    rows = [np.flatnonzero(of(screen, "Monocyte", name)) for name in ("control", "IFNG")]
    half = np.sort(np.concatenate([r[::2] for r in rows]))
    first = fitted(screen[half].copy()).predict_effects("IFNG").loc["Monocyte"].to_numpy()
    plain, other = (
        log_mean(screen, rows[1][i::2]) - log_mean(screen, rows[0][i::2]) for i in (0, 1)
    )
    assert delta_pearson(other, first) > delta_pearson(other, plain)


def test_parts_of_a_combination_are_summed(held_out: PerturbationCountModel) -> None:
    term, levels = held_out.module, held_out.levels
    a, b = (levels.perturbations.index(p) + FIRST_PART for p in ("IFNG", "TNF"))
    want = term.control[2] + term.effects[2, a] + term.effects[2, b]
    assert torch.allclose(term.expected_log(2, [a, b]), want.clamp(min=0), atol=1e-5)
    assert torch.equal(term.log_rates(2, [a, b]), term.log_rates(2, [b, a]))


def test_a_measured_combination_is_not_the_sum(screen: ad.AnnData) -> None:
    hidden = of(screen, "T cell", "IFNG+TNF")
    model = fitted(screen[~hidden].copy())
    term, levels = model.module, model.levels
    a, b = (levels.perturbations.index(p) + FIRST_PART for p in ("IFNG", "TNF"))
    want = log_mean(screen, np.flatnonzero(of(screen, "Monocyte", "IFNG+TNF")))
    source = levels.sources.index("Monocyte") + 1
    check_shrunk(term.expected_log(source, [a, b]).numpy(), want, term.control[source].numpy())
    # and what it adds elsewhere is added where it was not measured
    source = levels.sources.index("T cell") + 1
    real = log_mean(screen, np.flatnonzero(hidden))
    summed = (term.control[source] + term.effects[source, [a, b]].sum(0)).numpy()
    ours = term.expected_log(source, [b, a]).numpy()
    assert ((ours - real) ** 2).sum() < ((summed - real) ** 2).sum()


def test_a_source_without_controls_misleads_no_other(screen: ad.AnnData) -> None:
    """What it is cannot be told from what was done to it."""
    hidden = of(screen, "T cell", "IFNB1") | of(screen, "Monocyte", "control")
    with_bare = fitted(screen[~hidden].copy()).module
    hidden |= (screen.obs["cell_type"] == "Monocyte").to_numpy()
    model = fitted(screen[~hidden].copy())
    without = model.module
    part = FIRST_PART + model.levels.perturbations.index("IFNB1")
    types = sorted(set(screen.obs["cell_type"]))
    t_cell = 1 + model.levels.sources.index("T cell")
    seen = 1 + types.index("T cell")
    observed = log_mean(screen, of(screen, "T cell", "IFNB1"))
    observed -= log_mean(screen, of(screen, "T cell", "control"))
    found = delta_pearson(observed, with_bare.effects[seen, part].numpy())
    assert found > delta_pearson(observed, without.effects[t_cell, part].numpy()) - 0.03
    # what was measured in the source itself is as measured
    bare = 1 + types.index("Monocyte")
    mean = log_mean(screen, of(screen, "Monocyte", "IFNB1"))
    check_shrunk(
        with_bare.expected_log(bare, [part]).numpy(), mean, with_bare.control[bare].numpy()
    )


def test_perturbations_of_few_cells_are_named(screen: ad.AnnData) -> None:
    kept = screen.obs["perturbation"].isin(["control", "IFNG"]).to_numpy(copy=True)
    kept[np.flatnonzero(of(screen, "T cell", "TNF"))[:4]] = True
    with pytest.warns(UserWarning, match=r"1 perturbations are not known.*\['TNF'\]"):
        fitted(screen[kept].copy())


def test_a_combination_is_carried_over_as_a_whole(screen: ad.AnnData) -> None:
    obs = screen.obs
    hidden = ((obs["cell_type"] == "Monocyte") & (obs["perturbation"] != "control")).to_numpy()
    model = fitted(screen[~hidden].copy())
    term, levels = model.module, model.levels
    source = levels.sources.index("Monocyte") + 1
    parts = [levels.perturbations.index(p) + FIRST_PART for p in ("IFNG", "TNF")]
    real = log_mean(screen, np.flatnonzero(of(screen, "Monocyte", "IFNG+TNF")))
    before = term.control[source].numpy()
    whole = delta_pearson(term.expected_log(source, parts).numpy() - before, real - before)
    summed = delta_pearson(term.effects[source, parts].sum(0).numpy(), real - before)
    assert whole > summed + 0.05
