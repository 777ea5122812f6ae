"""Reads signed gene sets, whatever their storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from cfm.data._matrix import get_matrix, row_blocks, to_dense

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.data import GeneVocabulary


def read_signed_sets(signed_sets: AnnData) -> sp.csr_matrix:
    """Signed sets in memory, ``(sets, genes)`` of −1, 0 and 1, whatever their storage."""
    blocks = [
        sp.csr_matrix(np.sign(np.nan_to_num(to_dense(block, np.float32))))
        for _, block in row_blocks(get_matrix(signed_sets))
    ]
    return sp.vstack(blocks, format="csr")


def aligned_sets(signed_sets: AnnData, vocabulary: GeneVocabulary) -> sp.csr_matrix:
    """Signed sets over the vocabulary, ``(sets, n_vocabulary)``."""
    alignment = vocabulary.align(signed_sets.var_names)
    matrix = read_signed_sets(signed_sets)[:, alignment.columns].tocoo()
    columns = alignment.positions[matrix.col]
    shape = (matrix.shape[0], len(vocabulary))
    return sp.csr_matrix((matrix.data, (matrix.row, columns)), shape=shape)
