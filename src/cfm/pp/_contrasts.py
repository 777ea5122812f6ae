"""Differential-expression profiles of samples: one per contrast, or every pair on demand."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from cfm._adata import check_tables, require_anndata
from cfm._arguments import ABOVE_0, checks_arguments
from cfm._fields import CONTRASTS, MEAN_COUNT
from cfm.data._matrix import (
    by_rows,
    check_counts,
    check_log_values,
    check_unique_names,
    get_matrix,
    in_memory_frame,
    read_rows,
    row_blocks,
    to_dense,
)
from cfm.data._pairs import ContrastPairs
from cfm.data._row_buffer import RowCache
from cfm.pp._contrast_design import (
    Contrast,
    Skipped,
    build_design,
    check_columns,
    describe,
    find_control,
    hints_about_cells,
    hints_about_counts,
    hints_about_logs,
    hints_about_pooling,
    pseudobulk,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

logger = logging.getLogger(__name__)

Mode = Literal["replicates", "pairs", "test"]
Units = Literal["counts", "log"]

#: Replicates that a dispersion needs in each arm.
_MIN_REPLICATES = 2


@checks_arguments(min_cells=0, memory_mib=ABOVE_0, prior_count=ABOVE_0)
def contrasts(
    adata: AnnData,
    groupby: str,
    control: Any,
    *,
    by: str | Sequence[str] | None = None,
    mode: Mode = "replicates",
    layer: str | None = None,
    units: Units = "counts",
    sample_key: str | None = None,
    min_cells: int = 10,
    prior_count: float = 2.0,
    shrink: bool = False,
    memory_mib: float = 512,
) -> AnnData | ContrastPairs:
    """Return an AnnData with one differential-expression profile per contrast.

    In each stratum (a combination of the ``by`` columns: study, donor, time, tissue, …) the
    samples of each level of ``groupby`` are compared with the samples of the control level.
    ``adata`` stays unchanged; it may be dense, CSR, CSC, backed, dask-backed or a view.

    Parameters
    ----------
    adata
        Bulk or pseudobulk samples, or single cells with ``sample_key``. Names of genes must be
        unique: :func:`cfm.pp.map_genes` merges duplicates.
    groupby
        Column of ``obs`` with the conditions.
    control
        Level of ``groupby`` to compare with.
    by
        Column or columns of ``obs`` to match samples on. Numbers are matched exactly.
    mode
        ``"replicates"``: difference of the mean log2 CPM of cases and controls, where low counts
        are shrunken towards no change by a prior count that scales with the library. Any number
        of replicates, also one. ``"test"``: PyDESeq2's Wald test on counts; needs two cases and
        two controls. ``"pairs"``: every (case, control) pair, computed on access, also from
        samples on disk.
    layer
        Layer to use instead of ``X``.
    units
        ``"counts"``, or ``"log"`` for log2 expression (microarrays), where the profile is the
        difference of the means.
    sample_key
        Column of ``obs`` with the sample of each single cell. Counts are first summed per
        ``sample_key`` × ``groupby`` × ``by`` by :func:`decoupler.pp.pseudobulk`.
    min_cells
        Pseudobulk samples of fewer cells are left out.
    prior_count
        Counts added to each gene of an average library of the contrast (edgeR's
        ``prior.count``); larger shrinks more. Not for ``mode="test"`` nor ``units="log"``.
    shrink
        In ``mode="test"``, shrink fold changes by PyDESeq2's apeglm prior.
    memory_mib
        For ``mode="pairs"`` with samples on disk: log2 values of more than this many MiB (4 bytes
        per sample and gene) stay on disk and are read for each pair, with a cache of this size.
        The file has to stay open. Profiles are the same.

    Returns
    -------
    For ``"replicates"`` and ``"test"`` a new AnnData, one row per contrast, ordered by stratum and
    level:

    ``adata.X``
        log2 fold changes, float32, dense, no NaN. A gene without counts in the contrast has 0.
    ``adata.layers['stat']``, ``['pval']``, ``['padj']``
        float32; only in ``mode="test"``; NaN where there is no test.
    ``adata.layers['mean_count']``
        float32, the mean count of a gene in the cases or in the controls, whichever is larger; at
        a few counts a fold change is noise. Not with ``units="log"``.
    ``adata.obs``
        The ``groupby`` column (level), ``control``, the ``by`` columns, ``n_cases`` and
        ``n_controls``; also ``study`` (of the cases, joined by ``"|"``) if the input has it, for
        tools that leave out a contrast's own study. Names are
        ``"<stratum>|<level>_vs_<control>"``.
    ``adata.var``
        As in the input.
    ``adata.uns['contrasts']``
        ``params``: the arguments, whether counts were fractional, and the number of samples.
        ``skipped``: DataFrame (stratum, level, reason) of what is left out.

    For ``"pairs"`` a :class:`cfm.data.ContrastPairs`.

    Raises
    ------
    KeyError
        If a column or layer does not exist.
    ValueError
        If the control level does not exist; values are negative, NaN, infinite, or no counts
        (log-transformed or normalised; see Notes); names are duplicated; there is one sample; or
        no contrast remains.

    Warns
    -----
    UserWarning
        Strata without a control (or with nothing else), samples without any count, samples with a
        missing value in ``groupby`` or ``by``, pseudobulks of too few cells and, in
        ``mode="test"``, contrasts of too few replicates are left out, reported in one warning per
        kind and listed in ``uns['contrasts']['skipped']``. Also if ``uns['units']`` names other
        units than counts; if 100 or more observations have few counts, as single cells do, and
        there is no ``sample_key``; with ``units="log"`` if ``uns['log1p']``
        (:func:`scanpy.pp.log1p`) records natural logarithms; and without ``by`` if the pooled
        controls of a contrast have studies, treatments or times that its cases lack.

    Notes
    -----
    A contrast depends on its own cases and controls only. In ``mode="pairs"`` the samples of a
    stratum share the prior, so each is stored once; the mean over all pairs of a contrast is the
    profile of ``mode="replicates"`` if the stratum has one level beside the control.

    Fractional counts of a quantifier (salmon, kallisto, RSEM) are allowed; ``mode="test"`` rounds
    them. Errors are raised for fractional values of at most 30 (log-transformed) and for fractional
    samples of equal sums (TPM, CPM). FPKM pass for expected counts: take log2 and pass
    ``units="log"``.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.toy_infection()
    >>> profiles = cfm.pp.contrasts(adata, "virus", "none", by="study")
    """
    if units == "log" and (mode == "test" or sample_key is not None):
        raise ValueError("mode='test' and sample_key= need counts, but units='log' was given.")
    strata = [] if by is None else [by] if isinstance(by, str) else list(by)
    keys = [groupby, *strata]
    if sample_key is not None and sample_key not in keys:
        keys.append(sample_key)
    require_anndata(adata)
    check_tables(adata, keys)
    obs = in_memory_frame(adata.obs)
    get_matrix(adata, layer=layer)  # fails first if it is missing
    check_columns(obs, groupby, strata, sample_key)
    control = find_control(obs[groupby], control)
    skipped = Skipped()
    samples, fractional = _read_samples(
        adata, obs, layer, units, keys if sample_key else None, min_cells, prior_count, skipped
    )
    usable = _usable(samples, skipped)
    found = build_design(samples.obs, groupby, control, strata, usable, skipped)
    if mode == "test":
        found = _enough_replicates(found, skipped)
    if not strata:
        skipped.messages += hints_about_pooling(samples.obs, found, groupby)
    skipped.warn()
    if not found:
        reasons = skipped.frame()["reason"].drop_duplicates().head(3).tolist()
        raise ValueError(
            f"no contrast of {groupby!r} with {control!r} can be made within by={strata}: "
            + ("; ".join(reasons) or "there are only control samples")
            + ("; choose other by columns." if strata else ".")
        )
    params = {
        "mode": mode,
        "groupby": groupby,
        "control": str(control),
        "by": np.array(strata, dtype=object) if strata else "",
        "layer": layer or "X",
        "units": units,
        "sample_key": sample_key or "",
        "min_cells": min_cells,
        "prior_count": float(prior_count),
        "shrink": shrink,
        "fractional_counts": fractional,
        "n_samples": int(np.unique(np.concatenate([c.rows for c in found])).size),
    }
    uns = {"params": params, "skipped": skipped.frame()}
    table = describe(found, samples.obs, groupby, control, strata)
    if mode == "pairs":
        return _make_pairs(samples, found, table, uns, memory_mib=memory_mib)

    import anndata as ad

    # rows on disk and in dask are read once; matrices in memory need no copy
    if not samples.in_memory:
        loaded = read_rows(samples.matrix, np.arange(len(samples.obs)))
        samples = dataclasses.replace(samples, matrix=loaded)
    result = ad.AnnData(
        X=np.zeros((len(found), len(samples.var)), dtype=np.float32),
        obs=table,
        var=samples.var.copy(),
        uns={CONTRASTS: uns},
    )
    if mode == "replicates":
        for i, contrast in enumerate(found):
            result.X[i] = _mean_difference(samples, contrast)
    else:
        _fill_tests(result, samples, found, shrink)
    if samples.library_size is not None:
        result.layers[MEAN_COUNT] = np.stack([_mean_count(samples, c) for c in found])
    return result


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples to compare: their matrix, table, genes, and library sizes (``None``: log2 values)."""

    matrix: Any
    obs: pd.DataFrame
    var: pd.DataFrame
    library_size: np.ndarray | None
    prior_count: float

    @property
    def in_memory(self) -> bool:
        """Whether the matrix is in memory."""
        return isinstance(self.matrix, np.ndarray) or sparse.issparse(self.matrix)

    def prior(self, rows: np.ndarray) -> float:
        """Prior as a share of a library, from the compared samples only."""
        if self.library_size is None:
            return 0.0
        return self.prior_count / float(self.library_size[rows].mean())

    def log2(self, block: Any, rows: np.ndarray, prior: float | np.ndarray) -> np.ndarray:
        """Return log2 expression (float64) of a block that holds the given rows."""
        if self.library_size is None:
            return to_dense(block)
        return _log2_cpm(to_dense(block), self.library_size[rows], prior)


def _log2_cpm(
    counts: np.ndarray, library_size: np.ndarray, prior: float | np.ndarray
) -> np.ndarray:
    r"""Return log2 counts per million, shrunken at low counts.

    .. math:: \log_2 \frac{y_{ig} / N_i + c}{1 + 2c} \cdot 10^6

    with :math:`y_{ig}` the count of gene :math:`g` in sample :math:`i`, :math:`N_i` its library
    size and :math:`c` the prior as a share of a library. It equals ``cpm(log=TRUE)`` of edgeR for
    :math:`c` = ``prior.count`` / mean library size: the prior count is scaled with each library,
    so a gene without counts has the same value in every sample and no fold change.

    Parameters
    ----------
    counts
        ``(n, n_genes)`` counts.
    library_size
        ``(n,)`` their row sums, above 0.
    prior
        :math:`c`, above 0; one for all, or ``(n,)``.

    Returns
    -------
    ``(n, n_genes)`` float64.

    Notes
    -----
    Robinson, McCarthy and Smyth (2010), edgeR; the moderated fold changes made from it are in the
    spirit of its ``predFC`` (Phipson 2013).
    """
    values = np.asarray(counts, dtype=np.float64) / library_size[:, None]
    if isinstance(prior, np.ndarray):
        prior = prior[:, None]
    values += prior
    values *= 1e6 / (1.0 + 2.0 * prior)
    return np.log2(values, out=values)


def _read_samples(
    adata: AnnData,
    obs: pd.DataFrame,
    layer: str | None,
    units: Units,
    keys: list[str] | None,
    min_cells: int,
    prior_count: float,
    skipped: Skipped,
) -> tuple[Samples, bool]:
    """Check the input, and sum the counts of single cells."""
    matrix = by_rows(get_matrix(adata, layer=layer))
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    check_unique_names(adata.var_names, axis="var")
    library_size, fractional = None, False
    if units == "log":
        check_log_values(matrix, where=where)
        skipped.messages += hints_about_logs(adata) if layer is None else []
    else:
        counts = check_counts(matrix, where=where)
        library_size, fractional = counts.library_size, counts.fractional
        skipped.messages += hints_about_counts(adata) if layer is None else []
        skipped.messages += hints_about_cells(library_size) if not keys else []
    if keys:
        matrix, obs = pseudobulk(matrix, obs, keys, min_cells=min_cells, skipped=skipped)
        library_size = matrix.sum(axis=1)
    else:
        check_unique_names(adata.obs_names, axis="obs")
    if len(obs) == 1:
        raise ValueError(
            f"there is one sample only ({obs.index[0]!r}); a contrast needs at least one case and "
            "one control."
        )
    var = in_memory_frame(adata.var)
    return Samples(matrix, obs, var, library_size, prior_count), fractional


def _usable(samples: Samples, skipped: Skipped) -> np.ndarray:
    """Return ``(n,)`` bool, and record samples without any count."""
    if samples.library_size is None:
        return np.ones(len(samples.obs), dtype=bool)
    usable = samples.library_size > 0
    empty = samples.obs.index[~usable].astype(str)
    if len(empty) == len(usable):
        raise ValueError(
            f"none of the {len(empty)} samples has any count; raw counts are expected (layer= "
            "chooses another matrix)."
        )
    for name in empty:
        skipped.add("", "", f"sample {name!r} has no counts")
    if len(empty):
        skipped.note(len(empty), "sample(s) without any count", list(empty))
    return usable


def _enough_replicates(found: list[Contrast], skipped: Skipped) -> list[Contrast]:
    """Leave out contrasts that have no replicates to estimate a dispersion from."""
    kept, left_out = [], []
    for contrast in found:
        n_cases, n_controls = len(contrast.cases), len(contrast.controls)
        if min(n_cases, n_controls) >= _MIN_REPLICATES:
            kept.append(contrast)
        else:
            reason = f"mode='test' needs 2 cases and 2 controls, found {n_cases} and {n_controls}"
            skipped.add(contrast.stratum, str(contrast.level), reason)
            left_out.append(f"{contrast.stratum} {contrast.level}".strip())
    if left_out:
        skipped.note(len(left_out), "contrast(s) with too few replicates for a test", left_out)
    return kept


def _mean_difference(samples: Samples, contrast: Contrast) -> np.ndarray:
    """Return ``(n_genes,)`` the difference of the mean log2 values of cases and controls."""
    rows = contrast.rows
    block = read_rows(samples.matrix, rows)
    values = samples.log2(block, rows, samples.prior(rows))
    n_cases = len(contrast.cases)
    effect = values[:n_cases].mean(axis=0) - values[n_cases:].mean(axis=0)
    if samples.library_size is not None:
        # exactly 0, without rounding errors of two means
        effect[np.asarray(block.sum(axis=0)).ravel() == 0] = 0.0
    return effect


def _mean_count(samples: Samples, contrast: Contrast) -> np.ndarray:
    """Return ``(n_genes,)`` float32 mean counts of the cases or the controls, the larger ones."""
    groups = (contrast.cases, contrast.controls)
    means = [to_dense(read_rows(samples.matrix, rows)).mean(axis=0) for rows in groups]
    return np.maximum(*means).astype(np.float32)


def _fill_tests(result: AnnData, samples: Samples, found: list[Contrast], shrink: bool) -> None:
    """Write fold changes and the layers of the test."""
    import scanpy as sc
    from scvi import settings
    from scvi.utils import track

    from cfm.pp._deseq2 import deseq2

    layers = ("stat", "pval", "padj")
    for layer in layers:
        result.layers[layer] = np.full(result.shape, np.nan, dtype=np.float32)
    steps = track(range(len(found)), description="PyDESeq2", disable=settings.verbosity > 20)
    for i in steps:
        counts = to_dense(read_rows(samples.matrix, found[i].rows))
        is_case = np.arange(len(counts)) < len(found[i].cases)
        n_cpus = sc.settings.n_jobs  # 1 by default
        table = deseq2(counts, is_case, result.var_names, shrink=shrink, n_cpus=n_cpus)
        result.X[i] = table["lfc"]
        for layer in layers:
            result.layers[layer][i] = table[layer]


def _make_pairs(
    samples: Samples,
    found: list[Contrast],
    table: pd.DataFrame,
    uns: dict[str, Any],
    *,
    memory_mib: float,
) -> ContrastPairs:
    """Compute the log2 values of each sample once, with the prior of its stratum.

    Samples on disk whose values do not fit into ``memory_mib`` are left there.
    """
    used = np.unique(np.concatenate([contrast.rows for contrast in found]))
    members: dict[int, list[np.ndarray]] = {}
    for contrast in found:
        members.setdefault(contrast.number, []).append(contrast.rows)
    prior = np.zeros(len(samples.obs))
    for rows_of in members.values():
        rows = np.unique(np.concatenate(rows_of))
        prior[rows] = samples.prior(rows)

    position = np.full(len(samples.obs), -1, dtype=np.int64)
    position[used] = np.arange(len(used))
    shape = len(used), len(samples.var)
    max_bytes = int(memory_mib * 2**20)
    values: np.ndarray | RowCache
    if samples.in_memory or 4 * shape[0] * shape[1] <= max_bytes:
        values = np.empty(shape, dtype=np.float32)
        for block_rows, block in row_blocks(samples.matrix):
            rows = np.arange(block_rows.start, block_rows.stop)
            wanted = position[rows] >= 0
            rows = rows[wanted]
            values[position[rows]] = samples.log2(block[wanted], rows, prior[rows])
    else:

        def read(numbers: np.ndarray) -> np.ndarray:
            rows = used[numbers]
            return samples.log2(read_rows(samples.matrix, rows), rows, prior[rows]).astype("f4")

        values = RowCache(read, shape, max_bytes=max_bytes)
    return ContrastPairs(
        values,
        [position[contrast.cases] for contrast in found],
        [position[contrast.controls] for contrast in found],
        contrasts=table,
        var=samples.var.copy(),
        sample_names=samples.obs.index[used].astype(str),
        uns=uns,
    )
