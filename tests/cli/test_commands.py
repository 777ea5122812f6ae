"""What all commands share: usage, statuses, signals, warnings and the log."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import cfm
from cfm import hub
from cfm._cli import main
from cfm._cli._log import RunLog
from cfm._cli._run_tool import is_first_process
from cfm._cli._status import one_line, status_of


def refuse_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let any tool end with an error."""

    def compute(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("cfm._cli._run_tool.compute", compute)


@pytest.fixture
def call(tmp_path: Path) -> list[str]:
    """A command whose input is there."""
    (tmp_path / "in.h5ad").write_bytes(b"")
    log = ["--log", str(tmp_path / "log.jsonl")]
    return ["embed", str(tmp_path / "in.h5ad"), "-o", str(tmp_path / "out.h5ad"), *log]


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_usage_errors_exit_with_two(capsys):
    for arguments in ([], ["demo", "--mode", "pairs"], ["nothing"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "usage: cfm" in capsys.readouterr().err


def test_version_is_quick_and_needs_no_torch():
    code = (
        "import sys\nfrom cfm._cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'scanpy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"cfm {cfm.__version__}\n"


def test_models_lists_what_is_there(capsys):
    assert main(["models"]) == 0
    told = capsys.readouterr().out
    table = hub.list_checkpoints()
    assert all(name in told for name in table.index)
    assert all(sha in told for sha in table["sha256"])


def test_every_command_shows_examples_and_statuses(capsys):
    for command in ("embed", "predict-virus", "impute", "cell-codes", "embed-donors"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        told = capsys.readouterr().out
        assert f"  cfm {command} " in told
        assert "  75 " in told


# --- statuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), 2),
        (KeyError("no"), 2),
        (FileNotFoundError("no"), 2),
        (FileExistsError("no"), 2),
        (PermissionError(errno.EACCES, "no"), 2),
        (OSError(errno.ENOSPC, "full"), 75),
        (OSError(errno.EDQUOT, "full"), 75),
        (OSError("Can't write (errno = 28, error message = 'No space left on device')"), 75),
        (RuntimeError("Set slist enabled failed (file write failed: errno = 28, error"), 75),
        (BlockingIOError(errno.EAGAIN, "locked"), 75),
        (MemoryError(), 75),
        (ConnectionError("offline"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_statuses(error, status, call, tmp_path, monkeypatch, capsys):
    refuse_with(monkeypatch, error)
    assert main(call) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("cfm: ")
    end = events(tmp_path)[-1]
    assert end["event"] == "end"
    assert end["exit_status"] == status
    assert end["status"] != "ok"
    assert end["rows"] is None
    assert end["peak_rss_mib"] > 10


def test_what_should_not_happen_shows_its_traceback(call, tmp_path, monkeypatch):
    refuse_with(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(call)
    assert events(tmp_path)[-1]["exit_status"] == 1


def test_debug_raises(call, monkeypatch):
    refuse_with(monkeypatch, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        main([*call, "--debug"])


def test_memory_of_a_gpu_may_be_free_later():
    import torch

    assert status_of(torch.OutOfMemoryError("CUDA out of memory")) == 75


def test_sigterm_is_told_from_ctrl_c_and_its_handler_goes(call, tmp_path, monkeypatch, capsys):
    def compute(*arguments: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as error:  # as tools do
            os.kill(os.getpid(), signal.SIGTERM)  # schedulers send it more than once
            error.add_note("What is done is kept in the folder.")
            raise

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("cfm._cli._run_tool.compute", compute)
    assert main(call) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    told = capsys.readouterr().err
    assert told == "cfm: stopped by SIGTERM; What is done is kept in the folder.\n"
    assert events(tmp_path)[-1]["status"] == "terminated"


def test_errors_name_options_not_arguments():
    assert one_line(ValueError("pass\n overwrite=True")) == "pass --overwrite"
    assert one_line(KeyError("no column 'x'")) == "no column 'x'"
    assert one_line(OSError(errno.ENOSPC, "full: a")) == "full: a"
    assert one_line(MemoryError()) == "MemoryError"


# --- log and warnings -----------------------------------------------------------------------


def test_log_has_what_the_package_reports(call, tmp_path, monkeypatch, capsys):
    def compute(*arguments: object) -> argparse.Namespace:
        fields = {"event": "chunk", "done": 1, "total": 2, "rows": 5, "seconds": 0.5}
        logging.getLogger("cfm.tl._chunks").info("Chunk 1 of 2.", extra=fields)
        logging.getLogger("cfm.tl").info("Something else.")
        warnings.warn("Few genes.", UserWarning, stacklevel=1)
        warnings.warn("Of others.", FutureWarning, stacklevel=1)
        return argparse.Namespace(n_obs=10)

    monkeypatch.setattr("cfm._cli._run_tool.compute", compute)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(call) == 0
    start, chunk, message, *warned, written, end = events(tmp_path)
    assert start["event"] == "start"
    assert start["version"] == cfm.__version__
    assert start["command"] == "embed"
    assert start["arguments"]["model"] == "cellpulse-mini"
    assert start["inputs"] == [{"path": call[1], "bytes": 0}]
    assert {k: chunk[k] for k in ("event", "done", "total", "rows")} == {
        "event": "chunk", "done": 1, "total": 2, "rows": 5,
    }  # fmt: skip
    assert message["event"] == "message"
    assert message["message"] == "Something else."
    assert [w["category"] for w in warned] == ["UserWarning", "FutureWarning"]
    assert written["rows"] == end["rows"] == 10
    assert end["status"] == "ok"
    assert all(line["time"].endswith("+00:00") for line in (start, end))
    told = capsys.readouterr()
    assert "cfm: warning: Few genes." in told.err
    assert "Of others" not in told.err
    assert "Chunk 1 of 2." in told.err
    assert told.out == f"{call[3]}: 10 rows\n"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([*call, "--quiet"]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "Chunk" not in told.err
    assert len([e for e in events(tmp_path) if e["event"] == "start"]) == 2  # appended


def test_a_log_that_cannot_be_written(call, tmp_path, capsys):
    assert main([*call[:-1], str(tmp_path / "none" / "log")]) == 2
    assert "the log cannot be written" in capsys.readouterr().err


def test_a_log_on_a_full_disk_is_given_up(capsys):
    log = RunLog(Path("/dev/full"))
    log.event("start")
    log.event("again")
    log.end(0, None)
    assert capsys.readouterr().err.count("the log is given up") == 1


@pytest.mark.parametrize(
    ("options", "environment", "first"),
    [
        ({}, {"LOCAL_RANK": "1", "SLURM_PROCID": "3"}, True),
        ({"devices": 2}, {}, True),
        ({"devices": 2}, {"LOCAL_RANK": "1"}, False),
        ({"devices": 2, "num_nodes": 2}, {"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"devices": "auto"}, {"RANK": "2"}, False),
        ({"num_nodes": 2}, {"SLURM_PROCID": "1"}, False),
    ],
)
def test_one_process_writes_and_speaks(options, environment, first, monkeypatch):
    for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process(argparse.Namespace(**options)) is first


def test_what_is_refused_or_skipped_is_quick(tmp_path):
    (tmp_path / "out.h5ad").write_text("")
    code = (
        "import sys\nfrom cfm._cli import main\n"
        "call = ['embed', 'in.h5ad', '-o', 'out.h5ad', '--quiet']\n"
        "assert main(call) == 2\nopen('in.h5ad', 'w').close()\n"
        "assert main([*call, '--skip-existing']) == 0\n"
        "assert 'torch' not in sys.modules and 'scanpy' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("cfm: error: in.h5ad does not exist")
