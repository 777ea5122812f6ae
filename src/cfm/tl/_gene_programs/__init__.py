"""Programs: modules of genes that a model relates and that move together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scvi import settings as scvi_settings
from tqdm.auto import tqdm

from cfm._adata import check_key, takes_anndata, target, warn_overwritten, warn_user
from cfm._arguments import ABOVE_0
from cfm._docs import fill_docs
from cfm._fields import (
    EMBEDDING_PREFIX,
    ENRICHMENT,
    GENE_PROGRAMS_KEY,
    MEAN_COUNT,
    PARAMS,
    PROGRAM_EDGES,
    PROGRAM_GENES,
    PROGRAMS,
    SET_SEPARATOR,
)
from cfm.data._matrix import get_matrix, row_blocks, to_dense
from cfm.models import AttentionModel, GeneFactorModel, load_model
from cfm.stats._enrichment import overrepresentation, univariate_linear_model
from cfm.tl._gene_programs._find import MIN_COUNT, MIN_SIZE, FoundPrograms, Settings, find_programs
from cfm.tl._groups import profile_groups
from cfm.tl._run import TEXTS, run_record

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models import PretrainedModel

#: Name of the one group where there is no ``groupby``.
ALL = "all"
#: False discovery rate of a gene set up to which its programs go first.
ENRICHED = 0.05


@takes_anndata(
    columns=("groupby",),
    ranges={"n_genes": MIN_SIZE, "n_permutations": 0, "resolution": ABOVE_0},
)
@fill_docs(TEXTS)
def gene_programs(
    adata: AnnData,
    model: str | Path | PretrainedModel = "cellpulse-mini",
    *,
    groupby: str | None = None,
    layer: str | None = None,
    gene_sets: Mapping[str, Iterable[str]] | str | os.PathLike[str] | None = None,
    source: Literal["auto", "attention", "interaction", "combined"] = "auto",
    n_genes: int = 2000,
    resolution: float = 1.0,
    n_permutations: int = 50,
    seed: int = 0,
    key_added: str = GENE_PROGRAMS_KEY,
    copy: bool = False,
) -> AnnData | None:
    r"""Find gene programs: modules of genes that a model relates and that move together.

    In each group of observations the ``n_genes`` genes that are most often tokens of the model are
    the nodes of a graph. The similarity of two genes is that of the model (``source``) times

    .. math:: \tfrac12 \left( 1 + \frac{1}{n + 5} \sum_{i=1}^{n} s_{ia} s_{ib} \right)

    with :math:`s` the signs of their effects in the group's :math:`n` observations (0 if not
    measured): near 1 if the genes always move the same way. Each gene is linked to the 15 most
    similar genes, and the Leiden algorithm cuts the graph into modules. Modules of at least 10
    genes are programs. Genes with fewer than ten counts in cases and in controls
    (``layers["mean_count"]`` of :func:`cfm.pp.contrasts`) count as not measured.

    Programs are sorted by their ``effect``; with ``gene_sets`` programs enriched for a set (FDR of
    at most 0.05) come first.

    Parameters
    ----------
    adata
        Observations by genes, ``X`` = signed effects: log2 fold changes of contrasts
        (:func:`cfm.pp.contrasts`), or of cells against the mean of control cells on a log scale.
        Counts or expression have no direction. ``NaN`` = not measured. Genes as symbols or
        Ensembl ids.
    model
        A model with attention (:class:`cfm.models.AttentionModel`), which runs on its own device.
        %(load)s
    groupby
        Column of ``obs`` with groups. Each group has its own programs, independent of other groups.
        Rows without a group are left out. By default all rows are one group.
    %(layer)s
    gene_sets
        Gene sets to test programs for: a dictionary of lists, or the path of a gmt file.
    source
        ``"attention"``: similarity of the attention from and to two genes, averaged over layers,
        heads and the observations with both as tokens. ``"interaction"``: cosine of the
        genes' factors in the model's linear gene-gene term
        (:class:`cfm.models.GeneFactorModel`). ``"combined"``: the sum of the two, standardised.
        ``"auto"``: interaction if the model has such a term, else attention. Measured with
        CellPulse (see the benchmarks), modules of interaction are more often enriched for a
        Reactome set or a regulon than those of attention or correlation, and more coherent in
        unseen studies. In simulated contrasts correlation is better from 60 observations on.
    n_genes
        Largest number of genes in the graph of a group. Memory grows with its square.
    resolution
        Resolution of the Leiden algorithm: larger values give more and smaller programs.
    n_permutations
        Number of permutations of the effects for the p-values, 0 for none. Each repeats the search:
        quickly with ``"interaction"``, while attention needs another pass of the model.
    seed
        Seed of all random steps.
    key_added
        Name of the results.
    %(copy)s

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
        move the same way in a profile, a mean over the group), ``stability`` (mean over 20
        bootstraps of the Jaccard index with the most similar module; ``NaN`` with one
        observation), ``cohesion`` (share of the weight of its genes' edges
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
        if there are counts.
    ``adata.varm[key]``
        DataFrame float32, genes by programs: weight times sign, 0 outside.
    ``adata.obsm['X_' + key]``
        DataFrame float32, observations by programs: activity, the t-value of the slope of the
        observation's effects on those signed weights (decoupler's ``ulm``); 0 without
        effects, ``NaN`` if fewer than three genes of a program are measured.

    Raises
    ------
    TypeError
        If ``adata``, ``model`` or ``gene_sets`` is of another type, the model has no attention, or
        lacks the linear gene-gene term of ``source``.
    KeyError
        If the layer or the column does not exist.
    FileNotFoundError
        If the gmt file does not exist.
    ValueError
        If an argument is out of range, in a group fewer than 10 genes move, no module is that
        large, the gene sets are empty or share no gene with the programs' graphs, or values are in
        other units. ``adata`` stays unchanged.

    Warns
    -----
    UserWarning
        If no effect is negative, a group has no program, few of the model's genes are found, or a
        field of another tool is replaced.

    Notes
    -----
    Leiden: Traag, Waltman & van Eck 2019, objective modularity, through igraph. For the p-values
    the genes of the graph swap their effects, in all observations together, and similarities,
    graph and modules are computed again. A program is compared with all modules of all permutations
    by :math:`\frac{1}{n} \sum_i |\sum_a e_{ia}| / (\sigma_i \sqrt k)`, with the root mean square
    :math:`\sigma_i` of an observation and the :math:`k` genes of a module, less its trend with
    :math:`k`. A small p-value means that genes which the *model* relates move together here, not
    that the infection causes it. The coherence of random genes is about a half. Bootstraps for the
    stability draw more than 12 observations in 12 blocks.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.gene_programs(contrasts, n_genes=400, n_permutations=2)
    >>> contrasts.uns["gene_programs"]["programs"].index[0]
    'P1'
    """
    check_key(key_added)
    sets = None if gene_sets is None else read_gene_sets(gene_sets)
    matrix = get_matrix(adata, layer=layer)
    rows_of = {ALL: np.arange(adata.n_obs)}
    if groupby is not None:
        rows_of = profile_groups(adata, groupby)
    # Files take no "/" in the names of columns.
    prefixes = {g: "" if groupby is None else g.replace("/", "|") + ":" for g in rows_of}
    if len(set(prefixes.values())) < len(prefixes):
        raise ValueError(
            f"Groups {list(rows_of)} have the same name once '/' is replaced by '|'; rename one."
        )
    network = load_model(model)
    chosen = _choose_source(network, source)
    settings = Settings(chosen, n_genes, float(resolution), n_permutations, seed)
    found = _find_in_groups(network, adata, rows_of, settings, layer)
    stored: dict[str, Any] = {}
    if sets is not None:
        found, stored[ENRICHMENT] = _enriched_first(found, prefixes, sets, adata.var_names)
    names = {g: _names(prefixes[g], f) for g, f in found.items()}
    stored[PROGRAMS] = pd.concat(
        [f.table.set_axis(pd.Index(names[g], dtype=object)) for g, f in found.items()]
    )
    for key, table_of in ((PROGRAM_GENES, _gene_table), (PROGRAM_EDGES, _edge_table)):
        tables = [table_of(names[g], g, f, adata.var_names) for g, f in found.items()]
        table = pd.concat(tables, ignore_index=True)
        stored[key] = table.set_axis(table.index.astype(str))
    programs = stored[PROGRAMS].index
    weights = np.zeros((adata.n_vars, len(programs)), dtype=np.float32)
    each = [(f, i) for f in found.values() for i in range(len(f.programs))]
    for column, (f, i) in zip(weights.T, each, strict=True):
        members = f.programs[i]
        column[f.columns[members]] = f.weights[i] * f.sign[members]
    activity = activities(matrix, weights)
    record = run_record(
        network,
        adata,
        groupby=groupby,
        groups=None if groupby is None else list(rows_of),
        layer=layer,
        source=chosen,
        n_genes=n_genes,
        resolution=float(resolution),
        n_permutations=n_permutations,
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


def _choose_source(
    model: PretrainedModel, source: str
) -> Literal["attention", "interaction", "combined"]:
    """Check that the model supports ``source``, and resolve ``"auto"``."""
    if not isinstance(model, AttentionModel):
        raise TypeError(
            f"{type(model).__name__} has no attention (no get_attention method), which gene "
            "programs need; use a model with attention, such as 'cellpulse-mini'."
        )
    linear = isinstance(model, GeneFactorModel)
    if source == "auto":
        return "interaction" if linear else "attention"
    if source != "attention" and not linear:
        raise TypeError(
            f"source={source!r} needs a linear gene-gene term, and {type(model).__name__} has none "
            "(no get_gene_factors method); use source='attention'."
        )
    return source  # type: ignore[return-value]


def _find_in_groups(
    model: Any,
    adata: AnnData,
    rows_of: Mapping[str, np.ndarray],
    settings: Settings,
    layer: str | None,
) -> dict[str, FoundPrograms]:
    """Find the programs of every group; issue each warning of the model once."""
    found = {}
    total = sum(settings.n_steps(len(rows)) for rows in rows_of.values())
    with (
        warnings.catch_warnings(record=True) as caught,
        tqdm(total=total, desc="Gene programs", disable=scvi_settings.verbosity > 20) as bar,
    ):
        warnings.simplefilter("always")
        for group, rows in rows_of.items():
            found[group] = find_programs(
                model, adata, rows, settings, group=group, layer=layer, tick=bar.update
            )
    for message in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
        warn_user(message)
    if not any(f.has_negative for f in found.values()):
        warn_user(
            "No effect is negative, so every program goes up and coherence has no meaning; give "
            "signed effects: contrasts, or expression minus that of controls."
        )
    empty = [group for group, f in found.items() if not f.programs]
    if len(empty) == len(found):
        raise ValueError(f"No module has at least {MIN_SIZE} genes in any group; lower resolution.")
    if empty:
        warn_user(f"Groups {empty} have no module of {MIN_SIZE} genes and no program.")
    return found


def _names(prefix: str, found: FoundPrograms) -> list[str]:
    """Name programs by their order: P1 is the first."""
    return [f"{prefix}P{i + 1}" for i in range(len(found.programs))]


def _gene_table(
    names: list[str], _: str, found: FoundPrograms, var_names: pd.Index
) -> pd.DataFrame:
    """Return a row per program and gene, the genes of a program by falling weight, then name."""
    genes = var_names[found.columns].astype(str).to_numpy(dtype=object)
    parts = [pd.DataFrame()]
    for program, members, weight in zip(names, found.programs, found.weights, strict=True):
        order = np.lexsort((genes[members].astype(str), -weight))
        nodes = members[order]
        columns = {
            "program": program,
            "gene": genes[nodes],
            "weight": weight[order],
            "sign": found.sign[nodes],
            "effect": found.effect[nodes],
            "rank": np.arange(1, len(nodes) + 1, dtype=np.int64),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts[1:] or parts)


def _edge_table(
    names: list[str], group: str, found: FoundPrograms, var_names: pd.Index
) -> pd.DataFrame:
    """Return a row per edge between genes of programs."""
    genes = var_names[found.columns].astype(str).to_numpy(dtype=object)
    program = np.full(len(genes), "", dtype=object)
    for name, members in zip(names, found.programs, strict=True):
        program[members] = name
    kept = (program[found.edges.a] != "") & (program[found.edges.b] != "")
    a, b = found.edges.a[kept], found.edges.b[kept]
    return pd.DataFrame(
        {
            "gene_a": genes[a],
            "gene_b": genes[b],
            "weight": found.edges.weight[kept],
            "program_a": program[a],
            "program_b": program[b],
            "group": np.full(len(a), group, dtype=object),
        }
    )


def read_gene_sets(
    gene_sets: Mapping[str, Iterable[str]] | str | os.PathLike[str],
) -> dict[str, list[str]]:
    """Return gene sets by name, from a mapping or a gmt file.

    Raises
    ------
    TypeError
        If it is neither, or a set is a text instead of a list of genes.
    FileNotFoundError
        If the file does not exist.
    ValueError
        If there is no set, or none has a gene.
    """
    if isinstance(gene_sets, Mapping):
        texts = [name for name, genes in gene_sets.items() if isinstance(genes, str)]
        if texts:
            raise TypeError(
                f"gene_sets[{texts[0]!r}] is a text; expected a list of gene names for each set."
            )
        sets = {str(name): [str(gene) for gene in genes] for name, genes in gene_sets.items()}
    elif isinstance(gene_sets, str | os.PathLike):
        path = Path(gene_sets)
        if not path.is_file():
            raise FileNotFoundError(
                f"gene_sets={str(gene_sets)!r} is no file; give the path of a gmt file or a "
                "dictionary of gene lists (nothing is downloaded)."
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"gene_sets={str(gene_sets)!r} is no text file; expected a gmt file, unpacked: a "
                "set in each line, its name, a note and genes, separated by tabs."
            ) from error
        rows = [line.split("\t") for line in text.splitlines()]
        sets = {row[0]: [gene for gene in row[2:] if gene] for row in rows if row[0]}
    else:
        raise TypeError(
            f"gene_sets is a {type(gene_sets).__name__}; expected a dictionary of gene lists or "
            "the path of a gmt file."
        )
    filled = {name: list(dict.fromkeys(genes)) for name, genes in sets.items() if genes}
    if not filled:
        raise ValueError(
            f"gene_sets holds {len(sets)} sets and none with a gene; give at least one set of gene "
            "names."
        )
    return filled


def _enriched_first(
    found: Mapping[str, FoundPrograms],
    prefixes: Mapping[str, str],
    sets: Mapping[str, list[str]],
    var_names: pd.Index,
) -> tuple[dict[str, FoundPrograms], pd.DataFrame]:
    """Test gene sets, and sort programs enriched for one first, also in the table of the sets.

    Sets may name genes as the model does or as the data do.
    """
    listed = {gene for genes in sets.values() for gene in genes}
    own = {g: var_names[f.columns].astype(str).to_numpy() for g, f in found.items()}
    by_model = sum(len(listed.intersection(f.tokens)) for f in found.values())
    by_data = sum(len(listed.intersection(genes)) for genes in own.values())
    if not by_model and not by_data:
        example = ", ".join(sorted(listed)[:3])
        known = ", ".join(next(iter(found.values())).tokens[:3])
        raise ValueError(
            f"None of the {len(listed)} genes of gene_sets (such as {example}) is among the genes "
            f"of the graphs (such as {known}); use the same kind of gene names."
        )
    ordered: dict[str, FoundPrograms] = {}
    tables = []
    for group, f in found.items():
        genes = f.tokens if by_model >= by_data else own[group]
        each = [overrepresentation(genes[m].tolist(), genes.tolist(), sets) for m in f.programs]
        order = sorted(range(len(each)), key=lambda i: not (each[i]["fdr"] <= ENRICHED).any())
        ordered[group] = f.reordered(order)
        for name, i in zip(_names(prefixes[group], f), order, strict=True):
            each[i].insert(0, "program", np.full(len(each[i]), name, dtype=object))
            tables.append(each[i])
    filled = [table for table in tables if len(table)] or tables[:1]
    out = pd.concat(filled, ignore_index=True)
    out["genes"] = out["genes"].map(SET_SEPARATOR.join).astype(object)
    return ordered, out.set_axis(out.index.astype(str))


def activities(matrix: Any, weights: np.ndarray) -> np.ndarray:
    """Return the activity of programs in observations, block by block.

    Parameters
    ----------
    matrix
        ``(n_obs, n_genes)``: numpy, sparse, dask or on disk; ``NaN`` = not measured.
    weights
        ``(n_genes, n_programs)`` signed weights, 0 outside.

    Returns
    -------
    ``(n_obs, n_programs)`` float32, see :func:`cfm.stats._enrichment.univariate_linear_model`.
    """
    out = np.empty((matrix.shape[0], weights.shape[1]), dtype=np.float32)
    # The start of numba changes OpenMP's threads, which slows later models on a busy machine.
    n_threads = torch.get_num_threads()
    for rows, block in row_blocks(matrix):
        out[rows] = univariate_linear_model(np.asarray(to_dense(block, np.float32)), weights)
    torch.set_num_threads(n_threads)
    return out
