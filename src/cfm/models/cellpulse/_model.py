"""CellPulse: the public class, and what a trained one answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from cfm._arguments import checks_arguments
from cfm.models.cellpulse._constants import DOWN, PADDING, UP
from cfm.models.cellpulse._explain import VirusExplainer
from cfm.models.cellpulse._perturb import Reversal, reversed_profiles
from cfm.models.cellpulse._tokens import ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData


class CellPulse(VirusExplainer):
    """Foundation model of differential-expression profiles of viral infection.

    A profile is a contrast, infected against matched control. It is read as its strongest
    effects: each a token of gene, direction and magnitude. Pretraining hides a part of the
    directions and magnitudes and predicts them from the rest; a classifier on top names the
    virus.

    Parameters
    ----------
    adata
        Contrasts (rows) by genes, ``X`` = log2 fold changes with ``NaN`` = not measured,
        registered with :meth:`setup_anndata`; see :func:`cfm.pp.contrasts`.
    signed_sets
        Gene sets with a direction per gene, sets by genes, ``X`` of −1, 0, 1: up and down lists
        of published contrasts. They widen what the model knows of genes.
    vocabulary
        Gene symbols that the model is to know; by default ``adata.var_names``.
    size
        Name of a size (``"mini"``, ``"small"``, ``"base"``, ``"published"``) or a
        ``CellPulseSize``.
    seed
        Seed of the initial weights.
    **sizes
        Single numbers to change in the size: ``n_tokens``, ``n_factors``, ``dim``, ``n_layers``,
        ``n_heads``, ``ff_mult``, ``dropout``, ``attention_dropout``, ``learn_gene_embedding``.

    Notes
    -----
    An independent implementation. Of the published CellPulse (bioRxiv 2026, Wuhan Institute of
    Virology and Institute of Software, CAS) only the abstract is public; its authors have filed a
    patent application ("method for disease diagnosis and drug discovery based on modeling of
    large-scale gene expression data"). The abstract fixes the input, that direction and magnitude
    are both modelled, a direction-aware attention, no injected prior knowledge, and the tasks; the
    form of each is ours.

    Examples
    --------
    >>> import cfm
    >>> model = cfm.models.CellPulse.from_pretrained("cellpulse-virus")
    """

    @checks_arguments()
    @torch.inference_mode()
    def get_latent_representation(
        self, adata: AnnData | None = None, *, layer: str | None = None, batch_size: int = 64
    ) -> np.ndarray:
        """Embed contrasts.

        Parameters
        ----------
        adata
            Contrasts by genes, any gene order; need not be registered. The model's own data if
            not given.
        layer
            Layer with the log2 fold changes instead of ``X``.
        batch_size
            Contrasts at a time; the result does not depend on it.

        Returns
        -------
        ``(n, dim)`` float32, the output of the summary token. A contrast in which nothing moves
        has the embedding of an empty profile.
        """
        adata = self._adata_or_own(adata)
        self.module.eval()
        out = np.empty((adata.n_obs, self.module.dim), dtype=np.float32)
        for rows, _, tokens in self.encode_blocks(adata, layer=layer, batch_size=batch_size):
            out[rows] = self.module.encode(tokens.to(self.device)).summary.float().cpu().numpy()
        return out

    @torch.inference_mode()
    def get_attention(
        self, adata: AnnData | None = None, *, layer: str | None = None
    ) -> Iterator[tuple[pd.Index, np.ndarray]]:
        """Yield the attention maps of contrasts, one contrast at a time.

        Parameters
        ----------
        adata
            Contrasts by genes; the model's own data if not given.
        layer
            Layer with the log2 fold changes instead of ``X``.

        Yields
        ------
        genes
            ``(n + 1,)`` names of the tokens; the first is ``"<summary>"``.
        weights
            ``(layers, heads, n + 1, n + 1)`` float32; rows (queries) sum to 1.
        """
        adata = self._adata_or_own(adata)
        self.module.eval()
        for _, _, tokens in self.encode_blocks(adata, layer=layer, batch_size=1):
            weights = self.module.attention(tokens.to(self.device))[0].float().cpu().numpy()
            n = int((tokens.state[0] != PADDING).sum())  # an empty profile still has one column
            genes = self.vocabulary.genes[tokens.gene[0, :n].numpy()]
            yield genes.insert(0, "<summary>"), weights[..., : n + 1, : n + 1]

    @torch.inference_mode()
    def get_gene_factors(self) -> tuple[pd.Index, np.ndarray]:
        """Return the linear gene-gene term: genes and their factors.

        Returns
        -------
        genes
            ``(n_genes,)`` the vocabulary.
        factors
            ``(n_genes, n_factors)`` float32; the inner product of two rows is how strongly the
            model expects the two genes to move together (> 0) or against each other (< 0).
        """
        return self.vocabulary.genes, self.module.scaled_factors().float().cpu().numpy()

    @torch.inference_mode()
    def predict_hidden(
        self, effects: np.ndarray, hidden: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict direction and size of hidden effects from the others.

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)`` log2 fold changes in the order of the vocabulary, ``NaN`` = not
            measured. Values at hidden places are not read.
        hidden
            ``(n, n_vocabulary)`` bool, the genes asked for.

        Returns
        -------
        ``(n, n_vocabulary)`` float32 log-odds of up against down, and expected absolute log2FC;
        ``NaN`` where nothing was asked.

        Raises
        ------
        ValueError
            If a shape is not that.
        """
        shape = (len(effects), len(self.vocabulary))
        if effects.shape != shape or hidden.shape != shape:
            raise ValueError(
                f"effects is {effects.shape} and hidden {hidden.shape}; expected {shape}, a column "
                "for each gene of the vocabulary."
            )
        self.module.eval()
        odds = np.full(effects.shape, np.nan, dtype=np.float32)
        size = np.full(effects.shape, np.nan, dtype=np.float32)
        for i in range(len(effects)):
            asked = np.flatnonzero(hidden[i])
            row = np.where(hidden[i], np.nan, effects[i])[None]
            tokens = ask(self.tokenizer.encode(row), asked).to(self.device)
            logits, magnitude = self.module.predict_tokens(self.module.encode(tokens))
            answer = slice(tokens.gene.shape[1] - len(asked), None)
            asked_logits = logits[0, answer].float().cpu().numpy()
            odds[i, asked] = asked_logits[:, UP] - asked_logits[:, DOWN]
            size[i, asked] = np.expm1(magnitude[0, answer].float().cpu().numpy().clip(0.0, 4.0))
        return odds, size

    @checks_arguments(n_folds=2)
    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        mode: Reversal = "neutral",
        n_folds: int = 5,
    ) -> AnnData:
        """Reverse genes of contrasts, and say what the other effects would then be.

        The effect of each of the genes is set to 0 (``mode="neutral"``: the infection no longer
        moves it) or to its negative (``"flip"``). The other genes are split into ``n_folds``
        parts at random; each part is hidden in the profile before and after, and predicted from
        what is left of it (:meth:`predict_hidden`). The difference between the two expected
        effects, tanh(log-odds / 2) times the expected size, is added to the measured effect. So
        nothing changes where nothing was reversed. This is what the model has learned of genes
        that move together, not an effect that was measured or is known to be causal.

        Parameters
        ----------
        adata
            Contrasts by genes, log2 fold changes with ``NaN`` = not measured.
        perturbation
            Genes to reverse together, symbols or Ensembl ids.
        layer
            Layer with the log2 fold changes instead of ``X``.
        groupby, batch_size
            Not used: each contrast is predicted alone.
        seed
            Of the split into parts.
        mode, n_folds
            See above.

        Returns
        -------
        AnnData, contrasts by those genes of ``adata`` that the model knows: log2 fold changes,
        float32; ``NaN`` stays.

        Raises
        ------
        KeyError
            If the model does not know a gene, or ``adata`` does not measure it.
        ValueError
            If an option is out of range, or the matrix does not hold log2 fold changes.

        Warns
        -----
        UserWarning
            If a gene is not measured (``NaN``) in some contrasts; they stay as they are.
        """
        return reversed_profiles(
            self, adata, perturbation, layer=layer, mode=mode, n_folds=n_folds, seed=seed
        )
