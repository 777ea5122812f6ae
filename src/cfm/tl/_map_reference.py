"""Nearest donors of a reference, and what their labels say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm._arguments import NOT_NEGATIVE
from cfm._fields import (
    CONFIDENCE,
    EVIDENCE,
    MAP_REFERENCE_KEY,
    NEIGHBOURS,
    PARAMS,
)
from cfm.data import Reference
from cfm.data._matrix import check_not_empty, check_unique_names
from cfm.data._modality import on_modality, require_anndata
from cfm.data._store import check_key, target, warn_overwritten

if TYPE_CHECKING:
    from mudata import MuData
    from numpy.typing import ArrayLike


@on_modality(columns=("exclude_key",), also=("reference",), ranges={"sharpness": NOT_NEGATIVE})
def map_reference(
    query: AnnData | MuData,
    reference: AnnData | Reference | str | Path,
    label_key: str | None = None,
    *,
    use_rep: str = "X_pulsar",
    reference_rep: str | None = None,
    n_neighbors: int = 10,
    sharpness: float = 10.0,
    exclude_key: str | None = None,
    centre: bool = False,
    key_added: str = MAP_REFERENCE_KEY,
    modality: str | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Find the nearest donors (samples, contrasts) of a reference, and take over their label.

    Parameters
    ----------
    query
        Observations with an embedding in ``obsm``.
    reference
        AnnData with an embedding by the same model; a parquet file or folder with the columns
        ``donor_id`` and ``embedding``, as DONORxEMBED is published; or a
        :class:`cfm.data.Reference`, which is indexed once for many searches.
    label_key
        Column of the reference with the label, such as ``"disease_label"``. Without it only
        neighbours are found. Those without a label do not vote.
    use_rep
        Name of the embedding in ``query.obsm``.
    reference_rep
        Name in ``reference.obsm``; by default the same.
    n_neighbors
        Neighbours of each observation; all of a smaller reference.
    sharpness
        A neighbour's vote is the exponential of its similarity times this: with 0 all neighbours
        vote the same.
    exclude_key
        Column of both, such as ``"dataset_id"``: neighbours with the value of the observation
        itself are left out, so that a study does not vouch for itself.
    centre
        Take the mean of the reference off every embedding first. What all donors have in common
        is most of an embedding; the published search does not take it off.
    key_added
        Name of the result.
    modality
        Modality of MuData, both of query and reference; may be left out where there is only one.
    copy
        Return a changed copy instead of writing to ``query``.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``query.uns['map_reference' | key_added]['neighbours']``
        DataFrame, a row per observation and neighbour: ``observation`` str, ``rank`` int64 from
        1, ``reference`` str (its name), ``similarity`` float64 (cosine), and ``label`` str, ``""``
        where it has none.
    ``query.uns[key_added]['params']``
        The arguments, and the size of the reference.

    With ``label_key`` also

    ``query.obs[key_added]``
        Categorical, the label with the most votes; missing where no neighbour has a label.
    ``query.obs[key_added + '_confidence']``
        float64, its share of the votes. Not a probability: see whether it is well above ``prior``.
    ``query.uns[key_added]['evidence']``
        DataFrame, a row per observation and label among its neighbours: ``observation`` str,
        ``label`` str, ``n_neighbours`` int64, ``share`` float64 of the votes, ``prior`` float64
        share of the reference that has the label, ``enrichment`` float64 (``share / prior``) and
        ``best_similarity`` float64.

    Raises
    ------
    TypeError
        If ``query`` is no AnnData, or the reference none of the above.
    KeyError
        If an embedding or a column does not exist.
    ValueError
        If names of observations are not unique, widths differ, values are ``NaN``, or a number is
        out of its range. Whatever is raised, ``query`` is left as it was.

    Warns
    -----
    UserWarning
        If a field that another tool wrote is replaced.

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
    if use_rep not in query.obsm:
        raise KeyError(f"query.obsm has no {use_rep!r}; it has {sorted(query.obsm)}.")
    index = _as_reference(reference, reference_rep or use_rep, centre)
    for key in (label_key, exclude_key):
        if key is not None and key not in index.table:
            raise KeyError(
                f"The reference has no column {key!r}; it has {index.table.columns.tolist()}."
            )
    own = None if exclude_key is None else _own_column(query, exclude_key)
    labels = None if label_key is None else _texts(index.table[label_key])
    similarity, place = _search(index, query.obsm[use_rep], n_neighbors, exclude_key, own)
    names = query.obs_names.astype(str).to_numpy(dtype=object)
    neighbours = _neighbours(index, names, similarity, place, labels)
    result: dict[str, Any] = {
        PARAMS: {
            "use_rep": use_rep,
            "reference_rep": reference_rep or use_rep,
            "label_key": label_key or "",
            "exclude_key": exclude_key or "",
            "n_neighbors": n_neighbors,
            "sharpness": float(sharpness),
            "centre": index.centre,
            "n_reference": index.n,
            "modality": modality or "",
        },
        NEIGHBOURS: neighbours,
    }
    if labels is not None:
        evidence = _evidence(neighbours, labels, sharpness)
        result[EVIDENCE] = evidence
        best = evidence.drop_duplicates("observation").set_index("observation")
        called = pd.Categorical(best["label"].reindex(names))
        confidence = best["share"].reindex(names).to_numpy(dtype=np.float64)
    query = target(query, copy=copy)
    written = [] if labels is None else [key_added, key_added + CONFIDENCE]
    warn_overwritten(query, key_added, {"obs": written})
    if labels is not None:
        query.obs[key_added] = called
        query.obs[key_added + CONFIDENCE] = confidence
    query.uns[key_added] = result
    return query if copy else None


def _as_reference(reference: Any, use_rep: str, centre: bool) -> Reference:
    """Return an index of what a user passes as ``reference=``."""
    if isinstance(reference, Reference):
        if centre and not reference.centre:
            raise ValueError(
                "centre=True, but the reference was indexed without; make it with "
                "cfm.data.Reference(…, centre=True)."
            )
        return reference
    if isinstance(reference, AnnData):
        return Reference.from_anndata(reference, use_rep, centre=centre)
    if isinstance(reference, str | Path):
        return Reference.from_parquet(reference, centre=centre)
    raise TypeError(
        f"reference is a {type(reference).__name__}; expected an AnnData, a parquet file or a "
        "cfm.data.Reference."
    )


def _own_column(query: AnnData, key: str) -> np.ndarray:
    if key not in query.obs:
        raise KeyError(f"query.obs has no column {key!r}; it has {query.obs.columns.tolist()}.")
    return _texts(query.obs[key])


def _texts(column: pd.Series) -> np.ndarray:
    """Return a column as text, ``""`` where it is missing."""
    values = column.astype(object)
    return values.where(values.notna(), "").astype(str).to_numpy(dtype=object)


def _search(
    index: Reference, embedding: Any, k: int, key: str | None, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Search, without what an observation shares a value with."""
    exclude: list[ArrayLike | None] | None = None
    if key is not None and own is not None:
        values = _texts(index.table[key])
        masks = {value: values == value for value in set(own) - {""}}
        exclude = [masks.get(value) for value in own]
    return index.search(np.asarray(embedding), k, exclude)


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


def _evidence(neighbours: pd.DataFrame, labels: np.ndarray, sharpness: float) -> pd.DataFrame:
    """Return what speaks for each label, the likeliest of an observation first."""
    known = labels[labels != ""]
    kinds, times = np.unique(known.astype(str), return_counts=True)
    prior = dict(zip(kinds.tolist(), times / max(1, len(known)), strict=True))
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
    table = table[[*order, "best_similarity"]]
    table = table.sort_values(
        ["observation", "share", "label"], ascending=[True, False, True], kind="stable"
    )
    table = table.astype({"observation": object, "label": object})
    return table.set_axis([str(i) for i in range(len(table))], axis=0)
