"""Kind of response of contrasts, and the virus behind it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm._adata import check_key, takes_anndata
from cfm._docs import fill_docs
from cfm._fields import (
    INFECTED,
    MATCHES,
    NO_RESPONSE,
    NOT_VIRAL,
    PARAMS,
    PROBABILITIES,
    RESPONSE,
    RESPONSE_PROBABILITIES,
    RESULTS,
    SIGNATURE_SEARCH_KEY,
    SUPPORT,
    SUPPORT_SUFFIX,
    UNINFECTED,
    UNRESOLVED,
    VIRUS_KEY,
)
from cfm.data import GeneVocabulary
from cfm.data._matrix import get_matrix, in_memory_frame
from cfm.data._result_store import check_output
from cfm.datasets import response_library
from cfm.models import CellPulse, load_model
from cfm.pp import contrasts
from cfm.tl._run import TEXTS, Rows, Run, model_record
from cfm.tl._search_signatures import MIN_GENES, search_signatures

if TYPE_CHECKING:
    from pathlib import Path

    from cfm.models.cellpulse._classifier import Names
    from cfm.tl._run import Data

_SUPPORT_COLUMNS = ["level", "answer", "n_contrasts", "n_studies", "share"]
#: Columns of the search that are kept of each match.
_MATCH_COLUMNS = (
    "match",
    "similarity",
    "p_value",
    "fdr",
    "study",
    "stimulus",
    "response",
    "tissue",
)


@takes_anndata(others=True, ranges={"n_matches": 0})
@fill_docs(TEXTS)
def predict_virus(
    adata: Data,
    model: str | Path | CellPulse = "cellpulse-virus",
    *,
    groupby: str | None = None,
    control: Any = None,
    layer: str | None = None,
    names: Names = "supported",
    n_matches: int = 5,
    key_added: str = VIRUS_KEY,
    device: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    **contrast_kwargs: Any,
) -> AnnData | None:
    """Predict the kind of response of each contrast, and the virus where studies support a name.

    The results are the kind of response, the most similar public contrasts, and a virus if such
    calls were right in studies left out of training. For research use only; not a diagnostic.

    Parameters
    ----------
    adata
        Contrasts with log2 fold changes (:func:`cfm.pp.contrasts`); or samples with counts, from
        which ``groupby`` and ``control`` make contrasts.
        %(paths)s
    model
        A CellPulse with a classifier.
        %(load)s
    groupby, control
        Condition column of ``obs`` and its control level; see :func:`cfm.pp.contrasts`. Leave out
        for contrasts.
    %(layer)s
    names
        ``"supported"``: a virus, or ``"not viral"``, needs at least 80 % of such calls to be right
        in at least three studies left out of training, a kind of response at least half.
        ``"always"``: the most probable calls, with their support.
    n_matches
        Contrasts of :func:`cfm.datasets.response_library` to list for each contrast
        (:func:`cfm.tl.search_signatures`), 0 for none. Contrasts of the same ``obs["study"]`` are
        left out.
    key_added
        Prefix of the results; not ``"virus"``, as that column usually has the true virus.
    %(device)s
    %(output)s
    %(overwrite)s
    %(copy)s
    **contrast_kwargs
        Further arguments of :func:`cfm.pp.contrasts`, with ``groupby`` only, such as ``by``, the
        columns to match samples on.

    Returns
    -------
    With ``groupby`` and without ``output`` a new AnnData of contrasts. Else:
    %(returns)s
    Writes, with ``key`` = ``'predicted_virus' | key_added``:

    ``adata.obs[key]``
        Categorical, the call: a virus, ``"unresolved"`` (a response of unresolved cause),
        ``"not viral"`` (a response of another kind) or ``"uninfected"`` (no response).
    ``adata.obs[f'{key}_response']``
        Categorical, the kind of response: ``"none"``, ``"viral"``, ``"interferon I/III"``,
        ``"interferon II"``, ``"bacterial"`` or ``"other"``, as in the model's training; or
        ``"unresolved"``, where calls of this kind were mostly wrong in studies left out.
    ``adata.obs[f'{key}_infected']``
        float32, probability of a viral response.
    ``adata.obs[f'{key}_support']``
        float32, share of such calls that were right in studies left out of training. For
        ``"unresolved"`` it is that of the response, or ``NaN`` if that is unresolved too.
    ``adata.obsm[f'{key}_response_proba']``
        DataFrame, contrasts by kinds of response; rows sum to 1; column names have ``"|"`` for
        ``"/"``.
    ``adata.obsm[f'{key}_proba']``
        DataFrame, contrasts by viruses, given a viral response; rows sum to 1.
    ``adata.uns[key]['support']``
        DataFrame, a row per call: ``level``, ``answer``, ``n_contrasts``, ``n_studies`` and
        ``share``, in studies left out of training.
    ``adata.uns[key]['matches']``
        DataFrame, a row per contrast and match: ``query``, ``rank``, ``match``, ``similarity``,
        ``p_value``, ``fdr``, ``study``, ``stimulus``, ``response`` and ``tissue``. Empty with
        fewer than 30 genes of the library.
    ``adata.uns[key]``
        Also ``params`` (arguments, model, SHA-256, device, share of genes found), and the names
        ``responses`` and ``classes`` (viruses) in the order of the columns.

    Raises
    ------
    TypeError
        If ``adata`` or ``model`` is of another type, or there are arguments of
        :func:`cfm.pp.contrasts` without ``groupby``.
    KeyError
        If a layer or a column does not exist.
    ValueError
        If only one of ``groupby`` and ``control`` is given, the model has no classifier, the
        values are in other units, or too few genes are found. ``adata`` stays unchanged.
    %(output_errors)s

    Warns
    -----
    %(few_genes)s

    Examples
    --------
    >>> import cfm
    >>> counts = cfm.datasets.blanco_melo()
    >>> calls = cfm.tl.predict_virus(counts, groupby="virus", control="none", by="series")
    >>> sorted(calls.obs["predicted_virus_infected"].between(0, 1).unique().tolist())
    [True]
    """
    check_key(key_added)
    if (groupby is None) != (control is None):
        raise ValueError(
            f"Found groupby={groupby!r} and control={control!r}; give both to make contrasts of "
            "counts, or neither for contrasts."
        )
    # fails before the contrasts are computed
    if output is not None:
        check_output(output, adata, overwrite=overwrite)
    data: Any = adata
    if groupby is None or not hasattr(adata, "obs"):
        data = Rows(data)
    caller = load_model(model, device=device)
    if not isinstance(caller, CellPulse):
        raise TypeError(f"model= is a {type(caller).__name__}; expected CellPulse.")
    classifier = caller.require_classifier()
    classes, kinds = classifier.classes, [NO_RESPONSE, *classifier.responses]
    record: dict[str, Any] = {}
    made = groupby is not None
    if groupby is not None:
        mode = contrast_kwargs.get("mode", "replicates")
        if mode == "pairs":
            raise ValueError(
                "mode='pairs' makes no AnnData; use mode='replicates' or 'test', or call "
                "cfm.pp.contrasts(…, mode='pairs').to_adata(n=…) and predict on that."
            )
        counts = data.whole if isinstance(data, Rows) else data
        data = contrasts(counts, groupby, control, layer=layer, **contrast_kwargs)
        record = {"groupby": groupby, "control": str(control), "mode": mode}
        by = contrast_kwargs.get("by")
        record["by"] = [] if by is None else [by] if isinstance(by, str) else list(by)
        layer = None
    elif contrast_kwargs:
        raise TypeError(f"{sorted(contrast_kwargs)} only go with groupby= and control=.")
    run = Run(data, output, overwrite=overwrite, copy=copy)

    def compute(part: AnnData, _: slice) -> dict[str, np.ndarray]:
        found = caller.predict(part, layer=layer, names=names)
        matches = _matches(part, layer, n_matches)
        return {
            "call": np.asarray(found.call, dtype=str),
            "response": np.asarray(found.response, dtype=str),
            "infected": found.infected,
            "support": found.support,
            "response_proba": found.response_proba.to_numpy(),
            "proba": found.virus_proba.to_numpy(),
            **matches,
        }

    arguments = record | {"layer": layer, "names": names, "n_matches": n_matches}
    with run.compute(
        compute, caller, tool="predict_virus", layers=[layer], arguments=arguments
    ) as results:
        into, take = run.target, results.take
        columns = [key_added + part for part in ("", RESPONSE, INFECTED, SUPPORT_SUFFIX)]
        tables = {PROBABILITIES: classes, RESPONSE_PROBABILITIES: kinds}
        run.warn_overwritten(key_added, {"obs": columns, "obsm": [key_added + t for t in tables]})
        answers = [*classes, UNRESOLVED, NOT_VIRAL, UNINFECTED]
        calls = pd.Categorical(take("call"), categories=answers)
        into.obs[key_added] = calls.remove_unused_categories()
        response = pd.Categorical(take("response"), categories=[*kinds, UNRESOLVED])
        into.obs[key_added + RESPONSE] = response.remove_unused_categories()
        into.obs[key_added + INFECTED] = take("infected")
        into.obs[key_added + SUPPORT_SUFFIX] = take("support")
        for part, levels in tables.items():
            # zarr takes no "/" in the names of columns
            names_of = [level.replace("/", "|") for level in levels]
            into.obsm[key_added + part] = pd.DataFrame(
                take(part.removeprefix("_")), index=into.obs_names, columns=names_of
            )
        share = run.rows.vocabulary_share(caller)
        params = model_record(caller, share, key_added=key_added, **arguments)
        into.uns[key_added] = {
            PARAMS: params,
            "classes": classes,
            "responses": kinds,
            SUPPORT: pd.DataFrame(classifier.support, columns=_SUPPORT_COLUMNS),
            MATCHES: _match_table(into.obs_names, take, n_matches),
        }
    found = run.result
    return data if made and found is None else found


def _matches(part: AnnData, layer: str | None, n: int) -> dict[str, np.ndarray]:
    """Search the library; ``match_…`` ``(rows, n)`` arrays, ``""`` and NaN where there is none."""
    shape = (part.n_obs, n)
    found: dict[str, np.ndarray] = {
        name: np.full(shape, np.nan)
        if name in ("similarity", "p_value", "fdr")
        else np.full(shape, "", dtype=object)
        for name in _MATCH_COLUMNS
    }
    if n:
        library = response_library()
        known = GeneVocabulary(library.var_names)
        if len(known.align(part.var_names, min_genes=0).columns) >= MIN_GENES:
            # names may occur twice; rows do not
            rows = pd.Index(np.arange(part.n_obs).astype(str))
            obs = in_memory_frame(part.obs)[[c for c in ("study",) if c in part.obs]]
            queries = AnnData(
                get_matrix(part, layer=layer),
                obs=obs.set_axis(rows),
                var=pd.DataFrame(index=part.var_names),
            )
            with warnings.catch_warnings():
                # predict warns of contrasts without effects, which have no matches
                warnings.simplefilter("ignore", UserWarning)
                search_signatures(
                    queries, library, n=n, study_key="study" if "study" in obs else None
                )
            table = queries.uns[SIGNATURE_SEARCH_KEY][RESULTS]
            row = rows.get_indexer(table["query"])
            for name in _MATCH_COLUMNS:
                found[name][row, table["rank"].to_numpy() - 1] = table[name].to_numpy()
    return {
        f"match_{name}": values if values.dtype != object else values.astype(str)
        for name, values in found.items()
    }


def _match_table(names: pd.Index, take: Any, n: int) -> pd.DataFrame:
    """Return a row per contrast and match that was found."""
    columns = {name: np.asarray(take(f"match_{name}")).ravel() for name in _MATCH_COLUMNS}
    table = pd.DataFrame(
        {
            "query": np.repeat(names.astype(str).to_numpy(), n),
            "rank": np.tile(np.arange(1, n + 1), len(names)),
            **columns,
        }
    )
    table = table[table["match"] != ""].reset_index(drop=True)
    return table.set_axis(table.index.astype(str), axis=0)
