"""What the tools record of a run, and when they warn that they replace something."""

from __future__ import annotations

import anndata as ad
import pandas as pd
import pytest

import cfm
from cfm.models import CellPulse
from tests._toy import toy_contrasts


@pytest.mark.parametrize("tool", [cfm.tl.embed, cfm.tl.predict_virus])
def test_key_and_device_are_recorded(tool, model: CellPulse) -> None:
    contrasts = toy_contrasts()
    tool(contrasts, model, key_added="mine")
    params = contrasts.uns["mine"]["params"]
    assert params["key_added"] == "mine"
    assert params["device"] == "cpu"


@pytest.mark.parametrize("tool", [cfm.tl.embed, cfm.tl.predict_virus])
def test_the_record_of_another_tool_is_not_replaced_in_silence(tool, model: CellPulse) -> None:
    contrasts = toy_contrasts()
    contrasts.uns["contrasts"] = {"params": {"mode": "replicates"}}
    with pytest.warns(UserWarning, match=r"^uns\['contrasts'\] was not written by this tool"):
        tool(contrasts, model, key_added="contrasts")


def test_strata_may_be_any_sequence(model: CellPulse) -> None:
    counts = cfm.datasets.toy_infection()
    by = ["study", "donor", "time_h"]
    found, expected = (
        cfm.tl.predict_virus(counts, model, groupby="virus", control="none", by=b, n_matches=0)
        for b in (pd.Index(by), by)
    )
    assert isinstance(found, ad.AnnData)
    found_params, params = (x.uns["predicted_virus"]["params"] for x in (found, expected))
    assert found_params == params
    assert found.obs.equals(expected.obs)
