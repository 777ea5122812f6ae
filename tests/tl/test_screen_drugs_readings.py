"""The readings of a signature: how they join, their null, and the library's mean."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.models import CellPulse
from tests.tl._drugs import N_GENES, UP, profiles, results, signatures

#: Most libraries here are small.
pytestmark = pytest.mark.filterwarnings("ignore:p_value and fdr are NaN:UserWarning")

VALUES = ["cosine_reversal", "reversal", "embedding_reversal"]


def screened(adata: ad.AnnData | None = None, group: str = "A", **arguments) -> pd.DataFrame:
    adata = profiles() if adata is None else adata
    given = {"signatures": signatures(), "model": None, "n_permutations": 300} | arguments
    cfm.tl.screen_drugs(adata, **given)
    return results(adata, group)


def library(n: int = 150, shared: int = 20) -> pd.DataFrame:
    """Random signatures that have some genes in common, the first ones down."""
    rng = np.random.default_rng(2)
    rows = []
    for i in range(n):
        drawn = [f"GENE{g}" for g in rng.choice(np.arange(60, N_GENES), 40, replace=False)]
        sides = {"up": drawn[:20], "down": [*drawn[20:], *UP[:shared]]}
        rows += [(f"c{i}", gene, side) for side, genes in sides.items() for gene in genes]
    return pd.DataFrame(rows, columns=["compound", "gene", "direction"])


def test_the_cosine_is_that_of_the_cleaned_profile() -> None:
    found = screened()["cosine_reversal"]
    mean = profiles()[:3].to_df().mean().to_numpy(np.float64)
    limit = np.sort(np.abs(mean))[-2]
    profile = np.clip(mean, -limit, limit)
    profile = pd.Series(profile - profile.mean(), index=profiles().var_names)
    for name, rows in signatures().groupby("compound"):
        signed = profile[rows["gene"]].to_numpy() * np.where(rows["direction"] == "up", 1, -1)
        expected = -signed.sum() / np.sqrt(len(rows)) / np.linalg.norm(profile)
        assert found[name] == pytest.approx(expected, abs=1e-6)


def test_one_signature_alone_keeps_its_reading() -> None:
    table = signatures()
    alone = screened(signatures=table[table["compound"] == "Reverser"])
    np.testing.assert_allclose(
        alone["cosine_reversal"], screened().loc[["Reverser"], "cosine_reversal"]
    )
    assert np.isnan(alone["p_value"].item())


def test_what_a_library_has_in_common_reverses_nothing() -> None:
    adata = profiles()
    shared, none = library(), library(shared=0)
    found, expected = screened(adata, signatures=shared), screened(signatures=none)
    assert adata.uns["drug_screen"]["params"]["library_mean_removed"]
    # All of them lower the genes that the virus raises; without these genes they are random.
    assert found["reversal"].median() > 0.3
    assert abs(found["cosine_reversal"].median()) < 0.03
    assert (found["p_value"] < 0.05).mean() < 0.15
    assert adata.uns["drug_screen"]["params"]["inflations"][0] < 1.25
    assert found["cosine_reversal"].corr(expected["cosine_reversal"].loc[found.index]) > 0.9
    few = screened(signatures=shared[shared["compound"].isin([f"c{i}" for i in range(99)])])
    assert few["cosine_reversal"].median() > 0.3
    # A specific reverser is still found among them.
    reverser = signatures()[lambda t: t["compound"] == "Reverser"]
    assert screened(signatures=pd.concat([shared, reverser])).index[0] == "Reverser"


def test_many_signatures_of_one_compound_do_not_make_the_mean() -> None:
    table = library(shared=0).assign(signature="one")
    reverser = signatures()[lambda t: t["compound"] == "Reverser"]
    once = pd.concat([table, reverser.assign(signature="one")])
    again = pd.concat([table, *(reverser.assign(signature=f"{i}") for i in range(50))])
    columns = ["cosine_reversal", "score", "p_value"]
    np.testing.assert_allclose(
        screened(signatures=again)[columns], screened(signatures=once)[columns]
    )


@pytest.mark.parametrize("readings", ["cosine", "connectivity", ("cosine", "connectivity")])
def test_p_values_of_random_signatures_say_what_they_mean(readings: str | tuple) -> None:
    shares = []
    for seed in range(3, 9):
        adata = profiles(seed)[3:].copy()
        found = screened(adata, "B", signatures=signatures(200), readings=readings)
        p = found.loc[found.index.str.startswith("random"), "p_value"].to_numpy()
        shares.append([(p <= level).mean() for level in (0.01, 0.05, 0.2)])
    # Of the connectivity about half are 0, both sides on one end: they share a large p-value.
    np.testing.assert_allclose(np.mean(shares, axis=0), [0.01, 0.05, 0.2], atol=0.03)


def test_a_set_with_one_side_gains_nothing_from_a_profile_that_rises() -> None:
    adata = profiles(3)[3:].copy()
    adata.X += 0.5
    table = signatures(200)
    one = table[(table["direction"] == "down") & table["compound"].str.startswith("random")]
    with pytest.warns(UserWarning, match="on one side only"):
        found = screened(adata, "B", signatures=one)
    assert (found["p_value"] < 0.05).mean() < 0.12
    assert adata.uns["drug_screen"]["params"]["inflations"][0] < 1.25


def test_chosen_readings_make_the_score_and_the_others_stay(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f"c{i}", gene, side)
        for i in range(12)
        for side, genes in zip(
            ("up", "down"), rng.permutation(contrasts.var_names)[:80].reshape(2, 40), strict=True
        )
        for gene in genes
    ]
    table = pd.DataFrame(rows, columns=["compound", "gene", "direction"])
    chosen = ["cosine", "connectivity", "model", ("model", "cosine", "connectivity")]
    found = []
    for readings in chosen:
        cfm.tl.screen_drugs(contrasts, table, model=model, n_permutations=200, readings=readings)
        found.append(results(contrasts, "virus_A").sort_index())
    for other in found[1:]:
        pd.testing.assert_frame_equal(other[VALUES], found[0][VALUES])
    each = np.stack([f["score"] for f in found[:3]])
    joined = found[3]["score"].to_numpy()
    # Strube: between the plain mean (all the same) and the sum over root 3 (independent).
    ratio = joined / each.sum(axis=0)
    assert ratio.std() < 1e-9 and 1 / 3 - 1e-9 <= ratio.mean() <= 1 / np.sqrt(3) + 1e-9
    assert contrasts.uns["drug_screen"]["params"]["readings"] == chosen[0:1] + chosen[1:3]


def test_a_profile_in_which_nothing_moves_says_nothing() -> None:
    adata = profiles()
    adata.X[:3] = 0
    found = screened(adata, readings=("cosine", "connectivity"))
    assert (found["score"] == 0).all() and found["p_value"].isna().all()
    many = screened(adata, signatures=signatures(100))
    assert (many["score"] == 0).all() and (many["p_value"] == 1).all()
    assert found["cosine_reversal"].tolist() == [0.0] * len(found)
    assert [name.lower() for name in found.index] == sorted(name.lower() for name in found.index)


def modules(n: int, seed: int) -> tuple[ad.AnnData, pd.DataFrame]:
    """A profile and ``n`` signatures of genes that move together, with nothing to do with it."""
    rng = np.random.default_rng(seed)
    module = np.arange(N_GENES) % 8
    effects = rng.normal(size=8)[module] + 0.5 * rng.normal(size=N_GENES)
    adata = ad.AnnData(effects[None].astype(np.float32), obs=pd.DataFrame({"virus": ["A"]}))
    adata.var_names = [f"GENE{g}" for g in range(N_GENES)]
    rows = []
    for i in range(n):
        order = np.argsort(rng.normal(size=8)[module] + 0.5 * rng.normal(size=N_GENES))
        for side, genes in (("up", order[-20:]), ("down", order[:20])):
            rows += [(f"c{i}", f"GENE{g}", side) for g in genes]
    return adata, pd.DataFrame(rows, columns=["compound", "gene", "direction"])


@pytest.mark.parametrize("readings", [["cosine"], ["connectivity"]])
def test_genes_that_move_together_are_no_reversal(readings: list[str]) -> None:
    rejected = []
    for seed in range(3):
        adata, table = modules(120, seed)
        found = screened(adata, signatures=table, readings=readings)
        assert adata.uns["drug_screen"]["params"]["inflations"][0] > 1.5
        rejected.append((found["fdr"] < 0.05).mean())
    assert np.mean(rejected) < 0.02


@pytest.mark.parametrize("n", [10, 50])
def test_a_small_library_has_scores_but_no_p_values(n: int) -> None:
    adata, table = modules(n, 0)
    with pytest.warns(UserWarning, match=f"only known from 100 compounds on; found {n}"):
        found = screened(adata, signatures=table)
    assert found[["p_value", "fdr"]].isna().all(axis=None)
    assert found["score"].notna().all() and found["rank"].tolist() == list(range(1, n + 1))
    assert np.isnan(adata.uns["drug_screen"]["params"]["inflations"]).all()
    # What acts by its targets alone keeps its p-value.
    pairs = pd.DataFrame({"compound": ["c0", "other"], "gene": ["GENE1", "GENE2"]})
    factors = pd.Series(np.arange(N_GENES), index=[f"GENE{g}" for g in range(N_GENES)])
    both = screened(adata, signatures=table, targets=pairs, host_factors=factors)
    assert both["p_value"].notna().sum() == 1
    assert both.loc["other", ["p_value", "fdr"]].between(0, 1).all()


def test_families_of_tests_hold_from_a_hundred_compounds_on() -> None:
    shares, families = [], []
    for seed in range(15):
        adata, table = modules(100, seed)
        found = screened(adata, signatures=table)
        shares.append((found["p_value"] < 0.05).mean())
        families.append((found["fdr"] < 0.05).any())
    assert np.mean(families) <= 0.1
    assert np.mean(shares) < 0.06


def test_a_random_library_is_not_widened() -> None:
    adata = profiles()
    screened(adata, signatures=library(n=300, shared=0))
    assert (adata.uns["drug_screen"]["params"]["inflations"] < 1.25).all()
