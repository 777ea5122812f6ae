"""Simulated bulk samples with a known answer: infections, and a cohort with an outcome."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments
from cfm.datasets._toy_genes import (
    INTERFERON_STRENGTH,
    STIMULUS,
    negative_binomial,
    planted_effects,
    toy_genes,
)

#: Which programme of the toy genes each invented disease raises, and the one behind the outcome.
_DISEASE_PROGRAMME = {"disease_A": "virus_A", "disease_B": "virus_B", "disease_C": "virus_C"}
_RISK_PROGRAMME = "virus_D"
#: Share of the programmes' log2 fold changes: of a disease, and per standard deviation of risk.
_DISEASE_SHARE, _RISK_SHARE = 0.25, 0.5
#: In every study one disease is over-represented, as in real collections.
_MAIN_DISEASE_SHARE = 0.6
_N_FACTORS = 5
#: Median survival in days at average risk, log hazard per standard deviation, and follow-up.
_MEDIAN_DAYS, _LOG_HAZARD, _FOLLOW_UP = 700.0, 1.0, (300.0, 2000.0)


@checks_arguments()
def toy_infection(
    seed: int = 0,
    *,
    n_studies: int = 4,
    n_donors: int = 2,
    times: Sequence[float] = (6.0, 24.0),
    stimulus: bool = False,
) -> ad.AnnData:
    r"""Simulated bulk RNA-seq counts of infected and mock-infected cells, with a known answer.

    Real human gene symbols, invented viruses. Study *s* has, for every donor and time, one mock
    sample and one sample for each of two neighbouring viruses of *virus_A* … *virus_D*, so that
    with four studies each virus occurs in two of them and can be tested across studies.

    The count of gene :math:`g` in sample :math:`i` is negative binomial with mean

    .. math:: N_i \, p_g \, 2^{\,a_{s(i)g} + d_{d(i)g} + c_i t_{v(i)g}}

    with library size :math:`N_i` (log-normal, median five million reads on these genes), base
    abundance :math:`p_g` (as in mock-infected cells of Blanco-Melo et al. 2020), study effect
    :math:`a` and donor effect :math:`d` (normal, standard deviations 0.5 and 0.25), the planted
    log2 fold change :math:`t_{vg}` of virus :math:`v` and the strength
    :math:`c_i = (1 - e^{-\mathrm{time}/10\,\mathrm{h}})` times a log-normal factor (standard
    deviation 0.1). Dispersions lie between 0.02 and about 0.4. As in real data, reads of raised
    genes enlarge the library: log2 fold changes per million lie about 0.2 below the planted ones
    at full strength; subtract the median over all genes.

    Parameters
    ----------
    seed
        Seed of the random draw. The same seed gives the same counts; the planted effects are the
        same for every seed, so that one seed can train and another one test.
    n_studies
        Number of studies.
    n_donors
        Donors per study.
    times
        Hours after infection; each donor has all of them.
    stimulus
        Also add, in every study, samples treated with interferon beta (virus "IFN-beta"), which
        raise the interferon programme and nothing else: uninfected, but not at rest.

    Returns
    -------
    anndata.AnnData
        Samples × 3,000 genes (48 samples by default), `X` dense float32 of whole numbers, and

        `adata.obs` : ``study``, ``donor``, ``virus`` ("none" for mock), ``condition``
        ("control", "infected" or "stimulated") as categories, ``time_h`` and ``strength``
        (:math:`c_i`; 0 for mock) as float64.
        `adata.uns["truth"]` : DataFrame, genes × (``programme`` and one float32 column per
        virus): log2 fold change at strength 1. 80 genes of an interferon programme rise with
        every virus (by 1, 0.7, 0.4 and 1 of their full effect for A to D); 50 others rise and 30
        fall with one virus only.
        `adata.uns["params"]` : the arguments.

    Raises
    ------
    ValueError
        If a number is below one or a time is not positive.

    Notes
    -----
    Symbols come from the MSigDB hallmark sets 7.5.1 (Liberzon et al. 2015, CC BY 4.0) and the
    interferon-stimulated genes listed in the package qusage. The assignment of hallmark sets to
    the invented viruses is arbitrary: nothing here describes a real virus.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.toy_infection()
    >>> adata.shape
    (48, 3000)
    """
    if len(times) < 1 or not all(time > 0 for time in times):
        raise ValueError(f"times is {list(times)}; give one or more positive numbers of hours.")
    rng = np.random.default_rng(seed)
    genes = toy_genes()
    viruses = list(INTERFERON_STRENGTH)
    conditions = [*viruses, STIMULUS] if stimulus else viruses
    effects = planted_effects(genes, conditions)

    obs = _design(n_studies, n_donors, times, viruses, stimulus)
    jitter = np.exp(0.1 * rng.standard_normal(len(obs)))
    treated = (obs["virus"] != "none").to_numpy()
    obs["strength"] = np.where(treated, (1 - np.exp(-obs["time_h"] / 10)) * jitter, 0.0)

    log_mean = np.tile(genes["log2_cpm"].to_numpy(), (len(obs), 1))  # (samples, genes)
    for column, deviation in (("study", 0.5), ("donor", 0.25)):
        codes, levels = pd.factorize(obs[column])
        log_mean += deviation * rng.standard_normal((len(levels), len(genes)))[codes]
    change = effects.T.reindex(obs["virus"]).fillna(0.0).to_numpy()  # mock has no column
    share = np.exp2(log_mean)
    share /= share.sum(axis=1, keepdims=True)
    # After the division, so that means change by exactly the planted fold changes.
    share *= np.exp2(obs["strength"].to_numpy()[:, None] * change)
    library = 5e6 * np.exp(0.4 * rng.standard_normal(len(obs)))
    dispersion = 0.02 + 0.05 * rng.standard_exponential(len(genes))
    counts = negative_binomial(library[:, None] * share, dispersion, rng)

    categories = ["study", "donor", "virus", "condition"]
    adata = ad.AnnData(
        X=counts,
        obs=obs.astype(dict.fromkeys(categories, "category")),
        var=pd.DataFrame(index=pd.Index(genes.index, name=None)),
    )
    truth = effects.rename_axis(None)
    truth.insert(0, "programme", genes["programme"].to_numpy())
    adata.uns["truth"] = truth
    adata.uns["params"] = {
        "seed": seed,
        "n_studies": n_studies,
        "n_donors": n_donors,
        "times": np.asarray(times, dtype=np.float64),
        "stimulus": stimulus,
    }
    return adata


def _design(
    n_studies: int, n_donors: int, times: Sequence[float], viruses: list[str], stimulus: bool
) -> pd.DataFrame:
    rows = []
    for number in range(n_studies):
        pair = [viruses[number % len(viruses)], viruses[(number + 1) % len(viruses)]]
        treatments = {"none": "control", **dict.fromkeys(pair, "infected")}
        if stimulus:
            treatments[STIMULUS] = "stimulated"
        study = f"study{number + 1}"
        for donor in range(n_donors):
            for time in times:
                for virus, condition in treatments.items():
                    name = f"{study}_donor{donor + 1}"
                    rows.append((f"{name}_{time:g}h_{virus}", study, name, virus, condition, time))
    columns = ["sample", "study", "donor", "virus", "condition", "time_h"]
    obs = pd.DataFrame(rows, columns=columns).set_index("sample").rename_axis(None)
    return obs.astype({"time_h": np.float64})


@checks_arguments()
def toy_bulk_cohort(seed: int = 0, *, n_patients: int = 84, n_studies: int = 3) -> ad.AnnData:
    r"""Simulated bulk RNA-seq counts of patients with a disease and an outcome, and the truth.

    Real human gene symbols, invented diseases. Each patient gives one sample. Every study
    recruits mostly one disease, so that study and disease are entangled, as in real collections:
    recognising the study helps to name the disease until whole studies are left out.

    The count of gene :math:`g` in the sample of patient :math:`i` is negative binomial with mean

    .. math:: N_i \, p_g \, 2^{\,a_{s(i)g} + \sum_k f_{ik} w_{kg}
        + t_{m(i)g} + r_i\, u_g}

    with library size :math:`N_i` (log-normal, median five million reads on these genes), base
    abundance :math:`p_g`, study effect :math:`a` (normal, standard deviation 0.4), five hidden
    factors :math:`f` that have nothing to do with the outcome (normal, loadings :math:`w` of
    standard deviation 0.25), the planted log2 fold changes :math:`t` of the patient's disease
    :math:`m(i)` and :math:`u` of the risk programme, and the patient's risk :math:`r_i` (standard
    normal). Time to the event is exponential with hazard :math:`h_0 e^{r_i}`, median 700 days at
    average risk; observation ends after 300 to 2,000 days.

    Parameters
    ----------
    seed
        Seed of the random draw; the planted effects are the same for every seed, so that one seed
        can train and another one test.
    n_patients
        Number of patients, spread evenly over studies.
    n_studies
        Number of studies.

    Returns
    -------
    anndata.AnnData
        Samples × 3,000 genes, `X` dense float32 of whole numbers, and

        `adata.obs` : ``study``, ``disease`` ("disease_A" to "disease_C") as categories;
        ``time_days`` float64, to the event or the end of observation; ``event`` bool, whether it
        was seen; ``risk`` float64, the planted :math:`r_i`.
        `adata.uns["truth"]` : DataFrame, genes × (``programme``: "", "risk" or a disease; and
        ``log2_fc`` float32, the planted change, of "risk" per standard deviation). Each programme
        has 80 genes, of which 50 rise and 30 fall.
        `adata.uns["params"]` : the arguments.

    Raises
    ------
    ValueError
        If there is no study, or fewer than three patients in one.

    See Also
    --------
    cfm.datasets.toy_infection : samples of infected cells, and where the genes come from.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.toy_bulk_cohort()
    >>> adata.shape
    (84, 3000)
    >>> adata.obs["study"].value_counts().tolist()
    [28, 28, 28]
    """
    if n_studies < 1 or n_patients < 3 * n_studies:
        raise ValueError(
            f"n_patients is {n_patients} and n_studies is {n_studies}; at least one study and "
            "three patients in each are needed."
        )
    rng = np.random.default_rng(seed)
    genes = toy_genes()
    truth = _cohort_truth(genes)

    diseases = list(_DISEASE_PROGRAMME)
    study = np.sort(np.arange(n_patients) % n_studies)
    main = study % len(diseases)
    other = (main + rng.integers(1, len(diseases), n_patients)) % len(diseases)
    disease = np.where(rng.random(n_patients) < _MAIN_DISEASE_SHARE, main, other)
    risk = rng.standard_normal(n_patients)
    time, event = _outcome(risk, rng)

    log_mean = np.tile(genes["log2_cpm"].to_numpy(), (n_patients, 1))  # (patients, genes)
    log_mean += 0.4 * rng.standard_normal((n_studies, len(genes)))[study]
    loadings = 0.25 * np.random.default_rng(0).standard_normal((_N_FACTORS, len(genes)))
    log_mean += rng.standard_normal((n_patients, _N_FACTORS)) @ loadings
    share = np.exp2(log_mean)
    share /= share.sum(axis=1, keepdims=True)
    programme, effect = truth["programme"].to_numpy(), truth["log2_fc"].to_numpy(np.float64)
    own = programme[None, :] == np.array(diseases)[disease][:, None]
    change = np.where(own, effect, 0.0) + np.outer(risk, np.where(programme == "risk", effect, 0.0))
    share *= np.exp2(change)
    library = 5e6 * np.exp(0.4 * rng.standard_normal(n_patients))
    dispersion = 0.02 + 0.05 * rng.standard_exponential(len(genes))
    counts = negative_binomial(library[:, None] * share, dispersion, rng)

    obs = pd.DataFrame(
        {
            "study": pd.Categorical([f"study{number + 1}" for number in study]),
            "disease": pd.Categorical(np.array(diseases)[disease], categories=diseases),
            "time_days": time,
            "event": event,
            "risk": risk,
        },
        index=[f"patient{number + 1:03d}" for number in range(n_patients)],
    )
    adata = ad.AnnData(X=counts, obs=obs, var=pd.DataFrame(index=pd.Index(genes.index, name=None)))
    adata.uns["truth"] = truth
    adata.uns["params"] = {"seed": seed, "n_patients": n_patients, "n_studies": n_studies}
    return adata


def _cohort_truth(genes: pd.DataFrame) -> pd.DataFrame:
    names = {programme: disease for disease, programme in _DISEASE_PROGRAMME.items()}
    names[_RISK_PROGRAMME] = "risk"
    programme = genes["programme"].map(names).fillna("")
    weight = programme.map(lambda name: _RISK_SHARE if name == "risk" else _DISEASE_SHARE)
    effect = np.where(programme == "", 0.0, weight * genes["log2_fc"]).astype(np.float32)
    return pd.DataFrame(
        {"programme": programme.to_numpy(), "log2_fc": effect},
        index=pd.Index(genes.index, name=None),
    )


def _outcome(risk: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw survival in whole days, at least one, and whether the event was seen."""
    hazard = np.log(2.0) / _MEDIAN_DAYS * np.exp(_LOG_HAZARD * risk)
    survival = rng.exponential(1.0 / hazard)
    end = rng.uniform(*_FOLLOW_UP, len(risk))
    return np.maximum(np.ceil(np.minimum(survival, end)), 1.0), survival <= end
