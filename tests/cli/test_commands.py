"""What all commands share: usage, statuses, signals, warnings and the log."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import cfm
from cfm import hub
from cfm._cli import main
from cfm._cli._ending import RunLog, one_line, status_of
from tests.cli._runs import events

TOOLS = ["calls", "embed", "codes", "impute", "donors", "search", "tpm"]


def end_with(monkeypatch: pytest.MonkeyPatch, result: BaseException | object) -> None:
    """Let any tool return something, or end with an error."""

    def compute(*arguments: object) -> object:
        if isinstance(result, BaseException):
            raise result
        return result() if callable(result) else result

    monkeypatch.setattr("cfm._cli._run._compute", compute)


@pytest.fixture
def call(tmp_path: Path) -> list[str]:
    """A command whose input is there."""
    (tmp_path / "in.h5ad").write_bytes(b"")
    log = ["--log", str(tmp_path / "log.jsonl")]
    return ["embed", str(tmp_path / "in.h5ad"), "-o", str(tmp_path / "out.h5ad"), *log]


def test_usage_errors_exit_with_two(capsys):
    for arguments in ([], ["demo", "--mode", "pairs"], ["nothing"], ["impute", "a", "-o", "b"]):
        assert main(arguments) == 2
    assert "Usage: cfm" in capsys.readouterr().err


def test_version_and_refusals_are_quick(tmp_path):
    """They load neither torch nor scanpy; the help not even pandas."""
    (tmp_path / "out.h5ad").write_text("")
    code = (
        "import sys\nfrom cfm._cli import main\n"
        "assert main(['--version']) == 0 and main(['embed', '--help']) == 0\n"
        "assert 'pandas' not in sys.modules\n"
        "call = ['embed', 'in.h5ad', '-o', 'out.h5ad', '--quiet']\n"
        "assert main(call) == 2\nopen('in.h5ad', 'w').close()\n"
        "assert main([*call, '--skip-existing']) == 0\n"
        "assert 'torch' not in sys.modules and 'scanpy' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cfm {cfm.__version__}\n")
    assert done.stderr.startswith("cfm: error: in.h5ad does not exist")


def test_models_lists_what_is_there(capsys):
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    table = hub.list_checkpoints()
    assert all(name in shown for name in table.index)
    assert all(sha in shown for sha in table["sha256"])


def test_every_command_shows_examples_and_statuses(capsys):
    for command in TOOLS:
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"  cfm {command} " in shown
        assert "  75 " in shown


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), 2),
        (KeyError("no"), 2),
        (FileNotFoundError("no"), 2),
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
    end_with(monkeypatch, error)
    assert main(call) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("cfm: ")
    end = events(tmp_path / "log.jsonl")[-1]
    assert (end["event"], end["exit_status"], end["rows"]) == ("end", status, None)
    assert end["status"] != "ok"
    assert end["peak_rss_mib"] > 10


def test_what_should_not_happen_shows_its_traceback(call, tmp_path, monkeypatch):
    end_with(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(call)
    assert events(tmp_path / "log.jsonl")[-1]["exit_status"] == 1
    end_with(monkeypatch, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        main([*call, "--debug"])


def test_memory_of_a_gpu_may_be_free_later():
    import torch

    assert status_of(torch.OutOfMemoryError("CUDA out of memory")) == 75


def test_sigterm_differs_from_ctrl_c_and_its_handler_goes(call, tmp_path, monkeypatch, capsys):
    def stopped() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as error:  # as tools do
            os.kill(os.getpid(), signal.SIGTERM)  # schedulers send it more than once
            error.add_note("Finished chunks are in the folder.")
            raise

    before = signal.getsignal(signal.SIGTERM)
    end_with(monkeypatch, stopped)
    assert main(call) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    shown = capsys.readouterr().err
    assert shown == "cfm: stopped by SIGTERM; Finished chunks are in the folder.\n"
    assert events(tmp_path / "log.jsonl")[-1]["status"] == "terminated"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("pass\n overwrite=True"), "pass --overwrite"),
        (ValueError("choose another output="), "choose another OUT"),
        (KeyError("no layer='raw', see layer="), "no --layer raw, see --layer"),
        (ValueError("control=3 and donor_key='a b'"), "--control 3 and --donor-key a b"),
        (ValueError("unknown copy=True"), "unknown copy=True"),  # no option
        (ValueError("run cfm.tl.embed(adata, uce) first"), "run cfm embed first"),
        (ValueError("see cfm.pp.contrasts"), "see cfm.pp.contrasts"),
        (OSError(errno.ENOSPC, "full: a"), "full: a"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_errors_name_options_not_arguments(error, expected):
    assert one_line(error, ["layer", "overwrite", "control", "donor_key"]) == expected


def test_log_has_what_the_package_reports(call, tmp_path, monkeypatch, capsys):
    def compute() -> SimpleNamespace:
        fields = {"event": "chunk", "done": 1, "total": 2, "rows": 5, "seconds": 0.5}
        logging.getLogger("cfm.tl._chunks").info("Chunk 1 of 2.", extra=fields)
        logging.getLogger("cfm.tl").info("Something else.")
        warnings.warn("Few genes.", UserWarning, stacklevel=1)
        warnings.warn("Of others.", FutureWarning, stacklevel=1)
        return SimpleNamespace(n_obs=10)

    end_with(monkeypatch, compute)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(call) == 0
    log = tmp_path / "log.jsonl"
    start, chunk, message, *warned, written = [e for e in events(log) if e.get("message") != ""][:6]
    assert (start["event"], start["command"]) == ("start", "embed")
    assert start["version"] == cfm.__version__
    assert start["arguments"]["model"] == "cellpulse-mini"
    assert start["inputs"] == [{"path": call[1], "bytes": 0}]
    assert [chunk[k] for k in ("event", "done", "total", "rows")] == ["chunk", 1, 2, 5]
    assert (message["event"], message["message"]) == ("message", "Something else.")
    assert [w["category"] for w in warned] == ["UserWarning", "FutureWarning"]
    end = events(log)[-1]
    assert written["rows"] == end["rows"] == 10
    assert end["status"] == "ok"
    assert all(line["time"].endswith("+00:00") for line in (start, end))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "cfm: warning: Few genes." in shown.err
    assert "Of others" not in shown.err
    assert "Chunk 1 of 2." in shown.err
    assert f"{call[3]}: 10 rows" in shown.err
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([*call, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Chunk" not in shown.err
    assert len([e for e in events(log) if e["event"] == "start"]) == 2  # appended


def test_a_log_that_cannot_be_written(call, tmp_path, capsys):
    assert main([*call[:-1], str(tmp_path / "none" / "log")]) == 2
    assert "the log cannot be written" in capsys.readouterr().err
    log = RunLog(Path("/dev/full"))
    log.event("start")
    log.end(0, None, "")
    assert capsys.readouterr().err.count("the log is given up") == 1
