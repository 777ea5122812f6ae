"""``cfm.tl.knowledge_graph``: what it refuses, what it warns of, and what it leaves untouched."""

from __future__ import annotations

import re
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from tests._block_model import SilentModel
from tests._graphs import PAIRS, PlantedAttention, coded_cells, limits
from tests._same import assert_unchanged

KNOWN = {"ligand_receptor": PAIRS}


def run(adata: ad.AnnData, **arguments: Any) -> dict[str, Any]:
    cfm.tl.knowledge_graph(adata, **({"model": None, "knowledge": KNOWN} | arguments))
    return adata.uns["knowledge_graph"]


def refused(adata: ad.AnnData, error: type[Exception], words: str, **arguments: Any) -> None:
    """Check that the error says so, and that the data are as they were."""
    before = adata.copy()
    with pytest.raises(error, match=words):
        run(adata, **arguments)
    assert_unchanged(adata, before)


class HalfOfThem(PlantedAttention):
    def get_attention(self, adata: ad.AnnData, *, layer: str | None = None) -> Any:
        return super().get_attention(adata[: adata.n_obs // 2], layer=layer)


class OtherNames(PlantedAttention):
    def get_attention(self, adata: ad.AnnData, *, layer: str | None = None) -> Any:
        for tokens, weights in super().get_attention(adata, layer=layer):
            yield pd.Index(["<summary>", *(f"other{t}" for t in tokens[1:])]), weights


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (KeyError, r"no columns \['organ'\]", {"annotations": ["tissue", "organ"]}),
        (TypeError, r"expected a list: \['tissue'\]", {"annotations": "tissue"}),
        (ValueError, "each column once", {"annotations": ["tissue", "tissue"]}),
        (ValueError, "each column once", {"annotations": ["cell_code"]}),
        (ValueError, "not whole, such as.*pandas.cut", {"annotations": ["age"]}),
        (ValueError, "not whole", {"codes": "age"}),
        (ValueError, "names of other kinds.*rename", {"annotations": ["gene"]}),
        (ValueError, "names of other kinds", {"annotations": ["target"]}),
        (ValueError, "has 1 code", {"codes": "only"}),
        (ValueError, "has 0 code.*all missing", {"codes": "nothing"}),
        (ValueError, "120 codes in 120 cells, and none has 10.*n_groups", {"codes": "each"}),
        (ValueError, "which no log1p of counts per 10,000", {"units": "log1p_cp10k"}),
        (TypeError, "knowledge is a DataFrame.*dictionary", {"knowledge": PAIRS}),
        (ValueError, "a table 'drug'; expected names of", {"knowledge": {"drug": PAIRS}}),
        (TypeError, r"\['tf'\] is a dict.*source and target", {"knowledge": {"tf": {}}}),
        (ValueError, "0 rows", {"knowledge": {"ligand_receptor": PAIRS.iloc[:0]}}),
        (
            ValueError,
            "expected rows with ligand and receptor",
            {"knowledge": {"ligand_receptor": PAIRS[["ligand"]]}},
        ),
        (
            ValueError,
            r"None of the 1 interactions of knowledge\['protein'\].*TP53 – MDM2.*G00",
            {"knowledge": {"protein": pd.DataFrame({"gene1": ["TP53"], "gene2": ["MDM2"]})}},
        ),
        (
            ValueError,
            r"None of the 1 targets in knowledge\['drugs'\]",
            {"knowledge": {"drugs": pd.DataFrame({"compound": ["x"], "gene": ["EGFR"]})}},
        ),
        (TypeError, "SilentModel has no attention", {"model": SilentModel()}),
        (
            TypeError,
            "get_attention takes no units=",
            {"model": PlantedAttention([], []), "units": "log1p_cp10k", "layer": "log"},
        ),
        (ValueError, "maps of 30 of 60 cells", {"model": HalfOfThem([], [])}),
        (ValueError, "None of the 49 genes", {"model": OtherNames([], [])}),
    ],
)
def test_refusals(error: type[Exception], words: str, arguments: dict[str, Any]) -> None:
    cells = coded_cells(
        age=np.linspace(20.5, 80.25, 120),
        gene="a",
        target="a",
        only="1",
        nothing=pd.Categorical([None] * 120),
        each=[f"c{i}" for i in range(120)],
    )
    cells.layers["log"] = cells.X.log1p()
    refused(cells, error, words, **arguments)


def test_bundled_pairs_without_overlap() -> None:
    words = (
        r"None of the \d+ ligand-receptor pairs.*0 of \d+ genes.*such as A1BG.*communication=None"
    )
    refused(coded_cells(), ValueError, words, knowledge=None)
    edges = run(coded_cells(), knowledge=None, communication=None)["edges"]
    assert set(edges["kind"]) == {"importance"}


def test_names_that_run_into_each_other() -> None:
    cells = coded_cells(a=pd.Categorical(["b:c", "x"] * 60))
    cells.obs["a:b"] = pd.Categorical(["c", "y"] * 60)
    refused(cells, ValueError, re.escape("called ['a:b:c']"), annotations=["a", "a:b"])


def test_annotations_with_one_level_are_left_out() -> None:
    cells = coded_cells(organ=pd.Categorical(["lung"] * 120), empty=pd.Categorical([None] * 120))
    with pytest.warns(UserWarning, match="left out of the graph") as caught:
        stored = run(cells, annotations=["organ", "tissue", "empty"])
    assert [str(w.message).split(":")[0] for w in caught] == [
        "obs['organ'] has one level ('lung') in the cells with a code",
        "obs['empty'] has no value in the cells with a code",
    ]
    assert set(stored["nodes"]["kind"]) == {"code", "gene", "tissue"}
    assert stored["params"]["annotations"] == ["tissue"]


def test_codes_with_few_cells_still_count_as_others() -> None:
    cells = coded_cells()
    labels = cells.obs["cell_code"].astype(str).to_numpy(dtype=object)
    labels[labels == "10"] = [f"rare{i // 8}" for i in range(40)]
    cells.obs["cell_code"] = labels
    with pytest.warns(UserWarning, match=r"5 of 7 codes have fewer.*\(40 cells together\)"):
        stored = run(cells, annotations=["tissue"])
    assert stored["params"]["n_cells"] == 120
    assert set(stored["nodes"].index[:2]) == {"code:0", "code:1"}
    usual = run(coded_cells())
    edges = [x["edges"][x["edges"]["kind"] == "importance"] for x in (stored, usual)]
    shared = [e[e["source"] == "code:0"].set_index("target") for e in edges]
    pd.testing.assert_series_equal(shared[0]["weight"], shared[1]["weight"])


def test_cells_without_a_code_take_no_part() -> None:
    cells = coded_cells()
    part = cells[:90].copy()
    cells.obs["cell_code"] = cells.obs["cell_code"].where(np.arange(120) < 90)
    pd.testing.assert_frame_equal(run(cells)["edges"], run(part)["edges"])


def test_whole_numbers_are_codes() -> None:
    cells = coded_cells()
    text = run(cells)["edges"]
    cells.obs["cell_code"] = cells.obs["cell_code"].astype(int)
    pd.testing.assert_frame_equal(run(cells)["edges"], text)
    cells.obs["cell_code"] = cells.obs["cell_code"].astype(float)
    pd.testing.assert_frame_equal(run(cells)["edges"], text)


def test_random_codes_have_few_edges_or_none() -> None:
    rng = np.random.default_rng(0)
    cells = coded_cells(random=pd.Categorical(rng.choice(["a", "b"], 120)))
    with pytest.warns(UserWarning, match="No edge of any kind"):
        stored = run(cells, codes="random", annotations=["batch"])
    assert len(stored["edges"]) == 0
    assert cfm.get.knowledge_graph(cells).query("code:a").empty


def test_too_few_permutations_for_so_many_tests() -> None:
    cells = cfm.datasets.toy_communication(1)
    words = (
        r"No ligand-receptor link passes.*smallest p-value of 50 permutations \(0.02\).*n_groups"
    )
    with limits(N_PERMUTATIONS=50), pytest.warns(UserWarning, match=words):
        cfm.tl.knowledge_graph(cells, None, codes="cell_type")
    assert "communication" not in set(cells.uns["knowledge_graph"]["edges"]["kind"])


def test_no_graph_to_get() -> None:
    cells = coded_cells(30)
    with pytest.raises(TypeError, match="expected an AnnData"):
        cfm.get.knowledge_graph(None)
    with pytest.raises(KeyError, match="run cfm"):
        cfm.get.knowledge_graph(cells)
    cells.uns["knowledge_graph"] = {"nodes": 3}
    with pytest.raises(KeyError, match=r"\['nodes'\] not found; run cfm\.tl\.knowledge_graph"):
        cfm.get.knowledge_graph(cells)
