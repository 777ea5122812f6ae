"""Further evidence beside a drug screen: network proximity, direction of action, amphiphilicity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from cfm._adata import params_of, takes_anndata, target
from cfm._docs import fill_docs
from cfm._fields import DRUG_SCREEN_KEY, HOST_FACTORS_KEY, RESULTS
from cfm.data._matrix import in_memory_frame
from cfm.stats._evidence import rank_shares, standardize
from cfm.tl._drug_screen import mean_profiles
from cfm.tl._drug_screen._evidence import host_factor_scores
from cfm.tl._groups import profile_groups
from cfm.tl._run import TEXTS
from cfm.tl._signatures import compound_column, compound_key, read_targets, symbols

if TYPE_CHECKING:
    from anndata import AnnData

#: Least number of genes of similar degree to draw from, as in Guney et al. 2016.
_BIN = 100
#: Words of actions, the first that is found: "antagonist" contains "agonist".
_SIGNS = {
    "inhibit|antagonist|blocker|inverse agonist|negative": -1.0,
    "agonist|activator|opener|positive": 1.0,
}


@takes_anndata(ranges={"n_host_factors": 1, "n_permutations": 2})
@fill_docs(TEXTS)
def annotate_drugs(
    adata: AnnData,
    targets: pd.DataFrame | None = None,
    network: pd.DataFrame | None = None,
    properties: pd.DataFrame | None = None,
    *,
    host_factors: str | pd.DataFrame | pd.Series = HOST_FACTORS_KEY,
    n_host_factors: int = 100,
    n_permutations: int = 1000,
    seed: int = 0,
    key: str = DRUG_SCREEN_KEY,
    copy: bool = False,
) -> AnnData | None:
    r"""Add evidence beside the score to the compounds of a drug screen.

    *Proximity* (Guney et al. 2016): the mean over a compound's targets of the number of edges to
    the closest of the first ``n_host_factors`` host factors, in the largest connected component.
    Its null has random targets and random host factors of similar degrees.

    *Action*: −1 where the compound inhibits a target (also antagonists, blockers, inverse agonists,
    negative modulators), 1 where it activates it (agonists, openers, positive modulators).

    *Cationic amphiphilic*: :math:`pK_a^2 + (\log P)^2 \ge 90` with :math:`pK_a \ge 8` and
    :math:`\log P \ge 1` (Ploemen et al. 2004). Such compounds accumulate in lysosomes, cause
    phospholipidosis, and are active in many screens in cells for that reason alone.

    No column enters the score, the ranks or the p-values.

    Parameters
    ----------
    adata
        Profiles with the result of :func:`cfm.tl.screen_drugs`.
    targets
        Table with ``compound`` (or ``drug``), ``gene`` and, for the action, ``action``, such as
        :func:`cfm.datasets.drug_targets`.
    network
        Undirected edges between genes, columns ``gene1`` and ``gene2``, such as Reactome FI or
        STRING; needs ``targets`` and ``host_factors``.
    properties
        Table with ``compound`` (or ``drug``), ``pka`` (of the most basic group) and ``logp``.
    host_factors
        As in :func:`cfm.tl.screen_drugs`. Of a list of known ones give a Series of equal scores.
    n_host_factors
        Number of host factors in the network, those with the largest scores.
    n_permutations
        Number of random sets.
    seed
        Seed of the random sets.
    key
        Name of the screen.
    %(copy)s

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes in ``adata.uns[key]['results']`` what
    the arguments allow, ``NaN`` where a compound has no such evidence:

    ``proximity``, ``proximity_z``
        float64: mean number of edges, and its standard deviations from the null; negative is
        closer than chance.
    ``action``
        float64, mean over the targets with a stated action, −1 to 1.
    ``action_reversal``
        float64, minus the mean product of the action and the place of the target's effect in the
        profile of the group (−1 lowest, 1 highest). Above 0 the compound inhibits what is up or
        activates what is down.
    ``cationic_amphiphilic``
        nullable boolean.

    Raises
    ------
    KeyError
        If the screen, the host factors or a column do not exist.
    TypeError
        If a table is no DataFrame.
    ValueError
        If there is nothing to add, or no host factor or no target is in the network. ``adata``
        stays unchanged.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.screen_drugs(contrasts, cfm.datasets.cmap_signatures())
    >>> cfm.tl.annotate_drugs(contrasts, cfm.datasets.drug_targets())
    >>> results = contrasts.uns["drug_screen"]["results"].set_index("compound")
    >>> float(results.loc["propranolol", "action"].iloc[0])
    -1.0
    """
    record = adata.uns.get(key)
    if not isinstance(record, Mapping) or RESULTS not in record:
        raise KeyError(f"adata.uns[{key!r}] holds no drug screen; run cfm.tl.screen_drugs first.")
    if network is not None and targets is None:
        raise ValueError("network= needs targets=, which is missing.")
    if network is None and properties is None and (targets is None or "action" not in targets):
        raise ValueError("Give targets= with an action, network= and targets=, or properties=.")
    results = in_memory_frame(record[RESULTS]).copy()
    own = compound_key(results["compound"].astype(str))
    group = results["group"].astype(str)
    params = params_of(adata.uns, key)
    groups = list(group.unique())
    pairs = None if targets is None else read_targets(targets)
    if pairs is not None and targets is not None and "action" in targets:
        signed = pairs.assign(action=_actions(targets, pairs)).dropna()
        results["action"] = own.map(signed.groupby("key")["action"].mean()).to_numpy(np.float64)
        rows = {"all": np.arange(adata.n_obs)}
        if params.get("groupby"):
            rows = profile_groups(adata, str(params["groupby"]), groups)
        profiles = mean_profiles(adata, list(rows.values()), params.get("layer"))
        genes = symbols(adata.var_names)
        results["action_reversal"] = np.nan
        for name, profile in zip(rows, profiles, strict=True):
            effects = pd.Series(profile, index=genes).dropna().groupby(level=0).mean()
            place = 2 * pd.Series(rank_shares(effects), index=effects.index) - 1
            product = -signed["action"] * signed["gene"].map(place)
            mean = product.groupby(signed["key"]).mean()
            results.loc[group == name, "action_reversal"] = own[group == name].map(mean)
    if network is not None and pairs is not None:
        scores = host_factor_scores(adata, host_factors, groups)
        firsts = {
            name: score.sort_index().sort_values(ascending=False, kind="stable").index
            for name, score in scores.items()
        }
        results[["proximity", "proximity_z"]] = np.nan
        graph, nodes = _largest_component(network)
        made: dict[bytes, pd.DataFrame] = {}
        for name, ranked in firsts.items():
            sources = np.sort(nodes.get_indexer(ranked[:n_host_factors]))
            sources = sources[sources >= 0]
            if sources.tobytes() not in made:
                made[sources.tobytes()] = _proximity(
                    graph, sources, pairs, nodes, n_permutations=n_permutations, seed=seed
                )
            found = made[sources.tobytes()]
            inside = group == name
            for column in found:
                results.loc[inside, column] = own[inside].map(found[column])
    if properties is not None:
        results["cationic_amphiphilic"] = own.map(_amphiphilic(properties)).astype("boolean")
    adata = target(adata, copy=copy)
    adata.uns[key] = dict(record) | {RESULTS: results}
    return adata if copy else None


def _actions(targets: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """Return the mean sign of the stated actions of each pair, ``NaN`` if there is none."""
    text = targets["action"].fillna("").astype(str).str.lower().reset_index(drop=True)
    sign = pd.Series(np.nan, index=text.index)
    for words, value in _SIGNS.items():
        sign = sign.where(~(text.str.contains(words) & sign.isna()), value)
    key = compound_key(compound_column(targets, "targets").astype(str))
    gene = symbols(targets["gene"].astype(str).str.strip())
    known = sign.groupby([key.to_numpy(), gene]).mean()
    return known.reindex(pd.MultiIndex.from_frame(pairs[["key", "gene"]])).to_numpy()


def _amphiphilic(properties: pd.DataFrame) -> pd.Series:
    """Return by compound key whether a compound is cationic amphiphilic; several rows: any is."""
    if not isinstance(properties, pd.DataFrame):
        raise TypeError(
            f"properties= is a {type(properties).__name__}; expected a DataFrame with compound, "
            "pka and logp."
        )
    missing = [name for name in ("pka", "logp") if name not in properties]
    if missing:
        raise KeyError(f"properties= lacks {missing}; it has {properties.columns.tolist()}.")
    key = compound_key(compound_column(properties, "properties").astype(str)).to_numpy()
    pka, logp = (properties[name].astype(np.float64).to_numpy() for name in ("pka", "logp"))
    known = np.isfinite(pka) & np.isfinite(logp)
    flag = (pka**2 + logp**2 >= 90) & (pka >= 8) & (logp >= 1)
    return pd.Series(flag[known], index=key[known]).groupby(level=0).any()


def _largest_component(network: pd.DataFrame) -> tuple[sparse.csr_matrix, pd.Index]:
    """Return the adjacency of the largest component, and the symbols of its genes, sorted."""
    if not isinstance(network, pd.DataFrame):
        raise TypeError(f"network= is a {type(network).__name__}; expected a DataFrame of edges.")
    missing = [name for name in ("gene1", "gene2") if name not in network]
    if missing:
        raise KeyError(f"network= lacks {missing}; it has {network.columns.tolist()}.")
    edges = network[["gene1", "gene2"]].dropna().astype(str)
    ends = np.concatenate([symbols(edges["gene1"]), symbols(edges["gene2"])])
    nodes, code = np.unique(ends.astype(str), return_inverse=True)
    a, b = np.split(code, 2)
    different = a != b
    a, b = a[different], b[different]
    ones = np.ones(len(a), dtype=np.float32)
    graph = sparse.csr_matrix((ones, (a, b)), shape=(len(nodes),) * 2)
    graph = ((graph + graph.T) > 0).astype(np.float32)
    component = connected_components(graph, directed=False)[1]
    kept = np.flatnonzero(component == np.bincount(component, minlength=1).argmax())
    return graph[kept][:, kept], pd.Index(nodes[kept])


def _proximity(
    graph: sparse.csr_matrix,
    sources: np.ndarray,
    pairs: pd.DataFrame,
    nodes: pd.Index,
    *,
    n_permutations: int,
    seed: int,
) -> pd.DataFrame:
    """Return ``proximity`` and ``proximity_z`` by compound key."""
    inside = pairs.assign(node=nodes.get_indexer(pd.Index(pairs["gene"])))
    inside = inside[inside["node"] >= 0]
    if not len(sources) or inside.empty:
        what = "host factor" if not len(sources) else "target"
        raise ValueError(f"No {what} is in the network; check that both hold gene symbols.")
    degree = np.diff(graph.indptr)
    below = np.searchsorted(np.sort(degree), degree)  # genes of smaller degree
    bins = np.minimum(below // _BIN, max(0, len(degree) // _BIN - 1))
    rng = np.random.default_rng(seed)
    starts: np.ndarray = np.zeros((len(nodes), n_permutations + 1), dtype=np.float32)
    starts[sources, 0] = 1
    permutation = np.arange(1, n_permutations + 1)[:, None]
    drawn: dict[int, np.ndarray] = {}
    node_bins = bins[inside["node"]]
    for b in np.unique(bins):
        of_bin = np.flatnonzero(bins == b)
        size = (n_permutations, len(of_bin))
        if n_sources := int((bins[sources] == b).sum()):
            order = rng.random(size).argsort(axis=1)
            starts[of_bin[order[:, :n_sources]], permutation] = 1
        if (wanted := node_bins == b).any():
            most = int(inside.loc[wanted, "key"].value_counts().max())
            drawn[int(b)] = of_bin[rng.random(size).argsort(axis=1)[:, :most]]
    distance = _closest(graph, starts)
    out = {}
    for key, own in inside.groupby("key")["node"]:
        at = own.to_numpy()
        used, counts = np.unique(bins[at], return_counts=True)
        chosen = [drawn[int(b)][:, :n] for b, n in zip(used, counts, strict=True)]
        null = distance[np.concatenate(chosen, axis=1), permutation].mean(axis=1)
        observed = distance[at, 0].mean()
        out[key] = (observed, float(standardize(observed, null)))
    return pd.DataFrame.from_dict(out, orient="index", columns=["proximity", "proximity_z"])


def _closest(graph: sparse.csr_matrix, starts: np.ndarray) -> np.ndarray:
    """Return ``(nodes, sets)`` float32, edges from each node to the closest of each set."""
    distance = np.where(starts > 0, np.float32(0), np.float32(np.inf))
    step, front = 0, starts
    while front.any():
        step += 1
        front = ((graph @ front > 0) & np.isinf(distance)).astype(np.float32)
        distance[front > 0] = step
    return distance
