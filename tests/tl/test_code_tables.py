"""Statistics of codes hold for any cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score

from cfm.models.cellvq import CellCodes, Codebook
from cfm.tl._code_tables import (
    Annotation,
    UsedCodes,
    agreement_table,
    code_table,
    marker_table,
    neighbour_table,
)

N_BITS = 5
cells = (
    st.integers(0, 10_000)
    .map(np.random.default_rng)
    .flatmap(lambda rng: st.tuples(st.just(rng), st.integers(1, 60), st.integers(1, 5)))
)


def book_of(rng: np.random.Generator) -> Codebook:
    vectors = rng.normal(size=(2**N_BITS, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    bits = (np.arange(2**N_BITS)[:, None] >> np.arange(N_BITS)[::-1]) & 1
    return Codebook(vectors.astype(np.float32), bits.astype(np.int8))


def codes_of(rng: np.random.Generator, n: int) -> tuple[CellCodes, np.ndarray]:
    code = rng.integers(0, 2**N_BITS, size=n)
    readable = rng.random(n) < 0.9
    readable[0] = True
    similarity = rng.uniform(-1, 1, size=n)
    similarity[~readable] = np.nan
    blank = np.zeros((n, 2))
    found = CellCodes(np.where(readable, code, -1), blank, similarity, similarity)
    return found, readable


@given(cells)
def test_shares_purity_and_entropy(drawn: tuple[np.random.Generator, int, int]) -> None:
    rng, n, n_levels = drawn
    found, readable = codes_of(rng, n)
    used = UsedCodes.of(found.code, readable)
    labels = pd.Series(rng.integers(0, n_levels, size=n)).astype("Int64").astype("string")
    labels = labels.where(rng.random(n) < 0.8)
    labels.iloc[0] = "0"
    annotation = Annotation.of(labels)
    table = code_table(used, found, book_of(rng), {"a": annotation})
    np.testing.assert_allclose(table["share"].sum(), 1.0)
    assert table["n_cells"].sum() == readable.sum()
    assert table["similarity"].between(-1, 1).all()
    assert 1 - 1e-9 <= used.perplexity <= len(used.names) + 1e-9
    known = table[table["a_labelled"] > 0]
    levels = len(annotation.levels)
    assert known["a_purity"].between(1 / levels - 1e-12, 1).all()
    assert known["a_entropy"].between(0, np.log2(levels) + 1e-9).all()
    assert (known["a_enrichment"] > 0).all()
    assert (known.loc[known["a_purity"] == 1, "a_entropy"] == 0).all()
    for code, row in known.iterrows():
        own = labels[(found.code == int(code)) & readable].dropna()
        assert row["a_labelled"] == len(own)
        assert (
            row["a_purity"]
            == (own == row["a_majority"]).mean()
            == own.value_counts().max() / (len(own))
        )
    both = readable & labels.notna().to_numpy()
    agreement = agreement_table({"a": annotation}, used).loc["a"]
    expected = adjusted_mutual_info_score(labels[both], found.code[both])
    np.testing.assert_allclose(agreement["ami"], expected, atol=1e-9)
    weighted = (known["a_purity"] * known["a_labelled"]).sum() / known["a_labelled"].sum()
    np.testing.assert_allclose(agreement["purity"], weighted)


@given(cells, st.integers(1, 6))
def test_distances_are_symmetric_and_nearest_come_first(
    drawn: tuple[np.random.Generator, int, int], n_neighbors: int
) -> None:
    rng, n, _ = drawn
    found, readable = codes_of(rng, n)
    used = UsedCodes.of(found.code, readable)
    book = book_of(rng)
    table = neighbour_table(used, book, n_neighbors)
    assert (table["code"] != table["neighbour"]).all()
    n_others = len(used.names) - 1
    near = np.minimum(table["cosine_rank"], table["hamming_rank"])
    assert (near <= n_neighbors).all()
    by_pair = {(r.code, r.neighbour): (r.hamming, r.cosine) for r in table.itertuples()}
    for (a, b), (hamming, cosine) in by_pair.items():
        assert hamming == bin(int(a) ^ int(b)).count("1")
        np.testing.assert_allclose(cosine, book.vectors[int(a)] @ book.vectors[int(b)], atol=1e-5)
        if (b, a) in by_pair:
            assert by_pair[b, a][0] == hamming
            np.testing.assert_allclose(by_pair[b, a][1], cosine)
    for _, own in table.groupby("code"):
        for measure, sign in (("cosine", -1), ("hamming", 1)):
            first = own[own[f"{measure}_rank"] <= n_neighbors].sort_values(f"{measure}_rank")
            ranks = first[f"{measure}_rank"].tolist()
            assert ranks == list(range(1, min(n_neighbors, n_others) + 1))
            assert (np.diff(sign * first[measure]) >= -2e-6).all()


@given(cells)
def test_markers_of_any_counts_are_numbers(drawn: tuple[np.random.Generator, int, int]) -> None:
    rng, n, n_levels = drawn
    counts = rng.poisson(rng.uniform(0, 3, size=12), size=(n, 12)).astype(np.float32)
    place = rng.integers(-1, n_levels, size=n)
    names = np.array([str(i) for i in range(n_levels)])
    genes = pd.Index([f"G{i}" for i in range(12)])
    table = marker_table(
        counts, place, names, genes, counts=True, n_markers=5, min_cells=2
    )  # fmt: skip
    size = np.bincount(place[place >= 0], minlength=n_levels)
    allowed = {names[i] for i in range(n_levels) if 2 <= size[i] <= size.sum() - 2}
    assert set(table["code"]) <= allowed
    assert (table["score"] > 0).all()
    assert table["p_value"].between(0, 1).all()
    assert (table["fdr"] >= table["p_value"] - 1e-15).all()
    assert table["fdr"].le(1).all()
    assert table[["share_inside", "share_outside"]].stack().between(0, 1).all()
    assert (table.groupby("code").size() <= 5).all()
    log = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4)
    for row in table.itertuples():
        inside, known = place == int(row.code), place >= 0
        gene = genes.get_loc(row.gene)
        change = log[inside, gene].mean() - log[known & ~inside, gene].mean()
        np.testing.assert_allclose(row.log_fold_change, change / np.log(2), atol=1e-4)
