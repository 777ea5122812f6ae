"""Each argument of each tool changes what is stored, or must not; none is without an entry."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import copy, deepcopy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from cfm import pp, tl
from cfm.data import ContrastPairs
from cfm.models import BulkFormer, CellVQ, Pulsar
from tests import _bulk, _cellvq, _graphs
from tests._graphs import limits
from tests.matrix import _data as data
from tests.matrix import _outcome

TOOLS = {name: getattr(room, name) for room in (tl, pp) for name in room.__all__}
PARAMS = re.compile(r"(^|/)(params|contrasts)(/|$)|^uns/simulation")


class Change(NamedTuple):
    """Another value of an argument, what changes, and what both calls are given besides.

    ``fields`` is a pattern of all fields that change, ``None`` if nothing does. A value may be a
    dictionary of the argument and others that go with it. What can be called makes a value.
    """

    value: Any
    fields: str | None = ""
    given: dict[str, Any] = {}  # noqa: RUF012


def _with_others(adata: ad.AnnData) -> ad.AnnData:
    """Other values, cells and labels beside those that are there."""
    adata.layers["other"] = np.roll(adata.X, 1, axis=1)
    adata.obs["other"] = adata.obs["virus"].to_numpy()[::-1]
    adata.obs["dose"] = np.arange(adata.n_obs) % 3
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 2, "train", "test")
    if "X_uce" in adata.obsm:
        adata.obsm["X_other"] = adata.obsm["X_uce"][::-1].copy()
    return adata


def _counts() -> ad.AnnData:
    adata = _with_others(data.counts(36))
    normal = adata.X / adata.X.sum(axis=1, keepdims=True) * 1e4
    adata.layers["log"] = np.log1p(normal)
    adata.layers["small"] = 20 * adata.X / adata.X.max()  # counts or logarithms
    adata.obs["depth"] = 2 * adata.X.sum(axis=1)
    return adata


def _on_disk() -> ad.AnnData:
    path = Path(mkdtemp()) / "counts.h5ad"
    _counts().write_h5ad(path)
    return ad.read_h5ad(path, backed="r")


def _named() -> ad.AnnData:
    """Counts whose first two genes are one gene, with other names in a column."""
    adata = _counts()
    adata.var["symbol"] = [*adata.var_names[1:], adata.var_names[0]]
    ensembl = data.genes()[adata.var_names[0]]
    adata.var_names = [adata.var_names[0], ensembl, *adata.var_names[2:]]
    adata.var["length"] = np.linspace(500, 5000, adata.n_vars)
    return adata


def _mouse() -> ad.AnnData:
    adata = _counts()
    adata.var_names = [name.capitalize() for name in adata.var_names]
    return adata


def _effects() -> ad.AnnData:
    return _with_others(data.effects())


def _logs() -> ad.AnnData:
    adata = _with_others(data.logs())
    adata.obsm["X_uce"] = np.random.default_rng(3).normal(size=(adata.n_obs, 4))
    return adata


@cache
def _bulkformer() -> BulkFormer:
    model = _bulk.untrained(_bulk.toy_log_tpm(n=24), dim=8)
    model.train(max_steps=6, **_bulk.TRAINING)
    return model


def _hidden() -> ad.AnnData:
    """Log TPM of most genes of that model."""
    adata = _bulk.toy_log_tpm(seed=3, n=12)[:, 5:].copy()
    hidden = np.random.default_rng(4).random((2, *adata.shape)) < 0.2
    adata.layers["hide"], adata.layers["hide more"] = hidden
    adata.layers["other"] = adata.X[:, ::-1].copy()
    return adata


def _cells() -> ad.AnnData:
    return _with_others(data.embedded())


def _reference(seed: int) -> ad.AnnData:
    adata = _cells()
    adata.obsm["X_uce"] += np.random.default_rng(seed).normal(size=adata.obsm["X_uce"].shape)
    return adata


def _library(seed: int = 6) -> ad.AnnData:
    library = _effects()
    library.X = np.random.default_rng(seed).normal(size=library.shape).astype(np.float32)
    library.obs_names = [f"public {i}" for i in range(library.n_obs)]
    library.obs["study"] = [f"s{i % 6 + 1}" for i in range(library.n_obs)]
    library.layers["other"] = np.roll(library.X, 1, axis=1)
    return library


def _signatures(seed: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    genes = [rng.choice(list(data.genes()), 20, replace=False) for _ in range(6)]
    rows = [
        {"compound": f"c{i}", "gene": gene, "direction": "up" if k < 10 else "down"}
        for i, drawn in enumerate(genes)
        for k, gene in enumerate(drawn)
    ]
    return pd.DataFrame(rows)


def _targets() -> pd.DataFrame:
    genes = list(data.genes())
    return pd.DataFrame({"compound": ["c0", "c0", "c1", "c2"], "gene": genes[:4]})


def _screened() -> ad.AnnData:
    adata = _effects()
    for key, seed in (("drug_screen", 5), ("other", 7)):
        tl.screen_drugs(adata, _signatures(seed), model=None, n_permutations=5, key_added=key)
    return adata


def _acting(action: str = "agonist") -> pd.DataFrame:
    return _targets().assign(action=["inhibitor", action, action, "blocker"])


def _edges(step: int = 1) -> pd.DataFrame:
    genes = list(data.genes())
    pairs = [(g, genes[(i + k) % 48]) for i, g in enumerate(genes) for k in (step, 5)]
    return pd.DataFrame(pairs, columns=["gene1", "gene2"])


def _properties(pka: float = 9.0) -> pd.DataFrame:
    return pd.DataFrame({"compound": ["c0", "c1"], "pka": [pka, 3.0], "logp": [5.0, 5.0]})


def _responses() -> ad.AnnData:
    adata = _logs()
    for name in ("response", "response2"):
        rng = np.random.default_rng(len(name))
        values = rng.normal(size=(adata.n_obs, 6)) + 2 * adata.X[:, :6]
        columns = [f"drug{i}" for i in range(6)]
        adata.obsm[name] = pd.DataFrame(values, index=adata.obs_names, columns=columns)
    return adata


def _drug_features(seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(6, 3))
    return pd.DataFrame(values, index=[f"drug{i}" for i in range(6)])


def _scores(step: int = 1) -> pd.Series:
    return pd.Series(np.linspace(1, 0, 48)[::step], index=list(data.genes()))


def _other(model: Callable[[], Any]) -> Callable[[], Any]:
    """A model whose weights differ."""

    def make() -> Any:
        made = copy(model())
        for name, part in vars(made).items():
            if isinstance(part, torch.nn.Module):  # networks and heads
                setattr(made, name, part := deepcopy(part))
                for weight in part.state_dict().values():
                    if weight.is_floating_point():
                        wave = torch.sin(torch.arange(weight.numel()))
                        weight *= 1 + 0.3 * wave.reshape(weight.shape)
        return made

    return make


@cache
def _head() -> Pulsar:
    """Pulsar with a head for a label of donors."""
    adata = data.embedded()
    adata.obs["ill"] = adata.obs["donor_id"].isin(["d1", "d3"]).map({True: "yes", False: "no"})
    Pulsar.setup_anndata(adata, use_rep="X_uce", labels_key="ill")
    model = Pulsar(adata, dim=16, encoder_layers=1, encoder_ff=16, decoder_ff=16)
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    model.train_head("ill", max_epochs=1, n_cells=4, **quiet)
    return model


@cache
def _property_model() -> CellVQ:
    """CellVQ with two properties, and a record of how far its cells are from each other."""
    adata = data.counts(48)[:, :-2].copy()
    CellVQ.setup_anndata(adata, labels_keys=["cell_type", "virus"])
    model = CellVQ(adata, **_cellvq.SIZES)
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    model.train(max_steps=6, batch_size=16, head_input="embedding", **quiet)
    return model


def _to_code(seed: int = 0) -> ad.AnnData:
    """Cells of several codes."""
    adata = _cellvq.counted_cells(36, seed=seed)
    adata.obs["virus"] = np.array(["none", "A", "B"])[np.arange(36) % 3]
    adata.layers["other"] = np.roll(adata.X, 1, axis=1)
    adata.layers["log"] = np.log1p(adata.X / adata.X.sum(axis=1, keepdims=True) * 1e4)
    adata.obs["depth"] = 2 * adata.X.sum(axis=1)
    return adata


_code_model = cache(_cellvq.small_model)


@cache
def _coded() -> ad.AnnData:
    adata = _to_code(seed=1)
    tl.cell_codes(adata, _code_model(), min_cells=2)
    return adata


def _grouped() -> ad.AnnData:
    adata = _graphs.coded_cells(60)
    counts = adata.X.toarray()
    adata.layers["other"] = np.roll(counts, 1, axis=1)
    adata.layers["log"] = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    return adata


def _attention() -> _graphs.PlantedAttention:
    return _graphs.PlantedAttention(["G00", "G11"], [("G00", "G01")])


@cache
def _two_graphs() -> ad.AnnData:
    adata = _grouped()
    for key, model in (("knowledge_graph", _attention()), ("other", None)):
        tl.knowledge_graph(adata, model, communication=None, key_added=key)
    return adata


@cache
def _simulated(key: str = "virus", control: str = "none") -> ad.AnnData:
    return tl.simulate_perturbation(
        _counts(), "A", model="mean_shift", key=key, control=control, groupby="cell_type"
    )


REGULATION = pd.DataFrame({"source": ["G00"], "target": ["G01"]})
FEATURES = pd.DataFrame([[1.0, 0.0], [0.0, 1.0], [0.6, 0.7]], index=["A", "B", "C"])
CPU, BATCH = Change("cpu", None), Change(5, None)
_SPLIT: dict[str, Any] = {"hold_out": "cells", "groupby": None}
_OF_COUNTS = {"adata": _counts, "groupby": "virus", "control": "none", "by": "study"}
_TESTED = {"mode": "test", "adata": lambda: _counts()[:, :20].copy()}
_PSEUDOBULK = {"adata": lambda: _counts()[:34].copy(), "sample_key": "donor_id", "min_cells": 1}
_RANDOM = r"p_value|fdr|p_target"

#: By tool: what it is called with.
GIVEN: dict[str, dict[str, Any]] = {
    "cell_codes": {"adata": _to_code, "model": _code_model, "min_cells": 2},
    "cell_importance": {"adata": _cells, "model": data.pulsar, "groupby": "cell_type"},
    "embed": {"adata": _logs, "model": data.bulkformer},
    "embed_donors": {"adata": _cells, "model": data.pulsar, "n_cells": 5},
    "evaluate_perturbation": {
        "real": lambda: _counts()[:30].copy(),
        "simulated": lambda: _simulated().copy(),
        "key": "virus",
        "control": "none",
        "groupby": "cell_type",
        "baselines": ["control"],
        "min_cells": 2,
    },
    "gene_programs": {
        "adata": _effects,
        "model": data.cellpulse,
        "n_genes": 48,
        "resolution": 0.3,
        "n_permutations": 2,
    },
    "host_factors": {
        "adata": _effects,
        "groupby": "virus",
        "method": "integrated_gradients",
        "model": data.cellpulse,
        "explain": {"A": "A"},
        "null": "effects",
        "n_permutations": 2,
    },
    "impute": {"adata": _hidden, "model": _bulkformer, "mask": "hide"},
    "knowledge_graph": {"adata": _grouped, "model": _attention, "communication": None},
    "map_reference": {
        "query": _cells,
        "reference": lambda: _reference(1),
        "label_key": "cell_type",
        "use_rep": "X_uce",
        "n_neighbors": 6,
    },
    "predict_properties": {"adata": _counts, "model": _property_model},
    "predict_virus": {"adata": _effects, "model": data.cellpulse, "n_matches": 0},
    "probe": {"adata": _logs, "target": "virus", "heads": "logistic", "n_folds": 2},
    "probe_drugs": {
        "adata": _responses,
        "target": "response",
        "drug_features": _drug_features,
        "left_out": ["line", "drug"],
        "n_folds": 2,
    },
    "annotate_drugs": {
        "adata": _screened,
        "targets": _acting,
        "network": _edges,
        "host_factors": _scores,
        "n_host_factors": 5,
        "n_permutations": 20,
    },
    "screen_drugs": {
        "adata": _effects,
        "signatures": _signatures,
        "targets": _targets,
        "host_factors": _scores,
        "model": None,
        "n_permutations": 30,
    },
    "search_signatures": {"adata": _effects, "library": _library, "n": 4},
    "simulate_perturbation": {
        "adata": _counts,
        "perturbation": "A",
        "model": "mean_shift",
        "key": "virus",
        "control": "none",
    },
    "coexpression_graph": {"adata": _logs, "n_neighbors": 4, "min_correlation": 0.1},
    "contrasts": {"adata": _counts, "groupby": "virus", "control": "none"},
    "map_genes": {"adata": _named},
    "split_perturbations": {"adata": _counts, "key": "virus", "control": "none"}
    | {"groupby": "cell_type"},
    "tpm": {"adata": _counts},
}


#: By tool: what each argument does; words in brackets tell apart several entries of one.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "cell_codes": {
        "model": _other(_code_model),
        "groupby": Change("virus", "uns"),
        "layer": "other",
        "reference": Change(lambda: _coded().copy(), "uns"),
        "n_groups": 2,
        "min_cells": Change(1000, "uns"),
        "device": CPU,
        "model_kwargs": {"units": "log1p_cp10k", "layer": "log", "total_counts": "depth"},
        "model_kwargs (batch_size)": BATCH,
    },
    "cell_importance": {
        "donor_key": "study",
        "model": _other(data.pulsar),
        "groupby": Change("virus", "uns"),
        "use_rep": "X_other",
        "layer": Change("other", given={"model": data.pulsar_of_counts}),
        "method": "gradient",
        "output": Change("yes", given={"model": _head, "method": "gradient"}),
        "n_cells": 3,
        "seed": Change(1, given={"n_cells": 3}),
    },
    "embed": {
        "model": _other(data.bulkformer),
        "level": "gene",
        "layer": "other",
        "batch_size": BATCH,
        "device": CPU,
        "model_kwargs": {"pooling": "max"},
    },
    "embed_donors": {
        "donor_key": "study",
        "model": _other(data.pulsar),
        "use_rep": "X_other",
        "layer": Change("other", given={"model": data.pulsar_of_counts}),
        "n_cells": Change(4, "obsm|obs/n_"),
        "n_draws": Change(2, "obsm|obs/|uns"),
        "seed": Change(1, "obsm"),
        "device": CPU,
        "model_kwargs": Change({"precision": "float32"}, given={"precision": "bfloat16"}),
        "model_kwargs (batch_size)": Change(1, None),
    },
    "evaluate_perturbation": {
        "key": {"key": "other", "simulated": lambda: _simulated("other").copy()},
        "control": {"control": "B", "simulated": lambda: _simulated("virus", "B").copy()},
        "groupby": None,
        "split_key": "split",
        "layer": "other",
        "units": Change("counts", given={"units": {"real": "log"}, "layer": "small"}),
        "metrics": ["e_distance"],
        "baselines": ["mean_shift"],
        "min_cells": 5,
        "seed": Change(1, "value", {"baselines": ["ceiling"]}),
    },
    "gene_programs": {
        "model": _other(data.cellpulse),
        "groupby": "virus",
        "layer": "other",
        "gene_sets": Change(lambda: {"set": list(data.genes())[:10]}, "uns"),
        "source": "attention",
        "n_genes": 30,
        "resolution": 1.0,
        "n_permutations": Change(3, _RANDOM),
        "seed": 1,
    },
    "host_factors": {
        "groupby": Change("study", given={"explain": "A"}),
        "method": "attention",
        "model": _other(data.cellpulse),
        "explain": {"explain": {"A": "B"}},
        "known": Change(
            lambda: list(data.genes())[20:26],
            given={"method": "guided", "known": lambda: list(data.genes())[:6]},
        ),
        "null": Change("directions", _RANDOM),
        "n_permutations": Change(3, _RANDOM),
        "layer": "other",
        "seed": Change(1, _RANDOM),
    },
    "impute": {
        "model": _other(_bulkformer),
        "mask": "hide more",
        "layer": "other",
        "absent_genes": True,
        "batch_size": BATCH,
        "device": CPU,
    },
    "knowledge_graph": {
        "model": None,
        "codes": "tissue",
        "annotations": ["tissue"],
        "knowledge": {"knowledge": {"tf": REGULATION}},
        "communication": Change(
            "permutation", given={"knowledge": lambda: {"ligand_receptor": _graphs.PAIRS}}
        ),
        "layer": "other",
        "units": Change({"units": "log1p_cp10k", "layer": "log"}, given={"model": None}),
    },
    "map_reference": {
        "reference": lambda: _reference(2),
        "label_key": "virus",
        "use_rep": "X_other",
        "n_neighbors": 3,
        "sharpness": 0.0,
        "prior": {"prior": {"B": 0.9, "T": 0.1}},
        "unknown": 0.5,
        "exclude_key": "study",
        "centre": True,
    },
    "predict_properties": {
        "model": _other(_property_model),
        "properties": "cell_type",
        "layer": "other",
        "unknown": 0.5,
        "device": CPU,
        "model_kwargs": Change({"precision": "float32"}, given={"precision": "bfloat16"}),
        "model_kwargs (batch_size)": BATCH,
    },
    "predict_virus": {
        "model": _other(data.cellpulse),
        "groupby": Change("other", given=_OF_COUNTS),
        "control": Change("B", given=_OF_COUNTS),
        "layer": "other",
        "names": "always",
        "n_matches": Change(2, "uns"),
        "device": CPU,
        "contrast_kwargs": Change({"by": "cell_type"}, given=_OF_COUNTS),
    },
    "probe": {
        "target": "study",
        "task": Change("regression", given={"target": "dose", "heads": None}),
        "groups": "donor_id",
        "test_on": Change(["d1"], given={"groups": "donor_id"}),
        "use_rep": "X_uce",
        "layer": "other",
        "heads": "random_forest",
        "n_folds": 3,
        "seed": 1,
    },
    "probe_drugs": {
        "target": "response2",
        "drug_features": lambda: _drug_features(1),
        "left_out": Change("both"),
        "groups": "donor_id",
        "use_rep": "X_uce",
        "layer": "other",
        "n_folds": 3,
        "seed": 1,
    },
    "annotate_drugs": {
        "targets": lambda: _acting("antagonist"),
        "network": lambda: _edges(2),
        "properties": _properties,
        "host_factors": lambda: _scores(-1),
        "n_host_factors": 9,
        "n_permutations": Change(21, "proximity_z"),
        "seed": Change(1, "proximity_z"),
        "key": "other",
    },
    "screen_drugs": {
        "signatures": lambda: _signatures(7),
        "targets": {"targets": None, "host_factors": "host_factors"},
        "groupby": None,
        "layer": "other",
        "model": data.cellpulse,
        "host_factors": lambda: _scores(-1),
        "readings": ["connectivity"],
        "n_permutations": 31,
        "seed": 1,
    },
    "search_signatures": {
        "library": lambda: _library(8),
        "method": "spearman",
        "n": 3,
        "direction": "opposite",
        "layer": "other",
        "library_layer": "other",
        "study_key": "study",
        "exclude_studies": ["s1"],
        "n_genes": Change(5, "evidence"),
    },
    "simulate_perturbation": {
        "perturbation": "B",
        "model": Change("control", given={"groupby": "cell_type"}),
        "key": "other",
        "control": "B",
        "groupby": "cell_type",
        "groups": Change(["B"], given={"groupby": "cell_type"}),
        "n_cells": 3,
        "layer": "other",
        "device": Change("cpu", None, {"model": data.lingshu, "groupby": "cell_type"}),
        "seed": Change(1, "^X$"),
        "options": Change(
            {"alpha": 100.0},
            given={"model": "linear", "perturbation": "C", "features": lambda: FEATURES},
        ),
        "options (batch_size)": Change(
            {"batch_size": 5}, None, {"model": data.lingshu, "groupby": "cell_type"}
        ),
    },
    "coexpression_graph": {
        "layer": "other",
        "n_neighbors": 2,
        "min_correlation": 0.5,
        "symmetric": True,
    },
    "contrasts": {
        "groupby": "other",
        "control": "B",
        "by": "study",
        "mode": "pairs",
        "layer": "other",
        "units": {"units": "log", "layer": "log"},
        "sample_key": {"sample_key": "donor_id", "min_cells": 1},
        "min_cells": Change(3, given=_PSEUDOBULK),
        "prior_count": Change(8.0, "^X$"),
        "shrink": Change(True, given=_TESTED),
        "memory_mib": Change(0.001, None, {"mode": "pairs", "adata": _on_disk}),
    },
    "map_genes": {
        "organism": Change("human", "var/mapping", {"adata": _mouse}),
        "var_key": "symbol",
        "aggregate": Change("mean", "^X$|layers"),
        "unmapped": "drop",
    },
    "split_perturbations": {
        "key": "other",
        "control": "B",
        "hold_out": "cells",
        "groupby": "study",
        "groups": ["T"],
        "perturbations": ["B"],
        "share": Change(0.2, given=_SPLIT),
        "hold_out_controls": True,
        "seed": Change(1, given=_SPLIT),
    },
    "tpm": {
        "gene_lengths": Change("length", given={"adata": _named}),
        "layer": "other",
        "missing_length": "drop",
    },
}
#: By tool: arguments with which more tables are stored.
RICHER: dict[str, dict[str, Any]] = {
    "cell_codes": {"groupby": "virus", "n_groups": 2, "reference": lambda: _coded().copy()},
    "gene_programs": {"groupby": "virus", "gene_sets": lambda: {"set": list(data.genes())[:10]}},
    "impute": {"absent_genes": True},
    "knowledge_graph": {
        "annotations": ["tissue"],
        "knowledge": lambda: {"tf": REGULATION, "ligand_receptor": _graphs.PAIRS},
        "communication": "permutation",
    },
    "map_reference": {"prior": "estimated"},
    "predict_virus": {"n_matches": 2},
    "probe": {"groups": "donor_id", "use_rep": "X_uce"},
    "simulate_perturbation": {"groupby": "cell_type"},
    "contrasts": _TESTED,
}
#: What is read, and what has checks of its own below.
READ = {"adata", "query", "real", "simulated"}
BELOW = {"key_added", "copy", "output", "overwrite"}
ROWS = [(tool, argument) for tool, table in ARGUMENTS.items() for argument in table]


def _having(*names: str) -> list[str]:
    return [n for n, tool in TOOLS.items() if {*names} <= {*inspect.signature(tool).parameters}]


@pytest.fixture(autouse=True)
def _few_draws() -> Iterator[None]:
    """Tools draw less, and other tests look at their warnings."""
    graph = limits(N_PERMUTATIONS=5, MIN_CELLS=2, N_CELLS_PER_CODE=3, MAX_FDR=1.0)
    probes = mock.patch("cfm.tl._probe._probe._N_BOOT", 20)
    trees = mock.patch("cfm.tl._probe._cross_validation._N_TREES", 5)
    programs = mock.patch("cfm.tl._gene_programs._find.N_BOOTSTRAPS", 2)
    with graph, probes, trees, programs, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _flat(made: Any) -> dict[str, np.ndarray]:
    if isinstance(made, ContrastPairs):
        made = made.to_adata()
    if hasattr(made, "edges"):
        made = {"nodes": made.nodes, "edges": made.edges}
    return {k: v for k, v in _outcome.flat(made, skip=True).items() if not PARAMS.search(k)}


def _call(tool: str, given: Mapping[str, Any]) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Return the data, what is returned, and the data before."""
    made = {k: v() if callable(v) else v for k, v in given.items()}
    adata = next(made[name] for name in ("adata", "query", "real") if name in made)
    before = _flat(adata)
    return adata, TOOLS[tool](**made), before


_STORED: dict[str, dict[str, np.ndarray]] = {}


def _stored(tool: str, **given: Any) -> dict[str, np.ndarray]:
    """What a tool returns or writes, without records; the same call is made once."""
    key = tool + repr(sorted(given.items()))
    if key not in _STORED:
        adata, returned, before = _call(tool, GIVEN[tool] | given)
        after = _flat(adata if returned is None else returned)
        _STORED[key] = _outcome.changed(after, before) if returned is None else after
    return _STORED[key]


@pytest.mark.parametrize("tool", TOOLS)
def test_every_argument_is_here_and_there_are_at_most_twelve(tool: str) -> None:
    parameters = inspect.signature(TOOLS[tool]).parameters
    entries = {name.split(" ")[0] for name in ARGUMENTS[tool]}
    assert parameters.keys() - ((BELOW | READ) - entries) == entries
    assert sum(p.kind is not p.VAR_KEYWORD for p in parameters.values()) <= 12


@pytest.mark.parametrize(("tool", "argument"), ROWS)
def test_an_argument_changes_what_it_should(tool: str, argument: str) -> None:
    entry = ARGUMENTS[tool][argument]
    value, fields, given = entry if isinstance(entry, Change) else Change(entry)
    if not isinstance(value, dict):
        value = {argument.split(" ")[-1].strip("()"): value}
    before, after = _stored(tool, **given), _stored(tool, **given | value)
    if fields is None:
        _outcome.assert_alike(after, before)
    else:
        changed = {*_outcome.changed(after, before), *(before.keys() - after.keys())}
        assert changed
        assert not [field for field in changed if not re.search(fields, field)]


@pytest.mark.parametrize("tool", _having("copy", "key_added"))
def test_the_key_renames_the_fields_of_a_copy(tool: str) -> None:
    default = inspect.signature(TOOLS[tool]).parameters["key_added"].default or "X_bulkformer"
    adata, made, before = _call(tool, GIVEN[tool] | {"copy": True, "key_added": "mine"})
    _outcome.assert_untouched(_flat(adata), before)
    renamed = {re.sub(f"/(X_)?{default}", r"/\1mine", k): v for k, v in _stored(tool).items()}
    _outcome.assert_alike(_outcome.changed(_flat(made), before), renamed)


@pytest.mark.parametrize("tool", _having("output", "overwrite"))
def test_an_output_is_replaced_only_on_demand(tool: str, tmp_path: Path) -> None:
    output = {"output": tmp_path / "made.h5ad"}
    adata, made, before = _call(tool, GIVEN[tool] | output)
    _outcome.assert_untouched(_flat(adata), before)
    found = _flat(made)
    expected = {k: v for k, v in _stored(tool).items() if not re.match("X|var", k)}
    _outcome.assert_alike({k: found[k] for k in expected}, expected)
    with pytest.raises(FileExistsError):
        _call(tool, GIVEN[tool] | output)
    _, made, _ = _call(tool, GIVEN[tool] | output | {"overwrite": True})
    _outcome.assert_alike(_flat(made), found)


@pytest.mark.parametrize("tool", _having("key_added"))
def test_a_key_that_no_file_can_hold_is_refused(tool: str) -> None:
    prefix = tool == "predict_properties"  # which may be empty
    for key, error in (("a/b", ValueError), (3, TypeError), *[("", ValueError)] * (not prefix)):
        made = {k: v() if callable(v) else v for k, v in GIVEN[tool].items()}
        adata = made.get("adata", made.get("query"))
        before = _flat(adata)
        with pytest.raises(error, match=r"cannot be stored|key_added is a int"):
            TOOLS[tool](**made | {"key_added": key})
        _outcome.assert_untouched(_flat(adata), before)


@pytest.mark.parametrize("tool", _having("model"))
def test_what_is_no_model_is_refused(tool: str) -> None:
    for model in (3, object()):
        made = {k: v() if callable(v) else v for k, v in GIVEN[tool].items()}
        before = _flat(made["adata"])
        with pytest.raises(TypeError, match=r"model= is a (int|object)"):
            TOOLS[tool](**made | {"model": model})
        _outcome.assert_untouched(_flat(made["adata"]), before)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("tool", sorted(TOOLS.keys() - {"evaluate_perturbation"}))
def test_results_and_records_survive_a_file(tool: str, kind: str, tmp_path: Path) -> None:
    adata, made, _ = _call(tool, GIVEN[tool] | RICHER.get(tool, {}))
    made = adata if made is None else made
    getattr(made, f"write_{kind}")(tmp_path / "made")
    back = getattr(ad, f"read_{kind}")(tmp_path / "made")
    _outcome.assert_alike(_outcome.flat(back), _outcome.flat(made))
