"""A code for each cell, the annotations and markers of each code, and codes of a reference."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from cfm._adata import check_key, params_of, takes_anndata, warn_user
from cfm._docs import fill_docs
from cfm._fields import (
    ANNOTATIONS,
    CELL_CODE_KEY,
    CODES,
    GROUP,
    LABELLED,
    MAJORITY,
    MARKERS,
    NEIGHBOURS,
    PARAMS,
    PURITY,
    REFERENCE,
    VECTORS,
)
from cfm.data._matrix import get_matrix
from cfm.models import CodeModel, PretrainedModel, load_model
from cfm.models.cellvq import CellCodes
from cfm.stats._ward import weighted_ward
from cfm.tl._code_tables import (
    UsedCodes,
    agreement_table,
    check_use,
    code_table,
    group_column,
    marker_table,
    neighbour_table,
    obs_columns,
    read_annotations,
    readable_cells,
    vector_table,
)
from cfm.tl._run import TEXTS, Run, model_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.models import CodeModel
    from cfm.models.cellvq import Codebook
    from cfm.tl._code_tables import UsedCodes
    from cfm.tl._run import Data

#: Marker genes of a code, enough to name it; scanpy.tl.rank_genes_groups gives more.
_N_MARKERS = 10
#: Neighbouring codes of a code by either measure, which the knowledge graph and its plot draw.
_N_NEIGHBOURS = 5
#: Results of single cells.
_CELL_RESULTS = ("code", "similarity", "margin")
#: Parameter with the optional columns of ``obs``, which a run without them drops.
_FURTHER = "further_columns"


@takes_anndata(
    others=True,
    columns=("groupby", "total_counts"),
    ranges={"min_cells": 2},
)
@fill_docs(TEXTS)
def cell_codes(
    adata: Data,
    model: str | Path | PretrainedModel | CodeModel = "cellvq-mini",
    *,
    groupby: str | Sequence[str] | None = None,
    layer: str | None = None,
    reference: AnnData | Mapping[str, Any] | None = None,
    n_groups: int | None = None,
    min_cells: int = 10,
    key_added: str = CELL_CODE_KEY,
    device: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    **model_kwargs: Any,
) -> AnnData | None:
    r"""Give each cell a code of the model's codebook, and describe each code.

    A code is a number, the same for similar cells of any dataset: unlike clusters, which are new in
    each dataset, codes of a query compare with those of a reference.

    Parameters
    ----------
    adata
        Cells by genes with raw counts, or in the units of ``units=``. Genes as symbols or Ensembl
        ids; absent genes count as not measured.
        %(paths)s
        Markers are of the genes of all files.
    model
        A model with codes (:class:`cfm.models.CodeModel`).
        %(load)s
    groupby
        Columns of ``obs`` with annotations that describe codes (cell type, tissue, disease, donor).
        Cells in which one is missing or ``""`` do not count for it.
    %(layer)s
    reference
        Other cells with codes by the same model, or their ``uns['cell_code']``.
    n_groups
        Number of groups to merge the codes of the cells into, by the vectors of the codes weighted
        by their cells (Ward's method). Like clusters, groups are new in each dataset.
    min_cells
        Codes with fewer cells get no markers.
    %(key_added)s
    %(device)s
    %(output)s
    %(overwrite)s
    %(copy)s
    **model_kwargs
        Further arguments of the model's ``get_cell_codes``: of :class:`cfm.models.CellVQ` ``units``
        (``"counts"``, or ``"log1p_cp10k"``, the natural logarithm of one plus counts per 10,000),
        ``total_counts`` (column of ``obs`` with the counts of a cell, for such values),
        ``batch_size`` and ``precision`` (``"float32"`` gives the same codes on every machine).

    Returns
    -------
    %(returns)s
    Writes, with ``key`` = ``'cell_code' | key_added``:

    ``adata.obs[key]``
        Categorical of text, the number of the code (``"7"``); missing where the model cannot read
        the cell, such as one that expresses none of its genes. Categories are the codes of the
        cells, by number.
    ``adata.obs[key + '_similarity']``
        float32, cosine of the cell to its code, −1 to 1.
    ``adata.obs[key + '_margin']``
        float32, how much nearer (cosine) its code is than the second nearest: near 0 the cell lies
        between two codes.
    ``adata.uns[key]['codes']``
        DataFrame, a row per code of the cells: ``n_cells`` int64, ``share`` float64 of the
        cells with a code, ``similarity`` float64 (mean), ``bits`` str (the code's binary number).
        For each annotation ``a`` of ``groupby`` ``a_labelled`` int64 (cells that have it),
        ``a_majority`` str (level of most of these; ``""`` if none has it), ``a_purity`` float64
        (their share, 1 over the number of levels to 1), ``a_entropy`` float64 (of the levels, in
        bits), ``a_enrichment`` float64 (purity over the level's share of all labelled cells).
    ``adata.uns[key]['annotations']``
        With ``groupby``: DataFrame, a row per annotation: ``n_labelled``, ``n_levels`` int64,
        ``purity`` (share of cells with the majority level of their code), ``nmi``, ``ami`` and
        ``ari`` (normalised and adjusted mutual information and adjusted Rand index of codes and
        levels), all float64. Purity and NMI grow with the number of codes; the adjusted ones are
        0 on average for random codes.
    ``adata.uns[key]['markers']``
        DataFrame, a row per code and gene, at most ten of a code: ``code``, ``rank`` int64,
        ``gene`` (name in ``var_names``), and float64 ``score`` (Welch's t statistic of the code's
        cells against all others on log-normalised counts), ``log_fold_change`` (difference of
        these means, divided by ln 2), ``share_inside`` and ``share_outside`` (cells with a value
        above 0), ``p_value`` (one-sided) and ``fdr`` (Benjamini & Hochberg over the genes of a
        code). Codes come from the same expression, so p-values rank genes but are too small as
        evidence.
    ``adata.uns[key]['neighbours']``
        DataFrame, a row per code of the cells and neighbour, the five nearest by cosine and by
        Hamming distance: ``code``, ``neighbour``, ``cosine`` float64 of their vectors, ``hamming``
        int64 (bits that differ), ``cosine_rank`` and ``hamming_rank`` int64.
    ``adata.uns[key]['vectors']``
        DataFrame float32, codes by dimensions, of unit length.
    ``adata.uns[key]['params']``
        The arguments, the model, its SHA-256, its ``fingerprint`` (SHA-256 of genes and weights),
        the share of its genes found, ``n_codes`` (of the codebook), ``n_used``, ``n_unread``
        (cells), and ``perplexity``: the effective number of codes.

    With ``n_groups`` also

    ``adata.obs[key + '_group']``, ``adata.uns[key]['codes']['group']``
        Categorical of text, and text, the group of the cell and of the code; ``"0"`` has most
        cells.

    With ``reference`` also

    ``adata.uns[key]['reference']``
        DataFrame, a row per code: ``n_cells``, ``share``; ``known`` bool (cells of the reference
        have it), ``n_cells_reference`` int64, ``share_reference`` float64, ``nearest`` str (the
        nearest code that the reference has, itself if it is known) and ``nearest_similarity``
        float64; and for each annotation of the reference ``a_majority``, ``a_purity`` and
        ``a_labelled`` there.
    ``adata.obs[key + '_a']``, ``adata.obs[key + '_a_purity']``
        For each annotation ``a`` of the reference: categorical, the majority of the cell's code
        there; float64, the share of the reference's cells of this code that have it. Missing where
        the reference does not have the code.

    Raises
    ------
    TypeError
        If ``adata`` or ``reference`` is of another type, or the model has no codes.
    KeyError
        If a layer or column does not exist, or the reference has no codes.
    ValueError
        If an annotation is missing in all cells or holds fractional numbers, a number is out of
        its range, cells have fewer codes than ``n_groups``, values are not in the declared
        ``units``, no cell can be read, or the codes of the reference are of another model.
        ``adata`` stays unchanged.
    %(output_errors)s

    Warns
    -----
    UserWarning
        If all cells have one code, an annotation has one level, cells cannot be read, few cells
        have codes of the reference, few of the model's genes are found, or a field of another tool
        is replaced.

    Notes
    -----
    With :math:`p_i` the share of code :math:`i` the perplexity is :math:`\exp(-\sum_i p_i \ln
    p_i)`. One dataset uses few of the thousands of codes of a codebook.

    Examples
    --------
    >>> import cfm, scanpy as sc
    >>> cells = sc.datasets.pbmc68k_reduced().raw.to_adata()[::4].copy()
    >>> reading = {"units": "log1p_cp10k", "total_counts": "n_counts"}
    >>> cfm.tl.cell_codes(cells, groupby="bulk_labels", **reading)
    >>> cells.uns["cell_code"]["annotations"].index.tolist()
    ['bulk_labels']
    >>> new = cells[:50].copy()
    >>> cfm.tl.cell_codes(new, reference=cells, **reading)
    >>> bool(new.uns["cell_code"]["reference"]["known"].all())
    True
    """
    run = Run(adata, output, overwrite=overwrite, copy=copy, also_read=reference)
    check_key(key_added)
    annotations = read_annotations(run.whole, groupby)
    known = None if reference is None else ReferenceCodes.read(reference, key_added)
    network: Any = model
    if not isinstance(model, CodeModel) or isinstance(model, PretrainedModel):
        network = load_model(model, device=device)
    if not isinstance(network, CodeModel):
        raise TypeError(
            f"{type(network).__name__} gives cells no codes; pass a model that does, such as a "
            "cfm.models.CellVQ."
        )
    reading: dict[str, Any] = {"layer": layer, "units": "counts", "batch_size": 64} | model_kwargs
    book = network.get_codebook()
    record = _record(network, run, reading, key_added)
    record["fingerprint"] = fingerprint(network, book)
    if known is not None:
        known.check_same_model(record)
    loaded = network

    def compute(part: AnnData, _: slice) -> dict[str, np.ndarray]:
        found = loaded.get_cell_codes(part, **reading)
        return {name: getattr(found, name) for name in _CELL_RESULTS}

    with run.compute(
        compute,
        network,
        tool="cell_codes",
        layers=[layer],
        arguments=reading | {"fingerprint": record["fingerprint"]},
    ) as results:
        of_cells = {name: results.take(name) for name in _CELL_RESULTS}
        none = np.empty((len(of_cells["code"]), 0), dtype=np.float32)
        found = CellCodes(latent=none, **of_cells)
        used = UsedCodes.of(found.code, readable_cells(found))
        check_use(used, len(book.vectors), n_groups)
        stored: dict[str, Any] = {
            CODES: code_table(used, found, book, annotations),
            MARKERS: marker_table(
                get_matrix(run.whole, layer=layer),
                used.place,
                used.names,
                run.whole.var_names,
                counts=reading["units"] == "counts",
                n_markers=_N_MARKERS,
                min_cells=min_cells,
            ),
            NEIGHBOURS: neighbour_table(used, book, _N_NEIGHBOURS),
            VECTORS: vector_table(used, book),
        }
        obs = obs_columns(found, used, key_added)
        if annotations:
            stored[ANNOTATIONS] = agreement_table(annotations, used)
        further: dict[str, Any] = {}
        if n_groups is not None:
            group = weighted_ward(book.vectors[used.numbers], used.size, n_groups)
            stored[CODES]["group"] = group.astype(str)
            further[key_added + GROUP] = group_column(used, group)
        if known is not None:
            stored[REFERENCE] = known.compare(used, book)
            columns = known.transferred(key_added, stored[REFERENCE], used)
            check_new_columns([*obs, *further], list(columns))
            further |= columns
        obs |= further
        own = {
            "groupby": list(annotations) or None,
            "min_cells": min_cells,
            "n_codes": len(book.vectors),
            "n_used": len(used.names),
            "n_unread": int((used.place < 0).sum()),
            "perplexity": used.perplexity,
            "n_groups": n_groups,
            _FURTHER: list(further) or None,
        }
        into = run.target
        run.warn_overwritten(key_added, {"obs": list(obs)})
        for name in _former_columns(into, key_added) - set(obs):
            del into.obs[name]
        for name, column in obs.items():
            into.obs[name] = column
        into.uns[key_added] = {
            PARAMS: record | {k: v for k, v in own.items() if v is not None}
        } | stored
    return run.result


def _former_columns(adata: AnnData, key: str) -> set[str]:
    """Return the optional columns of an earlier run that are still there."""
    made = params_of(adata.uns, key).get(_FURTHER, [])
    return set(map(str, made)) & set(map(str, adata.obs.columns))


def _record(model: Any, run: Run, reading: Mapping[str, Any], key_added: str) -> dict[str, Any]:
    share = run.rows.vocabulary_share(model)
    if isinstance(model, PretrainedModel):
        # float32 gives the same codes on every machine
        return model_record(
            model, share, key_added=key_added, **({"precision": "float32"} | dict(reading))
        )
    return {k: v for k, v in reading.items() if v is not None} | {
        "key_added": key_added,
        "model": type(model).__name__,
        "sha256": "",
        "vocabulary_share": share,
    }


#: Below this share of cells in codes of the reference there is a warning.
_FEW = 0.5


def fingerprint(model: CodeModel, book: Codebook) -> str:
    """Return the SHA-256 of genes, codebook and all weights, which determine the codes.

    Codes of different models are unrelated. A newly trained model has no checkpoint with a SHA-256;
    its fingerprint is the same after saving and loading.
    """
    digest = hashlib.sha256("\n".join(model.vocabulary.genes).encode())
    if not isinstance(model, PretrainedModel):
        for array in (book.vectors, book.bits):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ReferenceCodes:
    """Codes of a reference.

    Attributes
    ----------
    table
        The codes of the reference, by name.
    annotations
        Names of their annotations.
    params
        Parameters of their run.
    """

    table: pd.DataFrame
    annotations: list[str]
    params: Mapping[str, Any]

    @classmethod
    def read(cls, reference: object, key: str) -> ReferenceCodes:
        """Read the tables of :func:`cfm.tl.cell_codes`, from a reference or as they are."""
        stored = reference
        if isinstance(reference, AnnData):
            if key not in reference.uns:
                raise KeyError(
                    f"reference.uns has no {key!r}; run cfm.tl.cell_codes on the reference first, "
                    "or pass the tables: reference=other.uns['…']."
                )
            stored = reference.uns[key]
        if not isinstance(stored, Mapping):
            raise TypeError(
                f"reference is a {type(reference).__name__}; expected an AnnData with cell codes, "
                "or its uns['cell_code']."
            )
        params = stored.get(PARAMS)
        if not isinstance(params, Mapping) or not isinstance(stored.get(CODES), pd.DataFrame):
            raise ValueError(
                f"The reference holds {sorted(map(str, stored))}; expected what cfm.tl.cell_codes "
                "stores in uns['cell_code'], with 'params' and 'codes'."
            )
        table = stored[CODES]
        table = table.set_axis(table.index.astype(str), axis=0)
        annotations = [
            name.removesuffix(MAJORITY)
            for name in map(str, table.columns)
            if name.endswith(MAJORITY) and name.removesuffix(MAJORITY) + PURITY in table
        ]
        return cls(table, annotations, params)

    def check_same_model(self, record: Mapping[str, Any]) -> None:
        """Check that the codes of the reference are of the model of this record.

        Raises
        ------
        ValueError
            If it was another one.
        """
        for name in ("sha256", "fingerprint"):
            if record[name] and record[name] == self.params.get(name):
                return
        theirs, ours = (
            str(p.get("sha256") or p.get("fingerprint"))[:12] for p in (self.params, record)
        )
        raise ValueError(
            f"The codes of the reference come from another model ({self.params.get('model')!r}, "
            f"SHA-256 {theirs}…) than this one ({record['model']!r}, {ours}…), so equal "
            "numbers are unrelated; run cfm.tl.cell_codes on both with one model."
        )

    def compare(self, used: UsedCodes, book: Codebook) -> pd.DataFrame:
        """Return a row per code of these cells, as :func:`cfm.tl.cell_codes` stores it."""
        theirs = self.table.index.astype(np.int64).to_numpy()
        known = np.isin(used.numbers, theirs)
        cosine = book.vectors[used.numbers].astype(np.float64) @ book.vectors[theirs].T
        own = used.numbers[:, None] == theirs
        cosine[own] = 2.0  # codes of the reference are nearest to themselves
        nearest = np.round(cosine, 6).argmax(axis=1)
        similarity = np.where(known, 1.0, cosine[np.arange(len(cosine)), nearest])
        there = self.table.reindex(used.names)
        table = pd.DataFrame(
            {
                "n_cells": used.size.astype(np.int64),
                "share": used.size / used.size.sum(),
                "known": known,
                "n_cells_reference": there["n_cells"].fillna(0).astype(np.int64),
                "share_reference": there["share"].fillna(0.0).astype(np.float64),
                "nearest": self.table.index.to_numpy(dtype=object)[nearest],
                "nearest_similarity": similarity,
            },
            index=used.names,
        )
        for name in self.annotations:
            # missing for codes that the reference lacks
            labels = there[name + MAJORITY].astype(object)
            table[name + MAJORITY] = labels.where(labels.notna(), "").astype(str)
            table[name + PURITY] = there[name + PURITY].astype(np.float64)
            if name + LABELLED in there:
                table[name + LABELLED] = there[name + LABELLED].fillna(0).astype(np.int64)
        share = float(table.loc[known, "share"].sum())
        if share < _FEW:
            warn_user(
                f"Only {share:.0%} of the cells have a code that the reference has; the others "
                "get no annotation. See the column 'nearest' of the stored table."
            )
        return table

    def transferred(
        self, key: str, compared: pd.DataFrame, used: UsedCodes
    ) -> dict[str, pd.Categorical | np.ndarray]:
        """Return columns of ``obs``: the majority of a cell's code in the reference, its purity."""
        columns: dict[str, pd.Categorical | np.ndarray] = {}
        for name in self.annotations:
            labels = compared[name + MAJORITY].to_numpy(dtype=object)
            purity = compared[name + PURITY].to_numpy(dtype=np.float64)
            levels = sorted(set(labels) - {""})
            # place −1 (no code) selects the last element
            of_cell = np.append(labels, "")[used.place]
            places = pd.Index(levels, dtype=object).get_indexer(of_cell)
            columns[f"{key}_{name}"] = pd.Categorical.from_codes(
                places, categories=pd.Index(levels)
            )
            columns[f"{key}_{name}{PURITY}"] = np.append(purity, np.nan)[used.place]
        return columns


def check_new_columns(fixed: Sequence[str], made: Sequence[str]) -> None:
    """Check that columns with transferred annotations have unique names.

    Raises
    ------
    ValueError
        If a name is taken twice.
    """
    names = [*fixed, *made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"The annotation of the reference would be written to obs[{twice[0]!r}], which "
            "is taken by another result; rename the annotation in the reference."
        )
