from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments
from cfm.datasets._toy_genes import negative_binomial, toy_genes

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
    truth = _truth(genes)

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


def _truth(genes: pd.DataFrame) -> pd.DataFrame:
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
