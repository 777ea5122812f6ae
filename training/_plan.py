"""Which rows of a table of samples are compared with which: infections, subsets and nulls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from training._count_studies import VIRUS_NAMES, CountStudy

UNINFECTED = "uninfected"


@dataclass
class Plan:
    """Contrasts to be made of one AnnData.

    Attributes
    ----------
    blocks
        For each block the number of its profile, its case rows and its control rows. A profile is
        the mean over its blocks (one, or one per donor).
    obs
        A dictionary of ``obs`` columns for each profile.
    """

    blocks: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)
    obs: list[dict] = field(default_factory=list)

    def add(self, blocks: Iterable[tuple[np.ndarray, np.ndarray]], **obs: object) -> None:
        """Add a profile."""
        self.blocks += [(len(self.obs), *block) for block in blocks]
        self.obs.append(obs)


def plan_infections(
    obs: pd.DataFrame, study: CountStudy, rng: np.random.Generator, n_subsets: int
) -> Plan:
    """Plan the infection or stimulus contrasts of a file, as a whole and as small subsets."""
    plan = Plan()
    control = (obs[study.agent].astype(str) == "none").to_numpy()
    unusable = np.zeros(len(obs), dtype=bool)
    if study.unusable:
        unusable = obs.eval(study.unusable, engine="python").to_numpy(bool)
    for rows in _groups(obs, study.by, np.arange(len(obs))):
        controls = rows[control[rows]]
        for cases in _groups(obs, (study.agent, *study.split), rows[~control[rows]]):
            blocks = list(pair_blocks(obs, study.pair, cases, controls))
            if not blocks:
                continue
            agent = str(obs[study.agent].iloc[cases[0]])
            infection = study.agent == "virus"
            columns = {
                "study": str(obs["study"].iloc[cases[0]]),
                "virus": VIRUS_NAMES.get(agent, agent) if infection else UNINFECTED,
                "kind": "infection" if infection else "stimulus",
                "host": study.host,
                "usable": not unusable[cases].any(),
                "agent": agent,
                "tissue": _only(obs, ("tissue", "cell_type"), cases),
                "time_h": _only(obs, ("time_h",), cases),
                "detail": "|".join(
                    str(obs[c].iloc[cases[0]]) for c in dict.fromkeys((*study.by, *study.split))
                ),
            }
            plan.add(blocks, whole=True, **columns)
            for subset in _subsets(blocks, n_subsets, rng):
                plan.add(subset, whole=False, **columns)
    return plan


def plan_nulls(
    plan: Plan,
    obs: pd.DataFrame,
    by: tuple[str, ...],
    host: str,
    rng: np.random.Generator,
    n_nulls: int,
    agent: str = "virus",
) -> None:
    """Plan contrasts of controls with other controls of the same stratum.

    The first one of a stratum halves it; the others take one to three samples a side.
    """
    controls = np.flatnonzero(obs[agent].astype(str) == "none")
    for rows in _groups(obs, by, controls):
        seen: set[tuple[frozenset, frozenset]] = set()
        for i in range(n_nulls):
            order = rng.permutation(rows)
            half = len(rows) // 2
            size = half if i == 0 else min(half, int(rng.integers(1, 4)))
            cases, others = order[:size], order[size:] if i == 0 else order[size : 2 * size]
            key = (frozenset(cases), frozenset(others))
            if not size or key in seen or key[::-1] in seen:
                continue
            seen.add(key)
            plan.add(
                [(cases, others)],
                study=str(obs["study"].iloc[cases[0]]),
                virus=UNINFECTED,
                kind="null",
                host=host,
                usable=True,
                agent="none",
                whole=i == 0,
            )


def _only(obs: pd.DataFrame, columns: tuple[str, ...], rows: np.ndarray) -> str:
    """The value that all rows share in the first of the columns that exists, else ``""``."""
    for column in columns:
        if column in obs:
            values = obs[column].iloc[rows].dropna().astype(str).unique()
            return str(values[0]) if len(values) == 1 else ""
    return ""


def _groups(obs: pd.DataFrame, columns: tuple[str, ...], rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of each combination of the columns; a missing value is a value."""
    if not columns:
        yield from [rows] if len(rows) else []
        return
    key = obs.iloc[rows][list(columns)].astype(str).agg("|".join, axis=1).to_numpy()
    for name in dict.fromkeys(key):
        yield rows[key == name]


def pair_blocks(
    obs: pd.DataFrame, pair: str, cases: np.ndarray, controls: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of a contrast: itself, or one for each donor that has both."""
    of = obs[pair].astype(str).to_numpy() if pair else np.zeros(len(obs))
    for value in dict.fromkeys(of[cases]):
        block = cases[of[cases] == value], controls[of[controls] == value]
        if len(block[1]):
            yield block


def _subsets(
    blocks: list[tuple[np.ndarray, np.ndarray]], n: int, rng: np.random.Generator
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Different small parts of a contrast: one to three donors, or samples a side."""
    seen = {_key(blocks)}
    for _ in range(n):
        size = int(rng.integers(1, 4))
        if len(blocks) > 1:
            chosen = [blocks[i] for i in rng.permutation(len(blocks))[:size]]
        else:
            chosen = [tuple(rng.permutation(side)[:size] for side in blocks[0])]
        if _key(chosen) not in seen:
            seen.add(_key(chosen))
            yield chosen


def _key(blocks: list[tuple[np.ndarray, np.ndarray]]) -> frozenset:
    return frozenset((frozenset(cases), frozenset(controls)) for cases, controls in blocks)
