"""UCE: the public class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from cfm._arguments import checks_arguments
from cfm.data._matrix import check_counts, get_matrix, row_blocks
from cfm.data._units import check_single_cells
from cfm.models._precision import Precision
from cfm.models.uce._core import UCECore
from cfm.models.uce._tokens import SAMPLE_SIZE, SentenceMaker

if TYPE_CHECKING:
    from anndata import AnnData


#: Tokens that the layers work on at a time.
_TOKENS_AT_ONCE = 16_384


class UCE(UCECore):
    """Universal cell embeddings: single cells of any tissue, from counts.

    A cell is read as a sentence: genes drawn by how much they are expressed, laid out along their
    chromosomes, each given by an embedding of the protein it encodes. PULSAR reads what comes out.

    Parameters
    ----------
    genes
        Table of the genes that the model knows: index = symbols, columns ``token``,
        ``chromosome`` (the token of the gene's chromosome) and ``start``. Without it the model
        knows tokens only.
    size
        Sizes of the network, by default those of the published 33-layer model.
    seed
        Seed of the initial weights, for a model that is not loaded.

    Attributes
    ----------
    module
        The network; ``model.module(tokens, mask)`` returns the outputs of all tokens and the cell
        embedding.
    vocabulary
        Genes that it knows, in the order of ``genes``; ``None`` without a table.

    Notes
    -----
    Rosen et al., Universal Cell Embeddings, bioRxiv 2023.11.28.568918; released weights are read
    by :meth:`from_pretrained` and not trained further. A cell's sentence is drawn from its counts
    and a seed, so its embedding does not depend on other cells, and it is not padded; the
    published code pads sentences and lets padding take part in attention.

    Examples
    --------
    >>> import cfm, pandas as pd
    >>> genes = pd.DataFrame(
    ...     {"token": [4, 5], "chromosome": [6, 6], "start": [10, 20]}, index=["A", "B"]
    ... )
    >>> from cfm.models.uce import UCESize
    >>> size = UCESize(n_tokens=7, token_dim=8, dim=8, n_heads=2, n_layers=1, ff_dim=8)
    >>> cfm.models.UCE(genes, size=size).vocabulary
    GeneVocabulary(2 genes: A, B, …)
    """

    @checks_arguments()
    def get_sentences(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        sample_size: int = SAMPLE_SIZE,
        seed: int = 0,
    ) -> list[np.ndarray]:
        """Draw the token sentence of each cell.

        Parameters
        ----------
        adata
            Cells by genes, counts; the model's own data if not given.
        layer
            Layer with the counts instead of ``X``.
        sample_size
            Genes to draw for a cell, with replacement.
        seed
            Seed. The draw depends on it and on the cell's counts of the model's genes only.

        Returns
        -------
        For each cell its tokens, ``(n,)`` int64: the cell's token, then for each chromosome its
        token, the genes drawn on it by their start, and an end.

        Raises
        ------
        KeyError
            If the layer does not exist.
        ValueError
            If the model has no gene table, the matrix does not hold counts, too few genes are
            found, or a cell expresses none of them.
        """
        adata = self._adata_or_own(adata)
        alignment = self._align(adata)
        assert self.genes is not None
        maker = SentenceMaker.from_table(self.genes, sample_size)
        matrix = get_matrix(adata, layer=layer)
        where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        check_counts(matrix, where=where)
        check_single_cells(matrix, where)
        sentences = []
        for rows, block in row_blocks(matrix):
            counts = sparse.csr_matrix(block)[:, alignment.columns]
            counts.sum_duplicates()
            for i in range(counts.shape[0]):
                part = slice(counts.indptr[i], counts.indptr[i + 1])
                genes = alignment.positions[counts.indices[part]]
                try:
                    sentences.append(maker.sentence(genes, counts.data[part], seed))
                except ValueError as error:
                    raise ValueError(
                        f"In the cell {adata.obs_names[rows.start + i]!r} {error}; drop such "
                        "cells: sc.pp.filter_cells(adata, min_genes=200)."
                    ) from error
        return sentences

    @checks_arguments()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        sample_size: int = SAMPLE_SIZE,
        seed: int = 0,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Embed cells.

        Parameters
        ----------
        adata, layer, sample_size, seed
            As for :meth:`get_sentences`.
        batch_size
            Cells at a time, fewer where memory asks for it; the result does not depend on it.
        precision
            ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the processor is fast at
            it and a trial, made once per weights, keeps embeddings at a cosine similarity of
            0.999 to float32.

        Returns
        -------
        ``(n, output_dim)`` float32, rows of length 1.

        Raises
        ------
        KeyError, ValueError
            As :meth:`get_sentences`.
        """
        sentences = self.get_sentences(adata, layer=layer, sample_size=sample_size, seed=seed)
        self.module.eval()
        dtype = self.inference_dtype(precision)
        stack = self.module.prepared(dtype)
        longest = max(len(s) for s in sentences)
        at_once = max(1, min(batch_size, _TOKENS_AT_ONCE // longest))
        out = np.empty((len(sentences), self.size.output_dim), dtype=np.float32)
        for start in range(0, len(sentences), at_once):
            part = [torch.from_numpy(s) for s in sentences[start : start + at_once]]
            embedded = self.module.embed(part, stack=stack)
            out[start : start + at_once] = embedded.cpu().numpy()
        return out
