"""``cfm.tl.map_reference``: neighbours, labels, evidence, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.data import Reference
from tests._same import assert_unchanged


def embedded(n: int, seed: int, prefix: str) -> ad.AnnData:
    """Donors of three diseases around centres of their own."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(3, 8))
    kind = np.arange(n) % 3
    obs = pd.DataFrame(
        {
            "disease": pd.Categorical(np.array(["lupus", "normal", "RA"])[kind]),
            "dataset_id": [f"set{i % 4}" for i in range(n)],
        },
        index=[f"{prefix}{i}" for i in range(n)],
    )
    x = centres[kind] + 0.2 * rng.normal(size=(n, 8))
    return ad.AnnData(obs=obs, obsm={"X_pulsar": x.astype(np.float32)})


@pytest.fixture
def query() -> ad.AnnData:
    return embedded(9, 1, "new")


@pytest.fixture
def reference() -> ad.AnnData:
    return embedded(60, 2, "known")


def test_labels_are_taken_over_with_their_evidence(
    query: ad.AnnData, reference: ad.AnnData
) -> None:
    before = reference.copy()
    truth = query.obs["disease"].astype(str).tolist()
    assert cfm.tl.map_reference(query, reference, "disease") is None
    assert_unchanged(reference, before)
    assert query.obs["map_reference"].astype(str).tolist() == truth
    assert (query.obs["map_reference_confidence"] > 0.9).all()
    stored = query.uns["map_reference"]
    neighbours = stored["neighbours"]
    assert len(neighbours) == 90
    assert neighbours["similarity"].between(-1, 1.00001).all()
    own = neighbours[neighbours["observation"] == "new0"]
    assert own["rank"].tolist() == list(range(1, 11))
    assert (np.diff(own["similarity"]) <= 0).all()
    evidence = stored["evidence"]
    np.testing.assert_allclose(evidence.groupby("observation")["share"].sum(), 1.0)
    assert (evidence.groupby("observation")["n_neighbours"].sum() == 10).all()
    np.testing.assert_allclose(evidence["prior"], 1 / 3)
    np.testing.assert_allclose(evidence["enrichment"], evidence["share"] * 3)
    assert stored["params"]["n_reference"] == 60


def test_votes_are_as_documented(query: ad.AnnData, reference: ad.AnnData) -> None:
    query.obsm["X_pulsar"] = np.random.default_rng(3).normal(size=(9, 8))
    plain = {"n_neighbors": 7, "prior": "reference", "unknown": 0}
    cfm.tl.map_reference(query, reference, "disease", sharpness=4.0, **plain)
    found = query.uns["map_reference"]
    own = found["neighbours"].query("observation == 'new4'")
    votes = np.exp(4 * own["similarity"])
    share = votes.groupby(own["label"]).sum() / votes.sum()
    evidence = found["evidence"].query("observation == 'new4'").set_index("label")
    np.testing.assert_allclose(evidence["share"], share.loc[evidence.index])
    assert evidence["share"].is_monotonic_decreasing
    assert query.obs.loc["new4", "map_reference"] == evidence.index[0]
    cfm.tl.map_reference(query, reference, "disease", sharpness=0, **plain)
    evidence = query.uns["map_reference"]["evidence"]
    np.testing.assert_allclose(evidence["share"], evidence["n_neighbours"] / 7)


def test_a_study_does_not_vouch_for_itself(query: ad.AnnData, reference: ad.AnnData) -> None:
    cfm.tl.map_reference(query, reference, "disease", exclude_key="dataset_id", n_neighbors=50)
    neighbours = query.uns["map_reference"]["neighbours"]
    theirs = reference.obs["dataset_id"].loc[neighbours["reference"]].to_numpy()
    ours = query.obs["dataset_id"].loc[neighbours["observation"]].to_numpy()
    assert (theirs != ours).all()
    assert (neighbours.groupby("observation").size() == 45).all()  # 15 of 60 are left out


def test_neighbours_without_a_label_do_not_vote(query: ad.AnnData, reference: ad.AnnData) -> None:
    values = reference.obs["disease"].astype(object)
    reference.obs["disease"] = values.where(values != "normal", None)
    cfm.tl.map_reference(query, reference, "disease", n_neighbors=5)
    truth = query.obs["disease"].astype(str)
    assert query.obs["map_reference"].isna().tolist() == (truth == "normal").tolist()
    assert query.obs["map_reference_confidence"].isna().sum() == 3
    assert set(query.uns["map_reference"]["evidence"]["label"]) == {"lupus", "RA"}


def test_an_index_and_a_parquet_file_give_the_same(
    query: ad.AnnData, reference: ad.AnnData, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    cfm.tl.map_reference(query, reference, "disease")
    expected = query.uns["map_reference"]["neighbours"]
    index = Reference.from_anndata(reference, "X_pulsar")
    frame = reference.obs.rename_axis("donor_id").reset_index()
    frame["embedding"] = list(reference.obsm["X_pulsar"])
    frame.to_parquet(tmp_path / "donors.parquet")
    for source in (index, tmp_path / "donors.parquet", str(tmp_path)):
        cfm.tl.map_reference(query, source, "disease")
        pd.testing.assert_frame_equal(query.uns["map_reference"]["neighbours"], expected)


def test_without_a_label_only_neighbours_are_found(
    query: ad.AnnData, reference: ad.AnnData
) -> None:
    columns = query.obs.columns.tolist()
    cfm.tl.map_reference(query, reference, centre=True)
    assert query.obs.columns.tolist() == columns
    assert set(query.uns["map_reference"]) == {"params", "neighbours"}


def test_what_cannot_be_mapped_is_refused(query: ad.AnnData, reference: ad.AnnData) -> None:
    before = query.copy()
    call = cfm.tl.map_reference
    with pytest.raises(TypeError, match="reference is a dict"):
        call(query, {})
    with pytest.raises(ValueError, match="occur more than once"):
        call(ad.concat([query, query]), reference, "disease")
    with pytest.raises(KeyError, match=r"reference.obsm has no 'X_pulsar'"):
        call(query, ad.AnnData(obs=reference.obs))
    with pytest.raises(KeyError, match=r"query.obs has no column 'site'"):
        reference.obs["site"] = "x"
        call(query, reference, exclude_key="site")
    with pytest.raises(ValueError, match="sharpness=-1"):
        call(query, reference, sharpness=-1)
    with pytest.raises(ValueError, match="was indexed without"):
        call(query, Reference.from_anndata(reference, "X_pulsar"), centre=True)
    with pytest.raises(ValueError, match="same model"):
        call(query, Reference(np.ones((60, 9)), reference.obs))
    with pytest.raises(TypeError, match="use_rep is a int; expected"):
        call(query, reference, use_rep=3)
    assert_unchanged(query, before)


def skewed(n_lupus: int = 90, n_normal: int = 10, seed: int = 0) -> ad.AnnData:
    """Two diseases that overlap, one much more frequent."""
    rng = np.random.default_rng(seed)
    kind = np.repeat([0, 1], [n_lupus, n_normal])
    x = np.column_stack([np.ones(len(kind)), 0.5 * kind + 0.35 * rng.normal(size=len(kind))])
    obs = pd.DataFrame(
        {"disease": np.array(["lupus", "normal"])[kind]},
        index=[f"{seed}-{i}" for i in range(len(kind))],
    )
    return ad.AnnData(obs=obs, obsm={"X_pulsar": x})


def test_votes_are_corrected_for_the_composition_of_the_reference() -> None:
    """Healthy donors are not all called ill where most of the reference is."""
    reference, query = skewed(450, 50), skewed(40, 40, seed=1)
    healthy = (query.obs["disease"] == "normal").to_numpy()
    recall = {}
    for prior in ("reference", "uniform", "estimated", {"lupus": 0.0, "normal": 1.0}):
        cfm.tl.map_reference(query, reference, "disease", prior=prior, unknown=0, n_neighbors=50)
        called = query.obs["map_reference"].astype(str).to_numpy()
        recall[str(prior)] = (called == "normal")[healthy].mean()
    assert recall["reference"] < 0.3
    assert recall["uniform"] > 0.6
    assert recall["estimated"] > 0.6
    assert recall["{'lupus': 0.0, 'normal': 1.0}"] > 0.9
    priors = query.uns["map_reference"]["params"]["priors"]
    assert priors["labels"] == ["lupus", "normal"]
    np.testing.assert_allclose(priors["in_reference"], [0.9, 0.1])


def test_corrected_shares_are_as_documented(query: ad.AnnData, reference: ad.AnnData) -> None:
    reference = reference[reference.obs["dataset_id"] != "set0"].copy()
    given = {"RA": 0.2, "lupus": 0.5, "normal": 0.3}
    arguments = {"label_key": "disease", "n_neighbors": 40, "sharpness": 1.0}
    cfm.tl.map_reference(query, reference, **arguments, prior=given)
    evidence = query.uns["map_reference"]["evidence"]
    for _, own in evidence.groupby("observation"):
        expected = own["share"] / own["prior"] * own["label"].map(given)
        np.testing.assert_allclose(own["corrected"], expected / expected.sum())
        assert own["corrected"].is_monotonic_decreasing
    best = evidence.drop_duplicates("observation").set_index("observation")
    assert query.obs["map_reference"].tolist() == best.loc[query.obs_names, "label"].tolist()
    np.testing.assert_allclose(
        query.obs["map_reference_confidence"], best.loc[query.obs_names, "corrected"]
    )


def test_what_is_far_from_the_reference_is_unknown(query: ad.AnnData) -> None:
    reference = embedded(300, 2, "known")
    strange = query.copy()
    strange.obsm["X_pulsar"] = np.random.default_rng(11).normal(size=(9, 8))
    for unknown, least, most in ((0.05, 0.0, 0.15), (0.5, 0.3, 0.7), (0.0, 0.0, 0.0)):
        same = embedded(300, 3, "same")
        cfm.tl.map_reference(same, reference, "disease", unknown=unknown)
        share = (same.obs["map_reference"] == "unknown").mean()
        assert least <= share <= most
    cfm.tl.map_reference(strange, reference, "disease")
    assert (strange.obs["map_reference"] == "unknown").all()
    assert strange.obs["map_reference_confidence"].isna().all()
    limit = strange.uns["map_reference"]["params"]["unknown_below"]
    neighbours = strange.uns["map_reference"]["neighbours"]
    assert (neighbours["similarity"] < limit).all()


@pytest.mark.parametrize(
    "prior", ["flat", {"lupus": 1.0}, {"lupus": -1.0, "normal": 1.0, "RA": 1.0}]
)
def test_priors_that_make_no_sense_are_refused(
    query: ad.AnnData, reference: ad.AnnData, prior: object
) -> None:
    before = query.copy()
    with pytest.raises(ValueError, match="prior="):
        cfm.tl.map_reference(query, reference, "disease", prior=prior)
    assert_unchanged(query, before)
