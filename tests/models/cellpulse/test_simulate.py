"""In-silico reversal of genes in profiles."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from cfm.models import CellPulse
from cfm.tl import simulate_perturbation


def _profiles(contrasts: ad.AnnData, n: int = 3) -> ad.AnnData:
    return contrasts[:n].copy()


def _strongest(contrasts: ad.AnnData) -> str:
    return str(contrasts.var_names[np.nanargmax(np.abs(contrasts.X).mean(axis=0))])


@pytest.mark.parametrize(("mode", "factor"), [("neutral", 0.0), ("flip", -1.0)])
@pytest.mark.parametrize("virus", ["virus_A", "IFN-beta"])
def test_genes_are_reversed_and_those_of_their_programme_follow(
    model: CellPulse, contrasts: ad.AnnData, mode: str, factor: float, virus: str
) -> None:
    given = contrasts[(contrasts.obs["virus"] == virus).to_numpy()][:3].copy()
    truth = given.varm["truth"]
    programme = given.var_names[(truth[virus] != 0).to_numpy()]
    reversed_, held = list(programme[::2]), given.var_names.isin(programme[1::2])
    made = model.simulate(given, reversed_, mode=mode)
    assert made.var_names.equals(given.var_names)
    np.testing.assert_allclose(made[:, reversed_].X, factor * given[:, reversed_].X, atol=1e-6)
    # Against the direction in which they moved, and more than genes of no programme.
    follow = (made.X - given.X) * np.sign(given.X)
    others = (truth == 0).all(axis=1).to_numpy()
    assert follow[:, held].mean() < -0.2
    assert follow[:, held].mean() < 2 * follow[:, others].mean()


def test_reversing_more_changes_more(model: CellPulse, contrasts: ad.AnnData) -> None:
    given = _profiles(contrasts, 2)
    genes = list(given.var_names[np.argsort(-np.abs(given.X).mean(axis=0))[:20]])
    rest = ~given.var_names.isin(genes)
    sizes = []
    for mode in ("neutral", "flip"):
        change = (model.simulate(given, genes, mode=mode).X - given.X)[:, rest]
        sizes.append(np.abs(change).mean())
    assert sizes[1] > sizes[0]


def test_what_does_not_move_changes_nothing(model: CellPulse, contrasts: ad.AnnData) -> None:
    given = _profiles(contrasts)
    gene = _strongest(given)
    given.X[:, given.var_names.get_loc(gene)] = 0.0
    np.testing.assert_array_equal(model.simulate(given, [gene]).X, given.X)


def test_a_contrast_does_not_depend_on_the_others(model: CellPulse, contrasts: ad.AnnData) -> None:
    given, gene = _profiles(contrasts), _strongest(contrasts)
    together = model.simulate(given, [gene])
    alone = model.simulate(given[[2]].copy(), [gene])
    np.testing.assert_allclose(alone.X, together[[2]].X, atol=1e-5)
    shuffled = model.simulate(given[:, ::-1].copy(), [gene])[:, given.var_names]
    np.testing.assert_allclose(shuffled.X, together.X, atol=1e-4)
    again = model.simulate(given, [gene])
    np.testing.assert_array_equal(again.X, together.X)


def test_what_is_not_measured_stays_so_and_that_is_said(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    given, gene = _profiles(contrasts), _strongest(contrasts)
    place = given.var_names.get_loc(gene)
    given.X[1, place] = np.nan
    given.X[2, (place + 1) % given.n_vars] = np.nan
    with pytest.warns(UserWarning, match="1 of 3 contrasts do not measure all of"):
        made = model.simulate(given, [gene])
    np.testing.assert_array_equal(np.isnan(made.X), np.isnan(given.X))
    np.testing.assert_array_equal(made.X[1], given.X[1])


def test_the_tool_keeps_genes_that_the_model_does_not_know(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    given = _profiles(contrasts)
    unknown = ad.AnnData(np.full((3, 1), 9.0, np.float32), obs=given.obs[[]])
    unknown.var_names = ["not a gene"]
    wide = ad.concat([unknown, given], axis=1, merge="first")
    gene = _strongest(given)
    made = simulate_perturbation(wide, gene, model=model, mode="flip")
    assert made.var_names.equals(wide.var_names)
    assert not made.var.loc["not a gene", "simulated"]
    assert (made[:, "not a gene"].X == 9.0).all()
    assert made.var["simulated"].sum() == given.n_vars
    params = made.uns["simulation"]["params"]
    assert (params["model"], params["mode"]) == ("CellPulse", "flip")
    np.testing.assert_array_equal(
        made[:, given.var_names].X, model.simulate(given, [gene], mode="flip").X
    )


def test_bad_input_is_refused(model: CellPulse, contrasts: ad.AnnData) -> None:
    given, gene = _profiles(contrasts), _strongest(contrasts)
    with pytest.raises(KeyError, match="does not have all of"):
        model.simulate(given, [gene, "no gene"])
    with pytest.raises(KeyError, match="does not measure"):
        model.simulate(given[:, given.var_names != gene].copy(), [gene])
    with pytest.raises(ValueError, match="mode='half'"):
        model.simulate(given, [gene], mode="half")
    with pytest.raises(ValueError, match="n_folds="):
        model.simulate(given, [gene], n_folds=1)
    given.X = np.abs(given.X) + 1.0
    with pytest.raises(ValueError, match="looks like expression or counts"):
        model.simulate(given, [gene])
