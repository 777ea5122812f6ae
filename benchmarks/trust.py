"""The table of the page *Trust*: for each answer, how often it is right on data left out.

``python -m benchmarks.trust`` prints it from the numbers in ``benchmarks/results``;
``--write`` puts it into ``docs/guide/trust.md``. It computes nothing anew.
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from benchmarks._report import REPOSITORY, RESULTS, print_or_write

#: The baseline of ``benchmarks.beside_pca`` that a user has without this package.
COHORT_PCA = "PCA of the cohort"
PAGE = REPOSITORY / "docs" / "guide" / "trust.md"


def results(name: str) -> dict[str, Any]:
    """Return the numbers of a benchmark."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def number(rows: list[dict[str, Any]], column: str, **where: Any) -> str:
    """Return the value of a column in the one row that is meant, as text."""
    found = [row for row in rows if all(row[key] == value for key, value in where.items())]
    if len(found) != 1:
        raise KeyError(f"{len(found)} rows have {where}; expected one.")
    return f"{float(found[0][column]):.2f}"


def best(rows: list[dict[str, Any]], column: str, name: str, *ours: str) -> str:
    """Return the best of the methods whose names hold none of these words, with its value."""
    others = [r for r in rows if r[column] is not None and not any(w in r[name] for w in ours)]
    top = max(others, key=lambda row: row[column])
    return f"{top[column]:.2f} {top[name]}"


def table() -> pd.DataFrame:
    """Return the table: answer, test, how often right, beside it, when it says unknown."""
    response, virus, search = (results(n) for n in ("response", "virus", "signature_search"))
    types, codes, imputed = (results(n) for n in ("cell_types", "cell_codes", "imputation"))
    shifts, drugs, factors = (results(n) for n in ("perturbation", "drugs", "host_factors"))
    beside = results("beside_pca")
    kinds, ours = response["all_contrasts"], "CellPulse"
    mean = {"label": "mean of the types"}
    by_method = pd.DataFrame(imputed["scores"]).groupby("method", sort=False)["centred"].mean()
    cohorts = by_method.dropna().reset_index().to_dict("records")
    linear = "logistic regression on expression"
    rows = [
        (
            "`predict_virus`: kind of response",
            "268 human contrasts, 41 studies, one left out at a time",
            f"balanced accuracy {number(kinds, 'balanced accuracy', method=ours)}",
            best(kinds, "balanced accuracy", "method", ours),
            "`unresolved` for kinds that were right in less than half of three studies",
        ),
        (
            "`predict_virus`: infected or not",
            "the same",
            f"AUROC {number(kinds, 'AUROC infection/control', method=ours)}",
            best(kinds, "AUROC infection/control", "method", ours),
            "a score from 0 to 1",
        ),
        (
            "`predict_virus`: name of the virus",
            "the same; the virus may be in no other study",
            f"right {number(virus['named'], 'right, over units', method=ours)}",
            best(virus["named"], "right, over units", "method", ours),
            "always `unresolved` with the bundled model: no virus is right in 80 %",
        ),
        (
            "`search_signatures`",
            "the same response in other studies",
            f"mean average precision {number(search['responses_all'], 'mean', method='leading')}",
            best(search["responses_all"], "mean", "method", "leading", "base rate", "chosen"),
            "p-value against random contrasts, false discovery rate",
        ),
        (
            "`host_factors`",
            "CRISPR screens of five viruses",
            f"AUROC {number(factors['means'], 'AUROC', ranking='cfm attention')}",
            best(factors["means"], "AUROC", "ranking", "cfm", "same", "other viruses"),
            "p-value of each gene; explains an answer, and does not find host factors",
        ),
        (
            "`screen_drugs`",
            "the same drug class on other plates",
            f"AUROC {number(drugs['retrieval'], 'AUROC', method=DRUGS)}",
            best(drugs["retrieval"], "AUROC", "method", "screen_drugs"),
            "no p-values with fewer than 100 compounds",
        ),
        (
            "`predict_properties`, `cellvq-mini`",
            "700 blood cells of another laboratory",
            f"right {number(types['types'], 'cellvq-mini', **mean)}",
            f"{number(types['types'], linear, **mean)} {linear}",
            "`unknown` where less sure than of 95 % of known cells; "
            "other tissues are often named (below)",
        ),
        (
            "`embed`, `bulkformer-mini`",
            f"{len(beside['scores'])} bulk cohorts left out of the corpus",
            f"not below 50 components of the cohort in {_not_below(beside['paired'])}",
            f"clearly above it in {_above(beside['paired'])}",
            "never; `probe` compares it with components of your samples",
        ),
        (
            "`impute`, `bulkformer-mini`",
            "15 % of the genes hidden in five cohorts left out",
            f"mean centred correlation {number(cohorts, 'centred', method='BulkFormer mini')}",
            best(cohorts, "centred", "method", "BulkFormer"),
            "never",
        ),
        (
            "`simulate_perturbation`, count model",
            "interferon in a cell type left out",
            "delta Pearson " + number(shifts["interferon"], "delta_pearson", method="Count model"),
            best(shifts["interferon"], "delta_pearson", "method", "Count model", "ceiling"),
            "never; `evaluate_perturbation` gives its score on your cells",
        ),
        (
            "`cell_codes`, `cellvq-mini`",
            "types of another laboratory's cells",
            "AMI " + _codes(codes["scores"], ours=True),
            _codes(codes["scores"], ours=False),
            "no code for cells without a gene of the model",
        ),
    ]
    columns = ["answer", "tested on", "result", "best beside it", "when it does not know"]
    return pd.DataFrame(rows, columns=columns)


DRUGS = "screen_drugs: readings chosen on other classes"
LINGSHU = "Lingshu-Cell"


def _not_below(pairs: list[dict[str, Any]]) -> int:
    """Count cohorts in which the interval of ours less their own components reaches 0."""
    return sum(pair["high"] >= 0 for pair in pairs if pair["baseline"] == COHORT_PCA)


def _above(pairs: list[dict[str, Any]]) -> int:
    """Count cohorts in which the interval lies above 0."""
    return sum(pair["low"] > 0 for pair in pairs if pair["baseline"] == COHORT_PCA)


def _codes(rows: list[dict[str, Any]], *, ours: bool) -> str:
    """Return the best of the codes, or of clusters of the same cells."""
    theirs = [row for row in rows if str(row["cells"]).startswith("Zheng 2017")]
    if ours:
        codes = [r for r in theirs if r["method"] == "codes" and "cellvq-mini" in r["model"]]
        return f"{max(row['AMI'] for row in codes):.2f}"
    return best([row for row in theirs if "on PCA" in row["method"]], "AMI", "method")


if __name__ == "__main__":
    print_or_write(PAGE, "trust", table(), __doc__ or "")
