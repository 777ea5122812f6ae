import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfm.datasets import toy_infection

ISGS = ["IFI27", "IFI44L", "ISG15", "MX1", "IFIT1", "RSAD2"]


def observed(adata, virus, hours):
    """Mean log2 CPM difference inside studies, centred, and what was planted."""
    log = np.log2((adata.X + 1) / adata.X.sum(axis=1, keepdims=True) * 1e6)
    at = (adata.obs["time_h"] == hours).to_numpy()
    case = at & (adata.obs["virus"] == virus).to_numpy()
    studies = adata.obs["study"][case].unique()
    differences, strengths = [], []
    for study in studies:
        inside = (adata.obs["study"] == study).to_numpy() & at
        control = inside & (adata.obs["virus"] == "none").to_numpy()
        differences.append(log[case & inside].mean(axis=0) - log[control].mean(axis=0))
        strengths.append(adata.obs["strength"][case & inside].mean())
    difference = np.mean(differences, axis=0)
    planted = adata.uns["truth"][virus].to_numpy() * np.mean(strengths)
    return difference - np.median(difference), planted


def test_shape_and_design():
    adata = toy_infection()
    assert adata.shape == (48, 3000)
    assert adata.X.dtype == np.float32
    assert (adata.X >= 0).all()
    assert (np.round(adata.X) == adata.X).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert set(adata.obs["virus"]) == {"none", "virus_A", "virus_B", "virus_C", "virus_D"}
    strata = adata.obs.groupby(["study", "donor", "time_h"], observed=True)["virus"]
    assert (strata.apply(lambda virus: (virus == "none").sum()) == 1).all()
    studies = adata.obs.groupby("virus", observed=True)["study"].nunique()
    assert (studies.drop("none") == 2).all()
    assert (adata.obs["strength"][adata.obs["virus"] == "none"] == 0).all()
    assert adata.X.sum(axis=1).min() > 1e6
    assert adata.X.sum(axis=1).max() < 5e7


@pytest.mark.parametrize("virus", ["virus_A", "virus_B", "virus_C", "virus_D"])
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_changes_are_found_again(virus, seed):
    adata = toy_infection(seed, n_donors=4)
    found, planted = observed(adata, virus, 24.0)
    changed = planted != 0
    assert changed.sum() == 160
    assert np.abs(found - planted)[changed].mean() < 0.3
    assert abs((found - planted)[changed].mean()) < 0.05
    assert np.corrcoef(found[changed], planted[changed])[0, 1] > 0.98
    assert np.std(found[~changed]) < 0.35


def test_strength_grows_with_time():
    adata = toy_infection(n_donors=4)
    early, _ = observed(adata, "virus_A", 6.0)
    late, planted = observed(adata, "virus_A", 24.0)
    isgs = adata.var_names.get_indexer(ISGS)
    assert (isgs >= 0).all()
    assert (planted[isgs] > 1).all()
    assert 0.3 < early[isgs].mean() / late[isgs].mean() < 0.7


def test_programmes_are_shared_and_distinct():
    truth = toy_infection().uns["truth"]
    viruses = [name for name in truth if name != "programme"]
    assert truth["programme"].value_counts().drop("").to_dict() == dict.fromkeys(
        ["interferon", *viruses], 80
    )
    interferon = truth["programme"] == "interferon"
    assert (truth.loc[interferon, viruses] > 0).all().all()
    for virus in viruses:
        own = truth["programme"] == virus
        assert (truth.loc[own, virus] != 0).all()
        assert (truth.loc[own, virus] > 0).sum() == 50
        assert (truth.loc[own, [name for name in viruses if name != virus]] == 0).all().all()
    assert (truth.loc[truth["programme"] == "", viruses] == 0).all().all()


def test_stimulus_raises_the_interferon_programme_only():
    adata = toy_infection(stimulus=True, n_donors=4)
    treated = adata.obs["virus"] == "IFN-beta"
    assert set(adata.obs["condition"][treated]) == {"stimulated"}
    found, planted = observed(adata, "IFN-beta", 24.0)
    programme = adata.uns["truth"]["programme"].to_numpy()
    assert ((planted != 0) == (programme == "interferon")).all()
    assert found[programme == "interferon"].mean() > 1.5
    assert abs(found[programme == "virus_A"].mean()) < 0.1


@settings(max_examples=8)
@given(
    n_studies=st.integers(1, 6),
    n_donors=st.integers(1, 3),
    times=st.lists(st.floats(0.5, 100), min_size=1, max_size=3, unique=True),
)
def test_size_follows_the_arguments(n_studies, n_donors, times):
    adata = toy_infection(n_studies=n_studies, n_donors=n_donors, times=times)
    assert adata.n_obs == n_studies * n_donors * len(times) * 3
    assert np.isfinite(adata.X).all()
