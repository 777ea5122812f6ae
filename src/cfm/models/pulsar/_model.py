"""PULSAR: the public class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from cfm._arguments import checks_arguments
from cfm.data._warn import warn_user
from cfm.models._precision import Precision
from cfm.models.pulsar._importance import CellExplainer

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models.pulsar._donors import Donors

#: Cells of a donor that the released model was trained with.
N_CELLS = 1024
#: Share of unknown cells from which on donors are warned about.
_UNKNOWN = 0.5


@dataclass(frozen=True)
class DonorEmbeddings:
    """Embeddings of donors.

    Attributes
    ----------
    donors
        ``(n_donors,)`` names, sorted.
    embedding
        ``(n_donors, dim)`` float32, the mean over draws.
    spread
        ``(n_donors,)`` float32, root of the mean squared distance of single draws from their
        mean (with one degree of freedom less); 0 where all cells are used, ``NaN`` with one draw.
    n_cells, n_used
        ``(n_donors,)`` int64, cells of a donor, and cells in a draw.
    unknown
        ``(n_donors,)`` float32, share of a donor's cells that lie outside of the reference of the
        model's :class:`CellProjection`; ``None`` for models that read a representation.
    mean
        ``(n_donors, n_components)`` float32, mean of the components of a donor's cells, the simple
        summary to compare with; ``None`` likewise.
    """

    donors: pd.Index
    embedding: np.ndarray
    spread: np.ndarray
    n_cells: np.ndarray
    n_used: np.ndarray
    unknown: np.ndarray | None = None
    mean: np.ndarray | None = None


class Pulsar(CellExplainer):
    """Foundation model of donors: the cells of a donor, a set, become one embedding.

    A model trained here reads the raw counts of cells, through a :class:`CellProjection` that is
    saved with it, or any representation in ``obsm``; the released models read that of
    :class:`cfm.models.UCE`. The model has a token for the donor that reads all of its cells.
    Neither the order of cells nor other donors change an embedding.

    Parameters
    ----------
    adata
        Cells of donors, registered with :meth:`setup_anndata`; their representation sets
        ``input_dim``. To counts a projection is fitted.
    size
        ``"mini"``, ``"base"`` (as released, without the parts that are never used),
        ``"released"``, or a ``PulsarSize``.
    projection
        A :class:`CellProjection` of other cells, instead of one that is fitted to ``adata``.
    seed
        Seed of the initial weights.
    **sizes
        Single numbers to change in the size, such as ``dim`` and ``encoder_layers``.

    Notes
    -----
    Pang et al., PULSAR, bioRxiv 2025.11.24.685470; :meth:`from_pretrained` reads files in the
    authors' layout, and gives the numbers of their code for small ones with random weights. What
    differs from the released code: padding is hidden, a donor's cells are not drawn with
    replacement, attention can be read out, and it can be trained.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_donors(n_donors=6, n_cells=30)
    >>> cfm.models.Pulsar.setup_anndata(cells, donor_key="donor_id")
    >>> model = cfm.models.Pulsar(cells, size="mini")
    >>> model.get_latent_representation().shape
    (6, 64)
    """

    @checks_arguments()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        layer: str | None = None,
        n_cells: int | None = N_CELLS,
        n_draws: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Embed donors.

        Parameters
        ----------
        adata, donor_key, use_rep, layer, n_cells, n_draws, seed, batch_size, precision
            As for :meth:`get_donor_embeddings`.

        Returns
        -------
        ``(n_donors, dim)`` float32, donors in the order of their sorted names.
        """
        return self.get_donor_embeddings(
            adata,
            donor_key=donor_key,
            use_rep=use_rep,
            layer=layer,
            n_cells=n_cells,
            n_draws=n_draws,
            seed=seed,
            batch_size=batch_size,
            precision=precision,
        ).embedding

    @checks_arguments()
    def get_donor_embeddings(
        self,
        adata: AnnData | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        layer: str | None = None,
        n_cells: int | None = N_CELLS,
        n_draws: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        precision: Precision = "auto",
    ) -> DonorEmbeddings:
        """Embed donors, and say how much an embedding depends on which cells were drawn.

        Parameters
        ----------
        adata
            Cells of donors; need not be registered. The model's own data if not given.
        donor_key
            Column of ``obs`` with the donor; by default that of the training data, else
            ``"donor_id"``.
        use_rep
            Name in ``obsm`` of what represents a cell; by default that of the training data, else
            ``"X_uce"``. Of a model that reads counts through its own projection none.
        layer
            Layer with raw counts instead of ``X``, for a model that reads them.
        n_cells
            Cells to draw of a donor, without replacement; donors with fewer, and all with
            ``None``, are embedded whole. Time grows with its square.
        n_draws
            Draws to average over.
        seed
            Seed of the draws, which depend on it and on the names of donor and cells only.
        batch_size
            Donors at a time; the result does not depend on it.
        precision
            ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the processor is fast at
            it and a trial, made once per weights, keeps the differences between made-up donors at
            a cosine similarity of 0.99 to float32.

        Returns
        -------
        DonorEmbeddings

        Raises
        ------
        KeyError
            If the column or the representation does not exist.
        ValueError
            If donor ids are missing, cells are ``NaN`` or of the wrong width, or their names are
            not unique; of a model that reads counts also if ``use_rep`` is given, too few of its
            genes are found, values are no counts, or these are bulk samples.

        Warns
        -----
        UserWarning
            If donors have few cells, are of a tissue that the model was not made for, or over
            half of the cells of a donor are unknown.
        """
        donors = self.read_donors(adata, donor_key, use_rep, layer)
        draws = list(donors.draws(n_cells, n_draws, seed))
        embedded = self.embed_draws(donors, [rows for _, rows in draws], batch_size, precision)
        whose = np.array([donor for donor, _ in draws])
        times = np.bincount(whose, minlength=len(donors.names))
        mean = np.zeros((len(donors.names), self.size.dim))
        np.add.at(mean, whose, embedded)
        mean /= times[:, None]
        square = np.bincount(whose, ((embedded - mean[whose]) ** 2).sum(axis=1))
        whole = np.ones(len(times), dtype=bool) if n_cells is None else donors.n_cells <= n_cells
        with np.errstate(invalid="ignore"):
            spread = np.where(whole, 0.0, np.sqrt(square / (times - 1)))
        used = donors.n_cells if n_cells is None else np.minimum(donors.n_cells, n_cells)
        return DonorEmbeddings(
            donors=donors.names,
            embedding=mean.astype(np.float32),
            spread=spread.astype(np.float32),
            n_cells=donors.n_cells,
            n_used=used,
            unknown=self._unknown_share(donors),
            mean=None if self.projection is None else _means(donors),
        )

    def _unknown_share(self, donors: Donors) -> np.ndarray | None:
        """Return the share of unknown cells of each donor, and warn of high ones."""
        if self.projection is None:
            return None
        unknown = self.projection.unknown(np.asarray(donors.cells))
        share = np.array([unknown[rows].mean() for rows in donors.rows], dtype=np.float32)
        n = int((share > _UNKNOWN).sum())
        if n:
            warn_user(
                f"In {n} of {len(share)} donors over half of the cells are unknown: farther from "
                "the cells that the model was fitted on than 95 % of such cells are. They may be "
                "of another tissue, state, kit or species, or have too few of the genes; train "
                "a Pulsar on these cells instead."
            )
        return share

    @checks_arguments()
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        layer: str | None = None,
        n_cells: int | None = N_CELLS,
        n_draws: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        precision: Precision = "auto",
    ) -> pd.DataFrame:
        """Answer for donors with the head: probabilities of classes, or values.

        Parameters
        ----------
        adata, donor_key, use_rep, layer, n_cells, n_draws, seed, batch_size, precision
            As for :meth:`get_donor_embeddings`; the head reads the mean over draws.

        Returns
        -------
        DataFrame
            Donors by outputs of the head, float32. For classes probabilities, which sum to 1 over
            several classes; a single one is the probability of yes.

        Raises
        ------
        ValueError
            If the model has no head, or as :meth:`get_donor_embeddings`.
        """
        if self.head is None:
            raise ValueError("This model has no head; train one with train_head().")
        found = self.get_donor_embeddings(
            adata,
            donor_key=donor_key,
            use_rep=use_rep,
            layer=layer,
            n_cells=n_cells,
            n_draws=n_draws,
            seed=seed,
            batch_size=batch_size,
            precision=precision,
        )
        with torch.no_grad():
            out = self.module.apply_head(torch.from_numpy(found.embedding).to(self.device))
            if self.head["task"] == "classification":
                out = out.sigmoid() if out.shape[1] == 1 else out.softmax(dim=1)
        return pd.DataFrame(out.cpu().numpy(), index=found.donors, columns=self.head["outputs"])


def _means(donors: Donors) -> np.ndarray:
    """Return the mean of each donor's cells, ``(n_donors, width)`` float32."""
    means = [donors.cells[rows].mean(axis=0, dtype=np.float64) for rows in donors.rows]
    return np.asarray(means, dtype=np.float32)
