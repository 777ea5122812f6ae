"""Welch's test from sums is that of the values, and ranks genes as scanpy does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from scipy.stats import ttest_ind

from cfm.stats._welch import Sums, welch_greater
from cfm.tl._code_tables import marker_table


def sums_of(*groups: np.ndarray) -> Sums:
    n = np.array([[float(len(values))] for values in groups])
    sums = [[part.sum(axis=0) for part in (x, x**2, x > 0)] for x in groups]
    return Sums(n, *np.array(sums, dtype=float).swapaxes(0, 1))


def test_it_is_the_test_of_the_values() -> None:
    rng = np.random.default_rng(0)
    first, second, third = (rng.gamma(1.0 + i, size=(8 + 5 * i, 6)) for i in range(3))
    sums = sums_of(first, second, third)
    t, p_value = welch_greater(sums.of(slice(1, 2)), sums.all().minus(sums.of(slice(1, 2))))
    expected = ttest_ind(second, np.vstack([first, third]), equal_var=False, alternative="greater")
    np.testing.assert_allclose(t[0], expected.statistic)
    np.testing.assert_allclose(p_value[0], expected.pvalue)


def test_values_that_do_not_vary_and_groups_of_one() -> None:
    flat = sums_of(np.full((4, 3), [2.0, 1.0, 1.0]))
    t, p_value = welch_greater(flat, sums_of(np.full((5, 3), [1.0, 1.0, 2.0])))
    assert t.tolist() == [[np.inf, 0.0, 0.0]]
    assert p_value.tolist() == [[0.0, 1.0, 1.0]]
    assert welch_greater(flat, sums_of(np.ones((1, 3))))[1].tolist() == [[1.0, 1.0, 1.0]]


def test_markers_are_those_of_scanpy() -> None:
    rng = np.random.default_rng(1)
    group = rng.integers(0, 4, 300)
    rate = rng.gamma(1.0, size=(4, 80))
    cells = AnnData(
        sparse.csr_matrix(rng.poisson(3 * rate[group]).astype(np.float32)),
        obs=pd.DataFrame({"code": pd.Categorical(group.astype(str))}),
    )
    names = np.array(list("0123"))
    ours = marker_table(
        cells.X, group, names, cells.var_names, counts=True, n_markers=10, min_cells=10
    )
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.tl.rank_genes_groups(cells, "code", method="t-test", n_genes=10)
    theirs = sc.get.rank_genes_groups_df(cells, group=None)
    assert ours["gene"].tolist() == theirs["names"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["scores"], rtol=1e-3)
    np.testing.assert_allclose(ours["p_value"], theirs["pvals"] / 2, rtol=1e-2)
