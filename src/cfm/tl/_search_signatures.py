"""Contrasts of a library that are most like given contrasts, with the genes that make them so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.stats import false_discovery_control
from scvi import settings
from scvi.utils import track

from cfm._adata import (
    check_key,
    require_anndata,
    takes_anndata,
    target,
    warn_overwritten,
    warn_user,
)
from cfm._docs import fill_docs
from cfm._fields import EVIDENCE, PARAMS, RESULTS, SET_SEPARATOR, SIGNATURE_SEARCH_KEY
from cfm.data import GeneVocabulary, map_identifiers
from cfm.data._matrix import (
    check_not_empty,
    check_unique_names,
    get_matrix,
    in_memory_frame,
    read_rows,
    to_dense,
)
from cfm.datasets import response_library
from cfm.models.cellpulse._data import check_effects, check_not_scaled
from cfm.stats._similarity import (
    MIN_REFERENCES,
    Similarity,
    as_rows,
    cut_to_lists,
    grade_effects,
    pairwise_cosines,
    reference_p_values,
    spread_over_studies,
    study_weights,
)
from cfm.tl._run import TEXTS
from cfm.tl._signatures import read_signatures, signed_rows, symbols

Method = Literal["auto", "cosine", "centered", "leading", "kernel", "spearman", "connectivity"]

#: Method of ``"auto"``, chosen by ``python -m benchmarks.signature_search`` with studies left out.
BEST_METHOD = "leading"
#: Least number of genes that a query and the library share.
MIN_GENES = 30
#: Matches of a query with evidence.
N_EXPLAINED = 50
#: Reference contrasts for the null, the mean and the covariance of the library.
N_REFERENCES, N_RANKED_REFERENCES = 192, 96
#: Graded cosine from which on two contrasts are duplicates.
SAME_CONTRAST = 0.98
#: Below this share of measured genes the references of a contrast are cut to its genes.
_MEASURED_SHARE = 0.8
#: A query with two values, and effects in less than this share of the genes, is a list.
_LIST_SHARE = 0.25
#: Values in a block of the library.
_BLOCK = 6_000_000
_ANIMAL_ID = re.compile(r"^ENS(?P<species>[A-Z]{3})G\d+")
_ANIMALS = {"MUS": "mouse", "MMU": "macaque", "MFA": "macaque", "RNO": "rat", "MPU": "ferret"}
_RESULTS = {
    "query": object, "match": object, "rank": np.int64, "similarity": np.float64,
    "p_value": np.float64, "fdr": np.float64, "duplicate": bool,
}  # fmt: skip
_EVIDENCE = {
    "query": object, "match": object, "gene": object, "var_name": object,
    "query_effect": np.float64, "match_effect": np.float64,
}  # fmt: skip


@takes_anndata(others=True, columns=("study_key",))
@fill_docs(TEXTS)
def search_signatures(
    adata: AnnData | pd.DataFrame | str | PathLike[str],
    library: AnnData | pd.DataFrame | str | PathLike[str] | None = None,
    *,
    method: Method = "auto",
    n: int | None = 10,
    direction: Literal["similar", "opposite"] = "similar",
    layer: str | None = None,
    library_layer: str | None = None,
    study_key: str | None = None,
    exclude_studies: Sequence[str] | None = None,
    n_genes: int = 20,
    key_added: str = SIGNATURE_SEARCH_KEY,
    copy: bool = False,
) -> AnnData | None:
    r"""Find the most similar contrasts of a library for each contrast.

    Similarities are over the genes measured in both query and match, and independent of the scale
    of the effects. With :math:`x` the effects of a contrast:

    - ``"leading"`` (``"auto"``): cosine of :math:`\tanh((x / q)^3)`, :math:`q` the 200th largest
      effect, after subtraction of the library's mean; the strongest genes have most weight;
    - ``"cosine"``: cosine of graded directions :math:`\tanh(x / q)`, :math:`q` the 1,000th largest
      effect; ``"centered"``: the same without the library's mean;
    - ``"kernel"``: as ``"leading"``, with the gene-gene covariance of the library, by which
      correlated genes replace each other;
    - ``"spearman"``: correlation of ranks;
    - ``"connectivity"``: weighted connectivity of the match's 100 most raised and most lowered
      genes in the ranked query (Subramanian et al. 2017); slower.

    ``"auto"`` finds responses of one kind in other studies best, chosen with the scored studies
    left out (``docs/benchmarks.md``, *Signature search*).

    **p-values** are one-sided, against up to 288 contrasts of the library, spread over its studies
    without the match's own. These references are cut to the numbers of up and down genes of a
    query that is a list, and to the genes of a query that measures few. Their similarities with
    the match give the centre (median) and the spread of a Student's t distribution, the spread from
    the values below the centre, as related contrasts are above. A small p-value means that the
    query is more similar to the match than unrelated contrasts are, with the correlation of genes
    taken into account; it does not separate related contrasts. ``fdr`` is Benjamini-Hochberg over
    the matches of a query.

    Parameters
    ----------
    adata
        Contrasts by genes, log2 fold changes, ``NaN`` = not measured (:func:`cfm.pp.contrasts`),
        genes as human symbols or Ensembl ids. Or signed gene lists, as for ``signatures=`` of
        :func:`cfm.tl.screen_drugs`: the path of a gmt file or a DataFrame.
    library
        Contrasts to search: an AnnData of contrasts by genes, such as from
        :func:`cfm.pp.contrasts`, or signed gene lists as above, such as
        :func:`cfm.datasets.cmap_signatures`. ``obs["study"]`` names the study of each; without it
        each contrast is its own study. ``None`` is :func:`cfm.datasets.response_library`.
    method
        Name of the similarity.
    n
        Number of matches per query; ``None`` keeps all.
    direction
        ``"similar"``, or ``"opposite"`` for contrasts with reversed effects: ranks and p-values are
        then of the similarity times −1, and the evidence has effects of opposite signs.
    layer, library_layer
        Layers with the effects instead of ``X``.
    study_key
        Column of ``obs`` with the study of each query, which excludes contrasts of that study from
        its matches.
    exclude_studies
        Studies of the library to leave out for all queries.
    n_genes
        Largest number of evidence genes of a match.
    %(key_added)s
    %(copy)s

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. For gene lists an AnnData of them (lists by
    genes, −1, 0 and 1, with ``obs["compound"]``). Writes

    ``adata.uns['signature_search' | key_added]['results']``
        DataFrame, a row per query and match, sorted by query (in the order of ``obs_names``) and
        rank: ``query``, ``match`` (names in the library; str), ``rank`` (int64, 1 = best),
        ``similarity`` (−1 to 1), ``p_value``, ``fdr`` (float64), ``duplicate`` (bool: the same
        contrast, graded cosine of at least .98), the columns of ``library.obs`` (texts as str,
        ``""`` where missing; with ``library_`` before a name that is one of these), and
        ``evidence`` (str, genes joined by ``|``, strongest first; for the first 50 matches).
    ``adata.uns[key]['evidence']``
        DataFrame: ``query``, ``match``, ``gene`` (symbol), ``var_name`` (its name in ``adata``;
        all str), ``query_effect`` and ``match_effect`` (float64, values of the two matrices): the
        genes with the largest products of graded effects, of the sign of the match.
    ``adata.uns[key]['params']``
        The arguments, with the resolved ``method``, ``library_contrasts``,
        ``shared_genes``, ``gene_share`` (of the library's genes) and ``references`` (numbers).

    Raises
    ------
    TypeError
        If ``adata`` or ``library`` is of another type.
    KeyError
        If a layer or column does not exist, or the library lacks ``obs["study"]`` or a study of
        ``exclude_studies``.
    ValueError
        If fewer than 30 genes are shared, names are those of another species (mouse symbols are
        mapped by ``cfm.pp.map_genes(adata, organism="mouse")``), names of the library are not
        unique, no contrast of the library is left, or a matrix does not hold fold changes.
        ``adata`` stays unchanged.

    Warns
    -----
    UserWarning
        If queries move no gene of the library (they have no matches), the library has fewer than
        20 contrasts for a null (p-values of correlated genes are then too small), or a field of
        another tool is replaced.

    Notes
    -----
    The result of a query depends neither on other queries nor on the order of rows. The library is
    read in blocks. In the benchmarks (``docs/benchmarks.md``) responses to interferon γ and
    bacteria are found in other studies far above chance, single viruses hardly.

    Examples
    --------
    >>> import cfm
    >>> counts = cfm.datasets.blanco_melo()
    >>> contrasts = cfm.pp.contrasts(counts, "virus", "none", by="series")
    >>> cfm.tl.search_signatures(contrasts, n=3)
    >>> contrasts.uns["signature_search"]["results"]["rank"].tolist()[:3]
    [1, 2, 3]
    """
    check_key(key_added)
    signed = not isinstance(adata, AnnData) and _is_lists(adata)
    queries: Any = _lists(adata) if signed else adata
    require_anndata(queries)
    check_not_empty(queries)
    check_unique_names(queries.obs_names, axis="obs")
    check_not_scaled(get_matrix(queries, layer=layer))
    chosen = BEST_METHOD if method == "auto" else method
    own_studies = _query_studies(queries, study_key)
    source = _read_library(library, library_layer, exclude_studies, study_key, queries)
    effects = _query_effects(queries, layer, source.query_columns)
    silent = ~(np.nan_to_num(effects) != 0).any(axis=1)
    if silent.any():
        names = queries.obs_names[silent][:3].tolist()
        warn_user(
            f"{int(silent.sum())} of {len(effects)} contrasts move no gene of the library (such as "
            f"{names}) and have no matches."
        )
    search = _Search(source, chosen)
    sign = -1 if direction == "opposite" else 1
    similarity, p_value, same = search(effects, sign)
    allowed = np.isfinite(similarity)
    if own_studies is not None:
        allowed &= own_studies[:, None] != source.studies[None, :]
    tables = []
    by_name = np.argsort(source.names.astype(str), kind="stable")
    for i, query in enumerate(queries.obs_names.astype(str)):
        usable = by_name[allowed[i, by_name]]
        order = usable[np.argsort(-sign * similarity[i, usable], kind="stable")]
        fdr = false_discovery_control(p_value[i, order]) if len(order) else np.empty(0)
        kept = order[:n]
        table = pd.DataFrame({
            "query": query, "match": source.names[kept], "rank": np.arange(1, len(kept) + 1),
            "similarity": similarity[i, kept], "p_value": p_value[i, kept],
            "fdr": fdr[: len(kept)], "duplicate": same[i, kept],
        })  # fmt: skip
        proof, genes = _evidence(queries, i, effects[i], source, kept[:N_EXPLAINED], n_genes, sign)
        genes += [""] * (len(kept) - len(genes))
        tables.append((table.join(_describe_matches(source, kept)).assign(evidence=genes), proof))
    results, evidence = (
        pd.concat(parts, ignore_index=True).astype(kinds)
        for parts, kinds in zip(zip(*tables, strict=True), (_RESULTS, _EVIDENCE), strict=True)
    )
    for frame in (results, evidence):
        frame.index = frame.index.astype(str)
    record: dict[str, Any] = {
        "method": chosen, "direction": direction, "n": n, "n_genes": n_genes, "layer": layer,
        "library_layer": library_layer, "study_key": study_key, "key_added": key_added,
        "exclude_studies": None if exclude_studies is None else list(map(str, exclude_studies)),
        "library": "response_library" if library is None else "given",
        "library_contrasts": len(source.rows), "shared_genes": len(source.genes),
        "gene_share": len(source.genes) / source.matrix.shape[1], "references": search.n_references,
    }  # fmt: skip
    record = {name: value for name, value in record.items() if value is not None}
    queries = target(queries, copy=copy and not signed)
    old = queries.uns.get(key_added)
    if not (isinstance(old, Mapping) and {RESULTS, EVIDENCE} <= set(old)):
        warn_overwritten(queries, key_added, {})
    queries.uns[key_added] = {PARAMS: record, RESULTS: results, EVIDENCE: evidence}
    return queries if copy or signed else None


@dataclass
class _Library:
    """The searched contrasts: rows of a matrix, with their metadata.

    ``columns`` and ``genes`` are those that the queries have too, at ``query_columns``.
    """

    matrix: Any
    rows: np.ndarray
    names: np.ndarray
    studies: np.ndarray
    obs: pd.DataFrame
    genes: np.ndarray
    columns: np.ndarray
    query_columns: np.ndarray

    def read(self, chosen: np.ndarray) -> np.ndarray:
        """Read some of the rows, numbered from 0, as float32."""
        # Files are read in the order of their rows.
        rows, place = np.unique(self.rows[chosen], return_inverse=True)
        block = np.asarray(to_dense(read_rows(self.matrix, rows), np.float32))
        out = block if len(self.columns) == block.shape[1] else block[:, self.columns]
        if (place[1:] <= place[:-1]).any():
            out = out[place]
        if np.isinf(out).any():
            raise ValueError(
                "library= holds infinite values; expected log2 fold changes, finite or NaN where a "
                "gene is not measured."
            )
        return out


class _Search:
    """Compares queries with all contrasts of a library, and both with references."""

    def __init__(self, library: _Library, method: str) -> None:
        self.library = library
        most = N_RANKED_REFERENCES if method == "connectivity" else N_REFERENCES
        some = spread_over_studies(library.studies, library.names, 4 * most)
        effects = library.read(some)
        dense = np.count_nonzero(np.nan_to_num(effects), axis=1) >= _LIST_SHARE * effects.shape[1]
        chosen = [
            part[spread_over_studies(library.studies[some[part]], library.names[some[part]], size)]
            for part, size in ((np.arange(len(some)), most), (np.flatnonzero(dense), most // 2))
        ]
        keep = np.unique(np.concatenate(chosen))  # contrasts are rarer than lists in a library
        self.references, self.effects, self.dense = some[keep], effects[keep], dense[keep]
        self.studies = library.studies[self.references]
        self.n_references = len(self.references)
        self.similarity = Similarity(method, self.effects, study_weights(self.studies))
        self.other = self.studies[:, None] != library.studies[None, :]
        if self.other.sum(axis=0).max(initial=0) < MIN_REFERENCES:
            warn_user(
                f"The library has {self.n_references} contrasts for a null, fewer than "
                f"{MIN_REFERENCES} of other studies than a match: p-values are too small where "
                "genes move together. Search a larger library, such as "
                "cfm.datasets.response_library()."
            )

    def __call__(self, effects: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return similarities, p-values and flags of duplicates, each ``(queries, library)``."""
        similarity = self.similarity
        classes = [self._null_class(row) for row in effects]
        kinds = list(dict.fromkeys(classes))
        nulls = [similarity.transform(self._null_rows(kind, effects, classes)) for kind in kinds]
        queries, graded = similarity.transform(effects), as_rows(grade_effects(effects))
        shape = (len(effects), len(self.library.rows))
        found, same = np.empty(shape), np.zeros(shape, dtype=bool)
        reached = [np.empty((self.n_references, shape[1]), dtype=np.float32) for _ in kinds]
        size = max(1, _BLOCK // max(1, len(self.library.columns)))
        blocks = [np.arange(i, min(shape[1], i + size)) for i in range(0, shape[1], size)]

        def compare(chosen: np.ndarray) -> None:
            block = self.library.read(chosen)
            matches = similarity.transform(block)
            # Rounded, so that the result is independent of the block size.
            found[:, chosen] = np.round(similarity.compare(queries, matches).astype(float), 6)
            for null, into in zip(nulls, reached, strict=True):
                into[:, chosen] = similarity.compare_references(null, matches)
            near = found[:, chosen] >= 0.9 * SAME_CONTRAST
            some = np.flatnonzero(near.any(axis=0))
            if len(some):
                alike = np.round(pairwise_cosines(graded, grade_effects(block[some])), 6)
                same[:, chosen[some]] = near[:, some] & (alike >= SAME_CONTRAST)

        quiet = len(blocks) < 12 or settings.verbosity > 20
        with ThreadPoolExecutor(2) as pool:  # NumPy works outside of Python's lock
            done = pool.map(compare, blocks)
            for _ in track(done, description="Library", total=len(blocks), disable=quiet):
                pass
        p_value = np.full(shape, np.nan)
        for kind, null in zip(kinds, reached, strict=True):
            rows = np.array([each == kind for each in classes])
            measured = int(np.isfinite(effects[np.flatnonzero(rows)[0]]).sum())
            floor = 1 / np.sqrt(max(measured - 1, 1))
            p_value[rows] = reference_p_values(
                sign * found[rows], sign * np.round(null, 6), self.other, self.dense, floor
            )
        return found, p_value, same

    def _null_class(self, row: np.ndarray) -> tuple[Any, ...]:
        """Return the properties that references share with a query."""
        known = np.isfinite(row)
        mask = b"" if known.mean() >= _MEASURED_SHARE else np.packbits(known).tobytes()
        moved = row[known & (row != 0)]
        if len(moved) and len(moved) < _LIST_SHARE * known.sum() and len(np.unique(moved)) <= 2:
            # Lists of similar size share references, in steps of a fifth.
            sizes = [round(1.2 ** round(np.log(k) / np.log(1.2))) if k else 0
                     for k in ((moved > 0).sum(), (moved < 0).sum())]  # fmt: skip
            return mask, *sizes
        return mask, -1, -1

    def _null_rows(
        self, kind: tuple[Any, ...], effects: np.ndarray, classes: list[tuple[Any, ...]]
    ) -> np.ndarray:
        mask, n_up, n_down = kind
        rows = self.effects
        if mask:
            known = np.isfinite(effects[classes.index(kind)])
            rows = np.where(known, rows, np.float32(np.nan))
        return rows if n_up < 0 else cut_to_lists(rows, n_up, n_down)


def _is_lists(data: object) -> bool:
    """Return whether this is a table or file of gene lists, not the path of an AnnData."""
    if isinstance(data, str | PathLike):
        return not str(data).rstrip("/").endswith((".h5ad", ".zarr", ".h5mu"))
    return isinstance(data, pd.DataFrame)


def _lists(signatures: Any) -> AnnData:
    """Read signed gene lists as an AnnData, lists by genes."""
    table = read_signatures(signatures, n_genes=2**31 - 1)
    n_genes = len(table.genes)
    rows = signed_rows(table.up, table.down, np.arange(n_genes), n_genes)
    x = sparse.vstack([sparse.csr_matrix(row) for row in rows], format="csr")
    compounds = table.compounds[table.compound]
    several = pd.Series(table.compound).duplicated(keep=False).to_numpy()
    names = [
        f"{compound}|{name}" if more else str(compound)
        for compound, name, more in zip(compounds, table.names, several, strict=True)
    ]
    obs = pd.DataFrame({"compound": compounds}, index=pd.Index(names, dtype=object))
    return AnnData(x, obs=obs, var=pd.DataFrame(index=table.genes.astype(str)))


def _query_studies(adata: AnnData, study_key: str | None) -> np.ndarray | None:
    if study_key is None:
        return None
    obs = in_memory_frame(adata.obs)
    if study_key not in obs:
        raise KeyError(f"study_key={study_key!r} is no column of obs; it has {list(obs.columns)}.")
    return obs[study_key].astype(str).to_numpy(dtype=object)


def _read_library(
    library: Any,
    layer: str | None,
    exclude: Sequence[str] | None,
    study_key: str | None,
    queries: AnnData,
) -> _Library:
    if library is None:
        library = response_library()
    elif _is_lists(library):
        library = _lists(library)
    if not isinstance(library, AnnData):
        raise TypeError(
            f"library= is a {type(library).__name__}; expected an AnnData of contrasts by genes, "
            "the path of a gmt file, or a DataFrame with compound, gene and direction."
        )
    if not library.n_obs or not library.n_vars:
        raise ValueError(f"library= is empty: {library.n_obs} contrasts × {library.n_vars} genes.")
    names = library.obs_names.astype(str).to_numpy(dtype=object)
    twice = pd.Index(names).duplicated()
    if twice.any():
        raise ValueError(
            f"{int(twice.sum())} names of contrasts are not unique in library= (such as "
            f"{names[twice][0]!r}); call library.obs_names_make_unique()."
        )
    obs = in_memory_frame(library.obs)
    rows = np.arange(library.n_obs)
    if "study" in obs:
        studies = obs["study"].astype(str).to_numpy(dtype=object)
    elif exclude is not None or study_key is not None:
        raise KeyError(
            f"library.obs has no column 'study' (it has {list(obs.columns)}), which "
            "exclude_studies= and study_key= need; add it, or drop these arguments."
        )
    else:
        studies = names
    if exclude is not None:
        left_out = [exclude] if isinstance(exclude, str) else list(map(str, exclude))
        unknown = sorted(set(left_out) - set(studies))
        if unknown:
            raise KeyError(
                f"exclude_studies= has {unknown[:3]}, which are no studies of the library (such as "
                f"{sorted(set(studies))[:3]})."
            )
        rows = np.flatnonzero(~np.isin(studies, left_out))
        if not len(rows):
            raise ValueError("exclude_studies= leaves no contrast of the library.")
    genes = symbols(library.var_names.astype(str))
    query_columns, columns = _shared_genes(queries, genes)
    matrix = get_matrix(library, layer=layer)
    return _Library(
        matrix, rows, names[rows], studies[rows], obs.iloc[rows], genes[columns], columns,
        query_columns,
    )  # fmt: skip


def _shared_genes(adata: AnnData, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of the shared genes in the data and in the library.

    Names of another species are refused.
    """
    names = adata.var_names.astype(str)
    animals = [found["species"] for name in names[:2000] if (found := _ANIMAL_ID.match(name))]
    if len(animals) > 0.5 * min(len(names), 2000):
        species = _ANIMALS.get(animals[0], f"another species (ENS{animals[0]}G…)")
        raise ValueError(
            f"var_names are Ensembl ids of {species} (such as {names[0]}), and the library has "
            "human genes; put symbols of human orthologues there (mouse symbols are mapped by "
            "cfm.pp.map_genes(adata, organism='mouse'))."
        )
    if map_identifiers(names.tolist()).organism == "mouse":
        raise ValueError(
            f"var_names are mouse symbols (such as {names[0]}), and the library has human genes; "
            "map them first: cfm.pp.map_genes(adata, organism='mouse')."
        )
    kept = np.flatnonzero(~pd.Index(genes).duplicated() & (genes.astype(str) != ""))
    alignment = GeneVocabulary(genes[kept].tolist()).align(names, min_genes=0)
    # In the order of the library.
    order = np.argsort(alignment.positions, kind="stable")
    if len(order) < MIN_GENES:
        raise ValueError(
            f"Found {len(order)} of the library's {len(genes)} genes (such as {genes[0]}) among "
            f"the {len(names)} genes of the data (such as {names[0]}); at least {MIN_GENES} are "
            "needed. Check that both hold human symbols or Ensembl ids, and map them with "
            "cfm.pp.map_genes."
        )
    return alignment.columns[order].astype(np.int64), kept[alignment.positions[order]]


def _query_effects(adata: AnnData, layer: str | None, columns: np.ndarray) -> np.ndarray:
    """Return ``(queries, shared genes)`` float32; raise if values are no fold changes."""
    matrix = get_matrix(adata, layer=layer)
    out = np.empty((adata.n_obs, len(columns)), dtype=np.float32)
    size = max(1, _BLOCK // adata.n_vars)
    for start in range(0, adata.n_obs, size):
        rows = np.arange(start, min(adata.n_obs, start + size))
        block = np.asarray(to_dense(read_rows(matrix, rows), np.float32))
        check_effects(block)
        out[rows] = block[:, columns]
    return out


def _evidence(
    adata: AnnData,
    i: int,
    effects: np.ndarray,
    library: _Library,
    matches: np.ndarray,
    n_genes: int,
    sign: int,
) -> tuple[pd.DataFrame, list[str]]:
    """Return the evidence genes of query ``i``: a table, and a text for each match."""
    theirs = library.read(matches)
    product = (
        sign * np.nan_to_num(grade_effects(effects[None])) * np.nan_to_num(grade_effects(theirs))
    )
    take = min(n_genes, len(effects))
    top = np.argpartition(-product, take - 1, axis=1)[:, :take]
    top = np.take_along_axis(
        top, np.lexsort((top, -np.take_along_axis(product, top, axis=1)), axis=1), axis=1
    )
    match, place = np.nonzero(np.take_along_axis(product, top, axis=1) > 0)
    gene = top[match, place]
    table = pd.DataFrame(
        {
            "query": str(adata.obs_names[i]),
            "match": library.names[matches[match]],
            "gene": library.genes[gene],
            "var_name": adata.var_names[library.query_columns[gene]].astype(str),
            "query_effect": effects[gene],
            "match_effect": theirs[match, gene],
        }
    )
    listed = [SET_SEPARATOR.join(library.genes[gene[match == m]]) for m in range(len(matches))]
    return table, listed


def _describe_matches(library: _Library, rows: np.ndarray) -> pd.DataFrame:
    """Return the columns of the library's ``obs``, texts as str, with unique names."""
    out = library.obs.iloc[rows].reset_index(drop=True)
    for name in out.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in out.dtypes]]:
        values = out[name].astype(object)
        out[name] = values.where(values.notna(), "").astype(str).astype(object)
    return out.rename(columns=lambda n: f"library_{n}" if n in (*_RESULTS, "evidence") else str(n))
