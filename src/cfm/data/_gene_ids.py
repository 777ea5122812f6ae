"""Gene identifiers: symbols, Ensembl ids, orthologues; and lengths of genes."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from cfm._arguments import checks_arguments

if TYPE_CHECKING:
    from collections.abc import Iterable


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
    >>> from cfm.data._gene_ids import gene_lengths
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
