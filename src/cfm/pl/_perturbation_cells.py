"""Real and simulated cells side by side: which they are, which genes they share, in which units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfm._adata import params_of
from cfm._arguments import check_layer
from cfm._fields import SIMULATED, SIMULATED_BY, SIMULATED_FROM, SIMULATION
from cfm._units import LIBRARY, decide_units, units_of
from cfm.pl import _figure as fig

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

    def rows(self, level: str | Sequence[str], groups: Sequence[str] = ()) -> np.ndarray:
        """Row numbers of a perturbation or several, in some groups or in all."""
        chosen = np.isin(self.level, [level] if isinstance(level, str) else list(level))
        if any(groups):
            chosen &= np.isin(self.group, list(groups))
        return np.flatnonzero(chosen)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Log expression of some rows, ``(rows, n)`` float64; of counts log1p CP10k of ``n``."""
        unique, place = np.unique(rows, return_inverse=True)  # a file gives each row once, in order
        values = fig.stored_rows(self._matrix, unique)[:, self.columns]
        dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
        dense = dense.astype(np.float64)
        if self.counts:
            total = dense.sum(axis=1, keepdims=True)
            dense = np.log1p(dense * (LIBRARY / np.where(total > 0, total, 1.0)))
        return dense[place]

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Mean log expression of some rows, ``(n,)``, read a few at a time."""
        starts = range(0, len(rows), _BLOCK)
        return sum(self.read(rows[i : i + _BLOCK]).sum(axis=0) for i in starts) / len(rows)

    def blocks(self, rows: np.ndarray) -> Iterator[Any]:
        """Yield rows of all genes as they are stored."""
        for start in range(0, len(rows), _BLOCK):
            yield fig.stored_rows(self._matrix, rows[start : start + _BLOCK])

    @property
    def _matrix(self) -> Any:
        return self.adata.X if self.layer is None else self.adata.layers[self.layer]


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

    def effects(self, perturbation: str, group: str) -> tuple[np.ndarray, np.ndarray]:
        """Return observed and predicted change of mean log expression, ``(genes,)`` each.

        The observed one against the controls; the predicted one against what the same method made
        of the control if it did, else against the observations that it started from, else the
        controls.

        Raises
        ------
        ValueError
            If one of the three kinds of cells is missing.
        """
        real, simulated = self.real, self.simulated
        observed = real.rows(perturbation, [group])
        control = real.rows(self.control, [group])
        made = simulated.rows(perturbation, [group])
        found = {"observed": observed, "control": control, "simulated": made}
        for name, rows in found.items():
            if not len(rows):
                place = f" in group {group!r}" if group else ""
                raise ValueError(
                    f"There are no {name} cells of {perturbation!r}{place}; leave it out with "
                    "perturbation=, or pass simulated cells without it."
                )
        base, start = real, control
        if len(own := simulated.rows(self.control, [group])):
            base, start = simulated, own
        elif SIMULATED_FROM in simulated.adata.obs:
            names = simulated.adata.obs[SIMULATED_FROM].astype(str).to_numpy()[made]
            source = real.adata.obs_names.get_indexer(names)
            start = source if np.isin(source, control).all() else control
        return real.mean(observed) - real.mean(control), simulated.mean(made) - base.mean(start)


def read_screen(
    real: AnnData,
    simulated: AnnData,
    *,
    key: str | None,
    control: str | None,
    perturbation: str | Sequence[str] | None,
    groupby: str | None,
    layer: str | None,
    units: Units | Mapping[str, Units],
    gene_symbols: str | None = None,
) -> Screen:
    """Bring real and simulated cells together; see :func:`cfm.pl.perturbation_effect`.

    Raises
    ------
    TypeError
        If one of them is no AnnData.
    KeyError
        If a column, level or layer does not exist.
    ValueError
        If it is not said what was done to the cells, they share no gene, values are not finite, or
        units differ or cannot be decided.
    """
    for adata in (real, simulated):
        fig.require_anndata(adata)
    record = params_of(simulated.uns, SIMULATION)
    key, control = key or record.get("key"), control or record.get("control")
    if key is None or control is None:
        raise ValueError(
            f"key={key!r} and control={control!r}: both are needed, and simulated.uns"
            f"[{SIMULATION!r}] does not record them; pass the column of obs with the perturbation "
            "and its level for cells that were left alone."
        )
    layer = record.get("layer") if layer is None else layer
    check_layer(real, layer, "real")
    names, columns, n_unpredicted = _shared_genes(real, simulated)
    if gene_symbols is not None:
        if gene_symbols not in real.var:
            raise KeyError(f"real.var has no column {gene_symbols!r}; it has {list(real.var)}.")
        names = real.var[gene_symbols].astype(str).to_numpy(dtype=object)[columns[0]]
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
    both = _in_both([part.level for part in cells], f"perturbation of {key!r}", control)
    perturbations = fig.pick("perturbation", perturbation, both, "both real and simulated")
    groups = _in_both([part.group for part in cells], f"group of {groupby!r}")
    counts = _hold_counts(cells, [control, *perturbations], units)
    by = sorted(set(map(str, simulated.obs[SIMULATED_BY]))) if SIMULATED_BY in simulated.obs else []
    return Screen(
        real=replace(cells[0], counts=counts),
        simulated=replace(cells[1], counts=counts),
        control=control,
        perturbations=perturbations,
        groups=groups,
        genes=names,
        n_unpredicted=n_unpredicted,
        model=", ".join(by),
    )


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
    shown = np.flatnonzero(both & predicted[places])
    if not len(shown):
        raise ValueError(
            f"simulated.var[{SIMULATED!r}] marks no gene of real as predicted; is this the "
            "right model for these genes?"
        )
    names = real.var_names[shown].to_numpy(dtype=object)
    return names, (shown, places[shown]), int(both.sum() - len(shown))


def _column(adata: AnnData, column: str | None, name: str) -> np.ndarray:
    """Return a column as text, ``None`` where it is not given; empty text without a column."""
    if column is None:
        return np.full(adata.n_obs, "", dtype=object)
    if column not in adata.obs:
        raise KeyError(f"{name}.obs has no column {column!r}; it has {list(adata.obs)}.")
    values = adata.obs[column]
    return values.astype(str).astype(object).where(values.notna(), None).to_numpy(dtype=object)


def _in_both(values: Sequence[np.ndarray], what: str, control: str | None = None) -> list[str]:
    """Return what is in both real and simulated cells, but not the control."""
    real, simulated = ({v for v in part if v is not None and v != control} for part in values)
    if not real & simulated:
        raise ValueError(
            f"real and simulated share no {what}: {_some(real)} and {_some(simulated)}."
        )
    return sorted(real & simulated)


def _some(names: Any, n: int = 8) -> str:
    values = sorted(set(map(str, pd.unique(np.asarray(list(names), dtype=object)))))
    return f"{values[:n]}{' …' if len(values) > n else ''}"
