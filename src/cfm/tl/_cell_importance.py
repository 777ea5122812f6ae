"""Cells and cell types that drive a donor's embedding or prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from cfm._adata import check_key, takes_anndata, target, warn_overwritten
from cfm._docs import fill_docs
from cfm._fields import CELL_IMPORTANCE_KEY, IMPORTANCE_GROUPS, PARAMS
from cfm.data._matrix import in_memory_frame
from cfm.models import Pulsar
from cfm.tl._donor_rows import load_donor_model
from cfm.tl._run import TEXTS, run_record

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.models import PretrainedModel
    from cfm.models.pulsar._data import Donors

#: Draws of random cells: their mean is a scale for the removal of a group, no null distribution.
_N_RANDOM = 3


@takes_anndata(columns=("donor_key", "groupby"))
@fill_docs(TEXTS)
def cell_importance(
    adata: AnnData,
    donor_key: str = "donor_id",
    model: str | Path | PretrainedModel = "pulsar-mini",
    *,
    groupby: str | None = None,
    use_rep: str | None = None,
    layer: str | None = None,
    method: Literal["attention", "gradient"] = "attention",
    output: str | None = None,
    n_cells: int = 1024,
    seed: int = 0,
    key_added: str = CELL_IMPORTANCE_KEY,
    copy: bool = False,
) -> AnnData | None:
    """Score how much each cell, and each group of cells, drives a donor's embedding or prediction.

    Parameters
    ----------
    adata
        Cells with raw counts or a representation in ``obsm``, as for
        :func:`cfm.tl.embed_donors`.
    donor_key
        Column of ``obs`` with the donor.
    model
        A :class:`cfm.models.Pulsar`.
        %(load)s
    groupby
        Column of ``obs`` with groups, such as cell types; cells without one are in no group.
    use_rep
        Name in ``obsm`` of the representation of cells; by default that of the model's training
        data.
    layer
        Layer with raw counts instead of ``X``, for a model that reads them.
    method
        ``"attention"`` of the donor's token, or ``"gradient"`` times input; see
        :meth:`cfm.models.Pulsar.get_cell_importance`.
    output
        For ``"gradient"``: output of the model's head to explain, such as a class or one of several
        proteins (:meth:`cfm.models.Pulsar.train_head`); by default the difference of the donor from
        the others.
    n_cells
        Cells of a donor in one pass of the model.
    seed
        Seed of the division into passes, and of draws.
    %(key_added)s
    %(copy)s

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``adata.obs['cell_importance' | key_added]``
        float32, 1 for an average cell of its donor; with ``"gradient"`` negative if the cell lowers
        the explained output.
    ``adata.uns['cell_importance' | key_added]['params']``
        The arguments, the model's name and SHA-256, and the device.

    With ``groupby`` also

    ``adata.uns['cell_importance' | key_added]['groups']``
        DataFrame, a row per donor and group: ``donor`` and ``group`` str; ``n_cells`` int64;
        ``share_cells`` float64 of the donor's cells; ``share_importance`` float64 of the sum of
        absolute importance; ``enrichment`` float64, the second over the first share;
        ``mean_importance`` float64; ``removal`` float64, Euclidean distance between the donor's
        embeddings with and without the group, and ``removal_random``, the mean distance for three
        draws of as many random cells. Attention and gradients can be high for cells without effect:
        trust groups with a ``removal`` well above ``removal_random``.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, or the model is no Pulsar.
    KeyError
        If a column, the representation or the output does not exist.
    ValueError
        As :func:`cfm.tl.embed_donors`. ``adata`` stays unchanged.

    Warns
    -----
    UserWarning
        If a field of another tool is replaced, or donors have few cells.

    Examples
    --------
    >>> import anndata, cfm, numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame(
    ...     {"donor_id": ["a", "b"] * 50, "cell_type": ["T"] * 60 + ["B"] * 40},
    ...     index=[f"cell{i}" for i in range(100)],
    ... )
    >>> cells = anndata.AnnData(obs=obs, obsm={"X_pca": rng.normal(size=(100, 10))})
    >>> cfm.models.Pulsar.setup_anndata(cells, use_rep="X_pca")
    >>> model = cfm.models.Pulsar(cells)
    >>> cfm.tl.cell_importance(cells, "donor_id", model, groupby="cell_type")
    >>> cells.uns["cell_importance"]["groups"]["group"].tolist()
    ['B', 'T', 'B', 'T']
    """
    check_key(key_added)
    loaded = load_donor_model(model)
    if not isinstance(loaded, Pulsar):
        raise TypeError(
            f"{type(loaded).__name__} does not read the cells of donors; pass a cfm.models.Pulsar."
        )
    obs = in_memory_frame(adata.obs)
    if groupby is not None and groupby not in obs:
        raise KeyError(f"adata.obs has no column {groupby!r}; it has {obs.columns.tolist()}.")
    donors = loaded.read_donors(adata, donor_key, use_rep, layer)
    found = loaded.get_cell_importance(
        donors,
        method=method,
        output=output,
        n_cells=n_cells,
        seed=seed,
    )
    record = run_record(
        loaded,
        adata,
        donor_key=donor_key,
        groupby=groupby,
        use_rep=use_rep,
        layer=layer,
        method=method,
        output=output,
        n_cells=n_cells,
        seed=seed,
        key_added=key_added,
    )
    result: dict[str, Any] = {PARAMS: record}
    if groupby is not None:
        values = obs[groupby].astype(object)
        groups = values.where(values.notna(), "").astype(str).to_numpy(dtype=object)
        moved = loaded.get_removal_effects(
            donors, groups, n_cells=n_cells, n_random=_N_RANDOM, seed=seed
        )
        result[IMPORTANCE_GROUPS] = _table(donors, groups, found.cells, moved)
    adata = target(adata, copy=copy)
    warn_overwritten(adata, key_added, {"obs": [key_added]})
    adata.obs[key_added] = found.cells
    adata.uns[key_added] = result
    return adata if copy else None


def _table(
    donors: Donors,
    groups: np.ndarray,
    importance: np.ndarray,
    moved: list[tuple[int, str, float, float]],
) -> pd.DataFrame:
    """Return a row per donor and group."""
    effects = {(i, group): (distance, random) for i, group, distance, random in moved}
    rows = []
    for i, own in enumerate(donors.rows):
        total = float(np.abs(importance[own]).sum())
        for group in sorted(set(groups[own]) - {""}):
            inside = own[groups[own] == group]
            share = len(inside) / len(own)
            counted = float(np.abs(importance[inside]).sum()) / total if total else np.nan
            removal, random = effects.get((i, group), (np.nan, np.nan))
            rows.append(
                {
                    "donor": str(donors.names[i]),
                    "group": str(group),
                    "n_cells": len(inside),
                    "share_cells": share,
                    "share_importance": counted,
                    "enrichment": counted / share,
                    "mean_importance": float(importance[inside].mean()),
                    "removal": removal,
                    "removal_random": random,
                }
            )
    table = pd.DataFrame(rows, index=[str(i) for i in range(len(rows))])
    return table.astype({"donor": object, "group": object, "n_cells": np.int64}) if rows else table
