"""``cfm.pl.perturbation_effect(kind="effect")`` draws the change of each gene."""

from __future__ import annotations

import re

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import sparse

import cfm
from cfm.pl import _perturbation_cells
from cfm.pl._perturbation import _agreement
from tests.pl._drawn import legend_texts, outside, overlapping
from tests.pl._stored import GENES, GROUPS, MADE, REAL, as_counts, cells, make_screen


def drawn(ax) -> np.ndarray:
    """All points, sorted, ``(genes, 2)``."""
    points = np.concatenate([np.asarray(part.get_offsets()) for part in ax.collections])
    return points[np.lexsort(points.T[::-1])]


def expected(group: str) -> np.ndarray:
    points = np.column_stack([REAL[group], MADE[group]])
    return points[np.lexsort(points.T[::-1])]


def of(made: ad.AnnData, group: str) -> ad.AnnData:
    return made[made.obs["cell_type"] == group].copy()


def names(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_effects_of_each_group_are_drawn():
    real, made = make_screen()
    before = real.copy()
    axes = cfm.pl.perturbation_effect(real, made, groupby="cell_type", show=False)
    assert list(axes) == GROUPS
    for group, ax in axes.items():
        np.testing.assert_allclose(drawn(ax), expected(group), atol=1e-5)
        assert ax.get_xlim() == ax.get_ylim()
        assert ax.get_aspect() == 1
    assert (
        axes["B cell"].get_title(loc="left").startswith("IFN, B cell\nPearson 1.00 (3 genes make ")
    )
    assert axes["T cell"].get_title(loc="left").startswith("IFN, T cell\nPearson −1.00")
    assert legend_texts(axes["B cell"]) == [
        "right direction (20 of top 20)",
        "other genes (10)",
        "identity",
    ]
    assert "wrong or none (20 of top 20)" in legend_texts(axes["T cell"])
    assert plt.get_fignums() == []
    np.testing.assert_array_equal(real.X, before.X)
    assert list(real.obs) == list(before.obs)


def test_one_group_or_all_cells_together():
    real, made = make_screen()
    ax = cfm.pl.perturbation_effect(real, of(made, "B cell"), groupby="cell_type", show=False)
    np.testing.assert_allclose(drawn(ax), expected("B cell"), atol=1e-5)
    ax = cfm.pl.perturbation_effect(real, made, show=False)
    np.testing.assert_allclose(drawn(ax)[:, 0], 0.5, atol=1e-5)  # the groups cancel
    both = np.sort((MADE["B cell"] + MADE["T cell"]) / 2)
    np.testing.assert_allclose(np.sort(drawn(ax)[:, 1]), both, atol=1e-5)
    assert ax.get_title(loc="left").startswith("IFN\nPearson")


def test_a_prediction_is_a_change_of_what_it_started_from():
    real, made = make_screen()
    # one control cell per group served as the source of all
    first = {group: real.obs_names[real.obs["cell_type"] == group][0] for group in GROUPS}
    made.obs["simulated_from"] = [first[group] for group in made.obs["cell_type"]]
    given = {"groupby": "cell_type", "show": False}
    moved = drawn(cfm.pl.perturbation_effect(real, of(made, "B cell"), **given))
    np.testing.assert_allclose(np.sort(moved[:, 1]), np.sort(MADE["B cell"]) + 0.3, atol=1e-5)
    # a method that made controls as well is measured against these
    own = cells("none", dict.fromkeys(GROUPS, np.ones(30)))
    own.obs_names = [f"{name}-made" for name in own.obs_names]
    both = ad.concat([made, own], merge="same")
    given |= {"key": "condition", "control": "none", "units": "log"}
    moved = drawn(cfm.pl.perturbation_effect(real, of(both, "B cell"), **given))
    np.testing.assert_allclose(np.sort(moved[:, 1]), np.sort(MADE["B cell"]) - 1.0, atol=1e-5)
    np.testing.assert_allclose(np.sort(moved[:, 0]), np.sort(REAL["B cell"]), atol=1e-5)


def test_the_strongest_genes_are_marked_and_named():
    real, made = make_screen()
    given = {"groupby": "cell_type", "show": False}
    ax = cfm.pl.perturbation_effect(real, of(made, "B cell"), **given)
    size = np.abs(REAL["B cell"])
    assert set(names(ax)) <= {GENES[i] for i in np.argsort(-size)[:8]}
    assert "GENE29" in names(ax)
    assert ax.collections[1].get_offsets().shape == (20, 2)


def test_counts_are_normalised_and_logarithms_taken_as_they_are():
    real, made = (as_counts(part) for part in make_screen())
    ax = cfm.pl.perturbation_effect(real, of(made, "B cell"), groupby="cell_type", show=False)
    logs = []
    for adata, level in ((real, "IFN"), (real, "none"), (made, "IFN")):
        rows = ((adata.obs["condition"] == level) & (adata.obs["cell_type"] == "B cell")).to_numpy()
        x = adata.X[rows].toarray().astype(float)
        logs.append(np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4).mean(axis=0))
    points = np.column_stack([logs[0] - logs[1], logs[2] - logs[1]])
    np.testing.assert_allclose(drawn(ax), points[np.lexsort(points.T[::-1])], atol=1e-5)


def test_order_of_genes_and_cells_sparsity_and_blocks_do_not_matter(monkeypatch):
    real, made = make_screen()
    before = drawn(cfm.pl.perturbation_effect(real, made, show=False))
    monkeypatch.setattr(_perturbation_cells, "_BLOCK", 5)
    rng = np.random.default_rng(0)
    other = made[rng.permutation(made.n_obs), rng.permutation(made.n_vars)].copy()
    other.X = sparse.csr_matrix(other.X)
    after = drawn(cfm.pl.perturbation_effect(real[::-1].copy(), other, show=False))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_cells_on_disk_are_read(tmp_path):
    real, made = make_screen()
    made.obs["simulated_from"] = [real.obs_names[0]] * 6 + [real.obs_names[6]] * 6
    before = drawn(cfm.pl.perturbation_effect(real, made, show=False))
    real.X = sparse.csr_matrix(real.X)
    real.write_h5ad(tmp_path / "real.h5ad")
    backed = ad.read_h5ad(tmp_path / "real.h5ad", backed="r")
    np.testing.assert_allclose(drawn(cfm.pl.perturbation_effect(backed, made, show=False)), before)
    backed.file.close()


def test_genes_that_were_not_predicted_or_are_not_shared_are_left_out():
    real, made = make_screen()
    made = made[:, :28].copy()
    made.var["simulated"] = np.arange(28) >= 3
    ax = cfm.pl.perturbation_effect(real, made, show=False)
    assert drawn(ax).shape == (25, 2)
    assert legend_texts(ax)[-1] == "not predicted (3)"


def test_no_change_is_no_right_direction():
    real, made = make_screen()
    made.X = np.full(made.shape, 5.5, dtype=np.float32)
    real.X[(real.obs["condition"] == "none").to_numpy()] = 5.5
    ax = cfm.pl.perturbation_effect(real, of(made, "B cell"), groupby="cell_type", show=False)
    assert "Pearson not defined (no change)" in ax.get_title(loc="left")
    assert legend_texts(ax)[0] == "wrong or none (20 of top 20)"


def test_several_perturbations_and_symbols():
    real, made = make_screen()
    more = [part[part.obs["condition"] == "IFN"].copy() for part in (real, made)]
    for part in more:
        part.obs["condition"] = "TNF"
        part.obs_names = [f"{name}-tnf" for name in part.obs_names]
    real, made = ad.concat([real, more[0]]), ad.concat([made, more[1]])
    real.var["symbol"] = [f"S{i}" for i in range(30)]
    given = {"key": "condition", "control": "none", "gene_symbols": "symbol", "units": "log"}
    given["show"] = False
    axes = cfm.pl.perturbation_effect(real, made, **given)
    assert list(axes) == ["IFN", "TNF"]
    assert all(name.startswith("S") for name in names(axes["TNF"]))
    axes = cfm.pl.perturbation_effect(real, made, groupby="cell_type", **given)
    assert list(axes) == ["IFN | B cell", "IFN | T cell", "TNF | B cell", "TNF | T cell"]
    assert cfm.pl.perturbation_effect(real, made, perturbation="TNF", **given).get_title(loc="left")


def test_a_layer_is_read_where_it_is():
    real, made = make_screen()
    real.layers["log"], real.X = real.X, np.zeros_like(real.X)
    made.uns["simulation"]["params"]["layer"] = "log"
    ax = cfm.pl.perturbation_effect(real, of(made, "B cell"), groupby="cell_type", show=False)
    np.testing.assert_allclose(drawn(ax), expected("B cell"), atol=1e-5)


def test_names_of_a_toy_screen_have_room():
    toy = cfm.datasets.toy_perturbation(n_cells=600)
    columns = {"key": "perturbation", "control": "control", "groupby": "cell_type"}
    made = cfm.tl.simulate_perturbation(toy, "IFNB1", model="nearest", **columns)
    axes = cfm.pl.perturbation_effect(toy, made, groupby="cell_type", show=False)
    assert {"ISG15", "OAS1", "MX1", "IFI6"} & {name for ax in axes.values() for name in names(ax)}
    for ax in axes.values():
        assert outside(ax.texts, ax.get_window_extent()) == []
    every = [text for ax in axes.values() for text in ax.get_legend().get_texts()]
    every += [text for ax in axes.values() for text in (ax.xaxis.label, ax.title, *ax.texts)]
    assert overlapping(every) == []


def _without_record(made):
    del made.uns["simulation"]


def _one_name_twice(made):
    made.var_names = [GENES[0], *GENES[:-1]]


def _other_genes(made):
    made.var_names = [f"X{i}" for i in range(30)]


def _nothing_predicted(made):
    made.var["simulated"] = False


def _nan(made):
    made.X[0, 0] = np.nan


def _counts(made):
    made.X = np.round(made.X)


@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        (None, {"key": "dose"}, KeyError, r"real.obs has no column 'dose'"),
        (None, {"control": "mock"}, KeyError, "no control 'mock'; it has"),
        (None, {"perturbation": "TNF"}, KeyError, "'TNF' is not in both real and simulated"),
        (None, {"groupby": "donor"}, KeyError, "no column 'donor'"),
        (None, {"layer": "log"}, KeyError, "no layer 'log'; real has"),
        (None, {"gene_symbols": "symbol"}, KeyError, "real.var has no column 'symbol'"),
        (_without_record, {}, ValueError, "both are needed"),
        (_one_name_twice, {}, ValueError, "simulated.var_names holds names twice"),
        (_other_genes, {}, ValueError, "share no gene"),
        (_nothing_predicted, {}, ValueError, "marks no gene of real as predicted"),
        (_nan, {}, ValueError, "NaN or infinite"),
        (_counts, {}, ValueError, "real holds 'log' and simulated 'counts'"),
    ],
)
def test_bad_input(change, arguments, error, message):
    real, made = make_screen()
    if change:
        change(made)
    open_before = plt.get_fignums()
    with pytest.raises(error, match=message):
        cfm.pl.perturbation_effect(real, made, show=False, **arguments)
    assert plt.get_fignums() == open_before


def test_bad_kinds_of_input():
    real, made = make_screen()
    with pytest.raises(TypeError, match="Found a NoneType; expected an AnnData"):
        cfm.pl.perturbation_effect(real, None)
    with pytest.raises(TypeError, match="Found a ndarray; expected an AnnData"):
        cfm.pl.perturbation_effect(real.X, made)
    made.obs["condition"] = "TNF"
    with pytest.raises(ValueError, match=r"share no perturbation of 'condition': .*\['TNF'\]"):
        cfm.pl.perturbation_effect(real, made)
    real, made = make_screen()
    real.obs["condition"] = np.where(
        (real.obs["condition"] == "none") & (real.obs["cell_type"] == "T cell"),
        "IFN",
        real.obs["condition"].astype(str),
    )
    with pytest.raises(ValueError, match="no control cells of 'IFN' in group 'T cell'"):
        cfm.pl.perturbation_effect(real, made, groupby="cell_type")


def test_more_panels_than_can_be_read():
    toy = cfm.datasets.toy_perturbation(n_cells=600)
    given = {"key": "perturbation", "control": "control", "groupby": "cell_type", "show": False}
    with pytest.raises(ValueError, match="12 perturbations in 4 groups make 48 panels"):
        cfm.pl.perturbation_effect(toy, toy, **given)
    assert len(cfm.pl.perturbation_effect(toy, toy, perturbation=["EPO", "TNF"], **given)) == 8


@pytest.mark.parametrize(("large", "least", "most"), [(50.0, 99, 100), (1.0, 5, 40)])
def test_the_share_of_three_genes_stands_beside_the_correlation(
    large: float, least: float, most: float
) -> None:
    """A correlation of .99 may be that of one gene."""
    rng = np.random.default_rng(0)
    observed, predicted = rng.normal(size=(2, 300))
    predicted += observed * (large == 1.0)
    observed[7] += large * 5
    predicted[7] += large * 5
    title = _agreement(observed, predicted)
    shown = float(re.search(r"3 genes make (\d+)", title).group(1))
    terms = (observed - observed.mean()) * (predicted - predicted.mean())
    expected = 100 * np.sort(terms)[-3:].sum() / terms.sum()
    assert shown == pytest.approx(expected, abs=0.51)
    assert least <= shown <= most
