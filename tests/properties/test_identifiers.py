"""Laws of gene names: whatever list comes, in whatever order."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

import cfm
from cfm.data import map_identifiers
from cfm.data._genes import _tables

_TABLES = _tables()
_APPROVED = sorted(_TABLES.approved)
_OLD = sorted(_TABLES.previous)
_NUMBERS = sorted(_TABLES.ensembl)


def ensembl(number: int) -> str:
    return f"ENSG{number:011d}"


KNOWN = st.one_of(
    st.sampled_from(_APPROVED),
    st.sampled_from(_APPROVED).map(str.lower),
    st.sampled_from(_OLD),
    st.sampled_from(_NUMBERS).map(ensembl),
)
ANY = st.one_of(
    KNOWN,
    st.tuples(st.sampled_from(_NUMBERS).map(ensembl), st.integers(0, 99)).map(
        lambda pair: f"{pair[0]}.{pair[1]}"
    ),
    st.sampled_from(_APPROVED).map(lambda name: f"{name}-1"),
    st.text(max_size=8),
    st.sampled_from(["", "nan", "ENSG", "ENSG00000000000", "AC000001.1", " STAT1 "]),
)
ORGANISMS = st.sampled_from(["human", "mouse"])


@given(names=st.lists(ANY, max_size=25), organism=ORGANISMS)
def test_nothing_is_invented(names: list[str], organism: str) -> None:
    mapping = map_identifiers(names, organism)
    assert len(mapping.symbol) == len(names)
    for symbol, source in zip(mapping.symbol, mapping.source, strict=True):
        assert (symbol == "") == (source == "unmapped")
        assert symbol == "" or symbol in _TABLES.approved


@given(names=st.lists(ANY, max_size=25), organism=ORGANISMS)
def test_what_was_mapped_stays(names: list[str], organism: str) -> None:
    symbols = map_identifiers(names, organism).symbol
    again = map_identifiers(symbols, organism).symbol
    assert again.tolist() == symbols.tolist()


@given(names=st.lists(ANY, max_size=25), order=st.randoms(use_true_random=False))
def test_a_name_is_mapped_alike_wherever_it_stands(names: list[str], order) -> None:
    place = list(range(len(names)))
    order.shuffle(place)
    mapping = map_identifiers(names)
    moved = map_identifiers([names[i] for i in place])
    assert moved.organism == mapping.organism
    assert moved.symbol.tolist() == mapping.symbol[place].tolist()
    assert moved.source.tolist() == mapping.source[place].tolist()


@given(number=st.sampled_from(_NUMBERS), version=st.integers(0, 999))
def test_the_version_of_an_ensembl_id_says_nothing(number: int, version: int) -> None:
    bare = ensembl(number)
    names = [bare, f"{bare}.{version}", f"{bare}.{version}_PAR_Y", bare.lower()]
    assert set(map_identifiers(names, "human").symbol) == {_TABLES.ensembl[number]}


@given(names=st.lists(KNOWN, min_size=1, max_size=25))
def test_the_case_of_a_human_name_says_nothing(names: list[str]) -> None:
    found = map_identifiers(names, "human").symbol
    upper = map_identifiers([name.upper() for name in names], "human").symbol
    # an old name may be spelled as another gene's current one
    assert [a == b for a, b in zip(found, upper, strict=True)] == [
        a == b or name.upper() in _TABLES.by_upper
        for name, a, b in zip(names, found, upper, strict=True)
    ]


@given(
    names=st.lists(ANY.filter(bool), min_size=1, max_size=15),
    seed=st.integers(0, 100),
    unmapped=st.sampled_from(["keep", "drop"]),
)
def test_counts_of_genes_that_become_one_are_added(
    names: list[str], seed: int, unmapped: str
) -> None:
    names = ["STAT1", *names]  # one that is known, or there is nothing to do
    counts = np.random.default_rng(seed).integers(0, 50, (3, len(names))).astype(np.float32)
    adata = ad.AnnData(counts, var=pd.DataFrame({"id": names}, index=map(str, range(len(names)))))
    cfm.pp.map_genes(adata, var_key="id", organism="human", unmapped=unmapped)
    mapping = map_identifiers(names, "human")
    assert adata.var_names.is_unique
    for symbol in set(mapping.symbol[mapping.mapped]):
        expected = counts[:, mapping.symbol == symbol].sum(axis=1)
        np.testing.assert_array_equal(adata[:, symbol].X[:, 0], expected)
    if unmapped == "drop":
        assert set(adata.var_names) == set(mapping.symbol[mapping.mapped])
        counts = counts[:, mapping.mapped]
    np.testing.assert_array_equal(adata.X.sum(axis=1), counts.sum(axis=1))
    once = adata.copy()
    cfm.pp.map_genes(adata, organism="human", unmapped=unmapped)
    assert adata.var_names.tolist() == once.var_names.tolist()
    np.testing.assert_array_equal(adata.X, once.X)
