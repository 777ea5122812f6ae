"""Lingshu-Cell and perturbations: new cells of the same group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfm._arguments import BELOW_1, Range, checks_arguments
from cfm.data._matrix import check_unique_names, in_memory_frame
from cfm.models._precision import Precision
from cfm.models.lingshu._frozen import FREE, read_frozen
from cfm.models.lingshu._generate import Generating
from cfm.models.lingshu._quantiser import Dequantise
from cfm.models.lingshu._reading import CountReader
from cfm.models.lingshu._sampler import Guidance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


Start = Literal["cell", "noise"]


class Perturbable(Generating):
    """A Lingshu-Cell that answers for perturbations."""

    @checks_arguments(guidance=Range(-1), guidance_floor=BELOW_1)
    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        start: Start = "cell",
        guidance: float | None = None,
        guidance_floor: float = 1e-3,
        n_steps: int | None = None,
        keep_genes: Sequence[str] | None = None,
        frozen: Any = None,
        features: pd.Series | None = None,
        dequantise: Dequantise = "lower",
        precision: Precision = "float32",
    ) -> AnnData:
        """Generate a perturbed cell for each unperturbed one, with its source and covariates.

        From ``"noise"``, the new cells are of the group of the old ones, not those same cells: of
        each only its conditions are used, its depth if the model knows depths, and the counts of
        ``keep_genes``. From the ``"cell"``, each is asked what it would have been: the model says
        with which random numbers it would have made the old cell, and makes the new one with
        these. A gene that is high for a cell of its kind stays high for one, and what the
        perturbation does not change stays nearly as it was.

        Parameters
        ----------
        adata
            Unperturbed cells by genes, raw counts. Genes of the model that it lacks are generated.
        perturbation
            Parts of the perturbation, without order; also combinations that were not in training.
        layer
            Layer with the counts instead of ``X``.
        groupby
            Column of ``obs`` with the sources, where the column that was registered is not there.
        batch_size
            Cells that are held at a time; the result does not depend on it.
        seed
            Each cell is drawn from this and its name.
        start
            ``"cell"`` or ``"noise"``, as published; see above.
        guidance, guidance_floor, n_steps, frozen, features, dequantise, precision
            As for :meth:`generate`; ``frozen`` tables have a row per cell of ``adata``.
        keep_genes
            Genes, by the names of ``adata``, whose counts are taken from the old cell and kept.

        Returns
        -------
        AnnData, cells by the genes of the model, CSR int32 counts; genes by the names that
        ``adata`` has for them.

        Raises
        ------
        KeyError
            If the model does not know the perturbation or a source, or a gene to keep is not
            measured or not known to it.
        ValueError
            If there is no cell, values are no counts, or the model knows no perturbations.
        """
        if isinstance(perturbation, str):
            raise TypeError(f"perturbation={perturbation!r} is one text; expected a list of parts.")
        if adata.n_obs == 0:
            raise ValueError("adata has no cell to start from; pass at least one.")
        check_unique_names(adata.obs_names, axis="obs")
        if self.levels.perturbation_key is None:
            raise ValueError(
                "The model was trained without perturbation_key=, so it knows no perturbations."
            )
        n, obs = adata.n_obs, in_memory_frame(adata.obs)
        reader = CountReader(adata, self.vocabulary, layer)
        depth = np.empty(n, dtype=np.float32)
        for first in range(0, n, 512):
            rows = np.arange(first, min(first + 512, n))
            depth[rows] = reader.tokens(rows)[1]
        conditions = self._numbered(
            n,
            source=self._sources(obs, groupby),
            perturbation=np.full(n, "+".join(perturbation), dtype=object),
            covariates=self._covariates(obs),
            features=features,
            depth=np.where(depth > 0, depth, np.nan) if self.size.depth else None,
        )
        guidance, n_steps = self._sampling(conditions, guidance, n_steps)
        origin = None
        if start == "cell":
            before = conditions.control()

            def observed(rows: slice) -> np.ndarray:
                return reader.counts(np.arange(rows.start, rows.stop))

            origin = observed, before
        given = read_frozen(frozen, n, self.vocabulary)
        blocks = self._blocks(
            [str(name) for name in adata.obs_names],
            conditions,
            given if keep_genes is None else _keeping(given, reader, adata, keep_genes),
            guidance=Guidance(guidance, guidance_floor),
            n_steps=n_steps,
            method=dequantise,
            batch_size=batch_size,
            precision=precision,
            seed=seed,
            origin=origin,
        )
        names = self.vocabulary.genes.to_numpy(dtype=object, copy=True)
        alignment = reader.alignment
        names[alignment.positions] = adata.var_names[alignment.columns]
        return AnnData(
            sparse.vstack(list(blocks), format="csr"),
            obs=obs[[]],
            var=pd.DataFrame(index=pd.Index(names)),
        )

    def _sources(self, obs: pd.DataFrame, groupby: str | None) -> np.ndarray | None:
        """Return the source of each cell."""
        key = self.levels.source_key
        if key is None:
            return None
        column = key if key in obs else groupby
        if column is None or column not in obs:
            raise KeyError(
                f"The model needs the source of each cell: adata.obs has no column {key!r}, which "
                "it was trained with; add it, or name another with groupby=."
            )
        return obs[column].astype(str).to_numpy(dtype=object)

    def _covariates(self, obs: pd.DataFrame) -> pd.DataFrame | None:
        """Return the covariates that ``obs`` has; the others are unknown."""
        found = [key for key in self.levels.covariates if key in obs]
        return obs[found].astype(str) if found else None


def _keeping(
    frozen: Callable[[slice], np.ndarray],
    reader: CountReader,
    adata: AnnData,
    genes: Sequence[str],
) -> Callable[[slice], np.ndarray]:
    """Add counts of the old cells to those that are given."""
    alignment = reader.alignment
    place = dict(zip(adata.var_names[alignment.columns], alignment.positions, strict=True))
    if isinstance(genes, str):
        raise TypeError(f"keep_genes={genes!r} is a single string; give a list of gene names.")
    unknown = [g for g in genes if g not in place]
    if unknown:
        raise KeyError(
            f"keep_genes names {unknown[:5]}, which are not both measured and known to the model."
        )
    kept = np.array([place[g] for g in genes], dtype=np.int64)

    def read(rows: slice) -> np.ndarray:
        out = frozen(rows)
        if rows.stop > rows.start and len(kept):
            counts = reader.counts(np.arange(rows.start, rows.stop))[:, kept]
            out[:, kept] = np.where(out[:, kept] == FREE, counts, out[:, kept])
        return out

    return read
