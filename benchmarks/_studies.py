"""Reads the real data of the benchmarks and training scripts, and splits it by study.

The folder is described by its own README.md. Effects are log2 fold changes of contrasts, NaN =
not measured; a *unit* is one virus in one study.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cfm.data import map_identifiers

SPECIES = ("human", "mouse", "monkey")
SET_SOURCES = ("immunesigdb", "cmap", "cytosig", "covid")

#: Other accessions of a study, under which gene sets made from it may be filed.
ACCESSIONS = {"PRJNA485140": ("GSE118305",)}


@dataclass
class Signatures:
    """Contrasts of several studies.

    Attributes
    ----------
    effects
        ``(n, genes)`` float32 log2 fold changes, NaN = not measured.
    var_names
        ``(genes,)`` human symbols.
    obs
        ``(n,)`` rows of the manifest: ``study``, ``virus``, ``virus_family``, ``host``,
        ``tissue``, ``usable``, ``isg_mean_lfc`` …, indexed by the name of the contrast, with
        ``unit`` = ``"virus|study"`` added.
    """

    effects: np.ndarray
    var_names: pd.Index
    obs: pd.DataFrame

    def __len__(self) -> int:
        return len(self.obs)

    def __getitem__(self, rows: np.ndarray) -> Signatures:
        """Select contrasts by a boolean mask or positions."""
        return Signatures(
            self.effects[rows], self.var_names, self.obs.iloc[np.arange(len(self))[rows]]
        )

    def reindex(self, var_names: pd.Index) -> Signatures:
        """Return the same contrasts over other genes; absent ones are NaN."""
        position = self.var_names.get_indexer(var_names)
        effects = np.full((len(self), len(var_names)), np.nan, dtype=np.float32)
        effects[:, position >= 0] = self.effects[:, position[position >= 0]]
        return Signatures(effects, var_names, self.obs)


def load_signatures(
    folder: Path, species: Sequence[str] = ("human",), *, usable: bool | None = True
) -> Signatures:
    """Read the contrasts of ``virus_signatures``.

    Parameters
    ----------
    folder
        The data folder.
    species
        Any of :data:`SPECIES`. Mouse genes become human symbols by the case of their name;
        genes of the same symbol are averaged, genes without one are dropped. The genes are the
        union over the species, human first.
    usable
        ``True``: contrasts that the manifest calls usable, ``False``: the others, ``None``: all.

    Returns
    -------
    The contrasts, in the order of the files.
    """
    unknown = sorted(set(species) - set(SPECIES))
    if unknown:
        raise ValueError(f"Unknown species {unknown}; expected some of {SPECIES}.")
    manifest = pd.read_csv(folder / "virus_signatures" / "manifest.csv").set_index("signature")
    frames = []
    for name in species:
        path = folder / "virus_signatures" / f"{name}_lfc.csv.gz"
        frame = pd.read_csv(path, index_col=0, dtype={0: str}).astype(np.float32)
        frames.append(_human_symbols(frame, name).T)
    var_names = pd.Index(list(dict.fromkeys(g for f in frames for g in f.columns)), dtype=object)
    effects = np.vstack([f.reindex(columns=var_names).to_numpy(np.float32) for f in frames])
    obs = manifest.loc[[name for f in frames for name in f.index]].copy()
    obs["unit"] = obs["virus"] + "|" + obs["study"]
    keep = np.ones(len(obs), bool) if usable is None else obs["usable"].to_numpy(bool) == usable
    return Signatures(effects[keep], var_names, obs[keep])


def _human_symbols(frame: pd.DataFrame, species: str) -> pd.DataFrame:
    """Average the rows (genes) of one human symbol; drop those that have none."""
    names = frame.index.astype(str).to_numpy(object)
    if species == "human":
        return frame  # the files hold current symbols already
    mapping = map_identifiers(names, organism="mouse" if species == "mouse" else "human")
    mapped = frame[mapping.mapped]
    return mapped.groupby(mapping.symbol[mapping.mapped], sort=False).mean()


def study_weights(studies: Iterable[str], total: float = 1.0) -> np.ndarray:
    """Weights that let every study count the same, with sum ``total``."""
    names = pd.Series(list(studies))
    weight = 1.0 / names.map(names.value_counts()).to_numpy(float)
    return weight * total / weight.sum()


def study_folds(studies: Iterable[str], n_folds: int = 6) -> np.ndarray:
    """Put whole studies into folds with about equally many contrasts; no randomness.

    Studies go by falling size (then name) into the fold that is emptiest so far.

    Returns
    -------
    ``(n,)`` fold of every contrast, 0 to ``n_folds - 1``.
    """
    names = pd.Series(list(studies))
    sizes = names.value_counts()
    if n_folds < 2 or n_folds > len(sizes):
        raise ValueError(f"n_folds={n_folds}, expected 2 to {len(sizes)} (the number of studies).")
    filled = np.zeros(n_folds, dtype=int)
    fold_of = {}
    for study in sorted(sizes.index, key=lambda s: (-sizes[s], s)):
        fold_of[study] = int(filled.argmin())
        filled[fold_of[study]] += sizes[study]
    return names.map(fold_of).to_numpy(int)


@dataclass
class SignedSets:
    """Gene sets with a direction for each gene.

    Attributes
    ----------
    matrix
        ``(sets, genes)`` csr float32 of -1, 0, 1.
    names
        ``(sets,)`` names.
    source
        ``(sets,)`` one of :data:`SET_SOURCES`.
    """

    matrix: sp.csr_matrix
    names: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def without_studies(self, studies: Iterable[str]) -> SignedSets:
        """Drop sets that were made from one of the studies (their name starts with its GSE)."""
        accessions = {a for s in studies for a in (s, *ACCESSIONS.get(s, ()))}
        keep = np.array([n.split("_", 1)[0] not in accessions for n in self.names], dtype=bool)
        return SignedSets(self.matrix[keep], self.names[keep], self.source[keep])


def load_signed_sets(
    folder: Path,
    var_names: pd.Index,
    sources: Sequence[str] = ("immunesigdb", "cytosig", "covid"),
    *,
    n_weights: int = 1000,
) -> SignedSets:
    """Read signed gene sets over a list of genes.

    Parameters
    ----------
    folder
        The data folder.
    var_names
        Genes; those of the sets that are not among them are left out.
    sources
        Any of :data:`SET_SOURCES`. CytoSig's weights give the signs of the ``n_weights`` largest;
        COVID-19 lists published without a direction are left out. The Connectivity Map is the
        largest and adds little.
    n_weights
        Genes of a CytoSig profile.

    Returns
    -------
    The sets that keep at least one gene. A gene in both lists of a set is left out of it.
    """
    unknown = sorted(set(sources) - set(SET_SOURCES))
    if unknown:
        raise ValueError(f"Unknown sources {unknown}; expected some of {SET_SOURCES}.")
    files = {
        "immunesigdb": ("immunesigdb_up_down.csv.gz", "set_pair"),
        "cmap": ("cmap_up_down.csv.gz", "instance"),
        "covid": ("covid_signatures.csv.gz", "set_pair"),
    }
    tables = []
    for source in sources:
        if source == "cytosig":
            table = _cytosig(folder / "signed_sets" / "cytosig.csv.gz", n_weights)
        else:
            file, key = files[source]
            columns = [key, "direction", "gene"]
            table = pd.read_csv(folder / "signed_sets" / file, usecols=columns)
            table = table.rename(columns={key: "name"})
        tables.append(table.assign(source=source, name=table["name"].astype(str)))
    table = pd.concat(tables, ignore_index=True)
    table["column"] = var_names.get_indexer(pd.Index(table["gene"].astype(str)))
    table = table[(table["column"] >= 0) & (table["direction"] != 0)]
    row, names = pd.factorize(table["source"] + "\t" + table["name"])
    shape = (len(names), len(var_names))
    # Entries of one place are summed, so a gene in both lists cancels.
    coordinates = (row, table["column"].to_numpy())
    matrix = sp.csr_matrix((table["direction"].to_numpy(np.float32), coordinates), shape=shape)
    matrix.data = np.sign(matrix.data)
    matrix.eliminate_zeros()
    filled = np.diff(matrix.indptr) > 0
    parts = [name.split("\t", 1) for name in names]
    source_of, name_of = (np.array([p[i] for p in parts], dtype=object) for i in (0, 1))
    return SignedSets(matrix[filled], name_of[filled], source_of[filled])


def _cytosig(path: Path, n_weights: int) -> pd.DataFrame:
    weights = pd.read_csv(path, index_col=0)
    rows = []
    for name, column in weights.items():
        top = column[column.abs().sort_values(ascending=False, kind="stable").index[:n_weights]]
        rows.append(pd.DataFrame({"name": name, "gene": top.index, "direction": np.sign(top)}))
    return pd.concat(rows, ignore_index=True)


def hide_half_of_top(
    effects: np.ndarray, n_top: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split each profile's largest effects at random into observed and hidden ones.

    Parameters
    ----------
    effects
        ``(n, genes)`` log2 fold changes, NaN = not measured.
    n_top
        How many of the largest absolute effects take part; zeros never do.
    seed
        Seed; a profile's split depends on the seed and its row only.

    Returns
    -------
    ``(n, genes)`` float32 observed effects, NaN elsewhere, and ``(n, genes)`` bool hidden.
    """
    observed = np.full(effects.shape, np.nan, dtype=np.float32)
    hidden = np.zeros(effects.shape, dtype=bool)
    for i, row in enumerate(effects):
        size = np.abs(np.nan_to_num(row))
        top = np.argsort(-size, kind="stable")[:n_top]
        top = np.random.default_rng([seed, i]).permutation(top[size[top] > 0])
        half = len(top) // 2
        hidden[i, top[:half]] = True
        observed[i, top[half:]] = row[top[half:]]
    return observed, hidden
