"""Similarity and reversal of profiles and compounds, by several methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

import cfm
from benchmarks._drug_data import Compounds
from cfm.models.cellpulse._attribution import signature_scores
from cfm.models.cellpulse._gene_factors import graded_direction
from cfm.stats._connectivity import (
    clean_profile,
    connectivity_scores,
    enrichment_scores,
    rank_profile,
    signed_cosines,
)
from cfm.tl._drug_screen import compound_names, rank_compounds
from cfm.tl._drug_screen._evidence import ReversalScorer

COSINE = "cosine"
CENTRED = "cosine, library mean removed"
FACTORS = "model: factor scores"
CLEANED = "cosine of `screen_drugs`"
#: Readings of a signature that could enter the score of ``screen_drugs``.
READINGS = (
    ("cosine",),
    ("connectivity",),
    ("model",),
    ("cosine", "connectivity"),
    ("cosine", "model"),
    ("connectivity", "model"),
    ("cosine", "connectivity", "model"),
)


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; rows of 0 stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


class Space:
    """Places signed gene sets and profiles in the model's spaces."""

    def __init__(self, genes: pd.Index, model: cfm.models.CellPulse | None = None) -> None:
        if model is None:
            model = cfm.models.CellPulse.from_pretrained("cellpulse-mini", device="cpu")
        self.model = model
        self.alignment = self.model.vocabulary.align(genes)

    def rows(self, effects: np.ndarray) -> np.ndarray:
        return np.nan_to_num(self.alignment.apply(effects.astype(np.float32)))

    def factors(self, effects: np.ndarray) -> np.ndarray:
        return signature_scores(self.model, self.rows(effects))

    @torch.inference_mode()
    def summary(self, effects: np.ndarray) -> np.ndarray:
        out = []
        for start in range(0, len(effects), 64):
            tokens = self.model.tokenizer.encode(self.rows(effects[start : start + 64]))
            out.append(self.model.module.encode(tokens).summary.numpy())
        return unit(np.concatenate(out))

    @torch.inference_mode()
    def smoothed(self, effects: np.ndarray) -> np.ndarray:
        factors = self.model.module.scaled_factors().numpy()
        return unit(self.rows(effects) @ factors)


def connectivity(profiles: np.ndarray, compounds: Compounds, weight: float) -> np.ndarray:
    """Connectivity of every compound's sets with every profile, ``(profiles, compounds)``."""
    sets = compounds.sets
    out = []
    for profile in profiles:
        ranking = rank_profile(profile, weight)
        sides = (enrichment_scores(ranking, side) for side in (sets.up, sets.down))
        out.append(connectivity_scores(*sides))
    return np.stack(out)


def similarities(compounds: Compounds, space: Space) -> dict[str, np.ndarray]:
    """Similarity of each query (row, all weights) to each compound (column, its sets)."""
    weights = compounds.weights.to_numpy(np.float64)
    signed = compounds.signed()
    query, answer = space.summary(weights), space.summary(signed)
    return {
        COSINE: unit(weights) @ unit(signed).T,
        CENTRED: unit(weights - weights.mean(axis=0)) @ unit(signed - signed.mean(axis=0)).T,
        "Kolmogorov–Smirnov (Lamb)": connectivity(weights, compounds, 0.0),
        "weighted connectivity": connectivity(weights, compounds, 1.0),
        FACTORS: space.factors(weights) @ space.factors(signed).T,
        "model: kernel-smoothed cosine": space.smoothed(weights) @ space.smoothed(signed).T,
        "model: summary embedding": query @ answer.T,
        "model: summary embedding, signed": (query - space.summary(-weights)) @ answer.T,
    }


def joined(readings: tuple[str, ...]) -> str:
    """Name of the score of ``screen_drugs`` with some readings."""
    return f"screen_drugs: {' + '.join(readings)}"


def tool_scores(
    compounds: Compounds, space: Space, queries: np.ndarray, n_permutations: int = 200
) -> dict[str, np.ndarray]:
    """Score of ``screen_drugs`` for all signatures, by readings, the queries turned round.

    ``(n, n)``, NaN in the rows of compounds that are no query. One pass of the tool's own scorer
    serves all choices of readings.
    """
    weights = -compounds.weights.to_numpy(np.float32)
    genes = compounds.weights.columns
    positions = np.full(len(genes), -1, dtype=np.int64)
    positions[space.alignment.columns] = space.alignment.positions
    scorer = ReversalScorer(
        compounds.sets, genes.to_numpy(), n_permutations, 0, model=space.model, positions=positions
    )
    names = compound_names(compounds.sets.compounds, None)
    out = {joined(r): np.full((len(weights), len(weights)), np.nan) for r in READINGS}
    for query in queries:
        placed = space.alignment.apply(weights[[query]])[0]
        found = scorer(weights[query], placed)
        for readings in READINGS:
            ranked, _ = rank_compounds(names, found, None, readings)
            out[joined(readings)][query] = ranked["score"].reindex(names.index).to_numpy()
    return out


def rank_auroc(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """AUROC of members in every row of ``(queries, n)``."""
    ranks = pd.DataFrame(scores).rank(axis=1).to_numpy()
    n = members.sum()
    top = ranks[:, members].sum(axis=1)
    return (top - n * (n + 1) / 2) / (n * (len(members) - n))


def against_chance(scores: np.ndarray, members: np.ndarray, n: int = 1000) -> dict[str, float]:
    """Mean AUROC over queries, and what as many random compounds reach (one draw for all rows)."""
    rng = np.random.default_rng(0)
    ranks = pd.DataFrame(scores).rank(axis=1).to_numpy()
    value = rank_auroc(ranks, members).mean()
    null = np.array([rank_auroc(ranks, rng.permutation(members)).mean() for _ in range(n)])
    low, high = np.quantile(null, [0.025, 0.975])
    p = (1 + (np.abs(null - 0.5) >= abs(value - 0.5)).sum()) / (1 + n)
    return {"AUROC": value, "chance low": low, "chance high": high, "p": p}


def reversal_scores(
    queries: pd.DataFrame, compounds: Compounds, space: Space
) -> dict[str, np.ndarray]:
    """Reversal of every query (rows; NaN = not measured) by every compound, by method."""
    genes = compounds.weights.columns
    shared = queries.reindex(columns=genes).to_numpy(np.float64)
    signed = compounds.signed()
    common = signed.mean(axis=0)
    factors = space.factors(signed)
    smoothed = space.smoothed(signed)
    out: dict[str, list[np.ndarray]] = {}
    for row, effects in enumerate(shared):
        known = np.isfinite(effects)
        place = np.append(np.where(known, np.cumsum(known) - 1, -1), -1)
        sides = [place[side] for side in (compounds.sets.up, compounds.sets.down)]
        for name, weight in (("Kolmogorov–Smirnov (Lamb)", 0.0), ("weighted connectivity", 1.0)):
            ranking = rank_profile(effects[known], weight)
            score = connectivity_scores(*(enrichment_scores(ranking, s) for s in sides))
            out.setdefault(name, []).append(-np.nan_to_num(score))
        graded = graded_direction(effects[None])
        out.setdefault(COSINE, []).append(-(unit(graded) @ unit(signed).T)[0])
        cleaned = clean_profile(effects[known], common[known])
        found = -np.nan_to_num(signed_cosines(cleaned, *sides))
        out.setdefault(CLEANED, []).append(found)
        own = queries.iloc[[row]].dropna(axis=1)
        there = Space(own.columns, space.model)
        values = own.to_numpy(np.float32)
        found = -(there.factors(values) @ factors.T)[0]
        out.setdefault(FACTORS, []).append(found)
        found = -(there.smoothed(graded_direction(values)) @ smoothed.T)[0]
        out.setdefault("model: kernel-smoothed cosine", []).append(found)
    return {name: np.stack(rows) for name, rows in out.items()}
