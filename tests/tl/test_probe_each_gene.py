"""``cfm.tl.probe(heads="each_gene")``: planted genes are found, and chance is not."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm

N, N_GENES, DIM = 90, 40, 4
PLANTED = ["g3", "g17"]


def samples(seed: int = 0, *, strength: float = 1.5, groups: bool = False) -> ad.AnnData:
    """Genes with embeddings and expression; a direction of two embeddings follows the class."""
    rng = np.random.default_rng(seed)
    severity = rng.normal(size=N)
    if groups:
        severity = np.repeat(rng.normal(size=N // 3), 3)
    matrices = rng.normal(size=(N, N_GENES, DIM))
    for name in PLANTED:
        matrices[:, int(name[1:])] += strength * severity[:, None] * rng.normal(size=DIM)
    time = rng.exponential(np.exp(-1.5 * severity))
    end = rng.exponential(2.0, size=N)
    obs = pd.DataFrame(
        {
            "ill": np.where(severity > 0, "yes", "no"),
            "severity": severity,
            "time": np.minimum(time, end),
            "died": time <= end,
            "patient": np.repeat([f"p{i}" for i in range(N // 3)], 3),
        },
        index=[f"s{i}" for i in range(N)],
    )
    names = [f"g{i}" for i in range(N_GENES)]
    adata = ad.AnnData(
        rng.normal(5.0, 1.0, size=(N, N_GENES)).astype(np.float32),
        obs=obs.drop(columns=[] if groups else ["patient"]),
        var=pd.DataFrame(index=names),
    )
    adata.obsm["genes"] = matrices.reshape(N, -1).astype(np.float32)
    adata.uns["genes"] = {"genes": np.array(names, dtype=object)}
    return adata


@pytest.mark.parametrize(
    ("target", "task"),
    [
        ("ill", "classification"),
        ("severity", "regression"),
        (("time", "died"), "survival"),
    ],
)
def test_planted_genes_are_found(target: str | tuple[str, str], task: str) -> None:
    adata = samples()
    before = adata.copy()
    assert cfm.tl.probe(adata, target, task, use_rep="genes", heads="each_gene") is None
    table = adata.uns["probe"]["genes"]
    assert set(table.index[:2]) == set(PLANTED)
    assert (table.loc[PLANTED, "fdr"] < 0.02).all()
    assert (table.loc[PLANTED, "n_chosen"] == 5).all()
    assert (table["fdr"] < 0.05).sum() <= 4
    assert table["expression_fdr"].min() > 0.05
    results = adata.uns["probe"]["results"].set_index("representation")["score"]
    assert results["genes"] > 0.4 > 0.25 > results["expression"]
    assert list(adata.obs) == list(before.obs)


def test_chance_is_uniform() -> None:
    values = []
    for seed in range(4):
        adata = samples(seed, strength=0.0)
        cfm.tl.probe(adata, "ill", use_rep="genes", heads="each_gene", seed=seed)
        table = adata.uns["probe"]["genes"]
        values.append(table["p_value"].to_numpy())
        assert table["fdr"].min() > 0.01
    found = np.concatenate(values)
    assert 0.3 < (found < 0.5).mean() < 0.7
    assert (found < 0.05).mean() < 0.12


def test_groups_that_share_a_target_are_permuted_together() -> None:
    """Samples of a patient are alike: without groups= noise of the patient is a finding."""
    adata = samples(1, strength=0.0, groups=True)
    rng = np.random.default_rng(0)
    own = np.repeat(rng.normal(size=(N // 3, N_GENES * DIM)), 3, axis=0)
    adata.obsm["genes"] = (own + 0.1 * rng.normal(size=own.shape)).astype(np.float32)
    cfm.tl.probe(adata, "ill", groups="patient", use_rep="genes", heads="each_gene")
    honest = adata.uns["probe"]["genes"]
    assert (honest["p_value"] < 0.05).mean() < 0.2
    with pytest.warns(UserWarning, match="repeated values"):
        cfm.tl.probe(adata, "ill", use_rep="genes", heads="each_gene", key_added="split")
    assert (adata.uns["split"]["genes"]["p_value"] < 0.05).mean() > 0.5


def test_expression_alone_and_wrong_input() -> None:
    adata = samples()
    adata.X[:, 5] += (adata.obs["ill"] == "yes").to_numpy() * 2.0
    cfm.tl.probe(adata, "ill", heads="each_gene")
    assert adata.uns["probe"]["genes"].index[0] == "g5"
    del adata.uns["genes"]
    with pytest.raises(ValueError, match="embeddings of genes"):
        cfm.tl.probe(adata, "ill", use_rep="genes", heads="each_gene")
    adata.obs["group"] = np.repeat(["a", "b"], N // 2)
    with pytest.raises(ValueError, match="leave test_on= out"):
        cfm.tl.probe(adata, "ill", groups="group", test_on="a", heads="each_gene")


def test_several_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seed has 3 values; heads='each_gene' takes one"):
        cfm.tl.probe(samples(), "ill", use_rep="genes", heads="each_gene", seed=range(3))
