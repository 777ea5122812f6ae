"""What BulkFormer learns and says of compounds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from cfm._arguments import BELOW_1, SHARE, checks_arguments
from cfm.data._warn import warn_user
from cfm.models._base import load_weights
from cfm.models._precision import Precision
from cfm.models._validate import validate_config
from cfm.models.bulkformer._compound_fit import fit_head, split_compounds
from cfm.models.bulkformer._compound_head import CompoundHead, head_of
from cfm.models.bulkformer._compound_signatures import (
    Signatures,
    compound_key,
    read_features,
    read_signatures,
    with_features,
)
from cfm.models.bulkformer._constants import MISSING, N_SUMMARY
from cfm.models.bulkformer._impute import Imputer

if TYPE_CHECKING:
    from cfm.hub import Checkpoint

_COMPOUNDS = "compounds"


class CompoundLearner(Imputer):
    """A BulkFormer that can be taught what compounds do."""

    @property
    def compounds(self) -> list[str]:
        """Compounds that the model can answer for, lower case; none before training on them."""
        head = head_of(self.module)
        return [] if head is None else head.compounds

    @checks_arguments(unlisted_weight=SHARE, validation_share=BELOW_1)
    def train_compounds(
        self,
        signatures: pd.DataFrame | AnnData,
        baseline: AnnData,
        *,
        features: pd.DataFrame | None = None,
        layer: str | None = None,
        unlisted_weight: float = 1.0,
        validation_share: float = 0.2,
        n_steps: int = 200,
        batch_size: int = 32,
        lr: float = 3e-3,
        weight_decay: float = 0.1,
        rank: int = 32,
        seed: int = 0,
    ) -> dict[str, float]:
        """Learn what compounds do, from signatures; the rest of the model is not changed.

        A head takes the embedding of each gene in a baseline sample and the features of a compound
        to the change of the gene; see ``CompoundHead``. It starts as the mean of the signatures,
        which is hard to beat, and what it says beyond that is shrunken by as much as is best for
        the compounds held out of training (less one standard error).

        Parameters
        ----------
        signatures
            DataFrame with ``compound``, ``gene`` and ``direction`` (1 up, −1 down; such as
            :func:`cfm.datasets.cmap_signatures`) or ``effect`` (change of natural log TPM); or
            AnnData of compounds by genes with such changes in ``X``, ``NaN`` = not known. In a
            column ``sample``, the name of the observation of ``baseline`` that was treated. In a
            column ``signature`` of a DataFrame, which signature of the compound a row belongs to;
            without it all of its rows are one, and genes that are named twice are averaged.
        baseline
            Untreated samples by genes, log TPM. Where signatures have no ``sample``, the mean of
            these is the baseline.
        features
            Compounds by features, or a table of targets (``compound``, ``gene``, such as
            :func:`cfm.datasets.drug_targets`) of which a vector of unit length is made. Rows
            without a signature are kept and can be asked for. Without features an embedding of
            each compound is learned, and no others can be asked for. Case of names does not matter.
        layer
            Layer of ``baseline`` with the log TPM instead of ``X``.
        unlisted_weight
            Of directions only: a gene that other signatures list and this one does not was probably
            measured and not among the strongest. It is taken as 0 with this weight; 0 takes it as
            not known. What is best depends on what is asked: at 1, as measured in
            ``docs/benchmarks.md``, the profile of an unknown compound is predicted best.
        validation_share
            Share of the compounds that is held out. Of fewer than three, and without ``features``,
            none are, and nothing is shrunken.
        n_steps, batch_size, lr, weight_decay, rank
            Of the training, and number of factors.
        seed
            Of the whole run.

        Returns
        -------
        ``shrinkage`` (0: the features say nothing beyond the mean; 1: all that was learned is
        used), ``validation_correlation`` and ``validation_centred_correlation``: mean Pearson's r
        over held-out compounds, of the profile and of what differs from the mean.

        Raises
        ------
        TypeError, KeyError, ValueError
            If something has another form, lacks a column, names an unknown sample, or too little
            is left to learn from.

        Warns
        -----
        UserWarning
            If compounds have no features and are left out.

        Notes
        -----
        The authors of BulkFormer predicted compound effects of LINCS L1000 in their preprint and
        withdrew it in December 2025, because that assay is not bulk RNA-seq. The same holds for
        signatures of the Connectivity Map build 2, which come from microarrays: what is learned
        from them are directions, not changes of log TPM.
        """
        self.require_genes()
        known = read_signatures(signatures, self.vocabulary)
        table = None if features is None else read_features(features)
        known = with_features(known, table)
        names = sorted(set(known.compound)) if table is None else table.index.tolist()
        held_out = np.zeros(len(known.compound), dtype=bool)
        if table is not None:
            held_out = split_compounds(known.compound, validation_share, seed)
        embedded, sample = self._baselines(baseline, known, layer)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = CompoundHead(
                len(known.positions),
                self.module.dim + N_SUMMARY,
                names,
                [] if table is None else table.columns.tolist(),
                rank=rank,
                signed=known.signed,
            ).to(self.device)
            head.genes.copy_(torch.from_numpy(known.positions))
            if table is not None:
                head.features.copy_(torch.from_numpy(table.to_numpy(np.float32, copy=True)))
            scores = fit_head(
                head,
                embedded,
                known,
                sample=sample,
                compound=pd.Index(names).get_indexer(pd.Index(known.compound)).astype(np.int64),
                held_out=held_out,
                n_steps=n_steps,
                batch_size=batch_size,
                lr=lr,
                weight_decay=weight_decay,
                unlisted_weight=unlisted_weight,
                seed=seed,
            )
        head.requires_grad_(False)
        facts = {k: v for k, v in self.provenance.items() if k not in _KEPT_BY_BASE}
        super().trained_here(np.array([], dtype=object), **facts)
        self.module.add_module(_COMPOUNDS, head)
        self.provenance[_COMPOUNDS] = head.settings
        self.provenance["compound_scores"] = scores
        self.is_trained_ = True
        return scores

    @checks_arguments()
    @torch.inference_mode()
    def predict_compound(
        self,
        adata: AnnData,
        compound: str,
        *,
        features: pd.Series | None = None,
        layer: str | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> pd.DataFrame:
        """Predict what a compound does to samples.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`.
        compound
            A name out of ``model.compounds``, in any case; with ``features`` any name.
        features
            Features of a compound that the model has none of, by the names of those it was trained
            on; what is not given is 0.

        Returns
        -------
        Samples by the genes that the training signatures measured, float32: change of log TPM; if
        the signatures were directions, the expected direction, about −1 to 1.

        Raises
        ------
        KeyError
            If the model was not taught compounds, or does not know this one or these features.
        """
        head = head_of(self.module)
        if head is None:
            raise KeyError(
                f"The model was not taught compounds, so it cannot answer for {compound!r}; see "
                "train_compounds."
            )
        described = self._describe(head, compound, features)
        alignment = self._align(adata, layer)
        genes = self.vocabulary.genes[head.genes.cpu().numpy()]
        out = np.empty((adata.n_obs, len(genes)), dtype=np.float32)
        for rows, embedded in self._encoded(adata, alignment, layer, batch_size, precision):
            made = head(embedded[:, head.genes], described.expand(len(embedded), -1))
            out[rows] = made.cpu().numpy()
        return pd.DataFrame(out, index=adata.obs_names, columns=genes)

    def trained_here(self, studies: np.ndarray, **facts: Any) -> None:
        """Record a training; what was learned of compounds does not fit new weights."""
        if head_of(self.module) is not None:
            delattr(self.module, _COMPOUNDS)
            warn_user(
                "The model has new weights, so what it was taught of compounds is dropped; call "
                "train_compounds again."
            )
        super().trained_here(studies, **facts)

    def _describe(
        self, head: CompoundHead, compound: str, features: pd.Series | None
    ) -> torch.Tensor:
        """Return ``(1, n_features)`` of a compound."""
        if features is None:
            if compound_key(compound) not in head.compounds:
                raise KeyError(
                    f"The model was not taught {compound!r}; it knows {len(head.compounds)} "
                    f"compounds, such as {', '.join(head.compounds[:3])} (model.compounds)."
                    + (" Pass features= of it." if head.embedding is None else "")
                )
            number = head.compounds.index(compound_key(compound))
            return head.describe(torch.tensor([number], device=self.device))
        names = head.settings["feature_names"]
        given = pd.Series(features, dtype=np.float32)
        unknown = [str(n) for n in given.index if str(n) not in names]
        if unknown or not len(given):
            raise KeyError(
                f"The model has no compound features {unknown[:5]}; expected {names[:5]} …"
            )
        row = given.set_axis([str(n) for n in given.index]).reindex(names, fill_value=0.0)
        return torch.from_numpy(row.to_numpy(np.float32, copy=True)[None]).to(self.device)

    @torch.inference_mode()
    def _baselines(
        self, baseline: AnnData, signatures: Signatures, layer: str | None
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Embed the signatures' genes in the baseline samples, and number each signature's."""
        alignment = self._align(baseline, layer)
        said = sorted(set(signatures.sample))
        unknown = [s for s in said if s and s not in baseline.obs_names]
        if unknown:
            raise KeyError(f"baseline has no samples {unknown[:5]}; its obs_names name them.")
        made = [x for _, _, x in self._blocks(baseline, alignment, layer, 64)]
        x = torch.cat(made)
        observed = x != MISSING
        mean = torch.where(observed, x, 0.0).sum(0) / observed.sum(0).clamp(min=1)
        mean = torch.where(observed.any(0), mean, torch.full_like(mean, MISSING))
        genes = torch.from_numpy(signatures.positions).to(self.device)
        rows = [mean if not s else x[baseline.obs_names.get_loc(s)] for s in said]
        embedded = torch.cat([self.module.encode(row[None])[:, genes] for row in rows])
        # Training needs gradients of the head, so these may not be inference tensors.
        with torch.inference_mode(False):
            embedded = embedded.clone()
        return embedded, np.array([said.index(s) for s in signatures.sample], dtype=np.int64)

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, adata: AnnData | None) -> Self:
        settings = checkpoint.config.get(_COMPOUNDS)
        if settings is None:
            return super()._from_checkpoint(checkpoint, adata)
        prefix = f"{_COMPOUNDS}."
        own = {k: v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
        rest = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(prefix)}
        with validate_config("its compounds", checkpoint.name, own):
            head = CompoundHead(**settings)
        load_weights(head, own, checkpoint.name, prefix=prefix)
        model = super()._from_checkpoint(replace(checkpoint, tensors=rest), adata)
        model.module.add_module(_COMPOUNDS, head.requires_grad_(False).eval())
        return model


#: What the record of a training keeps by itself.
_KEPT_BY_BASE = ("training_studies", "started_from", _COMPOUNDS, "compound_scores")
