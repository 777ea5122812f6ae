"""Genes by name: identifiers, orthologues, lengths, and the ordered vocabulary of a model."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Organism = Literal["auto", "human", "mouse"]

#: How a name was resolved: :attr:`GeneMapping.source`.
SOURCES = ("symbol", "alias", "ensembl", "ortholog", "unmapped")

_HUMAN_ENSEMBL = re.compile(r"^ENSG0*(\d+)(?:\.\d+)?(?:_PAR_Y)?$", re.IGNORECASE)
_MOUSE_ENSEMBL = re.compile(r"^ENSMUSG\d+", re.IGNORECASE)
_UNIQUE_SUFFIX = re.compile(r"^(.+)[-.]\d+$")


@dataclass(frozen=True)
class GeneMapping:
    """What became of a list of gene names.

    Attributes
    ----------
    symbol
        ``(n,)`` object, the current HGNC symbol, ``""`` where the name could not be mapped.
    source
        ``(n,)`` object, how: ``"symbol"`` (already a current symbol), ``"alias"`` (a previous
        symbol), ``"ensembl"`` (a human Ensembl id), ``"ortholog"`` (a mouse symbol whose
        upper-case form is a human symbol or previous symbol) or ``"unmapped"``.
    organism
        ``"human"`` or ``"mouse"``: as given, or detected.

    Examples
    --------
    >>> import cfm
    >>> mapping = cfm.data.map_identifiers(["STAT1", "G1P2", "no such gene"])
    >>> type(mapping).__name__, mapping.organism, mapping.mapped.tolist()
    ('GeneMapping', 'human', [True, True, False])
    """

    symbol: np.ndarray
    source: np.ndarray
    organism: Organism

    @property
    def mapped(self) -> np.ndarray:
        """``(n,)`` bool, which names have a symbol."""
        return np.asarray(self.source != "unmapped", dtype=bool)


class _Tables(NamedTuple):
    approved: frozenset[str]
    by_upper: dict[str, str]
    previous: dict[str, str]
    ensembl: dict[int, str]


@cache
def _tables() -> _Tables:
    """Read the packaged table once (training/build_gene_table.py describes its columns)."""
    raw = files("cfm.data").joinpath("tables/human_genes.tsv.gz").read_bytes()
    by_upper: dict[str, str] = {}
    previous: dict[str, str] = {}
    ensembl: dict[int, str] = {}
    for line in gzip.decompress(raw).decode().splitlines()[1:]:
        symbol, identifiers, old = line.split("\t")
        by_upper[symbol.upper()] = symbol
        ensembl.update((int(i), symbol) for i in identifiers.split("|") if i)
        previous.update((o, symbol) for o in old.split("|") if o)
    return _Tables(frozenset(by_upper.values()), by_upper, previous, ensembl)


def _detect_organism(names: Iterable[str], tables: _Tables) -> Organism:
    """Mouse if more names look like mouse (``Isg15``, ``ENSMUSG…``) than like human."""
    mouse = human = 0
    for name in names:
        if name in tables.approved or _HUMAN_ENSEMBL.match(name):
            human += 1
            continue
        title_case = name[:1].isupper() and name[1:2].islower()
        mouse += bool(
            _MOUSE_ENSEMBL.match(name) or (title_case and name.upper() in tables.by_upper)
        )
    return "mouse" if mouse > human else "human"


def _resolve(name: str, organism: str, tables: _Tables) -> tuple[str, str]:
    if name in tables.approved:
        return name, "symbol"
    match = _HUMAN_ENSEMBL.match(name)
    if match:
        symbol = tables.ensembl.get(int(match[1]), "")
        return symbol, "ensembl" if symbol else "unmapped"
    upper = name.upper()
    if upper in tables.by_upper:
        return tables.by_upper[upper], "ortholog" if organism == "mouse" else "symbol"
    if upper in tables.previous:
        return tables.previous[upper], "ortholog" if organism == "mouse" else "alias"
    return "", "unmapped"


@checks_arguments()
def map_identifiers(names: Iterable[object], organism: Organism = "auto") -> GeneMapping:
    """Map gene names to current HGNC symbols.

    Understands current symbols (in any case), previous symbols, human Ensembl gene ids with or
    without version (``ENSG00000187608.10``, ``…_PAR_Y``), and mixtures of these. A name that an
    index-uniquifier made (``ISG15-1`` or ``ISG15.1`` beside ``ISG15``) counts as its base name.

    Mouse genes become human symbols *by the case of their name only* (``Isg15`` → ``ISG15``).
    That finds most one-to-one orthologues and misses those with different names (``Trp53`` and
    ``H2-K1``, for example, stay unmapped); mouse Ensembl ids (``ENSMUSG…``) are not in the table
    and stay unmapped. Upper-case symbols of other species (ferret, monkey) pass as human ones.

    Parameters
    ----------
    names
        Gene names. Empty strings, ``None`` and ``NaN`` are unmapped.
    organism
        ``"human"``, ``"mouse"``, or ``"auto"`` to decide by which kind of name is more frequent.

    Returns
    -------
    Symbols, how each was found, and the organism: see :class:`GeneMapping`.

    Raises
    ------
    ValueError
        If ``organism`` is none of the three.
    TypeError
        If ``names`` is a single string.

    Notes
    -----
    Source of the table: org.Hs.eg.db 3.16.0 and the HGNC list of previous symbols, of which only
    unambiguous ones are used; a current symbol is never read as the old name of another gene.

    Examples
    --------
    >>> import cfm
    >>> names = ["ISG15", "G1P2", "ENSG00000115415.20", "no such gene"]
    >>> mapping = cfm.data.map_identifiers(names)
    >>> mapping.symbol.tolist()
    ['ISG15', 'ISG15', 'STAT1', '']
    >>> mapping.source.tolist()
    ['symbol', 'alias', 'ensembl', 'unmapped']
    """
    if isinstance(names, str):
        raise TypeError("names is a single string; give a list of gene names.")
    tables = _tables()
    texts = ["" if name is None or name != name else str(name).strip() for name in names]
    found = _detect_organism(texts, tables) if organism == "auto" else organism
    present = set(texts)
    symbols = np.full(len(texts), "", dtype=object)
    sources = np.full(len(texts), "unmapped", dtype=object)
    for i, text in enumerate(texts):
        symbols[i], sources[i] = _resolve(text, found, tables)
        if sources[i] == "unmapped":
            # only beside its base: many unknown clone names also end in a number
            suffix = _UNIQUE_SUFFIX.match(text)
            if suffix and suffix[1] in present:
                symbol, source = _resolve(suffix[1], found, tables)
                if source in ("symbol", "ortholog"):
                    symbols[i], sources[i] = symbol, source
    return GeneMapping(symbols, sources, found)


_ENSEMBL = re.compile(r"^ENSG0*(\d+)(?:\.\d+)?(?:_PAR_Y)?$", re.IGNORECASE)


class _Lengths(NamedTuple):
    by_number: dict[int, int]
    by_symbol: dict[str, int]


@cache
def _lengths() -> _Lengths:
    """Read the packaged table once (training/build_gene_lengths.py describes its columns)."""
    raw = files("cfm.data").joinpath("tables/gene_lengths.tsv.gz").read_bytes()
    rows = [line.split("\t") for line in gzip.decompress(raw).decode().splitlines()[1:]]
    numbers = np.cumsum([int(step) for step, _, _ in rows]).tolist()
    lengths = [int(length) for _, length, _ in rows]
    mapped = map_identifiers((f"ENSG{number:011d}" for number in numbers), organism="human").symbol
    by_symbol: dict[str, int] = {}
    for (_, _, name), symbol, length in zip(rows, mapped, lengths, strict=True):
        name = name or symbol
        # several loci of one symbol, such as copies on alternative haplotypes: the longest
        by_symbol[name] = max(length, by_symbol.get(name, 0))
    by_symbol.pop("", None)
    return _Lengths(dict(zip(numbers, lengths, strict=True)), by_symbol)


def gene_lengths(names: Iterable[object]) -> np.ndarray:
    """Look up the lengths of human genes.

    Parameters
    ----------
    names
        Human symbols (current or previous) or Ensembl ids (with or without version), mixed.

    Returns
    -------
    ``(n,)`` float64 lengths in base pairs, NaN where unknown. Of a symbol with several Ensembl
    ids, the longest.

    Raises
    ------
    TypeError
        If ``names`` is a single string.

    Notes
    -----
    78,932 Ensembl ids, from the table that BulkFormer is distributed with (KangBoming/BulkFormer,
    MIT licence).

    Examples
    --------
    >>> from cfm.data._genes import gene_lengths
    >>> gene_lengths(["PRDM16", "ENSG00000142611.17", "no gene"]).tolist()
    [9767.0, 9767.0, nan]
    """
    texts = list(names) if not isinstance(names, str) else names
    mapping = map_identifiers(texts, organism="human")
    table = _lengths()
    found = np.full(len(texts), np.nan)
    for i, (name, symbol) in enumerate(zip(texts, mapping.symbol, strict=True)):
        match = _ENSEMBL.match(str(name).strip())
        length = table.by_number.get(int(match[1])) if match else None
        if length is None:
            length = table.by_symbol.get(symbol)
        if length is not None:
            found[i] = length
    return found


_ENSEMBL_VERSION = re.compile(r"^(ENSG\d+)\.\d+$")


@dataclass(frozen=True)
class GeneAlignment:
    """Where the columns of a matrix lie in a vocabulary.

    Attributes
    ----------
    columns
        ``(m,)`` int64, columns of the input that are in the vocabulary.
    positions
        ``(m,)`` int64, their positions in the vocabulary; each at most once.
    n_vocabulary
        Size of the vocabulary.

    Examples
    --------
    >>> import cfm, numpy as np
    >>> vocabulary = cfm.data.GeneVocabulary(["STAT1", "ISG15", "MX1"])
    >>> alignment = vocabulary.align(["MX1", "ISG15", "no such gene"])
    >>> round(alignment.found_share, 2)
    0.67
    >>> alignment.apply(np.array([[3.0, 5.0, 7.0]]))
    array([[nan,  5.,  3.]], dtype=float32)
    """

    columns: np.ndarray
    positions: np.ndarray
    n_vocabulary: int

    @property
    def found_share(self) -> float:
        """Share of the vocabulary that the input measures."""
        return len(self.positions) / self.n_vocabulary

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        """Return ``(n, n_vocabulary)`` float32 with ``NaN`` where a gene is not measured."""
        out = np.full((matrix.shape[0], self.n_vocabulary), np.nan, dtype=np.float32)
        out[:, self.positions] = matrix[:, self.columns]
        return out


class GeneVocabulary:
    """Ordered, unique gene symbols of a model.

    Parameters
    ----------
    genes
        Gene symbols; unique and not empty.

    Raises
    ------
    ValueError
        If names are duplicated, empty or of several lines, or the list is empty.

    Examples
    --------
    >>> import cfm
    >>> vocabulary = cfm.data.GeneVocabulary(["STAT1", "ISG15", "MX1"])
    >>> vocabulary.align(["G1P2", "ENSG00000115415.20"]).positions  # old name of ISG15; STAT1
    array([1, 0])
    """

    def __init__(self, genes: Sequence[str]) -> None:
        self.genes = pd.Index([str(g) for g in genes], name="gene")
        if len(self.genes) == 0:
            raise ValueError("A gene vocabulary needs at least one gene; found an empty list.")
        if not self.genes.is_unique:
            twice = self.genes[self.genes.duplicated()].unique()[:5].tolist()
            raise ValueError(f"A gene vocabulary needs unique names; found twice: {twice}.")
        if "" in self.genes:
            raise ValueError("A gene vocabulary cannot hold an empty name; drop it.")
        broken = [g for g in self.genes if g.splitlines() != [g]]
        if broken:  # checkpoints hold a name per line
            raise ValueError(f"A gene name cannot hold a line break; found {broken[:5]}.")

    def __len__(self) -> int:
        return len(self.genes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeneVocabulary) and self.genes.equals(other.genes)

    def __hash__(self) -> int:
        return hash(tuple(self.genes))

    def __repr__(self) -> str:
        return f"GeneVocabulary({len(self)} genes: {', '.join(self.genes[:3])}, …)"

    @checks_arguments(min_genes=0)
    def align(self, names: Sequence[str] | pd.Index, *, min_genes: int = 1) -> GeneAlignment:
        """Find names in the vocabulary, mapping Ensembl ids and previous symbols where needed.

        Names are matched as they are, or without the version of an Ensembl id; those that fail go
        through :func:`cfm.data.map_identifiers`. Where two columns fall on one gene the exact name
        wins, else the first; merge duplicates with :func:`cfm.pp.map_genes` beforehand to sum them.

        Parameters
        ----------
        names
            Gene names of the input's columns.
        min_genes
            Least number of vocabulary genes that must be found.

        Raises
        ------
        ValueError
            If fewer than ``min_genes`` are found.
        """
        index = pd.Index(self._without_versions([str(n) for n in names]))
        positions = self.genes.get_indexer(index)
        missed = np.flatnonzero(positions < 0)
        if len(missed):
            mapped = map_identifiers(index[missed].tolist())
            positions[missed] = self.genes.get_indexer(pd.Index(mapped.symbol))
        exact = np.ones(len(index), dtype=bool)
        exact[missed] = False
        # Exact names first, so that an alias never displaces the gene that bears the name.
        order = np.concatenate([np.flatnonzero(exact), missed]).astype(np.int64)
        order = order[positions[order] >= 0]
        _, first = np.unique(positions[order], return_index=True)
        columns = order[np.sort(first)]
        if len(columns) < min_genes:
            example = ", ".join(index[:3])
            known = ", ".join(self.genes[:3])
            raise ValueError(
                f"Found {len(columns)} of the model's {len(self)} genes among the {len(index)} "
                f"names given (such as {example}); at least {min_genes} are needed. The model "
                f"knows human gene symbols (such as {known}) and their Ensembl ids: check that "
                "var_names hold gene names and map them with cfm.pp.map_genes."
            )
        return GeneAlignment(columns, positions[columns].astype(np.int64), len(self))

    def _without_versions(self, names: list[str]) -> list[str]:
        """Drop versions of Ensembl ids that the vocabulary, but not the input, has without one."""
        bare = [m[1] if (m := _ENSEMBL_VERSION.match(n)) else n for n in names]
        wanted = set(self.genes[self.genes.isin(bare)]) - set(names)
        return [b if b in wanted else n for b, n in zip(bare, names, strict=True)]
