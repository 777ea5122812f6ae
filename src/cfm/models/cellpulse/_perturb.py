"""In-silico reversal of genes in a profile, and what the rest of it is then expected to do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np
from anndata import AnnData
from scvi import settings
from scvi.utils import track

from cfm.data._warn import warn_user
from cfm.models.cellpulse._effects import align_effects, effect_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfm.data import GeneAlignment
    from cfm.models.cellpulse._model import CellPulse

Reversal = Literal["neutral", "flip"]


def reversed_profiles(
    model: CellPulse,
    adata: AnnData,
    genes: Sequence[str],
    *,
    layer: str | None,
    mode: Reversal,
    n_folds: int,
    seed: int,
) -> AnnData:
    """Reverse genes and predict the others anew; see :meth:`CellPulse.simulate`."""
    alignment = align_effects(adata, model.vocabulary, layer=layer)
    place = _positions(model, alignment, genes)
    fold = _folds(model, place, n_folds, seed)
    out = np.empty((adata.n_obs, len(alignment.columns)), dtype=np.float32)
    unmeasured = 0
    for row, effects in track(
        _rows(adata, alignment, layer),
        total=adata.n_obs,
        description="Reversing genes",
        style="tqdm",
        disable=settings.verbosity > logging.INFO,
    ):
        changed = effects.copy()
        changed[0, place] *= 0.0 if mode == "neutral" else -1.0
        unmeasured += int(np.isnan(effects[0, place]).any())
        answer = changed
        # Nothing to reverse changes nothing, and the network need not be asked.
        if not np.array_equal(changed, effects, equal_nan=True):
            answer = changed + _shift(model, effects, changed, fold)
        out[row] = answer[0, alignment.positions]
    if unmeasured:
        warn_user(
            f"{unmeasured} of {adata.n_obs} contrasts do not measure all of {list(genes)}; what is "
            "not measured is not reversed there."
        )
    return AnnData(out, obs=adata.obs[[]], var=adata.var[[]].iloc[alignment.columns])


def _shift(
    model: CellPulse, effects: np.ndarray, changed: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Return the change of the expected effect of each gene, 0 where it is not asked for.

    A fold of the genes is hidden in both profiles, and predicted from the others.
    """
    shift = np.zeros_like(effects)
    for i in range(fold.max() + 1):
        hidden = (fold == i) & ~np.isnan(effects)
        expected = [
            np.tanh(odds / 2.0) * size
            for odds, size in (model.predict_hidden(x, hidden) for x in (effects, changed))
        ]
        shift += np.where(hidden, expected[1] - expected[0], 0.0)
    return shift


def _folds(model: CellPulse, place: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Spread the vocabulary over folds, −1 = reversed itself; what is measured has no say."""
    n = len(model.vocabulary)
    fold = np.random.default_rng(seed).permutation(np.arange(n) % min(n_folds, n))
    fold[place] = -1
    return fold


def _positions(model: CellPulse, alignment: GeneAlignment, genes: Sequence[str]) -> np.ndarray:
    """Return the places of genes in the vocabulary, by any name that it can map."""
    try:
        found = [int(model.vocabulary.align([gene]).positions[0]) for gene in genes]
    except ValueError as error:
        raise KeyError(
            f"The model does not know all of {list(genes)}; it reverses genes, such as "
            f"{', '.join(model.vocabulary.genes[:3])} (model.vocabulary.genes)."
        ) from error
    absent = [g for g, p in zip(genes, found, strict=True) if p not in alignment.positions]
    if absent:
        raise KeyError(f"adata does not measure {absent}; what is not measured is not reversed.")
    return np.unique(found)


def _rows(
    adata: AnnData, alignment: GeneAlignment, layer: str | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each contrast on the vocabulary, ``(1, n_vocabulary)``."""
    for rows, block in effect_blocks(adata, layer=layer):
        for i, effects in enumerate(alignment.apply(block)):
            yield rows.start + i, effects[None]
