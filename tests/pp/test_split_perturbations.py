"""Splits of perturbation data: nothing leaks, draws go by names, bad input is named."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm.pp import split_perturbations
from tests._same import assert_unchanged

CELLS_EACH = 7
LEVELS = ("ctrl", "A", "B", "C", "D", "A+B", "C + D", "A+X")


def _cells(n: int = CELLS_EACH) -> ad.AnnData:
    rows = [(g, p) for g in ("T", "B", "NK") for p in LEVELS for _ in range(n)]
    obs = pd.DataFrame(rows, columns=["type", "drug"], dtype="category")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    return ad.AnnData(np.ones((len(obs), 2), dtype=np.float32), obs=obs)


def _split(adata: ad.AnnData, **arguments) -> ad.AnnData:
    options = {"control": "ctrl", "groupby": "type", "copy": True} | arguments
    return split_perturbations(adata, "drug", **options)


def _held(adata: ad.AnnData) -> set[tuple[str, str]]:
    test = adata.obs[(adata.obs["split"] == "test").to_numpy()]
    return set(zip(test["type"], test["drug"], strict=True))


def test_a_group_is_held_out_but_for_its_controls() -> None:
    found = _split(_cells(), groups=["NK"])
    assert _held(found) == {("NK", p) for p in LEVELS if p != "ctrl"}
    assert (found.obs["split"] == "test").sum() == CELLS_EACH * (len(LEVELS) - 1)
    assert list(found.obs["split"].cat.categories) == ["train", "test"]
    params = found.uns["split"]["params"]
    assert params["held_out_groups"].tolist() == ["NK"]
    assert params["hold_out"] == "group"


def test_some_perturbations_in_some_groups() -> None:
    found = _split(_cells(), groups=["NK", "T"], perturbations=["B", "A+B"])
    assert _held(found) == {(g, p) for g in ("NK", "T") for p in ("B", "A+B")}


def test_a_perturbation_is_held_out_everywhere_and_with_its_combinations() -> None:
    found = _split(_cells(), hold_out="perturbation", perturbations=["A"])
    assert _held(found) == {(g, p) for g in ("T", "B", "NK") for p in ("A", "A+B", "A+X")}
    found = _split(_cells(), hold_out="perturbation", groupby=None, perturbations=["D"])
    assert {p for _, p in _held(found)} == {"D", "C + D"}
    drawn = _split(_cells(), hold_out="perturbation", share=0.5)
    singles = {p for _, p in _held(drawn)} & {"A", "B", "C", "D"}
    assert len(singles) == 2


def test_a_combination_is_held_out_and_its_parts_stay() -> None:
    found = _split(_cells(), hold_out="combination", perturbations=["C + D"])
    assert {p for _, p in _held(found)} == {"C + D"}
    drawn = _split(_cells(), hold_out="combination", share=0.99)
    assert {p for _, p in _held(drawn)} == {"A+B", "C + D"}  # X is not there alone
    with pytest.warns(UserWarning, match=r"\['X'\] of the combinations"):
        _split(_cells(), hold_out="combination", perturbations=["A+X"])


def test_a_share_of_the_cells_of_each_condition_controls_too() -> None:
    found = _split(_cells(), hold_out="cells")
    n = found.obs.groupby(["type", "drug"], observed=True)["split"].apply(
        lambda s: (s == "test").sum()
    )
    assert set(n) == {CELLS_EACH // 2}
    few = _split(_cells(), hold_out="cells", share=0.2, perturbations=["A"], groups=["T"])
    assert _held(few) == {("T", "A")} | {(g, "ctrl") for g in ("T", "B", "NK")}


@pytest.mark.parametrize("hold_out", ["group", "perturbation", "combination"])
def test_half_of_the_controls_can_be_held_out(hold_out) -> None:
    groups = ["NK"] if hold_out == "group" else None
    arguments = {"hold_out": hold_out, "groups": groups, "seed": 4}
    plain = _split(_cells(), **arguments)
    found = _split(_cells(), hold_out_controls=True, **arguments)
    control = (found.obs["drug"] == "ctrl").to_numpy()
    pd.testing.assert_frame_equal(found.obs[~control], plain.obs[~control])
    held = found.obs[control & (found.obs["split"] == "test").to_numpy()]
    expected = {g: CELLS_EACH // 2 for g in groups or ("T", "B", "NK")}
    assert held["type"].astype(str).value_counts().to_dict() == expected
    assert found.uns["split"]["params"]["hold_out_controls"]


@pytest.mark.parametrize("hold_out", ["group", "perturbation", "combination", "cells"])
def test_draws_go_by_names_and_seed(hold_out, rng) -> None:
    cells = _cells()
    found = _split(cells, hold_out=hold_out, seed=3)
    order = rng.permutation(cells.n_obs)
    again = _split(cells[order].copy(), hold_out=hold_out, seed=3)
    pd.testing.assert_series_equal(again.obs["split"], found.obs["split"].iloc[order])
    others = [_split(cells, hold_out=hold_out, seed=s).obs["split"] for s in range(12)]
    assert any(not s.equals(found.obs["split"]) for s in others)


def test_what_has_no_perturbation_or_group_is_in_neither_part() -> None:
    cells = _cells()
    cells.obs["drug"] = cells.obs["drug"].where(cells.obs_names != "cell0")
    cells.obs["type"] = cells.obs["type"].where(cells.obs_names != "cell9")
    found = _split(cells, groups=["NK"])
    assert found.obs.index[found.obs["split"].isna()].tolist() == ["cell0", "cell9"]


def test_a_drawn_group_has_controls_and_something_to_hold_out() -> None:
    cells = _cells()
    drop = ((cells.obs["type"] == "T") & (cells.obs["drug"] == "ctrl")).to_numpy()
    cells = cells[~drop].copy()
    for seed in range(8):
        assert {g for g, _ in _held(_split(cells, seed=seed))} <= {"B", "NK"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groupby": None}, ValueError, "needs groupby="),
        ({"groupby": None, "hold_out": "cells", "groups": ["T"]}, ValueError, "without groupby"),
        ({"groups": ["X"]}, KeyError, "['X'] do not exist"),
        ({"groups": "T"}, TypeError, "one text"),
        ({"groups": []}, ValueError, "empty"),
        ({"groups": ["T", "B", "NK"]}, ValueError, "All perturbed observations"),
        ({"perturbations": ["ctrl"]}, KeyError, "do not exist"),
        ({"hold_out": "combination", "perturbations": ["A"]}, ValueError, "no combinations"),
        ({"hold_out": "cells", "share": 0.01}, ValueError, "No perturbed observation"),
        ({"share": 0}, ValueError, "share=0"),
        ({"share": 1.0}, ValueError, "share=1.0"),
        ({"share": "half"}, ValueError, "share='half'"),
        ({"key_added": "drug"}, ValueError, "would replace"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message) -> None:
    cells = _cells()
    before = cells.copy()
    with pytest.raises(error) as raised:
        _split(cells, **({"copy": False} | arguments))
    assert message in str(raised.value)
    assert_unchanged(cells, before)


def test_too_little_to_split_is_refused() -> None:
    cells = _cells()
    with pytest.raises(ValueError, match="1 groups of 'type'"):
        _split(cells[(cells.obs["type"] == "T").to_numpy()].copy())
    singles = cells[cells.obs["drug"].isin(["ctrl", "A"]).to_numpy()].copy()
    with pytest.raises(ValueError, match="0 combinations"):
        _split(singles, hold_out="combination")
    with pytest.raises(ValueError, match="1 perturbations"):
        _split(singles, hold_out="perturbation")
    with pytest.raises(ValueError, match="nothing else"):
        _split(cells[(cells.obs["drug"] == "ctrl").to_numpy()].copy(), hold_out="cells")
