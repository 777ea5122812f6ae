"""Perturbations: sentences that are changed, codes that cells move to, expression in its units."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfm
from cfm.models import CellVQ
from tests._cellvq import GENES, counted_cells, small_model
from tests._same import assert_same, assert_unchanged

TARGETS = pd.DataFrame(
    {"compound": ["Drugol", "drugol", "Other"], "gene": ["G3", "G8", "NOGENE"], "moa": True}
)


def trained(**kwargs: Any) -> CellVQ:
    """A model that says that it was trained here, so that its decoder reads codes."""
    model = small_model(**kwargs)
    model.provenance = {"training_studies": []}
    with torch.no_grad():
        model.module.decoder.heads.mean.weight *= 5.0
    return model


@pytest.fixture(scope="module")
def model() -> CellVQ:
    return trained()


def log_cells(cells: ad.AnnData) -> ad.AnnData:
    out = cells[:, GENES].copy()
    out.obs["n"] = out.X.sum(axis=1)
    out.X = np.log1p(out.X / out.X.sum(axis=1, keepdims=True) * 1e4)
    return out


def change(model: CellVQ, cells: ad.AnnData, names: list[str], **kwargs: Any) -> pd.DataFrame:
    """Predicted less read, cells by genes."""
    found = model.simulate(cells, names, **kwargs)
    read = cells[:, found.var_names].X
    return pd.DataFrame(
        found.X.toarray().astype(float) - read, index=cells.obs_names, columns=found.var_names
    )


def test_a_gene_that_is_knocked_out_is_gone(model: CellVQ) -> None:
    cells = counted_cells()
    before = cells.copy()
    found = model.simulate(cells, ["G3"])
    assert_unchanged(cells, before)
    assert found.var_names.tolist() == GENES
    assert found.obs_names.equals(cells.obs_names)
    assert found.X.dtype == np.float32
    x = found.X.toarray()
    assert (x[:, 3] == 0).all()
    assert (x == np.rint(x)).all()
    assert (x[:, :40][cells.X[:, :40] == 0] == 0).all()
    expressed = cells.X[:, 3] > 0
    moved = (x[:, :40] != cells.X[:, :40]).sum(axis=1)
    assert (moved[expressed] > 3).all()
    assert (moved[~expressed] == 0).all()  # nothing was taken out of these


def test_codes_are_those_of_the_cells_and_of_the_changed_cells(model: CellVQ) -> None:
    cells = counted_cells(60)
    found = model.simulate(cells, ["G3", "G7", "G11"])
    knocked = cells.copy()
    # The values of the other genes and the depth stay, which a panel without the genes would not.
    log = log_cells(knocked)
    log.X[:, [3, 7, 11]] = 0
    exact: dict[str, Any] = {"precision": "float32"}
    before = model.get_cell_codes(cells, **exact).code.astype(str)
    after = model.get_cell_codes(log, units="log1p_cp10k", total_counts="n", **exact).code
    assert found.obs["cell_code_before"].tolist() == before.tolist()
    assert found.obs["cell_code_after"].tolist() == after.astype(str).tolist()
    assert (before != after.astype(str)).sum() > 5
    table = found.uns["code_transitions"]
    crossed = pd.crosstab(found.obs["cell_code_before"], found.obs["cell_code_after"])
    assert table["n_cells"].is_monotonic_decreasing
    assert table["n_cells"].sum() == 60
    assert len(table) == (crossed > 0).to_numpy().sum()
    for row in table.itertuples():
        assert crossed.loc[row.before, row.after] == row.n_cells


def test_expression_follows_the_decoded_means(model: CellVQ) -> None:
    """By hand, for one cell: each half of the genes is decoded from the other half."""
    cells = log_cells(counted_cells(4))
    arguments: dict[str, Any] = {"units": "log1p_cp10k", "total_counts": "n"}
    gene = int(np.flatnonzero(cells.X[0] > 0)[0])
    found = model.simulate(cells, [GENES[gene]], seed=3, max_fold=50.0, **arguments)
    fold = np.random.default_rng(3).permutation(np.arange(40) % 2)
    fold[gene] = -1
    depth = np.float32(np.log10(cells.obs["n"].iloc[0]))

    def means(hidden: np.ndarray, out: bool) -> np.ndarray:
        shown = (cells.X[0] > 0) & ~hidden
        if out:
            shown[gene] = False
        genes = np.flatnonzero(shown)
        values = torch.tensor([[*cells.X[0, genes], 4.0, depth]])
        ids = torch.tensor([[*genes.tolist(), 40, 41]])
        with torch.no_grad():
            states = model.module.encode(values, ids)
            vector = model.module.quantize(model.module.pool(states)[1]).vector
            return model.module.decode(states, ids, vector=vector)[0][0].double().numpy()

    ratio = np.ones(40)
    for i in range(2):
        ratio[fold == i] = (means(fold == i, True) / means(fold == i, False))[fold == i]
    expected = np.log1p(np.expm1(cells.X[0].astype(float)) * np.clip(ratio, 1 / 50, 50))
    expected[gene] = 0
    np.testing.assert_allclose(found.X.toarray()[0], expected, atol=1e-4)
    assert np.abs(np.log(ratio)).max() > 0.05


def test_weights_of_the_authors_decode_without_codes() -> None:
    """Theirs were trained so; the code then decides nothing but the code."""
    cells = log_cells(counted_cells())
    plain, other = (trained(code_term=False) for _ in range(2))
    with torch.no_grad():
        other.module.quantiser.proj_inv.weight.mul_(7.0)
    arguments: dict[str, Any] = {"units": "log1p_cp10k"}
    assert not np.allclose(
        change(plain, cells, ["G5"], **arguments), change(other, cells, ["G5"], **arguments)
    )
    for model in (plain, other):
        model.provenance = {}
    np.testing.assert_allclose(
        change(plain, cells, ["G5"], **arguments), change(other, cells, ["G5"], **arguments)
    )


def test_counts_are_rounded_so_that_the_mean_stays(model: CellVQ) -> None:
    one = counted_cells(1)
    cells = ad.concat([one] * 400)
    cells.obs_names = [f"c{i}" for i in range(400)]
    x = model.simulate(cells, ["G5"]).X.toarray()
    assert (np.ptp(x, axis=0) <= 1).all()
    exact = log_cells(one)
    log = model.simulate(exact, ["G5"], units="log1p_cp10k", total_counts="n").X.toarray()
    expected = np.expm1(log[0]) * exact.obs["n"].iloc[0] / 1e4
    np.testing.assert_allclose(x.mean(axis=0), expected, atol=0.1)


@given(order=st.permutations(range(8)), batch_size=st.integers(1, 9), keep=st.integers(1, 8))
def test_other_cells_are_no_matter(order: list[int], batch_size: int, keep: int) -> None:
    rows = order[:keep]
    part = counted_cells(8)[rows].copy()
    found = SHARED.simulate(part, ["G5"], batch_size=batch_size)
    assert_same(found.X.toarray(), EXPECTED.X[rows].toarray())
    for column in ("cell_code_before", "cell_code_after"):
        assert found.obs[column].tolist() == EXPECTED.obs[column].iloc[rows].tolist()


def test_seeds_decide_folds_and_rounding(model: CellVQ) -> None:
    cells = counted_cells()
    first = change(model, cells, ["G5"])
    pd.testing.assert_frame_equal(change(model, cells, ["G5"]), first)
    assert not change(model, cells, ["G5"], seed=1).equals(first)
    assert not change(model, cells, ["G5"], n_folds=5).equals(first)


def test_over_expression_and_factors(model: CellVQ) -> None:
    cells = counted_cells()
    found = model.simulate(cells, ["G3"], effect="over_expression", quantile=0.8)
    x = found.X.toarray()[:, 3]
    for i in range(12):
        expressed = cells.X[i, :40][cells.X[i, :40] > 0]
        level = np.expm1(np.quantile(np.log1p(expressed / expressed.sum() * 1e4), 0.8))
        level *= expressed.sum() / 1e4
        assert abs(x[i] - max(level, cells.X[i, 3])) <= 1
    doubled = model.simulate(cells, ["G3"], effect=2.0).X.toarray()[:, 3]
    np.testing.assert_allclose(doubled, cells.X[:, 3] * 2, atol=1)
    pd.testing.assert_frame_equal(
        change(model, cells, ["G3"], effect=0.0), change(model, cells, ["G3"])
    )
    assert (change(model, cells, ["G3"], effect=1.0) == 0).all(axis=None)
    most = log_cells(cells)
    found = model.simulate(most, ["G3"], effect=1e9, units="log1p_cp10k").X.toarray()[:, 3]
    np.testing.assert_allclose(found[most.X[:, 3] > 0], np.log1p(1e4), rtol=1e-6)


def test_changes_stay_within_a_factor(model: CellVQ) -> None:
    cells = log_cells(counted_cells())
    for limit in (1.0, 1.05):
        moved = model.simulate(cells, ["G5"], units="log1p_cp10k", max_fold=limit).X.toarray()
        others = np.delete(np.arange(40), 5)
        new, old = (np.expm1(x[:, others].astype(float)) for x in (moved, cells.X))
        fold = np.log(new[old > 0] / old[old > 0])
        assert np.abs(fold).max() == pytest.approx(np.log(limit), abs=1e-5)


def test_drugs_act_on_their_targets(model: CellVQ) -> None:
    cells = counted_cells()
    expected = change(model, cells, ["G3", "G8"])
    pd.testing.assert_frame_equal(change(model, cells, ["DRUGOL"], targets=TARGETS), expected)
    pd.testing.assert_frame_equal(change(model, cells, ["G8", "G3"], targets=TARGETS), expected)
    with pytest.raises(KeyError, match="'Other' acts on NOGENE, none of the model's genes"):
        model.simulate(cells, ["Other"], targets=TARGETS)
    with pytest.raises(KeyError, match=r"'aspirin' is neither .* nor a compound .* \(3 compounds"):
        model.simulate(cells, ["aspirin"], targets=TARGETS)
    with pytest.raises(KeyError, match=r"'aspirin' is none of the model's genes.*drug_targets"):
        model.simulate(cells, ["aspirin"])
    with pytest.raises(KeyError, match=r"no columns \['gene'\]"):
        model.simulate(cells, ["aspirin"], targets=TARGETS.drop(columns="gene"))
    with pytest.raises(TypeError, match="targets= is a dict"):
        model.simulate(cells, ["aspirin"], targets={"aspirin": "PTGS2"})


def test_the_bundled_targets_of_drugs_are_taken() -> None:
    genes = ["JAK1", "JAK2", "JAK3", "TYK2", *GENES]
    known = trained(vocabulary=genes)
    cells = counted_cells(genes=genes)
    targets = cfm.datasets.drug_targets(moa_only=True)
    found = known.simulate(cells, ["ruxolitinib"], targets=targets).X.toarray()
    acts_on = set(targets.loc[targets["compound"] == "ruxolitinib", "gene"]) & set(genes)
    assert {"JAK1", "JAK2"} <= acts_on
    assert (found[:, [genes.index(g) for g in acts_on]] == 0).all()


def test_other_names_of_a_gene_are_understood() -> None:
    genes = ["TP53", *GENES]
    known = trained(vocabulary=genes)
    cells = counted_cells(genes=genes)
    pd.testing.assert_frame_equal(
        change(known, cells, ["ENSG00000141510"]), change(known, cells, ["TP53"])
    )


def test_a_gene_that_is_not_expressed_changes_nothing_which_is_said(model: CellVQ) -> None:
    cells = counted_cells()
    silent = cells.copy()
    silent.X[:, 3] = 0
    absent = cells[:, [i for i in range(42) if i != 3]].copy()
    for adata in (silent, absent):
        with pytest.warns(UserWarning, match="No cell expresses G3, so nothing changes"):
            assert (change(model, adata, ["G3"]) == 0).all(axis=None)
        with pytest.warns(UserWarning, match="No cell expresses G3; effect="):
            model.simulate(adata, ["G3", "G5"])
        raised = change(model, adata, ["G3"], effect="over_expression")  # this is no problem
        assert (raised != 0).any(axis=None)
        assert ("G3" in raised) == (adata is silent)


def test_cells_that_say_nothing_stay_as_they_are(model: CellVQ) -> None:
    cells = counted_cells()
    cells.X[4] = 0
    cells.X[6] = 0
    cells.X[6, 3] = 9  # nothing is left of this one
    with pytest.warns(UserWarning, match="1 of 12 cells express none"):
        found = model.simulate(cells, ["G3"])
    assert found.obs["cell_code_before"].isna().to_numpy().nonzero()[0].tolist() == [4]
    assert found.obs["cell_code_after"].isna().to_numpy().nonzero()[0].tolist() == [4, 6]
    assert found.X[[4, 6]].nnz == 0
    assert found.uns["code_transitions"]["n_cells"].sum() == 10


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"effect": "inhibit"}, ValueError, "effect='inhibit'; expected 'knock_out'"),
        ({"effect": -1.0}, ValueError, "multiplied by 0 or more"),
        ({"effect": np.nan}, ValueError, "multiplied by 0 or more"),
        ({"quantile": 95}, ValueError, "quantile=95; expected"),
        ({"n_folds": 1}, ValueError, "n_folds="),
        ({"max_fold": 0.5}, ValueError, "max_fold=0.5"),
        ({"perturbation": "G3"}, TypeError, "'G3' is one text"),
        ({"perturbation": []}, ValueError, "perturbation= is empty"),
        ({"perturbation": ["G3", "NO"]}, KeyError, "'NO' is none of the model's genes, such as G0"),
    ],
)
def test_wrong_arguments(
    model: CellVQ, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.simulate(counted_cells(), **({"perturbation": ["G3"]} | arguments))


SHARED = trained()
EXPECTED = SHARED.simulate(counted_cells(8), ["G5"])
