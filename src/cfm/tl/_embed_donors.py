"""Embeddings of donors by their cells."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, issparse

from cfm._arguments import checks_arguments
from cfm._fields import (
    EMBEDDING_PREFIX,
    MEAN,
    N_CELLS,
    N_CELLS_USED,
    PARAMS,
    SPREAD,
    UNKNOWN_SHARE,
    VARYING,
)
from cfm._tables import check_tables
from cfm.data._matrix import get_matrix, in_memory_frame, row_blocks, to_dense
from cfm.data._result_store import check_output
from cfm.data._store import check_key
from cfm.data._takes_anndata import require_anndata
from cfm.data._warn import warn_user
from cfm.models import DonorModel
from cfm.tl._donor_rows import DonorRows, load_donor_model
from cfm.tl._run import Rows, Run
from cfm.tl._store import run_record

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.models import PretrainedModel
    from cfm.tl._run import Data

#: What a model says of donors.
_OF_DONORS = ("embedding", "spread", "n_cells", "n_used")
#: A column that varies within fewer of the donors was probably meant to be constant.
_FEW = 0.5


@checks_arguments()
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
    """Embed donors, each by all of its cells or draws of them.

    Parameters
    ----------
    adata
        Cells with raw counts, or with the representation in ``obsm`` that the model reads; or
        one or more paths of ``.h5ad`` and ``.zarr`` files, opened with :func:`cfm.data.open_files`.
    donor_key
        Column of ``obs`` with the donor; take donor and condition together where samples of one
        donor are to be told apart.
    model
        A :class:`cfm.models.Pulsar`, the name of a checkpoint, a folder, or ``hf://org/name``.
        ``"pulsar-mini"``, which ships with the package, reads raw counts of human blood cells.
        ``"hf://KuanP/PULSAR-pbmc"``, the released model, is downloaded and reads the
        representation of :class:`cfm.models.UCE`: call ``cfm.tl.embed(adata, uce)`` first.
    use_rep
        Name in ``obsm`` of what represents a cell; by default that of the model's training data,
        ``"X_uce"`` for released models. A model that reads raw counts takes none.
    layer
        Layer with raw counts instead of ``X``, for a model that reads them.
    n_cells
        Cells to draw of a donor, without replacement; donors with fewer, and all with ``None``,
        are embedded whole.
    n_draws
        Draws to average over.
    seed
        Seed of the draws, which depend on it and on the names of donor and cells only.
    key_added
        Name of the result, by default ``X_<model>``, such as ``X_pulsar``.
    device
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    output
        File to write results to as they are made, ``.zarr`` or ``.h5ad``, whose AnnData is
        returned. A run that was stopped goes on where it was when the same call is
        made again.
    overwrite
        Replace ``output`` if it exists, and what a stopped run of another call left of it.
    **model_kwargs
        Further arguments of the model's ``get_donor_embeddings``, such as ``batch_size`` and
        ``precision``.

    Returns
    -------
    AnnData of donors, by sorted names, with ``output`` opened from there.

    ``obsm['X_pulsar' | key_added]``
        ``(n_donors, dim)`` float32, the mean over draws.
    ``obsm['X_pulsar_mean']``
        ``(n_donors, n_components)`` float32, mean of the principal components of a donor's cells;
        of a model that reads counts. Pass it to :func:`cfm.tl.probe` beside the vectors: where
        many cells are unknown it is often the better summary.
    ``X``, ``var``
        ``(n_donors, n_genes)`` float32, pseudobulk of all cells of a donor, for
        :func:`cfm.tl.probe` to compare with: sums of counts, else means. Empty where the cells have
        no ``X``, with paths and with ``output``.
    ``obs``
        Columns of the cells' ``obs`` that are constant within every donor, missing values aside;
        ``'n_cells'`` and ``'n_cells_used'`` int64; ``'X_pulsar_spread'`` float32, root mean
        squared distance of single draws from their mean: 0 where all cells are used, ``NaN`` with
        one draw. Of a model that reads counts also ``'X_pulsar_unknown'`` float32, the share of a
        donor's cells that are *unknown*: farther from the cells that the model's projection was
        fitted on than 95 % of held-out ones (see :class:`cfm.models.CellProjection`).
    ``uns['X_pulsar' | key_added]['varying']``
        DataFrame of the columns that were not carried over: ``column`` and ``n_donors`` in which
        it varies.
    ``uns['X_pulsar' | key_added]['params']``
        The arguments, the model's name and SHA-256, the share of its genes that are measured
        (1 for a representation), and the device it ran on.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, or the model does not embed donors.
    KeyError
        If the column, the layer or the representation does not exist.
    ValueError
        If donor ids are missing, or cells are ``NaN``, of the wrong width or not uniquely named.
        Of a model that reads raw counts also if ``use_rep`` is given, too few of its genes are
        found, or values are no counts of single cells.
    ConnectionError
        If a model on the hub cannot be reached.
    FileExistsError
        If ``output`` exists.
    OSError
        If the disk is full; what is done is kept, and the same call goes on from there.

    Warns
    -----
    UserWarning
        If a column varies within some donors but not most, donors have few cells, cells are of
        a tissue that the model was not made for, or over half of a donor's cells are unknown.

    Examples
    --------
    Raw counts in ``X``, and a model of one's own:

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
    of_donors = (*_OF_DONORS, "unknown", "mean") if counted else _OF_DONORS

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
            warn_user(f"Columns {taken} of adata.obs are replaced by what this tool counts.")
        for column, name in columns.items():
            table[column] = results.take(name)
        obsm = {key: results.take("embedding")}
        if counted:
            obsm[key + MEAN] = results.take("mean")
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
    """Return what ``obs`` says of donors, and which of its columns vary within them.

    Parameters
    ----------
    obs
        A row per cell.
    donor_key
        Column with the donor.
    donors
        Names of the donors, in the order that is wanted.

    Returns
    -------
    table
        A row per donor, the columns that are constant within every donor; values that are missing
        in some of its cells are taken from the others.
    varying
        ``column`` str and ``n_donors`` int64 in which it varies, most first.

    Warns
    -----
    UserWarning
        If a column varies within some donors, but not in most.
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
        except TypeError:  # lists, which no table of donors can hold
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
            f"adata.obs[{column!r}] varies within {n} of {len(donors)} donors and is not carried "
            f"over{_others(list(suspicious))}; repair it if it describes donors."
        )
    order = sorted(varying, key=lambda c: (-varying[c], c))
    numbers = np.array([varying[c] for c in order], dtype=np.int64)
    report = pd.DataFrame(
        {"column": np.array(order, dtype=object), "n_donors": numbers},
        index=[str(i) for i in range(len(order))],
    )
    return pd.DataFrame(table, index=names), report


def _pseudobulk(matrix: Any, which: np.ndarray, n_donors: int) -> np.ndarray:
    """Sum the values of each donor's cells if all are whole, else take their mean."""
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
