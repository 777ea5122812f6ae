"""Real and simulated cells side by side: which they are, which genes they share, in which units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfm._arguments import check_layer
from cfm._fields import SIMULATED, SIMULATED_BY, SIMULATION, params_of
from cfm._sparse_indices import check_sparse
from cfm._units import LIBRARY, decide_units, units_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cfm._units import Units

#: Cells that are read at a time.
_BLOCK = 2048


@dataclass(frozen=True)
class Cells:
    """Observations of one AnnData, on ``n`` genes that both have.

    Attributes
    ----------
    adata, layer
        Where expression is read.
    level, group
        ``(obs,)`` object: perturbation and group of each; ``""`` without groups, ``None`` where
        it is not given.
    columns
        ``(n,)`` int64 places of the genes.
    counts
        Whether expression is counts.
    """

    adata: AnnData
    layer: str | None
    level: np.ndarray
    group: np.ndarray
    columns: np.ndarray
    counts: bool = False

    def rows(self, level: str | Sequence[str], group: str | None = None) -> np.ndarray:
        """Row numbers of a perturbation or several, in one group or in all."""
        levels = [level] if isinstance(level, str) else list(level)
        chosen = np.isin(self.level, levels)
        if group is not None:
            chosen &= self.group == group
        return np.flatnonzero(chosen)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Log expression of some rows, ``(rows, n)`` float64; of counts log1p CP10k of ``n``."""
        unique, place = np.unique(rows, return_inverse=True)  # a file gives each row once, in order
        values = self._stored(unique)[:, self.columns]
        dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
        dense = dense.astype(np.float64)
        if self.counts:
            total = dense.sum(axis=1, keepdims=True)
            dense = np.log1p(dense * (LIBRARY / np.where(total > 0, total, 1.0)))
        return dense[place]

    def blocks(self, rows: np.ndarray) -> Iterator[Any]:
        """Yield rows of all genes as they are stored."""
        for start in range(0, len(rows), _BLOCK):
            yield self._stored(rows[start : start + _BLOCK])

    def _stored(self, rows: np.ndarray) -> Any:
        matrix: Any = self.adata.X if self.layer is None else self.adata.layers[self.layer]
        block = check_sparse(matrix, "the matrix of cells")[rows]
        block = block.compute() if hasattr(block, "compute") else block  # dask
        return check_sparse(block, "the matrix of cells")


@dataclass(frozen=True)
class Screen:
    """Real and simulated cells of the same perturbations.

    Attributes
    ----------
    real, simulated
        The cells.
    control
        Level of ``real`` that was left alone.
    perturbations, groups
        What is drawn, groups ``[""]`` without groups.
    genes
        ``(n,)`` names to write.
    n_unpredicted
        Genes of both that the model did not predict; they are left out.
    model
        What simulated.
    """

    real: Cells
    simulated: Cells
    control: str
    perturbations: list[str]
    groups: list[str]
    genes: np.ndarray
    n_unpredicted: int
    model: str


def read_screen(
    real: AnnData,
    simulated: AnnData | None,
    *,
    key: str | None,
    control: str | None,
    perturbation: str | Sequence[str] | None,
    groupby: str | None,
    group: str | Sequence[str] | None,
    layer: str | None,
    units: Units | Mapping[str, Units],
    gene_symbols: str | None,
) -> Screen:
    """Bring real and simulated cells together; see :func:`cfm.pl.perturbation`.

    Raises
    ------
    TypeError
        If one of them is no AnnData.
    KeyError
        If a column, level, group or layer does not exist.
    ValueError
        If it is not said what was done to the cells, they share no gene, values are not finite, or
        units differ or cannot be decided.
    """
    for name, given in (("real", real), ("simulated", simulated)):
        if not isinstance(given, AnnData):
            raise TypeError(
                f"{name} is a {type(given).__name__}; kinds 'effect' and 'umap' need two AnnDatas, "
                "real cells and those of cfm.tl.simulate_perturbation."
            )
    assert isinstance(simulated, AnnData)
    record = params_of(simulated.uns, SIMULATION)
    key, control = key or record.get("key"), control or record.get("control")
    if key is None or control is None:
        raise ValueError(
            f"key={key!r} and control={control!r}: both are needed, and simulated.uns"
            f"[{SIMULATION!r}] does not record them; pass the column of obs with the perturbation "
            "and its level for cells that were left alone."
        )
    if layer is None:
        layer = record.get("layer")
    check_layer(real, layer, "real")
    genes, columns, n_unpredicted = _shared_genes(real, simulated)
    cells = [
        Cells(
            adata=adata,
            # what was simulated from a layer stands in X
            layer=layer if layer is not None and layer in adata.layers else None,
            level=_column(adata, key, name),
            group=_column(adata, groupby, name),
            columns=places,
        )
        for adata, name, places in zip(
            (real, simulated), ("real", "simulated"), columns, strict=True
        )
    ]
    if control not in set(cells[0].level):
        raise KeyError(
            f"real.obs[{key!r}] has no control {control!r}; it has {_some(cells[0].level)}."
        )
    names = _symbols(real, gene_symbols, columns[0]) if gene_symbols is not None else genes
    perturbations = _levels(cells, key, control, perturbation)
    groups = _groups(cells, groupby, group)
    counts = _hold_counts(cells, [control, *perturbations], units)
    cells = [replace(part, counts=counts) for part in cells]
    by = sorted(set(map(str, simulated.obs[SIMULATED_BY]))) if SIMULATED_BY in simulated.obs else []
    return Screen(
        real=cells[0],
        simulated=cells[1],
        control=control,
        perturbations=perturbations,
        groups=groups,
        genes=names,
        n_unpredicted=n_unpredicted,
        model=", ".join(by),
    )


def mean_log_expression(parts: Sequence[tuple[Cells, np.ndarray]]) -> list[np.ndarray]:
    """Return the mean log expression of each part, some rows of some cells, ``(genes,)``.

    Cells are read a few at a time.
    """
    means = []
    for cells, rows in parts:
        starts = range(0, len(rows), _BLOCK)
        means.append(sum(cells.read(rows[i : i + _BLOCK]).sum(axis=0) for i in starts) / len(rows))
    return means


def _hold_counts(
    cells: Sequence[Cells], levels: list[str], units: Units | Mapping[str, Units]
) -> bool:
    # what was simulated is of the units that were read
    made = {SIMULATION: cells[1].adata.uns.get(SIMULATION, {})}
    found = [
        decide_units(
            part.blocks(part.rows(levels)),
            units_of(name, units),
            where=name,
            uns=(made | dict(part.adata.uns)) if part.layer is None else made,
        )
        for part, name in zip(cells, ("real", "simulated"), strict=True)
    ]
    if len(set(found)) > 1:
        raise ValueError(
            f"real holds {found[0]!r} and simulated {found[1]!r}; bring both to the same units, or "
            "pass layer=."
        )
    return found[0] == "counts"


def _shared_genes(
    real: AnnData, simulated: AnnData
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], int]:
    """Return names of the genes to compare, their places in both, and how many were left out."""
    for name, adata in (("real", real), ("simulated", simulated)):
        if not adata.var_names.is_unique:
            raise ValueError(
                f"{name}.var_names holds names twice; make them unique, for instance with "
                "cfm.pp.map_genes."
            )
    places = simulated.var_names.get_indexer(real.var_names)
    both = places >= 0
    if not both.any():
        raise ValueError(
            f"real and simulated share no gene (real has {_some(real.var_names)}, simulated has "
            f"{_some(simulated.var_names)}); bring both to the same names with cfm.pp.map_genes."
        )
    predicted = np.ones(simulated.n_vars, dtype=bool)
    if SIMULATED in simulated.var:
        predicted = simulated.var[SIMULATED].to_numpy(dtype=bool)
    kept = both & predicted[places]
    if not kept.any():
        raise ValueError(
            f"simulated.var[{SIMULATED!r}] says that no gene of real was predicted; is this the "
            "right model for these genes?"
        )
    shown = np.flatnonzero(kept)
    names = real.var_names[shown].to_numpy(dtype=object)
    return names, (shown, places[shown]), int(both.sum() - len(shown))


def _symbols(real: AnnData, column: str, places: np.ndarray) -> np.ndarray:
    if column not in real.var:
        raise KeyError(f"real.var has no column {column!r}; it has {list(real.var)}.")
    return real.var[column].astype(str).to_numpy(dtype=object)[places]


def _column(adata: AnnData, column: str | None, name: str) -> np.ndarray:
    if column is None:
        return np.full(adata.n_obs, "", dtype=object)
    if column not in adata.obs:
        raise KeyError(f"{name}.obs has no column {column!r}; it has {list(adata.obs)}.")
    values = adata.obs[column].astype(str).to_numpy(dtype=object, copy=True)
    values[adata.obs[column].isna().to_numpy()] = None
    return values


def _levels(
    cells: Sequence[Cells], key: str, control: str, wanted: str | Sequence[str] | None
) -> list[str]:
    real, simulated = (_present(part.level) - {control} for part in cells)
    if wanted is None:
        names = sorted(real & simulated)
        if not names:
            raise ValueError(
                f"No perturbation of simulated ({_some(simulated)}) was observed: real.obs[{key!r}]"
                f" has {_some(real)}."
            )
        return names
    names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    if not names:
        raise ValueError("perturbation is an empty list; pass None or name at least one.")
    for where, there in (("real", real), ("simulated", simulated)):
        if missing := [name for name in names if name not in there]:
            raise KeyError(
                f"{where}.obs[{key!r}] has no perturbation {missing}; it has {_some(there)}."
            )
    return names


def _groups(
    cells: Sequence[Cells], groupby: str | None, wanted: str | Sequence[str] | None
) -> list[str]:
    if groupby is None:
        if wanted is not None:
            raise ValueError("group= was given without groupby=, the column that holds groups.")
        return [""]
    real, simulated = (_present(part.group) for part in cells)
    if wanted is None:
        if not real & simulated:
            raise ValueError(
                f"real and simulated share no group of {groupby!r}: {_some(real)} and "
                f"{_some(simulated)}."
            )
        return sorted(real & simulated)
    names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    if not names:
        raise ValueError("group is an empty list; pass None for all groups or name at least one.")
    for where, there in (("real", real), ("simulated", simulated)):
        if missing := [name for name in names if name not in there]:
            raise KeyError(f"{where}.obs[{groupby!r}] has no {missing}; it has {_some(there)}.")
    return names


def _present(values: np.ndarray) -> set[str]:
    return {value for value in values if value is not None}


def _some(names: Any, n: int = 8) -> str:
    values = sorted({str(name) for name in pd.unique(np.asarray(list(names), dtype=object))})
    return f"{values[:n]}{' …' if len(values) > n else ''}"
