"""Lengths of human genes, from a table that ships along."""

from __future__ import annotations

import gzip
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cfm.data._gene_ids import map_identifiers

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    >>> from cfm.data._gene_lengths import gene_lengths
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
