"""``cfm.pl.top_genes`` shows the largest effects in the right order and direction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cfm


def drawn(ax) -> dict[str, float]:
    names = [text.get_text() for text in ax.get_yticklabels()]
    return dict(zip(names, [bar.get_width() for bar in ax.patches], strict=True))


def test_largest_effects_in_order(predicted):
    adata = predicted(3)
    ax = cfm.pl.top_genes(adata, adata.obs_names[1], n_genes=4, show=False)
    effects = dict(zip(adata.var_names, adata.X[1].tolist(), strict=True))
    ranked = sorted(effects, key=lambda gene: -effects[gene])
    assert list(drawn(ax)) == ranked[:4] + ranked[-4:]
    assert drawn(ax) == pytest.approx({g: effects[g] for g in ranked[:4] + ranked[-4:]})


@settings(max_examples=8)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 20))
def test_zero_and_missing_effects_are_never_shown(predicted, n_up, n_down, n_genes):
    adata = predicted(1)
    values = np.zeros(30, dtype=np.float32)
    values[:n_up] = np.arange(1, n_up + 1)
    values[15 : 15 + n_down] = -np.arange(1, n_down + 1)
    values[29] = np.nan
    adata.X = values[None]
    if n_up + n_down == 0:
        with pytest.raises(ValueError, match="no gene with a non-zero effect"):
            cfm.pl.top_genes(adata, show=False)
        return
    shown = drawn(cfm.pl.top_genes(adata, n_genes=n_genes, show=False))
    assert sum(v > 0 for v in shown.values()) == min(n_up, n_genes)
    assert sum(v < 0 for v in shown.values()) == min(n_down, n_genes)
