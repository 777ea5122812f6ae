"""Lingshu-Cell: the public class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cfm._arguments import checks_arguments
from cfm.data._matrix import in_memory_frame
from cfm.models._precision import Precision
from cfm.models.lingshu._module import MASK, MISSING
from cfm.models.lingshu._perturb import Perturbable
from cfm.models.lingshu._reading import CountReader
from cfm.models.lingshu._sampler import Sampler

if TYPE_CHECKING:
    from anndata import AnnData


class LingshuCell(Perturbable):
    """Generative model of single cells: masked discrete diffusion over count tokens.

    A cell is the raw counts of all genes of the vocabulary, each one of 281 values; what is not
    measured is missing, not zero. The model knows what a cell is (its source: cell line, donor or
    cell type), what was done to it, and further conditions, and makes new cells for any of them:
    also for a source and a perturbation that were never seen together.

    Parameters
    ----------
    adata
        Cells by genes, raw counts, registered with :meth:`setup_anndata`.
    vocabulary
        Genes that the model is to know; by default ``adata.var_names``.
    levels
        Conditions that it is to know (:class:`cfm.models.lingshu.ConditionLevels`); by default
        those of ``adata``.
    size
        ``"mini"``, one of the published ``"default"`` (groups of 8 genes) and ``"vcc"`` (groups of
        32, for genetic perturbations), or a ``LingshuSize``.
    perturbation_features
        Table, targets by features, that says what each perturbation is, such as embeddings of a
        gene or a compound: any target in it can then be asked for, also one that no training cell
        had. Standardised and stored with the model. By default each has a token of its own.
    seed
        Seed of the initial weights and of the order of the genes.
    **sizes
        Single numbers to change in the size: ``dim``, ``n_layers``, ``n_heads``, ``ff_dim``,
        ``group_size``, ``depth``, ``learned_positions``.

    Notes
    -----
    The architecture of arXiv 2603.25240 (published sizes: a trunk of 85,214,080 parameters, 2,260
    or 565 groups of 18,080 genes). Beyond it, and off in the published sizes: the depth of a cell
    as a condition, and a learned vector per group. The weights that the authors released have a
    layout that is not documented, and are refused.

    Examples
    --------
    >>> import cfm
    >>> model = cfm.models.LingshuCell(vocabulary=["A", "B", "C"], dim=16, n_layers=1)
    >>> cells = model.generate(2, n_steps=3)
    >>> cells.shape
    (2, 3)
    """

    @checks_arguments()
    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        use_conditions: bool = False,
        batch_size: int = 64,
        precision: Precision = "float32",
    ) -> np.ndarray:
        """Embed cells: the mean of the final states of their groups of genes.

        Nothing is hidden; genes that ``adata`` lacks are masked, as in training.

        Parameters
        ----------
        adata
            Cells by genes, raw counts, any gene order; need not be registered. The model's own
            data if not given.
        layer
            Layer with the counts instead of ``X``.
        use_conditions
            Tell the model the registered conditions of each cell, from the columns of ``obs`` of
            the same names, and its depth. By default they are unknown to it, so that cells are
            embedded by their counts alone.
        batch_size
            Cells to read at a time; the result does not depend on it.
        precision
            As for :meth:`generate`.

        Returns
        -------
        ``(n, dim)`` float32.

        Raises
        ------
        KeyError
            If the layer or a column does not exist, or a condition is unknown.
        ValueError
            If values are no counts, or none of the model's genes is measured.
        """
        adata = self._adata_or_own(adata)
        self.module.eval()
        sampler = Sampler(self.module, self.inference_dtype(precision))
        reader = CountReader(adata, self.vocabulary, layer)
        n = adata.n_obs
        if use_conditions:
            obs = in_memory_frame(adata.obs)
            keys = [self.levels.source_key, self.levels.perturbation_key, *self.levels.covariates]
            missing = [key for key in keys if key is not None and key not in obs]
            if missing:
                raise KeyError(
                    f"adata.obs has no columns {missing}, which hold the model's conditions; it "
                    f"has {obs.columns.tolist()}."
                )
            conditions = self._conditions_of(obs, None)
        else:
            conditions = self.levels.conditions(n)
        out = np.empty((n, self.module.dim), dtype=np.float32)
        for start in range(0, n, batch_size):
            tokens, depth = reader.tokens(np.arange(start, min(start + batch_size, n)))
            tokens = np.where(tokens == MISSING, MASK, tokens)
            for first in range(0, len(tokens), sampler.cells_at_once):
                part = slice(first, min(first + sampler.cells_at_once, len(tokens)))
                rows = slice(start + part.start, start + part.stop)
                told = conditions.rows(rows)
                if use_conditions:
                    told = told._replace(depth=torch.from_numpy(depth[part]))
                clean = torch.from_numpy(tokens[part]).to(self.device)
                states = sampler.states(clean, told.to(self.device))
                out[rows] = states.mean(1).cpu().numpy()
        return out
