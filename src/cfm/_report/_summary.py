"""What the calls say, in words and counts: everything is read from the contrasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cfm._fields import (
    MATCHES,
    NO_RESPONSE,
    NOT_VIRAL,
    SET_SEPARATOR,
    UNINFECTED,
    UNRESOLVED,
    VIRAL,
)
from cfm.pl._figure import SIGNIFICANT
from cfm.pl._virus import answer_support, stored_prediction

if TYPE_CHECKING:
    from collections.abc import Collection

    import pandas as pd
    from anndata import AnnData

#: Calls that name no virus.
_NO_VIRUS = (UNINFECTED, UNRESOLVED, NOT_VIRAL)
#: Matches that a sentence names.
_NAMED_MATCHES = 3


@dataclass(frozen=True)
class Support:
    """How often answers of a kind were right in studies left out of training."""

    share: float
    n_studies: int


@dataclass(frozen=True)
class Call:
    """The answers for one contrast.

    Attributes
    ----------
    number
        Row, counted from 1.
    name, known, study
        Name of the contrast, its level of the groupby column, its study ("" where not given).
    response, kind
        As stored by :func:`cfm.tl.predict_virus`, and the most probable kind, which is the same
        unless the response is ``"unresolved"``.
    probability, response_support
        Of the most probable kind: its probability, and how often that answer was right; ``None``
        where it was never given.
    matches
        Public contrasts that are most like it, those that are more like it than chance; ``None``
        where none was searched for.
    call, support
        As stored by :func:`cfm.tl.predict_virus`, and how often such a call was right; ``None``
        where it was never given, and for ``"unresolved"``.
    virus_probability
        Of the virus that the call names, given a viral response; else ``None``.
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
    response: str
    kind: str
    probability: float
    response_support: Support | None
    matches: tuple[str, ...] | None
    call: str
    support: Support | None
    virus_probability: float | None
    n_cases: int
    n_controls: int
    agrees: bool | None
    in_training: bool | None

    @property
    def sentence(self) -> str:
        """The answers in plain words: the response, the matches, then the virus."""
        unresolved = self.response == UNRESOLVED
        start = "Response: unresolved. The most probable kind is" if unresolved else "Response:"
        parts = [f"{start} {self.kind} (probability {self.probability:.2f})."]
        parts.append(_told(self.response_support))
        if self.matches:
            parts.append(f"Most similar public contrasts: {'; '.join(self.matches)}.")
        elif self.matches is not None:
            parts.append("No public contrast is more similar than expected by chance.")
        if self.call == UNRESOLVED and not unresolved:
            missing = "virus" if self.kind == VIRAL else "cause"
            parts.append(f"The {missing} is not resolved.")
        elif self.call == NOT_VIRAL:
            parts.append(f"The cause is not a virus. {_told(self.support)}")
        elif self.virus_probability is not None:
            parts.append(f"Virus: {self.call} (probability {self.virus_probability:.2f}).")
            parts.append(_told(self.support))
        return " ".join(parts)


@dataclass(frozen=True)
class Agreement:
    """How often named viruses are the known ones.

    Attributes
    ----------
    n_known
        Contrasts whose known virus is a class of the model.
    n_viral, n_named, n_agree
        Those of them with a viral response, with a virus in the call, and with the known one.
    n_in_training
        Contrasts of any kind whose study is in the training data.
    """

    n_known: int
    n_viral: int
    n_named: int
    n_agree: int
    n_in_training: int


def summarize(
    contrasts: AnnData, *, key: str, groupby: str, training_studies: Collection[str] | None
) -> list[Call]:
    """Turn the stored fields into one :class:`Call` per contrast."""
    obs = contrasts.obs
    stored = stored_prediction(contrasts, key)
    viruses, kinds = stored.virus_proba, stored.response_proba
    support = {
        answer: Support(*numbers) for answer, numbers in answer_support(contrasts.uns[key]).items()
    }
    matches = _matches(contrasts.uns[key][MATCHES])
    calls = []
    for i, name in enumerate(contrasts.obs_names):
        known = str(obs[groupby].iloc[i]) if groupby in obs else ""
        study = str(obs["study"].iloc[i]) if "study" in obs else ""
        call, response = str(stored.call[i]), str(stored.response[i])
        kind = response
        if response == UNRESOLVED:
            kind = str(kinds.drop(columns=NO_RESPONSE).iloc[i].idxmax())
        virus = call not in _NO_VIRUS
        level = {UNINFECTED: ("response", kind), NOT_VIRAL: (NOT_VIRAL, kind)}
        in_training = None
        if training_studies is not None and study:
            in_training = any(part in training_studies for part in study.split(SET_SEPARATOR))
        calls.append(
            Call(
                number=i + 1,
                name=str(name),
                known=known,
                study=study,
                response=response,
                kind=kind,
                probability=float(kinds[kind].iloc[i]),
                response_support=support.get(("response", kind)),
                matches=matches.get(str(name)),
                call=call,
                support=support.get(level.get(call, ("virus", call))),
                virus_probability=float(viruses[call].iloc[i]) if virus else None,
                n_cases=int(obs["n_cases"].iloc[i]),
                n_controls=int(obs["n_controls"].iloc[i]),
                agrees=call == known if virus and known in viruses else None,
                in_training=in_training,
            )
        )
    return calls


def agreement(calls: list[Call], viruses: Collection[str]) -> Agreement:
    """Count how the named viruses compare with the known ones."""
    known = [call for call in calls if call.known in viruses]
    return Agreement(
        n_known=len(known),
        n_viral=sum(call.response == VIRAL for call in known),
        n_named=sum(call.agrees is not None for call in known),
        n_agree=sum(bool(call.agrees) for call in known),
        n_in_training=sum(bool(call.in_training) for call in calls),
    )


def overview(calls: list[Call]) -> str:
    """Say in two sentences what all contrasts together show."""
    kinds: dict[str, int] = {}
    for call in calls:
        kinds[call.response] = kinds.get(call.response, 0) + 1
    last = [UNRESOLVED, NO_RESPONSE]
    ordered = sorted(kinds.items(), key=lambda kind: (kind[0] in last, -kind[1], kind[0]))
    parts = [f"{'no response' if kind == NO_RESPONSE else kind} in {n}" for kind, n in ordered]
    n_all = f"{len(calls)} contrast{'' if len(calls) == 1 else 's'}"
    text = f"Kinds of response in {n_all}: {_listed(parts)}."
    named = [call.call for call in calls if call.call not in _NO_VIRUS]
    if named:
        return f"{text} A virus is named in {len(named)}: {_listed(sorted(set(named)))}."
    if VIRAL in kinds:
        return (
            f"{text} No virus is named: too few such names were right in studies left out of "
            "training."
        )
    return f"{text} No virus is named."


def _matches(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return short descriptions of the first matches of each contrast that are beyond chance."""
    found: dict[str, dict[str, str]] = {str(name): {} for name in table["query"].unique()}
    beyond_chance = table[table["fdr"] <= SIGNIFICANT]
    for row in beyond_chance.sort_values("rank", kind="stable").itertuples():
        what = f"{row.stimulus} in {row.tissue}" if str(row.tissue) else str(row.stimulus)
        # a study may have the same contrast of several donors
        found[str(row.query)].setdefault(
            f"{what}, {row.study}", f", similarity {row.similarity:.2f}"
        )
    return {
        name: tuple(text + end for text, end in texts.items())[:_NAMED_MATCHES]
        for name, texts in found.items()
    }


def _told(support: Support | None) -> str:
    """Say how often an answer was right."""
    if support is None:
        return "This answer was not tested in studies left out of training."
    studies = f"{support.n_studies} {'study' if support.n_studies == 1 else 'studies'}"
    share = f"{100 * support.share:.0f}\N{NO-BREAK SPACE}%"
    return f"In {studies} left out of training, {share} of such answers were right."


def _listed(names: Collection[str]) -> str:
    parts = list(names)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
