"""Compounds, mechanisms and lists of drugs for the benchmark of the drug screen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import cfm
from cfm.tl._signatures import SignatureTable, read_signatures
from training.build_cmap_signatures import consensus

#: Smallest mechanism class, and overlap from which on two classes are taken for one.
MIN_CLASS, SAME_CLASS = 3, 0.5
#: Instances of one cell line and array type that lie closer may come from one plate.
PLATE = 40

#: Antivirals that act on a viral protein or on viral nucleic acid (WHO ATC J05A, S01AD, D06BB).
DIRECT_ANTIVIRALS = (
    "aciclovir", "amantadine", "ganciclovir", "idoxuridine", "moroxydine", "ribavirin",
    "saquinavir", "trifluridine", "vidarabine", "zalcitabine", "zidovudine",
)  # fmt: skip
#: Drugs that stop coronaviruses in cell culture through the host, as named in the table of hits
#: against MERS-CoV and SARS-CoV of Dyall et al. 2014 (Antimicrob Agents Chemother 58:4885).
HOST_DIRECTED = (
    "amodiaquine", "anisomycin", "astemizole", "chloroquine", "chlorpromazine", "cicloheximide",
    "clomipramine", "emetine", "fluphenazine", "fluspirilene", "imatinib", "mefloquine",
    "promethazine", "tamoxifen", "terconazole", "thiethylperazine", "triflupromazine",
)  # fmt: skip


@dataclass
class Compounds:
    """Compounds of the Connectivity Map.

    Attributes
    ----------
    weights
        Compounds by genes, consensus weights (:mod:`training.build_cmap_signatures`).
    sets
        Their 50 up and 50 down genes, the bundled table, on the same genes.
    classes
        Compounds by mechanism class: target and action.
    known
        ``(n,)`` bool, compounds with any mechanism in DrugCentral.
    near
        ``(n, n)`` bool, pairs that may share a plate.
    """

    weights: pd.DataFrame
    sets: SignatureTable
    classes: dict[str, np.ndarray]
    known: np.ndarray
    near: np.ndarray

    def members(self, names: tuple[str, ...]) -> np.ndarray:
        """Return ``(n,)`` bool for names in any case, and say which are missing."""
        own = self.weights.index.str.casefold()
        missing = [name for name in names if name.casefold() not in own]
        if missing:
            raise ValueError(f"Not in the Connectivity Map: {missing}.")
        return own.isin([name.casefold() for name in names])

    def mechanism(self, name: str) -> np.ndarray:
        """Return ``(n,)`` bool of a mechanism class."""
        return np.isin(np.arange(len(self.known)), self.classes[name])

    def signed(self) -> np.ndarray:
        """Return the sets as ``(n, genes)`` float32 of −1, 0 and 1."""
        out = np.zeros(self.weights.shape, dtype=np.float32)
        for side, sign in ((self.sets.up, 1), (self.sets.down, -1)):
            row, at = np.nonzero(side >= 0)
            out[row, side[row, at]] = sign
        return out


def load_compounds(data: Path) -> Compounds:
    """Read compounds and put them into mechanism classes."""
    weights = consensus(data / "signed_sets")
    weights.index = weights.index.astype(str)
    table = read_signatures(cfm.datasets.cmap_signatures(), n_genes=50)
    order = weights.index.get_indexer(pd.Index(table.compounds))
    if (order < 0).any() or len(weights) != len(table):
        raise ValueError("The bundled signatures are of other compounds; build them anew.")
    weights = weights.iloc[order]
    position = weights.columns.get_indexer(table.genes)
    if (position < 0).any():  # a name that is read as another symbol
        weights = weights.rename(columns=_renamed(weights.columns, table.genes))
        weights = weights.T.groupby(level=0).sum().T
        position = weights.columns.get_indexer(table.genes)
    place = np.append(position, -1)
    sets = SignatureTable(
        table.compounds, table.compound, table.names, weights.columns,
        place[table.up], place[table.down],
    )  # fmt: skip
    classes, known = _classes(weights.index)
    return Compounds(weights, sets, classes, known, _near(data, weights.index))


def _renamed(columns: pd.Index, genes: pd.Index) -> dict[str, str]:
    from cfm.tl._signatures import symbols

    found = symbols(pd.Series(columns))
    return {old: new for old, new in zip(columns, found, strict=True) if new in genes}


def _classes(names: pd.Index) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Classes of one target and action, largest first, none half contained in another."""
    targets = cfm.datasets.drug_targets(moa_only=True)
    targets["row"] = names.str.casefold().get_indexer(targets["compound"].str.casefold())
    targets = targets[targets["row"] >= 0]
    known = np.zeros(len(names), dtype=bool)
    known[targets["row"]] = True
    stated = targets[targets["action"] != ""]
    found = {
        f"{gene} {action}": frozenset(rows)
        for (gene, action), rows in stated.groupby(["gene", "action"])["row"]
        if rows.nunique() >= MIN_CLASS
    }
    kept: dict[str, frozenset[int]] = {}
    for name, rows in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        overlaps = (len(rows & other) / len(rows | other) for other in kept.values())
        if all(overlap < SAME_CLASS for overlap in overlaps):
            kept[name] = rows
    return {name: np.array(sorted(rows)) for name, rows in kept.items()}, known


def _near(data: Path, names: pd.Index) -> np.ndarray:
    instances = pd.read_csv(data / "signed_sets" / "cmap_instances.csv.gz")
    instances["row"] = names.get_indexer(instances["drug"])
    near = np.zeros((len(names), len(names)), dtype=bool)
    for _, group in instances.groupby(["cell", "array"]):
        number, row = group["instance"].to_numpy(), group["row"].to_numpy()
        close = np.abs(number[:, None] - number[None]) < PLATE
        a, b = np.nonzero(close)
        near[row[a], row[b]] = True
    return near
