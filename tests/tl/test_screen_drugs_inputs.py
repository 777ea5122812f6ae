from __future__ import annotations

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import cfm
from cfm.data._genes import _tables
from cfm.models import CellPulse
from tests._same import assert_same, assert_unchanged
from tests.tl._drugs import host_factors, profiles, results, signatures, targets

#: Most libraries here are small.
pytestmark = pytest.mark.filterwarnings("ignore:p_value and fdr are NaN:UserWarning")


def table_of(given, adata: ad.AnnData | None = None, **arguments) -> pd.DataFrame:
    adata = profiles() if adata is None else adata
    cfm.tl.screen_drugs(adata, given, model=None, n_permutations=50, **arguments)
    return adata.uns["drug_screen"]["results"]


def as_gmt(table: pd.DataFrame, up: str, down: str) -> str:
    lines = []
    for (compound, direction), rows in table.groupby(["compound", "direction"]):
        name = compound + {"up": up, "down": down}[direction]
        lines.append("\t".join([name, "a description", *rows["gene"], ""]))
    return "\n".join(lines) + "\n\n"


def as_values(table: pd.DataFrame) -> pd.DataFrame:
    value = np.where(table["direction"] == "up", 1.5, -0.5)
    return table.drop(columns="direction").assign(value=value)


def as_anndata(table: pd.DataFrame) -> ad.AnnData:
    wide = as_values(table).pivot(index="compound", columns="gene", values="value").fillna(0.0)
    # Only genes that some signature names, as in the other forms.
    return ad.AnnData(wide.to_numpy(np.float32), obs=wide[[]], var=pd.DataFrame(index=wide.columns))


@pytest.mark.parametrize(
    "suffix", [("_UP", "_DN"), ("_up", "_down"), ("-up", "-dn"), (" Up", " Down"), (".UP", ".DN")]
)
def test_gmt_files(tmp_path: Path, suffix: tuple[str, str]) -> None:
    expected = table_of(signatures())
    path = tmp_path / "sets.gmt"
    path.write_text(as_gmt(signatures(), *suffix))
    assert_same(table_of(path), expected)
    packed = tmp_path / "sets.gmt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert_same(table_of(str(packed)), expected)


def test_gmt_with_sets_that_say_no_direction(tmp_path: Path) -> None:
    path = tmp_path / "sets.gmt"
    path.write_text(as_gmt(signatures(), "_UP", "_DN") + "GROUP\tx\tGENE1\tGENE2\n")
    with pytest.warns(UserWarning, match="1 sets of 'sets.gmt' have no direction"):
        found = table_of(path)
    assert_same(found, table_of(signatures()))
    path.write_text("SETUP\tx\tGENE1\n")
    with pytest.raises(ValueError, match=r"No set of 'sets\.gmt' has a direction"):
        table_of(path)
    with pytest.raises(FileNotFoundError, match="is no file"):
        table_of(tmp_path / "none.gmt")


def test_frames_and_anndata_give_the_same() -> None:
    expected = table_of(signatures())
    numbers = signatures()
    numbers["direction"] = numbers["direction"].map({"up": 1, "down": -1})
    assert_same(table_of(numbers), expected)
    assert_same(table_of(signatures().rename(columns={"compound": "drug"})), expected)
    assert_same(table_of(as_values(signatures())), expected)
    adata = as_anndata(signatures())
    assert_same(table_of(adata), expected)
    adata.X = sp.csr_matrix(adata.X)
    adata.obs["compound"] = adata.obs_names.astype(str)
    adata.obs_names = [f"s{i}" for i in range(adata.n_obs)]
    assert_same(table_of(adata), expected)


def test_of_values_the_largest_are_taken() -> None:
    genes = profiles().var_names
    value = np.linspace(3, -3, len(genes))
    whole = pd.DataFrame({"compound": "drug", "gene": genes, "value": value})
    found, ends, fewer = (
        table_of(part)["reversal"].to_numpy()
        for part in (whole, *(pd.concat([whole.head(n), whole.tail(n)]) for n in (100, 60)))
    )
    np.testing.assert_allclose(found, ends)
    assert (found != fewer).any()


def test_duplicates_and_genes_of_both_lists_change_nothing() -> None:
    expected = table_of(signatures())
    both = pd.DataFrame({"compound": "mimic", "gene": "GENE350", "direction": ["up", "down"]})
    shouted = signatures().assign(compound=signatures()["compound"].str.upper())
    messy = pd.concat([signatures(), signatures(), shouted, both])
    found = table_of(messy)
    assert found["compound"].str.casefold().tolist() == (
        expected["compound"].str.casefold().tolist()
    )
    numbers = ["rank", "score", "reversal", "p_value", "n_signatures"]
    pd.testing.assert_frame_equal(found[numbers], expected[numbers])


def test_rows_without_names_are_left_out_with_a_warning() -> None:
    messy = pd.concat([signatures(), signatures().head(3).assign(gene=[None, "", np.nan])])
    messy = pd.concat([messy, signatures().head(2).assign(compound=["  ", None])])
    with pytest.warns(UserWarning, match="5 of 885 rows of signatures= lack a name"):
        found = table_of(messy)
    assert_same(found, table_of(signatures()))
    lacking = pd.concat([targets(), pd.DataFrame({"drug": ["dud", None], "gene": ["", "GENE5"]})])
    with pytest.warns(UserWarning, match="2 of 37 rows of targets= lack a name"):
        found = table_of(None, targets=lacking, host_factors=host_factors())
    assert_same(found, table_of(None, targets=targets(), host_factors=host_factors()))


def test_a_signature_with_one_side_is_scored_by_it() -> None:
    table = signatures()
    up_only = table[(table["compound"] != "Reverser") | (table["direction"] == "up")]
    with pytest.warns(UserWarning, match="1 of 22 signatures have measured genes on one side"):
        found = table_of(up_only)
    both = results_of(table_of(table))
    one = results_of(found)
    assert one.loc["Reverser", "reversal"] > 0.8
    assert one.index[0] == "Reverser"
    assert set(one.loc["Reverser", "reversal_genes"].split("|")) <= {
        *table.loc[(table["compound"] == "Reverser") & (table["direction"] == "up"), "gene"]
    }
    rest = one.index.drop("Reverser")
    np.testing.assert_array_equal(one["reversal"][rest], both["reversal"][rest])
    down_only = table[(table["compound"] != "mimic") | (table["direction"] == "down")]
    with pytest.warns(UserWarning, match="one side only"):
        mimic = results_of(table_of(down_only)).loc["mimic", "reversal"]
    assert mimic < -0.8


def results_of(table: pd.DataFrame, group: str = "A") -> pd.DataFrame:
    return table[table["group"] == group].set_index("compound")


def test_signatures_of_other_genes_are_left_out_compound_by_compound() -> None:
    strange = pd.DataFrame(
        {"compound": "alien", "gene": [f"X{i}" for i in range(20)], "direction": ["up"] * 20}
    )
    found = table_of(pd.concat([signatures(), strange]))
    assert "alien" not in set(found["compound"])
    assert_same(found, table_of(signatures()))
    far = pd.DataFrame({"compound": "alien", "gene": [f"X{i}" for i in range(2000)]})
    with pytest.warns(UserWarning, match="are in the data; reversal from so few"):
        table_of(pd.concat([signatures(), far.assign(direction="up")]))


def test_ensembl_ids_and_symbols_meet() -> None:
    ensembl = {}
    for number, symbol in _tables().ensembl.items():
        ensembl.setdefault(symbol, f"ENSG{number:011d}")
    symbols = sorted(ensembl)[:400]
    name = {f"GENE{i}": symbol for i, symbol in enumerate(symbols)}
    adata = profiles()
    adata.var_names = symbols
    given = signatures().replace({"gene": name})
    expected = table_of(given, adata.copy())
    ids = given.assign(gene=given["gene"].map(ensembl))
    assert_same(table_of(ids, adata.copy()), expected)
    adata.var_names = [ensembl[s] + ".7" for s in symbols]
    # The evidence is named by symbol, whatever the data are named by.
    assert_same(table_of(given, adata.copy()), expected)
    hits = host_factors().replace({"gene": name})
    pairs = targets().replace({"gene": name})
    pairs["gene"] = pairs["gene"].map(lambda g: ensembl.get(g, g))
    arguments = {"targets": pairs, "host_factors": hits}
    assert "blocker" in set(table_of(None, adata, **arguments)["compound"])


def test_groups() -> None:
    everything = table_of(signatures())
    pooled = table_of(signatures(), groupby=None)
    assert set(pooled["group"]) == {"all"}
    first = profiles()[:1].copy()
    alone = table_of(signatures(), first)
    assert results_of(alone).index[0] == "Reverser"
    assert set(everything["group"]) == {"A", "B"}
    gaps = profiles()
    gaps.obs.loc["p3", "virus"] = np.nan
    assert set(table_of(signatures(), gaps)["group"]) == {"A"}


def test_genes_that_few_profiles_measure_do_not_count() -> None:
    holes = profiles()
    expected = results_of(table_of(signatures(), holes.copy()))
    holes.X[1:, 390:] = np.nan  # one of three profiles of A measures these
    holes.X[0, 390:] = 50.0
    found = results_of(table_of(signatures(), holes))
    assert found.loc["Reverser", "reversal"] == pytest.approx(
        expected.loc["Reverser", "reversal"], abs=0.02
    )
    named = "|".join(found["reversal_genes"]).split("|")
    assert not {f"GENE{i}" for i in range(390, 400)} & set(named)


def test_nothing_moves_and_everything_is_tied() -> None:
    flat = profiles()
    flat.X[:] = 0
    level = host_factors().assign(score=1.0)
    found = table_of(signatures(100), flat, targets=targets(), host_factors=level)
    assert (found["score"] == 0).all()
    assert (found["p_value"] == 1).all() and (found["fdr"] == 1).all()
    first = found[found["group"] == "A"]
    assert first["compound"].str.casefold().is_monotonic_increasing
    assert (first["reversal_genes"] == "").all()


def test_a_flat_profile_in_the_model(model: CellPulse, contrasts: ad.AnnData) -> None:
    contrasts.X[:] = 0
    genes = contrasts.var_names[:20]
    table = pd.DataFrame({"compound": "a", "gene": genes, "direction": [1, -1] * 10})
    cfm.tl.screen_drugs(contrasts, table, model=model, n_permutations=20)
    found = results(contrasts, "virus_A")
    assert found.loc["a", ["reversal", "embedding_reversal", "score"]].tolist() == [0, 0, 0]


def failing() -> dict[str, tuple[dict, type, str]]:
    """Calls that fail: arguments, error, words of its message."""
    table, pairs = signatures(), targets()
    hits = {"signatures": None, "targets": pairs}
    unmeasured = profiles()
    unmeasured.X[3] = np.nan
    counts = profiles()
    counts.X[:] = np.arange(400) + 1
    holding = profiles()
    holding.uns["host_factors"] = {"params": {}, "results": host_factors(("C",))}
    both_ways = pd.concat([table.assign(direction=side) for side in ("up", "down")])
    one_missing = table.assign(direction=[None, *["up"] * (len(table) - 1)])
    nan_scores = host_factors().assign(score=np.nan)
    infinite_values = as_values(table).assign(value=np.inf)
    # fmt: off
    return {
        "neither": ({"signatures": None}, ValueError, "Found neither signatures= nor targets="),
        "host factors alone": ({"host_factors": host_factors()}, ValueError, "only used with"),
        "no host factors": (hits, KeyError, r"run cfm\.tl\.host_factors\(adata, …\) first"),
        "other groups": (hits | {"adata": holding}, ValueError, r"are of \['C'\], and none is"),
        "kind of host factors": (hits | {"host_factors": [1]}, TypeError, "is a list"),
        "no score": (hits | {"host_factors": pairs}, KeyError, r"lack \['score'\]"),
        "nan scores": (hits | {"host_factors": nan_scores}, ValueError, "no gene with a finite"),
        "no target scored": (hits | {"host_factors": pd.Series({"ISG15": 1.0})}, ValueError,
                             "None of the 35 targets"),
        "kind of targets": ({"targets": ["a"]}, TypeError, "targets= is a list"),
        "no compound": ({"targets": pairs.drop(columns="drug")}, KeyError,
                        "no column 'compound' or 'drug'"),
        "empty targets": ({"targets": pairs[:0]}, ValueError, "no row with a compound"),
        "kind of signatures": ({"signatures": 3}, TypeError, "signatures= is a int"),
        "empty": ({"signatures": table[:0]}, ValueError, "no gene that goes up or down"),
        "no gene": ({"signatures": table.drop(columns="gene")}, KeyError, "no column 'gene'"),
        "no direction": ({"signatures": table.drop(columns="direction")}, KeyError,
                         "neither a column 'direction'"),
        "odd direction": ({"signatures": table.assign(direction="sideways")}, ValueError,
                          r"the directions \['sideways'\]"),
        "missing direction": ({"signatures": one_missing}, ValueError,
                              "1 rows of signatures= have no direction"),
        "infinite value": ({"signatures": infinite_values}, ValueError, "holds infinite"),
        "both ways": ({"signatures": both_ways}, ValueError, "in the up and in the down list"),
        "no overlap": ({"signatures": table.assign(gene="X" + table["gene"])}, ValueError,
                       "None of the .* genes of the signatures"),
        "unmeasured group": ({"adata": unmeasured}, ValueError, "Group 'B' measures none"),
        "counts": ({"adata": counts}, ValueError, "looks like expression or counts"),
        "permutations": ({"n_permutations": 0}, ValueError, "n_permutations=0"),
        "genes of the model": ({"model": "cellpulse-mini"}, ValueError, "of the model's"),
        "no reading": ({"readings": ()}, ValueError, "expected any of cosine, connectivity, model"),
        "reading": ({"readings": "cos"}, ValueError, "readings='cos', expected any of"),
        "reading of no model": ({"readings": ("cosine", "model")}, ValueError, "model= is None"),
    }
    # fmt: on


@pytest.mark.parametrize("case", list(failing()))
def test_calls_that_fail_leave_the_data_alone(case: str) -> None:
    arguments, error, words = failing()[case]
    arguments = {"adata": profiles(), "signatures": signatures(), "model": None} | arguments
    before = arguments["adata"].copy()
    with pytest.raises(error, match=words):
        cfm.tl.screen_drugs(**arguments)
    assert_unchanged(arguments["adata"], before)
