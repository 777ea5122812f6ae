"""AnnData with the fields that tools store, made up from what the figures read."""

from __future__ import annotations

import itertools
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import cfm
from tests.tl.test_search_signatures import library, queries

VIRUSES = ["SARS-CoV-2", "SARS-CoV", "IAV", "RSV", "HIV-1", "ZIKV", "DENV", "HCV", "HRV", "VACV"]
VIRUSES += ["KSHV", "HCMV", "EBOV", "NiV", "CHIKV", "JCPyV", "HPIV3", "HSV-2", "HBV", "MCMV"]
KINDS = ["none", "viral", "bacterial", "interferon I/III"]
KEY = "predicted_virus"


def make_predicted(
    n: int, k: int = 4, name: str = "series{i}|{virus}_vs_none", seed: int | None = None
) -> AnnData:
    """``n`` contrasts called among ``k`` viruses; the first is ``"unresolved"``."""
    rng = np.random.default_rng(n if seed is None else seed)
    viruses = VIRUSES[:k]
    kinds_proba = rng.dirichlet(np.ones(len(KINDS)), size=n)
    virus_proba = rng.dirichlet(np.full(k, 0.5), size=n)
    response = np.array(KINDS, dtype=object)[kinds_proba.argmax(axis=1)]
    response[0] = "viral"
    virus = np.array(viruses, dtype=object)[virus_proba.argmax(axis=1)]
    call = np.select([response == "none", response == "viral"], ["uninfected", virus], "not viral")
    call[0] = "unresolved"
    shares = dict(zip(KINDS, (0.71, 0.81, 0.14, 0.33), strict=True))
    support = np.where(call == "unresolved", shares["viral"], rng.uniform(0.8, 1, size=n))
    true = [VIRUSES[i % k] for i in range(n)]
    names = [name.format(i=i, virus=v) for i, v in enumerate(true)]
    obs = pd.DataFrame(
        {
            "virus": pd.Categorical(true),
            KEY: pd.Categorical(call),
            f"{KEY}_response": pd.Categorical(response),
            f"{KEY}_infected": kinds_proba[:, 1].astype(np.float32),
            f"{KEY}_support": support.astype(np.float32),
        },
        index=names,
    )
    genes = pd.DataFrame(index=[f"GENE{i}" for i in range(30)])
    adata = AnnData(rng.normal(size=(n, 30)).astype(np.float32), obs=obs, var=genes)
    adata.obsm[f"{KEY}_response_proba"] = pd.DataFrame(
        kinds_proba, index=names, columns=[kind.replace("/", "|") for kind in KINDS]
    )
    adata.obsm[f"{KEY}_proba"] = pd.DataFrame(virus_proba, index=names, columns=viruses)
    adata.obsm["X_cellpulse"] = rng.normal(size=(n, 8)).astype(np.float32)
    table = pd.DataFrame({"level": "response", "answer": KINDS, "share": shares.values()})
    adata.uns[KEY] = {
        "params": {"model": "cellpulse-virus"},
        "classes": viruses,
        "responses": KINDS,
        "support": table.assign(n_contrasts=9, n_studies=4),
    }
    return adata


def make_graph(n_codes: int = 4, n_genes: int = 24, n_levels: int = 2, seed: int = 0) -> AnnData:
    """An AnnData with a graph: genes with one to three codes, every code with every other."""
    rng = np.random.default_rng(seed)
    codes, genes = (
        [f"{k}:{i}" for i in range(n)] for k, n in (("code", n_codes), ("gene", n_genes))
    )
    levels = [f"tissue:t{i}" for i in range(n_levels)]
    rows = [
        (codes[c], gene, "importance", False)
        for gene in genes
        for c in rng.choice(n_codes, rng.integers(1, min(4, n_codes + 1)), replace=False)
    ]
    rows += [(a, b, "communication", True) for a in codes for b in codes for _ in range(2)]
    rows += [(codes[i % n_codes], level, "enrichment", False) for i, level in enumerate(levels)]
    rows += [(genes[2 * i], genes[2 * i + 1], "relation", False) for i in range(n_genes // 4)]
    edges = pd.DataFrame(rows, columns=["source", "target", "kind", "directed"])
    edges["strength"] = edges["weight"] = rng.uniform(0.05, 1.0, len(edges))
    ids = [*codes, *genes, *levels, "gene:lonely"]
    nodes = pd.DataFrame(
        {
            "kind": [name.split(":")[0] for name in ids],
            "label": [name.replace("gene:", "GENE").split(":")[-1] for name in ids],
            "size": 10,
        },
        index=ids,
    )
    adata = AnnData(np.zeros((2, 2), dtype=np.float32))
    edges = edges.set_axis(edges.index.astype(str))
    adata.uns["knowledge_graph"] = {"params": {}, "nodes": nodes, "edges": edges}
    return adata


PROBE_METRICS = ("balanced_accuracy", "auroc")


def make_probed(n_targets: int = 1, n_reps: int = 1, seed: int = 0) -> AnnData:
    """The table that the tool stores, made up: embeddings at 0.8, expression at 0.7."""
    rng = np.random.default_rng(seed)
    rows = []
    targets = ["disease"] if n_targets == 1 else ["mean over targets"]
    targets += [f"drug{i}" for i in range(n_targets if n_targets > 1 else 0)]
    methods = [(f"X_model{i}", 0.8) for i in range(n_reps)] + [("expression PCA", 0.7)]
    heads = ["logistic", "random_forest"]
    cases = itertools.product(methods, heads, targets, PROBE_METRICS)
    for (rep, level), head, target, metric in cases:
        score = level + 0.02 * heads.index(head) + (target[:4] == "drug") * rng.normal() / 10
        rows.append((rep, head, target, metric, score, score - 0.1, score + 0.1, 60, 20))
    for target, metric in itertools.product(targets, PROBE_METRICS):
        rows.append(("none", "majority", target, metric, 0.5, 0.5, 0.5, 60, 20))
    names = ["representation", "head", "target", "metric"]
    names += ["score", "low", "high", "n_obs", "n_groups"]
    table = pd.DataFrame(rows, columns=names)
    table.index = table.index.astype(str)
    n = 60
    truth = np.array(["case", "healthy"], dtype=object)[np.arange(n) % 2]
    obs = pd.DataFrame({"disease": truth, "probe_fold": np.arange(n) % 3})
    adata = AnnData(np.zeros((n, 2)), obs=obs.set_index(obs.index.astype(str)))
    proba, calls = {}, {}
    for (rep, _), head in itertools.product(methods, heads):
        p = np.clip(0.6 * (truth == "case") + rng.uniform(0, 0.4, n), 0, 1)
        p = np.where(rng.uniform(size=n) < 0.2, 1 - p, p)
        proba |= {f"{rep}|{head}|case": p, f"{rep}|{head}|healthy": 1 - p}
        calls[f"{rep}|{head}"] = np.where(p > 0.5, "case", "healthy")
    adata.obsm["probe_method_proba"] = pd.DataFrame(proba, index=adata.obs_names)
    adata.obsm["probe_predictions"] = pd.DataFrame(calls, index=adata.obs_names)
    params = {"task": "classification", "target": ["disease"], "groups": "", "target_key": ""}
    params |= {"classes": ["case", "healthy"], "predictions": "X_model0|logistic"}
    adata.uns["probe"] = {"params": params, "results": table}
    return adata


def make_survival(n: int = 60, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    high = np.arange(n) % 2 == 1
    time = rng.exponential(np.where(high, 10.0, 40.0))
    end = rng.uniform(5, 80, size=n)
    obs = pd.DataFrame(
        {
            "days": np.minimum(time, end).round(1) + 0.1,
            "died": time <= end,
            "probe_risk_group": pd.Categorical(
                np.where(high, "high", "low"), categories=["low", "high"]
            ),
        },
        index=[f"p{i}" for i in range(n)],
    )
    adata = AnnData(np.zeros((n, 2)), obs=obs)
    params = {"task": "survival", "target": ["days", "died"]}
    results = pd.DataFrame({"representation": ["X"], "head": "cox", "metric": "c_index"})
    results = results.assign(score=0.7).set_axis(["0"])
    adata.uns["probe"] = {"params": params, "results": results}
    return adata


def make_importance(seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "donor": f"d{i}",
            "group": group,
            "enrichment": level * rng.uniform(0.9, 1.1),
            "removal": level + 0.01 * i,
            "removal_random": 0.3 + 0.01 * i,
        }
        for i in range(5)
        for group, level in (("T", 0.5), ("B", 2.0), ("NK", 1.0))
    ]
    table = pd.DataFrame(rows, index=[str(i) for i in range(len(rows))])
    record = {"params": {"method": "attention"}, "groups": table}
    return AnnData(obs=pd.DataFrame(index=["cell"]), uns={"cell_importance": record})


def make_donors() -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "disease": pd.Categorical(["lupus", "normal"] * 6),
            "age": np.arange(12.0),
            "X_pulsar_spread": np.r_[0.0, np.nan, np.full(10, 0.5)].astype(np.float32),
        },
        index=[f"donor{i}" for i in range(12)],
    )
    return AnnData(obs=obs, obsm={"X_pulsar": rng.normal(size=(12, 2)).astype(np.float32)})


def make_searched(**arguments: Any) -> AnnData:
    """Four contrasts with their matches in a library."""
    adata = queries()
    cfm.tl.search_signatures(adata, library(), n=50, **arguments)
    return adata


TYPES = ["CD14+ Monocytes", "CD4 T cells", "B cells", "NK cells", "Dendritic cells"]


def with_cell_codes(
    n_codes: int = 5, n_cells: int = 400, types: list[str] = TYPES, seed: int = 0
) -> AnnData:
    """Cells of ``n_codes`` codes, unequally frequent, each mostly of one type."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, n_codes + 1)
    of_cell = np.r_[
        np.arange(n_codes), rng.choice(n_codes, n_cells - n_codes, p=weight / weight.sum())
    ]
    kind = of_cell % len(types)
    mixed = rng.random(n_cells) < 0.2
    kind[mixed] = rng.integers(0, len(types), size=mixed.sum())
    numbers = np.sort(rng.choice(4096, n_codes, replace=False))
    names = numbers.astype(str).astype(object)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(types)[kind]),
            "donor": pd.Categorical(rng.choice(["d1", "d2"], size=n_cells)),
            "cell_code": pd.Categorical.from_codes(of_cell, categories=names),
            "cell_code_similarity": rng.uniform(0.8, 1, n_cells).astype(np.float32),
            "cell_code_margin": rng.uniform(0, 0.2, n_cells).astype(np.float32),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    n_genes = 10 + 4 * len(types)
    mean = np.full((n_cells, n_genes), 0.5)
    for i, k in enumerate(of_cell % len(types)):
        mean[i, 4 * k : 4 * k + 4] = 8
    genes = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    adata = AnnData(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)), obs=obs, var=genes)
    centre = rng.normal(size=(len(types), 16))
    vectors = centre[np.arange(n_codes) % len(types)] + 0.3 * rng.normal(size=(n_codes, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -2)
    nearest = cosine.argmax(axis=1)
    large = [i for i in range(n_codes) if (of_cell == i).sum() >= 5]
    adata.uns["cell_code"] = {
        "params": {"groupby": ["cell_type"], "units": "counts"},
        "vectors": pd.DataFrame(
            vectors.astype(np.float32), index=names, columns=[str(i) for i in range(16)]
        ),
        "neighbours": pd.DataFrame(
            {
                "code": names,
                "neighbour": names[nearest],
                "cosine_rank": np.ones(n_codes, dtype=np.int64),
            },
            index=names,
        )[: n_codes if n_codes > 1 else 0],
        "markers": pd.DataFrame(
            [
                {"code": names[i], "rank": r + 1, "gene": f"GENE{4 * (i % len(types)) + r}"}
                for i in large
                for r in range(4)
            ],
            columns=["code", "rank", "gene"],
        ).rename(str),
    }
    return adata


DIRECTIONS = np.array(["down", "unchanged", "up"], dtype=object)


def profiles(n: int = 6, genes: int = 40, seed: int = 0, name: str = "GENE{}") -> AnnData:
    """``n`` profiles of two groups by ``genes`` genes."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"virus": pd.Categorical([("IAV", "RSV")[i % 2] for i in range(n)])},
        index=[f"series{i}|{('IAV', 'RSV')[i % 2]}_vs_none" for i in range(n)],
    )
    var = pd.DataFrame(index=[name.format(i) for i in range(genes)])
    return AnnData(rng.normal(size=(n, genes)).astype(np.float32), obs=obs, var=var)


def with_host_factors(
    genes: int = 40,
    groups: tuple[str, ...] = ("IAV",),
    *,
    tied: bool = False,
    null: bool = True,
    seed: int = 0,
    name: str = "GENE{}",
) -> AnnData:
    """Host factors of each group; the first three genes have a low FDR."""
    rng = np.random.default_rng(seed)
    adata = profiles(6, genes, seed, name)
    tables = []
    for group in groups:
        score = np.ones(genes) if tied else np.sort(rng.exponential(size=genes))[::-1]
        effect = np.round(rng.normal(scale=2, size=genes), 3)
        effect[4::7] = 0.0
        p = np.linspace(1e-4, 1, genes)
        tables.append(
            pd.DataFrame(
                {
                    "group": group,
                    "explained": group,
                    "gene": rng.permutation(adata.var_names.to_numpy(dtype=object)),
                    "score": score,
                    "rank": np.arange(1, genes + 1),
                    "direction": DIRECTIONS[np.sign(effect).astype(int) + 1],
                    "effect": effect,
                    "concordance": rng.uniform(0.5, 1, size=genes),
                    "call_effect": rng.normal(size=genes),
                    "p_value": p if null else np.nan,
                    "fdr": np.where(np.arange(genes) < 3, 0.01, 0.3) if null else np.nan,
                    "n_profiles": 3 if null else 1,
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table.index = table.index.astype(str)
    adata.uns["host_factors"] = {"params": {"method": "consensus"}, "results": table}
    return adata


def with_gene_programs(
    sizes: tuple[int, ...] = (8, 6, 5),
    profiles_: int = 6,
    *,
    groups: tuple[str, ...] = ("all",),
    seed: int = 0,
    name: str = "GENE{}",
) -> AnnData:
    """Programs of the given sizes in each group; genes of a program move together in ``X``."""
    rng = np.random.default_rng(seed)
    adata = profiles(profiles_, max(sum(sizes) + 5, 10), seed, name)
    values = np.array(adata.X) * 0.3
    programs, genes, edges = [], [], []
    for group in groups:
        start = 0
        for p, size in enumerate(sizes):
            program = f"P{p + 1}" if len(groups) == 1 else f"{group}:P{p + 1}"
            members = adata.var_names[start : start + size]
            sign = np.where(rng.uniform(size=size) < 0.2, -1, 1) * (1 if p % 2 == 0 else -1)
            activity = rng.uniform(0.5, 2, size=(profiles_, 1))
            values[:, start : start + size] += activity * sign
            direction = "up" if (sign > 0).all() else "down" if (sign < 0).all() else "mixed"
            stability = rng.uniform(0.4, 1) if profiles_ > 1 else np.nan
            programs.append(
                {
                    "program": program, "group": group, "size": size, "direction": direction,
                    "coherence": rng.uniform(0.6, 1), "stability": stability,
                    "cohesion": rng.uniform(0.3, 0.9), "p_value": 0.01,
                    "fdr": 0.01 if p == 0 else 0.2,
                }
            )  # fmt: skip
            weight = np.sort(rng.uniform(0.1, 1, size=size))[::-1]
            for i, gene in enumerate(members):
                genes.append(
                    {
                        "program": program, "gene": gene, "weight": weight[i],
                        "sign": int(sign[i]), "effect": float(sign[i]), "rank": i + 1,
                    }
                )  # fmt: skip
            for i in range(size):
                for j in range(i + 1, size):
                    if j == i + 1 or rng.uniform() < 4 / size:
                        edges.append((members[i], members[j], rng.uniform(), program, program))
            if p:
                other = adata.var_names[start - 1]
                before = programs[-2]["program"]
                edges.append((members[0], other, 0.2, program, before))
            start += size
    frame = pd.DataFrame(edges, columns=["gene_a", "gene_b", "weight", "program_a", "program_b"])
    frame["group"] = groups[0]
    frame.index = frame.index.astype(str)
    members_ = pd.DataFrame(genes)
    members_.index = members_.index.astype(str)
    adata.X = values.astype(np.float32)
    adata.uns["gene_programs"] = {
        "params": {"model": "cellpulse-mini"},
        "programs": pd.DataFrame(programs).set_index("program"),
        "genes": members_,
        "edges": frame,
    }
    return adata


def with_drug_screen(
    compounds: int = 60,
    groups: tuple[str, ...] = ("IAV",),
    *,
    tied: bool = False,
    null: bool = True,
    seed: int = 0,
    name: str = "compound-{}",
) -> AnnData:
    """A screen in which the first two compounds are significant and some lack evidence."""
    rng = np.random.default_rng(seed)
    adata = profiles()
    tables = []
    for group in groups:
        reversal = np.clip(rng.normal(scale=0.4, size=compounds), -1, 1)
        target = rng.normal(size=compounds)
        score = np.zeros(compounds) if tied else np.sort(rng.normal(size=compounds))[::-1]
        reversal[3::5] = np.nan
        target[2::5] = np.nan
        fdr = np.where(np.arange(compounds) < 2, 0.01, 0.6) if null else np.nan
        tables.append(
            pd.DataFrame(
                {
                    "group": group,
                    "compound": [name.format(i) for i in range(compounds)],
                    "rank": np.arange(1, compounds + 1),
                    "score": score,
                    "p_value": np.linspace(0.001, 1, compounds) if null else np.nan,
                    "fdr": fdr,
                    "cosine_reversal": reversal / 3,
                    "reversal": reversal,
                    "embedding_reversal": reversal / 2,
                    "target_score": target,
                    "p_target": 0.4,
                    "n_signatures": np.where(np.isnan(reversal), 0, 3),
                    "n_targets": np.where(np.isnan(target), 0, 2),
                    "reversal_genes": "IFIT1|MX1",
                    "target_genes": "JAK1|JAK2",
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table.index = table.index.astype(str)
    adata.uns["drug_screen"] = {"params": {"groupby": "virus"}, "results": table}
    return adata


GROUPS = ["B cell", "T cell"]
GENES = [f"GENE{i}" for i in range(30)]
#: Real and simulated change of log expression, by group.
REAL = {"B cell": np.linspace(-1, 2, 30), "T cell": np.linspace(2, -1, 30)}
MADE = {"B cell": 0.5 * REAL["B cell"], "T cell": -REAL["T cell"]}
METRICS = {"delta_pearson": True, "e_distance": False, "mmd": False}
METHODS = ["LingshuCell", "control", "mean_shift", "ceiling"]


def cells(level: str, shift: dict[str, np.ndarray], n: int = 6) -> AnnData:
    """``n`` cells of each group, log expression 5 plus the shift; deviations add to zero."""
    wiggle = np.linspace(-0.3, 0.3, n)[:, None]
    x = np.concatenate([5.0 + shift[group] + wiggle for group in GROUPS])
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical([level] * len(x)),
            "cell_type": pd.Categorical(np.repeat(GROUPS, n)),
        },
        index=[f"{level}{i}" for i in range(len(x))],
    )
    return AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


def make_screen() -> tuple[AnnData, AnnData]:
    """Real cells, control and IFN; and cells simulated with IFN."""
    none = {group: np.zeros(30) for group in GROUPS}
    real = ad.concat([cells("none", none), cells("IFN", REAL)])
    made = cells("IFN", MADE)
    made.obs_names = [f"{name}-made" for name in made.obs_names]
    made.obs["simulated_by"] = "Model"
    made.var["simulated"] = True
    made.uns["simulation"] = {"params": {"key": "condition", "control": "none", "units": "log"}}
    real.uns["log1p"] = {"base": None}
    return real, made


def as_counts(adata: AnnData, seed: int = 0) -> AnnData:
    """The same design with counts."""
    rng = np.random.default_rng(seed)
    out = adata.copy()
    depth = rng.uniform(50, 400, size=(out.n_obs, 1))
    share = np.exp(np.asarray(adata.X))
    mean = depth * share / share.sum(axis=1, keepdims=True)
    out.X = sparse.csr_matrix(rng.poisson(mean).astype(np.float32))
    return out


def make_scores(groups: list[str] | None = None) -> pd.DataFrame:
    """The table of the tool: the model wins the distances, mean shift the correlation."""
    rows = []
    values = {
        "delta_pearson": (0.8, np.nan, 0.9, 0.97),
        "e_distance": (1.0, 4.0, 2.0, 0.2),
        "mmd": (0.01, 0.2, 0.1, 0.002),
    }
    cases = itertools.product(groups or GROUPS, METRICS.items(), enumerate(METHODS))
    for group, (metric, higher), (i, method) in cases:
        value = values[metric][i] + 0.01 * (groups or GROUPS).index(group)
        rows.append((group, "IFN", metric, method, value, higher, 40, 60))
    names = ["group", "perturbation", "metric", "method", "value", "higher_is_better"]
    return pd.DataFrame(rows, columns=[*names, "n_real", "n_simulated"])
