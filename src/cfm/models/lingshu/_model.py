"""Lingshu-Cell: the public class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from cfm._arguments import BELOW_1, Range, checks_arguments, named_size
from cfm._docs import fill_docs
from cfm._fields import PARAMS
from cfm.data import GeneVocabulary
from cfm.data._matrix import check_unique_names, in_memory_frame
from cfm.hub._checkpoint import validate_config
from cfm.models._base import TEXTS, Precision, load_weights, stored_genes
from cfm.models._training import Training, TrainingRun, held_out_rows, root_weights
from cfm.models.count_model import PerturbationCountModel
from cfm.models.count_model._conditions import ConditionLevels, PerturbationFeatures
from cfm.models.count_model._data import DenseCountReader, RegisteredCounts
from cfm.models.count_model._module import FIRST_PART, UNKNOWN, Conditions, NegativeBinomialModule
from cfm.models.count_model._training import fit_counts
from cfm.models.lingshu._counts import KIND, LARGEST, CountTerm, Dequantise
from cfm.models.lingshu._data import (
    add_prior,
    keep_counts,
    library_sizes,
    read_frozen,
    to_tokens,
    wanted_cells,
)
from cfm.models.lingshu._generation import CellFile, Generation
from cfm.models.lingshu._module import MISSING, SIZES, LingshuModule, LingshuSize
from cfm.models.lingshu._sampler import Guidance, draw_numbers
from cfm.models.lingshu._training import (
    CellStream,
    DiffusionPlan,
    LingshuRecipe,
    count_ranges,
    depth_quantiles,
)
from cfm.pp._perturbation_parts import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cfm.hub import Checkpoint

Start = Literal["cell", "noise"]

#: Share of the steps that warms up, and most steps of warm-up, as published.
_WARM_UP, _LONGEST_WARM_UP = 0.05, 1000
#: ``uns[GENERATION]`` of generated cells, and ``obs[DEPTH]``, the requested depth.
GENERATION, DEPTH = "generation", "depth"
#: Steps with and without guidance, as published, and the weight of the guidance.
_GUIDED_STEPS, _PLAIN_STEPS = 3, 256
#: Steps where a count term stands beside the network.
_STEPS_WITH_TERM = 16
_GUIDANCE = 2.0
#: Tensors that float16 has no room for.
_EXACT = ("depth_quantiles",)


@fill_docs(TEXTS)
class LingshuCell(RegisteredCounts):
    """Generative model of single cells: masked discrete diffusion over count tokens.

    A cell is the raw counts of all genes of the vocabulary, each one of 281 values; what is not
    measured is missing, not zero. The conditions of a cell are its source (cell line, donor or
    cell type), its perturbation, and further ones. New cells can be made for any of them, also
    for a source and a perturbation that were never seen together.

    Parameters
    ----------
    adata
        Cells by genes, raw counts, registered with :meth:`setup_anndata`.
    vocabulary
        Genes of the model; by default ``adata.var_names``.
    levels
        Conditions of the model (:class:`cfm.models.lingshu.ConditionLevels`); by default those
        of ``adata``.
    size
        ``"mini"``, one of the published ``"default"`` (groups of 8 genes) and ``"vcc"`` (groups of
        32, for genetic perturbations), or a ``LingshuSize``.
    %(perturbation_features)s
        By default each has a token of its own.
    count_model
        A trained :class:`PerturbationCountModel` of the same genes and conditions: its
        log-probabilities of counts are added to the network's logits, and :meth:`train` goes on
        from there. By default :meth:`train` fits one, if depths are conditions. It is not part
        of the published model.
    seed
        Seed of the initial weights and of the order of the genes.
    **sizes
        Single settings of the size to change: ``dim``, ``n_layers``, ``n_heads``, ``ff_dim``,
        ``group_size``, ``depth``, ``learned_positions``.

    Attributes
    ----------
    module
        The network.
    vocabulary
        Its genes.
    levels
        Its conditions.
    size
        Its sizes.
    perturbation_features
        Features of the perturbations, ``None`` if each has a token of its own.

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

    largest_count = LARGEST
    Recipe = LingshuRecipe
    not_read = (
        "The weights that the authors of Lingshu-Cell released have a layout that is not "
        "documented and are not read"
    )

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        vocabulary: Sequence[str] | GeneVocabulary | None = None,
        levels: ConditionLevels | None = None,
        size: str | LingshuSize = "mini",
        perturbation_features: pd.DataFrame | PerturbationFeatures | None = None,
        count_model: PerturbationCountModel | None = None,
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        vocabulary = self._vocabulary_of(adata, vocabulary)
        self.vocabulary = vocabulary
        if levels is None:
            levels = ConditionLevels() if adata is None else self._registered_levels(adata)
        self.levels = levels
        self.size = named_size(size, SIZES, sizes)
        described = perturbation_features
        if described is not None and not isinstance(described, PerturbationFeatures):
            described = PerturbationFeatures.of(described, levels.control)
        self.perturbation_features = described
        if described is not None:
            self.levels = described.levels(levels)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = LingshuModule(
                len(vocabulary),
                **vars(self.size),
                **self.levels.module_arguments(),
                n_features=0 if described is None else described.values.shape[1],
            )
        if described is not None:
            self.module.features.copy_(torch.from_numpy(described.values))
        if count_model is not None:
            self.set_count_term(count_model)
        n = sum(p.numel() for p in self.module.parameters())
        self._model_summary_string = (
            f"LingshuCell: {len(self.vocabulary)} genes in groups of {self.size.group_size}, "
            f"{len(self.levels.sources)} sources, {len(self.levels.perturbations)} perturbations, "
            f"width {self.size.dim}, {self.size.n_layers} layers, {n:,} parameters"
        )

    @property
    def count_model(self) -> PerturbationCountModel | None:
        """A copy of the count model beside the network, which can be used alone; or ``None``."""
        term = self.module.count_term
        if term is None:
            return None
        model = PerturbationCountModel(
            vocabulary=self.vocabulary,
            levels=replace(self.levels, covariates={}),
            perturbation_features=self.perturbation_features,
        )
        model.module = NegativeBinomialModule(**term.sizes).to(self.device)
        model.module.load_state_dict(term.state_dict())
        model.provenance = {
            key: self.provenance[key] for key in ("training_studies",) if key in self.provenance
        }
        model.is_trained_ = True
        return model

    def set_count_term(self, count_model: PerturbationCountModel | None) -> None:
        """Set the count model whose log-probabilities are added to the network's logits.

        The head of the network is set to zero, so that training starts from the count model
        alone. A trained head does not fit beside another count model: what a loaded model has
        learned of scores is lost, and it is no longer the checkpoint it came from.

        Parameters
        ----------
        count_model
            Of the same genes and conditions; it is copied. ``None`` takes the count term away and
            leaves the head as it is: train the model before it is used.

        Raises
        ------
        ValueError
            If genes or conditions differ, or depths are no conditions of the model.
        """
        if count_model is not None:
            self._check_count_model(count_model)
        self._use_count_term(None if count_model is None else count_model.module)
        known = None if count_model is None else count_model.provenance.get("training_studies")
        if self.checkpoint_sha256 or known:
            self.mark_trained(np.array(known or [], dtype=object))

    def _use_count_term(self, module: NegativeBinomialModule | None) -> None:
        term = None if module is None else CountTerm.of(module).to(self.device)
        self.module.set_count_term(term)

    def _check_count_model(self, count_model: PerturbationCountModel) -> None:
        if not isinstance(count_model, PerturbationCountModel):
            raise TypeError(
                f"count_model= is a {type(count_model).__name__}; expected a "
                "PerturbationCountModel."
            )
        self._check_depth()
        if not count_model.is_trained_:
            raise ValueError("count_model= is not trained; call its train() first.")
        own, other = self.levels, count_model.levels
        parts: dict[str, tuple[Any, Any]] = {
            "genes": (list(self.vocabulary.genes), list(count_model.vocabulary.genes)),
            "sources": ((own.source_key, own.sources), (other.source_key, other.sources)),
            "perturbations": (
                (own.perturbation_key, own.perturbations, own.control),
                (other.perturbation_key, other.perturbations, other.control),
            ),
        }
        differ = [name for name, (ours, theirs) in parts.items() if ours != theirs]
        if differ:
            raise ValueError(
                f"count_model= was trained with other {' and '.join(differ)} than this model has; "
                "train it on the same data, registered in the same way."
            )

    def _check_depth(self) -> None:
        if not self.size.depth:
            raise ValueError(
                "A count term needs the depth of each cell; make the model with depth=True."
            )

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        config: dict[str, Any] = {"size": vars(self.size), "levels": vars(self.levels)}
        if self.perturbation_features is not None:
            config["perturbation_features"] = self.perturbation_features.config()
        if (term := self.module.count_term) is not None:
            config["count_term"] = {"kind": KIND, "sizes": term.sizes}
        return dict(self.module.state_dict()), config, self._genes_file()

    def _compacted(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = super()._compacted(tensors) | {k: tensors[k] for k in _EXACT if k in tensors}
        out["group.permutation"] = out["group.permutation"].to(torch.int32)
        return out

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        config = dict(checkpoint.config)
        tensors = checkpoint.tensors
        with validate_config("LingshuCell", checkpoint.name, tensors):
            size = LingshuSize(**config.pop("size"))
            levels = ConditionLevels(**config.pop("levels"))
            described = config.pop("perturbation_features", None)
            term = config.pop("count_term", None)
            genes = stored_genes(checkpoint)
            if described is not None:
                described = PerturbationFeatures.from_config(
                    described, tensors["features"].float().numpy(), levels.perturbations
                )
            model = cls(vocabulary=genes, levels=levels, size=size, perturbation_features=described)
            if term is not None:
                if term["kind"] != KIND:
                    raise ValueError(f"a count term of kind {term['kind']!r}")
                model.module.count_term = CountTerm(**term["sizes"])
        load_weights(model.module, tensors, checkpoint.name)
        order = model.module.group.permutation
        if not torch.equal(order.sort().values, torch.arange(len(genes))):
            raise ValueError(
                f"The gene order of checkpoint {checkpoint.name!r} does not name each of its "
                f"{len(genes)} genes once; it is damaged: download it again."
            )
        model.provenance = config
        return model

    @checks_arguments(guidance=Range(-1), guidance_floor=BELOW_1)
    def generate(
        self,
        cells: int | pd.DataFrame,
        *,
        source: str | None = None,
        perturbation: str | Sequence[str] | None = None,
        covariates: Mapping[str, str] | None = None,
        depth: float | np.ndarray | None = None,
        features: pd.Series | None = None,
        frozen: Any = None,
        guidance: float | None = None,
        guidance_floor: float = 1e-3,
        n_steps: int | None = None,
        dequantise: Dequantise = "lower",
        batch_size: int = 64,
        precision: Precision = "float32",
        seed: int = 0,
        path: str | Path | None = None,
        overwrite: bool = False,
    ) -> AnnData:
        r"""Make cells from nothing but conditions.

        All genes start hidden. In each of ``n_steps`` steps some, chosen at random, are drawn from
        the network's distributions given those drawn before; how many follows a cosine. Missing
        conditions are *unknown*.

        Parameters
        ----------
        cells
            Number of cells, or a table with a row per cell: its columns named as the registered
            ones (and ``"depth"``) are their conditions.
        source, perturbation, covariates
            Conditions of all cells, instead of such columns. Combinations as ``"A+B"`` or
            ``["A", "B"]``, in any order, also such as were not in training.
        depth
            Counts per cell, a number or ``(n,)``, for models with depths. By default drawn from
            those of the training cells of the source.
        features
            Of a perturbation that is not in the table which the model was trained with: a value
            for each of its features. ``perturbation`` names it.
        frozen
            Counts that are given and stay: ``{gene: count}``, or a DataFrame of cells by genes, or
            an array of cells by all genes of the model; ``NaN`` is drawn.
        guidance
            Weight :math:`w` of classifier-free guidance,
            :math:`a_0 + (w + 1) (a_c - a_0)` with the logits :math:`a_0` of the control of the
            same source (eq. 10). By default 2.0 as published if a perturbation is given, else
            0; of a model with a count term, whose effects have their size already, always 0.
        guidance_floor
            Guidance leaves values alone that are less probable than this with and without the
            perturbation; 0 is the published formula, which makes values that never occurred
            likely where there is little data.
        n_steps
            By default 3 with guidance and 256 without, as published; 16 with a count term.
        dequantise
            What a value above 100 stands for: the ``"lower"`` edge of its bin, its ``"midpoint"``,
            or a ``"uniform"`` draw in it.
        batch_size
            Cells that are held before they are written; the result does not depend on it.
        precision
            ``"float32"`` (``"auto"`` as well), or ``"bfloat16"``, in which close draws come out
            otherwise on other machines.
        seed
            Each cell is drawn from this and its name (``"cell0"``, …, or that of the table's row),
            whatever other cells are made.
        path
            A file ``.h5ad`` or ``.zarr`` to write to while cells are made, so that memory does not
            grow with their number.
        overwrite
            Replace such a file.

        Returns
        -------
        AnnData, cells by the genes of the model, with ``X`` on disk if ``path`` is given.

        ``.X``
            Counts, CSR int32.
        ``.obs``
            The requested conditions, categorical, and ``'depth'`` float32 for models with depths.
        ``.uns['generation']['params']``
            Arguments, model and SHA-256.

        Raises
        ------
        KeyError
            If a condition or gene is unknown to the model.
        ValueError
            If there is no cell, an option is out of range, or the model has no such condition.
        FileExistsError
            If there is a file at ``path``.
        """
        table = wanted_cells(cells)
        conditions, columns = self._asked(
            table, depth, features, seed, source, perturbation, covariates
        )
        guidance, n_steps = self._sampling(conditions, guidance, n_steps)
        how = Generation(
            n_steps=n_steps,
            guidance=Guidance(guidance, guidance_floor),
            dequantise=dequantise,
            batch_size=batch_size,
            dtype=self.inference_dtype(precision),
            seed=seed,
        )
        given = read_frozen(frozen, len(table), self.vocabulary)
        blocks = how.blocks(self.module, list(table.index), conditions, given)
        obs = table.assign(**columns)
        var = pd.DataFrame(index=pd.Index(self.vocabulary.genes.to_list(), name=None))
        record = {
            "n_steps": n_steps,
            "guidance": guidance,
            "guidance_floor": guidance_floor,
            "dequantise": dequantise,
            "seed": seed,
            "device": str(self.device),
        } | self.weights_record()
        uns = {GENERATION: {PARAMS: record}}
        if path is None:
            x = sparse.vstack(list(blocks), format="csr")
            return AnnData(x, obs=obs, var=var, uns=uns)
        with (file := CellFile(path, overwrite=overwrite)):
            for block in blocks:
                file.append(block)
            file.finish(obs, var, uns)
        return file.read()

    def _asked(
        self,
        table: pd.DataFrame,
        depth: Any,
        features: pd.Series | None,
        seed: int,
        source: str | None,
        perturbation: str | Sequence[str] | None,
        covariates: Mapping[str, str] | None,
    ) -> tuple[Conditions, dict[str, Any]]:
        """Return the conditions of cells, and as columns of ``obs``."""
        levels, n = self.levels, len(table)
        if perturbation is not None and not isinstance(perturbation, str):
            perturbation = "+".join(perturbation)
        named: dict[str, Any] = {}
        for key, value, option in (
            (levels.source_key, source, "source"),
            (levels.perturbation_key, perturbation, "perturbation"),
        ):
            if value is not None and key is None:
                raise ValueError(f"{option}= was given, but the model was trained without.")
            if key is not None and value is not None:
                named[key] = np.full(n, value, dtype=object)
            elif key is not None and key in table:
                named[key] = table[key].astype(str).to_numpy(dtype=object)
        found = [key for key in levels.covariates if key in table]
        given = table[found].astype(str).assign(**dict(covariates or {}))
        levels.check_table(table, named=bool(named or given.shape[1]))
        conditions = self._numbered(
            n,
            source=named.get(levels.source_key or ""),
            perturbation=named.get(levels.perturbation_key or ""),
            covariates=given if given.shape[1] else None,
            features=features,
        )
        named |= {str(key): given[key].to_numpy() for key in given}
        columns: dict[str, Any] = {key: pd.Categorical(value) for key, value in named.items()}
        if depth is None and self.size.depth and DEPTH in table:
            depth = table[DEPTH].to_numpy()
        if self.size.depth:
            depths = self._depths(depth, conditions.source.numpy(), list(table.index), seed)
            conditions = conditions._replace(depth=torch.from_numpy(depths))
            columns[DEPTH] = depths
        elif depth is not None:
            raise ValueError("depth= was given, but the model was trained without.")
        return conditions, columns

    def _depths(self, depth: Any, source: np.ndarray, names: list[str], seed: int) -> np.ndarray:
        """Return the depth of each cell, ``(n,)`` float32: the requested one, or as in training."""
        if depth is not None:
            found = np.broadcast_to(np.asarray(depth, dtype=np.float32), (len(names),)).copy()
            if not (found > 0).all():
                raise ValueError(f"depth= must be above 0; found {found.min():.4g}.")
            return found
        quantiles = self.module.depth_quantiles.cpu().numpy()
        if not quantiles.any():  # never trained
            return np.full(len(names), np.nan, dtype=np.float32)
        ranks = np.linspace(0.0, 1.0, quantiles.shape[1])
        drawn = [draw_numbers([name], 0, seed).rank[0] for name in names]
        pairs = zip(drawn, source, strict=True)
        return np.array([np.interp(r, ranks, quantiles[s]) for r, s in pairs], dtype=np.float32)

    def _sampling(
        self, conditions: Conditions, guidance: float | None, n_steps: int | None
    ) -> tuple[float, int]:
        """Return guidance and steps, by default those of the class."""
        parts = conditions.parts
        perturbed = self.module.has_perturbation and bool((parts >= FIRST_PART).any())
        if guidance is None:
            guidance = _GUIDANCE if perturbed and self.module.count_term is None else 0.0
        if guidance and (not self.module.has_perturbation or bool((parts == UNKNOWN).any())):
            raise ValueError(
                f"guidance={guidance} leads away from the control, towards a perturbation, and "
                "none was given; leave it out or pass perturbation=."
            )
        if n_steps is None and self.module.count_term is not None:
            n_steps = _STEPS_WITH_TERM
        elif n_steps is None:
            n_steps = _GUIDED_STEPS if guidance else _PLAIN_STEPS
        return float(guidance), min(int(n_steps), len(self.vocabulary))

    @checks_arguments(guidance=Range(-1), guidance_floor=BELOW_1)
    @fill_docs(TEXTS)
    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        start: Start = "cell",
        guidance: float | None = None,
        guidance_floor: float = 1e-3,
        n_steps: int | None = None,
        keep_genes: Sequence[str] | None = None,
        frozen: Any = None,
        prior_cells: AnnData | None = None,
        features: pd.Series | None = None,
        dequantise: Dequantise = "lower",
        precision: Precision = "float32",
    ) -> AnnData:
        """Generate a perturbed cell for each unperturbed one, with its source and covariates.

        From ``"noise"``, the new cells are of the group of the old ones, not the same cells: of
        each only its conditions are used, its depth for models with depths, and the counts of
        ``keep_genes``. From the ``"cell"``, the random numbers with which the model would have made
        the old cell are computed, and the new one is made with these. A gene that is high for a
        cell of its kind stays high, and genes that the perturbation does not change stay nearly as
        they were.

        Parameters
        ----------
        adata
            Unperturbed cells by genes, raw counts. Genes of the model that it lacks are generated.
        %(perturbation_parts)s
        %(counts_layer)s
        %(sources)s
        batch_size
            Cells that are held at a time; the result does not depend on it.
        %(cell_seed)s
        start
            ``"cell"`` or ``"noise"``, as published; see above.
        guidance, guidance_floor, n_steps, frozen, features, dequantise, precision
            As for :meth:`generate`; ``frozen`` tables have a row per cell of ``adata``.
        keep_genes
            Genes, by the names of ``adata``, whose counts are taken from the old cell and kept.
        prior_cells
            Raw counts of other sources, with controls and the same perturbation, in the columns of
            training, such as all training cells. Genes that respond to it in any other source are
            given: the counts of a random perturbed cell there, scaled to the depth of the old
            cell. Cells of the same source are never read. Genes respond whose mean count changes by
            more than 1 and twofold, at a false discovery rate below 5 %% (Mann-Whitney). As
            published (eq. 26), but there only genes that fall are given, a count of 1.

        Returns
        -------
        AnnData, cells by the genes of the model, CSR int32 counts; genes by the names that
        ``adata`` has for them.

        Raises
        ------
        KeyError
            If the model does not have the perturbation or a source, or a gene to keep is not
            measured or not one of its genes.
        ValueError
            If there is no cell, values are no counts, the model has no perturbations, or
            ``prior_cells`` have no other source with controls and the perturbation.
        """
        if self.levels.perturbation_key is None:
            raise ValueError(
                "The model was trained without perturbation_key=, so it has no perturbations."
            )
        n = adata.n_obs
        obs, reader, conditions = self._cells_to_perturb(
            adata, perturbation, layer, groupby, features, covariates=True, depths=self.size.depth
        )
        guidance, n_steps = self._sampling(conditions, guidance, n_steps)
        given = read_frozen(frozen, n, self.vocabulary)
        if keep_genes is not None:
            given = keep_counts(given, reader, adata, keep_genes)
        if prior_cells is not None:
            given = add_prior(
                given,
                reader,
                [str(name) for name in adata.obs_names],
                self._prior_sources(obs, groupby),
                DenseCountReader(prior_cells, self.vocabulary, layer),
                self._prior_conditions(prior_cells, perturbation, groupby),
                seed,
            )
        how = Generation(
            n_steps=n_steps,
            guidance=Guidance(guidance, guidance_floor),
            dequantise=dequantise,
            batch_size=batch_size,
            dtype=self.inference_dtype(precision),
            seed=seed,
        )
        origin = (reader.counts_of, conditions.control()) if start == "cell" else None
        cells = [str(name) for name in adata.obs_names]
        blocks = how.blocks(self.module, cells, conditions, given, origin)
        return AnnData(
            sparse.vstack(list(blocks), format="csr"),
            obs=obs[[]],
            var=pd.DataFrame(index=reader.names(adata.var_names)),
        )

    def _prior_sources(self, obs: pd.DataFrame, groupby: str | None) -> np.ndarray:
        found = self._sources(obs, groupby)
        if found is None:
            raise ValueError("prior_cells= are of other sources; the model was trained without.")
        return found

    def _prior_conditions(
        self, prior: AnnData, perturbation: Sequence[str], groupby: str | None
    ) -> pd.DataFrame:
        """Return source and state of prior cells; see :func:`add_prior`."""
        check_unique_names(prior.obs_names, axis="obs")
        obs, key, control = (
            in_memory_frame(prior.obs),
            self.levels.perturbation_key,
            self.levels.control,
        )
        if key not in obs:
            raise KeyError(f"prior_cells.obs has no column {key!r}, the perturbation of each cell.")
        wanted = parts_of("+".join(perturbation), control)
        state = {wanted: 1, frozenset(): 0}
        found = [state.get(parts_of(str(p), control), -1) for p in obs[key]]
        table = {"source": self._prior_sources(obs, groupby), "perturbed": found}
        return pd.DataFrame(table, index=prior.obs_names.astype(str))

    @contextmanager
    def _training(self, run: TrainingRun) -> Iterator[Training]:
        recipe: LingshuRecipe = run.recipe
        seed = run.seed
        reader = self._registered_reader()
        conditions = self._conditions_of(in_memory_frame(self.adata.obs))
        studies = self.registered_categories("study")
        # in the order of their numbers, as for the bundled checkpoint
        names = np.char.zfill(np.arange(len(studies)).astype(str), 12)
        held_out = held_out_rows(studies, recipe.validation_share, seed, names)
        training, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        if len(validation) > recipe.n_validation:
            spread = np.linspace(0, len(validation) - 1, recipe.n_validation)
            validation = validation[spread.astype(np.int64)]
        fits_counts = recipe.count_term
        if fits_counts is None:
            known = self.is_trained_ or self.module.count_term is not None
            fits_counts = self.size.depth and not known
        if fits_counts:
            self._fit_count_term(reader, conditions, training)
        self._set_ranges(reader, conditions, training)

        def read(rows: np.ndarray) -> tuple[torch.Tensor, Conditions]:
            counts = reader.counts(rows)
            own = conditions.rows(torch.from_numpy(rows))
            tokens = torch.from_numpy(to_tokens(counts, absent=MISSING))
            return tokens, own._replace(depth=torch.from_numpy(library_sizes(counts)))

        settings: Any = {
            "least_time": recipe.least_time,
            "prefetch": reader.prefetch,
            **run.layout,
        }
        keys = [self.levels.source_key, self.levels.perturbation_key]
        groups = self.adata.obs[[key for key in keys if key is not None]].astype(str)
        groups = groups.assign(**{" study": studies})
        stream = CellStream(
            read,
            training,
            seed=seed,
            stratified=recipe.stratified,
            condition_dropout=recipe.condition_dropout,
            weights=root_weights(groups.iloc[training]) if recipe.balanced else None,
            **settings,
        )
        checks = None
        if len(validation):
            checks = CellStream(
                read, validation, seed=seed + 1, stratified=True, fixed=True, **settings
            )
        n_steps = run.count_steps(stream.n_batches)
        plan = DiffusionPlan(
            self.module,
            last_lr=recipe.last_lr,
            warm_up=max(1, min(_LONGEST_WARM_UP, round(_WARM_UP * n_steps))),
            average_width=recipe.average_width,
            **run.schedule,
        )
        self.module.trunk.recompute = recipe.recompute
        try:
            yield Training(plan, stream, checks)
        finally:
            self.module.trunk.recompute = False
            plan.show_average(True)
        self.mark_trained(studies, training_seed=seed, max_steps=n_steps)

    def fit_count_term(self) -> None:
        """Fit a count model of the registered cells beside the network, in a minute, not in hours.

        The same as :meth:`set_count_term` of a :class:`PerturbationCountModel` that was trained on
        the model's own data. The untrained network adds nothing to it; :meth:`train` then
        learns dependences between genes. Weights that were trained without a count term do
        not fit beside it, so the scores of the network begin anew.

        Raises
        ------
        ValueError
            If the model has no data or no depths (``depth=True``), or the data are no
            counts.

        Warns
        -----
        UserWarning
            If a perturbation has too few cells in every source, and no features: its effect is 0.
        """
        reader = self._registered_reader()
        conditions = self._conditions_of(in_memory_frame(self.adata.obs))
        rows = np.arange(self.adata.n_obs)
        self._fit_count_term(reader, conditions, rows)
        self._set_ranges(reader, conditions, rows)
        self.is_trained_ = True
        self.mark_trained(self.registered_categories("study"))

    def _fit_count_term(
        self, reader: DenseCountReader, conditions: Conditions, rows: np.ndarray
    ) -> None:
        self._check_depth()
        features = self.perturbation_features
        self._use_count_term(fit_counts(reader, rows, conditions, self.levels, features))

    def _set_ranges(
        self, reader: DenseCountReader, conditions: Conditions, rows: np.ndarray
    ) -> None:
        """Set the largest count of each gene and the library sizes to those of training cells."""
        limit, depth = count_ranges(reader, rows)
        module = self.module
        found = torch.from_numpy(limit).to(module.largest.device)
        module.largest = torch.maximum(module.largest, found) if self.is_trained_ else found
        known = module.depth_quantiles
        if self.size.depth and not (self.is_trained_ and known.any()):
            source = conditions.source.numpy()[rows]
            quantiles = depth_quantiles(depth, source, len(known) - 1, known.shape[1])
            known.copy_(torch.from_numpy(quantiles))
