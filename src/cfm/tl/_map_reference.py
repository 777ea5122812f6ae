"""Nearest donors of a reference, and labels by their votes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm._adata import check_key, require_anndata, takes_anndata, target, warn_overwritten
from cfm._arguments import BELOW_1, NOT_NEGATIVE
from cfm._fields import (
    CONFIDENCE,
    EVIDENCE,
    MAP_REFERENCE_KEY,
    NEIGHBOURS,
    PARAMS,
    UNKNOWN,
)
from cfm.data import Reference
from cfm.data._matrix import check_not_empty, check_unique_names
from cfm.tl._representation import (
    read_representation,
    representation_name,
    representation_record,
)

if TYPE_CHECKING:
    from cfm.tl._representation import LatentModel

_PRIORS = ("uniform", "reference", "estimated")


@takes_anndata(
    columns=("exclude_key",),
    ranges={"sharpness": NOT_NEGATIVE, "unknown": BELOW_1},
)
def map_reference(
    query: AnnData,
    reference: AnnData | Reference | str | Path,
    label_key: str | None = None,
    *,
    use_rep: str | LatentModel = "X_pulsar",
    n_neighbors: int = 10,
    sharpness: float = 10.0,
    prior: Literal["uniform", "reference", "estimated"] | Mapping[str, float] = "uniform",
    unknown: float = 0.05,
    exclude_key: str | None = None,
    centre: bool = False,
    key_added: str = MAP_REFERENCE_KEY,
    copy: bool = False,
) -> AnnData | None:
    """Find the nearest donors (samples, contrasts) of a reference, and predict labels from them.

    Parameters
    ----------
    query
        Observations with an embedding in ``obsm``, or in the units of the model in ``use_rep``.
    reference
        AnnData of the same kind; a parquet file or folder with the columns ``donor_id`` and
        ``embedding``, such as DONORxEMBED; or a :class:`cfm.data.Reference`, which is indexed once
        for many searches and accepts an embedding of any name.
    label_key
        Column of the reference with the label, such as ``"disease_label"``. Without it
        there are neighbours only. Neighbours without a label do not vote.
    use_rep
        Name of the embedding in ``query.obsm`` and ``reference.obsm``; or a model with
        ``get_latent_representation(adata)``, of cfm, scvi-tools or elsewhere, that embeds both. Its
        embeddings are not stored. Models of scvi-tools register both AnnData.
    n_neighbors
        Neighbours of each observation; all of a smaller reference.
    prior
        Frequencies of the labels among the observations, which correct the votes for the
        frequencies in the reference: ``"uniform"``, ``"reference"`` (no correction),
        ``"estimated"`` from the observations (expectation maximisation, Saerens et al. 2002; for
        dozens of observations), or a share by label.
    unknown
        Share of the reference beyond the distance limit: an observation is ``"unknown"`` if its
        nearest neighbour is farther. With 0 none is.
    sharpness
        A neighbour's vote is the exponential of its similarity times this number; with 0 all votes
        are equal.
    exclude_key
        Column of both, such as ``"dataset_id"``: neighbours with the observation's own value are
        left out.
    centre
        Subtract the mean of the reference from every embedding first. Most of an embedding is
        common to all donors; the published search does not subtract it.
    key_added
        Name of the result.
    copy
        Return a changed copy; ``query`` stays unchanged.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``query.uns['map_reference' | key_added]['neighbours']``
        DataFrame, a row per observation and neighbour: ``observation`` str, ``rank`` int64 from
        1, ``reference`` str (its name), ``similarity`` float64 (cosine), and ``label`` str, ``""``
        if it has none.
    ``query.uns[key_added]['params']``
        The arguments, the size of the reference, and, if recorded, the model of the embedding:
        ``model``, ``module`` of its class, ``sha256`` or ``""``.

    With ``label_key`` also

    ``query.obs[key_added]``
        Categorical, the label with the largest corrected share of the votes; ``"unknown"`` if the
        nearest neighbour is beyond the limit; missing if no neighbour has a label.
    ``query.obs[key_added + '_confidence']``
        float64, that share; ``NaN`` for unknown and missing. It is no calibrated probability.
    ``query.uns[key_added]['evidence']``
        DataFrame, a row per observation and label among its neighbours: ``observation`` str,
        ``label`` str, ``n_neighbours`` int64, ``share`` float64 of the votes, ``prior`` float64
        share of the reference that has the label, ``enrichment`` float64 (``share / prior``),
        ``best_similarity`` float64, and ``corrected`` float64: the share corrected for
        ``prior``.
    ``query.uns[key_added]['params']``
        Also ``unknown_below`` (similarity) and ``priors`` (``labels``, and the share of each among
        the observations).

    Raises
    ------
    TypeError
        If ``query``, ``reference`` or ``use_rep`` is of another type.
    KeyError
        If an embedding or a column does not exist.
    ValueError
        If names of observations are not unique, widths differ, values are ``NaN``, or a number is
        out of its range. ``query`` stays unchanged.

    Warns
    -----
    UserWarning
        If a field of another tool is replaced.

    Examples
    --------
    >>> import anndata, cfm, numpy as np, pandas as pd
    >>> donors = anndata.AnnData(
    ...     obs=pd.DataFrame({"disease": ["lupus", "lupus", "normal"]}, index=["a", "b", "c"]),
    ...     obsm={"X_pulsar": np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])},
    ... )
    >>> new = anndata.AnnData(
    ...     obs=pd.DataFrame(index=["new"]), obsm={"X_pulsar": np.array([[1.0, 0.1]])}
    ... )
    >>> cfm.tl.map_reference(new, donors, "disease", n_neighbors=2)
    >>> new.obs["map_reference"].tolist()
    ['lupus']
    """
    require_anndata(query)
    check_not_empty(query)
    check_unique_names(query.obs_names, axis="obs")
    check_key(key_added)
    if exclude_key is not None and exclude_key not in query.obs:
        raise KeyError(
            f"query.obs has no column {exclude_key!r}; it has {query.obs.columns.tolist()}."
        )
    embedding_name = representation_name(use_rep)
    embedding = read_representation(query, use_rep, "query")
    index = _as_reference(reference, use_rep, centre)
    for key in (label_key, exclude_key):
        if key is not None and key not in index.table:
            raise KeyError(
                f"The reference has no column {key!r}; it has {index.table.columns.tolist()}."
            )
    labels = None if label_key is None else _texts(index.table[label_key])
    known: dict[str, float] = {}
    if labels is not None:
        kinds, times = np.unique(labels[labels != ""].astype(str), return_counts=True)
        known = dict(zip(kinds.tolist(), (times / max(1, times.sum())).tolist(), strict=True))
        _check_prior(prior, known)
    exclude: list[np.ndarray | None] | None = None
    if exclude_key is not None:
        own, values = _texts(query.obs[exclude_key]), _texts(index.table[exclude_key])
        masks = {value: values == value for value in set(own) - {""}}
        exclude = [masks.get(value) for value in own]
    similarity, place = index.search(embedding, n_neighbors, exclude)
    limit = index.typical_similarity(unknown, exclude_key) if unknown else -np.inf
    names = query.obs_names.astype(str).to_numpy(dtype=object)
    neighbours = _neighbours(index, names, similarity, place, labels)
    result: dict[str, Any] = {
        PARAMS: {
            "use_rep": embedding_name,
            "label_key": label_key or "",
            "exclude_key": exclude_key or "",
            "n_neighbors": n_neighbors,
            "sharpness": float(sharpness),
            "centre": index.centre,
            "n_reference": index.n,
            "unknown": float(unknown),
            "unknown_below": float(limit),
        }
        | representation_record(query, use_rep),
        NEIGHBOURS: neighbours,
    }
    if labels is not None:
        evidence, frequent = _correct_shares(_evidence(neighbours, known, sharpness), known, prior)
        result[EVIDENCE] = evidence
        result[PARAMS] |= {
            "prior": prior if isinstance(prior, str) else "given",
            "priors": {
                "labels": list(frequent),
                "in_reference": [known[name] for name in frequent],
                "in_query": list(frequent.values()),
            },
        }
        best = evidence.drop_duplicates("observation").set_index("observation")
        far = similarity[:, 0] < limit
        label = best["label"].reindex(names).to_numpy(dtype=object)
        called = pd.Categorical(np.where(far, UNKNOWN, label))
        confidence = best["corrected"].reindex(names).to_numpy(dtype=np.float64, copy=True)
        confidence[far] = np.nan
    query = target(query, copy=copy)
    written = [] if labels is None else [key_added, key_added + CONFIDENCE]
    warn_overwritten(query, key_added, {"obs": written})
    if labels is not None:
        query.obs[key_added] = called
        query.obs[key_added + CONFIDENCE] = confidence
    query.uns[key_added] = result
    return query if copy else None


def _as_reference(reference: Any, use_rep: str | LatentModel, centre: bool) -> Reference:
    """Return the index of ``reference=``."""
    if isinstance(reference, Reference):
        if centre and not reference.centre:
            raise ValueError(
                "centre=True, but the reference was indexed without; make it with "
                "cfm.data.Reference(…, centre=True)."
            )
        return reference
    if isinstance(reference, AnnData):
        embedding = read_representation(reference, use_rep, "reference")
        return Reference(embedding, reference.obs, centre=centre)
    if isinstance(reference, str | Path):
        return Reference.from_parquet(reference, centre=centre)
    raise TypeError(
        f"reference is a {type(reference).__name__}; expected an AnnData, a parquet file or a "
        "cfm.data.Reference."
    )


def _texts(column: pd.Series) -> np.ndarray:
    """Return a column as text, ``""`` where it is missing."""
    values = column.astype(object)
    return values.where(values.notna(), "").astype(str).to_numpy(dtype=object)


def _neighbours(
    index: Reference,
    names: np.ndarray,
    similarity: np.ndarray,
    place: np.ndarray,
    labels: np.ndarray | None,
) -> pd.DataFrame:
    """Return a row per observation and neighbour."""
    k = similarity.shape[1]
    flat = place.ravel()
    table = pd.DataFrame(
        {
            "observation": np.repeat(names, k),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int64), len(names)),
            "reference": index.names[flat],
            "similarity": similarity.ravel().astype(np.float64),
            "label": "" if labels is None else labels[flat],
        }
    )
    table = table[np.isfinite(table["similarity"])]
    return table.set_axis([str(i) for i in range(len(table))], axis=0)


def _check_prior(prior: str | Mapping[str, float], known: Mapping[str, float]) -> None:
    if isinstance(prior, str):
        if prior not in _PRIORS:
            raise ValueError(f"prior={prior!r}; expected one of {_PRIORS}, or a share by label.")
        return
    wrong = set(prior) ^ set(known)
    shares = list(prior.values())
    if wrong or not all(np.isfinite(v) and v >= 0 for v in shares) or not sum(shares) > 0:
        raise ValueError(
            f"prior={dict(prior)}; expected a share of at least 0 for each label of the reference: "
            f"{sorted(known)[:20]}."
        )


def _correct_shares(
    evidence: pd.DataFrame, known: Mapping[str, float], prior: str | Mapping[str, float]
) -> tuple[pd.DataFrame, dict[str, float]]:
    r"""Correct shares of votes for the frequencies of labels, the largest of an observation first.

    A share estimates :math:`P(y \mid x)` at the frequencies :math:`\pi_0` of the reference; at
    :math:`\pi` it is proportional to the share times :math:`\pi(y) / \pi_0(y)`. Estimated
    :math:`\pi` are the fixed point of the mean over the observations.

    Returns
    -------
    The table with ``corrected``, and :math:`\pi` by label.
    """
    names = list(known)
    wide = evidence.pivot(index="observation", columns="label", values="share")
    shares = wide.reindex(columns=names).fillna(0.0).to_numpy(dtype=np.float64)
    own = np.array(list(known.values()))
    if isinstance(prior, Mapping):
        target = np.array([prior[name] for name in names], dtype=np.float64)
        target /= target.sum()
    else:
        target = own.copy() if prior == "reference" else np.full(len(names), 1 / max(1, len(names)))

    def posterior(pi: np.ndarray) -> np.ndarray:
        table = shares * (pi / own)
        return table / np.maximum(table.sum(axis=1, keepdims=True), 1e-300)

    if prior == "estimated":
        for _ in range(200):
            target = posterior(target).mean(axis=0)
    found = pd.DataFrame(posterior(target), index=wide.index, columns=names)
    rows = found.index.get_indexer(pd.Index(evidence["observation"]))
    columns = found.columns.get_indexer(pd.Index(evidence["label"]))
    table = evidence.assign(corrected=found.to_numpy()[rows, columns])
    table = table.sort_values(
        ["observation", "corrected", "label"], ascending=[True, False, True], kind="stable"
    )
    frequent = dict(zip(names, target.tolist(), strict=True))
    return table.set_axis([str(i) for i in range(len(table))], axis=0), frequent


def _evidence(
    neighbours: pd.DataFrame, prior: Mapping[str, float], sharpness: float
) -> pd.DataFrame:
    """Return the votes for each label."""
    voting = neighbours[neighbours["label"] != ""].copy()
    nearest = voting.groupby("observation")["similarity"].transform("max")
    voting["vote"] = np.exp(sharpness * (voting["similarity"] - nearest))
    voting["vote"] /= voting.groupby("observation")["vote"].transform("sum")
    groups = voting.groupby(["observation", "label"], sort=True)
    table = groups.agg(
        n_neighbours=("vote", "size"), share=("vote", "sum"), best_similarity=("similarity", "max")
    ).reset_index()
    table["n_neighbours"] = table["n_neighbours"].astype(np.int64)
    table["prior"] = table["label"].map(prior).astype(np.float64)
    table["enrichment"] = table["share"] / table["prior"]
    order = ["observation", "label", "n_neighbours", "share", "prior", "enrichment"]
    return table[[*order, "best_similarity"]].astype({"observation": object, "label": object})
