"""What the calls say, in words and counts: everything is read from the contrasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cfm._fields import (
    INFECTED,
    MATCHES,
    NO_RESPONSE,
    NOT_VIRAL,
    PROBABILITIES,
    RESPONSE,
    RESPONSE_PROBABILITIES,
    SET_SEPARATOR,
    SUPPORT_SUFFIX,
    UNINFECTED,
    UNRESOLVED,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    import pandas as pd
    from anndata import AnnData

#: Matches that a sentence names.
_NAMED_MATCHES = 3


@dataclass(frozen=True)
class Call:
    """The answer for one contrast.

    Attributes
    ----------
    number
        Row, counted from 1.
    name, known, study
        Name of the contrast, its level of the groupby column, its study ("" where not given).
    call, response, infected, support
        As stored by :func:`cfm.tl.predict_virus`; support ``None`` where there is none.
    probability
        Of the kind of response.
    matches
        Public contrasts that are most like it.
    n_cases, n_controls
        Samples behind it.
    agrees
        Whether the call is the known virus; ``None`` where the call names no virus, or the known
        name is no class of the model.
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
    response: str
    infected: float
    support: float | None
    probability: float
    matches: tuple[str, ...]
    n_cases: int
    n_controls: int
    agrees: bool | None
    in_training: bool | None
    sentence: str


@dataclass(frozen=True)
class Agreement:
    """How often named viruses are the known ones."""

    n_known: int
    n_named: int
    n_agree: int
    n_in_training: int


def summarize(
    contrasts: AnnData, *, key: str, groupby: str, training_studies: Collection[str] | None
) -> list[Call]:
    """Turn the stored fields into one :class:`Call` per contrast."""
    obs = contrasts.obs
    viruses = {str(name) for name in contrasts.obsm[key + PROBABILITIES].columns}
    table = contrasts.obsm[key + RESPONSE_PROBABILITIES]
    matches = _matches(contrasts.uns[key][MATCHES])
    calls = []
    for i, name in enumerate(contrasts.obs_names):
        known = str(obs[groupby].iloc[i]) if groupby in obs else ""
        study = str(obs["study"].iloc[i]) if "study" in obs else ""
        call, response = str(obs[key].iloc[i]), str(obs[key + RESPONSE].iloc[i])
        support = float(obs[key + SUPPORT_SUFFIX].iloc[i])
        shown = None if np.isnan(support) else support
        probability = float(table[response].iloc[i])
        found = matches.get(str(name), ())
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
                response=response,
                infected=float(obs[key + INFECTED].iloc[i]),
                support=shown,
                probability=probability,
                matches=found,
                n_cases=int(obs["n_cases"].iloc[i]),
                n_controls=int(obs["n_controls"].iloc[i]),
                agrees=call == known if known in viruses and call in viruses else None,
                in_training=in_training,
                sentence=_sentence(call, response, probability, shown, found),
            )
        )
    return calls


def agreement(calls: list[Call], viruses: Collection[str]) -> Agreement:
    """Count how the named viruses compare with the known ones."""
    known = [call for call in calls if call.known in viruses]
    return Agreement(
        n_known=len(known),
        n_named=sum(call.agrees is not None for call in known),
        n_agree=sum(bool(call.agrees) for call in known),
        n_in_training=sum(bool(call.in_training) for call in calls),
    )


def overview(calls: list[Call]) -> str:
    """Say in one or two sentences what all contrasts together show."""
    kinds: dict[str, int] = {}
    for call in calls:
        kinds[call.response] = kinds.get(call.response, 0) + 1
    ordered = sorted(kinds.items(), key=lambda kind: (kind[0] == NO_RESPONSE, -kind[1], kind[0]))
    parts = [f"{'no response' if k == NO_RESPONSE else k} in {n}" for k, n in ordered]
    text = f"Kind of response, of {len(calls)} contrasts: {_listed(parts)}."
    special = {UNINFECTED, UNRESOLVED, NOT_VIRAL}
    named = sorted({call.call for call in calls} - special)
    if named:
        n = sum(call.call in named for call in calls)
        return f"{text} A virus is named in {n}: {_listed(named)}."
    return f"{text} No virus is named: no such name was right often enough in other studies."


def _matches(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return short descriptions of the first matches of each contrast."""
    found: dict[str, list[str]] = {}
    for row in table.itertuples():
        said = [str(row.stimulus), str(row.tissue), str(row.study)]
        text = ", ".join(part for part in said if part and part != "nan")
        own = found.setdefault(str(row.query), [])
        if text not in own:
            own.append(text)
    return {name: tuple(texts[:_NAMED_MATCHES]) for name, texts in found.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _sentence(
    call: str, response: str, probability: float, support: float | None, matches: Collection[str]
) -> str:
    right = ""
    if support is not None:
        right = f" Such answers were right in {_percent(support)} of other studies."
    if response == NO_RESPONSE:
        start = f"Response: none ({probability:.2f}).{right}"
    else:
        start = f"Response: {response} ({probability:.2f}).{right}"
        if call == UNRESOLVED:
            start += " The cause is not resolved."
        elif call != NOT_VIRAL:
            start += f" Virus: {call}."
    if matches:
        start += f" Most similar public contrasts: {'; '.join(matches)}."
    return start


def _listed(names: Collection[str]) -> str:
    parts = list(names)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
