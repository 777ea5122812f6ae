"""Compounds that push a profile back, or that act on its host factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import settings
from scvi.utils import track

from cfm._adata import check_key, takes_anndata, target, warn_overwritten, warn_user
from cfm._docs import fill_docs
from cfm._fields import DRUG_SCREEN_KEY, HOST_FACTORS_KEY, PARAMS, RESULTS
from cfm.models import CellPulse, load_model
from cfm.models.cellpulse._data import align_effects, effect_blocks
from cfm.stats._enrichment import benjamini_hochberg
from cfm.stats._evidence import (
    inflation,
    standardize,
    sum_of_correlated,
    tail_p_values,
    upper_p_values,
)
from cfm.tl._drug_screen._evidence import (
    MIN_LIBRARY,
    READINGS,
    Evidence,
    ReversalScorer,
    host_factor_scores,
    score_targets,
)
from cfm.tl._groups import profile_groups
from cfm.tl._run import TEXTS, run_record
from cfm.tl._signatures import compound_key, on_genes, read_signatures, read_targets

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

    from anndata import AnnData

#: A gene enters a group's mean profile if this share of its profiles measures it.
MIN_MEASURED = 0.5
#: Genes per side of signatures with values, as in L1000.
N_GENES = 100

_COLUMNS = {
    "group": object, "compound": object, "rank": np.int64, "score": np.float64,
    "p_value": np.float64, "fdr": np.float64, "cosine_reversal": np.float64,
    "reversal": np.float64, "embedding_reversal": np.float64, "target_score": np.float64,
    "p_target": np.float64, "n_signatures": np.int64, "n_targets": np.int64,
    "reversal_genes": object, "target_genes": object,
}  # fmt: skip


@takes_anndata(columns=("groupby",))
@fill_docs(TEXTS)
def screen_drugs(
    adata: AnnData,
    signatures: str | PathLike[str] | pd.DataFrame | AnnData | None = None,
    targets: pd.DataFrame | None = None,
    *,
    groupby: str | None = "virus",
    layer: str | None = None,
    model: str | Path | CellPulse | None = None,
    host_factors: str | pd.DataFrame | pd.Series = HOST_FACTORS_KEY,
    readings: str | Sequence[str] = ("cosine",),
    n_permutations: int = 1000,
    seed: int = 0,
    key_added: str = DRUG_SCREEN_KEY,
    copy: bool = False,
) -> AnnData | None:
    r"""Rank compounds by the reversal of profiles, and by their targets.

    For each group of profiles, the evidence for a compound is the reversal of the group by its
    signature, and the rank of its targets among the group's host factors.

    *Signatures* have three readings, the third with ``model=``; those in ``readings`` enter the
    score, and all are reported.
    Each is above 0 if the compound reverses the group.

    - ``"cosine"``: minus the cosine between the signature (1 up, −1 down) and the group's mean
      profile. First the profile is cleaned: the strongest thousandth of effects is clipped, the
      mean is subtracted, and with a library of at least 100 compounds the mean signature, common to
      most compounds, is projected out.
    - ``"connectivity"``: minus the weighted connectivity score. With the weighted enrichment scores
      :math:`e_{up}, e_{down}` of the two sides in the ranked profile it is
      :math:`(e_{down} - e_{up}) / 2` where their signs differ, else 0 (Lamb et al. 2006;
      Subramanian et al. 2017; here the profile is the ranking, and the signature has the sets).
    - ``"model"``: minus the cosine between the factor scores of the signature and of the profile in
      CellPulse, in which genes of correlated effects in the training data replace each other.

    *Targets*: the mean relative rank of the compound's targets among the host factors of
    :func:`cfm.tl.host_factors`, from 0 (last) to 1 (first).

    The nulls are random signatures of the same sizes, drawn from the genes of all signatures, and
    random sets of as many targets, drawn from the targets of all compounds. A reading in standard
    deviations of its null is a :math:`z`. The readings of a signature are combined to
    :math:`z_s = \sum_i z_i / \sqrt{\sum_{ij} \rho_{ij}}` with their correlations :math:`\rho`
    under the null (Strube 1985). Genes of a signature are correlated, random ones are not, so real
    signatures spread wider than their null. :math:`z_s` is divided by that ratio of widths (middle
    80 % of both, at least 1; Efron 2004), whose estimate needs 100 compounds; in a smaller library
    a compound with a signature has a score and a rank, but no p-value. ``score`` is
    :math:`(z_s + z_t) / \sqrt 2` (Stouffer, equal weights), or the existing one of the two. The
    p-value comes from the same random draws, beyond the tenth largest from a generalised Pareto
    tail (Knijnenburg et al. 2009). A small one means that a signature is more opposed than those of
    most compounds, not that the compound works: cells, dose and time of the signature are seldom
    those of the infection.

    Parameters
    ----------
    adata
        Profiles (contrasts) by genes, log2 fold changes, ``NaN`` = not measured; see
        :func:`cfm.pp.contrasts`. Genes as symbols or Ensembl ids.
    signatures
        Effects of compounds on expression, any of

        - path of a gmt file (also gzip) with sets named ``NAME_UP`` and ``NAME_DN`` or
          ``NAME_DOWN`` (any case; also ``-up``, ``.up`` or a space),
        - DataFrame with a row per gene: ``compound`` (or ``drug``), ``gene``, and ``direction``
          (``"up"``/``"down"`` or 1/−1) or ``value`` (its sign is the direction); ``signature``
          names each of several signatures of one compound,
        - AnnData of signatures by genes, compounds in ``obs["compound"]`` or ``obs_names``.

        Duplicated rows count once; a gene in both lists of a signature is left out of it. One side
        is enough for a signature; ``value`` selects the 100 largest of a side. Several signatures
        of a compound are summarised by the 33rd or 67th percentile, whichever is farther from 0
        (Subramanian et al. 2017). Try :func:`cfm.datasets.cmap_signatures`.
    targets
        DataFrame with a row per target: ``compound`` (or ``drug``) and ``gene``. Names match those
        of the signatures regardless of case. Try :func:`cfm.datasets.drug_targets`.
    groupby
        Column of ``obs`` with the groups; ``None`` makes all profiles one group, ``"all"``. A group
        may be a single profile, and does not depend on other groups.
    layer
        Layer with the log2 fold changes instead of ``X``.
    model
        A CellPulse such as ``"cellpulse-mini"``, which runs on its own device, for the reading in
        its embedding. By default there is none: it takes most of the time, and finds compounds of
        one class less well than the cosine (AUROC .53–.55 against .59).
        %(load)s
    host_factors
        For ``targets``: the ``uns`` key of :func:`cfm.tl.host_factors`, a Series of scores by gene
        for all groups, or a DataFrame with ``gene``, ``score`` and perhaps ``group``.
    readings
        Readings of the signatures that enter the score: any of ``"cosine"``, ``"connectivity"``
        and ``"model"``. The default finds drugs of one mechanism best.
    n_permutations
        Number of random signatures and target sets. The smallest ``p_target`` is one over this
        number plus one, the smallest ``p_value`` a hundredth of that.
    seed
        Seed of the random draws.
    %(key_added)s
    %(copy)s

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``adata.uns['drug_screen' | key_added]['results']``
        DataFrame, a row per group and compound with any evidence, sorted by group and rank:
        ``group``, ``compound``, ``rank`` (int64, 1 = best), ``score``, ``p_value``, ``fdr``
        (Benjamini-Hochberg within the group; both ``NaN`` with a signature in a library of fewer
        than 100 compounds), ``cosine_reversal``, ``reversal`` (connectivity) and
        ``embedding_reversal`` (model; −1 to 1, above 0 reverses), ``target_score`` (0 to 1) and
        ``p_target`` (all float64; ``NaN`` where a compound has no such evidence),
        ``n_signatures`` and ``n_targets`` (int64, those with a measured or scored gene),
        ``reversal_genes`` (str, joined by ``|``: leading edge of the strongest signature of a
        compound with ``reversal`` above 0, at most 25) and ``target_genes`` (targets among the
        first tenth of the host factors).
    ``adata.uns['drug_screen' | key_added]['params']``
        The arguments, the model's name and SHA-256, the shares of genes found,
        ``library_mean_removed`` (bool), and ``inflations`` (float64, by group: the ratios of widths
        that divide :math:`z_s`; ``NaN`` in small libraries).

    Raises
    ------
    TypeError
        If ``adata``, ``signatures``, ``targets`` or ``model`` is of another type.
    KeyError
        If a column, a layer or the host factors for ``targets`` do not exist.
    FileNotFoundError
        If the gmt file does not exist.
    ValueError
        If neither ``signatures`` nor ``targets`` is given, none of their genes is measured, a
        reading is unknown or lacks its model, or the matrix does not hold fold changes. ``adata``
        stays unchanged.

    Warns
    -----
    UserWarning
        If p-values are ``NaN`` since the library is small, signatures have one side only, rows lack
        a name, few genes are found, or a field of another tool is replaced.

    Notes
    -----
    The benchmarks (``docs/benchmarks.md``, *Drug screen*) measure its power. With the bundled
    signatures it groups the drug classes of strong effects on cell lines, but not most others, and
    drugs that stop viruses through the host tend to mimic infections rather than to reverse them.
    Use it to rank compounds for a plate, not as proof. A library of at least 100 compounds of one
    mechanism needs others beside them, as the common signature is removed.

    A gene counts in a group if at least half of its profiles measure it. A compound with readings
    that are all tied (a profile without effects, host factors with equal scores) has score 0 and a
    p-value of 1, if any; equal scores are ranked by name.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> signatures = cfm.datasets.cmap_signatures()
    >>> cfm.tl.screen_drugs(contrasts, signatures)
    >>> int(contrasts.uns["drug_screen"]["results"]["rank"].iloc[0])
    1
    """
    check_key(key_added)
    if signatures is None and targets is None:
        raise ValueError(
            "Found neither signatures= nor targets=; give what compounds do (such as "
            "cfm.datasets.cmap_signatures()) or what they act on (cfm.datasets.drug_targets())."
        )
    if not isinstance(host_factors, str) and targets is None:
        raise ValueError("host_factors= is only used with targets=, which is missing.")
    chosen = _readings(readings, with_model=signatures is None or model is not None)
    rows = {"all": np.arange(adata.n_obs)}
    if groupby is not None:
        rows = profile_groups(adata, groupby)
    pairs = None if targets is None else read_targets(targets)
    factors: dict[str, pd.Series] = {}
    if pairs is not None:
        factors = host_factor_scores(adata, host_factors, list(rows))
    record: dict[str, Any] = {
        "groupby": groupby, "groups": list(rows), "layer": layer, "readings": chosen,
        "n_permutations": n_permutations, "seed": seed, "key_added": key_added,
    }  # fmt: skip
    record = {k: v for k, v in record.items() if v is not None}
    scorer, profiles, queries = None, None, None
    if signatures is not None:
        table = read_signatures(signatures, n_genes=N_GENES)
        profiles = mean_profiles(adata, list(rows.values()), layer)
        table, labels, columns, share = on_genes(table, adata)
        record |= {"signatures": len(table), "signature_genes_share": share}
        network, positions = None, None
        if model is not None:
            network = load_model(model)
            if not isinstance(network, CellPulse):
                raise TypeError(f"model= is a {type(network).__name__}; expected CellPulse.")
            alignment = align_effects(adata, network.vocabulary, layer=layer)
            queries = alignment.apply(profiles)
            where = np.full(adata.n_vars, -1, dtype=np.int64)
            where[alignment.columns] = alignment.positions
            positions = where[columns]
            record = run_record(network, adata, **record)
        scorer = ReversalScorer(table, labels, n_permutations, seed, network, positions)
        profiles = profiles[:, columns]
        record["library_mean_removed"] = scorer.common is not None
    if pairs is not None:
        given = host_factors if isinstance(host_factors, str) else "given"
        record |= {"target_pairs": len(pairs), "host_factors": given}
    compounds = compound_names(None if scorer is None else scorer.table.compounds, pairs)
    frames, inflations = [], []
    quiet = len(rows) < 4 or settings.verbosity > 20
    for i, group in enumerate(track(list(rows), description="Groups", disable=quiet)):
        reversal, by_target = None, None
        if scorer is not None and profiles is not None:
            if not np.isfinite(profiles[i]).any():
                raise ValueError(
                    f"Group {group!r} measures none of the signatures' genes (in at least half of "
                    "its profiles); leave its rows out."
                )
            reversal = scorer(profiles[i], None if queries is None else queries[i])
        if pairs is not None and group in factors:
            by_target = score_targets(
                pairs, factors[group], n_permutations=n_permutations, seed=seed
            )
        frame, spread = rank_compounds(compounds, reversal, by_target, chosen)
        frames.append(frame.assign(group=group))
        inflations.append(spread)
    results = pd.concat(frames, ignore_index=True)[list(_COLUMNS)].astype(_COLUMNS)
    results.index = results.index.astype(str)
    if scorer is not None:
        record["inflations"] = np.array(inflations)
    if scorer is not None and np.isnan(inflations).any():
        few = [group for group, spread in zip(rows, inflations, strict=True) if np.isnan(spread)]
        warn_user(
            f"p_value and fdr are NaN for compounds with a signature (in groups {few[:5]}): the "
            "genes of a signature move together, and the spread that this causes is only "
            f"known from {MIN_LIBRARY} compounds on; found {len(scorer.table.compounds)}. Scores "
            "and ranks hold. For p-values add signatures of other compounds in the same cells."
        )
    adata = target(adata, copy=copy)
    old = adata.uns.get(key_added)
    table_of_old = old.get(RESULTS) if isinstance(old, Mapping) else None
    if not (isinstance(table_of_old, pd.DataFrame) and set(_COLUMNS) <= set(table_of_old)):
        warn_overwritten(adata, key_added, {})
    adata.uns[key_added] = {PARAMS: record, RESULTS: results}
    return adata if copy else None


def _readings(readings: str | Sequence[str], *, with_model: bool) -> list[str]:
    """Return the readings of the score, in a fixed order and each once."""
    given = [readings] if isinstance(readings, str) else list(readings)
    unknown = [name for name in given if name not in READINGS]
    if unknown or not given:
        raise ValueError(f"readings={readings!r}, expected any of {', '.join(READINGS)}.")
    if "model" in given and not with_model:
        raise ValueError('readings= names "model", but model= is None; give one or leave it out.')
    return [name for name in READINGS if name in given]


def mean_profiles(adata: AnnData, groups: list[np.ndarray], layer: str | None) -> np.ndarray:
    """Return ``(groups, n_vars)`` mean log2 fold changes, NaN where too few profiles measure."""
    total = np.zeros((len(groups), adata.n_vars))
    count = np.zeros_like(total)
    member = np.zeros((len(groups), adata.n_obs), dtype=bool)
    for inside, rows in zip(member, groups, strict=True):
        inside[rows] = True
    for block, effects in effect_blocks(adata, layer=layer):
        part = member[:, block].astype(np.float64)
        total += part @ np.nan_to_num(effects.astype(np.float64))
        count += part @ np.isfinite(effects)
    size = member.sum(axis=1, keepdims=True)
    enough = (count > 0) & (count >= MIN_MEASURED * size)
    # Rounded to float32, as in the model: the order of rows does not change it.
    mean = np.where(enough, total / np.maximum(count, 1), np.nan)
    return mean.astype(np.float32)


def compound_names(signatures: np.ndarray | None, targets: pd.DataFrame | None) -> pd.Series:
    """Return the names of all compounds by their keys, those of the signatures first."""
    names = pd.Series(dtype=object)
    if targets is not None:
        names = targets.drop_duplicates("key").set_index("key")["compound"]
    if signatures is not None:
        own = pd.Series(signatures, index=compound_key(pd.Series(signatures, dtype=object)))
        names = pd.concat([own, names[~names.index.isin(own.index)]])
    return names


def rank_compounds(
    compounds: pd.Series,
    reversal: Evidence | None,
    by_target: Evidence | None,
    readings: Sequence[str],
) -> tuple[pd.DataFrame, float]:
    """Join the evidence of one group, and rank the compounds with any.

    Parameters
    ----------
    compounds
        Names by key, :func:`compound_names`.
    reversal, by_target
        The evidence; ``None`` = none of this kind.
    readings
        Readings of the signatures that enter the score; the others are only reported.

    Returns
    -------
    A row per compound, in the order of their ranks, with the columns of
    :func:`cfm.tl.screen_drugs` but ``group``; and the :func:`cfm.stats._evidence.inflation` that
    the standard scores of the signatures were divided by. Where that is unknown (``NaN``) they are
    as they are, and the p-values of compounds with a signature ``NaN``.
    """
    out = pd.DataFrame({"compound": compounds.sort_index()})
    for found in (reversal, by_target):
        out = out if found is None else out.join(found.table)
    without = {"n_signatures": 0, "n_targets": 0, "reversal_genes": "", "target_genes": ""}
    for name in (*_COLUMNS, "null_class"):
        nothing: Any = without.get(name, -1 if name == "null_class" else np.nan)
        out[name] = out[name].where(out[name].notna(), nothing) if name in out else nothing
    n_targets = out["n_targets"].to_numpy(np.int64)
    signature_class = np.where(out["reversal"].isna(), -1, out["null_class"]).astype(np.int64)
    # Nulls of the combined score, by the class of a compound's signatures and number of targets.
    z_signature, z_target, p_target = np.full((3, len(out)), np.nan)
    signature_nulls: dict[int, np.ndarray] = {}
    target_nulls: dict[int, np.ndarray] = {}
    for k in np.unique(signature_class[signature_class >= 0]) if reversal is not None else ():
        rows = signature_class == k
        nulls = [reversal.nulls[name][k] for name in readings]  # type: ignore[union-attr]
        each = [
            standardize(out.loc[rows, READINGS[name]], null)
            for name, null in zip(readings, nulls, strict=True)
        ]
        # Standard scores: their mean product is their correlation, 0 where one does not vary.
        stacked = np.stack([standardize(null, null) for null in nulls])
        rho = stacked @ stacked.T / stacked.shape[1]
        z_signature[rows] = sum_of_correlated(each, rho)
        signature_nulls[k] = sum_of_correlated(stacked, rho)
    for size in np.unique(n_targets[n_targets > 0]) if by_target is not None else ():
        rows = n_targets == size
        null = by_target.nulls["target"][size - 1]  # type: ignore[union-attr]
        score = out["target_score"][rows]
        p_target[rows] = upper_p_values(score, null)
        z_target[rows], target_nulls[size] = standardize(score, null), standardize(null, null)
    spread = inflation(z_signature, list(signature_nulls.values()), MIN_LIBRARY)
    z_signature = z_signature / np.nan_to_num(spread, nan=1.0)
    score = sum_of_correlated([z_signature, z_target], np.eye(2))
    p_value = np.full(len(out), np.nan)
    kinds = np.stack([signature_class, n_targets], axis=1)
    for s, t in np.unique(kinds, axis=0).tolist():
        rows = (kinds == (s, t)).all(axis=1)
        nulls = [x for x in (signature_nulls.get(s), target_nulls.get(t)) if x is not None]
        if nulls and (s < 0 or not np.isnan(spread)):
            p_value[rows] = tail_p_values(score[rows], sum_of_correlated(nulls, np.eye(len(nulls))))
    out["score"], out["p_value"], out["p_target"] = score, p_value, p_target
    out = out[~np.isnan(score)]
    # Scores are equal up to rounding, and ties go by name.
    out = out.iloc[np.argsort(-out["score"].round(9), kind="stable")].copy()
    out["rank"] = np.arange(1, len(out) + 1)
    out["fdr"] = benjamini_hochberg(out["p_value"].to_numpy())
    return out, spread
