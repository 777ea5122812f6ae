"""``cfm.tl.gene_programs``: planted modules come back, and what is written holds together."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest
from sklearn.metrics import adjusted_rand_score

import cfm
from cfm.models import CellPulse
from tests._block_model import BLOCK, N_BLOCKS, BlockModel, FactorModel, block_data
from tests._same import assert_same

QUICK: dict[str, Any] = {"n_permutations": 3}


@pytest.fixture(autouse=True)
def _few_bootstraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfm.tl._gene_programs._find.N_BOOTSTRAPS", 3)


def run(adata: ad.AnnData, model: Any, **arguments: Any) -> dict[str, Any]:
    cfm.tl.gene_programs(adata, model, **(QUICK | arguments))
    return adata.uns["gene_programs"]


def planted(seed: int = 0, n: int = 8) -> tuple[ad.AnnData, np.ndarray, BlockModel]:
    adata, block, genes = block_data(n, seed)
    return adata, block, BlockModel(genes, block)


def modules_of(stored: dict[str, Any], genes: list[str]) -> np.ndarray:
    """Program of each gene, "" for none."""
    table = stored["genes"].set_index("gene")["program"]
    return table.reindex(genes).fillna("").to_numpy()


@pytest.mark.parametrize("n", [8, 27])  # the bootstrap draws profiles, or blocks of them
def test_planted_blocks_of_attention_come_back_by_any_model(n: int) -> None:
    adata, block, model = planted(n=n)
    stored = run(adata, model)
    assert stored["params"]["source"] == "attention"
    assert adjusted_rand_score(block, modules_of(stored, list(model.genes))) == 1.0
    programs = stored["programs"]
    assert programs.index.tolist() == [f"P{i + 1}" for i in range(N_BLOCKS)]
    assert (programs["size"] == BLOCK).all()
    assert sorted(programs["direction"]) == ["down", "down", "up", "up"]
    assert (programs["coherence"] > 0.95).all()
    assert (programs["stability"] > 0.95).all()
    assert (programs["cohesion"] > 0.9).all()


@pytest.mark.parametrize("n", [1, 4, 8])
def test_planted_blocks_move_more_than_chance(n: int) -> None:
    adata, _, model = planted(n=n)
    programs = run(adata, model, n_permutations=20)["programs"]
    assert len(programs) == N_BLOCKS
    assert (programs["fdr"] < 0.05).all()
    assert programs["effect"].is_monotonic_decreasing
    assert programs["effect"].between(0.8, 1.2).all()


class RandomFactorModel(FactorModel):
    """Attention and factors that have nothing to do with any data."""

    def get_gene_factors(self) -> tuple[pd.Index, np.ndarray]:
        rng = np.random.default_rng(0)
        return self.genes, rng.standard_normal((len(self.genes), 6)).astype(np.float32)


@pytest.mark.parametrize("source", ["interaction", "attention"])
@pytest.mark.parametrize("together", [False, True])
def test_p_values_are_uniform_on_noise(source: str, together: bool) -> None:
    genes = [f"G{i:03d}" for i in range(120)]
    model = RandomFactorModel(genes, np.arange(120) // 15)
    p_values, rejected = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((4, 120))
        if together:  # genes that move together, whatever the model makes of them
            noise = 0.6 * noise + rng.standard_normal((4, 6))[:, rng.integers(0, 6, 120)]
        adata = ad.AnnData(noise.astype(np.float32), var=pd.DataFrame(index=genes))
        adata.obs_names = list("abcd")
        n_permutations = 12 if source == "interaction" else 6
        programs = run(adata, model, n_permutations=n_permutations, source=source)["programs"]
        p_values += programs["p_value"].tolist()
        rejected.append((programs["fdr"] < 0.05).any())
    p = np.array(p_values)
    assert len(p) > 100
    assert (p < 0.05).mean() < 0.1
    assert kstest(p, "uniform").statistic < 0.12
    assert np.mean(rejected) < 0.1


def test_attention_decides_and_not_only_the_directions() -> None:
    adata, block, model = planted()
    adata.X[:, : len(block)] = np.abs(adata.X[:, : len(block)])
    adata.X[:, 0] *= -1.0  # one gene falls: nothing else tells the blocks apart
    stored = run(adata, model)
    found = modules_of(stored, list(model.genes))
    assert adjusted_rand_score(block[1:], found[1:]) == 1.0
    blind = BlockModel(list(model.genes), block, contrast=1.0)
    with pytest.raises(ValueError, match="No module has at least 10 genes"):
        run(adata, blind)


class ShiftedModel(FactorModel):
    """The same factors, with one more that all genes share."""

    def get_gene_factors(self) -> tuple[pd.Index, np.ndarray]:
        genes, factors = super().get_gene_factors()
        return genes, np.hstack([factors, np.full((len(genes), 1), 9.0, dtype=np.float32)])


def test_a_factor_that_all_genes_share_does_not_count() -> None:
    adata, block, genes = block_data()
    plain, shifted = (run(adata.copy(), M(genes, block)) for M in (FactorModel, ShiftedModel))
    for name in ("programs", "genes", "edges"):
        pd.testing.assert_frame_equal(shifted[name], plain[name], rtol=1e-3)


@pytest.mark.parametrize("source", ["attention", "interaction"])
def test_genes_that_move_against_each_other_are_less_alike(source: str) -> None:
    adata, block, genes = block_data()
    adata.X[:, :4] = 1.0
    adata.X[:, 1] = -1.0
    adata.X[: adata.n_obs // 2, 2] *= -1.0
    edges = run(adata, FactorModel(genes, block), source=source, resolution=0.5)["edges"]
    weight = edges.set_index(["gene_a", "gene_b"])["weight"]
    share = adata.n_obs / (adata.n_obs + 5)  # with the prior profiles
    same = weight["G00", "G03"]
    np.testing.assert_allclose(weight["G00", "G01"] / same, (1 - share) / (1 + share), rtol=1e-3)
    np.testing.assert_allclose(weight["G00", "G02"] / same, 1 / (1 + share), rtol=1e-3)


def test_the_genes_that_are_tokens_most_often_are_taken() -> None:
    adata, block, genes = block_data()
    adata.X[0, 5] = 0.0  # a token less
    for n_genes in (59, 60):
        found = run(adata, BlockModel(genes, block), n_genes=n_genes)["genes"]
        assert set(genes) - set(found["gene"]) == ({"G05"} if n_genes == 59 else set())


def test_the_source_is_chosen() -> None:
    adata, block, genes = block_data()
    adata.X[:, : len(block)] = np.abs(adata.X[:, : len(block)])
    adata.X[:, -1] = -1.0  # signed, but unknown to the model
    model = FactorModel(genes, block)
    shifted = (np.arange(len(genes)) + BLOCK // 2) // BLOCK % N_BLOCKS
    with pytest.warns(UserWarning, match="No effect is negative"):
        automatic = run(adata, model)
    assert automatic["params"]["source"] == "interaction"
    assert adjusted_rand_score(shifted, modules_of(automatic, genes)) == 1.0
    with pytest.warns(UserWarning, match="No effect is negative"):
        attention = run(adata, model, source="attention")
    assert adjusted_rand_score(block, modules_of(attention, genes)) == 1.0
    with pytest.warns(UserWarning, match="No effect is negative"):
        both = run(adata, model, source="combined")["edges"]
    a, b = (pd.Index(genes).get_indexer(both[end]) for end in ("gene_a", "gene_b"))
    together = np.stack([block[a] == block[b], shifted[a] == shifted[b]])
    assert {(True, False), (False, True)} <= set(map(tuple, together.T.tolist()))


@pytest.fixture
def stored(model: CellPulse, contrasts: ad.AnnData) -> ad.AnnData:
    """Toy contrasts with programs, by group and with gene sets."""
    cfm.tl.gene_programs(
        contrasts,
        model,
        groupby="label",
        gene_sets={"head": contrasts.var_names[:40].tolist(), "tail": ["nothing"]},
        **QUICK,
    )
    return contrasts


def test_what_is_written_holds_together(stored: ad.AnnData) -> None:
    record = stored.uns["gene_programs"]
    programs, genes, edges = record["programs"], record["genes"], record["edges"]
    assert programs["group"].unique().tolist() == sorted(stored.obs["label"].unique())
    assert programs.index.is_unique
    for name, row in programs.iterrows():
        own = genes[genes["program"] == name]
        assert len(own) == row["size"] >= 10
        assert own["rank"].tolist() == list(range(1, len(own) + 1))
        assert own["weight"].iloc[0] == 1.0
        assert own["weight"].is_monotonic_decreasing
        assert (np.sign(own["effect"]).replace(0, 1) == own["sign"]).all()
        up = (own["sign"] > 0).mean()
        assert (row["direction"] == "up") == (up >= 0.8)
        weights = stored.varm["gene_programs"][name]
        expected = own.set_index("gene")["weight"] * own["sign"].to_numpy()
        np.testing.assert_allclose(weights[expected.index], expected, rtol=1e-6)
        assert (weights.drop(expected.index) == 0).all()
    effects = np.abs(stored.to_df().groupby(stored.obs["label"], observed=True).mean())
    assert (programs["effect"] <= effects.max().max()).all()
    for column in ("coherence", "stability", "cohesion", "p_value", "fdr"):
        assert programs[column].between(0, 1).all()
    held = record["enrichment"].loc[record["enrichment"]["fdr"] <= 0.05, "program"]
    for _, part in programs.assign(holds=programs.index.isin(held)).groupby("group"):
        assert part["holds"].is_monotonic_decreasing
        for _, alike in part.groupby("holds"):
            assert alike["effect"].is_monotonic_decreasing
    assert not genes.duplicated(["program", "gene"]).any()
    one_group = genes[genes["program"].str.startswith("virus_A:")]
    assert one_group["gene"].is_unique  # a gene is in one program of a group at most
    place = genes.set_index(["program", "gene"]).index
    for side in ("a", "b"):
        assert place.isin(
            list(zip(edges[f"program_{side}"], edges[f"gene_{side}"], strict=True))
        ).any()
        assert set(edges[f"program_{side}"]) <= set(programs.index)
    assert (edges["weight"] > 0).all()
    inside = edges[edges["program_a"] == edges["program_b"]].groupby("program_a")["weight"].sum()
    strength = pd.concat(
        [edges.groupby("program_a")["weight"].sum(), edges.groupby("program_b")["weight"].sum()],
        axis=1,
    ).sum(axis=1)
    # edges to genes outside all programs are not stored, so the share can only be smaller
    assert (programs["cohesion"] <= (2 * inside / strength)[programs.index] + 1e-9).all()
    assert set(record["enrichment"]["term"]) <= {"head"}
    assert set(record["enrichment"]["program"]) <= set(programs.index)
    activity = stored.obsm["X_gene_programs"]
    assert activity.columns.tolist() == programs.index.tolist()
    assert (activity.dtypes == np.float32).all()
    assert np.isfinite(activity).all(axis=None)


def test_activity_is_high_in_the_group_whose_program_goes_up(stored: ad.AnnData) -> None:
    activity = stored.obsm["X_gene_programs"]
    for group in ("virus_A", "virus_B"):
        own = [c for c in activity if c.startswith(f"{group}:")]
        means = activity.groupby(stored.obs["label"].to_numpy(), observed=True)[own].mean()
        assert (means.loc[group] > 0).mean() > 0.8  # signs are those of the group's own effects


def test_the_order_of_rows_and_genes_changes_nothing(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    rng = np.random.default_rng(1)
    rows, genes = rng.permutation(contrasts.n_obs), rng.permutation(contrasts.n_vars)
    shuffled = contrasts[rows][:, genes].copy()
    for source in ("interaction", "attention", "combined"):
        first = run(contrasts, model, source=source, n_permutations=1)
        second = run(shuffled, model, source=source, n_permutations=1)
        for name in ("programs", "genes", "edges"):
            assert len(first[name]) > 0
            pd.testing.assert_frame_equal(second[name], first[name], check_exact=True)
        np.testing.assert_allclose(
            shuffled.obsm["X_gene_programs"],
            contrasts.obsm["X_gene_programs"].iloc[rows],
            rtol=1e-3,
            atol=1e-3,
        )


def test_a_seed_repeats_and_a_group_does_not_depend_on_the_others(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    both = run(contrasts, model, groupby="label")
    again = run(contrasts, model, groupby="label")
    assert_same(again, both)
    rows = contrasts.obs["label"] == "virus_C"
    alone = run(contrasts[rows].copy(), model, groupby="label")
    part = both["programs"][both["programs"]["group"] == "virus_C"]
    pd.testing.assert_frame_equal(alone["programs"], part)


def test_higher_resolution_gives_more_programs(model: CellPulse, contrasts: ad.AnnData) -> None:
    few = run(contrasts, model, resolution=0.3)["programs"]
    many = run(contrasts, model, resolution=4.0)["programs"]
    assert len(many) > len(few)
    assert many["size"].max() < few["size"].max()


def test_the_interferon_response_comes_first_and_silent_genes_do_not_enter() -> None:
    counts = cfm.datasets.blanco_melo()
    contrasts = cfm.pp.contrasts(counts, "virus", "none", by="series")
    interferon = {"IFIT1", "IFIT2", "IFIT3", "MX1", "MX2", "OAS1", "OAS2", "ISG15", "RSAD2"}
    cfm.tl.gene_programs(contrasts, n_permutations=4)
    stored = contrasts.uns["gene_programs"]
    genes = stored["genes"]
    first = set(genes.loc[genes["program"] == "P1", "gene"])
    assert len(first & interferon) >= 5
    assert stored["programs"].loc["P1", "direction"] == "up"
    assert stored["programs"]["fdr"].idxmin() == "P1"
    counts_of = contrasts.to_df(layer="mean_count").max()
    assert (counts_of[genes["gene"]] >= stored["params"]["min_count"]).all()
    assert stored["params"]["model"] == "cellpulse-mini"
    assert len(stored["params"]["sha256"]) == 64


def test_genes_of_few_counts_count_as_not_measured() -> None:
    adata, _, model = planted()
    adata.layers["mean_count"] = np.full(adata.shape, 10.0, dtype=np.float32)
    plain = run(adata, model)["genes"]
    adata.layers["mean_count"][:, 0] = 9.0  # in no profile
    adata.layers["mean_count"][:2, 1] = 9.0  # in the others
    adata.X[:2, 1] = -99.0
    found = run(adata, model)["genes"]
    assert set(plain["gene"]) - set(found["gene"]) == {"G00"}
    assert found.set_index("gene").loc["G01", "effect"] > 0
    adata.layers["mean_count"][:] = 0.0
    with pytest.raises(ValueError, match=r"0 genes that move .* \(10 counts or more"):
        run(adata, model)


def test_programs_that_hold_a_set_go_first() -> None:
    adata, _, model = planted()
    plain = run(adata.copy(), model, n_permutations=0)
    assert plain["programs"]["effect"].is_monotonic_decreasing
    last = plain["genes"].loc[plain["genes"]["program"] == f"P{N_BLOCKS}", "gene"].tolist()
    stored = run(adata, model, n_permutations=0, gene_sets={"last": last, "one": [model.genes[0]]})
    of = stored["genes"].set_index("gene")["program"]
    assert set(of[last]) == {"P1"}
    assert stored["programs"]["effect"].iloc[1:].is_monotonic_decreasing
    assert stored["enrichment"].iloc[0][["program", "term"]].tolist() == ["P1", "last"]
    number = stored["enrichment"]["program"].str[1:].astype(int)
    assert number.is_monotonic_increasing
    np.testing.assert_array_equal(
        stored["programs"].loc["P1", ["size", "effect", "stability"]].to_numpy(float),
        plain["programs"].iloc[-1][["size", "effect", "stability"]].to_numpy(float),
    )
    assert adata.varm["gene_programs"].loc[last, "P1"].ne(0).all()
