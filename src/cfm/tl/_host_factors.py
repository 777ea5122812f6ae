"""Host genes that carry a virus call, with evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
from scvi import settings
from tqdm.auto import tqdm

from cfm._adata import check_key, params_of, takes_anndata, target, warn_overwritten, warn_user
from cfm._docs import fill_docs
from cfm._fields import CONTRASTS, HOST_FACTORS_KEY, PARAMS, RESULTS, VIRUS_KEY
from cfm.data import map_identifiers
from cfm.data._matrix import in_memory_frame
from cfm.models import CellPulse, load_model
from cfm.stats._evidence import pooled_p_values
from cfm.stats._gene_scores import (
    gene_folds,
    guided_scores,
    importance,
    mean_known,
    permute_effects,
    unit_rows,
)
from cfm.tl._groups import content_hash, profile_groups
from cfm.tl._run import TEXTS, run_record

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

Method = Literal["attention", "integrated_gradients", "reversal", "consensus", "guided"]
Null = Literal["auto", "labels", "directions", "effects"]

#: Methods for single profiles; the consensus joins them.
SINGLE = ("attention", "integrated_gradients", "reversal")
#: The target if it is no virus.
RESPONSE_TARGET = "response"
#: Least number of ways to choose the profiles of a group for a permutation of labels.
MIN_ARRANGEMENTS = 100
#: Least number of known genes for a direction in gene space.
MIN_KNOWN = 5
#: Profiles in one pass of the model.
_BLOCK = 8


@takes_anndata(columns=("groupby",), ranges={"n_permutations": 0})
@fill_docs(TEXTS)
def host_factors(
    adata: AnnData,
    groupby: str | None = None,
    method: Method = "consensus",
    *,
    model: str | Path | CellPulse = "cellpulse-virus",
    explain: str | Mapping[str, str] | None = None,
    known: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    null: Null = "auto",
    n_permutations: int = 50,
    layer: str | None = None,
    key_added: str = HOST_FACTORS_KEY,
    seed: int = 0,
    copy: bool = False,
) -> AnnData | None:
    r"""Rank the genes that drive the predicted virus or response of each group of contrasts.

    The explained quantity is the log-odds of the virus that :func:`cfm.tl.predict_virus` called in
    most contrasts of a group, else of a response against none. The ranked genes drive it by their
    *response*. They are candidates for host factors, not proof: many genes that a virus depends on
    are not regulated at all (see the benchmarks).

    Parameters
    ----------
    adata
        Contrasts with log2 fold changes (:func:`cfm.pp.contrasts`).
    groupby
        Column of ``obs`` with the groups, such as the virus; by default the ``groupby`` of
        :func:`cfm.pp.contrasts`.
    method
        ``"attention"``: attention of the model's summary token to the gene (rollout).
        ``"integrated_gradients"``: the gene's share of the log-odds. ``"reversal"``: the change of
        the log-odds when the gene's effect is set to 0 in silico. ``"consensus"``: the mean of
        :math:`-\log_{10}` of the rank fractions under all three. ``"guided"``: similarity of the
        gene's responses in the pretraining data to those of ``known`` host factors; the score does
        not depend on the contrasts of the group.
    model
        A CellPulse with a classifier, which runs on its own device.
        %(load)s
    explain
        ``"response"``, or a virus of the classifier, for all groups; or a dictionary of these by
        group, for these groups only. By default the most frequent ``obs["predicted_virus"]`` of
        :func:`cfm.tl.predict_virus`, or the response without that column.
    known
        For ``"guided"``: known host factors, such as the hits of a CRISPR screen of this or other
        viruses; a list, or a dict of lists by group. Each is scored by a rule fitted without it.
    null
        Permutations for the p-values; each repeats the whole scoring. ``"labels"`` permutes the
        contrasts of the groups; small p: the gene drives the prediction of these contrasts more
        than that of others. ``"effects"`` permutes each contrast's effects over its genes; small p:
        the gene contributes more than with the effect of another gene. ``"directions"`` permutes
        the signs of the effects only; small p: the direction matters; with few contrasts nothing
        can be significant. ``"auto"`` is labels if there are at least 100 ways to choose the
        group's contrasts, else effects. ``"guided"`` always permutes the labels *known*; small p:
        the gene is closer to the known genes than to as many random genes.
    n_permutations
        Number of permutations, 0 for none (p-values are then ``NaN``). The null pools the
        standardised scores of all genes, so p-values go well below one over this number.
    %(layer)s
    %(key_added)s
    seed
        Seed of the permutations.
    %(copy)s

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``adata.uns['host_factors' | key_added]['results']``
        DataFrame, a row per group and gene that the group measures, sorted by group and rank:
        ``group``, ``explained`` (``"response"`` or a virus), ``gene`` (symbol in the model's
        vocabulary), ``score`` (float64, larger = more important: mean attention in units of an
        average token, absolute mean change of the log-odds, the consensus, or standard deviations
        along the direction of known factors), ``rank`` (int64, from 1), ``direction`` (``"up"``,
        ``"down"``, ``"unchanged"``), ``effect`` (mean log2 fold change), ``concordance`` (share of
        the contrasts with the gene in which it moves in that direction), ``call_effect``
        (contribution of the gene's effect to the log-odds, by reversal), ``p_value``,
        ``fdr`` (Benjamini & Hochberg within the group), ``n_profiles``. With ``"consensus"`` also
        ``score_attention``, ``score_integrated_gradients`` and ``score_reversal``, with
        ``"guided"`` also ``known`` (bool).
    ``adata.uns['host_factors' | key_added]['params']``
        The arguments, the model, its SHA-256, the share of its genes found, and in the order of
        ``groups`` the explained ``targets`` and the ``nulls``.
    ``adata.varm['host_factors' | key_added]``
        DataFrame float32, genes by groups (``/`` in their names becomes ``|``): the scores; 0 for
        genes without one.

    Raises
    ------
    TypeError
        If ``adata`` or ``model`` is of another type.
    KeyError
        If the column, a group or the layer does not exist.
    ValueError
        If an argument is out of its range, the model has no classifier, all contrasts are in one
        group with ``null="labels"``, or the matrix does not hold log2 fold changes. ``adata`` stays
        unchanged.

    Warns
    -----
    UserWarning
        If a group has the name of a virus of the classifier, but the explained target is another.

    Notes
    -----
    Attention rollout: Abnar & Zuidema 2020. Integrated gradients: Sundararajan, Taly & Yan 2017,
    through captum. Reversal is exact and done for all genes at once. Guided scores: linear
    discriminant analysis of the model's gene factors.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.host_factors(contrasts, "virus", "reversal", n_permutations=5)
    >>> table = contrasts.uns["host_factors"]["results"]
    >>> sorted(table["group"].unique())
    ['virus_A', 'virus_B', 'virus_C', 'virus_D']
    """
    check_key(key_added)
    if known is not None and method != "guided":
        raise ValueError(f"known= goes with method='guided'; found method={method!r}.")
    if n_permutations == 1:
        raise ValueError(f"n_permutations={n_permutations!r}; expected 0, or 2 or more.")
    caller = load_model(model)
    if not isinstance(caller, CellPulse):
        raise TypeError(f"model= is a {type(caller).__name__}; expected CellPulse.")
    caller.require_classifier()
    groupby = _recorded_groupby(adata) if groupby is None else groupby
    rows_of = profile_groups(
        adata, groupby, list(explain) if isinstance(explain, Mapping) else None
    )
    explained = _explained_targets(adata, caller, rows_of, explain)
    everyone = np.flatnonzero(in_memory_frame(adata.obs)[groupby].notna().to_numpy())
    effects = np.concatenate([e for _, e, _ in caller.encode_blocks(adata, layer=layer)])
    hashes = np.array([content_hash(row) for row in effects], dtype=np.uint64)
    # Sorted by content: permutations depend neither on the order nor on the names of rows.
    everyone, *members = (
        rows[np.argsort(hashes[rows], kind="stable")] for rows in (everyone, *rows_of.values())
    )
    job = _Job(caller, effects, hashes, everyone, n_permutations, seed)
    groups = list(zip(rows_of, members, explained, strict=True))
    if method == "guided":
        nulls = ["known"] * len(groups)
        tables = [job.guided(group, rows, target, known) for group, rows, target in groups]
    else:
        nulls = [_choose_null(null, len(rows), len(everyone)) for rows in members]
        for (group, rows, _), kind in zip(groups, nulls, strict=True):
            if kind == "labels" and len(rows) == len(everyone) and n_permutations:
                raise ValueError(
                    f"null='labels' cannot permute anything: all {len(rows)} contrasts are in "
                    f"group {group!r}. Use null='effects', or add contrasts of other groups."
                )
        n_steps = [job.n_steps(len(rows), n) for rows, n in zip(members, nulls, strict=True)]
        methods = SINGLE if method == "consensus" else (method,)
        quiet = settings.verbosity > 20
        with tqdm(total=sum(n_steps), desc="Scoring genes", disable=quiet) as bar:
            tables = [
                job.explained(*each, methods, kind, bar.update)
                for each, kind in zip(groups, nulls, strict=True)
            ]
    results = pd.concat(tables, ignore_index=True)
    results.index = results.index.astype(str)
    record = run_record(
        caller,
        adata,
        groupby=groupby,
        method=method,
        null=null,
        n_permutations=n_permutations,
        layer=layer,
        key_added=key_added,
        seed=seed,
        # Lists and not a dict by group: a name with "/" cannot be a key in a file.
        groups=list(rows_of),
        targets=explained,
        nulls=nulls,
    )
    alignment = caller.vocabulary.align(adata.var_names)
    column = pd.Series(alignment.columns, index=caller.vocabulary.genes[alignment.positions])
    scores = np.zeros((adata.n_vars, len(rows_of)), dtype=np.float32)
    for j, part in enumerate(tables):
        scores[column[part["gene"]].to_numpy(), j] = part["score"]
    adata = target(adata, copy=copy)
    warn_overwritten(adata, key_added, {"varm": [key_added]})
    columns = [g.replace("/", "|") for g in rows_of]
    adata.varm[key_added] = pd.DataFrame(scores, index=adata.var_names, columns=columns)
    adata.uns[key_added] = {PARAMS: record, RESULTS: results}
    return adata if copy else None


@dataclass
class _Job:
    """The scoring of the groups of one call; see :func:`host_factors`."""

    model: CellPulse
    effects: np.ndarray
    hashes: np.ndarray
    everyone: np.ndarray
    n_permutations: int
    seed: int

    def n_steps(self, n_profiles: int, null: str) -> int:
        """Return the number of profiles to score for a group."""
        if null == "labels" and self.n_permutations:
            return len(self.everyone)
        return n_profiles * (1 + self.n_permutations)

    def explained(
        self,
        group: str,
        rows: np.ndarray,
        target: str,
        methods: Sequence[str],
        null: str,
        tick: Callable[[int], object],
    ) -> pd.DataFrame:
        """Score the genes of one group by their part in its prediction."""
        own = self.effects[rows]
        seen = np.flatnonzero(~np.isnan(own).all(axis=0))
        draws = []
        if null == "labels" and self.n_permutations:
            every = self._scores(self.effects[self.everyone], target, methods, tick)[:, :, seen]
            scores = every[:, np.isin(self.everyone, rows)]
            rng = np.random.default_rng([self.seed, len(rows)])
            for _ in range(self.n_permutations):
                drawn = rng.choice(every.shape[1], size=len(rows), replace=False)
                draws.append(importance(every[:, drawn])[-1])
        else:
            scores = self._scores(own, target, methods, tick)[:, :, seen]
            for b in range(self.n_permutations):
                seeds = [(self.seed, b, number) for number in self.hashes[rows].tolist()]
                shuffled = permute_effects(own, null, seeds)  # type: ignore[arg-type]
                again = self._scores(shuffled, target, methods, tick)[:, :, seen]
                draws.append(importance(again)[-1])
        found = importance(scores)
        call = None
        if "reversal" in methods:
            call = mean_known(scores[list(methods).index("reversal")])
        extra = {}
        if len(methods) > 1:
            extra = {f"score_{m}": found[i] for i, m in enumerate(methods)}
        return self._table(group, rows, target, seen, found[-1], draws, call, extra)

    def guided(
        self,
        group: str,
        rows: np.ndarray,
        target: str,
        known: Sequence[str] | Mapping[str, Sequence[str]] | None,
    ) -> pd.DataFrame:
        """Score the genes of one group by their similarity to known host factors."""
        genes = self.model.vocabulary.genes
        seen = np.flatnonzero(~np.isnan(self.effects[rows]).all(axis=0))
        is_known = _known_genes(known, group, genes)[seen]
        rng = np.random.default_rng(self.seed)
        lists = [is_known, *(rng.permutation(is_known) for _ in range(self.n_permutations))]
        vectors = unit_rows(self.model.get_gene_factors()[1][seen])
        folds = gene_folds(genes[seen].tolist())
        score, *draws = guided_scores(vectors, np.column_stack(lists), folds).T
        return self._table(group, rows, target, seen, score, draws, None, {"known": is_known})

    def _scores(
        self,
        effects: np.ndarray,
        target: str,
        methods: Sequence[str],
        tick: Callable[[int], object],
    ) -> np.ndarray:
        """Return ``(methods, n, n_vocabulary)`` float32, NaN where not measured."""
        out = np.empty((len(methods), *effects.shape), dtype=np.float32)
        for start in range(0, len(effects), _BLOCK):
            block = effects[start : start + _BLOCK]
            for i, method in enumerate(methods):
                if method == "attention":
                    found = self.model.summary_attention(block)
                elif method == "integrated_gradients":
                    found = self.model.integrated_gradients(block, target)
                else:
                    found = self.model.reversal(block, target)
                out[i, start : start + _BLOCK] = found
            tick(len(block))
        return out

    def _table(
        self,
        group: str,
        rows: np.ndarray,
        target: str,
        seen: np.ndarray,
        score: np.ndarray,
        draws: Sequence[np.ndarray],
        call: np.ndarray | None,
        extra: Mapping[str, np.ndarray],
    ) -> pd.DataFrame:
        """Return the table of the genes ``seen`` of one group, in order of rank."""
        p_value = pooled_p_values(score, np.stack(draws)) if draws else np.full(len(score), np.nan)
        own = self.effects[rows][:, seen]
        effect = mean_known(own)
        with np.errstate(invalid="ignore"):
            same = (np.sign(own) == np.sign(effect)).sum(axis=0)
        if call is None:
            call = mean_known(self.model.reversal(self.effects[rows], target))[seen]
        columns = {
            "group": group,
            "explained": target,
            "gene": self.model.vocabulary.genes[seen].astype(str),
            "score": score,
            "rank": 0,
            "direction": np.array(["down", "unchanged", "up"])[np.sign(effect).astype(int) + 1],
            "effect": effect,
            "concordance": same / (~np.isnan(own)).sum(axis=0),
            "call_effect": call,
            "p_value": p_value,
            "fdr": false_discovery_control(p_value) if draws else p_value,
            "n_profiles": len(rows),
        }
        table = pd.DataFrame(columns | dict(extra))
        # Ties: the larger call effect, then the larger effect, then the name.
        order = np.lexsort((table["gene"], -np.abs(effect), -np.abs(call), -score))
        table = table.iloc[order].reset_index(drop=True)
        table["rank"] = np.arange(1, len(table) + 1)
        return table


def _recorded_groupby(adata: AnnData) -> str:
    """Return the ``groupby`` column of :func:`cfm.pp.contrasts`."""
    recorded = params_of(adata.uns, CONTRASTS).get("groupby")
    if not isinstance(recorded, str) or recorded not in adata.obs:
        raise ValueError(
            "groupby= is missing, and uns['contrasts'] does not name the column of the contrasts; "
            f"name one of {adata.obs.columns.tolist()}."
        )
    return recorded


def _explained_targets(
    adata: AnnData,
    model: CellPulse,
    rows_of: Mapping[str, np.ndarray],
    explain: str | Mapping[str, str] | None,
) -> list[str]:
    """Return the explained target of each group."""
    viruses = model.require_classifier().classes
    if explain is not None:
        chosen = list(explain.values()) if isinstance(explain, Mapping) else [explain]
        unknown = [name for name in chosen if name not in (RESPONSE_TARGET, *viruses)]
        if unknown:
            raise ValueError(
                f"explain={unknown[0]!r}; expected {RESPONSE_TARGET!r} or a virus of the "
                f"classifier: {viruses}."
            )
        return chosen if isinstance(explain, Mapping) else chosen * len(rows_of)
    called = in_memory_frame(adata.obs).get(VIRUS_KEY)
    out: dict[str, str] = {}
    for group, rows in rows_of.items():
        first = "" if called is None else str(called.iloc[rows].astype(str).mode()[0])
        out[group] = first if first in viruses else RESPONSE_TARGET
    other = {g: name for g, name in out.items() if g in viruses and name != g}
    if other and called is not None:
        listed = ", ".join(f"{g!r} ({name})" for g, name in other.items())
        warn_user(
            f"What is explained is not the virus of the group in {listed}: predict_virus called "
            "another for most of its contrasts. Name the virus by explain=."
        )
    return list(out.values())


def _choose_null(null: Null, n_profiles: int, n_all: int) -> str:
    """Return ``"labels"`` if there are enough permutations of them, else ``"effects"``."""
    if null != "auto":
        return null
    ways = math.comb(n_all, n_profiles) if n_profiles < n_all else 1
    return "labels" if ways >= MIN_ARRANGEMENTS else "effects"


def _known_genes(
    known: Sequence[str] | Mapping[str, Sequence[str]] | None, group: str, genes: pd.Index
) -> np.ndarray:
    """Find the known host factors of a group among the model's genes: ``(n_vocabulary,)`` bool.

    Raises
    ------
    KeyError
        If ``known`` is by group, and there is none for this one.
    TypeError
        If ``known`` is a single text.
    ValueError
        If there are none, or too few of them are genes of the model.
    """
    if known is None:
        raise ValueError(
            "method='guided' needs known=: known host factors, such as the hits of a screen, as a "
            "list or as a dict by group."
        )
    if isinstance(known, Mapping):
        if group not in known:
            raise KeyError(f"known has no host factors for group {group!r}; it has {list(known)}.")
        known = known[group]
    if isinstance(known, str):
        raise TypeError(f"known={known!r} is one text; expected a list of gene names.")
    names = list(dict.fromkeys(str(g) for g in known))
    found = genes.isin(names)
    rest = [g for g in names if g not in genes]
    if rest:
        found |= genes.isin(map_identifiers(rest).symbol)
    if found.sum() < MIN_KNOWN:
        raise ValueError(
            f"Found {found.sum()} of {len(names)} known host factors among the model's "
            f"{len(genes)} genes; at least {MIN_KNOWN} are needed. Give human gene symbols or "
            "Ensembl ids."
        )
    return np.asarray(found)
