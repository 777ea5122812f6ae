"""The count term: a count model beside the network."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import cfm
from cfm.metrics import delta_pearson
from cfm.models import LingshuCell, PerturbationCountModel
from cfm.models.count_model._module import CONTROL, FIRST_PART, LIBRARY, Conditions
from cfm.models.lingshu._counts import N_VALUES, CountTerm, bin_widths, representatives
from tests._screen import KEYS, log_mean, of, screen, seen

SIZES = {"dim": 16, "n_layers": 1, "n_heads": 2, "ff_dim": 32, "group_size": 16}


def fitted(adata: ad.AnnData, **arguments: object) -> LingshuCell:
    LingshuCell.setup_anndata(adata, **KEYS)
    model = LingshuCell(adata, **SIZES, **arguments)
    model.fit_count_term()
    return model


@pytest.fixture(scope="module", name="screen")
def the_screen() -> ad.AnnData:
    return screen()


@pytest.fixture(scope="module")
def held_out() -> LingshuCell:
    """T cells under IFNB1 and the pair of IFNG and TNF in any cell are not seen."""
    return fitted(seen())


def conditions(source: int, parts: list[int], depth: float, n: int = 1) -> Conditions:
    return Conditions(
        torch.full((n,), source),
        torch.tensor([parts] * n),
        torch.zeros(n, 0, dtype=torch.long),
        torch.full((n,), depth),
    )


def small_term() -> CountTerm:
    term = CountTerm(3, 1, 1)
    control = np.array([[0.5, 2.0, 5.0]] * 2)
    effects = np.zeros((2, FIRST_PART + 1, 3))
    effects[:, FIRST_PART] = [1.0, -1.5, 0.0]
    term.fill(control, effects, np.array([0.05, 0.5, 2.0]), [np.full(9, 1500.0)] * 2)
    return term


@pytest.mark.parametrize("parts", [[CONTROL], [FIRST_PART]])
def test_distributions_have_the_mean_that_was_asked_for(parts: list[int]) -> None:
    term = small_term()
    scores = term(conditions(1, parts, 1500.0), torch.zeros(3, dtype=torch.long), torch.arange(3))
    assert scores.shape == (3, N_VALUES)
    mass = scores.exp().double().numpy()
    np.testing.assert_allclose(mass.sum(axis=1), 1.0, rtol=1e-5)
    value = np.log1p(LIBRARY * (representatives() + (bin_widths() - 1) / 2) / 1500.0)
    expected = [0.5, 2.0, 5.0] if parts == [CONTROL] else [1.5, 0.5, 5.0]
    np.testing.assert_allclose(mass @ value, expected, atol=0.03)


def test_deeper_cells_have_more_counts() -> None:
    term = small_term()
    rows, genes = torch.zeros(3, dtype=torch.long), torch.arange(3)
    count = torch.from_numpy(representatives()).float()
    means = [
        term(conditions(1, [CONTROL], depth), rows, genes).exp() @ count
        for depth in (500.0, 4000.0)
    ]
    np.testing.assert_allclose(means[1] / means[0], 8.0, rtol=0.1)


def test_cells_do_not_depend_on_their_neighbours() -> None:
    term = small_term()
    two = Conditions(
        *(
            torch.cat(p)
            for p in zip(
                conditions(1, [FIRST_PART], 900.0)[:4],
                conditions(0, [CONTROL], 3000.0)[:4],
                strict=True,
            )
        )
    )
    both = term(two, torch.tensor([1, 0, 0]), torch.tensor([2, 1, 0]))
    alone = term(two.rows(slice(0, 1)), torch.tensor([0, 0]), torch.tensor([1, 0]))
    assert torch.equal(both[1:], alone)


def test_an_effect_is_carried_to_another_cell_type(
    screen: ad.AnnData, held_out: LingshuCell
) -> None:
    source = screen[of(screen, "T cell", "control")][:80].copy()
    made = held_out.simulate(source, ["IFNB1"], n_steps=2)
    before = log_mean(source)
    real = log_mean(screen, np.flatnonzero(of(screen, "T cell", "IFNB1"))) - before
    assert delta_pearson(log_mean(made) - before, real) > 0.8
    count_model = held_out.count_model
    assert count_model is not None
    controls = np.flatnonzero(of(screen, "T cell", "control"))
    real += before - log_mean(screen, controls)  # from the controls that both methods know
    ours = delta_pearson(count_model.predict_effects("IFNB1").loc["T cell"].to_numpy(), real)
    plain = cfm.tl.simulate_perturbation(
        screen[~of(screen, "T cell", "IFNB1")].copy(),
        "IFNB1",
        model="mean_shift",
        key="perturbation",
        control="control",
        groupby="cell_type",
        groups=["T cell"],
    )
    assert ours > delta_pearson(log_mean(plain) - log_mean(screen, controls), real)


def test_unseen_targets_follow_from_features(screen: ad.AnnData) -> None:
    features = screen.uns["features"]
    known = screen[screen.obs["perturbation"] != "IFNA2"].copy()
    known.uns = {}
    source = known[of(known, "Monocyte", "control")][:60].copy()
    before = log_mean(source)
    real = log_mean(screen, np.flatnonzero(of(screen, "Monocyte", "IFNA2"))) - before
    listed = fitted(known, perturbation_features=features)
    inside = log_mean(listed.simulate(source, ["IFNA2"], n_steps=1)) - before
    assert delta_pearson(inside, real) > 0.6
    asked = fitted(known, perturbation_features=features.drop(index="IFNA2"))
    outside = (
        log_mean(asked.simulate(source, ["IFNA2"], features=features.loc["IFNA2"], n_steps=1))
        - before
    )
    assert delta_pearson(outside, real) > 0.6
    nothing = log_mean(asked.simulate(source, ["EPO"], n_steps=1)) - before
    assert abs(delta_pearson(nothing, real)) < delta_pearson(outside, real) - 0.3


def test_saved_models_make_the_same_cells(
    held_out: LingshuCell, screen: ad.AnnData, tmp_path: Path
) -> None:
    held_out.save(tmp_path / "model")
    again = LingshuCell.from_pretrained(tmp_path / "model")
    source = screen[of(screen, "B cell", "control")][:5].copy()
    a, b = (m.simulate(source, ["TNF", "IL6"]) for m in (held_out, again))
    assert (a.X != b.X).nnz == 0
    assert again.provenance == {"training_studies": []}


def test_what_cells_were_is_found_again(held_out: LingshuCell, screen: ad.AnnData) -> None:
    source = screen[of(screen, "NK cell", "control")][:20].copy()
    same = held_out.simulate(source, ["control"])
    assert (same.X != source.X).nnz == 0
    # A perturbation that does nothing changes little, one that does much changes its genes.
    epo, ifn = (held_out.simulate(source, [p]) for p in ("EPO", "IFNB1"))
    noise = held_out.simulate(source, ["EPO"], start="noise")
    changed = [abs(m.X - source.X).sum() for m in (epo, ifn, noise)]
    assert changed[0] < changed[1]
    assert changed[0] < 0.3 * changed[2]


def test_an_untrained_network_is_not_run(held_out: LingshuCell, screen: ad.AnnData) -> None:
    cells = screen[of(screen, "NK cell", "control")][:4].copy()
    options = {"n_steps": 4, "seed": 3, "precision": "float32"}

    def made() -> list[np.ndarray]:
        drawn = held_out.generate(4, source="NK cell", perturbation="IFNB1", **options)
        return [x.X.toarray() for x in (drawn, held_out.simulate(cells, ["IFNB1"], **options))]

    trunk, expected = held_out.module.trunk, made()
    try:
        held_out.module.trunk = None
        for one, other in zip(expected, made(), strict=True):
            np.testing.assert_array_equal(one, other)
        held_out.module.trunk = trunk
        held_out.module.head.weight.data[0, 0] = 1e-20  # no longer zero: the network is run
        for one, other in zip(expected, made(), strict=True):
            np.testing.assert_array_equal(one, other)
        held_out.module.trunk = None
        with pytest.raises(AttributeError):
            made()
    finally:
        held_out.module.trunk = trunk
        held_out.module.head.weight.data.zero_()


def test_it_needs_depths(screen: ad.AnnData) -> None:
    LingshuCell.setup_anndata(screen, **KEYS)
    model = LingshuCell(screen, **SIZES, depth=False)
    with pytest.raises(ValueError, match="depth=True"):
        model.fit_count_term()
    with pytest.raises(ValueError, match="has no data"):
        LingshuCell(vocabulary=["A", "B"]).fit_count_term()


def test_without_conditions() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2.0, 2.0, size=(1, 30)), size=(80, 30)).astype(np.float32)
    adata = ad.AnnData(counts, var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))
    LingshuCell.setup_anndata(adata)
    model = LingshuCell(adata, **SIZES)
    model.fit_count_term()
    made = model.generate(200, n_steps=2)
    assert np.corrcoef(made.X.toarray().mean(axis=0), counts.mean(axis=0))[0, 1] > 0.98


def test_a_count_model_of_the_same_data_is_the_term(
    screen: ad.AnnData, held_out: LingshuCell
) -> None:
    known = held_out.adata.copy()
    PerturbationCountModel.setup_anndata(known, **KEYS)
    counts = PerturbationCountModel(known)
    counts.train()
    LingshuCell.setup_anndata(known, **KEYS)
    model = LingshuCell(known, **SIZES, count_model=counts)
    source = screen[of(screen, "T cell", "control")][:10].copy()
    a, b = (m.simulate(source, ["IFNB1"], n_steps=2) for m in (model, held_out))
    # the largest count of each gene is known after a training alone
    assert abs(a.X - b.X).sum() < 0.01 * b.X.sum()
    before = {k: v.clone() for k, v in model.module.count_term.state_dict().items()}
    model.train(max_steps=1, accelerator="cpu", enable_progress_bar=False)
    after = model.module.count_term.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_the_count_model_of_a_checkpoint_can_be_used_alone(
    screen: ad.AnnData, held_out: LingshuCell
) -> None:
    alone = held_out.count_model
    assert alone is not None
    source = screen[of(screen, "T cell", "control")][:40].copy()
    a, b = (log_mean(m.simulate(source, ["IFNB1"])) for m in (alone, held_out))
    before = log_mean(source)
    assert np.corrcoef(a - before, b - before)[0, 1] > 0.95
    assert LingshuCell(vocabulary=["A", "B"]).count_model is None


def test_another_count_model_is_refused(screen: ad.AnnData, held_out: LingshuCell) -> None:
    counts = held_out.count_model
    assert counts is not None
    known = held_out.adata
    fewer, other = known[:, :30].copy(), known[known.obs["perturbation"] != "EPO"].copy()
    for adata, part in ((fewer, "genes"), (other, "perturbations")):
        LingshuCell.setup_anndata(adata, **KEYS)
        with pytest.raises(ValueError, match=f"other {part} than"):
            LingshuCell(adata, **SIZES, count_model=counts)
    settings = {"vocabulary": counts.vocabulary, "levels": counts.levels} | SIZES
    with pytest.raises(ValueError, match="depth=True"):
        LingshuCell(**settings, depth=False, count_model=counts)
    with pytest.raises(TypeError, match="is a str"):
        LingshuCell(**settings, count_model="counts")
    new = PerturbationCountModel(vocabulary=counts.vocabulary, levels=counts.levels)
    with pytest.raises(ValueError, match="not trained"):
        LingshuCell(**settings, count_model=new)


def test_another_term_makes_another_model(held_out: LingshuCell, tmp_path: Path) -> None:
    held_out.save(tmp_path / "model")
    for counts in (None, held_out.count_model):
        loaded = LingshuCell.from_pretrained(tmp_path / "model", device="cpu")
        sha256 = loaded.checkpoint_sha256
        loaded.set_count_term(counts)
        assert not loaded.checkpoint_sha256
        assert loaded.provenance["started_from"]["sha256"] == sha256
