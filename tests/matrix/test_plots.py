"""Every figure of stored results over every kind of storage: drawn, and the data as they were."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import pytest

import cfm
from cfm import pl
from tests.matrix import _data, _kinds, _outcome
from tests.matrix.test_matrix import TOOLS


@pytest.fixture(autouse=True)
def _other_tests_look_at_our_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _made_by(name: str) -> ad.AnnData:
    tool = TOOLS[name]
    data = tool.make()
    made = tool.call(data)
    return data if made is None else made


def _simulated() -> ad.AnnData:
    return _made_by("tl.simulate_perturbation (baseline)")


_COLUMNS = {"key": "virus", "control": "none"}
#: What each figure is drawn from, and how it is called.
PLOTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "virus_probabilities": ("tl.predict_virus", lambda x: pl.virus_probabilities(x, show=False)),
    "embedding": ("tl.embed (CellPulse)", lambda x: pl.embedding(x, color="virus", show=False)),
    "host_factors": ("tl.host_factors", lambda x: pl.host_factors(x, show=False)),
    "host_factor_enrichment": (
        "tl.host_factors",
        lambda x: pl.host_factor_enrichment(x, list(_data.genes())[:12], show=False),
    ),
    "gene_programs": ("tl.gene_programs", lambda x: pl.gene_programs(x, show=False)),
    "drug_screen": ("tl.screen_drugs", lambda x: pl.drug_screen(x, show=False)),
    "signature_search": ("tl.search_signatures", lambda x: pl.signature_search(x, show=False)),
    "classification": (
        "tl.predict_virus",
        lambda x: pl.classification(x, "virus", kind="confusion", show=False),
    ),
    "volcano": ("tl.search_signatures", lambda x: pl.volcano(x, show=False)),
    "probe": ("tl.probe", lambda x: pl.probe(x, show=False)),
    "cell_codes": ("tl.cell_codes", lambda x: pl.cell_codes(x, groupby="virus", show=False)),
    "code_transitions": (
        "tl.cell_codes",
        lambda x: pl.code_transitions(x, groupby="virus", show=False),
    ),
    "knowledge_graph": ("tl.knowledge_graph", lambda x: pl.knowledge_graph(x, show=False)),
    "donors": ("tl.embed_donors", lambda x: pl.donors(x, show=False)),
    "cell_importance": ("tl.cell_importance", lambda x: pl.cell_importance(x, show=False)),
    "top_genes": ("pp.contrasts", lambda x: pl.top_genes(x, show=False)),
    "perturbation_effect": (
        "tl.split_perturbations",
        lambda x: pl.perturbation_effect(x, _simulated(), show=False, **_COLUMNS),
    ),
    "perturbation_umap": (
        "tl.split_perturbations",
        lambda x: pl.perturbation_umap(x, _simulated(), show=False, **_COLUMNS),
    ),
}
#: One reads a model, one a table, one needs an optional package to be drawn from (tests/pl).
ELSEWHERE = {"training", "perturbation_metrics", "survival"}


def _data_of(name: str) -> ad.AnnData:
    source = PLOTS[name][0]
    if name.startswith("perturbation"):
        return _data.counts()
    data = _made_by(source).copy()
    data.layers.pop("same", None)
    return data


def test_every_plot_is_here() -> None:
    assert set(PLOTS) | ELSEWHERE == set(pl.__all__)


@pytest.mark.parametrize("kind", ["view", "csc", "dask", "backed_csr"])
@pytest.mark.parametrize("name", PLOTS)
def test_figures_of_all_storages(name: str, kind: str, tmp_path: Path) -> None:
    data = _kinds.in_storage(_data_of(name), kind, tmp_path)
    before = _outcome.flat(data)
    assert PLOTS[name][1](data) is not None
    _outcome.assert_untouched(_outcome.flat(data), before)


@pytest.mark.parametrize("name", PLOTS)
def test_a_lazy_table_is_asked_for_in_memory(name: str, tmp_path: Path) -> None:
    data = _kinds.in_storage(_data_of(name), "lazy", tmp_path)
    with pytest.raises(TypeError, match=r"read_lazy.*pass adata\.to_memory\(\)"):
        PLOTS[name][1](data)


@pytest.mark.parametrize("name", sorted(set(pl.__all__) - {"training", "perturbation_metrics"}))
def test_a_figure_is_of_one_modality(name: str) -> None:
    plot = getattr(pl, name)
    wanted = inspect.signature(plot).parameters
    needed = {"reference": ["ISG15"], "simulated": None, "truth": "virus"}
    needed = {argument: value for argument, value in needed.items() if argument in wanted}
    with pytest.raises(TypeError, match=r"Found a MuData; .* one modality: mdata\['rna'\]"):
        plot(_kinds.in_mudata(_data.counts()), **needed)


def test_names_with_slashes_are_stored(tmp_path: Path) -> None:
    data = _data.logs()
    data.obs["kind"] = data.obs["virus"].cat.rename_categories({"A": "H1/N1"})
    cfm.tl.probe(data, "kind", heads="logistic", n_folds=2)
    data.write_zarr(tmp_path / "x.zarr")
    back = ad.read_zarr(tmp_path / "x.zarr")
    assert list(back.obsm["probe_proba"]) == ["B", "H1|N1", "none"]
    assert list(back.uns["probe"]["params"]["classes"]) == ["B", "H1/N1", "none"]
