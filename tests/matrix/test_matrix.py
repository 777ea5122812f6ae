"""Every public tool over every kind of input: the documented result, or a refusal and no trace.

``docs/guide/inputs.md`` says the same in words.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cfm
from tests.matrix import _kinds, _outcome
from tests.matrix._tools import FIRST, MODELS, OWN, REST, SAME, TABLE, Tool

TOOLS = {tool.name: tool for tool in (*TABLE, *MODELS)}
IN_TABLE = [tool.name for tool in TABLE]
OF_MUDATA = [tool.name for tool in TABLE if tool.mudata]
#: These would rewrite the file of backed data.
REWRITES = {"pp.map_genes": r"adata is backed, and merging genes would rewrite its file"}


@pytest.fixture(autouse=True)
def _other_tests_look_at_our_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _untouched(tool: Tool, data: Any) -> dict[str, np.ndarray]:
    """What may not change; models register data, which leaves notes of scvi-tools."""
    return _outcome.flat(data, skip=tool in MODELS)


def run(tool: Tool, data: Any, **kwargs: Any) -> dict[str, np.ndarray]:
    """Return what a call made; what it gives back leaves the data as they were."""
    before = _outcome.flat(data, skip=True)
    made = tool.call(data, **kwargs)
    after = _outcome.flat(data, skip=True)
    if made is None:
        return _outcome.changed(after, before)
    _outcome.assert_untouched(after, before)
    return _outcome.flat(made, skip=True)


def refused(tool: Tool, data: Any, error: type[Exception], words: str, **kwargs: Any) -> None:
    """Check that a call is refused by one sentence, and that data are as they were."""
    before = _untouched(tool, data)
    with pytest.raises(error) as caught:
        tool.call(data, **kwargs)
    said = str(caught.value)
    assert type(caught.value) is error, repr(caught.value)
    assert re.search(words, said), said
    assert said.rstrip("'\"").endswith((".", "]")), said
    _outcome.assert_untouched(_untouched(tool, data), before)


@cache
def expected(name: str) -> dict[str, np.ndarray]:
    """What the tool makes of good data: dense, float32, in memory."""
    return run(TOOLS[name], TOOLS[name].make())


@pytest.mark.parametrize("room", [cfm.tl, cfm.pp])
def test_every_public_tool_is_in_the_table(room: Any) -> None:
    named = {name.split(" ")[0] for name in IN_TABLE}
    assert {f"{room.__name__[4:]}.{name}" for name in room.__all__} <= named


def test_every_model_is_in_the_table() -> None:
    models = [getattr(cfm.models, name) for name in cfm.models.__all__]
    with_data = {m.__name__ for m in models if inspect.isclass(m) and "setup_anndata" in dir(m)}
    found = {tool.name.split(".")[0] for tool in MODELS}
    assert with_data - {"PretrainedModel"} == found


@pytest.mark.parametrize("name", TOOLS)
def test_the_table_says_what_becomes_of_all_that_is_bad(name: str) -> None:
    assert set(TOOLS[name].bad) == set(_kinds.BAD)
    assert name.startswith(("get.", "VirtualInstrument")) or expected(name)


@pytest.mark.parametrize("kind", _kinds.STORAGES)
@pytest.mark.parametrize("name", TOOLS)
def test_storages_give_what_memory_gives(name: str, kind: str, tmp_path: Path) -> None:
    tool = TOOLS[name]
    data = _kinds.in_storage(tool.make(), kind, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if name in REWRITES and kind.startswith("backed"):
        refused(tool, data, ValueError, REWRITES[name])
    elif tool in MODELS and kind == "view":
        refused(tool, data, ValueError, r"adata is a view .* pass a copy")
    else:
        _outcome.assert_alike(run(tool, data), expected(name))
    assert {path: path.read_bytes() for path in files} == files


def _whole(tool: Tool, least: float) -> Any:
    """Data of whole numbers of at least ``least``, which every dtype holds."""
    return _kinds.with_values(tool.make(), lambda x: np.floor(x).clip(least))


@cache
def _of_whole(name: str, least: float) -> dict[str, np.ndarray] | str:
    """What the tool makes of them as float32, or the words of its refusal."""
    try:
        return run(TOOLS[name], _whole(TOOLS[name], least))
    except ValueError as error:  # whole numbers are no log TPM
        return re.escape(str(error))


@pytest.mark.parametrize("dtype", _kinds.DTYPES)
@pytest.mark.parametrize("name", TOOLS)
def test_dtypes_give_what_float32_gives(name: str, dtype: str) -> None:
    tool = TOOLS[name]
    least = 0 if dtype.startswith("u") else -np.inf
    other = _kinds.with_values(_whole(tool, least), lambda x: x.astype(dtype))
    made = _of_whole(name, least)
    if isinstance(made, str):
        refused(tool, other, ValueError, made)
    else:
        _outcome.assert_alike(run(tool, other), made)


def _by_rows(fields: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """Keep what there is a value of for each row, of what a user reads as a result."""
    return {
        name: value
        for name, value in fields.items()
        if re.match(r"obs/|obsm/|/latent|X$", name)
        and len(value) == n
        and not name.endswith("/index")
    }


@pytest.mark.parametrize("kind", _kinds.BAD)
@pytest.mark.parametrize("name", TOOLS)
def test_what_becomes_of_bad_data(name: str, kind: str, tmp_path: Path) -> None:
    tool, outcome = TOOLS[name], TOOLS[name].bad[kind]
    data = _kinds.BAD[kind](tool.make())
    if outcome not in (SAME, REST, FIRST, OWN):
        error, words = outcome.split(": ", 1)
        refused(tool, data, {"ValueError": ValueError, "KeyError": KeyError}[error], words)
        return
    good, found = expected(name), run(tool, data)
    if outcome == SAME:
        _outcome.assert_alike(found, good)
        return
    assert found
    if outcome in (REST, FIRST):
        n = len(
            next(iter(_by_rows(good, len(good.get("obs_names", np.arange(10**6)))).values()), ())
        )
        n = n or tool.make().n_obs
        rows = slice(1, None) if outcome == REST else slice(0, 1)
        kept = {k: v[rows] for k, v in _by_rows(good, n).items()}
        new = {k: v[rows] for k, v in found.items() if k in kept}
        assert kept
        _outcome.assert_alike(new, kept)


@pytest.mark.parametrize("name", TOOLS)
def test_what_does_not_exist_is_a_key_error(name: str) -> None:
    tool = TOOLS[name]
    for argument in tool.missing:
        kind = ValueError if (name, argument) in ODD else KeyError
        refused(tool, tool.make(), kind, "nowhere", **{argument: "nowhere"})


#: Told apart by value: a level that does not exist, and what only goes with other units.
ODD = {
    ("pp.contrasts", "control"),
    *((name, "total_counts") for name in TOOLS if "total_counts" in TOOLS[name].missing),
}


@pytest.mark.parametrize("name", OF_MUDATA)
def test_a_modality_gives_what_it_gives_alone(name: str) -> None:
    tool = TOOLS[name]
    data = _kinds.in_mudata(tool.make())
    other = _outcome.flat(data["prot"])
    _outcome.assert_alike(run(tool, data["rna"]), expected(name))
    _outcome.assert_untouched(_outcome.flat(data["prot"]), other)


@pytest.mark.parametrize("name", TOOLS)
def test_a_mudata_is_refused(name: str) -> None:
    data = _kinds.in_mudata(TOOLS[name].make())
    with pytest.raises(TypeError, match=r"Found a MuData; .* one modality: mdata\['rna'\]"):
        TOOLS[name].call(data)


@pytest.mark.parametrize("name", TOOLS)
def test_paths_where_they_are_taken(name: str, tmp_path: Path) -> None:
    tool = TOOLS[name]
    path = _kinds.in_file(tool.make(), tmp_path)
    held = path.read_bytes()
    if tool.paths:
        found = _outcome.flat(tool.call(path), skip=True)
        _outcome.assert_alike({k: found[k] for k in expected(name)}, expected(name))
    else:
        with pytest.raises(TypeError, match=r"expected an AnnData"):
            tool.call(path)
    assert path.read_bytes() == held


@pytest.mark.parametrize("name", [tool.name for tool in TABLE if tool.copy])
def test_a_copy_is_changed_and_the_data_are_not(name: str) -> None:
    tool = TOOLS[name]
    data = tool.make()
    made = tool.call(data, copy=True)
    assert type(made) is type(data)
    before = _outcome.flat(tool.make(), skip=True)
    _outcome.assert_untouched(_outcome.flat(data, skip=True), before)
    _outcome.assert_alike(_outcome.changed(_outcome.flat(made, skip=True), before), expected(name))


@pytest.mark.parametrize(
    "name",  # one adds to the result of another tool, and has none of its own
    [tool.name for tool in TABLE if tool.copy and tool.name != "tl.annotate_drugs"],
)
def test_results_are_replaced_and_those_of_others_with_a_warning(name: str) -> None:
    tool = TOOLS[name]
    data = tool.make()
    run(tool, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*replaced")
        tool.call(data)  # its own
    kept = _outcome.flat(data, skip=True)
    _outcome.assert_alike({k: kept[k] for k in expected(name)}, expected(name))
    for key in {k.split("/")[1] for k in expected(name) if k.startswith("uns/")}:
        data.uns[key] = "of others"
    with pytest.warns(UserWarning, match=r"was not written by this .* and is replaced"):
        tool.call(data)
    after = _outcome.flat(data, skip=True)
    _outcome.assert_alike({k: after[k] for k in expected(name)}, expected(name))


@pytest.mark.parametrize("name", [n for n in TOOLS if "layer" in TOOLS[n].missing])
def test_a_layer_is_read_in_place_of_x(name: str) -> None:
    tool = TOOLS[name]
    data = tool.make()
    data.X = np.full_like(data.X, np.nan)
    found = run(tool, data, layer="same")
    aside = re.compile(r"params/layer|^X$|^layers/same$")
    good = {k: v for k, v in expected(name).items() if not aside.search(k)}
    _outcome.assert_alike({k: found[k] for k in good}, good)


#: How the guide calls what becomes of bad data.
WORDS = {
    "no effect": {SAME},
    "that row only": {REST},
    "names stay": {REST},
    "as among others": {FIRST},
    "its own result": {OWN},
}
#: Which tool each column of the guide is about.
COLUMNS = [
    "tl.embed (CellPulse)",
    "tl.embed (BulkFormer)",
    "tl.embed (CellVQ)",
    "pp.contrasts",
    "tl.embed_donors (representation)",
]


def test_the_guide_says_what_the_table_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guide" / "inputs.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    told = {row[0]: row[1:] for row in rows if len(row) == 1 + len(COLUMNS)}
    assert set(_kinds.BAD) <= set(told)
    for kind in _kinds.BAD:
        for name, word in zip(COLUMNS, told[kind], strict=True):
            outcome = TOOLS[name].bad[kind]
            is_refused = outcome not in (SAME, REST, FIRST, OWN)
            assert (word == "refused") if is_refused else (outcome in WORDS[word]), (kind, name)
    assert f"All {len(TABLE)} ways to call a tool" in page
