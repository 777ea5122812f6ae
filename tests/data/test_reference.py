"""Search by cosine: exact, in order, without what is excluded; and what it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.data import Reference, _reference


def table(n: int) -> pd.DataFrame:
    return pd.DataFrame({"disease": ["a", "b"] * (n // 2) + ["a"] * (n % 2)}, index=range(n))


@given(n=st.integers(1, 30), m=st.integers(1, 5), k=st.integers(1, 8), centre=st.booleans())
def test_it_finds_what_sorting_everything_finds(n: int, m: int, k: int, centre: bool) -> None:
    rng = np.random.default_rng(n)
    x, q = rng.normal(size=(n + 1, 4)), rng.normal(size=(m, 4))
    similarity, place = Reference(x, table(n + 1), centre=centre).search(q, k)
    mean = x.mean(axis=0) if centre else 0.0
    a, b = x - mean, q - mean
    cosine = b @ a.T / np.linalg.norm(b, axis=1)[:, None] / np.linalg.norm(a, axis=1)
    expected = np.sort(cosine, axis=1)[:, ::-1][:, :k]
    np.testing.assert_allclose(similarity, expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosine, place, 1), expected, atol=1e-5)


def test_of_equals_the_first_is_found_and_blocks_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = Reference(np.array([[0.0, 1], [1, 0], [2, 0], [1, 0]]), table(4))
    query = np.array([[3.0, 0], [0, 1], [1, 1]])
    found = reference.search(query, 2)
    assert found[1][0].tolist() == [1, 2]
    monkeypatch.setattr(_reference, "_AT_ONCE", 1)
    np.testing.assert_array_equal(reference.search(query, 2)[1], found[1])
    hidden = np.array([False, True, True, False])
    similarity, place = reference.search(query[:1], 3, [hidden])
    assert place[0, :2].tolist() == [3, 0]
    assert similarity[0, 2] == -np.inf


def test_it_reads_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    frame = pd.DataFrame(
        {
            "donor_id": [f"d{i}" for i in range(6)],
            "embedding": list(x),
            "disease_label": ["lupus", None] * 3,
            "dataset_id": "one",
        }
    )
    frame[:4].to_parquet(tmp_path / "a.parquet")
    (tmp_path / "more").mkdir()
    frame[4:].to_parquet(tmp_path / "more" / "b.parquet")
    reference = Reference.from_parquet(tmp_path)
    assert reference.names.tolist() == frame["donor_id"].tolist()
    assert reference.table.columns.tolist() == ["donor_id", "disease_label", "dataset_id"]
    assert (reference.n, reference.dim) == (6, 3)
    assert reference.search(x, 1)[1].ravel().tolist() == list(range(6))
    frame.drop(columns="embedding").to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"\['embedding'\] is expected"):
        Reference.from_parquet(tmp_path / "bad.parquet")
    frame["embedding"] = [*list(x[:5]), x[5, :2]]
    frame.to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"widths \[3, 2\]"):
        Reference.from_parquet(tmp_path / "bad.parquet")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="no readable parquet"):
        Reference.from_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="There is no file"):
        Reference.from_parquet(tmp_path / "none.parquet")


def test_what_cannot_be_indexed_is_refused() -> None:
    x = np.eye(3)
    with pytest.raises(ValueError, match="for 2 rows"):
        Reference(x, table(2))
    with pytest.raises(ValueError, match="1 of 3 embeddings of the reference"):
        Reference(np.diag([1.0, np.nan, 1.0]), table(3))
    with pytest.raises(ValueError, match="1 of 2 embeddings of the query"):
        Reference(x, table(3)).search(np.array([[0.0, 0, 0], [1, 0, 0]]), 1)
    with pytest.raises(ValueError, match="embeddings of 3 numbers"):
        Reference(x, table(3)).search(np.ones((1, 4)), 1)
