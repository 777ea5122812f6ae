"""Warnings point at the line of the user, from whatever depth they come."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm._adata import warn_user
from tests._toy import toy_contrasts, toy_model


def _lines(call) -> list[str]:
    """Return the files that the warnings of a call point at."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [w.filename for w in caught if issubclass(w.category, UserWarning)]


def test_called_directly():
    assert _lines(lambda: warn_user("x")) == [__file__]


def test_a_name_that_only_begins_like_ours_is_a_user():
    scope = {"__name__": "cfm_user", "warn_user": warn_user}
    code = compile("def call():\n    warn_user('x')\n", "elsewhere.py", "exec")
    exec(code, scope)
    assert _lines(scope["call"]) == ["elsewhere.py"]


@pytest.mark.parametrize("tool", [cfm.tl.embed, cfm.tl.predict_virus])
def test_few_genes_through_the_tools_and_the_model(tool):
    few = toy_contrasts()[:, :150].copy()
    assert _lines(lambda: tool(few, toy_model())) == [__file__]
    assert _lines(lambda: toy_model().get_latent_representation(few)) == [__file__]


def test_what_contrasts_leave_out_through_predict_virus():
    counts = cfm.datasets.toy_infection()
    counts.X[0] = 0
    found = _lines(
        lambda: cfm.tl.predict_virus(
            counts, toy_model(), groupby="virus", control="none", by="study"
        )
    )
    assert found
    assert set(found) == {__file__}


def test_the_report_is_a_caller(counts: ad.AnnData):
    scope = {"__name__": "cfm._report._demo", "cfm": cfm}
    code = compile("def call(x):\n    cfm.pp.contrasts(x, 'virus', 'none')\n", "here.py", "exec")
    exec(code, scope)
    counts.X[0] = np.zeros(counts.n_vars)
    assert _lines(lambda: scope["call"](counts)) == ["here.py"]
