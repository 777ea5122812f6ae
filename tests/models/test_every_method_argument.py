"""Each argument of the methods that tools call changes the result, or must not."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cfm import models
from cfm.models import BulkFormer, CellPulse, CellVQ, PerturbationCountModel, Pulsar
from tests import _bulk, _lingshu, _planted_codes, _toy, _uce
from tests._pulsar import donors
from tests.models.bulkformer._compounds import toy_compounds

#: What an argument does to the result.
CHANGES, STAYS = True, False
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


class Change(NamedTuple):
    """Another value of an argument, whether the result changes, and what both calls are given.

    A value may be a dictionary of the argument and others that go with it.
    """

    value: Any
    changes: bool = CHANGES
    given: dict[str, Any] = {}  # noqa: RUF012


class Method(NamedTuple):
    """How a method is called, and the change of each of its arguments."""

    given: dict[str, Any]
    changes: dict[str, Change]
    #: in place of the method of the model of :data:`MODELS`
    call: Callable[..., Any] | None = None


def _with_layer(adata: ad.AnnData, other: Any) -> ad.AnnData:
    adata.layers["other"] = other
    return adata


@cache
def _log_tpm() -> ad.AnnData:
    adata = _bulk.toy_log_tpm(seed=3, n=12)[:, 2:].copy()
    return _with_layer(adata, adata.X[::-1].copy())


def _compounds() -> tuple[ad.AnnData, pd.DataFrame]:
    """Changes by 30 compounds, of which one is named as a gene, and features."""
    changes, features = toy_compounds()
    names = {"drug29": "GENE7"}
    changes.obs_names = [names.get(name, name) for name in changes.obs_names]
    return changes[:30].copy(), features.rename(index=names)


@cache
def _bulkformer() -> BulkFormer:
    adata = _bulk.toy_log_tpm(n=48)
    adata.obs["tissue"] = np.tile(["a", "b", "c"], 16)
    model = _bulk.untrained(adata)
    model.train(max_steps=6, **_bulk.TRAINING)
    changes, features = _compounds()
    model.train_compounds(changes, adata[:4], features=features, n_steps=20, rank=4)
    return model


@cache
def _bulkformer_with_linear_term() -> BulkFormer:
    model = _bulk.untrained(_bulkformer().adata)
    model.module.load_state_dict(_bulkformer().module.state_dict())
    return model


def _fit_linear_term(**arguments: Any) -> Any:
    model = _bulkformer_with_linear_term()
    model.fit_linear_term(**arguments)
    return model.linear_term.state_dict()


def _train_compounds(signatures: Any = None, baseline: Any = None, **arguments: Any) -> Any:
    changes, features = _compounds()
    model = _bulkformer_with_linear_term()
    given = {"features": features} | arguments
    if isinstance(given["features"], str):
        given["features"] = None
    signatures = changes if signatures is None else signatures
    scores = model.train_compounds(signatures, baseline or _baseline(), **given)
    return scores, model.compound_head.state_dict()


def _baseline() -> ad.AnnData:
    adata = _bulk.toy_log_tpm(n=8)
    return _with_layer(adata, adata.X + 1)


def _directions() -> pd.DataFrame:
    from tests.models.bulkformer._compounds import up_and_down

    return up_and_down(_compounds()[0])


@cache
def _contrasts() -> ad.AnnData:
    adata = _toy.toy_contrasts()[:, :60].copy()
    return _with_layer(adata, adata.X[::-1].copy())


@cache
def _cellpulse() -> CellPulse:
    adata = _contrasts()
    CellPulse.setup_anndata(adata, labels_key="label", study_key="study", sample_key="sample")
    model = CellPulse(adata, dim=16, n_heads=2, n_tokens=24, n_factors=6)
    model.train(max_steps=3, n_linear_steps=1, batch_size=8, **QUIET)
    model.train_classifier()
    return model


@cache
def _cells() -> ad.AnnData:
    adata = _planted_codes.planted_cells(12, seed=3)
    adata.obs["depth"] = adata.X.sum(axis=1) * np.linspace(1, 3, 12)
    adata.layers["log"] = np.log1p(adata.X / adata.X.sum(axis=1, keepdims=True) * 1e4)
    return _with_layer(adata, adata.X[::-1].copy())


@cache
def _cellvq() -> CellVQ:
    adata = _planted_codes.planted_cells(48)
    model = _planted_codes.untrained(adata, labels_keys=["cell_type", "even"])
    model.train(max_steps=12, batch_size=16, head_input="embedding", **_planted_codes.TRAINING)
    return model


@cache
def _counts() -> ad.AnnData:
    adata = _lingshu.toy_counts(seed=3, n=30)
    adata = adata[(adata.obs["drug"] == "none").to_numpy()].copy()
    return _with_layer(adata, adata.X[::-1].copy())


@cache
def _more_counts() -> ad.AnnData:
    return _lingshu.toy_counts(seed=3, n=150)


@cache
def _counts_without_source() -> ad.AnnData:
    adata = _counts().copy()
    adata.obs["kind"] = adata.obs.pop("cell_type")
    adata.obs["other"] = adata.obs["kind"].to_numpy()[::-1]
    return adata


FEATURES = pd.DataFrame(np.eye(3, 2), index=["none", "x", "y"], columns=["f0", "f1"])
NEW = pd.Series([0.5, 0.7], index=["f0", "f1"], name="z")


@cache
def _lingshu_cell() -> Any:
    adata = _lingshu.toy_counts(n=120)
    adata.X = adata.X.toarray()
    adata.X[:, 0] *= 40  # values above 100 stand for several counts
    models.LingshuCell.setup_anndata(adata, **_lingshu.KEYS, covariate_keys=["batch"])
    model = models.LingshuCell(adata, perturbation_features=FEATURES[1:], **_lingshu.SIZES)
    model.train(max_steps=100, average_width=None, **_lingshu.TRAINING)
    return model


@cache
def _count_model() -> PerturbationCountModel:
    adata = _lingshu.toy_counts(n=300)
    PerturbationCountModel.setup_anndata(adata, **_lingshu.KEYS)
    model = PerturbationCountModel(adata, perturbation_features=FEATURES[1:])
    model.train()
    return model


@cache
def _donors() -> ad.AnnData:
    adata = donors((9, 8, 7, 9), width=6)
    adata.obs["other"] = adata.obs["donor_id"].astype(str).to_numpy()[::-1]
    adata.obsm["X_other"] = adata.obsm["X_uce"][::-1].copy()
    return adata


@cache
def _pulsar() -> Pulsar:
    adata = donors((9, 8, 7, 9, 8, 7, 9, 8), width=6)
    Pulsar.setup_anndata(adata, use_rep="X_uce", labels_key="disease")
    model = Pulsar(adata, dim=16, encoder_layers=1, encoder_ff=16, decoder_ff=16)
    model.train(1, n_cells=4, **QUIET)
    model.train_head("disease", max_epochs=1, n_cells=4, **QUIET)
    return model


@cache
def _other_pulsar() -> Pulsar:
    _pulsar()  # registers the donors
    sizes = {"dim": 16, "encoder_layers": 1, "encoder_ff": 16, "decoder_ff": 16}
    return Pulsar(input_dim=6, seed=5, **sizes)


@cache
def _projected() -> tuple[Pulsar, ad.AnnData]:
    """A model that reads raw counts, and such."""
    import cfm

    adata = cfm.datasets.toy_donors(n_donors=6, n_cells=12)
    Pulsar.setup_anndata(adata)
    model = Pulsar(adata, dim=16, encoder_layers=1, encoder_ff=16, decoder_ff=16)
    model.train_head("disease", max_epochs=1, n_cells=4, **QUIET)
    return model, _with_layer(adata, adata.X[::-1].copy())


def _counts_of_donors() -> ad.AnnData:
    return _projected()[1]


def _of_pulsar(name: str) -> Callable[..., Any]:
    """A method of the model that reads counts, where such are passed."""

    def call(adata: ad.AnnData, **kwargs: Any) -> Any:
        model = _projected()[0] if adata is _counts_of_donors() else _pulsar()
        return getattr(model, name)(adata, **kwargs)

    return call


@cache
def _instrument() -> models.VirtualInstrument:
    table = pd.DataFrame(np.eye(3, 5), index=["A", "B", "C"])
    return models.VirtualInstrument(conditions=table, donor_dim=16, hidden_dim=8)


@cache
def _embedded() -> ad.AnnData:
    x = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    return _with_layer(ad.AnnData(x, obs=pd.DataFrame(index=list("abcdef"))), x + 1)


@cache
def _represented() -> ad.AnnData:
    adata = _donors()
    return ad.AnnData(adata.obsm["X_uce"], obs=adata.obs)


@cache
def _uce_model() -> models.UCE:
    folder = Path(tempfile.mkdtemp()) / "uce"
    return models.UCE.from_pretrained(_uce.published(folder), n_heads=_uce.N_HEADS)


@cache
def _uce_cells() -> ad.AnnData:
    adata = _uce.cells()
    return _with_layer(adata, adata.X[::-1].copy())


BATCH, PRECISION = Change(5, STAYS), Change("float32", CHANGES, {"precision": "bfloat16"})
LAYER = Change("other")
READS = {"layer": LAYER, "batch_size": BATCH, "precision": PRECISION}
EFFECTS, TARGET = Change(lambda: -_profiles()), Change(lambda: _virus())
MASK = np.arange(12 * 78).reshape(12, 78) % 7 == 0
SOME = ["GENE5", "GENE9", "GENE20"]
_FEATURES = pd.DataFrame({"length": [1.0, 2.0, 3.0]}, index=SOME)
COUNTS = {
    "layer": LAYER,
    "units": Change({"units": "log1p_cp10k", "layer": "log"}),
    "total_counts": Change("depth", CHANGES, {"layer": "log", "units": "log1p_cp10k"}),
}

#: Of both models that make counts of perturbed cells.
PERTURBED = {
    "perturbation": Change(["y"]),
    "layer": LAYER,
    "groupby": Change("other", CHANGES, {"adata": _counts_without_source, "groupby": "kind"}),
    "batch_size": BATCH,
    "seed": Change(3),
    "start": Change("noise"),
    "features": Change(NEW, CHANGES, {"perturbation": ["z"], "features": -NEW}),
}


def _targets(gene: str) -> pd.DataFrame:
    return pd.DataFrame({"compound": ["z"], "gene": [gene]})


def _profiles() -> np.ndarray:
    """The effects of contrasts in the order of the vocabulary."""
    return _cellpulse().registered_effects()[0][:6]


MODELS: dict[str, Callable[[], Any]] = {
    "BulkFormer": _bulkformer,
    "CellPulse": _cellpulse,
    "CellVQ": _cellvq,
    "LingshuCell": _lingshu_cell,
    "PerturbationCountModel": _count_model,
    "Pulsar": _pulsar,
    "UCE": _uce_model,
    "VirtualInstrument": _instrument,
}
METHODS: dict[str, Method] = {
    "BulkFormer.get_latent_representation": Method(
        {"adata": _log_tpm}, READS | {"pooling": Change("max"), "genes": Change(SOME)}
    ),
    "BulkFormer.get_gene_embeddings": Method(
        {"adata": _log_tpm},
        READS | {"genes": Change(SOME), "gene_features": Change(_FEATURES)},
        lambda **k: np.concatenate([e for _, e in _bulkformer().get_gene_embeddings(**k)]),
    ),
    "BulkFormer.impute": Method(
        {"adata": _log_tpm, "mask": MASK},
        READS | {"mask": Change(~MASK), "absent_genes": Change(True)},
    ),
    "BulkFormer.predict_expression": Method(
        {"adata": _log_tpm}, READS | {"mask": Change(MASK), "genes": Change(SOME)}
    ),
    "BulkFormer.knock_down": Method(
        {"adata": _log_tpm, "genes": ["GENE5"]},
        READS | {"genes": Change(SOME), "remaining": Change(0.5)},
    ),
    "BulkFormer.predict_compound": Method(
        {"adata": _log_tpm, "compound": "drug1"},
        READS | {"compound": Change("drug2"), "features": Change(pd.Series({"f0": 2.0}))},
    ),
    "BulkFormer.simulate": Method(
        {"adata": _log_tpm, "perturbation": ["GENE5", "drug1"]},
        READS
        | {
            "perturbation": Change(["GENE6"]),
            "groupby": Change("study", STAYS),
            "seed": Change(3, STAYS),
            "kind": Change("compound", CHANGES, {"perturbation": ["GENE7"]}),
            "remaining": Change(0.5),
            "strength": Change(0.5),
            "features": Change(pd.Series({"f0": 2.0})),
        },
    ),
    "BulkFormer.fit_linear_term": Method(
        {"n_factors": 2},
        {
            "n_factors": Change(6),
            "group_key": Change("tissue"),
            "weight": Change(0.3),
            "validation_share": Change(0.6),
            "seed": Change(3),
        },
        _fit_linear_term,
    ),
    "BulkFormer.train_compounds": Method(
        {"n_steps": 6, "rank": 4},
        {
            "signatures": Change(_directions),
            "baseline": Change(lambda: _bulkformer().adata[:5].copy()),
            "features": Change("none"),
            "layer": LAYER,
            "unlisted_weight": Change(0.1, CHANGES, {"signatures": _directions}),
            "validation_share": Change(0.5),
            "n_steps": Change(8),
            "batch_size": Change(5),
            "lr": Change(0.1),
            "weight_decay": Change(5.0),
            "rank": Change(6),
            "seed": Change(3),
        },
        _train_compounds,
    ),
    "CellPulse.get_latent_representation": Method(
        {"adata": _contrasts}, {"layer": LAYER, "batch_size": BATCH}
    ),
    "CellPulse.encode_blocks": Method(
        {"adata": _contrasts},
        {"layer": LAYER, "batch_size": BATCH},
        lambda **k: np.concatenate([e for _, e, _ in _cellpulse().encode_blocks(**k)]),
    ),
    "CellPulse.get_attention": Method(
        {"adata": _contrasts}, {"layer": LAYER}, lambda **k: [next(_cellpulse().get_attention(**k))]
    ),
    "CellPulse.predict_hidden": Method(
        {"effects": _profiles, "hidden": lambda: _profiles() > 0},
        {"effects": EFFECTS, "hidden": Change(lambda: _profiles() < 0)},
    ),
    "CellPulse.simulate": Method(
        {"adata": lambda: _contrasts()[:6].copy(), "perturbation": lambda: _genes(0)},
        {
            "perturbation": Change(lambda: _genes(1)),
            "layer": LAYER,
            "groupby": Change("study", STAYS),
            "batch_size": BATCH,
            "seed": Change(3),
            "mode": Change("flip"),
            "n_folds": Change(2),
        },
    ),
    "CellPulse.predict": Method(
        {"adata": _contrasts}, {"layer": LAYER, "names": Change("always"), "batch_size": BATCH}
    ),
    "CellPulse.predict_scores": Method(
        {"adata": _contrasts}, {"layer": LAYER, "batch_size": BATCH}
    ),
    "CellPulse.target_log_odds": Method(
        {"effects": _profiles, "target": "response"},
        {"effects": EFFECTS, "target": TARGET},
    ),
    "CellPulse.summary_attention": Method(
        {"effects": _profiles},
        {"effects": Change(lambda: _profiles()[::-1].copy()), "batch_size": Change(2, STAYS)},
    ),
    "CellPulse.integrated_gradients": Method(
        {"effects": _profiles, "target": "response"},
        {"effects": EFFECTS, "target": TARGET, "n_steps": Change(2), "batch_size": BATCH},
    ),
    "CellPulse.reversal": Method(
        {"effects": _profiles, "target": "response"},
        {"effects": EFFECTS, "target": TARGET, "mode": Change("flip")},
    ),
    "CellVQ.get_latent_representation": Method(
        {"adata": _cells},
        COUNTS | {"representation": Change("code"), "batch_size": BATCH, "precision": PRECISION},
    ),
    "CellVQ.get_cell_codes": Method(
        {"adata": _cells}, COUNTS | {"batch_size": BATCH, "precision": PRECISION}
    ),
    "CellVQ.get_attention": Method(
        {"adata": _cells},
        COUNTS | {"reduce": Change("mean")},
        lambda **k: list(_cellvq().get_attention(**k)),
    ),
    "CellVQ.get_gene_embeddings": Method(
        {"adata": _cells},
        COUNTS | {"batch_size": BATCH, "precision": PRECISION},
        lambda **k: np.concatenate([e for _, e in _cellvq().get_gene_embeddings(**k)]),
    ),
    "CellVQ.predict_properties": Method(
        {"adata": _cells},
        COUNTS | {"properties": Change("even"), "batch_size": BATCH, "precision": PRECISION},
    ),
    "CellVQ.simulate": Method(
        {"adata": _cells, "perturbation": ["G5", "G9"]},
        COUNTS
        | {
            "perturbation": Change(["G7"]),
            "groupby": Change("study", STAYS),
            "batch_size": BATCH,
            "seed": Change(3),
            "effect": Change("over_expression"),
            "quantile": Change(0.5, CHANGES, {"effect": "over_expression"}),
            "targets": Change(
                _targets("G9"), CHANGES, {"perturbation": ["z"], "targets": _targets("G5")}
            ),
            "n_folds": Change(4),
            "max_fold": Change(1.01),
        },
    ),
    "LingshuCell.generate": Method(
        {"cells": 8, "perturbation": "x", "n_steps": 4},
        {
            "cells": Change(9),
            "source": Change("T"),
            "perturbation": Change("y"),
            "covariates": Change({"batch": "b2"}),
            "depth": Change(50.0),
            "features": Change(NEW, CHANGES, {"perturbation": "z", "features": -NEW}),
            "frozen": Change({"GENE3": 50}),
            "guidance": Change(8.0),
            "guidance_floor": Change(0.3, CHANGES, {"guidance": 8.0}),
            "n_steps": Change(12),
            "dequantise": Change("midpoint"),
            "batch_size": Change(3, STAYS),
            "precision": Change("float32", CHANGES, {"cells": 60, "precision": "bfloat16"}),
            "seed": Change(3),
        },
    ),
    "LingshuCell.simulate": Method(
        {"adata": _counts, "perturbation": ["x"], "n_steps": 4},
        PERTURBED
        | {
            "guidance": Change(8.0),
            "guidance_floor": Change(0.3, CHANGES, {"guidance": 8.0}),
            "n_steps": Change(12),
            "keep_genes": Change(["GENE3"], CHANGES, {"start": "noise"}),
            "frozen": Change({"GENE3": 50}),
            "prior_cells": Change(_more_counts),
            "dequantise": Change("midpoint", CHANGES, {"start": "noise"}),
            "precision": Change(
                "float32", CHANGES, {"adata": _more_counts, "precision": "bfloat16"}
            ),
        },
    ),
    "PerturbationCountModel.predict_effects": Method(
        {"perturbation": "x"},
        {
            "perturbation": Change("y"),
            "features": Change(NEW, CHANGES, {"perturbation": "z", "features": -NEW}),
        },
    ),
    "PerturbationCountModel.simulate": Method(
        {"adata": _counts, "perturbation": ["x"]},
        PERTURBED,
    ),
}
_DRAWS = {
    "layer": Change("other", CHANGES, {"adata": _counts_of_donors}),
    "donor_key": Change("other"),
    "use_rep": Change("X_other"),
    "n_cells": Change(3),
    "n_draws": Change(3, CHANGES, {"n_cells": 3}),
    "seed": Change(3, CHANGES, {"n_cells": 3}),
    "batch_size": Change(2, STAYS),
    "precision": PRECISION,
}
METHODS |= {
    f"Pulsar.{name}": Method({"adata": _donors}, _DRAWS | more, _of_pulsar(name))
    for name, more in (
        ("get_latent_representation", {"pooling": Change("both")}),
        ("get_donor_embeddings", {"pooling": Change("moments")}),
        ("predict", {}),
    )
}
METHODS |= {
    "UCE.get_sentences": Method(
        {"adata": _uce_cells}, {"layer": LAYER, "sample_size": Change(64), "seed": Change(3)}
    ),
    "UCE.get_latent_representation": Method(
        {"adata": _uce_cells, "sample_size": 32},
        READS | {"sample_size": Change(64), "seed": Change(3)},
    ),
    "Pulsar.read_donors": Method(
        {"adata": _donors},
        {key: _DRAWS[key] for key in ("layer", "donor_key", "use_rep")},
        lambda donor_key=None, use_rep=None, **k: _of_pulsar("read_donors")(
            donor_key=donor_key, use_rep=use_rep, **k
        ),
    ),
    "Pulsar.get_cell_importance": Method(
        {"adata": _donors},
        {
            **{key: _DRAWS[key] for key in ("layer", "donor_key", "use_rep", "n_cells", "seed")},
            "method": Change("gradient"),
            "output": Change("lupus", CHANGES, {"method": "gradient"}),
        },
        _of_pulsar("get_cell_importance"),
    ),
    "Pulsar.get_removal_effects": Method(
        {
            "donors": lambda: _pulsar().read_donors(_donors(), None, None),
            "groups": lambda: _donors().obs["cell_type"].astype(str).to_numpy(dtype=object),
        },
        {
            "donors": Change(lambda: _pulsar().read_donors(_donors(), None, "X_other")),
            "groups": Change(lambda: _donors().obs["disease"].astype(str).to_numpy(dtype=object)),
            "n_cells": Change(4),
            "n_random": Change(1),
            "seed": Change(3),
        },
    ),
    "VirtualInstrument.predict": Method(
        {"donors": lambda: _embedded().X, "condition": "A"},
        {"donors": Change(lambda: _embedded().layers["other"]), "condition": Change("B")},
    ),
    "VirtualInstrument.simulate": Method(
        {"adata": _embedded, "perturbation": ["A"]},
        {
            "perturbation": Change(["B"]),
            "layer": LAYER,
            "groupby": Change(
                "other",
                CHANGES,
                {"adata": _represented, "encoder": _pulsar, "groupby": "donor_id"},
            ),
            "batch_size": Change(2, STAYS),
            "seed": Change(3, STAYS),
            "encoder": Change(
                _other_pulsar,
                CHANGES,
                {"adata": _represented, "encoder": _pulsar, "groupby": "donor_id"},
            ),
        },
    ),
}


def _genes(i: int) -> list[str]:
    return [str(_contrasts().var_names[i])]


def _virus() -> str:
    return str(_cellpulse().require_classifier().classes[0])


def _arrays(found: Any) -> Iterator[np.ndarray]:
    """Return all that a result holds as arrays."""
    if isinstance(found, ad.AnnData):
        found = found.to_df(), found.obs, {k: v for k, v in found.uns.items() if k != "generation"}
    if isinstance(found, pd.DataFrame):
        found = [found.index, found.columns, *(found[c] for c in found)]
    if isinstance(found, torch.Tensor):
        yield found.detach().numpy()
    elif isinstance(found, Mapping):
        yield from (
            a for k in sorted(found, key=str) for a in (np.array(str(k)), *_arrays(found[k]))
        )
    elif isinstance(found, list | tuple | Iterator):
        yield from (array for part in found for array in _arrays(part))
    elif is_dataclass(found):
        yield from (a for f in fields(found) for a in _arrays(getattr(found, f.name)))
    elif sparse.issparse(found):
        yield found.toarray()
    else:
        found = np.asarray(found)
        yield found if found.dtype.kind in "biuf" else found.astype(str)


def _equal(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return False
    if a.dtype.kind != "f":
        return bool((a == b).all())
    return np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _run(name: str, arguments: dict[str, Any]) -> list[np.ndarray]:
    cls, method = name.split(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = METHODS[name].call or getattr(MODELS[cls](), method)
        given = {k: v() if callable(v) else v for k, v in (METHODS[name].given | arguments).items()}
        return list(_arrays(call(**{k: v for k, v in given.items() if v is not None})))


@cache
def _baseline_of(name: str) -> list[np.ndarray]:
    return _run(name, {})


@pytest.mark.parametrize(
    ("name", "argument"), [(name, a) for name, method in METHODS.items() for a in method.changes]
)
def test_each_argument_changes_the_result_or_must_not(name: str, argument: str) -> None:
    value, changes, given = METHODS[name].changes[argument]
    before = _run(name, given) if given else _baseline_of(name)
    together = isinstance(value, dict) and argument in value
    after = _run(name, given | (value if together else {argument: value}))
    tolerance = 0.0 if changes else 1e-5
    alike = len(before) == len(after) and all(
        _equal(a, b, tolerance) for a, b in zip(before, after, strict=True)
    )
    assert alike != changes


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (_bulkformer, _log_tpm),
        (_cellpulse, _contrasts),
        (_cellvq, _cells),
        (lambda: _projected()[0], _counts_of_donors),
        (_uce_model, _uce_cells),
    ],
)
def test_own_data_are_read_as_registered(model: Callable[[], Any], data: Callable[[], Any]) -> None:
    model, adata = copy(model()), data().copy()
    model.setup_anndata(adata, layer="other")
    model.attach(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected, other = (
            model.get_latent_representation(*arguments[:1], **arguments[1])
            for arguments in ((None, {}), (adata, {"layer": "other"}), (adata, {}))
        )
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - other).max() > 1e-4


#: Not about results: data, files and tables, and what is tested beside training.
ELSEWHERE = {
    *("setup_anndata", "train", "save", "load", "from_pretrained", "attach", "to_device"),
    *("mark_trained", "registered_categories", "recognises", "inference_dtype", "train_head"),
    *("absent_genes", "vocabulary_share", "fit_gene_factors", "train_classifier", "set_properties"),
    *("set_confidence_levels", "least_confidence", "choose_properties", "set_count_term"),
    *("fit_count_term", "add_conditions", "set_proteins"),
}


#: What is written where is tested in tests/models/lingshu/test_generate.py.
NOT_RESULTS = {"self", "adata", "path", "overwrite"}


def _public() -> Iterator[tuple[str, set[str]]]:
    for cls in (getattr(models, name) for name in models.__all__):
        if not inspect.isclass(cls) or not issubclass(cls, models.PretrainedModel):
            continue
        for name in set(dir(cls)) - ELSEWHERE:
            found = inspect.getattr_static(cls, name)
            if name[0] != "_" and inspect.isfunction(found) and found.__module__.startswith("cfm."):
                arguments = set(inspect.signature(found).parameters) - NOT_RESULTS
                if arguments:
                    yield f"{cls.__name__}.{name}", arguments


@pytest.mark.parametrize(("name", "arguments"), sorted(_public()))
def test_no_argument_is_forgotten(name: str, arguments: set[str]) -> None:
    assert METHODS[name].changes.keys() == arguments
