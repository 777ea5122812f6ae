"""The training corpus: profiles of infections, of no infection, and of other stimuli.

All profiles are log2 fold changes over one list of human gene symbols, NaN = not measured. Those
of the count files are made by :mod:`cfm.pp` just as a user's are, so that an infection and a null
contrast differ in the infection and not in who computed them.

Write it to a file with ``python -m training.corpus --data DATA --output corpus.h5ad``.
"""

from __future__ import annotations

import argparse
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import cfm
from benchmarks._studies import load_signatures, load_signed_sets
from cfm.data import ContrastPairs, GeneVocabulary
from training._count_studies import COUNT_STUDIES, STIMULUS_STUDIES, CountStudy
from training._plan import UNINFECTED, Plan, pair_blocks, plan_infections, plan_nulls
from training._responses import response_of

SIGNATURE_SPECIES = ("human", "mouse", "monkey")


def default_genes(data: Path, min_measured: float = 0.5) -> pd.Index:
    """Human symbols measured in at least this share of the usable human signatures."""
    signatures = load_signatures(data, ("human",))
    share = np.isfinite(signatures.effects).mean(axis=0)
    return signatures.var_names[share >= min_measured]


def build_corpus(
    data: Path,
    genes: pd.Index,
    *,
    seed: int = 0,
    n_nulls: int = 4,
    n_subsets: int = 3,
    n_drugs: int = 0,
) -> ad.AnnData:
    """Read all and make the corpus.

    Parameters
    ----------
    data
        The data folder, described by its own README.md.
    genes
        Human symbols, the columns of the result.
    seed
        Seed of the choice of samples for null contrasts, subsets and drugs.
    n_nulls
        Null contrasts for each set of comparable controls, fewer where there are few samples.
    n_subsets
        For each infection contrast of counts, further contrasts of one to three cases and
        controls each (``whole=False``): as noisy as null contrasts of few samples are.
    n_drugs
        Connectivity Map instances to add as profiles of -1 and 1.

    Returns
    -------
    AnnData with ``X`` (profiles × genes) float32, NaN = not measured, and ``obs``:

    ``study``
        As in the manifest: what a split must not cut.
    ``virus``
        Label; ``"uninfected"`` for null contrasts and stimuli.
    ``kind``, ``source``
        ``infection``, ``null`` or ``stimulus``; ``signature`` or ``counts`` (made here).
    ``host``, ``agent``
        Host; what was given (virus, cytokine, drug; ``none`` for null contrasts).
    ``usable``
        Whether the manifest calls it usable, or a contrast of counts by the same rules.
    ``whole``
        ``False`` for subsets of a contrast that is there as a whole.
    ``n_cases``, ``n_controls``
        Numbers of samples, 0 if not known.
    ``response``
        Kind of response, of :data:`training._responses.RESPONSES`.
    ``tissue``, ``time_h``, ``detail``
        Text, ``""`` if not known: tissue or cell type, hours, and what else tells contrasts of a
        study apart.
    ``unit``, ``weight``
        ``"virus|study|kind|source"``, and 1 / (number of rows of the unit): a hint, to be
        combined with balancing over labels.
    """
    genes = pd.Index(genes, dtype=object)
    parts = [_signatures(data, genes)]
    for study in (*COUNT_STUDIES, *STIMULUS_STUDIES):
        adata = read_counts(data, study)
        plan = plan_infections(adata.obs, study, _rng(seed, study.file, study.keep), n_subsets)
        if study.nulls:
            null_by = study.by if study.null_by is None else study.null_by
            plan_nulls(
                plan, adata.obs, null_by, study.host, _rng(seed, study.file), n_nulls, study.agent
            )
        parts.append(run_plan(adata, plan, genes, scale_units(study)))
    parts += _other_nulls(data, genes, seed, n_nulls)
    parts += _stimuli(data, genes)
    if n_drugs:
        parts.append(_drugs(data, genes, n_drugs, seed))
    return _join(parts, genes)


def pairs_sources(data: Path, genes: pd.Index) -> dict[str, ContrastPairs]:
    """All (case, control) pairs of each count file, to draw pretraining profiles from.

    Pairs share a donor where the study is paired. Only usable contrasts take part; drop the
    entries of a study to hold it out (``source.contrasts["study"]`` names it).

    Parameters
    ----------
    data
        The data folder.
    genes
        Genes of interest; a source has those of them that it measures. Library sizes are over
        these, which shifts a profile by a constant.

    Returns
    -------
    By file (and number of the entry, if a file has several), in the order of the table.
    """
    sources = {}
    for study in COUNT_STUDIES:
        adata = read_counts(data, study)
        adata = adata[:, adata.var_names.isin(genes)].copy()
        plan = plan_infections(adata.obs, study, _rng(0, study.file), 0)
        usable = [block for block in plan.blocks if plan.obs[block[0]]["usable"]]
        if not usable:
            continue
        expanded = _expand(adata, usable)
        for column in ("study", "virus", "host"):
            expanded.obs[column] = [str(plan.obs[i][column]) for i in expanded.obs["profile"]]
        pairs = cfm.pp.contrasts(
            expanded,
            "role",
            "control",
            by=["block", "study", "virus", "host"],
            mode="pairs",
            units=scale_units(study),
        )
        name = study.file if study.file not in sources else f"{study.file}_{len(sources)}"
        sources[name] = pairs
    return sources


def scale_units(study: CountStudy) -> str:
    """Return ``units=`` for :func:`cfm.pp.contrasts`."""
    return "counts" if study.scale == "counts" else "log"


def read_counts(data: Path, study: CountStudy) -> ad.AnnData:
    """Read the samples of a count file that are used, with human symbols as genes."""
    adata = ad.read_h5ad(data / study.folder / f"{study.file}.h5ad")
    if study.keep:
        adata = adata[adata.obs.eval(study.keep, engine="python").to_numpy(bool)].copy()
    if study.scale == "linear":
        adata.X = np.log2(1.0 + np.asarray(adata.X.todense()))
    aggregate = "sum" if study.scale == "counts" else "mean"
    cfm.pp.map_genes(adata, organism=study.organism, aggregate=aggregate, unmapped="keep")
    return adata


def run_plan(adata: ad.AnnData, plan: Plan, genes: pd.Index, units: str) -> ad.AnnData:
    """Make the contrasts of a plan by :func:`cfm.pp.contrasts`, averaged over their blocks."""
    expanded = _expand(adata, plan.blocks)
    made = cfm.pp.contrasts(expanded, "role", "control", by="block", units=units)
    profile = np.array([plan.blocks[int(b)][0] for b in made.obs["block"]])
    shape = (len(plan.obs), made.n_vars)
    effects, n_blocks = np.zeros(shape, dtype=np.float64), np.bincount(profile)
    np.add.at(effects, profile, made.X)
    effects /= n_blocks[:, None]
    obs = pd.DataFrame(plan.obs).assign(
        source="counts",
        n_cases=np.bincount(profile, weights=made.obs["n_cases"]).astype(int),
        n_controls=np.bincount(profile, weights=made.obs["n_controls"]).astype(int),
    )
    return _over_genes(effects, made.var_names, genes, obs)


def _expand(adata: ad.AnnData, blocks: list[tuple[int, np.ndarray, np.ndarray]]) -> ad.AnnData:
    """Repeat samples for each block, with the columns ``block``, ``profile`` and ``role``."""
    rows = np.concatenate([np.concatenate(block[1:]) for block in blocks])
    sizes = [(len(cases), len(controls)) for _, cases, controls in blocks]
    obs = pd.DataFrame(
        {
            "block": np.repeat(np.arange(len(blocks)), [sum(s) for s in sizes]),
            "profile": np.repeat([block[0] for block in blocks], [sum(s) for s in sizes]),
            "role": np.concatenate([["case"] * a + ["control"] * b for a, b in sizes]),
        }
    )
    names = adata.obs_names[rows].astype(str) + "." + obs.groupby(rows).cumcount().astype(str)
    x = adata.X[rows]
    return ad.AnnData(x, obs=obs.set_axis(names, axis=0), var=pd.DataFrame(index=adata.var_names))


def _signatures(data: Path, genes: pd.Index) -> ad.AnnData:
    """Published signatures; those that the manifest does not call usable are kept, flagged."""
    signatures = load_signatures(data, SIGNATURE_SPECIES, usable=None).reindex(genes)
    infection = (signatures.obs["virus"] != "bacterial").to_numpy()
    obs = pd.DataFrame(
        {
            "study": signatures.obs["study"],
            "virus": np.where(infection, signatures.obs["virus"], UNINFECTED),
            "kind": np.where(infection, "infection", "stimulus"),
            "source": "signature",
            "host": signatures.obs["host"],
            "usable": signatures.obs["usable"].to_numpy(bool) | ~infection,
            "agent": signatures.obs["virus"],
            "whole": True,
            "n_cases": signatures.obs["n_infected"].fillna(0).astype(int),
            "n_controls": signatures.obs["n_control"].fillna(0).astype(int),
            "tissue": signatures.obs["tissue"].fillna("").astype(str),
            "time_h": signatures.obs["time_h"].fillna("").astype(str),
            "detail": signatures.obs["strain"].fillna("").astype(str),
        }
    )
    return ad.AnnData(signatures.effects, obs=obs, var=pd.DataFrame(index=genes))


def _other_nulls(data: Path, genes: pd.Index, seed: int, n_nulls: int) -> list[ad.AnnData]:
    """Null contrasts of lymphoblastoid lines of healthy donors, and of donors of Kang 2018."""
    parts = []
    for name in ("pickrell", "montgomery"):
        adata = ad.read_h5ad(data / "bulk" / f"lcl_rnaseq_{name}.h5ad")
        cfm.pp.map_genes(adata, organism="human")
        obs = pd.DataFrame({"virus": "none", "study": f"LCL_{name}"}, index=adata.obs_names)
        plan = Plan()
        plan_nulls(plan, obs, (), "human", _rng(seed, name), 2 * n_nulls)
        parts.append(run_plan(adata, plan, genes, "counts"))
    kang = _kang(data)
    controls = kang[kang.obs["condition"] == "ctrl"].copy()
    made = cfm.pp.contrasts(controls, "donor", "101", by="cell_type", sample_key="sample")
    parts.append(_labelled(made, genes, study="Kang2018", kind="null", agent="none"))
    return parts


def _stimuli(data: Path, genes: pd.Index) -> list[ad.AnnData]:
    """Treatments of pDC without virus, interferon beta on blood cells, and CytoSig."""
    study = next(s for s in COUNT_STUDIES if s.file == "P259_pDC_hrv")
    pdc = read_counts(data, CountStudy(study.file, keep="virus == 'none'"))
    treatment = pdc.obs["treatment"].astype(str).to_numpy()
    plan = Plan()
    for agent in ("EOS.supp", "AntiIL5"):
        experiment = pdc.obs["experiment"].astype(str).to_numpy()
        cases = np.flatnonzero(treatment == agent)
        controls = np.flatnonzero((treatment == "none") & (experiment == experiment[cases[0]]))
        blocks = list(pair_blocks(pdc.obs, "donor", cases, controls)) or [(cases, controls)]
        plan.add(
            blocks,
            study="P259_pDC",
            virus=UNINFECTED,
            kind="stimulus",
            host="human",
            usable=True,
            agent=agent,
            whole=True,
        )
    parts = [run_plan(pdc, plan, genes, "counts")]
    made = cfm.pp.contrasts(
        _kang(data), "condition", "ctrl", by="cell_type", sample_key="donor", min_cells=10
    )
    parts.append(_labelled(made, genes, study="Kang2018", kind="stimulus", agent="IFN-beta"))
    weights = pd.read_csv(data / "signed_sets" / "cytosig.csv.gz", index_col=0)
    obs = _stimulus_obs("CytoSig", weights.columns, "signature")
    parts.append(_over_genes(weights.to_numpy().T, weights.index, genes, obs))
    effects = pd.read_csv(data / "stimuli" / "lfc.csv.gz", index_col=0)
    manifest = pd.read_csv(data / "stimuli" / "lfc_manifest.csv").set_index("signature")
    manifest = manifest.loc[effects.columns]
    obs = _stimulus_obs("", manifest["stimulus"], "signature").assign(
        study=manifest["study"].to_numpy(),
        tissue=manifest["tissue"].to_numpy(),
        time_h=manifest["time_h"].astype(str).to_numpy(),
    )
    parts.append(_over_genes(effects.to_numpy().T, effects.index, genes, obs))
    return parts


def _kang(data: Path) -> ad.AnnData:
    adata = ad.read_h5ad(data / "single_cell" / "kang_ifnb_muscat.h5ad")
    cfm.pp.map_genes(adata, organism="human")
    return adata


def _drugs(data: Path, genes: pd.Index, n: int, seed: int) -> ad.AnnData:
    """Profiles of -1 and 1 of random Connectivity Map instances; 0 for genes in neither list."""
    sets = load_signed_sets(data, genes, ("cmap",))
    chosen = np.sort(_rng(seed, "cmap").choice(len(sets), size=min(n, len(sets)), replace=False))
    obs = _stimulus_obs("CMap", sets.names[chosen], "signature")
    measured = np.diff(sets.matrix.tocsc().indptr) > 0  # a gene in no list is not on the array
    effects = np.where(measured, sets.matrix[chosen].toarray(), np.nan)
    return _over_genes(effects, genes, genes, obs)


def _stimulus_obs(study: str, agents: Iterable[str], source: str) -> pd.DataFrame:
    return pd.DataFrame({"agent": [str(a) for a in agents]}).assign(
        study=study,
        virus=UNINFECTED,
        kind="stimulus",
        source=source,
        host="human",
        usable=True,
        whole=True,
        n_cases=0,
        n_controls=0,
    )


def _labelled(
    made: ad.AnnData, genes: pd.Index, *, study: str, kind: str, agent: str
) -> ad.AnnData:
    """Take contrasts of :func:`cfm.pp.contrasts` as they are into the corpus."""
    obs = _stimulus_obs(study, [agent] * made.n_obs, "counts").assign(
        kind=kind,
        n_cases=made.obs["n_cases"].to_numpy(),
        n_controls=made.obs["n_controls"].to_numpy(),
    )
    return _over_genes(made.X, made.var_names, genes, obs)


def _over_genes(
    effects: np.ndarray, names: pd.Index, genes: pd.Index, obs: pd.DataFrame
) -> ad.AnnData:
    """Put effects over the genes of the corpus; absent ones are NaN."""
    alignment = GeneVocabulary(genes).align(names)
    x = alignment.apply(np.asarray(effects, dtype=np.float32))
    obs = obs.set_axis(obs.index.astype(str), axis=0)
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))


def _join(parts: list[ad.AnnData], genes: pd.Index) -> ad.AnnData:
    """Stack the parts, with names, units and weights."""
    obs = pd.concat([part.obs for part in parts])
    for column in ("tissue", "time_h", "detail"):
        obs[column] = obs[column].fillna("").astype(str)
    responses = map(response_of, obs["kind"].astype(str), obs["agent"].astype(str))
    obs["response"] = list(responses)
    obs["unit"] = obs[["virus", "study", "kind", "source"]].astype(str).agg("|".join, axis=1)
    obs["weight"] = 1.0 / obs.groupby("unit")["unit"].transform("size").astype(float)
    number = obs.groupby(["study", "agent"]).cumcount().astype(str)
    names = obs["study"].astype(str) + "|" + obs["agent"].astype(str) + "|" + number
    for column in ("study", "virus", "kind", "source", "host", "agent", "unit", "response"):
        obs[column] = pd.Categorical(obs[column].astype(str))
    x = np.vstack([part.X for part in parts])
    return ad.AnnData(x, obs=obs.set_axis(names, axis=0), var=pd.DataFrame(index=genes))


def _rng(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for each name, so that a new file changes no other's draws."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def main() -> None:
    """Write the corpus to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        corpus = build_corpus(arguments.data, default_genes(arguments.data), seed=arguments.seed)
    corpus.write_h5ad(arguments.output, compression="gzip")
    print(corpus.obs.groupby(["kind", "source"], observed=True).size().to_string())


if __name__ == "__main__":
    main()
