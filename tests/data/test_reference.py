"""Search by cosine: exact, in order, without what is excluded; and what it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
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
    with pytest.raises(ValueError, match=r"widths \[2, 3\]"):
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


class Hub:
    """A folder in place of the hub."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> DirFileSystem:
        return DirFileSystem(str(self.folder), LocalFileSystem())


def test_it_reads_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    frame = pd.DataFrame({"donor_id": list("abcdef"), "embedding": list(x), "disease": "lupus"})
    folder = tmp_path / "datasets" / "org" / "donors" / "part"
    folder.mkdir(parents=True)
    frame[:4].to_parquet(folder / "0.parquet")
    frame[4:].to_parquet(folder / "1.parquet")
    (folder / "README.md").write_text("donors")
    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub(tmp_path))
    for path, n in (("", 6), ("/part", 6), ("/part/1.parquet", 2)):
        reference = Reference.from_parquet(f"hf://datasets/org/donors{path}")
        assert reference.names.tolist() == frame["donor_id"].tolist()[-n:]
        assert reference.search(x[-n:], 1)[1].ravel().tolist() == list(range(n))
    with pytest.raises(ValueError, match="holds no parquet"):
        Reference.from_parquet("hf://datasets/org/nothing")
    with pytest.raises(ValueError, match="a reference is a data set"):
        Reference.from_parquet("hf://org/donors")


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")

    class Away:
        def find(self, address: str) -> None:
            raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Away)
    with pytest.raises(ValueError, match=r"no route to host.*download the folder"):
        Reference.from_parquet("hf://datasets/org/donors")


@pytest.mark.parametrize("centre", [True, False])
def test_typical_similarity_is_that_to_the_nearest_other(centre: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    table = pd.DataFrame({"study": np.arange(50) % 5})
    reference = Reference(x, table, centre=centre)
    y = x - x.mean(axis=0) if centre else x
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    cosine = y @ y.T
    study = table["study"].to_numpy()
    for key, apart in ((None, np.eye(50, dtype=bool)), ("study", study[:, None] == study)):
        nearest = np.where(apart, -np.inf, cosine).max(axis=1)
        for share in (0.05, 0.5):
            found = reference.typical_similarity(share, key)
            assert found == pytest.approx(np.quantile(nearest, share), abs=1e-5)
    alone = Reference(x[:1], table[:1])
    assert alone.typical_similarity(0.05) == -np.inf
