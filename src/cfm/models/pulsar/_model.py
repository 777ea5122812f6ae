"""PULSAR: the public class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from cfm._arguments import checks_arguments
from cfm.models._precision import Precision
from cfm.models.pulsar._importance import CellExplainer

if TYPE_CHECKING:
    from anndata import AnnData


#: Cells of a donor that the released model was trained with.
N_CELLS = 1024


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
    """

    donors: pd.Index
    embedding: np.ndarray
    spread: np.ndarray
    n_cells: np.ndarray
    n_used: np.ndarray


class Pulsar(CellExplainer):
    """Foundation model of donors: the cells of a donor, a set, become one embedding.

    A cell is given by a representation, of :class:`cfm.models.UCE` for the released models; any
    other in ``obsm`` for a model trained here. The model has a token for the donor that reads
    all of its cells. Neither the order of cells nor other donors change an embedding.

    Parameters
    ----------
    adata
        Cells of donors, registered with :meth:`setup_anndata`; their representation sets
        ``input_dim``.
    size
        ``"mini"``, ``"base"`` (as released, without the parts that are never used),
        ``"released"``, or a ``PulsarSize``.
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
    >>> import anndata, cfm, numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"donor_id": ["a", "b"] * 50}, index=[f"cell{i}" for i in range(100)])
    >>> cells = anndata.AnnData(obs=obs, obsm={"X_pca": rng.normal(size=(100, 10))})
    >>> cfm.models.Pulsar.setup_anndata(cells, use_rep="X_pca")
    >>> model = cfm.models.Pulsar(cells, size="mini")
    >>> model.get_latent_representation().shape
    (2, 64)
    """

    @checks_arguments()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        n_cells: int | None = N_CELLS,
        n_draws: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Embed donors.

        Parameters
        ----------
        adata, donor_key, use_rep, n_cells, n_draws, seed, batch_size, precision
            As for :meth:`get_donor_embeddings`.

        Returns
        -------
        ``(n_donors, dim)`` float32, donors in the order of their sorted names.
        """
        return self.get_donor_embeddings(
            adata,
            donor_key=donor_key,
            use_rep=use_rep,
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
            ``"X_uce"``.
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
            not unique.

        Warns
        -----
        UserWarning
            If donors have few cells, or are of a tissue that the model was not made for.
        """
        donors = self.read_donors(adata, donor_key, use_rep)
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
        )

    @checks_arguments()
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        n_cells: int | None = N_CELLS,
        n_draws: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        precision: Precision = "auto",
    ) -> pd.DataFrame:
        """Answer for donors with the head: probabilities of classes, or values.

        Parameters
        ----------
        adata, donor_key, use_rep, n_cells, n_draws, seed, batch_size, precision
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
