"""In-silico reversal of genes in a profile, and the factor scores that compare it to drugs."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cfm.data import GeneAlignment, GeneVocabulary
    from cfm.models._base import PretrainedModel

#: What the effect of a reversed gene becomes: 0, or its negative.
Reversal = Literal["neutral", "flip"]


def reverse_genes(
    predict: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    effects: np.ndarray,
    genes: np.ndarray,
    folds: np.ndarray,
    mode: Reversal,
) -> np.ndarray:
    """Reverse genes together, and predict the others anew; see :meth:`CellPulse.simulate`.

    Parameters
    ----------
    predict
        :meth:`CellPulse.predict_hidden`.
    effects
        ``(1, n_vocabulary)`` a profile.
    genes
        Positions of the genes to reverse.
    folds
        ``(n_vocabulary,)`` part in which a gene is hidden, −1 = not predicted.
    mode
        What the effects of the genes become.
    """
    changed = effects.copy()
    changed[0, genes] *= 0.0 if mode == "neutral" else -1.0
    # nothing to reverse changes nothing
    if np.array_equal(changed, effects, equal_nan=True):
        return changed
    shift = np.zeros_like(effects)
    for fold in range(folds.max() + 1):
        hidden = (folds == fold) & ~np.isnan(effects)
        before, after = (
            np.tanh(odds / 2.0) * size
            for odds, size in (predict(x, hidden) for x in (effects, changed))
        )
        shift += np.where(hidden, after - before, 0.0)
    return np.asarray(changed + shift)


def gene_positions(
    vocabulary: GeneVocabulary, alignment: GeneAlignment, genes: Sequence[str]
) -> np.ndarray:
    """Return the positions of genes in the vocabulary, by any name that it can map.

    Raises
    ------
    KeyError
        If the vocabulary does not have a gene, or the data of ``alignment`` do not measure it.
    """
    try:
        found = [int(vocabulary.align([gene]).positions[0]) for gene in genes]
    except ValueError as error:
        raise KeyError(
            f"The model does not know all of {list(genes)}; it reverses genes, such as "
            f"{', '.join(vocabulary.genes[:3])} (model.vocabulary.genes)."
        ) from error
    absent = [g for g, p in zip(genes, found, strict=True) if p not in alignment.positions]
    if absent:
        raise KeyError(f"adata does not measure {absent}; what is not measured is not reversed.")
    return np.unique(found)


@torch.inference_mode()
def signature_scores(
    model: PretrainedModel, effects: Iterable[np.ndarray], *, batch_size: int = 64
) -> np.ndarray:
    """Return the factor scores of signatures in the model's gene-gene term.

    The scores of :class:`cfm.nn.LowRankLogistic`, from the directions of the strongest genes alone.
    Those of a signature with all signs turned are the negative, so that the cosine to another
    signature only changes its sign.

    Parameters
    ----------
    model
        A CellPulse.
    effects
        ``(n_vocabulary,)`` rows, one at a time: log2 fold changes or −1 and 1; ``NaN`` or 0
        for genes that are not part of it.
    batch_size
        Profiles at a time; the result does not depend on it.

    Returns
    -------
    ``(n, n_factors)`` float32 of unit length; 0 for a profile with no gene of the model.
    """
    model.module.eval()
    out = [np.empty((0, model.module.gene_factors.shape[1]), np.float32)]
    rows = iter(effects)
    while batch := list(islice(rows, batch_size)):
        tokens = model.tokenizer.encode(np.stack(batch)).to(model.device)
        z = model.module.linear_scores(tokens)[2].float().cpu().numpy()
        length = np.linalg.norm(z, axis=1, keepdims=True)
        out.append(np.where(length > 1e-9, z / np.maximum(length, 1e-9), 0.0))
    return np.concatenate(out)
