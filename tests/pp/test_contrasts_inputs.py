"""Contrasts of every kind of input, and of input that is wrong."""

import anndata as ad
import numpy as np
import pytest

from cfm.pp import contrasts
from tests._storages import stored


@pytest.mark.parametrize("storage", ["csr", "csc", "view", "dask", "backed_csc", "backed_dense"])
def test_pairs_of_any_storage(counts, storage, tmp_path):
    pairs, expected = (
        contrasts(adata, "virus", "none", by="study", mode="pairs")
        for adata in (stored(counts, storage, tmp_path), counts)
    )
    assert np.allclose(pairs[:], expected[:], atol=1e-5)


@pytest.mark.parametrize(
    ("control", "levels"), [(0, [0, 1]), (False, [False, True]), ("0", [0, 1]), (0, [0.0, 1.0])]
)
def test_levels_that_are_no_text(counts, control, levels, tmp_path):
    counts.obs["infected"] = np.where(counts.obs["virus"] == "IAV", levels[1], levels[0])
    result = contrasts(counts, "infected", control)
    assert result.n_obs == 1
    assert result.obs["infected"].iloc[0] == levels[1]
    result.write_h5ad(tmp_path / "a.h5ad")


def test_stratum_without_control(counts):
    few = counts[3:]
    with pytest.warns(UserWarning, match="1 strata without a 'none' .* sample: 'study1'"):
        result = contrasts(few, "virus", "none", by="study")
    assert result.obs_names.tolist() == ["study2|IAV_vs_none"]
    row = result.uns["contrasts"]["skipped"].iloc[0]
    assert row["stratum"] == "study1"
    assert row["level"] == "IAV"
    assert row["reason"] == "no 'none' (control) sample in the stratum"


def test_stratum_with_controls_only(counts):
    with pytest.warns(UserWarning, match="strata with only 'none'"):
        result = contrasts(counts[[0, 1, *range(6, 12)]], "virus", "none", by="study")
    assert result.uns["contrasts"]["skipped"]["stratum"].tolist() == ["study1"]


@pytest.mark.parametrize("mode", ["replicates", "pairs"])
def test_all_zero_sample(counts, mode):
    whole = contrasts(counts[1:], "virus", "none", by="study", mode=mode)
    counts.X[0] = 0
    with pytest.warns(UserWarning, match=r"1 sample\(s\) without any count: 'sample0'"):
        result = contrasts(counts, "virus", "none", by="study", mode=mode)
    if mode == "pairs":
        assert len(result) == 15
        assert np.array_equal(result[:], whole[:])
        skipped = result.skipped
    else:
        assert np.array_equal(result.X, whole.X)
        assert result.obs["n_controls"].tolist() == [2, 3]
        skipped = result.uns["contrasts"]["skipped"]
    assert skipped["reason"].tolist() == ["sample 'sample0' has no counts"]


@pytest.mark.parametrize("column", ["virus", "study"])
def test_missing_values(counts, column):
    counts.obs.loc["sample0", column] = np.nan
    with pytest.warns(UserWarning, match=f"without a value in obs\\['{column}'\\]: 'sample0'"):
        result = contrasts(counts, "virus", "none", by="study")
    assert result.obs["n_controls"].tolist() == [2, 3]
    reason = result.uns["contrasts"]["skipped"]["reason"].tolist()
    assert reason == [f"sample 'sample0' has no value in {column!r}"]


def test_nothing_is_left(counts):
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"no contrast .* by=\['virus2'\]: no 'none' \(control\)"),
    ):
        counts.obs["virus2"] = counts.obs["virus"]
        contrasts(counts, "virus", "none", by="virus2")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="only 'none'"),
    ):
        contrasts(counts[:3], "virus", "none")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="needs 2 cases and 2 controls, found 1 and 1"),
    ):
        contrasts(counts[[0, 3]], "virus", "none", mode="test")


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "1 NaN"), (np.inf, "1 infinite")])
def test_bad_log_values(counts, bad, message):
    counts.X[2, 3] = bad
    with pytest.raises(ValueError, match=message):
        contrasts(counts, "virus", "none", units="log")


def test_values_in_the_wrong_units(counts):
    logs = ad.AnnData(np.log1p(counts.X), obs=counts.obs, var=counts.var)
    with pytest.raises(ValueError, match=r"adata\.X holds .* look log-transformed"):
        contrasts(logs, "virus", "none")
    with pytest.raises(ValueError, match="not log2 expression"):
        contrasts(counts, "virus", "none", units="log")
    counts.layers["tpm"] = 1e6 * counts.X / counts.X.sum(axis=1, keepdims=True)
    with pytest.raises(ValueError, match=r"adata\.layers\['tpm'\] .* normalised"):
        contrasts(counts, "virus", "none", layer="tpm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": "log", "mode": "test"}, "need counts"),
        ({"units": "log", "sample_key": "donor"}, "need counts"),
        ({"prior_count": 0}, "above 0"),
        ({"by": "virus"}, "none of them groupby"),
        ({"by": ["study", "study"]}, "different columns"),
        ({"by": "control"}, "name of a column of the result"),
    ],
)
def test_arguments(counts, arguments, message):
    counts.obs["control"] = "x"
    with pytest.raises(ValueError, match=message):
        contrasts(counts, "virus", "none", **arguments)


def test_strata_whose_labels_look_the_same(counts):
    counts.obs["a"] = np.repeat(["x|y", "x"], 6)
    counts.obs["b"] = np.repeat(["z", "y|z"], 6)
    for mode in ("replicates", "pairs"):
        result = contrasts(counts, "virus", "none", by=["a", "b"], mode=mode)
        table = result.obs if mode == "replicates" else result.contrasts
        assert table.index.is_unique
        assert len(table) == 2


def test_no_sample_has_any_count(counts):
    counts.X[:] = 0
    with pytest.raises(ValueError, match="none of the 12 samples has any count"):
        contrasts(counts, "virus", "none", by="study")
