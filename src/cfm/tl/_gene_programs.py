"""Modules of genes that move together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from cfm._arguments import ABOVE_0
from cfm._fields import (
    EMBEDDING_PREFIX,
    ENRICHMENT,
    GENE_PROGRAMS_KEY,
    MEAN_COUNT,
    PARAMS,
    PROGRAM_EDGES,
    PROGRAM_GENES,
    PROGRAMS,
)
from cfm.data._matrix import get_matrix
from cfm.data._store import check_key, target, warn_overwritten
from cfm.data._takes_anndata import takes_anndata
from cfm.data._warn import warn_user
from cfm.models import AttentionModel, GeneFactorModel, load_model
from cfm.tl._factor_scores import ProgressTicks
from cfm.tl._groups import profile_groups
from cfm.tl._program_enrichment import activities, enrichment, read_gene_sets
from cfm.tl._program_run import MIN_COUNT, FoundPrograms, ProgramSettings, find_programs
from cfm.tl._program_tables import ALL, edge_table, gene_table, program_names, program_table
from cfm.tl._store import run_record

#: False discovery rate of a gene set up to which its programs go first.
ENRICHED = 0.05

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.models import PretrainedModel


@takes_anndata(
    columns=("groupby",),
    ranges={
        "n_genes": 2,
        "min_size": 2,
        "n_bootstraps": 0,
        "n_null": 0,
        "resolution": ABOVE_0,
    },
)
def gene_programs(
    adata: AnnData,
    model: str | Path | PretrainedModel = "cellpulse-mini",
    *,
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    layer: str | None = None,
    gene_sets: Mapping[str, Iterable[str]] | str | os.PathLike[str] | None = None,
    source: Literal["auto", "attention", "interaction", "combined"] = "auto",
    n_genes: int = 2000,
    n_neighbors: int = 15,
    resolution: float = 1.0,
    min_size: int = 10,
    n_bootstraps: int = 20,
    n_null: int = 50,
    seed: int = 0,
    key_added: str = GENE_PROGRAMS_KEY,
    device: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Find programs: modules of genes that a model relates and that move together.

    In each group of observations the ``n_genes`` genes that are most often among the model's
    tokens become the nodes of a graph. Two genes are as similar as the model has it (``source``),
    times

    .. math:: \tfrac12 \left( 1 + \frac{1}{n + 5} \sum_{i=1}^{n} s_{ia} s_{ib} \right)

    with :math:`s` the signs of their effects in the group's :math:`n` observations (0 if not
    measured): near 1 if the genes always move the same way. Each gene is linked to the
    ``n_neighbors`` genes most similar to it, and the graph is cut into modules by the Leiden
    algorithm. Genes with fewer than ten counts in cases and in controls
    (``layers["mean_count"]`` of :func:`cfm.pp.contrasts`) have no effect to speak of and count as
    not measured.

    Programs are in the order of how far they move (``effect``), with ``gene_sets`` those first
    that hold a set (FDR of at most 0.05).

    Parameters
    ----------
    adata
        Observations by genes, ``X`` = signed effects: log2 fold changes of contrasts
        (:func:`cfm.pp.contrasts`), or of cells against the mean of control cells on a log scale.
        Counts or expression have no direction. ``NaN`` = not measured. Genes as symbols or
        Ensembl ids.
    model
        A model with attention (:class:`cfm.models.AttentionModel`), the name of a checkpoint, a
        folder, or ``hf://org/name``.
    groupby, groups
        Column of ``obs``, and its levels to take (all by default): programs are found in each
        group by itself. Rows in which it is missing take no part. Without it all rows are one
        group.
    layer
        Layer to read instead of ``X``.
    gene_sets
        Gene sets to test programs for: a dictionary of lists, or the path of a gmt file.
    source
        ``"attention"``: how alike two genes attend and are attended to, averaged over layers,
        heads and the observations in which both are tokens. ``"interaction"``: cosine of the
        genes' factors in the model's linear gene-gene term
        (:class:`cfm.models.GeneFactorModel`). ``"combined"``: the sum of the two, standardised.
        ``"auto"``: interaction if the model has such a term, else attention. Measured with
        CellPulse (see the benchmarks), modules of interaction more often hold a Reactome set or a
        regulon than those of attention or of plain correlation, and hold together better in unseen
        studies. In simulated contrasts correlation was better from 60 observations on.
    n_genes
        Largest number of genes in the graph of a group. Memory grows with its square.
    n_neighbors
        Genes that each gene is linked to; an edge stands if either end asks for it.
    resolution
        Of the Leiden algorithm: larger values give more and smaller programs.
    min_size
        Smaller modules are dropped.
    n_bootstraps
        Number of times that the observations are drawn anew for the stability, 0 for none.
    n_null
        Number of permutations of the effects for the p-values, 0 for none. Programs are found in
        each: quick for ``"interaction"``, but with attention the model reads all observations
        again.
    seed
        Seed of all random steps.
    key_added
        Name of the results.
    device
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes, with ``key`` =
    ``'gene_programs' | key_added``:

    ``adata.uns[key]['programs']``
        DataFrame, a row per program, named ``P1`` (the first), ``P2`` … or ``<group>:P1``
        (``/`` in a group's name becomes ``|``): ``group`` (``"all"`` without ``groupby``),
        ``size`` (int64), ``direction`` (``"up"`` or ``"down"`` if at least 80 % of the genes have
        that sign, else ``"mixed"``), ``effect`` (absolute mean effect of its genes in a profile, a
        mean over the group: 0 where ups and downs cancel), ``coherence`` (share of gene pairs that
        move the same way in a profile, a mean over the group), ``stability`` (mean over bootstraps
        of the Jaccard index with the most similar module found again; ``NaN`` with one observation
        or without bootstraps), ``cohesion`` (share of the weight of its genes' edges that stays
        inside), ``p_value`` (share of the programs found in permuted effects that move as far for
        their size; ``NaN`` if there are none) and ``fdr`` (Benjamini & Hochberg within the group),
        all float64.
    ``adata.uns[key]['genes']``
        DataFrame, a row per program and gene: ``program``, ``gene`` (name in ``var_names``),
        ``weight`` (float64, summed weight of its edges inside the program, the largest 1),
        ``sign`` (int64, −1 or 1, of the mean effect), ``effect`` (float64, mean over the group),
        ``rank`` (int64, 1 = largest weight).
    ``adata.uns[key]['edges']``
        DataFrame, a row per edge between genes of programs: ``gene_a``, ``gene_b``, ``weight``
        (float64), ``program_a``, ``program_b``, ``group``.
    ``adata.uns[key]['enrichment']``
        Only with ``gene_sets``. DataFrame, a row per program and set that share a gene:
        ``program``, ``term``, ``overlap``, ``term_size`` (int64, the set's genes in the graph),
        ``odds_ratio``, ``p_value``, ``fdr`` (float64, over the sets, within the program), ``genes``
        (joined by ``|``). Hypergeometric test; the background is the genes of the group's graph.
    ``adata.uns[key]['params']``
        The arguments, the model, its SHA-256, the share of its genes found, and ``min_count``
        where counts are known.
    ``adata.varm[key]``
        DataFrame float32, genes by programs: weight times sign, 0 outside.
    ``adata.obsm['X_' + key]``
        DataFrame float32, observations by programs: activity, the t-value of the slope of the
        observation's effects on those signed weights (decoupler's ``ulm``); 0 where nothing
        moves, ``NaN`` where fewer than three genes of a program are measured.

    Raises
    ------
    TypeError
        If ``adata``, ``model`` or ``gene_sets`` is of another type, the model has no attention, or
        no linear gene-gene term that ``source`` asks for.
    KeyError
        If the layer, the column or a group does not exist.
    FileNotFoundError
        If the gmt file does not exist.
    ValueError
        If an argument is out of range, in a group fewer than ``min_size`` genes move, no module
        is that large, the gene sets are empty or share no gene with the programs' graphs, or the
        matrix is not what the model reads. Whatever is raised, ``adata`` is left as it was.

    Warns
    -----
    UserWarning
        If no effect is negative, a group has no program, few of the model's genes are found, or a
        field that another tool wrote is replaced.

    Notes
    -----
    Leiden: Traag, Waltman & van Eck 2019, objective modularity, through igraph. For the p-values
    the genes of the graph swap their effects, in all observations together, and similarities,
    graph and modules are made again. All modules of all permutations are compared with a program
    by :math:`\frac{1}{n} \sum_i |\sum_a e_{ia}| / (\sigma_i \sqrt k)`, with the root mean square
    :math:`\sigma_i` of an observation and the :math:`k` genes of a module, less its trend with
    :math:`k`. A small p-value says that genes which the *model* relates move together here, not
    that the infection is why. The coherence of random genes is not 0 but about a half. For the
    stability more than 12 observations are drawn in 12 blocks.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.gene_programs(contrasts, n_genes=400, n_bootstraps=2, n_null=2)
    >>> contrasts.uns["gene_programs"]["programs"].index[0]
    'P1'
    """
    check_key(key_added)
    if min_size > n_genes:
        raise ValueError(f"min_size={min_size} is more than n_genes={n_genes}.")
    sets = None if gene_sets is None else read_gene_sets(gene_sets)
    matrix = get_matrix(adata, layer=layer)
    rows_of = {ALL: np.arange(adata.n_obs)}
    if groupby is not None:
        rows_of = profile_groups(adata, groupby, groups)
    elif groups is not None:
        raise TypeError(f"groups={list(groups)} only goes with groupby=.")
    names = {group: _prefix(group, grouped=groupby is not None) for group in rows_of}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"Groups {list(rows_of)} have the same name once '/' is replaced by '|'; rename one."
        )
    network = load_model(model, device=device)
    chosen = _choose_source(network, source)
    settings = ProgramSettings(
        chosen, n_genes, n_neighbors, float(resolution), min_size, n_bootstraps, n_null, seed
    )
    found = _find(network, adata, rows_of, settings, layer)
    enriched = None
    if sets is not None:
        enriched = _enrich(found, names, sets, adata.var_names)
        found, enriched = _enriched_first(found, names, enriched)
    tables = {
        PROGRAMS: [program_table(names[g], g, f) for g, f in found.items()],
        PROGRAM_GENES: [gene_table(names[g], f, adata.var_names) for g, f in found.items()],
        PROGRAM_EDGES: [edge_table(names[g], g, f, adata.var_names) for g, f in found.items()],
    }
    stored: dict[str, Any] = {PROGRAMS: pd.concat(tables[PROGRAMS])}
    for key in (PROGRAM_GENES, PROGRAM_EDGES):
        table = pd.concat(tables[key], ignore_index=True)
        stored[key] = table.set_axis(table.index.astype(str))
    programs = stored[PROGRAMS].index
    if enriched is not None:
        stored[ENRICHMENT] = enriched
    weights = np.zeros((adata.n_vars, len(programs)), dtype=np.float32)
    start = 0
    for f in found.values():
        for members, own in zip(f.programs, f.signed_weights(), strict=True):
            weights[f.columns[members], start] = own
            start += 1
    activity = activities(matrix, weights)
    record = run_record(
        network,
        adata,
        groupby=groupby,
        groups=None if groupby is None else list(rows_of),
        layer=layer,
        source=chosen,
        n_genes=n_genes,
        n_neighbors=n_neighbors,
        resolution=float(resolution),
        min_size=min_size,
        n_bootstraps=n_bootstraps,
        n_null=n_null,
        min_count=MIN_COUNT if MEAN_COUNT in adata.layers else None,
        seed=seed,
        key_added=key_added,
        n_gene_sets=None if sets is None else len(sets),
    )
    adata = target(adata, copy=copy)
    obsm_key = EMBEDDING_PREFIX + key_added
    warn_overwritten(adata, key_added, {"varm": [key_added], "obsm": [obsm_key]})
    adata.varm[key_added] = pd.DataFrame(weights, index=adata.var_names, columns=programs)
    adata.obsm[obsm_key] = pd.DataFrame(activity, index=adata.obs_names, columns=programs)
    adata.uns[key_added] = {PARAMS: record} | stored
    return adata if copy else None


def _prefix(group: str, *, grouped: bool) -> str:
    # "/" cannot stand in the name of a column in a file.
    return group.replace("/", "|") + ":" if grouped else ""


def _choose_source(
    model: PretrainedModel, source: str
) -> Literal["attention", "interaction", "combined"]:
    """Check that a model has what is asked of it, and choose for ``"auto"``."""
    if not isinstance(model, AttentionModel):
        raise TypeError(
            f"{type(model).__name__} has no attention (no get_attention method), which gene "
            "programs are made of; use a model that has, such as 'cellpulse-mini'."
        )
    linear = isinstance(model, GeneFactorModel)
    if source == "auto":
        return "interaction" if linear else "attention"
    if source not in ("attention", "interaction", "combined"):
        raise ValueError(
            f"source={source!r}; expected 'auto', 'attention', 'interaction' or 'combined'."
        )
    if source != "attention" and not linear:
        raise TypeError(
            f"source={source!r} needs a linear gene-gene term, and {type(model).__name__} has none "
            "(no get_gene_factors method); use source='attention'."
        )
    return source  # type: ignore[return-value]


def _find(
    model: Any,
    adata: AnnData,
    rows_of: Mapping[str, np.ndarray],
    settings: ProgramSettings,
    layer: str | None,
) -> dict[str, FoundPrograms]:
    """Find the programs of every group; what the model warns of is said once."""
    bar = ProgressTicks(
        sum(settings.n_steps(len(rows)) for rows in rows_of.values()), "Gene programs"
    )
    found = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for group, rows in rows_of.items():
                found[group] = find_programs(
                    model, adata, rows, settings, group=group, layer=layer, tick=bar
                )
        finally:
            bar.close()
    for message in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
        warn_user(message)
    if not any((f.effects < 0).any() for f in found.values()):
        warn_user(
            "No effect is negative, so every program goes up and coherence says nothing; give "
            "signed effects: contrasts, or expression minus that of controls."
        )
    empty = [group for group, f in found.items() if not f.programs]
    if len(empty) == len(found):
        raise ValueError(
            f"No module has at least min_size={settings.min_size} genes in any group; lower "
            "min_size or resolution, or raise n_neighbors."
        )
    if empty:
        warn_user(f"Groups {empty} have no module of {settings.min_size} genes and no program.")
    return found


def _enriched_first(
    found: Mapping[str, FoundPrograms], names: Mapping[str, str], table: pd.DataFrame
) -> tuple[dict[str, FoundPrograms], pd.DataFrame]:
    """Put programs that hold a gene set first, here and in the table of their sets."""
    held = set(table.loc[table["fdr"] <= ENRICHED, "program"])
    ordered: dict[str, FoundPrograms] = {}
    place: dict[str, int] = {}
    renamed: dict[str, str] = {}
    for group, f in found.items():
        old = program_names(names[group], f)
        order = sorted(range(len(old)), key=lambda i: old[i] not in held)
        ordered[group] = f.reordered(order)
        for new, i in zip(old, order, strict=True):
            renamed[old[i]], place[old[i]] = new, len(place)
    table = table.sort_values("program", key=lambda column: column.map(place), kind="stable")
    table = table.assign(program=table["program"].map(renamed).astype(object))
    return ordered, table.set_axis(np.arange(len(table)).astype(str))


def _enrich(
    found: Mapping[str, FoundPrograms],
    names: Mapping[str, str],
    sets: Mapping[str, Sequence[str]],
    var_names: pd.Index,
) -> pd.DataFrame:
    """Test gene sets under the names, the model's or those of the data, that they use."""
    listed = {gene for genes in sets.values() for gene in genes}
    own = {g: var_names[f.columns].astype(str).to_numpy() for g, f in found.items()}
    by_model = sum(len(listed.intersection(f.tokens)) for f in found.values())
    by_data = sum(len(listed.intersection(genes)) for genes in own.values())
    if not by_model and not by_data:
        example = ", ".join(sorted(listed)[:3])
        known = ", ".join(next(iter(found.values())).tokens[:3])
        raise ValueError(
            f"None of the {len(listed)} genes of gene_sets (such as {example}) is among the genes "
            f"that programs are made of (such as {known}); use the same kind of gene names."
        )
    programs, background = {}, {}
    for group, f in found.items():
        genes = f.tokens if by_model >= by_data else own[group]
        for name, members in zip(program_names(names[group], f), f.programs, strict=True):
            programs[name] = genes[members].tolist()
            background[name] = genes.tolist()
    return enrichment(programs, background, sets)
