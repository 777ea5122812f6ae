"""From counts of cells to principal components, by means and loadings of reference cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import xxhash
from scipy import sparse

from cfm._adata import require_anndata
from cfm._arguments import checks_arguments
from cfm.data import GeneVocabulary
from cfm.data._counts import TARGET_SUM
from cfm.data._counts import CountReader as CellReader
from cfm.data._matrix import check_not_empty, check_unique_names, in_memory_frame
from cfm.models._base import check_column

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cfm.hub import Checkpoint

#: Arrays of a projection, which a checkpoint holds behind a prefix, beside a file of the genes.
_ARRAYS = ("abundance", "mean", "scale", "components", "cells")
PREFIX, _GENES_FILE = "projection.", "genes.txt"
#: Genes that the components are made of, and components.
N_GENES, N_COMPONENTS = 2000, 50
#: At least so many, where no more differ from chance.
_LEAST_COMPONENTS = 2
#: Cells that are fitted, and stored to compare new ones with, at most.
_FITTED, _STORED = 10_000, 1000
#: One cell in so many is held out of the fit, to learn how far a new cell lies from the others.
_HELD_OUT = 10
#: A cell is unknown if its k-th stored neighbour is farther than those of most held-out cells.
_NEIGHBOURS, _KNOWN = 5, 0.95
#: Penalty of the least-squares fit of components to the genes that are measured.
_RIDGE = 0.1
#: Scaled values are clipped here, as by ``sc.pp.scale(max_value=10)``.
_LARGEST = 10.0
#: Least share of the genes that data must measure.
_LEAST_SHARE = 0.1
_LEAST_GENES = 10
#: Cells at a time.
_BLOCK = 2048
_NO_GENES = (
    "adata has no genes, and raw counts are expected. A representation in obsm is read by a Pulsar "
    "that was trained on it: Pulsar.setup_anndata(adata, donor_key, use_rep=…)."
)
_REMEDY = "raw counts are expected: pass the layer that holds them with layer=."


@dataclass(frozen=True, eq=False, repr=False)
class CellProjection:
    """Principal components of cells, fitted on reference cells, for raw counts of any cells.

    A cell is normalised to 10,000 counts over the genes, ``log1p`` is taken, each gene is scaled
    by the mean and standard deviation that it has in the reference, and the cell is projected.
    What it gets depends on no other cell.

    Attributes
    ----------
    genes
        The genes, in the order of the data that were fitted.
    abundance
        ``(n_genes,)`` float32, mean share of each gene in the counts of a reference cell.
    mean, scale
        ``(n_genes,)`` float32, mean and standard deviation of a gene in the reference.
    components
        ``(n_genes, n_components)`` float32, orthonormal loadings.
    cells
        ``(n_stored, n_components)`` float32, some of the reference cells.
    radius
        Distance to the fifth of the stored cells that 95 % of held-out reference cells have at
        most.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_donors()
    >>> cfm.models.CellProjection.fit(cells)
    CellProjection(300 genes, 5 components, 1000 cells)
    """

    genes: GeneVocabulary
    abundance: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    cells: np.ndarray
    radius: float

    def __post_init__(self) -> None:
        n_genes, n_components = self.components.shape
        shapes = [(n_genes,)] * 3 + [(len(self.cells), n_components)]
        found = [np.shape(a) for a in (self.abundance, self.mean, self.scale, self.cells)]
        if len(self.genes) != n_genes or found != shapes or not len(self.cells):
            raise ValueError(
                f"A projection of {len(self.genes)} genes has components {(n_genes, n_components)} "
                f"and arrays {found}; they do not belong together."
            )
        if not (self.radius >= 0 and (self.scale > 0).all() and (self.abundance >= 0).all()):
            raise ValueError("A projection has a negative radius, scale or abundance.")

    def __repr__(self) -> str:
        return (
            f"CellProjection({len(self.genes)} genes, {self.n_components} components, "
            f"{len(self.cells)} cells)"
        )

    @property
    def n_components(self) -> int:
        """Number of components."""
        return int(self.components.shape[1])

    @classmethod
    @checks_arguments(n_genes=3)
    def fit(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        study_key: str | None = None,
        n_genes: int = N_GENES,
        n_components: int = N_COMPONENTS,
    ) -> Self:
        """Fit the components to reference cells.

        Parameters
        ----------
        adata
            Raw counts of cells by genes, any storage; of more than 10,000 cells so many are
            drawn, by their names.
        layer
            Layer with the counts instead of ``X``.
        study_key
            Column of ``obs`` with the study: each is brought to the same mean before components
            are fitted, so that they are of differences between cells and not between studies.
        n_genes
            Genes to take, the most variable ones.
        n_components
            Components at most: those are kept that explain more variance than the first one of
            the same values with each gene permuted (parallel analysis).

        Returns
        -------
        CellProjection

        Raises
        ------
        TypeError, KeyError, ValueError
            If ``adata`` is no AnnData, the layer or column does not exist, values are no counts
            or of bulk samples, names are not unique, or fewer than three cells or genes are
            expressed.
        """
        require_anndata(adata)
        check_not_empty(adata)
        check_unique_names(adata.obs_names, axis="obs")
        drawn = _by_name(adata.obs_names)[:_FITTED]
        place = np.sort(drawn)
        reader = _reader(adata, _genes_of(adata), layer)
        blocks = np.array_split(place, -(-len(place) // _BLOCK))
        counts = sparse.vstack([reader.read(rows) for rows in blocks], format="csr")
        counts = counts[np.searchsorted(place, drawn)]
        study = np.zeros(len(drawn), dtype=np.int64)
        if study_key is not None:
            check_column(adata, study_key)
            values = in_memory_frame(adata.obs)[study_key].astype(str).to_numpy()[drawn]
            study = np.unique(values, return_inverse=True)[1]
        total = _total(counts)
        counts, study, total = counts[total > 0], study[total > 0], total[total > 0]
        chosen = _most_variable(counts, total, study, n_genes)
        if counts.shape[0] < 3 or len(chosen) < 3:
            raise ValueError(
                f"Found {counts.shape[0]} cells with counts and {len(chosen)} genes that vary "
                "between them; at least 3 of each are needed to fit principal components."
            )
        counts = counts[:, chosen]
        expressed = _total(counts) > 0
        counts, study = counts[expressed], study[expressed]
        held_out = np.arange(len(study)) % _HELD_OUT == _HELD_OUT - 1
        values = _log_normalised(counts, np.full(counts.shape[0], TARGET_SUM))
        mean, scale, components = _principal(
            values[~held_out], study[~held_out], min(n_components, int((~held_out).sum()) - 1)
        )
        share = counts.multiply(1.0 / _total(counts)[:, None]).mean(axis=0)
        names = adata.var_names[chosen]
        made = cls(
            GeneVocabulary(list(names)),
            np.asarray(share, dtype=np.float32).ravel(),
            mean.astype(np.float32),
            scale.astype(np.float32),
            components.astype(np.float32),
            np.zeros((1, components.shape[1]), dtype=np.float32),
            0.0,
        )
        return made._with_cells(counts, held_out)

    def _with_cells(self, counts: sparse.csr_matrix, held_out: np.ndarray) -> Self:
        """Return the projection with some of the fitted cells, and how far new ones lie."""
        everything = np.arange(len(self.genes))
        known = self._project(counts[~held_out][:_STORED], everything)
        new = self._project(counts[held_out][:_STORED], everything) if held_out.any() else known
        made = replace(self, cells=known)
        return replace(made, radius=float(np.quantile(made.distance(new), _KNOWN)))

    def transform(self, adata: AnnData, layer: str | None = None) -> np.ndarray:
        r"""Project cells.

        Genes that ``adata`` does not have are missing, not zero: the components of a cell are the
        ridge fit to the genes that it has, :math:`z = (W_S^T W_S + \lambda I)^{-1} W_S^T x_S` with
        :math:`\lambda` = 0.1, and its counts are normalised to the part of 10,000 that these genes
        have in the reference.

        Parameters
        ----------
        adata
            Raw counts of cells by genes, any storage; read a few at a time.
        layer
            Layer with the counts instead of ``X``.

        Returns
        -------
        ``(n_cells, n_components)`` float32.

        Raises
        ------
        TypeError, KeyError
            If ``adata`` is no AnnData, or the layer does not exist.
        ValueError
            If too few of the genes are found, values are no counts, cells have none, or these are
            bulk samples.
        """
        require_anndata(adata)
        check_not_empty(adata)
        least = min(len(self.genes), max(_LEAST_GENES, round(_LEAST_SHARE * len(self.genes))))
        reader = _reader(adata, self.genes, layer, least)
        present = np.flatnonzero(reader.measured)
        rows = np.arange(adata.n_obs)
        reader.prefetch(rows)
        out = np.empty((adata.n_obs, self.n_components), dtype=np.float32)
        total = np.empty(adata.n_obs)
        for start in range(0, adata.n_obs, _BLOCK):
            part = rows[start : start + _BLOCK]
            counts = reader.read(part)
            total[part] = _total(counts)
            out[part] = self._project(counts, present)
        if (total == 0).any():
            raise ValueError(
                f"{int((total == 0).sum())} of {adata.n_obs} cells have no counts of the "
                f"{len(present)} genes of the model that were found; drop them with "
                "sc.pp.filter_cells(adata, min_counts=1)."
            )
        return out

    def distance(self, projected: np.ndarray) -> np.ndarray:
        """Return how far projected cells lie from the stored ones, ``(n_cells,)`` float32.

        Parameters
        ----------
        projected
            ``(n_cells, n_components)``, what :meth:`transform` returned.

        Returns
        -------
        Distances to the fifth of the nearest stored cells.
        """
        k = min(_NEIGHBOURS, len(self.cells)) - 1
        length = (self.cells**2).sum(axis=1)
        out = np.empty(len(projected), dtype=np.float32)
        for start in range(0, len(projected), _BLOCK):
            part = projected[start : start + _BLOCK]
            square = length - 2 * part @ self.cells.T + (part**2).sum(axis=1)[:, None]
            out[start : start + _BLOCK] = np.partition(square, k, axis=1)[:, k]
        return np.sqrt(np.maximum(out, 0.0))

    def unknown(self, projected: np.ndarray) -> np.ndarray:
        """Return which projected cells lie outside of the reference, ``(n_cells,)`` bool."""
        return self.distance(projected) > self.radius

    def found_share(self, adata: AnnData) -> float:
        """Return the share of the genes that ``adata`` measures."""
        return self.genes.align(adata.var_names, min_genes=0).found_share

    def _project(self, counts: sparse.csr_matrix, present: np.ndarray) -> np.ndarray:
        """Project counts ``(n, n_genes)``; ``present`` are the measured columns."""
        whole = len(present) == len(self.genes)
        share = 1.0 if whole else float(self.abundance[present].sum() / self.abundance.sum())
        target = np.full(counts.shape[0], TARGET_SUM * share)
        values = _log_normalised(counts if whole else counts[:, present], target)
        scaled = (values - self.mean[present]) / self.scale[present]
        loadings = self.components[present].astype(np.float64)
        inner = loadings.T @ loadings + _RIDGE * np.eye(self.n_components)
        fit = np.linalg.solve(inner, loadings.T).T
        return (np.clip(scaled, -_LARGEST, _LARGEST) @ fit).astype(np.float32)


def projection_contents(
    projection: CellProjection,
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
    """Return what a checkpoint holds of a projection: tensors, settings, and text files."""
    arrays = {PREFIX + name: torch.from_numpy(getattr(projection, name)) for name in _ARRAYS}
    genes = "\n".join(projection.genes.genes)
    return arrays, {"radius": projection.radius}, {_GENES_FILE: genes}


def stored_projection(checkpoint: Checkpoint, width: int) -> CellProjection | None:
    """Return the projection of a checkpoint, ``None`` if it has none.

    Raises
    ------
    ValueError
        If parts are missing or do not belong together, or the network reads another ``width``.
    """
    arrays = {
        name.removeprefix(PREFIX): tensor.float().numpy()
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(PREFIX)
    }
    if not arrays:
        return None
    radius = checkpoint.config.get("radius")
    try:
        if not isinstance(radius, int | float) or _GENES_FILE not in checkpoint.files:
            raise ValueError(f"no radius, or no {_GENES_FILE}")
        genes = GeneVocabulary(checkpoint.files[_GENES_FILE].splitlines())
        made = CellProjection(genes, **arrays, radius=float(radius))
        if made.n_components != width:
            raise ValueError(f"{made.n_components} components, but the network reads {width}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The projection of checkpoint {checkpoint.name!r} is damaged ({error}); download or "
            "save it again."
        ) from error
    return made


def check_counts(adata: AnnData, layer: str | None) -> None:
    """Check, in one pass, that cells hold raw counts of genes with names of their own.

    Raises
    ------
    KeyError, ValueError
        If the layer does not exist, names are not unique, or values are no counts.
    """
    reader = _reader(adata, _genes_of(adata), layer)
    reader.prefetch(np.arange(adata.n_obs))
    for start in range(0, adata.n_obs, _BLOCK):
        reader.read(np.arange(start, min(start + _BLOCK, adata.n_obs)))


def _genes_of(adata: AnnData) -> GeneVocabulary:
    check_unique_names(adata.var_names, axis="var")
    if not adata.n_vars:
        raise ValueError(_NO_GENES)
    return GeneVocabulary(list(adata.var_names))


def _reader(adata: AnnData, genes: GeneVocabulary, layer: str | None, least: int = 1) -> CellReader:
    if not adata.n_vars:
        raise ValueError(_NO_GENES)
    return CellReader(adata, genes, layer=layer, min_genes=least, remedy=_REMEDY)


def _by_name(names: pd.Index) -> np.ndarray:
    """Return rows in an order that follows from the names of the cells, as if at random."""
    return np.argsort([xxhash.xxh3_64_intdigest(str(n).encode()) for n in names], kind="stable")


def _total(counts: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(axis=1)).ravel()


def _log_normalised(counts: sparse.csr_matrix, target: np.ndarray) -> np.ndarray:
    """Return ``log1p`` of counts brought to a sum, ``(n, n_genes)`` float64."""
    total = _total(counts)
    values = counts.toarray()
    values *= (target / np.where(total > 0, total, 1.0))[:, None]
    return np.log1p(values, out=values)


def _most_variable(
    counts: sparse.csr_matrix, total: np.ndarray, study: np.ndarray, n_genes: int
) -> np.ndarray:
    """Return the most variable genes on the log scale within studies, in their order."""
    log = counts.multiply((TARGET_SUM / total)[:, None]).tocsr()
    log.data = np.log1p(log.data)
    variance = np.zeros(counts.shape[1])
    for k in np.unique(study):
        own = log[study == k]
        mean = np.asarray(own.mean(axis=0)).ravel()
        square = np.asarray(own.multiply(own).mean(axis=0)).ravel()
        variance += (square - mean**2) * (own.shape[0] / counts.shape[0])
    n_expressing = np.diff(counts.tocsc().indptr)
    variance[n_expressing < min(3, counts.shape[0])] = 0.0
    order = np.argsort(-variance, kind="stable")[:n_genes]
    return np.sort(order[variance[order] > 1e-12])


def _principal(
    values: np.ndarray, study: np.ndarray, n_components: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean and spread of each gene, and components of what differs within studies."""
    means = np.stack([values[study == k].mean(axis=0) for k in np.unique(study)])
    centred = values - means[np.unique(study, return_inverse=True)[1]]
    scale = centred.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1.0)
    centred = np.clip(centred / scale, -_LARGEST, _LARGEST)
    variance, vectors = np.linalg.eigh(centred.T @ centred)
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(centred, axis=0)
    chance = np.linalg.eigvalsh(shuffled.T @ shuffled)[-1]
    n_components = min(n_components, max(_LEAST_COMPONENTS, int((variance > chance).sum())))
    components = vectors[:, ::-1][:, : min(n_components, values.shape[1])]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(components.shape[1])])
    return means.mean(axis=0), scale, components
