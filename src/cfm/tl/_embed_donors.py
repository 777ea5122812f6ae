"""Embeddings of donors from their cells."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, issparse

from cfm._adata import check_key, check_tables, require_anndata, warn_user
from cfm._arguments import checks_arguments
from cfm._docs import fill_docs
from cfm._fields import (
    EMBEDDING_PREFIX,
    N_CELLS,
    N_CELLS_USED,
    PARAMS,
    SPREAD,
    UNKNOWN_SHARE,
    VARYING,
)
from cfm.data._matrix import get_matrix, in_memory_frame, row_blocks, to_dense
from cfm.data._result_store import check_output
from cfm.models import DonorModel
from cfm.tl._donor_rows import DonorRows, load_donor_model
from cfm.tl._run import TEXTS, Rows, Run, run_record

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.models import PretrainedModel
    from cfm.tl._run import Data

#: Results of donors.
_DONOR_RESULTS = ("embedding", "spread", "n_cells", "n_used")
#: A column that varies within a smaller share of the donors is probably meant to be constant.
_FEW = 0.5


@checks_arguments()
@fill_docs(TEXTS)
def embed_donors(
    adata: Data,
    donor_key: str = "donor_id",
    model: str | Path | PretrainedModel = "pulsar-mini",
    *,
    use_rep: str | None = None,
    layer: str | None = None,
    n_cells: int | None = 1024,
    n_draws: int = 1,
    seed: int = 0,
    key_added: str | None = None,
    device: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    **model_kwargs: Any,
) -> AnnData:
    """Return an AnnData of donors with their embeddings, from all cells or draws of them.

    Parameters
    ----------
    adata
        Cells with raw counts, or with the representation in ``obsm`` that the model reads.
        %(paths)s
    donor_key
        Column of ``obs`` with the donor; join donor and condition to separate samples of a donor.
    model
        A :class:`cfm.models.Pulsar`.
        %(load)s
        ``"pulsar-mini"``, which ships with the package, reads raw counts of human blood cells. The
        released model ``"hf://KuanP/PULSAR-pbmc"`` reads the representation of
        :class:`cfm.models.UCE`: call ``cfm.tl.embed(adata, uce)`` first.
    use_rep
        Name in ``obsm`` of the representation of cells; by default that of the model's training
        data, ``"X_uce"`` for released models. A model that reads raw counts takes none.
    layer
        Layer with raw counts instead of ``X``, for a model that reads them.
    n_cells
        Number of cells to draw from a donor, without replacement. Donors with fewer cells, and all
        donors with ``None``, are embedded from all cells.
    n_draws
        Number of draws to average over.
    seed
        Seed of the draws, which depend on the names of donor and cells, not on their order.
    key_added
        Name of the result, by default ``X_<model>``, such as ``X_pulsar``.
    %(device)s
    %(output)s
    %(overwrite)s
    **model_kwargs
        Further arguments of the model's ``get_donor_embeddings``: ``pooling`` (``"cls"`` is the
        network's token of the donor, ``"moments"`` a summary of the cells without the network,
        or ``"both"``), ``batch_size``, ``precision``.

    Returns
    -------
    AnnData of donors, sorted by name; with ``output``, the AnnData in that file.

    ``obsm['X_pulsar' | key_added]``
        ``(n_donors, n)`` float32, the mean over draws: the network's token of the donor. That of
        ``"pulsar-mini"`` has mean and log variance of the components of the cells before it.
    ``X``, ``var``
        ``(n_donors, n_genes)`` float32, pseudobulk of all cells of a donor as a baseline for
        :func:`cfm.tl.probe`: sums of counts, else means. Empty if the cells have no ``X``, with
        paths and with ``output``.
    ``obs``
        Columns of the cells' ``obs`` that are constant within every donor, missing values aside;
        ``'n_cells'`` and ``'n_cells_used'`` int64; ``'X_pulsar_spread'`` float32, root mean
        squared distance of single draws from their mean: 0 if all cells are used, ``NaN`` with one
        draw. With a model that reads counts also ``'X_pulsar_unknown'`` float32, the share of a
        donor's cells that are *unknown*: farther from the training cells of the model's projection
        than 95 % of held-out cells (see :class:`cfm.models.CellProjection`).
    ``uns['X_pulsar' | key_added]['varying']``
        DataFrame of the columns of ``obs`` that are left out: ``column``, and ``n_donors`` within
        which it varies.
    ``uns['X_pulsar' | key_added]['params']``
        The arguments, the model's name and SHA-256, the share of its genes that are measured
        (1 for a representation), and the device.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, or the model does not embed donors.
    KeyError
        If the column, the layer or the representation does not exist.
    ValueError
        If donor ids are missing, or cells are ``NaN``, of the wrong width or not uniquely named.
        With a model that reads raw counts also if ``use_rep`` is given, too few of its genes are
        found, or values are no counts of single cells.
    ConnectionError
        If a model on the hub cannot be reached.
    %(output_errors)s

    Warns
    -----
    UserWarning
        If a column varies within less than half of the donors, donors have few cells, cells are of
        a tissue other than the model's, or over half of a donor's cells are unknown.

    Examples
    --------
    Raw counts in ``X``, and a new model:

    >>> import cfm
    >>> cells = cfm.datasets.toy_donors(n_donors=4, n_cells=40)
    >>> cfm.models.Pulsar.setup_anndata(cells, donor_key="donor_id")
    >>> model = cfm.models.Pulsar(cells)  # model.train() in a real run
    >>> donors = cfm.tl.embed_donors(cells, "donor_id", model)
    >>> donors.obs["disease"].tolist(), donors.obsm["X_pulsar"].shape
    (['healthy', 'ill', 'healthy', 'ill'], (4, 64))
    """
    if output is not None:
        check_output(output, adata, overwrite=overwrite)
    data: Any = adata
    given = not isinstance(adata, str | PathLike | Sequence)
    if not given:  # paths
        data = Rows(data).whole
    require_anndata(data)
    cells, obs = data, in_memory_frame(data.obs)
    check_tables(cells, [donor_key])
    if donor_key not in obs:
        raise KeyError(f"adata.obs has no column {donor_key!r}; it has {obs.columns.tolist()}.")
    if key_added is not None:
        check_key(key_added)
    loaded = load_donor_model(model, device=device)
    if not isinstance(loaded, DonorModel):
        raise TypeError(
            f"{type(loaded).__name__} does not embed donors; pass a cfm.models.Pulsar, and use "
            "cfm.tl.embed for observations."
        )
    key = key_added or EMBEDDING_PREFIX + type(loaded).__name__.lower()
    reading: dict[str, Any] = {
        "donor_key": donor_key,
        "use_rep": use_rep,
        "n_cells": n_cells,
        "n_draws": n_draws,
        "seed": seed,
    } | model_kwargs
    if layer is not None:
        reading["layer"] = layer
    alone = output is None and given
    counted = getattr(loaded, "projection", None) is not None
    rep = use_rep or getattr(loaded, "provenance", {}).get("use_rep", "X_uce")
    run = Run(DonorRows(cells, donor_key, None if counted else rep), output, overwrite=overwrite)
    of_donors = (*_DONOR_RESULTS, "unknown") if counted else _DONOR_RESULTS

    def compute(part: AnnData, _: slice) -> dict[str, np.ndarray]:
        found = loaded.get_donor_embeddings(part, **reading)
        names = found.donors.to_numpy(dtype=str)
        return {"donors": names} | {name: getattr(found, name) for name in of_donors}

    with run.compute(
        compute,
        loaded,
        tool="embed_donors",
        layers=[layer] if counted else [],
        arguments=reading,
        once=alone,
    ) as results:
        names = pd.Index(results.take("donors").astype(object), name=donor_key)
        table, varying = donor_table(obs, donor_key, names)
        columns = {N_CELLS: "n_cells", N_CELLS_USED: "n_used", key + SPREAD: "spread"}
        if counted:
            columns[key + UNKNOWN_SHARE] = "unknown"
        taken = [name for name in columns if name in table]
        if taken:
            warn_user(f"Columns {taken} of adata.obs are replaced by the counts of this tool.")
        for column, name in columns.items():
            table[column] = results.take(name)
        obsm = {key: results.take("embedding")}
        donors = ad.AnnData(obs=table, obsm=obsm)
        if alone and (layer is not None or cells.X is not None) and cells.n_vars:
            ids = pd.Index(obs[donor_key].astype(str))
            bulk = _pseudobulk(get_matrix(cells, layer=layer), names.get_indexer(ids), len(names))
            donors = ad.AnnData(bulk, obs=table, var=cells.var.copy(), obsm=obsm)
        record = run_record(loaded, cells, key_added=key, **reading)
        donors.uns[key] = {PARAMS: record, VARYING: varying}
        run.target = donors
    if output is None:
        return donors
    written = run.result
    assert written is not None
    return written


def donor_table(
    obs: pd.DataFrame, donor_key: str, donors: pd.Index
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the columns of ``obs`` that are constant within donors, and list the others.

    Parameters
    ----------
    obs
        A row per cell.
    donor_key
        Column with the donor.
    donors
        Names of the donors, in the order of the result.

    Returns
    -------
    table
        A row per donor, the columns that are constant within every donor, missing values aside.
    varying
        ``column`` str and ``n_donors`` int64 within which it varies, most first.

    Warns
    -----
    UserWarning
        If a column varies within less than half of the donors.
    """
    names = donors.astype(str).rename(None)
    which = donors.get_indexer(pd.Index(obs[donor_key].astype(str)))
    table, varying = {}, {}
    for column in obs.columns:
        if str(column).startswith("_scvi"):
            continue
        groups = obs[column].groupby(which, sort=True, observed=False)
        try:
            n_varying = int((groups.nunique(dropna=True) > 1).sum())
        except TypeError:  # unhashable values, such as lists
            n_varying = len(donors)
        if n_varying:
            varying[str(column)] = n_varying
        else:
            first = groups.first()
            if isinstance(first.dtype, pd.CategoricalDtype):
                first = first.cat.remove_unused_categories()
            table[str(column)] = first.set_axis(names)
    suspicious = {c: n for c, n in varying.items() if n < _FEW * len(donors)}
    if suspicious:
        column, n = next(iter(suspicious.items()))
        warn_user(
            f"adata.obs[{column!r}] varies within {n} of {len(donors)} donors and is left "
            f"out{_others(list(suspicious))}; repair it if it describes donors."
        )
    order = sorted(varying, key=lambda c: (-varying[c], c))
    numbers = np.array([varying[c] for c in order], dtype=np.int64)
    report = pd.DataFrame(
        {"column": np.array(order, dtype=object), "n_donors": numbers},
        index=[str(i) for i in range(len(order))],
    )
    return pd.DataFrame(table, index=names), report


def _pseudobulk(matrix: Any, which: np.ndarray, n_donors: int) -> np.ndarray:
    """Return the sums over each donor's cells if all values are counts, else the means."""
    total, whole = np.zeros((n_donors, matrix.shape[1])), True
    for rows, block in row_blocks(matrix):
        n = block.shape[0]
        member = csr_matrix((np.ones(n), (which[rows], np.arange(n))), shape=(n_donors, n))
        total += to_dense(member @ block, np.float64)
        values = block.data if issparse(block) else block
        whole = whole and bool((values == np.rint(values)).all() and (values >= 0).all())
    if not whole:
        total /= np.bincount(which, minlength=n_donors)[:, None]
    return total.astype(np.float32)


def _others(columns: list[str]) -> str:
    return f" (nor are {', '.join(map(repr, columns[1:4]))})" if len(columns) > 1 else ""
