"""Every public tool once: how it is called on good data, and what becomes of bad data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from cfm import get, pp, tl
from cfm.models import (
    UCE,
    BulkFormer,
    CellPulse,
    CellVQ,
    LingshuCell,
    PerturbationCountModel,
    Pulsar,
    VirtualInstrument,
)
from tests._graphs import limits
from tests.matrix import _data as data
from tests.matrix import _kinds


@dataclass(frozen=True)
class Tool:
    """One way to call a public function.

    Attributes
    ----------
    name
        As users call it, with a note in brackets where there are several.
    make
        Makes good input: dense, float32, in memory.
    call
        Calls it on data in any form, with further keywords.
    missing
        Arguments that name a column, layer or representation.
    paths, mudata, copy
        Whether files, a MuData and ``copy=`` are taken.
    bad
        What becomes of what :data:`tests.matrix._kinds.BAD` makes of good input, by kind.
    """

    name: str
    make: Callable[[], ad.AnnData]
    call: Callable[..., Any]
    missing: tuple[str, ...] = ()
    paths: bool = False
    mudata: bool = True
    copy: bool = True
    bad: dict[str, str] = field(default_factory=dict)


#: What may become of bad data, beside an error, which is written as its type and words:
#: the result of good data; that of good data for all but the first row, which alone is bad; that
#: of the first row of good data; or a result of its own, which the tests of the tool look at.
SAME, REST, FIRST, OWN = "same", "rest", "first", "own"

_EMPTY = r"ValueError: the matrix is empty: 0 × 50"
_NO_ROWS = r"ValueError: adata has no observations"
_OBS_TWICE = {"duplicate obs names": r"ValueError: 1 obs_names occur more than once \('cell00'\)"}
_VAR_TWICE = {
    "duplicate genes": r"ValueError: 1 var_names occur more than once \('ISG15'\)",
    "empty gene name": r"ValueError: 1 of adata\.var_names is empty",
}
_ANY_ID = {"Ensembl ids": SAME, "versioned ids": SAME, "mixed ids": SAME}
_OTHER_ID = dict.fromkeys(_ANY_ID, OWN)
_OTHER_NAMES = {"duplicate genes": OWN, "empty gene name": OWN, **_OTHER_ID}
_NO_GENE = {"no known gene": r"ValueError: Found 0 of the model's 4[08] genes"}
#: Of models that go through rows one by one, and find genes by any of their names.
_BY_ROW = {
    "no rows": _EMPTY,
    "one row": FIRST,
    "all-zero row": REST,
    "duplicate obs names": SAME,
    "duplicate genes": SAME,
    "empty gene name": SAME,
    **_NO_GENE,
    **_ANY_ID,
    "one class": SAME,
}
_INFINITE = {"infinite": r"ValueError: The matrix holds infinite values; log2 fold"}
_EFFECTS = {
    "NaN": REST,
    **_INFINITE,
    "negative": REST,
    "logarithms": r"ValueError: .* genes have the same value, not 0, in most observations",
}
_LOGS = {
    "NaN": REST,
    "infinite": r"ValueError: adata\.X holds infinite values; natural log1p",
    "negative": r"ValueError: adata\.X holds negative values \(smallest -3\); natural log1p",
    "logarithms": OWN,
}
_COUNTS = {
    "NaN": r"ValueError: adata\.X holds 1 NaN and 0 infinite values",
    "infinite": r"ValueError: adata\.X holds 0 NaN and 1 infinite values",
    "negative": r"ValueError: adata\.X holds negative values \(smallest -3\), so these are not co",
    "logarithms": r"ValueError: adata\.X holds fractional values of at most 5\.9, which look log",
}
_WHOLE = {
    "NaN": r"ValueError: adata\.X holds NaN or infinite values",
    "infinite": r"ValueError: adata\.X holds NaN or infinite values",
    "negative": r"ValueError: adata\.X holds negative values \(smallest -3\)",
    "logarithms": r"ValueError: adata\.X holds values that are not whole",
}
_ANY_VALUE = dict.fromkeys(["NaN", "infinite", "negative", "all-zero row", "logarithms"], SAME)
_ANY_GENE = dict.fromkeys(["duplicate genes", "empty gene name", "no known gene", *_ANY_ID], SAME)
#: Of tools that read a representation of cells and no genes.
_CELLS = {
    **_ANY_VALUE,
    **_ANY_GENE,
    "no rows": _NO_ROWS,
    "NaN": r"ValueError: adata\.obsm\['X_uce'\] is NaN or infinite in 1 of 40 cells",
    "infinite": r"ValueError: adata\.obsm\['X_uce'\] is NaN or infinite in 1 of 40 cells",
    **_OBS_TWICE,
    "one row": OWN,
    "negative": OWN,
    "one class": OWN,
}
#: Of tools that read the counts of cells of donors.
_OF_CELLS = {
    **_BY_ROW,
    **_WHOLE,
    **_OBS_TWICE,
    "no rows": _NO_ROWS,
    "one row": OWN,
    "one class": OWN,
    "all-zero row": r"ValueError: 1 of 40 cells have no counts of the 48 genes",
}
_NO_CONTRAST = {
    "one row": r"ValueError: there is one sample only \('cell00'\)",
    "one class": r"ValueError: no contrast of 'virus' with 'none' can be made",
    "all-zero row": OWN,
    **_OBS_TWICE,
    **_VAR_TWICE,
}
_NOT_FINITE = r"ValueError: (adata\.X|real) holds NaN or infinite values, (and means|which have)"
_PERTURBED = {
    "no rows": _EMPTY,
    "NaN": _NOT_FINITE,
    "infinite": _NOT_FINITE,
    "negative": r"ValueError: (adata\.X|real) holds negative values .*, which are no counts",
    "logarithms": r"ValueError: (adata\.X|real) holds fractional values .* Pass units=",
    **_OBS_TWICE,
    **_VAR_TWICE,
}
_SILENT = r"ValueError: In the cell 'cell00' none of the model's genes is expressed"
_NO_GROUP = r"KeyError: .*adata\.obs\['virus'\] has no \['A'\]"
_ONE_CLASS = r"ValueError: the target 'virus' has one class, 'none'"
_NOTHING = r"ValueError: model='mean_shift' has no data for 'A'"
_ONLY_CONTROL = r"ValueError: real\.obs\['virus'\] has nothing but the control 'none'"
_NOT_SIMULATED = r"ValueError: 'mean_shift' simulated none of the 50 genes"
_NOTHING_ELSE = r"ValueError: adata\.obs\['virus'\] has the control 'none' and nothing else"


def _hidden() -> ad.AnnData:
    adata = data.logs()
    adata.layers["hide"] = np.random.default_rng(4).random(adata.shape) < 0.2
    return adata


@cache
def _contrast_library() -> ad.AnnData:
    library = data.effects()
    library.X = np.random.default_rng(6).normal(size=library.shape).astype(np.float32)
    library.obs_names = [f"public {i}" for i in range(library.n_obs)]
    return library


def _signatures() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    rows = [
        {"compound": f"c{i}", "gene": gene, "direction": "up" if up else "down"}
        for i in range(6)
        for gene, up in zip(
            rng.choice(list(data.genes()), 20, replace=False), rng.random(20) < 0.5, strict=True
        )
    ]
    return pd.DataFrame(rows)


@cache
def _simulated() -> ad.AnnData:
    return tl.simulate_perturbation(
        data.counts(), "A", model="mean_shift", key="virus", control="none"
    )


@cache
def _graphed() -> ad.AnnData:
    adata = data.counts()
    _graph(adata)
    return adata


def _graph(adata: Any, **kwargs: Any) -> Any:
    quick = {"N_PERMUTATIONS": 5, "MIN_CELLS": 2, "N_CELLS_PER_CODE": 3}
    with limits(**quick):
        return tl.knowledge_graph(adata, data.cellvq(), communication=None, **kwargs)


def _programs(adata: Any, **kwargs: Any) -> Any:
    quick = {"n_genes": 48, "resolution": 0.3, "n_permutations": 2}
    return tl.gene_programs(adata, data.cellpulse(), **quick, **kwargs)


def _probed(adata: Any, **kwargs: Any) -> Any:
    return tl.probe(adata, **({"target": "virus", "heads": "logistic", "n_folds": 2} | kwargs))


def _responses() -> ad.AnnData:
    adata = data.logs()
    rng = np.random.default_rng(6)
    names = pd.Index([f"drug{i}" for i in range(5)])
    values = pd.DataFrame(rng.normal(size=(adata.n_obs, 5)), adata.obs_names, names)
    adata.obsm["response"] = values
    return adata


def _probed_drugs(adata: Any, **kwargs: Any) -> Any:
    features = pd.DataFrame(np.eye(5)[:, :4], [f"drug{i}" for i in range(5)])
    given = {"target": "response", "n_folds": 2, "left_out": "line"} | kwargs
    return tl.probe_drugs(adata, drug_features=features, **given)


def _screened() -> ad.AnnData:
    adata = data.effects()
    tl.screen_drugs(adata, _signatures(), model=None, n_permutations=10)
    return adata


def _annotated(adata: Any, **kwargs: Any) -> Any:
    table = pd.DataFrame({"compound": ["c0", "c1"], "gene": list(data.genes())[:2]})
    return tl.annotate_drugs(adata, table.assign(action="agonist"), **kwargs)


def _registered(model: Any, use: Callable, **keys: Any) -> Callable:
    def call(adata: Any, **kwargs: Any) -> Any:
        model.setup_anndata(adata, **(keys | kwargs))
        return use(adata, **{"layer": kwargs["layer"]} if "layer" in kwargs else {})

    return call


def _of_donors(model: Callable) -> Callable:
    return lambda x, **k: {"x": model().get_donor_embeddings(x, **k).embedding}


def _embedding_of(donors: ad.AnnData) -> ad.AnnData:
    """Without the pseudobulk, which is that of the cells' own X, and not made of files."""
    nothing = np.zeros((donors.n_obs, 1), dtype=np.float32)
    return ad.AnnData(nothing, obs=donors.obs, obsm=dict(donors.obsm), uns=donors.uns)


TABLE = [
    Tool(
        "tl.embed (CellPulse)",
        data.effects,
        lambda x, **k: tl.embed(x, data.cellpulse(), **k),
        ("layer",),
        paths=True,
        bad=_BY_ROW | _EFFECTS,
    ),
    Tool(
        "tl.embed (BulkFormer)",
        data.logs,
        lambda x, **k: tl.embed(x, data.bulkformer(), **k),
        ("layer",),
        paths=True,
        bad=_BY_ROW | _LOGS,
    ),
    Tool(
        "tl.embed (BulkFormer, genes)",
        data.logs,
        lambda x, **k: tl.embed(x, data.bulkformer(), level="gene", **k),
        ("layer",),
        paths=True,
        bad=_BY_ROW | _LOGS | {"one row": OWN, "NaN": OWN, "all-zero row": OWN},
    ),
    Tool(
        "tl.embed (CellVQ)",
        data.counts,
        lambda x, **k: tl.embed(x, data.cellvq(), **k),
        ("layer", "total_counts"),
        paths=True,
        bad=_BY_ROW | _WHOLE,
    ),
    Tool(
        "tl.embed (UCE)",
        data.counts,
        lambda x, **k: tl.embed(x, data.uce(), **k),
        ("layer",),
        paths=True,
        bad=_BY_ROW | _COUNTS | {"all-zero row": _SILENT},
    ),
    Tool(
        "tl.predict_virus",
        data.effects,
        lambda x, **k: tl.predict_virus(x, data.cellpulse(), n_matches=0, **k),
        ("layer",),
        paths=True,
        bad=_BY_ROW | _EFFECTS | {"duplicate obs names": OWN},
    ),
    Tool(
        "tl.predict_virus (of counts)",
        data.counts,
        lambda x, **k: tl.predict_virus(
            x,
            data.cellpulse(),
            n_matches=0,
            **({"groupby": "virus", "control": "none", "by": "study"} | k),
        ),
        ("layer", "groupby", "by"),
        paths=True,
        copy=False,
        bad=_BY_ROW | _COUNTS | _NO_CONTRAST | dict.fromkeys(_ANY_ID, REST),
    ),
    Tool(
        "tl.host_factors",
        data.effects,
        lambda x, **k: tl.host_factors(
            x,
            **{"groupby": "virus"} | k,
            model=data.cellpulse(),
            n_permutations=2,
            explain={"A": "response"},
            null="effects",
        ),
        ("layer", "groupby"),
        bad=_BY_ROW
        | _OTHER_NAMES
        | _EFFECTS
        | {"no rows": _NO_ROWS, "one row": _NO_GROUP, "one class": _NO_GROUP}
        | dict.fromkeys(["NaN", "negative", "all-zero row"], SAME),
    ),
    Tool(
        "tl.gene_programs",
        data.effects,
        _programs,
        ("layer", "groupby"),
        bad=_BY_ROW
        | _OTHER_NAMES
        | _EFFECTS
        | dict.fromkeys(["one row", "NaN", "negative", "all-zero row", "duplicate obs names"], OWN),
    ),
    Tool(
        "tl.screen_drugs",
        data.effects,
        lambda x, **k: tl.screen_drugs(
            x, _signatures(), model=data.cellpulse(), n_permutations=10, **k
        ),
        ("layer", "groupby"),
        bad=_BY_ROW
        | _EFFECTS
        | {
            "no rows": _NO_ROWS,
            "no known gene": r"ValueError: None of the 47 genes of the signatures",
        }
        | dict.fromkeys(
            [
                "one row",
                "NaN",
                "negative",
                "all-zero row",
                "duplicate genes",
                "empty gene name",
                "one class",
            ],
            OWN,
        ),
    ),
    Tool(
        "tl.annotate_drugs",
        _screened,
        _annotated,
        ("key",),
        bad=dict.fromkeys(_kinds.BAD, OWN)
        | {"no rows": _NO_ROWS, "infinite": _EFFECTS["infinite"]}
        | dict.fromkeys(
            ["one row", "one class"], r"KeyError: .*adata\.obs\['virus'\] has no \['A', 'B'\]"
        ),
    ),
    Tool(
        "tl.search_signatures",
        data.effects,
        lambda x, **k: tl.search_signatures(x, _contrast_library(), n=4, **k),
        ("layer", "study_key"),
        bad=_BY_ROW
        | _EFFECTS
        | _OBS_TWICE
        | {
            "no rows": _NO_ROWS,
            "no known gene": r"ValueError: Found 0 of the library's 50 genes",
        }
        | _OTHER_NAMES
        | dict.fromkeys(["one row", "NaN", "negative", "all-zero row"], OWN),
    ),
    Tool(
        "tl.impute",
        _hidden,
        lambda x, **k: tl.impute(x, data.bulkformer(), **({"mask": "hide"} | k)),
        ("layer", "mask"),
        paths=True,
        bad=_BY_ROW | _LOGS | dict.fromkeys(["one row", "NaN", "all-zero row"], OWN),
    ),
    Tool(
        "tl.probe",
        data.logs,
        _probed,
        ("target", "groups", "use_rep", "layer"),
        bad=_ANY_GENE
        | _OBS_TWICE
        | {
            "no rows": r"ValueError: no observation has a value",
            "one row": _ONE_CLASS,
            "one class": _ONE_CLASS,
            "infinite": r"ValueError: adata\.X holds 1 infinite values",
        }
        | dict.fromkeys(["NaN", "negative", "all-zero row", "logarithms"], OWN),
    ),
    Tool(
        "tl.probe_drugs",
        _responses,
        _probed_drugs,
        ("groups", "use_rep", "layer"),
        bad=_ANY_GENE
        | _OBS_TWICE
        | {
            "no rows": r"ValueError: no observation has a value",
            "one row": r"ValueError: target 'drug0' has 1 values, too few for 2 folds",
            "infinite": r"ValueError: adata\.X holds 1 infinite values",
            "one class": OWN,
        }
        | dict.fromkeys(["NaN", "negative", "all-zero row", "logarithms"], OWN),
    ),
    Tool(
        "tl.cell_codes",
        data.counts,
        lambda x, **k: tl.cell_codes(x, data.cellvq(), min_cells=2, **k),
        ("layer", "total_counts", "groupby"),
        paths=True,
        bad=_BY_ROW | _WHOLE,
    ),
    Tool(
        "tl.knowledge_graph",
        data.counts,
        _graph,
        ("layer", "codes"),
        bad=_BY_ROW
        | _OTHER_ID
        | _WHOLE
        | _OBS_TWICE
        | _VAR_TWICE
        | {"all-zero row": OWN}
        | dict.fromkeys(
            ["no rows", "one row", "one class"],
            r"ValueError: adata\.obs\['cell_code'\] has [01] code",
        ),
    ),
    Tool(
        "get.knowledge_graph",
        lambda: _graphed().copy(),
        lambda x, **k: _tables(get.knowledge_graph(x, **k)),
        ("key",),
        copy=False,
        bad=dict.fromkeys(_BY_ROW, SAME) | _ANY_VALUE,
    ),
    Tool(
        "tl.predict_properties",
        data.counts,
        lambda x, **k: tl.predict_properties(x, data.cellvq(), **k),
        ("layer", "total_counts"),
        paths=True,
        bad=_BY_ROW | _WHOLE | {"duplicate obs names": OWN},
    ),
    Tool(
        "tl.map_reference",
        data.embedded,
        lambda x, **k: tl.map_reference(x, data.embedded(), **({"label_key": "cell_type"} | k)),
        ("use_rep", "label_key", "exclude_key"),
        bad=_CELLS
        | {"one row": FIRST, "negative": REST, "one class": SAME}
        | dict.fromkeys(
            ["NaN", "infinite"], r"ValueError: 1 of 40 embeddings of the query are NaN"
        ),
    ),
    Tool(
        "tl.embed_donors",
        data.embedded,
        lambda x, **k: _embedding_of(tl.embed_donors(x, model=data.pulsar_of_counts(), **k)),
        ("donor_key", "layer"),
        paths=True,
        copy=False,
        bad=_OF_CELLS | {"negative": _WHOLE["negative"]},
    ),
    Tool(
        "tl.embed_donors (representation)",
        data.embedded,
        lambda x, **k: _embedding_of(tl.embed_donors(x, model=data.pulsar(), **k)),
        ("donor_key", "use_rep"),
        paths=True,
        copy=False,
        bad=_CELLS | {"negative": REST},
    ),
    Tool(
        "tl.cell_importance",
        data.embedded,
        lambda x, **k: tl.cell_importance(x, model=data.pulsar(), **({"groupby": "cell_type"} | k)),
        ("donor_key", "use_rep", "groupby"),
        bad=_CELLS,
    ),
    Tool(
        "tl.simulate_perturbation (baseline)",
        data.counts,
        lambda x, **k: tl.simulate_perturbation(
            x, "A", **({"model": "mean_shift", "key": "virus", "control": "none"} | k)
        ),
        ("layer", "key", "groupby", "control"),
        copy=False,
        bad=_PERTURBED
        | {"all-zero row": OWN, "one row": _NOTHING, "one class": _NOTHING}
        | dict.fromkeys(["no known gene", *_ANY_ID], REST),
    ),
    Tool(
        "tl.simulate_perturbation (LingshuCell)",
        data.counts,
        lambda x, **k: tl.simulate_perturbation(
            x,
            "A",
            **(
                {"model": data.lingshu(), "key": "virus", "control": "none"}
                | {"groupby": "cell_type", "n_steps": 2}
                | k
            ),
        ),
        ("layer", "key", "groupby", "control"),
        copy=False,
        bad=_PERTURBED
        | _WHOLE
        | _NO_GENE
        | {"one row": FIRST, "one class": r"KeyError: .*does not have the source \(cell_type\)"}
        | dict.fromkeys(["all-zero row", *_ANY_ID], REST),
    ),
    Tool(
        "tl.evaluate_perturbation",
        data.counts,
        lambda x, **k: tl.evaluate_perturbation(
            x,
            _simulated().copy(),
            **(
                {"key": "virus", "control": "none", "min_cells": 2}
                | {"baselines": ["control", "mean_shift", "ceiling"]}
                | k
            ),
        ),
        ("layer", "key", "groupby", "split_key", "control"),
        copy=False,
        bad=_PERTURBED
        | {
            "one row": _ONLY_CONTROL,
            "one class": _ONLY_CONTROL,
            "no known gene": _NOT_SIMULATED,
            "versioned ids": _NOT_SIMULATED,
        }
        | dict.fromkeys(["all-zero row", "Ensembl ids", "mixed ids"], OWN),
    ),
    Tool(
        "pp.contrasts",
        data.counts,
        lambda x, **k: pp.contrasts(x, **({"groupby": "virus", "control": "none"} | k)),
        ("layer", "groupby", "control", "by", "sample_key"),
        copy=False,
        bad=_BY_ROW | _COUNTS | _NO_CONTRAST | dict.fromkeys(["no known gene", *_ANY_ID], REST),
    ),
    Tool(
        "pp.map_genes",
        data.counts,
        pp.map_genes,
        ("var_key",),
        mudata=False,  # which does not follow genes that are merged
        bad=_ANY_VALUE
        | _OTHER_NAMES
        | {"no known gene": r"ValueError: none of the 50 gene identifiers \('nothing0'"}
        | dict.fromkeys(["no rows", "one row", "duplicate obs names", "one class"], SAME),
    ),
    Tool(
        "pp.split_perturbations",
        data.counts,
        lambda x, **k: pp.split_perturbations(
            x, **({"key": "virus", "control": "none", "groupby": "study"} | k)
        ),
        ("key", "control", "groupby"),
        bad=_ANY_VALUE
        | _ANY_GENE
        | _OBS_TWICE
        | {"no rows": _NO_ROWS, "one row": _NOTHING_ELSE, "one class": _NOTHING_ELSE},
    ),
    Tool(
        "pp.tpm",
        data.counts,
        pp.tpm,
        ("layer", "gene_lengths"),
        bad=_BY_ROW
        | _COUNTS
        | {
            "one row": OWN,
            "all-zero row": r"ValueError: 1 samples of adata\.X have no counts at all \('cell00'\)",
            "no known gene": r"ValueError: none of the 50 genes \('nothing0'",
        }
        | dict.fromkeys(["duplicate genes", "empty gene name", "versioned ids"], OWN),
    ),
    Tool(
        "pp.coexpression_graph",
        data.logs,
        lambda x, **k: pp.coexpression_graph(x, n_neighbors=3, **k),
        ("layer",),
        bad=_ANY_GENE
        | {
            "no rows": _EMPTY,
            "one row": r"ValueError: adata\.X has 1 observations; a correlation",
            "duplicate obs names": SAME,
            "one class": SAME,
        }
        | dict.fromkeys(["NaN", "infinite"], r"ValueError: adata\.X holds 1 NaN or infinite values")
        | dict.fromkeys(["negative", "all-zero row", "logarithms"], OWN),
    ),
]


def _tables(graph: Any) -> dict[str, pd.DataFrame]:
    return {"nodes": graph.nodes, "edges": graph.edges}


def _latent(model: Callable) -> Callable:
    return lambda adata, **k: {"latent": model().get_latent_representation(adata, **k)}


def _perturbed(model: Callable) -> Callable:
    return lambda adata, **k: {"latent": model().simulate(adata, ["A"], **k).X.toarray()}


MODELS = [
    Tool(
        "CellPulse.setup_anndata",
        data.effects,
        _registered(CellPulse, _latent(data.cellpulse)),
        ("layer", "labels_key", "study_key", "sample_key"),
        bad=_BY_ROW | _EFFECTS,
    ),
    Tool(
        "BulkFormer.setup_anndata",
        data.logs,
        _registered(BulkFormer, _latent(data.bulkformer)),
        ("layer", "study_key"),
        bad=_BY_ROW | _LOGS,
    ),
    Tool(
        "CellVQ.setup_anndata",
        data.counts,
        _registered(CellVQ, _latent(data.cellvq)),
        ("layer", "total_counts", "study_key"),
        bad=_BY_ROW | _WHOLE | _VAR_TWICE,
    ),
    Tool(
        "LingshuCell.setup_anndata",
        data.counts,
        _registered(LingshuCell, _perturbed(data.lingshu)),
        ("layer", "source_key", "perturbation_key"),
        bad=_BY_ROW
        | _WHOLE
        | _VAR_TWICE
        | _OBS_TWICE
        | {"one class": "KeyError: .*does not have the source .* 'none'; it has"},
    ),
    Tool(
        "PerturbationCountModel.setup_anndata",
        data.counts,
        _registered(PerturbationCountModel, _perturbed(data.count_model)),
        ("layer", "source_key", "perturbation_key"),
        bad=_BY_ROW | _WHOLE | _VAR_TWICE | _OBS_TWICE,
    ),
    Tool(
        "UCE.setup_anndata",
        data.counts,
        _registered(UCE, _latent(data.uce)),
        ("layer",),
        bad=_BY_ROW | _COUNTS | {"all-zero row": _SILENT},
    ),
    Tool(
        "Pulsar.setup_anndata",
        data.embedded,
        _registered(Pulsar, _of_donors(data.pulsar_of_counts)),
        ("donor_key", "layer", "labels_key", "study_key"),
        bad=_OF_CELLS | _VAR_TWICE,
    ),
    Tool(
        "Pulsar.setup_anndata (representation)",
        data.embedded,
        _registered(Pulsar, _of_donors(data.pulsar), use_rep="X_uce"),
        ("donor_key", "use_rep", "labels_key", "study_key"),
        bad=_CELLS,
    ),
    Tool(
        "VirtualInstrument.setup_anndata",
        data.embedded,
        _registered(VirtualInstrument, lambda x: None, condition_key="virus", donor_key="study"),
        ("condition_key", "donor_key", "use_rep"),
        bad=_CELLS
        | dict.fromkeys(["one row", "negative", "duplicate obs names", "one class"], SAME)
        | dict.fromkeys(
            ["NaN", "infinite"], r"ValueError: adata\.obsm\['X_pulsar'\] is NaN or infinite in 1"
        ),
    ),
]
