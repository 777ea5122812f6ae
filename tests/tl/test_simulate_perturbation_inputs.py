"""Simulated perturbations: what is refused, and in which words."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.tl import simulate_perturbation
from tests._same import assert_unchanged
from tests.tl._perturbed import ARGUMENTS, AddsOne, perturbed_cells, without

KEYS = {"key": "treatment", "control": "ctrl"}


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("A", "A"),
        ("B + A", "A+B"),  # as the data spell it
        (("A", "B+C"), "A+B+C"),
        (["A", "ctrl"], "A"),
        ("Ca2+", "Ca2+"),
        ("+", "+"),
    ],
)
def test_perturbations_are_read(given, label) -> None:
    made = simulate_perturbation(perturbed_cells(n=2), given, model="control", **ARGUMENTS)
    assert made.uns["simulation"]["params"]["perturbation"] == label


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        *((given, TypeError, "expected a name") for given in (3, None, [1], {"A"})),
        *((given, ValueError, "empty") for given in ("", [], ["A", ""])),
        ("A+A", ValueError, "twice"),
        ("ctrl", ValueError, "is the control itself"),
    ],
)
def test_a_perturbation_names_something_once(given, error, message) -> None:
    with pytest.raises(error, match=message):
        simulate_perturbation(perturbed_cells(n=2), given, model="control", **ARGUMENTS)


def test_a_level_with_the_control_in_it_is_a_single_perturbation() -> None:
    cells = perturbed_cells()
    renamed = {"A": "ctrl+A", "A+B": "B+A"}
    cells.obs["treatment"] = cells.obs["treatment"].cat.rename_categories(renamed)
    made = simulate_perturbation(cells, "A", model="additive", **ARGUMENTS)
    assert set(made.obs["treatment"]) == {"ctrl+A"}
    made = simulate_perturbation(cells, "A+B", model="additive", **ARGUMENTS)
    assert set(made.obs["treatment"]) == {"B+A"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"control": None}, ValueError, "without control="),
        ({"key": None}, ValueError, "without key="),
        ({"groups": ["T", "X"]}, KeyError, "has no ['X']"),
        ({"groups": "T"}, TypeError, "one text"),
        ({"groups": []}, ValueError, "none"),
        ({"groupby": None, "groups": ["T"]}, ValueError, "without groupby="),
        ({"units": "tpm"}, ValueError, "units='tpm'"),
        ({"strength": 2}, TypeError, "takes no ['strength']"),
        ({"features": [1]}, TypeError, "expected a DataFrame"),
        ({"features": pd.DataFrame([[np.nan]])}, ValueError, "NaN"),
        ({"features": pd.DataFrame([["x"]])}, ValueError, "something else than numbers"),
        ({"features": pd.DataFrame([[1], [2]], index=["A", "A"])}, ValueError, "each once"),
        ({"model": "mean-shift"}, ValueError, "no baseline (control, mean_shift"),
        (
            {"model": "linear", "alpha": 0.0},
            ValueError,
            "alpha=0.0; expected",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, error, message) -> None:
    cells = perturbed_cells(n=4)
    before = cells.copy()
    with pytest.raises(error) as raised:
        simulate_perturbation(cells, "A", **({"model": "mean_shift"} | ARGUMENTS | arguments))
    assert message in str(raised.value)
    assert_unchanged(cells, before)


def test_a_group_without_controls_is_left_out_or_refused() -> None:
    cells = without(perturbed_cells(n=4), "NK", "ctrl")
    with pytest.warns(UserWarning, match=r"\['NK'\] of 'cell_type' have no observation"):
        made = simulate_perturbation(cells, "A", model="mean_shift", **ARGUMENTS)
    assert set(made.obs["cell_type"]) == {"B", "T"}
    # Without controls its own effect is not known either.
    assert "NK" not in "".join(made.uns["simulation"]["learned_from"]["learned_from"])
    with pytest.raises(ValueError, match=r"\['NK'\] with observations of the control"):
        simulate_perturbation(cells, "A", model="mean_shift", groups=["NK"], **ARGUMENTS)


def test_what_only_its_own_cells_could_tell_is_refused() -> None:
    cells = perturbed_cells(n=4)
    lone = cells[(cells.obs["cell_type"] == "T") & cells.obs["treatment"].isin(["A", "ctrl"])]
    for baseline in ("mean_shift", "nearest", "linear"):
        with pytest.raises(ValueError, match="are not used"):
            simulate_perturbation(lone, "A", model=baseline, **ARGUMENTS)
    with pytest.raises(KeyError, match="not there alone or in another group"):
        simulate_perturbation(lone, "A", model="additive", **ARGUMENTS)
    with pytest.raises(KeyError, match=r"\['C'\] is not there alone"):
        simulate_perturbation(cells, "A+C", model="additive", **ARGUMENTS)


def test_missing_levels_and_groups_are_left_out() -> None:
    cells = perturbed_cells(n=6)
    expected = simulate_perturbation(cells, "A", model="mean_shift", **ARGUMENTS)
    more = cells.copy()
    more.obs_names = more.obs_names + "x"
    more.X[:] = 50.0
    more.obs.loc[more.obs_names[::2], "treatment"] = np.nan
    more.obs.loc[more.obs_names[1::2], "cell_type"] = np.nan
    both = ad.concat([cells, more], uns_merge="same")
    found = simulate_perturbation(both, "A", model="mean_shift", **ARGUMENTS)
    np.testing.assert_array_equal(found.X, expected.X)


class _Loses(AddsOne):
    def simulate(self, *args, **kwargs):
        return super().simulate(*args, **kwargs)[:1].copy()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": AddsOne()}, KeyError, "unknown genes"),
        ({"model": _Loses(), "perturbation": "GENE1"}, ValueError, "1 observations for 6"),
        ({"batch_size": 8}, TypeError, "takes no .'batch_size'"),
    ],
)
def test_bad_models_and_options_are_refused(options, error, message) -> None:
    given = {"perturbation": "A", "model": "mean_shift"} | ARGUMENTS | options
    with pytest.raises(error, match=message):
        simulate_perturbation(perturbed_cells(n=2), **given)


def test_the_bundled_toy_cells_work(recwarn: pytest.WarningsRecorder) -> None:
    cells = cfm.datasets.toy_infection_cells()
    columns = {"key": "virus", "control": "none", "groupby": "cell_type"}
    made = simulate_perturbation(cells, "virus_A", model="mean_shift", n_cells=5, **columns)
    assert made.n_obs == 5 * cells.obs["cell_type"].nunique()
    assert made.uns["simulation"]["params"]["units"] == "counts"
    assert not [w for w in recwarn if w.category is UserWarning]


def test_notes_of_registered_data_are_left_behind() -> None:
    cells = perturbed_cells(n=2)
    cells.obs["_scvi_batch"] = 0
    made = simulate_perturbation(cells, "A", model="control", key="treatment", control="ctrl")
    assert "_scvi_batch" not in made.obs
    assert "cell_type" in made.obs
