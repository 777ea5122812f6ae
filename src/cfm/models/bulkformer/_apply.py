"""How the trained network is applied to an AnnData: blocks of samples, precision, genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from cfm.models._precision import Precision
from cfm.models.bulkformer._constants import MISSING
from cfm.models.bulkformer._pretrain import Trainable
from cfm.models.bulkformer._reading import align_expression, expression_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from cfm.data import GeneAlignment


class Applicable(Trainable):
    """A BulkFormer that reads samples a few at a time."""

    def _align(self, adata: AnnData, layer: str | None) -> GeneAlignment:
        self.require_genes()
        self.module.eval()
        return align_expression(adata, self.vocabulary, layer=layer)

    def _positions(self, genes: Sequence[str]) -> np.ndarray:
        """Return the places of genes in the vocabulary."""
        if isinstance(genes, str):
            raise TypeError(f"genes={genes!r} is a single string; give a list of gene names.")
        place = self.vocabulary.genes.get_indexer(pd.Index(list(genes)))
        unknown = [str(g) for g, p in zip(genes, place, strict=True) if p < 0]
        if unknown or not len(place):
            raise KeyError(
                f"The model does not know {unknown[:5]}; it knows "
                f"{', '.join(self.vocabulary.genes[:3])}, … (model.vocabulary.genes)."
            )
        return place.astype(np.int64)

    def _blocks(
        self,
        adata: AnnData,
        alignment: GeneAlignment,
        layer: str | None,
        batch_size: int,
        mask: np.ndarray | None = None,
    ) -> Iterator[tuple[slice, np.ndarray, torch.Tensor]]:
        """Yield ``(rows, values as in adata with NaN = missing, the model's input)``."""
        at_once = max(1, self.module.tokens_at_once() // len(self.vocabulary))
        for block, values in expression_blocks(adata, layer=layer, n_rows=batch_size):
            if mask is not None:
                values[mask[block]] = np.nan
            for start in range(0, len(values), at_once):
                part = values[start : start + at_once]
                first = block.start + start
                x = np.nan_to_num(alignment.apply(part), nan=MISSING)
                yield slice(first, first + len(part)), part, torch.from_numpy(x).to(self.device)

    def _encoded(
        self,
        adata: AnnData,
        alignment: GeneAlignment,
        layer: str | None,
        batch_size: int,
        precision: Precision,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the gene embeddings of a few samples at a time."""
        dtype = self.inference_dtype(precision)
        for rows, _, x in self._blocks(adata, alignment, layer, batch_size):
            yield rows, self.module.encode(x, dtype=dtype)

    def _predicted(
        self,
        adata: AnnData,
        alignment: GeneAlignment,
        layer: str | None,
        mask: np.ndarray | None,
        batch_size: int,
        precision: Precision,
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield ``(rows, values with NaN = missing, predicted log TPM of the vocabulary)``."""
        dtype = self.inference_dtype(precision)
        for rows, values, x in self._blocks(adata, alignment, layer, batch_size, mask):
            with torch.inference_mode():
                # The correction of the mean may push a prediction below nothing at all.
                predicted = self.module.predict(x, dtype=dtype).clamp(min=0.0)
            yield rows, values, predicted.cpu().numpy()
