"""CellPulse: the public class, AnnData in and AnnData or arrays out."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings
from scvi.data.fields import CategoricalObsField, LayerField
from scvi.utils import track

from cfm._adata import warn_user
from cfm._arguments import check_whole, checks_arguments, named_size
from cfm._docs import fill_docs
from cfm._fields import NO_RESPONSE, UNINFECTED, VIRAL
from cfm.data import GeneVocabulary
from cfm.data._matrix import get_matrix
from cfm.hub._checkpoint import validate_config
from cfm.models._base import TEXTS, PretrainedModel, check_column, load_weights, stored_genes
from cfm.models.cellpulse import _attribution as attribution
from cfm.models.cellpulse._attribution import Reversal, gene_positions, reverse_genes
from cfm.models.cellpulse._classifier import (
    Names,
    Scores,
    VirusClassifier,
    VirusPrediction,
    fit_classifier,
    predict_viruses,
)
from cfm.models.cellpulse._data import (
    MAX_HELD_BYTES,
    ProfileTokenizer,
    StoredEffects,
    align_effects,
    aligned_sets,
    effect_blocks,
    read_profiles,
)
from cfm.models.cellpulse._gene_factors import (
    GeneFactors,
    fit_gene_factors,
    fitted_rows,
    leading_rotation,
    usual_sizes,
)
from cfm.models.cellpulse._module import PADDING, SIZES, CellPulseModule, CellPulseSize, Tokens
from cfm.models.cellpulse._training import CellPulseRecipe, pretraining

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from cfm.hub import Checkpoint
    from cfm.models._training import Training, TrainingRun

#: Registry key of the column with the infected sample.
SAMPLE_KEY = "sample"
_CLASSIFIER = "classifier."
_MODULE = "module."


class CellPulse(PretrainedModel):
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
        of published contrasts, for the gene factors and for training.
    vocabulary
        Gene symbols of the model; by default ``adata.var_names``.
    size
        Name of a size (``"mini"``, ``"small"``, ``"base"``, ``"published"``) or a
        ``CellPulseSize``.
    seed
        Seed of the initial weights.
    **sizes
        Single numbers to change in the size: ``n_tokens``, ``n_factors``, ``dim``, ``n_layers``,
        ``n_heads``, ``ff_mult``, ``dropout``, ``attention_dropout``, ``learn_gene_embedding``.

    Attributes
    ----------
    module
        The network.
    vocabulary
        Its genes.
    size
        Its sizes.
    tokenizer
        Turns effects into its tokens.
    signed_sets
        Signed gene sets for training, if any.
    classifier
        The virus classifier, once trained or loaded.
    fitted_factors
        Gene factors with the study of each, from :meth:`fit_gene_factors` until :meth:`train`
        compresses them.
    provenance
        What else is written into a checkpoint: where the model comes from (JSON types).

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

    module: CellPulseModule
    Recipe = CellPulseRecipe
    #: The end of a training compresses the gene factors that it began with.
    _training_can_be_repeated = False

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        signed_sets: AnnData | None = None,
        vocabulary: Sequence[str] | GeneVocabulary | None = None,
        size: str | CellPulseSize = "mini",
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        vocabulary = self._vocabulary_of(adata, vocabulary)
        self.vocabulary = vocabulary
        self.size = named_size(size, SIZES, sizes)
        self.tokenizer = ProfileTokenizer(vocabulary, self.size.n_tokens)
        self.signed_sets = signed_sets
        self.classifier: VirusClassifier | None = None
        self.fitted_factors: GeneFactors | None = None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = CellPulseModule(len(vocabulary), **self.size.module_arguments())
            if adata is not None:
                self.fit_gene_factors()
        self._summarise()

    def _summarise(self) -> None:
        """Set the summary that scvi-tools prints; the number of parameters changes in training."""
        n = sum(p.numel() for p in self.module.parameters())
        self._model_summary_string = (
            f"CellPulse: {len(self.vocabulary)} genes, {self.size.n_tokens} tokens, "
            f"{n:,} parameters"
        )

    @classmethod
    @fill_docs(TEXTS)
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        labels_key: str | None = None,
        study_key: str | None = None,
        sample_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register contrasts for training.

        Parameters
        ----------
        adata
            Contrasts by genes.
        layer
            Layer with the log2 fold changes instead of ``X``.
        labels_key
            Column of ``obs`` with the virus, ``"uninfected"`` for contrasts of other kinds.
        study_key
            Column of ``obs`` with the study. Nothing is scored on a study that it was fitted to.
        sample_key
            Column of ``obs`` with the infected sample: contrasts of one sample against different
            controls are made to agree.
        %(register_fields)s

        Raises
        ------
        KeyError
            If the layer or a column does not exist.
        ValueError
            If a column has missing values.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        get_matrix(adata, layer=layer)
        for key in (labels_key, study_key, sample_key):
            if key is not None:
                check_column(adata, key)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, study_key),
            CategoricalObsField(SAMPLE_KEY, sample_key),
        ]
        with warnings.catch_warnings():
            # scvi-tools warns of categories of under three cells; a study may have one contrast
            warnings.filterwarnings("ignore", message="Category .* has fewer than 3 cells")
            cls._register(adata, fields, setup_method_args, **kwargs)

    @checks_arguments()
    def fit_gene_factors(self, *, seed: int = 0) -> None:
        """Fit the factors of the linear gene-gene term to the registered data and signed sets.

        Called when the model is made; see the function of this name in ``_gene_factors`` for the
        covariance. Of more contrasts than 4,096 as many are used, chosen by seed, with equal
        numbers from each study where it has them.
        """
        registered, studies = self.registered_profiles()
        rows = fitted_rows(studies, seed=seed)
        effects, studies = registered[rows], studies[rows]
        sets = None if self.signed_sets is None else aligned_sets(self.signed_sets, self.vocabulary)
        factors = fit_gene_factors(effects, studies, signed_sets=sets, seed=seed)
        self.module.usual_size.copy_(torch.from_numpy(usual_sizes(effects, studies)))
        _, group = np.unique(factors.group.astype(str), return_inverse=True)
        self.fitted_factors = factors
        self.module.set_gene_factors(torch.from_numpy(factors.values), torch.from_numpy(group))

    def registered_effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the registered contrasts on the vocabulary, and the study of each.

        Returns
        -------
        ``(n, n_vocabulary)`` float32 and ``(n,)`` object.

        Raises
        ------
        ValueError
            If the model has no data attached.
        """
        stored, studies = self._registered()
        return stored[:], studies

    def registered_profiles(self) -> tuple[np.ndarray | StoredEffects, np.ndarray]:
        """Return the same as :meth:`registered_effects`; more than 1 GiB is read when indexed."""
        stored, studies = self._registered()
        n_rows, n_genes = stored.shape
        return (stored if 4 * n_rows * n_genes > MAX_HELD_BYTES else stored[:]), studies

    def _registered(self) -> tuple[StoredEffects, np.ndarray]:
        """Return the registered contrasts, which are not read yet, and the study of each."""
        self._require_own_data()
        layer = self._registered_layer()
        alignment = align_effects(self.adata, self.vocabulary, layer=layer)
        stored = StoredEffects(get_matrix(self.adata, layer=layer), alignment)
        return stored, self.registered_categories(REGISTRY_KEYS.BATCH_KEY)

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the model; ``"auto"`` takes a GPU if there is one."""
        super().to_device(device)
        if self.classifier is not None:
            self.classifier.to(self.device)

    @checks_arguments()
    def encode_blocks(
        self, adata: AnnData, *, layer: str | None = None, batch_size: int = 64
    ) -> Iterator[tuple[slice, np.ndarray, Tokens]]:
        """Yield ``(rows, effects on the vocabulary, tokens)`` in batches."""
        return read_profiles(adata, self.tokenizer, layer=layer, batch_size=batch_size)

    def _training(self, run: TrainingRun) -> AbstractContextManager[Training]:
        return pretraining(self, run, sample_key=SAMPLE_KEY)

    def compress_factors(self) -> None:
        """Reduce the gene factors to ``size.n_factors``; what reads them is rotated along."""
        values = self.module.scaled_factors().detach().cpu().numpy()
        rotation = leading_rotation(values, self.size.n_factors)
        with torch.random.fork_rng(devices=[]):  # new layers are made, and filled at once
            self.module.rotate_factors(torch.from_numpy(rotation).to(self.device))
        self.fitted_factors = None
        self._summarise()

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
        adata, layer = self._given_or_own(adata, layer)
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
        adata, layer = self._given_or_own(adata, layer)
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
            ``(n, n_vocabulary)`` bool, the genes to predict.

        Returns
        -------
        ``(n, n_vocabulary)`` float32 log-odds of up against down, and expected absolute log2FC;
        ``NaN`` elsewhere.

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
        for i, genes in enumerate(map(np.flatnonzero, hidden)):
            row = np.where(hidden[i], np.nan, effects[i])[None]
            tokens = self.tokenizer.encode(row).to(self.device)
            positions = torch.from_numpy(genes).to(self.device)
            log_odds, log_size = self.module.predict_genes(tokens, positions)
            odds[i, genes] = log_odds[0].float().cpu().numpy()
            size[i, genes] = np.expm1(log_size[0].float().cpu().numpy().clip(0.0, 4.0))
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
        """Reverse genes of contrasts, and predict the other effects after it.

        The effect of each of the genes is set to 0 (``mode="neutral"``: the infection no longer
        moves it) or to its negative (``"flip"``). The other genes are split into ``n_folds``
        parts at random; each part is hidden in the profile before and after, and predicted from
        what is left of it (:meth:`predict_hidden`). The difference between the two expected
        effects, tanh(log-odds / 2) times the expected size, is added to the measured effect. So
        nothing changes where nothing was reversed. This is what the model has learned of genes
        that move together; it is neither a measured nor a causal effect.

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
        AnnData, contrasts by those genes of ``adata`` that the model has: log2 fold changes,
        float32; ``NaN`` stays.

        Raises
        ------
        KeyError
            If the model does not have a gene, or ``adata`` does not measure it.
        ValueError
            If an option is out of range, or the matrix does not hold log2 fold changes.

        Warns
        -----
        UserWarning
            If a gene is not measured (``NaN``) in some contrasts; they stay as they are.
        """
        alignment = align_effects(adata, self.vocabulary, layer=layer)
        genes = gene_positions(self.vocabulary, alignment, perturbation)
        n = len(self.vocabulary)
        folds = np.random.default_rng(seed).permutation(np.arange(n) % min(n_folds, n))
        folds[genes] = -1  # not predicted
        out = np.empty((adata.n_obs, len(alignment.columns)), dtype=np.float32)
        blocks = effect_blocks(adata, layer=layer)
        profiles = track(
            (effects[None] for _, block in blocks for effects in alignment.apply(block)),
            total=adata.n_obs,
            description="Reversing genes",
            style="tqdm",
            disable=settings.verbosity > logging.INFO,
        )
        unmeasured = 0
        for i, effects in enumerate(profiles):
            unmeasured += int(np.isnan(effects[0, genes]).any())
            changed = reverse_genes(self.predict_hidden, effects, genes, folds, mode)
            out[i] = changed[0, alignment.positions]
        if unmeasured:
            warn_user(
                f"{unmeasured} of {adata.n_obs} contrasts do not measure all of "
                f"{list(perturbation)}; missing genes are not reversed there."
            )
        return AnnData(out, obs=adata.obs[[]], var=adata.var[[]].iloc[alignment.columns])

    def train_classifier(
        self,
        adata: AnnData | None = None,
        *,
        responses: str | None = None,
        teaches_virus: np.ndarray | None = None,
    ) -> pd.DataFrame:
        """Train the classifier of responses and viruses on labelled contrasts.

        Its inputs are the effects; the encoder is unchanged. The problem is convex: the same data
        give the same classifier. Temperature, odds of a response and the support of each
        answer are fitted on predictions for studies left out. Contrasts, (label, study) units and
        labels are weighted so that each study and each virus counts the same.

        Parameters
        ----------
        adata
            Labelled contrasts, registered with ``setup_anndata(adata, labels_key=…,
            study_key=…)``; the model's own data if not given. The label ``"uninfected"`` marks
            contrasts of other kinds: control against control, cytokines, bacteria, drugs.
        responses
            Column of ``obs`` with the kind of response of each contrast: ``"none"`` (control
            against control), ``"viral"``, and any others. Without it viruses are ``"viral"`` and
            all others ``"none"``. Rows that hold only −1, 0 and 1 are signed gene sets: they train
            the kinds of response and nothing else.
        teaches_virus
            ``(n,)`` bool: rows that train which virus it is, besides the kind of response. All
            viruses by default.

        Returns
        -------
        Out-of-fold predictions, a row per contrast: ``label``, ``study``, ``response``, the
        log-probability of each virus given an infection (``NaN`` for viruses that no other study
        has), and of each kind of response (``NaN`` where one kind would be left). All ``NaN`` for
        signed sets.

        Raises
        ------
        KeyError
            If ``responses`` is no column of ``obs``.
        ValueError
            If there are no labels, fewer than two viruses or fewer than two studies are left, the
            kinds do not fit the labels, or an argument is out of its range.
        """
        if adata is not None:
            self.attach(adata)
        effects, studies = self.registered_effects()
        labels = self.registered_categories(REGISTRY_KEYS.LABELS_KEY)
        if (labels == "").all():
            raise ValueError(
                "The data were registered without labels; call CellPulse.setup_anndata(adata, "
                "labels_key=…, study_key=…) first."
            )
        if responses is None:
            kinds = np.where(labels == UNINFECTED, NO_RESPONSE, VIRAL).astype(object)
        elif responses in self.adata.obs:
            kinds = self.adata.obs[responses].astype(str).to_numpy(dtype=object)
        else:
            raise KeyError(f"responses={responses!r} is no column of obs.")
        classifier, table = fit_classifier(
            self.vocabulary.genes, effects, labels, studies, kinds, teaches_virus
        )
        self.classifier = classifier.to(self.device).eval()
        # the encoder may have been trained on further studies, without their labels
        learned = sorted(set(studies) - {""})
        self.mark_trained(studies, classes=classifier.classes, classifier_studies=learned)
        return table.set_axis(self.adata.obs_names)

    def require_classifier(self) -> VirusClassifier:
        """Return the virus classifier.

        Raises
        ------
        ValueError
            If the model has none.
        """
        if self.classifier is None:
            raise ValueError(
                "This CellPulse has no virus classifier: call train_classifier() on labelled "
                "contrasts, or load one that has, such as from_pretrained('cellpulse-virus')."
            )
        return self.classifier

    @checks_arguments()
    @torch.inference_mode()
    def predict_scores(
        self, adata: AnnData | None = None, *, layer: str | None = None, batch_size: int = 64
    ) -> Scores:
        """Return the scores of contrasts; see :class:`Scores`."""
        classifier = self.require_classifier()
        adata, layer = self._given_or_own(adata, layer)
        parts = []
        for _, effects, _ in self.encode_blocks(adata, layer=layer, batch_size=batch_size):
            parts.append(classifier(torch.from_numpy(effects).to(self.device)))
        return Scores(*(torch.cat(part).float().cpu() for part in zip(*parts, strict=True)))

    @checks_arguments()
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        names: Names = "supported",
        batch_size: int = 64,
    ) -> VirusPrediction:
        """Predict the kind of response of each contrast, and the virus where studies support it.

        Parameters
        ----------
        adata
            Contrasts by genes, any gene order; the model's own data if not given.
        layer
            Layer with the log2 fold changes instead of ``X``.
        names
            ``"supported"``: name a virus, and that a response is not viral, only where at least
            80 % of such answers were right in at least three studies left out of training, and a
            kind of response where at least half were; ``"always"``: give the most probable answer.
        batch_size
            Contrasts at a time; the result does not depend on it.

        Returns
        -------
        See :class:`VirusPrediction`. The most probable response is ``"none"`` where that has a
        probability of at least a half, else the kind with the highest.
        """
        adata, layer = self._given_or_own(adata, layer)
        scores = self.predict_scores(adata, layer=layer, batch_size=batch_size)
        return predict_viruses(self.require_classifier(), scores, adata.obs_names, names)

    @torch.inference_mode()
    def target_log_odds(self, effects: np.ndarray, target: str) -> np.ndarray:
        """Return the log-odds of a virus against all others, or of a response.

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)`` log2 fold changes, ``NaN`` = not measured.
        target
            A virus of the classifier, or ``"response"``.

        Returns
        -------
        ``(n,)`` float64, natural logarithm. Of a virus: given an infection,
        ``log p / (1 - p)``.
        """
        return attribution.target_log_odds(self.require_classifier(), effects, target)

    @checks_arguments()
    @torch.inference_mode()
    def summary_attention(self, effects: np.ndarray, *, batch_size: int = 16) -> np.ndarray:
        r"""Return how much the summary attends to each gene, by attention rollout.

        The heads of a layer are averaged, the residual stream is counted as attention to itself,
        and layers are multiplied (Abnar & Zuidema 2020):
        :math:`R = \prod_l (A_l + I) / 2`, row of the summary.

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)`` log2 fold changes, ``NaN`` = not measured.
        batch_size
            Profiles at a time; the result does not depend on it.

        Returns
        -------
        ``(n, n_vocabulary)`` float32, in units of the mean over the profile's tokens: 1 is an
        average token, 0 a gene whose effect is too small to be one; ``NaN`` where not measured.
        """
        return attribution.summary_attention(
            self.module, self.tokenizer, effects, batch_size=batch_size
        )

    @checks_arguments()
    def integrated_gradients(
        self, effects: np.ndarray, target: str, *, n_steps: int = 16, batch_size: int = 8
    ) -> np.ndarray:
        r"""Return each gene's share of the log-odds, by integrated gradients.

        All effects of a profile are switched on together by a gate :math:`\alpha`, from 0 (a
        tenth for ``"response"``) to 1, while the length that it is divided by, its median and its
        spread stay those of the whole profile: a profile scaled as one would look the same to the
        classifier at every :math:`\alpha`. The gene's share is the integral of the gradient by its
        gate (Sundararajan, Taly & Yan 2017, eq. 1; computed by captum).

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)`` log2 fold changes, ``NaN`` = not measured.
        target
            See :meth:`target_log_odds`.
        n_steps
            Nodes of the Gauss-Legendre quadrature.
        batch_size
            Profiles at a time; the result does not depend on it.

        Returns
        -------
        ``(n, n_vocabulary)`` float32, natural-log odds, ``NaN`` where not measured; positive is
        for the target. The sum over genes is the log-odds of a virus less those of the profile with
        its gates at 0; for ``"response"`` without the statistics that count genes, which have no
        gradient.
        """
        return attribution.integrated_gradients(
            self.require_classifier(), effects, target, n_steps=n_steps, batch_size=batch_size
        )

    @checks_arguments()
    @torch.inference_mode()
    def reversal(
        self, effects: np.ndarray, target: str, *, mode: Reversal = "neutral"
    ) -> np.ndarray:
        """Return the contribution of each gene's effect to the log-odds, by reversing it.

        An in-silico experiment: one gene at a time is set to no effect (``"neutral"``) or to the
        opposite effect (``"flip"``), and the log-odds are computed again.

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)`` log2 fold changes, ``NaN`` = not measured.
        target
            See :meth:`target_log_odds`.
        mode
            What the effect becomes.

        Returns
        -------
        ``(n, n_vocabulary)`` float32, log-odds before less after, ``NaN`` where not measured;
        positive is for the target.
        """
        return attribution.gene_reversal(self.require_classifier(), effects, target, mode=mode)

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        parts: dict[str, torch.nn.Module] = {_MODULE: self.module}
        if self.classifier is not None:
            parts[_CLASSIFIER] = self.classifier
        tensors = {p + k: v for p, part in parts.items() for k, v in part.state_dict().items()}
        config = {
            "size": vars(self.size) | {"n_factors": self.module.gene_factors.shape[1]},
            "n_relevances": self.module.log_relevance.numel(),
            "classifier": None if self.classifier is None else self.classifier.settings(),
        }
        return tensors, config, self._genes_file()

    def _compacted(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # tables with a row or column per gene: embeddings move by about 0.1 %
        n = len(self.vocabulary)
        return {
            k: v.half() if n in v.shape and v.is_floating_point() and v.ndim == 2 else v
            for k, v in tensors.items()
        }

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        config = dict(checkpoint.config)
        with validate_config("CellPulse", checkpoint.name, checkpoint.tensors):
            size = CellPulseSize(**config.pop("size"))
            n_relevances = config.pop("n_relevances")
            check_whole("n_relevances", n_relevances, 1, size.n_factors)
            genes = stored_genes(checkpoint)
            of_classifier = config.pop("classifier")
            model = cls(vocabulary=genes, size=size)
            model.module.log_relevance = torch.nn.Parameter(torch.zeros(n_relevances))
            if of_classifier is not None:
                model.classifier = VirusClassifier(len(genes), **of_classifier).eval()
        load_weights(model.module, checkpoint.tensors, checkpoint.name, prefix=_MODULE)
        if model.classifier is not None:
            load_weights(model.classifier, checkpoint.tensors, checkpoint.name, prefix=_CLASSIFIER)
        group = model.module.factor_group
        first, last = int(group.min()), int(group.max())
        if first < 0 or last >= n_relevances:
            raise ValueError(
                f"The factors of checkpoint {checkpoint.name!r} belong to groups {first} to "
                f"{last}, and there are {n_relevances} groups; it is damaged: download it again."
            )
        model._summarise()
        model.provenance = config
        return model
