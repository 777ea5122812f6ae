"""Getters: what the tools stored, as tidy DataFrames.

Each returns a new table with a row per result, ready to filter, join or write to a file.
``cfm.get.knowledge_graph`` returns a graph whose ``nodes`` and ``edges`` are such tables.
:func:`cfm.tl.evaluate_perturbation` stores nothing and returns its scores itself. For columns of
``obs`` beside embeddings in ``obsm`` there is :func:`scanpy.get.obs_df`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pandas as pd

from cfm import _fields as f
from cfm._adata import check_tables, in_memory, params_of, pick, require_anndata, stored_table
from cfm._arguments import checks_arguments
from cfm._docs import fill_docs

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.data import KnowledgeGraph

__all__ = [
    "cell_codes",
    "cell_importance",
    "drug_screen",
    "gene_programs",
    "host_factors",
    "knowledge_graph",
    "map_reference",
    "predicted_properties",
    "probe_predictions",
    "probe_scores",
    "signature_search",
    "similar_contrasts",
    "virus_calls",
    "virus_probabilities",
]

G = TypeVar("G", bound=Callable[..., Any])
_TAKES = """
Parameters
----------
adata
    With the result of the tool.
key
    Where it is stored (``key_added`` of the tool).
"""
_TABLE = """
table
    Which table of the result.
"""
_GROUP = """
group
    One or more groups (queries, programs, codes or observations); ``None`` returns all.
"""
_RAISES = """
Raises
------
KeyError
    If there is no such result or group; the error names the tool to run.
"""
_fill = fill_docs(
    {
        "takes": _TAKES,
        "takes_table": _TAKES + _TABLE.lstrip(),
        "takes_group": _TAKES + _GROUP.lstrip(),
        "takes_both": _TAKES + _TABLE.lstrip() + _GROUP.lstrip(),
        "raises": _RAISES,
        "rows": f"""
Returns
-------
DataFrame with the columns that the tool documents.

{_RAISES.strip()}
""",
    }
)


def _getter(function: G) -> G:
    return checks_arguments()(_fill(function))  # type: ignore[return-value]


def _rows(
    adata: AnnData,
    key: str,
    table: str,
    tool: str,
    columns: Sequence[str],
    group: str | Sequence[str] | None = None,
    *,
    index: str | None = None,
    arguments: str = "",
) -> pd.DataFrame:
    """Return rows of a stored table; ``group`` picks in its first column, or in its named index."""
    _check(adata)
    given = columns[1:] if index else columns
    frame = stored_table(adata, key, table, given, tool=tool, empty=True, arguments=arguments)
    if index:
        frame.insert(0, index, frame.index.astype(str))
    by = columns[0]
    if group is not None:
        names = pick("group", group, frame[by].unique(), f"uns[{key!r}][{table!r}]")
        frame = frame[frame[by].isin(names)]
    return frame.reset_index(drop=True)


def _check(adata: object) -> None:
    require_anndata(adata)
    check_tables(adata)  # type: ignore[arg-type]


def _obs(adata: AnnData, tool: str, key: str, *names: str) -> pd.DataFrame:
    """Return columns of ``obs`` that a tool wrote."""
    if missing := [name for name in names if name not in adata.obs]:
        raise _not_found([f"obs[{name!r}]" for name in missing], tool, key)
    return in_memory(adata.obs)[list(names)]


def _obsm(adata: AnnData, tool: str, key: str, name: str) -> pd.DataFrame:
    """Return a DataFrame in ``obsm`` that a tool wrote."""
    if name not in adata.obsm:
        raise _not_found([f"obsm[{name!r}]"], tool, key)
    frame = in_memory(adata.obsm[name])
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f"obsm[{name!r}] is a {type(frame).__name__}; expected the DataFrame that "
            f"cfm.tl.{tool} stores: run it again."
        )
    return frame


def _not_found(names: list[str], tool: str, key: str) -> KeyError:
    return KeyError(
        f"{', '.join(names)} not found; run cfm.tl.{tool}(adata, key_added={key!r}) first, or pass "
        "the key it was stored under."
    )


# --- Contrasts -------------------------------------------------------------------------------


@_getter
def virus_calls(adata: AnnData, *, key: str = f.VIRUS_KEY) -> pd.DataFrame:
    """Return the answers of :func:`cfm.tl.predict_virus`, a row per contrast.

    %(takes)s

    Returns
    -------
    Columns ``contrast``; ``response``; the ``most_probable`` kind, which differs where the response
    is ``"unresolved"``, with ``probability``, ``support`` (share of such answers that were right in
    studies left out of training, NaN if never given) and ``studies`` (their number); ``call`` with
    ``call_support`` and ``call_studies``; ``cases`` and ``controls`` if their numbers are stored.

    %(raises)s

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.predict_virus(contrasts)
    >>> len(cfm.get.virus_calls(contrasts)) == contrasts.n_obs
    True
    """
    _check(adata)
    fields = _obs(adata, "predict_virus", key, key, key + f.RESPONSE, key + f.SUPPORT_SUFFIX)
    call, response = (
        fields[name].astype(str).to_numpy(dtype=object) for name in fields.iloc[:, :2]
    )
    stored = fields.iloc[:, 2].to_numpy(dtype=np.float64)
    kinds = virus_probabilities(adata, key=key, level="response").fillna(0.0)
    responses = kinds.drop(columns=f.NO_RESPONSE, errors="ignore")
    most = responses.columns.to_numpy()[responses.to_numpy().argmax(axis=1)]
    kind = np.where(response == f.UNRESOLVED, most, response)
    level = np.select(
        [call == f.UNINFECTED, call == f.NOT_VIRAL], ["response", f.NOT_VIRAL], "virus"
    )
    of_kind = _support(adata, key, np.full(len(kind), "response"), kind)
    of_call = _support(adata, key, level, np.where(level == "virus", call, kind))
    # what is stored beside these calls is the support of the response
    own = np.where(np.isin(call, (f.UNINFECTED, f.UNRESOLVED)), stored, np.nan)
    named = np.where(call == f.UNRESOLVED, np.nan, stored)
    places = kinds.columns.get_indexer(pd.Index(kind))
    calls = pd.DataFrame(
        {
            "contrast": adata.obs_names.astype(str),
            "response": response,
            "most_probable": kind,
            "probability": kinds.to_numpy()[np.arange(len(kind)), places],
            "support": np.where(of_kind["share"].isna(), own, of_kind["share"]),
            "studies": of_kind["n_studies"].fillna(0).astype(np.int64).to_numpy(),
            "call": call,
            "call_support": np.where(of_call["share"].isna(), named, of_call["share"]),
            "call_studies": of_call["n_studies"].fillna(0).astype(np.int64).to_numpy(),
        }
    )
    for column in ("cases", "controls"):
        if f"n_{column}" in adata.obs:
            calls[column] = in_memory(adata.obs)[f"n_{column}"].to_numpy()
    return calls


def _support(adata: AnnData, key: str, level: np.ndarray, answer: np.ndarray) -> pd.DataFrame:
    """Return ``share`` and ``n_studies`` of answers in studies left out; NaN where unknown."""
    table = in_memory(adata.uns.get(key, {}).get(f.SUPPORT))
    if not isinstance(table, pd.DataFrame):
        table = pd.DataFrame(columns=["level", "answer", "share", "n_studies"])
    names = pd.MultiIndex.from_frame(table[["level", "answer"]].astype(str))
    numbers = table[["share", "n_studies"]].astype(np.float64).set_axis(names)
    return numbers.reindex(pd.MultiIndex.from_arrays([level.astype(str), answer.astype(str)]))


@_getter
def virus_probabilities(
    adata: AnnData, *, key: str = f.VIRUS_KEY, level: Literal["virus", "response"] = "virus"
) -> pd.DataFrame:
    """Return the probabilities of :func:`cfm.tl.predict_virus`, contrasts by names.

    %(takes)s
    level
        ``"virus"``: of viruses, given a viral response; ``"response"``: of kinds of response.

    Returns
    -------
    DataFrame with the ``obs_names`` as index; the columns are the names as they stand in ``obs``.

    %(raises)s

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.predict_virus(contrasts)
    >>> "interferon I/III" in cfm.get.virus_probabilities(contrasts, level="response")
    True
    """
    _check(adata)
    of_response = level == "response"
    part = f.RESPONSE_PROBABILITIES if of_response else f.PROBABILITIES
    table = _obsm(adata, "predict_virus", key, key + part)
    column = key + f.RESPONSE if of_response else key
    names = list(adata.uns.get(key, {}).get("responses" if of_response else "classes", ()))
    names += list(_obs(adata, "predict_virus", key, column)[column].astype(str))
    return table.rename(columns={str(name).replace("/", "|"): str(name) for name in names})


@_getter
def similar_contrasts(
    adata: AnnData, *, key: str = f.VIRUS_KEY, group: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the public contrasts that :func:`cfm.tl.predict_virus` lists beside its calls.

    %(takes_group)s

    %(rows)s

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.blanco_melo(), "virus", "none", by="series")
    >>> cfm.tl.predict_virus(contrasts, n_matches=2)
    >>> len(cfm.get.similar_contrasts(contrasts, group=contrasts.obs_names[0]))
    2
    """
    return _rows(adata, key, f.MATCHES, "predict_virus", ("query", "match"), group)


@_getter
def signature_search(
    adata: AnnData,
    *,
    key: str = f.SIGNATURE_SEARCH_KEY,
    table: Literal["results", "evidence"] = "results",
    group: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the matches of :func:`cfm.tl.search_signatures`, or the genes behind them.

    %(takes_both)s

    %(rows)s

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.blanco_melo(), "virus", "none", by="series")
    >>> cfm.tl.search_signatures(contrasts)
    >>> "gene" in cfm.get.signature_search(contrasts, table="evidence")
    True
    """
    return _rows(adata, key, table, "search_signatures", ("query", "match"), group)


@_getter
def host_factors(
    adata: AnnData, *, key: str = f.HOST_FACTORS_KEY, group: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the ranked genes of :func:`cfm.tl.host_factors`, a row per group and gene.

    %(takes_group)s

    %(rows)s

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.host_factors(contrasts, "virus", "reversal", n_permutations=5)
    >>> set(cfm.get.host_factors(contrasts, group="virus_A")["group"])
    {'virus_A'}
    """
    return _rows(adata, key, f.RESULTS, "host_factors", ("group", "explained", "gene"), group)


@_getter
def gene_programs(
    adata: AnnData,
    *,
    key: str = f.GENE_PROGRAMS_KEY,
    table: Literal["programs", "genes", "edges", "enrichment"] = "programs",
    group: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the programs of :func:`cfm.tl.gene_programs`, their genes, edges or gene sets.

    %(takes_both)s

    %(rows)s

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.gene_programs(contrasts, n_genes=400, n_permutations=2)
    >>> cfm.get.gene_programs(contrasts)["program"].iloc[0]
    'P1'
    """
    by = "program_a" if table == "edges" else "program"
    look: Any = {"programs": {"index": by}, "enrichment": {"arguments": "gene_sets=…"}}
    return _rows(adata, key, table, "gene_programs", (by,), group, **look.get(table, {}))


@_getter
def drug_screen(
    adata: AnnData, *, key: str = f.DRUG_SCREEN_KEY, group: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the compounds of :func:`cfm.tl.screen_drugs`, a row per group and compound.

    %(takes_group)s

    %(rows)s

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.screen_drugs(contrasts, cfm.datasets.cmap_signatures())
    >>> int(cfm.get.drug_screen(contrasts, group="virus_A")["rank"].min())
    1
    """
    return _rows(adata, key, f.RESULTS, "screen_drugs", ("group", "compound"), group)


# --- Cohorts and donors ----------------------------------------------------------------------


@_getter
def probe_scores(
    adata: AnnData, *, key: str = f.PROBE_KEY, table: Literal["results", "comparisons"] = "results"
) -> pd.DataFrame:
    """Return the scores of :func:`cfm.tl.probe`, or the differences of representations.

    %(takes_table)s

    %(rows)s

    Examples
    --------
    >>> import cfm
    >>> cohort = cfm.datasets.toy_bulk_cohort()
    >>> cfm.pp.tpm(cohort)
    >>> cfm.tl.probe(cohort, "disease", n_folds=3, layer="log_tpm", heads="logistic")
    >>> sorted(cfm.get.probe_scores(cohort)["representation"].unique())
    ['expression', 'expression PCA', 'none']
    """
    return _rows(adata, key, table, "probe", ("representation", "head", "metric"))


@_getter
def probe_predictions(adata: AnnData, *, key: str = f.PROBE_KEY) -> pd.DataFrame:
    """Return the out-of-fold predictions of :func:`cfm.tl.probe` beside the truth.

    %(takes)s

    Returns
    -------
    A row per observation, representation, head and target (of several targets only the first
    representation and head): ``observation``, ``fold``, ``group`` if there are groups,
    ``representation``, ``head``, ``target``; ``true``, with ``event`` for survival; ``predicted``,
    a class, a value, or a risk (0 to 1); and ``probability_<class>``, a column for each class.

    %(raises)s

    Examples
    --------
    >>> import cfm
    >>> cohort = cfm.datasets.toy_bulk_cohort()
    >>> cfm.pp.tpm(cohort)
    >>> cfm.tl.probe(cohort, "disease", n_folds=3, layer="log_tpm", heads="logistic")
    >>> cfm.get.probe_predictions(cohort)["representation"].value_counts().to_dict()
    {'expression': 84, 'expression PCA': 84}
    """
    _check(adata)
    params = params_of(adata.uns, key)
    columns = _obsm(adata, "probe", key, key + f.PREDICTIONS)
    fold = _obs(adata, "probe", key, key + f.FOLD).iloc[:, 0].to_numpy()
    rows = np.flatnonzero(fold >= 0)
    truth = _targets(adata, key, params).iloc[rows].reset_index(drop=True)
    first = {"observation": adata.obs_names.astype(str)[rows], "fold": fold[rows]}
    if params["groups"]:
        groups = _obs(adata, "probe", key, params["groups"]).iloc[rows, 0].astype(str)
        first["group"] = groups.to_numpy()
    common = pd.DataFrame(first)
    classes = list(params.get("classes", ()))
    survival = params["task"] == "survival"
    several = not classes and not survival and truth.shape[1] > 1
    parts = []
    for i, name in enumerate(columns):
        method = str(params["predictions"] if several else name)
        representation, _, head = method.rpartition("|")
        column = i if several else 0
        true = truth.iloc[:, column]
        part = common.assign(
            representation=representation,
            head=head,
            target=str(truth.columns[column]),
            true=true.astype(str).where(true.notna()) if classes else true,
            predicted=columns[name].iloc[rows].to_numpy(),
        )
        if survival:
            part = part.assign(event=truth.iloc[:, 1])
        if classes:
            proba = _obsm(adata, "probe", key, key + f.METHOD_PROBABILITIES).iloc[rows]
            found = {c: proba[f"{method}|{c.replace('/', '|')}"].to_numpy() for c in classes}
            part = part.assign(predicted=part["predicted"].astype(str))
            part = part.assign(**{f"probability_{c}": values for c, values in found.items()})
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _targets(adata: AnnData, key: str, params: Any) -> pd.DataFrame:
    """Return what a probe predicted, observations by targets."""
    names = list(params["target"])
    if stored := params.get("target_key"):
        if stored not in adata.obsm:
            raise KeyError(f"obsm[{stored!r}], the target of the probe {key!r}, is not there.")
        values = in_memory(adata.obsm[stored])
        values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        return pd.DataFrame(values, columns=names)
    if missing := [name for name in names if name not in adata.obs]:
        raise KeyError(
            f"obs has no column {', '.join(map(repr, missing))}, the target of the probe {key!r}; "
            "add it again."
        )
    return in_memory(adata.obs)[names]


@_getter
def predicted_properties(
    adata: AnnData, *, key: str = f.PROPERTY_PREFIX, group: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the classes of :func:`cfm.tl.predict_properties`, a row per property and cell.

    Parameters
    ----------
    adata
        With the result of the tool.
    key
        Its prefix (``key_added`` of the tool).
    group
        One or more properties; ``None`` returns all.

    Returns
    -------
    ``observation``, ``property``, ``predicted`` (missing for cells without genes of the model) and
    ``confidence``.

    %(raises)s

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_infection_cells()[::20].copy()
    >>> model = cfm.models.CellVQ(
    ...     vocabulary=cells.var_names, n_layers=1, properties={"tissue": ["blood", "lung"]}
    ... )
    >>> cfm.tl.predict_properties(cells, model)
    >>> cfm.get.predicted_properties(cells)["property"].unique().tolist()
    ['tissue']
    """
    _check(adata)
    found = [
        str(name).removeprefix(key)
        for name in adata.uns
        if params_of(adata.uns, name).get("property") == str(name).removeprefix(key)
    ]
    if not found:
        raise _not_found([f"properties uns[{key + '…'!r}]"], "predict_properties", key)
    parts = []
    for name in pick("group", group, found, "uns"):
        columns = (key + name, key + name + f.CONFIDENCE)
        table = _obs(adata, "predict_properties", key, *columns)
        table = table.set_axis(["predicted", "confidence"], axis=1)
        table.insert(0, "property", name)
        parts.append(table.rename_axis("observation").reset_index().astype({"predicted": object}))
    return pd.concat(parts, ignore_index=True)


@_getter
def cell_importance(
    adata: AnnData, *, key: str = f.CELL_IMPORTANCE_KEY, group: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the table of :func:`cfm.tl.cell_importance`, a row per donor and group.

    %(takes_group)s

    %(rows)s

    Examples
    --------
    >>> import cfm, scanpy as sc
    >>> cells = cfm.datasets.toy_donors(n_donors=4, n_cells=30)
    >>> sc.pp.pca(cells, n_comps=10)
    >>> cfm.models.Pulsar.setup_anndata(cells, donor_key="donor_id", use_rep="X_pca")
    >>> cfm.tl.cell_importance(cells, "donor_id", cfm.models.Pulsar(cells), groupby="cell_type")
    >>> cfm.get.cell_importance(cells, group="B cell")["donor"].nunique()
    4
    """
    columns, tool = ("group", "donor"), "cell_importance"
    return _rows(adata, key, f.IMPORTANCE_GROUPS, tool, columns, group, arguments="groupby=…")


# --- Cells -----------------------------------------------------------------------------------


@_getter
def map_reference(
    adata: AnnData,
    *,
    key: str = f.MAP_REFERENCE_KEY,
    table: Literal["neighbours", "evidence"] = "neighbours",
    group: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the neighbours of :func:`cfm.tl.map_reference`, or the votes for each label.

    %(takes_both)s

    %(rows)s

    Examples
    --------
    >>> import cfm, scanpy as sc
    >>> cells = cfm.datasets.toy_donors(n_donors=4, n_cells=30)
    >>> sc.pp.pca(cells, n_comps=10)
    >>> new = cells[:9].copy()
    >>> cfm.tl.map_reference(new, cells[9:], "cell_type", use_rep="X_pca", n_neighbors=5)
    >>> len(cfm.get.map_reference(new, group=new.obs_names[0]))
    5
    """
    arguments = "reference, label_key=…" if table == "evidence" else "reference"
    columns = ("observation", "label")
    return _rows(adata, key, table, "map_reference", columns, group, arguments=arguments)


@_getter
def cell_codes(
    adata: AnnData,
    *,
    key: str = f.CELL_CODE_KEY,
    table: Literal["codes", "markers", "annotations", "neighbours", "reference"] = "codes",
    group: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return a table of :func:`cfm.tl.cell_codes`.

    %(takes_both)s

    %(rows)s

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_infection_cells()[::20].copy()
    >>> model = cfm.models.CellVQ(vocabulary=cells.var_names, n_layers=1)
    >>> cfm.tl.cell_codes(cells, model)
    >>> int(cfm.get.cell_codes(cells)["n_cells"].sum()) == cells.n_obs
    True
    """
    by = "annotation" if table == "annotations" else "code"
    needed = {"annotations": "groupby=…", "reference": "reference=…"}.get(table, "")
    index = None if table in ("markers", "neighbours") else by
    return _rows(adata, key, table, "cell_codes", (by,), group, index=index, arguments=needed)


@_getter
def knowledge_graph(adata: AnnData, *, key: str = f.KNOWLEDGE_GRAPH_KEY) -> KnowledgeGraph:
    """Return the graph of :func:`cfm.tl.knowledge_graph`.

    %(takes)s

    Returns
    -------
    cfm.data.KnowledgeGraph
        With the DataFrames ``nodes`` and ``edges``, and ``query``, ``shortest_path``,
        ``to_networkx`` and ``write_graphml``.

    %(raises)s

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_communication()
    >>> cfm.tl.knowledge_graph(cells, model=None, codes="cell_type")
    >>> graph = cfm.get.knowledge_graph(cells)
    >>> graph.query("code:Monocyte", k=3, kind="gene")["edge"].tolist()
    ['importance', 'importance', 'importance']
    """
    from cfm.data import KnowledgeGraph

    _check(adata)
    nodes, edges = (
        stored_table(adata, key, name, columns, tool="knowledge_graph", empty=True)
        for name, columns in ((f.GRAPH_NODES, ("kind",)), (f.GRAPH_EDGES, ("source", "target")))
    )
    return KnowledgeGraph(nodes, edges)
