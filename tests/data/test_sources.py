"""Profiles in memory as a source that training draws from."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from cfm.data import ContrastPairs, ProfileDraw, ProfileMatrix, ProfileSource
from cfm.data._profiles import draw_part

GENES = [f"G{i}" for i in range(6)]


def effects(n: int = 5) -> np.ndarray:
    """Every profile is its own number."""
    return np.repeat(np.arange(n, dtype=np.float64)[:, None], 6, axis=1)


def test_both_sources_are_sources(rng: np.random.Generator) -> None:
    source = ProfileMatrix(effects(), GENES)
    assert isinstance(source, ProfileSource)
    assert isinstance(ContrastPairs, type)
    assert len(source) == 5
    assert source.var_names.tolist() == GENES


def test_a_draw_is_rows_with_their_study_and_sample(rng: np.random.Generator) -> None:
    source = ProfileMatrix(
        effects(), GENES, study=["a", "a", "b", "b", "c"], group=np.array([0, 0, 1, 2, 3])
    )
    draw = source.draw(50, rng)
    assert draw.effects.dtype == np.float32
    assert draw.effects.shape == (50, 6)
    assert draw.has_magnitude
    number = draw.effects[:, 0].astype(int)
    assert draw.group.tolist() == np.array([0, 0, 1, 2, 3])[number].tolist()
    assert draw.study.tolist() == np.array(list("aabbc"))[number].tolist()
    assert set(number) == set(range(5))


def test_the_same_generator_draws_the_same() -> None:
    source = ProfileMatrix(effects(), GENES)
    first, second = (source.draw(9, np.random.default_rng(3)).effects for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_each_profile_stands_alone_by_default(rng: np.random.Generator) -> None:
    draw = ProfileMatrix(effects(), GENES).draw(20, rng)
    np.testing.assert_array_equal(draw.group, draw.effects[:, 0])
    assert draw.study is None


def test_large_studies_do_not_drown_the_others(rng: np.random.Generator) -> None:
    """A study of 16 is drawn four times as often as a study of one, not sixteen times."""
    source = ProfileMatrix(effects(17), GENES, study=["large"] * 16 + ["small"])
    share = (source.draw(4000, rng).effects[:, 0] == 16).mean()
    assert share == pytest.approx(0.2, abs=0.03)


def test_weights_decide_instead(rng: np.random.Generator) -> None:
    source = ProfileMatrix(effects(3), GENES, study=list("abc"), weights=np.array([0, 1, 3]))
    number = source.draw(4000, rng).effects[:, 0]
    assert (number == 0).sum() == 0
    assert (number == 2).mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix])
def test_sparse_sets_come_out_dense(kind: type, rng: np.random.Generator) -> None:
    sets = kind(np.sign(np.arange(12).reshape(2, 6) - 6.0))
    source = ProfileMatrix(sets, GENES, has_magnitude=False)
    draw = source.draw(4, rng)
    assert isinstance(draw.effects, np.ndarray)
    assert draw.effects.dtype == np.float32
    assert not draw.has_magnitude
    assert set(np.unique(draw.effects)) <= {-1.0, 0.0, 1.0}


def test_missing_values_stay_missing(rng: np.random.Generator) -> None:
    x = effects()
    x[:, 2] = np.nan
    assert np.isnan(ProfileMatrix(x, GENES).draw(3, rng).effects[:, 2]).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [(effects(0), "at least one profile"), (effects()[:, :4], "5 × 4 with 6 gene names")],
)
def test_shapes_have_to_fit(x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProfileMatrix(x, GENES)


@pytest.mark.parametrize("weights", [[1, 1], [0] * 5, [-1, 2, 1, 1, 1], [np.nan] * 5])
def test_weights_have_to_be_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be non-negative, one per profile"):
        ProfileMatrix(effects(), GENES, weights=np.array(weights))


@pytest.mark.parametrize("name", ["study", "group"])
def test_studies_and_samples_are_one_per_profile(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has 2 entries; expected 5"):
        ProfileMatrix(effects(), GENES, **{name: [0, 1]})


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
def test_profiles_on_disk_are_read_when_drawn(kind, tmp_path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 6)).astype(np.float32)
    ad.AnnData(kind(x)).write_h5ad(tmp_path / "x.h5ad")
    stored = ad.read_h5ad(tmp_path / "x.h5ad", backed="r").X
    study = [*"ab" * 10]
    ours, theirs = (
        ProfileMatrix(e, GENES, study=study).draw(9, np.random.default_rng(2)) for e in (stored, x)
    )
    np.testing.assert_array_equal(ours.effects, theirs.effects)
    np.testing.assert_array_equal(ours.group, theirs.group)


class WithoutParts:
    """A source as somebody else may have written it."""

    def __init__(self) -> None:
        self.inner = ProfileMatrix(effects(), GENES, study=[*"aabbc"])
        self.var_names = self.inner.var_names

    def __len__(self) -> int:
        return len(self.inner)

    def draw(self, n: int, rng: np.random.Generator) -> ProfileDraw:
        return self.inner.draw(n, rng)


@pytest.mark.parametrize(
    "source", [ProfileMatrix(effects(), GENES, study=[*"aabbc"]), WithoutParts()]
)
def test_parts_make_up_the_draw(source: ProfileSource) -> None:
    whole = source.draw(7, np.random.default_rng(1))
    for cuts in ([0, 7], [0, 3, 7], [0, 0, 5, 7]):
        rngs = [np.random.default_rng(1) for _ in cuts[1:]]
        parts = [
            draw_part(source, 7, r, slice(a, b))
            for r, a, b in zip(rngs, cuts[:-1], cuts[1:], strict=True)
        ]
        for name in ("effects", "group", "study"):
            np.testing.assert_array_equal(
                np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name)
            )
        assert len({r.random() for r in rngs}) == 1
