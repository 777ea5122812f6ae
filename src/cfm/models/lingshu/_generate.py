"""Lingshu-Cell makes cells: conditions in, counts out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import settings
from scvi.utils import track

from cfm._arguments import BELOW_1, Range, check_whole, checks_arguments
from cfm._fields import PARAMS
from cfm.data._matrix import check_unique_names
from cfm.models._precision import Precision
from cfm.models.lingshu._conditions import FIRST_PART, UNKNOWN, Conditions
from cfm.models.lingshu._frozen import FREE, read_frozen
from cfm.models.lingshu._module import MASK, MISSING
from cfm.models.lingshu._quantiser import Dequantise, dequantise, quantise
from cfm.models.lingshu._sampler import Guidance, Sampler, draw_numbers
from cfm.models.lingshu._stream import CellFile
from cfm.models.lingshu._train import Trainable
from cfm.pp._perturbation_parts import split_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cfm.models.lingshu._frozen import Frozen


#: ``uns[GENERATION]`` of generated cells, and ``obs[DEPTH]``, the depth that was asked for.
GENERATION, DEPTH = "generation", "depth"
#: Steps with and without guidance, as published, and the weight of the guidance.
_GUIDED_STEPS, _PLAIN_STEPS = 3, 256
#: Steps where a count term stands beside the network.
_STEPS_WITH_TERM = 16
_GUIDANCE = 2.0


class Generating(Trainable):
    """A Lingshu-Cell that makes cells."""

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
    ) -> ad.AnnData:
        r"""Make cells from nothing but conditions.

        All genes start hidden. In each of ``n_steps`` steps some, chosen at random, are drawn from
        the network's distributions given those drawn before; how many follows a cosine. What is
        not said of a cell is *unknown* to the network.

        Parameters
        ----------
        cells
            Number of cells, or a table with a row per cell: its columns named as the registered
            ones (and ``"depth"``) are their conditions.
        source, perturbation, covariates
            Conditions of all cells, instead of such columns. Combinations as ``"A+B"`` or
            ``["A", "B"]``, in any order, also such as were not in training.
        depth
            Counts per cell, a number or ``(n,)``, for models that know them. By default drawn from
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
            same source (eq. 10). By default 2.0 as published if a perturbation is asked for, else
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
            The conditions asked for, categorical, and ``'depth'`` float32 if the model knows it.
        ``.uns['generation']['params']``
            Arguments, model and SHA-256.

        Raises
        ------
        KeyError
            If a condition or gene is unknown to the model.
        ValueError
            If no cell is asked for, an option is out of range, or the model has no such condition.
        FileExistsError
            If there is a file at ``path``.
        """
        obs, table = _requested(cells)
        conditions, shown = self._asked(
            table, depth, features, seed, obs, source, perturbation, covariates
        )
        guidance, n_steps = self._sampling(conditions, guidance, n_steps)
        blocks = self._blocks(
            list(obs.index),
            conditions,
            read_frozen(frozen, len(obs), self.vocabulary),
            guidance=Guidance(guidance, guidance_floor),
            n_steps=n_steps,
            method=dequantise,
            batch_size=batch_size,
            precision=precision,
            seed=seed,
        )
        obs = obs.assign(**shown)
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
            return ad.AnnData(x, obs=obs, var=var, uns=uns)
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
        obs: pd.DataFrame,
        source: str | None,
        perturbation: str | Sequence[str] | None,
        covariates: Mapping[str, str] | None,
    ) -> tuple[Conditions, dict[str, Any]]:
        """Return the conditions of cells, and as columns of ``obs``."""
        levels, n = self.levels, len(obs)
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
        columns = [key for key in levels.covariates if key in table]
        told = pd.DataFrame({k: table[k].astype(str) for k in columns}, index=obs.index)
        told = told.assign(**dict(covariates or {}))
        levels.check_table(table, said=bool(named or told.shape[1]))
        conditions = self._numbered(
            n,
            source=named.get(levels.source_key or ""),
            perturbation=named.get(levels.perturbation_key or ""),
            covariates=told if told.shape[1] else None,
            features=features,
        )
        named |= {str(key): told[key].to_numpy() for key in told}
        shown: dict[str, Any] = {key: pd.Categorical(value) for key, value in named.items()}
        if depth is None and self.size.depth and DEPTH in table:
            depth = table[DEPTH].to_numpy()
        if self.size.depth:
            depths = self._depths(depth, conditions.source.numpy(), list(obs.index), seed)
            conditions = conditions._replace(depth=torch.from_numpy(depths))
            shown[DEPTH] = depths
        elif depth is not None:
            raise ValueError("depth= was given, but the model was trained without.")
        return conditions, shown

    def _numbered(
        self,
        n: int,
        *,
        source: np.ndarray | None,
        perturbation: np.ndarray | None,
        covariates: pd.DataFrame | None,
        features: pd.Series | None,
        depth: np.ndarray | None = None,
    ) -> Conditions:
        """Turn names into numbers; a perturbation may be described by features."""
        described: list[str] = []
        rows = None
        if features is not None:
            if self.perturbation_features is None:
                raise ValueError(
                    "features= was given, but the model was trained without perturbation_features=."
                )
            asked = sorted(set() if perturbation is None else set(perturbation))
            known = {*self.levels.perturbations, self.levels.control}
            new = [p for name in asked for p in split_parts(name) if p not in known]
            if len(set(new)) != 1:
                raise ValueError(
                    f"features= describes one perturbation that the model does not know; found "
                    f"{sorted(set(new))} in {asked}."
                )
            described = new[:1]
            row = torch.from_numpy(self.perturbation_features.describe(features))
            rows = torch.cat([self.module.features.cpu(), row[None]])
        conditions = self.levels.conditions(
            n,
            source=source,
            perturbation=perturbation,
            covariates=covariates,
            depth=depth,
            described=described,
        )
        return conditions._replace(features=rows)

    def _depths(self, depth: Any, source: np.ndarray, names: list[str], seed: int) -> np.ndarray:
        """Return the depth of each cell, ``(n,)`` float32: as asked for, or as in training."""
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
        """Settle guidance and steps."""
        parts = conditions.parts
        perturbed = self.module.has_perturbation and bool((parts >= FIRST_PART).any())
        if guidance is None:
            guidance = _GUIDANCE if perturbed and self.module.count_term is None else 0.0
        if guidance and (not self.module.has_perturbation or bool((parts == UNKNOWN).any())):
            raise ValueError(
                f"guidance={guidance} leads away from the control, towards a perturbation, and "
                "none was asked for; leave it out or give perturbation=."
            )
        if n_steps is None and self.module.count_term is not None:
            n_steps = _STEPS_WITH_TERM
        elif n_steps is None:
            n_steps = _GUIDED_STEPS if guidance else _PLAIN_STEPS
        return float(guidance), min(int(n_steps), len(self.vocabulary))

    def _blocks(
        self,
        names: list[str],
        conditions: Conditions,
        frozen: Frozen,
        *,
        guidance: Guidance,
        n_steps: int,
        method: Dequantise,
        batch_size: int,
        precision: Precision,
        seed: int,
        origin: tuple[Callable[[slice], np.ndarray], Conditions] | None = None,
    ) -> Iterator[sparse.csr_matrix]:
        """Check what is asked for, and return an iterator over blocks of counts, CSR int32.

        With an ``origin``, the counts of cells (−1 = not measured) and their conditions, these
        very cells are made again under other conditions.
        """
        dequantise(np.zeros(0, dtype=np.int64), method, uniform=np.zeros(0))
        dtype = self.inference_dtype(precision)
        frozen(slice(0, 0))

        def make() -> Iterator[sparse.csr_matrix]:
            self.module.eval()
            sampler = Sampler(self.module, dtype)
            held: list[sparse.csr_matrix] = []
            for rows in self._chunks(len(names), sampler.cells_at_once):
                draws = draw_numbers(names[rows], len(self.vocabulary), seed)
                given = frozen(rows)
                tokens = np.where(given == FREE, MASK, quantise(np.maximum(given, 0)))
                tokens = tokens.astype(np.int64)
                told = conditions.rows(rows).to(self.device)
                if origin is not None:
                    observed, before = origin
                    own = observed(rows)
                    was = np.where(own == MISSING, MASK, quantise(np.maximum(own, 0)))
                    draws = sampler.explain(
                        tokens,
                        was.astype(np.int64),
                        before.rows(rows).to(self.device),
                        draws,
                        n_steps=n_steps,
                    )
                found = sampler.sample(tokens, told, draws, n_steps=n_steps, guidance=guidance)
                counts = dequantise(found, method, uniform=draws.inside)
                if origin is not None:  # a value that stays is the same count
                    counts = np.where(found == was, own, counts)
                counts = np.where(given == FREE, counts, given).astype(np.int32)
                held.append(sparse.csr_matrix(counts))
                if sum(block.shape[0] for block in held) >= batch_size:
                    yield sparse.vstack(held, format="csr")
                    held = []
            if held:
                yield sparse.vstack(held, format="csr")

        return make()

    @staticmethod
    def _chunks(n: int, size: int) -> Iterator[slice]:
        """Yield slices of cells, with a progress bar if there are several."""
        starts = range(0, n, size)
        silent = settings.verbosity > logging.INFO or len(starts) < 2
        for start in track(starts, description="Generating cells", style="tqdm", disable=silent):
            yield slice(start, min(start + size, n))


def _requested(cells: int | pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return ``obs`` of the cells that are asked for, and the table of conditions."""
    if isinstance(cells, pd.DataFrame):
        if not len(cells):
            raise ValueError("cells= has no row; ask for at least one cell.")
        table = cells.set_axis(cells.index.astype(str), axis=0)
        check_unique_names(table.index, axis="obs")
        return table.copy(), table
    if isinstance(cells, bool) or not isinstance(cells, int | np.integer):
        raise TypeError(
            f"cells= is a {type(cells).__name__}; expected a number of cells, or a table with a "
            "row for each."
        )
    obs = pd.DataFrame(index=pd.Index([f"cell{i}" for i in range(check_whole("cells", cells))]))
    return obs, obs
