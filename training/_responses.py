"""Which kind of response a contrast shows: from what was given, or from the name of a gene set."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

#: Kinds of response, in the order of the model.
RESPONSES = ("none", "viral", "interferon I/III", "interferon II", "bacterial", "other")

_STIMULI = (
    # The first that fits decides; bacteria come with everything that they induce.
    ("bacterial", r"salmonella|mtb|tubercul|e\. coli|bacterial|lps|listeria|staph|sepsis"),
    ("interferon I/III", r"ifn-?(alpha|beta|epsilon|lambda|omega|a\d?$|b$|l$|1$)|^ifn1$|^ifnl$"),
    ("interferon II", r"ifn-?(gamma|g$)|^ifng$"),
)


def response_of(kind: str, agent: str) -> str:
    """Return the kind of response of a contrast of the corpus.

    Parameters
    ----------
    kind
        ``infection``, ``null`` or ``stimulus``.
    agent
        What was given.
    """
    if kind == "null":
        return "none"
    if kind == "infection":
        return "viral"
    for response, pattern in _STIMULI:
        if re.search(pattern, agent.lower()):
            return response
    return "other"


_CONTROL = r"CTRL|CONTROL|UNSTIM|UNTREATED|UNINF|UNINFECTED|HEALTHY|MOCK|PRE|WT_UNSTIM|UNSTIM_0H"
_TIME = r"(?:(?:DAY|D)?\d+(?:\.\d+)?(?:H|HR|MIN|D)?_)*"
#: What stands for one stimulus alone in the names of ImmuneSigDB.
_GIVEN = {
    "interferon I/III": r"IFNA\d?|IFNB|IFNAB",
    "interferon II": r"IFNG",
    "bacterial": (
        r"LPS|LOW_LPS|PAM3CSK4|PAM_TLR2|PAM2CSK4|MBOVIS_BCG|LISTERIA|M_TUBERCULOSIS|E_COLI|"
        r"STAPH_AUREUS|STREP_PNEUMO|STAPH_PNEUMO|GRAM_NEG|GRAM_POS|GRAM_NEG_AND_POS|SEPSIS|"
        r"HELIOBACTER_PYLORI_LPS|TLR1_2|TLR1_TLR2_LIGAND"
    ),
    "viral": (
        r"NEWCASTLE_VIRUS|NEWCATSLE_VIRUS|FLU|INFLUENZA|RSV|HCMV|MCMV|SENDAI_VIRUS|YF17D|LCMV|"
        r"HIV|WEST_EQUINE_ENC_VIRUS|HIV_AND_SIV"
    ),
    "other": (
        r"TNF|IL4|IL10|IL6|IL1B|IL2|IL15|IL12|IL13|IL7|IL21|TGFB|DEXAMETHASONE|ROSIGLITAZONE|"
        r"ANTI_TREM1|PMA|VITAMIN_D|PGE2|RETINOIC_ACID|ACD3_ACD28|LEISHMANIA|T_GONDII|L_MAJOR|"
        r"B_MALAYI|L_DONOVANI|HYPOXIA"
    ),
}


def response_of_set(name: str) -> tuple[str, int]:
    """Return the kind of response that a pair of sets of ImmuneSigDB shows, and its sign.

    Only names of the form ``GSE…_CONTROL_VS_STIMULUS…`` (or the other way round) with one
    stimulus on wild-type cells are read.

    Returns
    -------
    The kind, ``""`` for any other name; and −1 where the sets go up in the control, else 1.
    """
    found = re.match(r"GSE\d+_(.+)$", name)
    if found is None or re.search(r"(^|_)(KO|KNOCKDOWN|DEFICIENT|INHIBIT\w*|NULL)(_|$)", found[1]):
        return "", 0
    if "VACCIN" in found[1] and "YF17D" not in found[1]:  # the vaccine of yellow fever is alive
        return "", 0
    left, _, right = found[1].partition("_VS_")
    if re.fullmatch(_TIME + rf"(?:{_CONTROL})", left):
        given, sign = right, -1
    elif re.match(rf"(?:{_CONTROL})(_|$)", right):
        given, sign = left, 1
    else:
        return "", 0
    for response, pattern in _GIVEN.items():
        match = re.match(_TIME + rf"(?:{pattern})(?:_|$)(.*)$", given)
        if match is not None and "_AND_" not in match[1]:
            return response, sign
    return "", 0


def read_set_responses(data: Path) -> pd.DataFrame:
    """Return the pairs of ImmuneSigDB whose names tell the kind of response.

    Returns
    -------
    ``name`` (index), ``study`` (the GSE), ``response`` and ``sign``.
    """
    pairs = pd.read_csv(data / "signed_sets" / "immunesigdb_pairs.csv.gz")
    found = [response_of_set(str(name)) for name in pairs["set_pair"]]
    table = pd.DataFrame(found, columns=["response", "sign"]).assign(
        study=pairs["set_pair"].astype(str).str.split("_").str[0].to_numpy(),
        name=pairs["set_pair"].astype(str).to_numpy(),
    )
    return table[np.asarray(table["response"]) != ""].set_index("name")
