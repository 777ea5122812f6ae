"""Folders of unfinished results: made here or left alone; outputs that take only a free name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cfm.data import _result_store
from cfm.data._result_store import ResultStore, check_output, put_in_place

RUN = {"tool": "embed", "batch_size": 64}


@pytest.fixture(params=[".h5ad", ".zarr"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"out{request.param}"


def _make(path: Path, text: str = "made") -> Path:
    """What results look like: a file, or a folder of zarr."""
    if path.suffix == ".zarr":
        path.mkdir()
        (path / "zarr.json").write_text(text)
    else:
        path.write_text(text)
    return path


def _text(path: Path) -> str:
    return (path / "zarr.json" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["link", "folder", "folder with a record", "linked mark", "file"])
def test_what_was_not_made_here_is_left_alone(tmp_path: Path, kind: str, overwrite: bool) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (mine / "00000000.npz").write_text("numbers")
    store = ResultStore(tmp_path / "x.h5ad")
    if kind == "link":
        store.folder.symlink_to(mine)
    elif kind == "file":
        store.folder.write_text("mine")
    else:
        mine = mine.rename(store.folder)
    if kind == "folder with a record":
        (mine / "run.json").write_text("{}")
    if kind == "linked mark":
        (tmp_path / "other").touch()
        (mine / "cfm.lock").symlink_to(tmp_path / "other")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match=r"is left as it is; move it, or choose another"):
        store.begin(RUN, overwrite=overwrite)
    store.discard()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert store.folder.is_symlink() == (kind == "link")


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    store = ResultStore(tmp_path / "x.h5ad")
    store.begin(RUN)
    (store.folder / "link").symlink_to(tmp_path / "mine")
    store.release()
    store.begin(RUN | {"batch_size": 8})  # no chunk is there
    assert not (store.folder / "link").is_symlink()
    (store.folder / "link").symlink_to(tmp_path / "mine")
    store.discard()
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_folder_of_a_run_that_made_nothing_does_not_block(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "x.h5ad")
    store.folder.mkdir()  # killed before the mark
    for run in (RUN, RUN | {"batch_size": 8}):
        store.begin(run)
        store.release()


def test_a_removed_lock_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(tmp_path / "x.h5ad")
    store.begin(RUN)
    store.release()
    fstat = os.fstat

    def removed(number: int) -> Any:
        (store.folder / "cfm.lock").unlink(missing_ok=True)
        return fstat(number)

    monkeypatch.setattr(_result_store.os, "fstat", removed)
    with pytest.raises(BlockingIOError, match="Another process"):
        store.begin(RUN)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("there", ["same", "other", "link", "empty"])
def test_a_name_that_is_taken_stays(
    output: Path, there: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(_result_store.os, "link", refuse)
    made = _make(output.with_name(f"made{output.suffix}"))
    if there == "same":
        _make(output, "theirs")
    elif there == "other":
        output.write_text("theirs") if output.suffix == ".zarr" else output.mkdir()
    elif there == "link":
        output.symlink_to(output.with_name("none"))
    else:
        output.mkdir()
    kind = os.lstat(output).st_mode
    with pytest.raises(FileExistsError, match=r"appeared during the run .* kept in .*made\."):
        put_in_place(made, output)
    assert os.lstat(output).st_mode == kind
    assert there != "same" or _text(output) == "theirs"
    assert _text(made) == "made"


@pytest.mark.parametrize("links", [True, False])
def test_a_free_name_is_taken(output: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(_result_store.os, "link", refuse)
    put_in_place(_make(output.with_name(f"made{output.suffix}")), output)
    assert _text(output) == "made"
    assert [p.name for p in output.parent.iterdir()] == [output.name]


def test_a_link_is_replaced_and_not_what_it_leads_to(output: Path) -> None:
    theirs = _make(output.with_name(f"theirs{output.suffix}"), "theirs")
    output.symlink_to(theirs)
    put_in_place(_make(output.with_name(f"made{output.suffix}")), output, overwrite=True)
    assert not output.is_symlink()
    assert (_text(output), _text(theirs)) == ("made", "theirs")
    assert len(list(output.parent.iterdir())) == 2


def test_a_link_to_nothing_is_an_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "out.h5ad").symlink_to(tmp_path / "none.h5ad")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        check_output(tmp_path / "out.h5ad")
