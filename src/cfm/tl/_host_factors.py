"""Host genes that carry a virus call, with evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from cfm._fields import CONTRASTS, HOST_FACTORS_KEY, PARAMS, RESULTS, VIRUS_KEY, params_of
from cfm.data._matrix import in_memory_frame
from cfm.data._store import check_key, target, warn_overwritten
from cfm.data._takes_anndata import takes_anndata
from cfm.data._warn import warn_user
from cfm.models import CellPulse, load_model
from cfm.stats._evidence import pooled_p_values
from cfm.tl._factor_scores import (
    SINGLE,
    GeneScorer,
    Method,
    Null,
    ProgressTicks,
    choose_null,
    importance,
    mean_over_profiles,
    permuted_labels,
    permuted_profiles,
)
from cfm.tl._groups import content_hash, profile_groups
from cfm.tl._guided_factors import gene_folds, guided_scores, known_genes, unit_rows
from cfm.tl._store import run_record

#: What is explained where no virus is.
RESPONSE_TARGET = "response"

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


@takes_anndata(columns=("groupby",), ranges={"n_permutations": 0})
def host_factors(
    adata: AnnData,
    groupby: str | None = None,
    method: Method = "consensus",
    *,
    model: str | Path | CellPulse = "cellpulse-virus",
    explain: str | None = None,
    groups: Sequence[str] | None = None,
    known: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    reversal: Literal["neutral", "flip"] = "neutral",
    null: Literal["auto", "labels", "directions", "effects"] = "auto",
    n_permutations: int = 50,
    layer: str | None = None,
    key_added: str = HOST_FACTORS_KEY,
    seed: int = 0,
    device: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Rank the genes that carry the call of each group of contrasts.

    What is explained is what :func:`cfm.tl.predict_virus` answered for most contrasts of a group:
    the log-odds of the virus that it named, else of a response against none. These are genes whose
    *response* tells the model what it sees. They are candidates for host factors, not proof of
    one: genes that a virus depends on are often not regulated at all (see the benchmarks).

    Parameters
    ----------
    adata
        Contrasts with log2 fold changes (:func:`cfm.pp.contrasts`).
    groupby
        Column of ``obs`` with the groups, such as the virus; by default the one that
        :func:`cfm.pp.contrasts` compared.
    method
        ``"attention"``: how much the model's summary attends to the gene (rollout).
        ``"integrated_gradients"``: the gene's share of the log-odds. ``"reversal"``: the gene's
        effect is taken away in silico, and the log-odds measured again. ``"consensus"``: the mean
        of :math:`-\log_{10}` of the rank fractions under all three. ``"guided"``: how much the
        gene responds, over all that the model was pretrained on, like host factors that are known
        already; the score does not depend on the contrasts of the group.
    model
        A CellPulse with a classifier, the name of one, a folder, or ``hf://org/name``.
    explain
        ``"response"``, or a virus of the classifier, to be explained in all groups. By default
        what :func:`cfm.tl.predict_virus` wrote into ``obs["predicted_virus"]``, or the response
        where it was not run.
    groups
        Levels of ``groupby`` to explain; all by default.
    known
        For ``"guided"``: genes known as host factors, such as the hits of a CRISPR screen of this
        or other viruses; a list, or a dict of lists by group. They are scored by a rule that was
        fitted without them.
    reversal
        What an effect becomes in the experiment: nothing (``"neutral"``) or its opposite
        (``"flip"``).
    null
        What is permuted for the p-values; the whole of the pipeline is scored again.
        ``"labels"``: which contrasts make up the group; small p: the gene carries the call of
        these contrasts more than that of others. ``"effects"``: each contrast's effects over its
        genes; small p: the gene contributes more than it would with the effect of another gene.
        ``"directions"``: the signs of the effects only, sizes stay; small p: the direction
        matters; with few contrasts nothing can be significant. ``"auto"`` takes labels if there
        are at least 100 ways to choose the group's contrasts, else effects. With ``"guided"``
        always the labels *known*: small p: the gene is more like the known ones than like as many
        genes drawn at random.
    n_permutations
        Number of permutations, 0 for none (p-values are then ``NaN``). Standardised scores of all
        genes are pooled, so a few tens resolve p-values well below one in their number.
    layer
        Layer to read instead of ``X``.
    key_added
        Name of the result.
    seed
        Seed of the permutations.
    device
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``adata.uns['host_factors' | key_added]['results']``
        DataFrame, a row per group and gene that the group measures, sorted by group and rank:
        ``group``, ``explained`` (``"response"`` or a virus), ``gene`` (symbol in the model's
        vocabulary), ``score`` (float64, larger = more
        important: mean attention in units of an average token, absolute mean change of the
        log-odds, the consensus, or standard deviations along the direction of known factors),
        ``rank`` (int64, from 1), ``direction`` (``"up"``,
        ``"down"``, ``"unchanged"``), ``effect`` (mean log2 fold change), ``concordance`` (share
        of the contrasts that measure the gene in which it moves in that direction),
        ``call_effect`` (natural-log odds that the gene's effect brings to the call, by reversal
        to neutral; positive speaks for it), ``p_value``, ``fdr`` (Benjamini & Hochberg within
        the group), ``n_profiles``. With ``"consensus"`` also ``score_attention``,
        ``score_integrated_gradients`` and ``score_reversal``, with ``"guided"`` also ``known``
        (bool).
    ``adata.uns['host_factors' | key_added]['params']``
        The arguments, the model, its SHA-256, the share of its genes found, and in the order of
        ``groups`` what was explained (``targets``) and permuted (``nulls``).
    ``adata.varm['host_factors' | key_added]``
        DataFrame float32, genes by groups (``/`` in their names becomes ``|``): the scores; 0 for
        genes that have none.

    Raises
    ------
    TypeError
        If ``adata`` or ``model`` is of another type.
    KeyError
        If the column, a group or the layer does not exist.
    ValueError
        If an argument is out of its range, the model has no classifier, labels are to be permuted
        where there is nothing to permute, or the matrix is not one of log2 fold changes. Whatever
        is raised, ``adata`` is left as it was.

    Warns
    -----
    UserWarning
        If a group bears the name of a virus that the classifier knows, and another answer is
        explained.

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
    caller = load_model(model, device=device)
    if not isinstance(caller, CellPulse):
        raise TypeError(f"model= is a {type(caller).__name__}; expected CellPulse.")
    caller.require_classifier()
    groupby = _recorded_groupby(adata) if groupby is None else groupby
    rows_of = profile_groups(adata, groupby, groups)
    labelled = in_memory_frame(adata.obs)[groupby].notna().to_numpy()
    everyone = np.flatnonzero(labelled)
    nulls: dict[str, Null] = {
        g: choose_null(len(rows), len(everyone)) if null == "auto" else null
        for g, rows in rows_of.items()
    }
    effects = np.concatenate([e for _, e, _ in caller.encode_blocks(adata, layer=layer)])
    streams = np.array([content_hash(row) for row in effects], dtype=np.uint64)
    explained = _explained(adata, caller, rows_of, explain)
    job = _Job(caller, effects, streams, _sorted(everyone, streams), n_permutations, seed)
    if method == "guided":
        tables = [
            job.guided(g, _sorted(rows, streams), explained[g], known)
            for g, rows in rows_of.items()
        ]
    else:
        _check_labels(nulls, rows_of, len(everyone), n_permutations)
        methods = SINGLE if method == "consensus" else (method,)
        steps = {
            g: len(everyone)
            if nulls[g] == "labels" and n_permutations
            else len(rows) * (1 + n_permutations)
            for g, rows in rows_of.items()
        }
        bar = ProgressTicks(sum(steps.values()), "Scoring genes")
        scorer = GeneScorer(caller, reversal, bar)
        try:
            tables = [
                job.explained(g, _sorted(rows, streams), explained[g], scorer, methods, nulls[g])
                for g, rows in rows_of.items()
            ]
        finally:
            bar.close()
    results = pd.concat(tables, ignore_index=True)
    results.index = results.index.astype(str)
    record: dict[str, Any] = run_record(
        caller,
        adata,
        groupby=groupby,
        method=method,
        reversal=reversal,
        null=null,
        n_permutations=n_permutations,
        layer=layer,
        key_added=key_added,
        seed=seed,
        # Lists and not a dict by group: a name with "/" cannot be a key in a file.
        groups=list(rows_of),
        targets=list(explained.values()),
        nulls=["known" if method == "guided" else nulls[g] for g in rows_of],
    )
    alignment = caller.vocabulary.align(adata.var_names)
    column = pd.Series(alignment.columns, index=caller.vocabulary.genes[alignment.positions])
    scores = np.zeros((adata.n_vars, len(rows_of)), dtype=np.float32)
    for j, group in enumerate(rows_of):
        part = results[results["group"] == group]
        scores[column[part["gene"]].to_numpy(), j] = part["score"]
    adata = target(adata, copy=copy)
    warn_overwritten(adata, key_added, {"varm": [key_added]})
    columns = [g.replace("/", "|") for g in rows_of]
    adata.varm[key_added] = pd.DataFrame(scores, index=adata.var_names, columns=columns)
    adata.uns[key_added] = {PARAMS: record, RESULTS: results}
    return adata if copy else None


@dataclass
class _Job:
    """What the groups of one call share; see :func:`host_factors`."""

    model: CellPulse
    effects: np.ndarray
    streams: np.ndarray
    everyone: np.ndarray
    n_permutations: int
    seed: int

    def explained(
        self,
        group: str,
        rows: np.ndarray,
        target: str,
        scorer: GeneScorer,
        methods: Sequence[Method],
        null: Null,
    ) -> pd.DataFrame:
        """Score the genes of one group by what carries its call."""
        own = self.effects[rows]
        seen = np.flatnonzero(~np.isnan(own).all(axis=0))
        draws = []
        if null == "labels" and self.n_permutations:
            every = scorer(self.effects[self.everyone], target, methods)[:, :, seen]
            scores = every[:, np.isin(self.everyone, rows)]
            rng = np.random.default_rng([self.seed, len(rows)])
            draws = list(permuted_labels(every, len(rows), self.n_permutations, rng))
        else:
            scores = scorer(own, target, methods)[:, :, seen]
            for b in range(self.n_permutations):
                shuffled = permuted_profiles(own, self.streams[rows].tolist(), null, b, self.seed)
                again = scorer(shuffled, target, methods)[:, :, seen]
                draws.append(importance(mean_over_profiles(again)))
        found = importance(mean_over_profiles(scores))
        call = None
        if "reversal" in methods and scorer.mode == "neutral":
            call = mean_over_profiles(scores[methods.index("reversal")])
        permuted = np.stack([d[-1] for d in draws]) if draws else None
        extra = {}
        if len(found) > 1:
            extra = {f"score_{m}": found[i] for i, m in enumerate(methods)}
        return self._table(group, rows, target, seen, found[-1], permuted, call, extra)

    def guided(
        self,
        group: str,
        rows: np.ndarray,
        target: str,
        known: Sequence[str] | Mapping[str, Sequence[str]] | None,
    ) -> pd.DataFrame:
        """Score the genes of one group by their likeness to known host factors."""
        genes = self.model.vocabulary.genes
        seen = np.flatnonzero(~np.isnan(self.effects[rows]).all(axis=0))
        is_known = known_genes(known, group, genes)[seen]
        rng = np.random.default_rng(self.seed)
        lists = [is_known, *(rng.permutation(is_known) for _ in range(self.n_permutations))]
        vectors = unit_rows(self.model.get_gene_factors()[1][seen])
        folds = gene_folds(genes[seen].tolist())
        scores = guided_scores(vectors, np.column_stack(lists), folds).T
        permuted = scores[1:] if self.n_permutations else None
        return self._table(
            group, rows, target, seen, scores[0], permuted, None, {"known": is_known}
        )

    def _table(
        self,
        group: str,
        rows: np.ndarray,
        target: str,
        seen: np.ndarray,
        score: np.ndarray,
        permuted: np.ndarray | None,
        call: np.ndarray | None,
        extra: Mapping[str, np.ndarray],
    ) -> pd.DataFrame:
        """Put the genes ``seen`` of one group in order, with what else is known of them."""
        p = np.full(len(score), np.nan)
        fdr = p.copy()
        if permuted is not None:
            p = pooled_p_values(score, permuted)
            fdr = false_discovery_control(p)
        own = self.effects[rows][:, seen]
        effect = mean_over_profiles(own)
        with np.errstate(invalid="ignore"):
            same = (np.sign(own) == np.sign(effect)).sum(axis=0)
        if call is None:
            call = mean_over_profiles(self.model.reversal(self.effects[rows], target))[seen]
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
            "p_value": p,
            "fdr": fdr,
            "n_profiles": len(rows),
        }
        table = pd.DataFrame(columns | dict(extra))
        # Of equal scores the stronger call, then the stronger effect, then the name goes first.
        order = np.lexsort((table["gene"], -np.abs(effect), -np.abs(call), -score))
        table = table.iloc[order].reset_index(drop=True)
        table["rank"] = np.arange(1, len(table) + 1)
        return table


def _recorded_groupby(adata: AnnData) -> str:
    """Return the column that the contrasts were made by."""
    recorded = params_of(adata.uns, CONTRASTS).get("groupby")
    if not isinstance(recorded, str) or recorded not in adata.obs:
        raise ValueError(
            "groupby= is missing, and uns['contrasts'] does not name the column that contrasts "
            f"were made by; name one of {adata.obs.columns.tolist()}."
        )
    return recorded


def _explained(
    adata: AnnData, model: CellPulse, rows_of: Mapping[str, np.ndarray], explain: str | None
) -> dict[str, str]:
    """Return what is explained in each group."""
    viruses = model.require_classifier().classes
    if explain is not None:
        if explain not in (RESPONSE_TARGET, *viruses):
            raise ValueError(
                f"explain={explain!r}; expected {RESPONSE_TARGET!r} or a virus of the classifier: "
                f"{viruses}."
            )
        return dict.fromkeys(rows_of, explain)
    called = in_memory_frame(adata.obs).get(VIRUS_KEY)
    out: dict[str, str] = {}
    for group, rows in rows_of.items():
        first = "" if called is None else str(called.iloc[rows].astype(str).mode()[0])
        out[group] = first if first in viruses else RESPONSE_TARGET
    other = {g: said for g, said in out.items() if g in viruses and said != g}
    if other and called is not None:
        said = ", ".join(f"{g!r} ({name})" for g, name in other.items())
        warn_user(
            f"What is explained is not the virus of the group in {said}: predict_virus answered "
            "something else for most of its contrasts. explain= names a virus to explain."
        )
    return out


def _sorted(rows: np.ndarray, streams: np.ndarray) -> np.ndarray:
    """Sort rows by what they hold, so that neither order nor names change a permutation."""
    return rows[np.argsort(streams[rows], kind="stable")]


def _check_labels(
    nulls: Mapping[str, Null], rows_of: Mapping[str, np.ndarray], n_all: int, n_permutations: int
) -> None:
    """Refuse to permute labels where all contrasts have the same."""
    for group, rows in rows_of.items():
        if nulls[group] == "labels" and len(rows) == n_all and n_permutations:
            raise ValueError(
                f"null='labels' cannot permute anything: all {n_all} contrasts are in group "
                f"{group!r}. Use null='effects', or add contrasts of other groups."
            )
