"""Contrasts: what they are, what they do not depend on, and how they are made."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm.data import ContrastPairs
from cfm.pp import contrasts


def edger_cpm(counts, prior_count):
    """cpm(y, log=TRUE, prior.count=) of edgeR, written as there."""
    library = counts.sum(axis=1)
    scaled = library / library.mean() * prior_count
    return np.log2((counts + scaled[:, None]) / (library + 2 * scaled)[:, None] * 1e6)


def test_replicates(counts):
    before = counts.copy()
    result = contrasts(counts, "virus", "none", by="study", prior_count=3)
    assert result.obs_names.tolist() == ["study1|IAV_vs_none", "study2|IAV_vs_none"]
    assert result.obs.columns.tolist() == ["virus", "control", "study", "n_cases", "n_controls"]
    assert result.obs["virus"].tolist() == ["IAV", "IAV"]
    assert result.obs["control"].tolist() == ["none", "none"]
    assert result.obs["study"].tolist() == ["study1", "study2"]
    assert result.obs[["n_cases", "n_controls"]].to_numpy().tolist() == [[3, 3], [3, 3]]
    assert result.X.dtype == np.float32
    assert result.var_names.equals(counts.var_names)
    for i, study in enumerate(["study1", "study2"]):
        rows = (counts.obs["study"] == study).to_numpy()
        logs = edger_cpm(counts.X[rows].astype(float), 3)
        infected = (counts.obs["virus"] == "IAV").to_numpy()[rows]
        expected = logs[infected].mean(axis=0) - logs[~infected].mean(axis=0)
        assert np.allclose(result.X[i], expected, atol=1e-5)
    # the planted signal, up to the shift that changed composition brings
    effect = result.X - np.median(result.X, axis=1, keepdims=True)
    assert (effect[:, :10] > 2).all()
    assert (effect[:, 10:15] < -1).all()
    params = result.uns["contrasts"]["params"]
    assert (params["mode"], params["control"], params["prior_count"]) == ("replicates", "none", 3)
    assert list(params["by"]) == ["study"]
    assert params["n_samples"] == 12
    assert result.uns["contrasts"]["skipped"].empty
    # the input is as it was
    assert np.array_equal(counts.X, before.X)
    assert counts.obs.equals(before.obs)
    assert counts.uns == before.uns


@pytest.mark.parametrize("mode", ["replicates", "test"])
def test_the_larger_mean_count_of_cases_and_controls_is_kept(counts, mode):
    result = contrasts(counts, "virus", "none", by="study", mode=mode)
    for i, study in enumerate(["study1", "study2"]):
        part = counts[(counts.obs["study"] == study).to_numpy()]
        means = part.to_df().groupby(part.obs["virus"].to_numpy()).mean()
        np.testing.assert_allclose(result.layers["mean_count"][i], means.max(), rtol=1e-6)
    assert result.layers["mean_count"].dtype == np.float32
    counts.X = np.log2(counts.X + 1)
    assert "mean_count" not in contrasts(counts, "virus", "none", by="study", units="log").layers


def test_several_columns_and_levels(counts):
    counts.obs["time"] = np.tile([4.0, 24.0, 24.0], 4)
    counts.obs["virus"] = counts.obs["virus"].astype(str)
    counts.obs.iloc[4, counts.obs.columns.get_loc("virus")] = "RSV"
    result = contrasts(counts, "virus", "none", by=["study", "time"])
    assert result.obs_names.tolist() == [
        "study1|4|IAV_vs_none",
        "study1|24|IAV_vs_none",
        "study1|24|RSV_vs_none",
        "study2|4|IAV_vs_none",
        "study2|24|IAV_vs_none",
    ]
    assert result.obs["time"].tolist() == [4, 24, 24, 4, 24]
    assert result.obs["n_cases"].tolist() == [1, 1, 1, 1, 2]
    assert result.obs["n_controls"].tolist() == [1, 2, 2, 1, 2]


def test_a_contrast_depends_on_its_own_samples_only(counts):
    counts.obs["virus"] = ["none", "none", "none", "IAV", "IAV", "RSV"] * 2
    counts.X[5] *= 50
    everything = contrasts(counts, "virus", "none", by="study")
    few = contrasts(counts[[0, 1, 2, 3, 4]], "virus", "none", by="study")
    assert np.array_equal(few.X[0], everything["study1|IAV_vs_none"].X[0])


def test_mean_over_pairs_is_the_difference_of_means(counts):
    pairs = contrasts(counts, "virus", "none", by="study", mode="pairs")
    means = contrasts(counts, "virus", "none", by="study")
    assert isinstance(pairs, ContrastPairs)
    assert len(pairs) == 18
    assert np.allclose(pairs[:9].mean(axis=0), means.X[0], atol=1e-5)
    assert np.allclose(pairs[9:].mean(axis=0), means.X[1], atol=1e-5)
    assert pairs.contrasts.index.tolist() == means.obs_names.tolist()
    assert pairs.contrasts["n_pairs"].tolist() == [9, 9]
    obs = pairs.obs([0, 17])
    assert obs["virus"].tolist() == ["IAV", "IAV"]
    assert obs["study"].tolist() == ["study1", "study2"]
    assert obs["case"].tolist() == ["sample3", "sample11"]
    assert obs["control_sample"].tolist() == ["sample0", "sample8"]
    assert pairs.to_adata().uns["contrasts"]["params"]["mode"] == "pairs"


def test_samples_that_no_pair_needs_are_not_held(counts):
    counts.obs["study"] = pd.Categorical(["study1"] * 6 + ["study2"] * 3 + ["study3"] * 3)
    with pytest.warns(UserWarning):
        pairs = contrasts(counts, "virus", "none", by="study", mode="pairs")
    assert len(pairs.sample_names) == 6
    assert np.array_equal(pairs[:], contrasts(counts[:6], "virus", "none", mode="pairs")[:])


def test_log_values(counts):
    logs = np.log2(counts.X + 1)
    arrays = ad.AnnData(logs, obs=counts.obs, var=counts.var)
    result = contrasts(arrays, "virus", "none", by="study", units="log")
    assert np.allclose(result.X[0], logs[3:6].mean(axis=0) - logs[:3].mean(axis=0), atol=1e-5)
    pairs = contrasts(arrays, "virus", "none", by="study", units="log", mode="pairs")
    assert np.allclose(pairs[0], logs[3] - logs[0], atol=1e-5)


def test_natural_logs_are_told(counts):
    import scanpy as sc

    sc.pp.normalize_total(counts, target_sum=1e4)
    sc.pp.log1p(counts)
    with pytest.warns(UserWarning, match="natural logarithms"):
        contrasts(counts, "virus", "none", units="log")
    counts.uns["log1p"]["base"] = 2
    contrasts(counts, "virus", "none", units="log")


def test_warnings_point_at_the_caller(counts):
    with pytest.warns(UserWarning) as caught:
        contrasts(counts[3:], "virus", "none", by="study")
    assert [w.filename for w in caught if "strata" in str(w.message)] == [__file__]


def test_expected_counts(counts):
    counts.X = counts.X + 0.25
    result = contrasts(counts, "virus", "none")
    assert result.uns["contrasts"]["params"]["fractional_counts"]
    assert result.n_obs == 1
    assert result.obs_names[0] == "IAV_vs_none"


@pytest.fixture
def tested(counts):
    rng = np.random.default_rng(0)
    mean = np.where(counts.X.mean(axis=0) > 0, counts.X, 1)
    counts.X = rng.poisson(rng.gamma(10, mean / 10)).astype(np.float32)
    counts.X[:, 50] = 0
    return counts


def test_deseq2_gives_what_pydeseq2_gives(tested):
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    result = contrasts(tested, "virus", "none", by="study", mode="test")
    study = tested[tested.obs["study"] == "study1"]
    dds = DeseqDataSet(
        counts=study.to_df().astype(int),
        metadata=pd.DataFrame({"virus": study.obs["virus"].astype(str)}),
        design="~virus",
        quiet=True,
        n_cpus=1,
    )
    dds.deseq2()
    stats = DeseqStats(dds, contrast=["virus", "IAV", "none"], quiet=True, n_cpus=1)
    stats.summary()
    expected = stats.results_df
    assert np.allclose(result.X[0], expected["log2FoldChange"].fillna(0), rtol=1e-3, atol=1e-3)
    for layer, column in {"stat": "stat", "pval": "pvalue", "padj": "padj"}.items():
        found = result.layers[layer][0]
        assert found.dtype == np.float32
        assert np.allclose(found, expected[column], rtol=1e-2, atol=1e-3, equal_nan=True)
    assert result.X[0, 50] == 0
    assert np.isnan(result.layers["pval"][0, 50])
    assert (result.layers["padj"][0, :10] < 0.05).all()
    assert np.isfinite(result.X).all()


def test_deseq2_of_many_genes_is_that_of_pydeseq2():
    # low and high counts, little and much dispersion, genes of the cases alone, one outlier
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    rng = np.random.default_rng(0)
    n_genes = 400
    mean = rng.lognormal(2, 2, n_genes)
    fold = np.where(rng.random(n_genes) < 0.2, rng.normal(0, 2, n_genes), 0)
    dispersion = rng.lognormal(-2, 1, n_genes)
    depth = np.array([1, 0.7, 1.3, 0.9, 1.1, 1.6])
    means = np.stack([mean] * 3 + [mean * 2**fold] * 3) * depth[:, None]
    x = rng.poisson(rng.gamma(1 / dispersion, dispersion, means.shape) * means)
    x[:3, :10], x[3:, :10] = 0, 20 + x[3:, :10]
    x[0, 20] = 100_000
    arm = np.array(["none"] * 3 + ["IAV"] * 3)
    adata = ad.AnnData(x.astype(np.float32), obs=pd.DataFrame({"virus": arm}, index=list("abcdef")))
    result = contrasts(adata, "virus", "none", mode="test")
    dds = DeseqDataSet(
        counts=adata.to_df().astype(int), metadata=adata.obs, design="~virus", quiet=True, n_cpus=1
    )
    dds.deseq2()
    stats = DeseqStats(dds, contrast=["virus", "IAV", "none"], quiet=True, n_cpus=1)
    stats.summary()
    expected = stats.results_df
    np.testing.assert_allclose(result.X[0], expected["log2FoldChange"].fillna(0), atol=0.01)
    for layer, column in {"stat": "stat", "pval": "pvalue", "padj": "padj"}.items():
        np.testing.assert_allclose(result.layers[layer][0], expected[column], atol=0.05)
    called = [t < 0.05 for t in (result.layers["padj"][0], expected["padj"].to_numpy())]
    np.testing.assert_array_equal(*called)
    assert called[0].sum() > 20


def test_deseq2_shrinks(tested):
    study = tested[:6]
    plain = contrasts(study, "virus", "none", mode="test")
    shrunken = contrasts(study, "virus", "none", mode="test", shrink=True)
    assert np.abs(shrunken.X[:, 15:]).mean() < np.abs(plain.X[:, 15:]).mean()
    assert np.array_equal(shrunken.layers["pval"], plain.layers["pval"], equal_nan=True)


def test_deseq2_when_every_gene_has_a_zero(tested):
    for i in range(6):
        tested.X[i, i::6] = 0
    result = contrasts(tested[:6], "virus", "none", mode="test")
    assert np.isfinite(result.X).all()


def test_test_mode_needs_replicates(tested):
    few = tested[[0, 1, 2, 3, 6, 7, 8, 9, 10]]
    with pytest.warns(UserWarning, match="too few replicates for a test: 'study1 IAV'"):
        result = contrasts(few, "virus", "none", by="study", mode="test")
    assert result.obs_names.tolist() == ["study2|IAV_vs_none"]
    skipped = result.uns["contrasts"]["skipped"]
    assert skipped["stratum"].tolist() == ["study1"]
    assert skipped["level"].tolist() == ["IAV"]
    assert "found 1 and 3" in skipped["reason"].iloc[0]


@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
@pytest.mark.parametrize("mode", ["replicates", "test", "pairs"])
def test_what_was_left_out_survives_writing(counts, tmp_path, file_format, mode):
    counts.obs["study"] = pd.Categorical(["study1"] * 6 + ["study2"] * 3 + ["study3"] * 3)
    with pytest.warns(UserWarning):
        result = contrasts(counts, "virus", "none", by="study", mode=mode)
    if mode == "pairs":
        result = result.to_adata(n=5)
    getattr(result, f"write_{file_format}")(tmp_path / "a")
    again = (ad.read_h5ad if file_format == "h5ad" else ad.read_zarr)(tmp_path / "a")
    assert np.array_equal(again.X, result.X)
    pd.testing.assert_frame_equal(again.obs, result.obs, check_dtype=False, check_categorical=False)
    skipped = again.uns["contrasts"]["skipped"]
    assert skipped["reason"].tolist() == result.uns["contrasts"]["skipped"]["reason"].tolist()
    assert again.uns["contrasts"]["params"]["mode"] == mode


@pytest.fixture
def cells(rng):
    """Single cells: two donors, two conditions, two types of cells, of 30 genes."""
    obs = pd.DataFrame(
        {
            "donor": np.repeat(["a", "b"], 80),
            "stim": np.tile(np.repeat(["ctrl", "stim"], 40), 2),
            "cell_type": np.tile(["B", "T"], 80),
        },
        index=[f"cell{i % 80}" for i in range(160)],  # barcodes repeat between samples
    )
    mean = np.ones((160, 30))
    mean[(obs["stim"] == "stim").to_numpy(), :5] = 5
    with pytest.warns(UserWarning, match="not unique"):
        return ad.AnnData(rng.poisson(mean).astype(np.float32), obs=obs)


def test_single_cells(cells):
    result = contrasts(cells, "stim", "ctrl", by="cell_type", sample_key="donor")
    assert result.obs_names.tolist() == ["B|stim_vs_ctrl", "T|stim_vs_ctrl"]
    assert result.obs["n_cases"].tolist() == [2, 2]
    sums = (
        cells.to_df()
        .groupby(
            [
                cells.obs["cell_type"].to_numpy(),
                cells.obs["donor"].to_numpy(),
                cells.obs["stim"].to_numpy(),
            ]
        )
        .sum()
    )
    bulk = ad.AnnData(
        sums.to_numpy(),
        obs=pd.DataFrame(sums.index.tolist(), columns=["cell_type", "donor", "stim"]).set_axis(
            [f"s{i}" for i in range(8)], axis=0
        ),
    )
    expected = contrasts(bulk, "stim", "ctrl", by="cell_type")
    assert np.allclose(result.X, expected.X, atol=1e-5)
    assert (result.X[:, :5] > result.X[:, 5:].max()).all()


def test_single_cells_paired_by_donor(cells):
    pairs = contrasts(cells, "stim", "ctrl", by=["donor"], sample_key="donor", mode="pairs")
    assert pairs.contrasts["donor"].tolist() == ["a", "b"]
    assert len(pairs) == 2
    assert pairs.obs([0])["case"].tolist() == ["stim|a"]


def test_small_pseudobulks_are_left_out(cells):
    cells.obs.iloc[:35, 0] = "c"
    with pytest.warns(UserWarning, match="fewer than 30 cells: 'ctrl|a'"):
        result = contrasts(cells, "stim", "ctrl", sample_key="donor", min_cells=30)
    assert "has 5 cells" in result.uns["contrasts"]["skipped"]["reason"].iloc[0]
    assert result.obs[["n_cases", "n_controls"]].to_numpy().tolist() == [[2, 2]]
    with pytest.raises(ValueError, match=r"no combination of .* has min_cells=1000"):
        contrasts(cells, "stim", "ctrl", sample_key="donor", min_cells=1000)


def test_cells_without_a_sample_are_left_out(cells):
    cells.obs.loc[(cells.obs["donor"] == "b").to_numpy(), "donor"] = None
    with pytest.warns(UserWarning, match="80 cell"):
        result = contrasts(cells, "stim", "ctrl", sample_key="donor")
    assert result.obs["n_cases"].tolist() == [1]


def test_studies_of_the_cases_are_kept(counts: ad.AnnData) -> None:
    study = counts.obs["study"].astype(str)
    made = contrasts(counts, "virus", "none")
    expected = study.groupby(counts.obs["virus"].astype(str)).agg(
        lambda s: "|".join(sorted(set(s)))
    )
    assert made.obs["study"].tolist() == expected[made.obs["virus"].astype(str)].tolist()
    counts.obs["study"] = None
    assert contrasts(counts, "virus", "none").obs["study"].tolist() == [""] * made.n_obs
    del counts.obs["study"]
    assert "study" not in contrasts(counts, "virus", "none").obs
