"""What the calls say, in words and counts: everything is read from the contrasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cfm._fields import (
    CONFIDENCE,
    INFECTED,
    NOVELTY,
    PREDICTION_SET,
    PROBABILITIES,
    SET_SEPARATOR,
    UNINFECTED,
    UNKNOWN,
    params_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from anndata import AnnData

#: A candidate set with more other answers than this narrows nothing down.
_MANY = 4


@dataclass(frozen=True)
class Call:
    """The answer for one contrast, ready to be read by a person.

    Attributes
    ----------
    number
        Row, counted from 1.
    name, known, study
        Name of the contrast, its level of the groupby column, its study ("" where not given).
    call, confidence, infected, novelty, candidates
        As stored by :func:`cfm.tl.predict_virus`; ``candidates`` is the conformal set.
    n_cases, n_controls
        Samples behind it.
    agrees, covered
        Whether the call is the known virus, and whether the conformal set has it; ``None`` where
        the known name is no class of the model.
    in_training
        Whether its study is in the training data of the model; ``None`` where that is not known.
    sentence
        The same in plain words.
    """

    number: int
    name: str
    known: str
    study: str
    call: str
    confidence: float
    infected: float
    novelty: float
    candidates: tuple[str, ...]
    n_cases: int
    n_controls: int
    agrees: bool | None
    covered: bool | None
    in_training: bool | None
    sentence: str


@dataclass(frozen=True)
class Agreement:
    """How often calls meet known viruses, in contrasts whose virus the model can name."""

    n_known: int
    n_agree: int
    n_covered: int
    n_unknown: int
    n_in_training: int
    n_other_names: int


def summarize(
    contrasts: AnnData, *, key: str, groupby: str, training_studies: Collection[str] | None
) -> list[Call]:
    """Turn the stored fields into one :class:`Call` per contrast."""
    obs = contrasts.obs
    probabilities = contrasts.obsm[key + PROBABILITIES]
    classes = [str(name) for name in probabilities.columns]
    viruses = set(classes) - {UNINFECTED}
    coverage = _coverage(contrasts, key)
    calls = []
    for i, name in enumerate(contrasts.obs_names):
        known = str(obs[groupby].iloc[i]) if groupby in obs else ""
        study = str(obs["study"].iloc[i]) if "study" in obs else ""
        text = str(obs[key + PREDICTION_SET].iloc[i])
        candidates = tuple(part for part in text.split(SET_SEPARATOR) if part)
        call = str(obs[key].iloc[i])
        confidence = float(obs[key + CONFIDENCE].iloc[i])
        infected = float(obs[key + INFECTED].iloc[i])
        novelty = float(obs[key + NOVELTY].iloc[i])
        row = dict(zip(classes, probabilities.iloc[i].to_numpy(), strict=True))
        # the stored confidence is that of the most probable answer, which need not be the call
        named = call if call in row else max(row, key=lambda k: (k in viruses, row[k]))
        nameable = known in viruses
        in_training = None
        if training_studies is not None and study:
            in_training = any(part in training_studies for part in study.split(SET_SEPARATOR))
        calls.append(
            Call(
                number=i + 1,
                name=str(name),
                known=known,
                study=study,
                call=call,
                confidence=confidence,
                infected=infected,
                novelty=novelty,
                candidates=candidates,
                n_cases=int(obs["n_cases"].iloc[i]),
                n_controls=int(obs["n_controls"].iloc[i]),
                agrees=call == known if nameable else None,
                covered=known in candidates if nameable else None,
                in_training=in_training,
                sentence=_sentence(
                    call, named, float(row[named]), infected, novelty, candidates, coverage
                ),
            )
        )
    return calls


def agreement(calls: list[Call]) -> Agreement:
    """Count how the calls compare with the known viruses."""
    named = [call for call in calls if call.agrees is not None]
    return Agreement(
        n_known=len(named),
        n_agree=sum(bool(call.agrees) for call in named),
        n_covered=sum(bool(call.covered) for call in named),
        n_unknown=sum(call.call == UNKNOWN for call in named),
        n_in_training=sum(bool(call.in_training) for call in named),
        n_other_names=len(calls) - len(named),
    )


def overview(calls: list[Call]) -> str:
    """Say in one or two sentences what all contrasts together show."""
    named: dict[str, int] = {}
    for call in calls:
        named[call.call] = named.get(call.call, 0) + 1
    n_infected = sum(call.infected >= 0.5 for call in calls)
    viruses = {name: n for name, n in named.items() if name not in (UNINFECTED, UNKNOWN)}
    text = f"{n_infected} of {len(calls)} contrasts look infected (probability at least 0.5). "
    parts = [f"{name} in {n}" for name, n in sorted(viruses.items(), key=lambda v: (-v[1], v[0]))]
    text += f"Called: {_listed(parts)}" if parts else "No virus is called"
    others = [f"{name} in {named[name]}" for name in (UNINFECTED, UNKNOWN) if name in named]
    return f"{text}; {_listed(others)}." if others else f"{text}."


def _coverage(contrasts: AnnData, key: str) -> str:
    alpha = params_of(contrasts.uns, key).get("alpha")
    return "" if alpha is None else f"{_percent(1 - float(alpha))} "


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _sentence(
    call: str,
    named: str,
    probability: float,
    infected: float,
    novelty: float,
    candidates: tuple[str, ...],
    coverage: str,
) -> str:
    also = [name for name in candidates if name != call]
    if call == UNKNOWN:
        start = (
            f"No virus is named. The profile is more unusual than {_percent(novelty)} of "
            f"the reference profiles; the nearest virus is {named} "
            f"({probability:.2f}). Probability of an infection: {infected:.2f}."
        )
        return start + _set_sentence(candidates, coverage)
    if call == UNINFECTED and infected >= 0.5:
        start = (
            f"Undecided: the most probable single answer is uninfected ({probability:.2f}), but "
            f"the viruses together are more probable ({infected:.2f})."
        )
    elif call == UNINFECTED and infected >= 0.2:
        start = f"Probably uninfected: the probability of an infection is {infected:.2f}."
    elif call == UNINFECTED:
        start = f"No infection is seen: its probability is {infected:.2f}."
    else:
        strength = "looks most like" if probability >= 0.5 else "leans weakly towards"
        start = (
            f"Looks infected (probability {infected:.2f}) and {strength} {call} "
            f"({probability:.2f})."
            if infected >= 0.5
            else f"The infection is in doubt (probability {infected:.2f}); the profile {strength} "
            f"{call} ({probability:.2f})."
        )
    if not candidates:
        return f"{start} No answer at all passes for the {coverage}candidate set."
    if not also:
        return f"{start} No other answer fits at the {coverage}level."
    if len(also) > _MANY:
        return f"{start} {len(also)} other answers cannot be ruled out at the {coverage}level."
    return f"{start} Also possible at the {coverage}level: {_listed(also)}."


def _set_sentence(candidates: tuple[str, ...], coverage: str) -> str:
    return f" The {coverage}candidate set: {_listed(candidates)}." if candidates else ""


def _listed(names: Collection[str]) -> str:
    parts = list(names)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
