"""A training that is stopped anywhere ends with the weights of one that was not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger

from cfm.models import _resume
from cfm.models._resume import CheckpointFiles
from tests._trainings import CASES, StopAfter, StoppedError, state

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sum in one order here and in processes of their own, whatever earlier tests have set."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def uninterrupted(name: str) -> dict[str, torch.Tensor]:
    model = CASES[name].make()
    CASES[name].train(model)
    return state(model)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [k for k in found if not torch.equal(found[k], expected[k])]
    assert not different


def stop(name: str, folder: Path, step: int, every: int = 1, **kwargs: Any) -> Any:
    """Train until a step, of which no state is kept any more."""
    model = CASES[name].make()
    with pytest.raises(StoppedError):
        CASES[name].train(
            model,
            checkpoint_dir=folder,
            checkpoint_every=every,
            callbacks=[StopAfter(step)],
            **kwargs,
        )
    return model


def go_on(name: str, folder: Path, every: int = 1, **kwargs: Any) -> Any:
    model = CASES[name].make()
    CASES[name].train(model, checkpoint_dir=folder, checkpoint_every=every, **kwargs)
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_training_that_was_stopped_ends_where_it_would_have_ended(
    name: str, tmp_path: Path
) -> None:
    n_steps, n_batches = CASES[name].n_steps, CASES[name].n_batches
    # after the first step, after a state in the middle of an epoch, after the last batch of an
    # epoch (its state was not taken yet) and after the first of the next (it was), near the end
    for step in sorted({1, n_batches // 2 + 1, n_batches, n_batches + 1, n_steps - 1}):
        stop(name, tmp_path, step)
    model = go_on(name, tmp_path)
    assert model.trainer.global_step == n_steps
    assert_same(state(model), uninterrupted(name))


@pytest.mark.parametrize("every", [2, 3, 5])
def test_states_are_kept_now_and_then(every: int, tmp_path: Path) -> None:
    stop("bulkformer", tmp_path, 6, every=every)
    names = sorted(p.name for p in tmp_path.glob("step-*"))
    # that of step 3, the end of an epoch, is taken when the next epoch has begun
    expected = {2: [2, 4], 3: [3], 5: [5]}[every]
    assert names == [f"step-{i:09d}.ckpt" for i in expected]
    model = go_on("bulkformer", tmp_path, every=every)
    assert_same(state(model), uninterrupted("bulkformer"))
    assert len(list(tmp_path.glob("step-*"))) == 2
    assert (tmp_path / "step-000000007.ckpt").exists()


def test_a_finished_training_returns_at_once(tmp_path: Path) -> None:
    go_on("lingshu", tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    model = go_on("lingshu", tmp_path, callbacks=[NoBatch()])
    assert_same(state(model), uninterrupted("lingshu"))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    assert model.is_trained_
    assert model.provenance["max_steps"] == CASES["lingshu"].n_steps


class NoBatch(pl.Callback):
    def on_train_batch_start(self, *args: object) -> None:
        raise AssertionError("A finished training made a step.")


class Enough(pl.Callback):
    """Ends a training early, as early stopping does, at the end of an epoch."""

    def on_validation_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.current_epoch == 0:
            trainer.should_stop = True


def test_a_training_that_was_ended_early_is_finished(tmp_path: Path) -> None:
    first = go_on("bulkformer", tmp_path, callbacks=[Enough()])
    assert first.trainer.global_step == 3
    again = go_on("bulkformer", tmp_path, callbacks=[Enough(), NoBatch()])
    assert_same(state(again), state(first))


def test_curves_go_on_after_earlier_training(tmp_path: Path) -> None:
    train, keep = CASES["cellvq"].train, {"checkpoint_dir": tmp_path, "checkpoint_every": 1}

    def once() -> Any:
        model = CASES["cellvq"].make()
        train(model)
        return model

    whole, stopped, resumed = once(), once(), once()
    train(whole, seed=1)
    with pytest.raises(StoppedError):
        train(stopped, seed=1, callbacks=[StopAfter(5)], **keep)
    train(resumed, seed=1, **keep)
    assert_same(state(resumed), state(whole))
    for name, curve in whole.history.items():
        assert (curve.dtypes == np.float64).all()
        pd.testing.assert_frame_equal(resumed.history[name], curve, check_exact=True)
    assert len(whole.history["train_loss"]) == 4


def test_a_model_that_was_interrupted_goes_on_itself(tmp_path: Path) -> None:
    model = CASES["bulkformer"].make()
    keep: dict[str, Any] = {"checkpoint_dir": tmp_path, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt, match="after step 5 of 7"):
        CASES["bulkformer"].train(model, callbacks=[Interrupt(5)], **keep)
    assert model.is_trained_
    CASES["bulkformer"].train(model, **keep)
    assert_same(state(model), uninterrupted("bulkformer"))
    with pytest.raises(ValueError, match=r"another training: .*starting weights"):
        CASES["bulkformer"].train(model, **keep)  # trained to the end: this would be more


def test_a_model_that_cannot_go_on_itself_must_be_made_anew(tmp_path: Path) -> None:
    model = CASES["cellpulse"].make()
    keep: dict[str, Any] = {"checkpoint_dir": tmp_path, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt, match="after step 5 of 30"):
        CASES["cellpulse"].train(model, callbacks=[Interrupt(5)], **keep)
    with pytest.raises(ValueError, match=r"starting weights is .* on the same model"):
        CASES["cellpulse"].train(model, **keep)
    go_on("cellpulse", tmp_path, every=2)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    stop("pulsar", tmp_path, 3)
    newest = max(tmp_path.glob("step-*"))
    found = torch.load(newest, weights_only=True)
    found["state_dict"].popitem()
    torch.save(found, newest)
    with pytest.raises(ValueError, match="do not fit the model: it has changed since"):
        go_on("pulsar", tmp_path)


class Interrupt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class Terminate(pl.Callback):
    """What the end of a job's time sends."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_job_that_is_told_to_end_keeps_its_state(tmp_path: Path) -> None:
    model = CASES["bulkformer"].make()
    with pytest.raises(SystemExit) as stopped:
        CASES["bulkformer"].train(
            model, checkpoint_dir=tmp_path, checkpoint_every=100, callbacks=[Terminate()]
        )
    assert stopped.value.code == 143
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-000000005.ckpt"]
    assert_same(state(go_on("bulkformer", tmp_path, every=100)), uninterrupted("bulkformer"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-3}, r"lr is 0\.001 and was 0\.004"),
        ({"batch_size": 12}, "batch_size is 12 and was 24"),
        ({"seed": 1}, "seed is 1 and was 0"),
        ({"gradient_clip_val": 0.5}, r"gradient_clip_val is 0\.5 and was None"),
        ({"precision": "bf16-mixed"}, "precision is 'bf16-mixed' and was 'auto'"),
    ],
)
def test_the_states_of_another_call_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stop("bulkformer", tmp_path, 3)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        go_on("bulkformer", tmp_path, **change)
    assert sorted(tmp_path.iterdir()) == before


def test_the_states_of_other_data_or_another_model_are_refused(tmp_path: Path) -> None:
    from tests import _bulk

    stop("bulkformer", tmp_path, 3)
    train = CASES["bulkformer"].train

    def refused(model: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            train(model, checkpoint_dir=tmp_path)

    refused(_bulk.untrained(dim=32, ff_dropout=0.2), "sizes is ")
    refused(_bulk.untrained(seed=5, ff_dropout=0.2), "starting weights is ")
    refused(_bulk.untrained(_bulk.toy_log_tpm(n=80), ff_dropout=0.2), "number of rows is 80 and")
    other = _bulk.toy_log_tpm()
    other.obs["study"] = other.obs["study"].to_numpy()[::-1]
    refused(_bulk.untrained(other, ff_dropout=0.2), r"adata.obs\['_?.*study|_scvi_batch'\] is ")
    other = _bulk.toy_log_tpm()
    other.var_names = [f"OTHER{i}" for i in range(other.n_vars)]
    refused(_bulk.untrained(other, ff_dropout=0.2), "genes is ")
    with pytest.raises(ValueError, match="model is 'LingshuCell' and was 'BulkFormer'"):
        go_on("lingshu", tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"is a file; expected a folder"):
        go_on("bulkformer", file)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run\.json that identifies it"):
        go_on("bulkformer", tmp_path)
    with pytest.raises(ValueError, match="checkpoint_every="):
        go_on("bulkformer", tmp_path, every=0)


def test_a_training_from_files_goes_on_too(tmp_path: Path) -> None:
    """Also where the rest of the data is in memory by then: what is trained on is the same."""
    from tests import _bulk
    from tests._storages import stored

    def train(adata: Any, **kwargs: Any) -> Any:
        model = _bulk.untrained(adata, ff_dropout=0.2)
        keep = {"checkpoint_dir": tmp_path / "states", "checkpoint_every": 1}
        CASES["bulkformer"].train(model, **keep | kwargs)
        return model

    for kind, step in (("opened_zarr_dense", 2), ("backed_dense", 4), ("opened_list", 5)):
        folder = tmp_path / str(step)
        folder.mkdir()
        with pytest.raises(StoppedError):
            train(stored(_bulk.toy_log_tpm(), kind, folder), callbacks=[StopAfter(step)])
    model = train(_bulk.toy_log_tpm())
    assert_same(state(model), uninterrupted("bulkformer"))


def test_what_does_not_change_the_weights_may_change(tmp_path: Path) -> None:
    stop("bulkformer", tmp_path, 3, accelerator="cpu")
    model = go_on("bulkformer", tmp_path, every=3, enable_progress_bar=True, accelerator="auto")
    assert_same(state(model), uninterrupted("bulkformer"))


def test_a_folder_without_states_is_begun_anew(tmp_path: Path) -> None:
    stop("bulkformer", tmp_path, 1, seed=5)
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    model = go_on("bulkformer", tmp_path)
    assert_same(state(model), uninterrupted("bulkformer"))
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0


def test_a_damaged_state_is_passed_over(tmp_path: Path) -> None:
    stop("bulkformer", tmp_path, 6)
    newest = max(tmp_path.glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=rf"{newest.name} cannot be read"):
        model = go_on("bulkformer", tmp_path)
    assert_same(state(model), uninterrupted("bulkformer"))
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ValueError, match=r"No state of the training in .* can be read"),
    ):
        go_on("bulkformer", tmp_path)


def test_states_hold_nothing_that_runs(tmp_path: Path) -> None:
    stop("cellvq", tmp_path, 3)
    found = torch.load(max(tmp_path.glob("step-*")), weights_only=True)
    assert found["global_step"] == 2
    path = tmp_path / "step-000000009.ckpt"
    torch.save({"x": Path("evil")}, path)  # an object that only a full unpickler makes
    files = CheckpointFiles(tmp_path)
    with pytest.warns(UserWarning, match="000009.ckpt cannot be read"):
        assert files.load_checkpoint(path)["global_step"] == 2


def test_a_full_disk_costs_a_warning_and_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop("bulkformer", tmp_path, 4)
    before = sorted(p.name for p in tmp_path.glob("step-*"))

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.n = file, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: Any) -> int:
            self.n += len(data)
            if self.n > 20_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data))

    whole = _resume._save
    monkeypatch.setattr(_resume, "_save", lambda c, f: whole(c, Full(f)))
    with pytest.warns(UserWarning, match=r"could not be written .*No space left.*continues"):
        model = go_on("bulkformer", tmp_path)
    assert_same(state(model), uninterrupted("bulkformer"))
    assert sorted(p.name for p in tmp_path.glob("step-*")) == before
    assert not list(tmp_path.glob(".*partial"))


def test_the_random_state_of_numpy_and_python_goes_on(tmp_path: Path) -> None:
    import random

    class Draw(pl.Callback):
        def __init__(self) -> None:
            self.drawn: list[float] = []

        def on_train_batch_end(self, *args: object) -> None:
            self.drawn += [random.random(), np.random.random()]  # noqa: NPY002

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    whole = Draw()
    go_on("bulkformer", tmp_path / "whole", callbacks=[whole])
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    model = CASES["bulkformer"].make()
    with pytest.raises(StoppedError):
        CASES["bulkformer"].train(
            model,
            checkpoint_dir=tmp_path / "part",
            checkpoint_every=1,
            callbacks=[Draw(), StopAfter(5)],
        )
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    rest = Draw()
    go_on("bulkformer", tmp_path / "part", callbacks=[rest])
    assert rest.drawn == whole.drawn[-len(rest.drawn) :]
    assert len(rest.drawn) == 6


class Steps(Logger):
    """A logger of somebody else's, which notes when it is told something."""

    name = version = "steps"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int | None, list[str]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen.append((step, sorted(metrics)))

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        pass


class Epochs(pl.Callback):
    def __init__(self) -> None:
        self.begun: list[int] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: object) -> None:
        self.begun.append(trainer.current_epoch)


@pytest.mark.parametrize("step", [3, 4])  # goes on in the middle of an epoch, and at its start
def test_loggers_are_told_the_same_steps(step: int, tmp_path: Path) -> None:
    whole, rest = Steps(), Steps()
    go_on("bulkformer", tmp_path / "whole", logger=whole)
    stop("bulkformer", tmp_path / "part", step)
    epochs = Epochs()
    go_on("bulkformer", tmp_path / "part", logger=rest, callbacks=[epochs])
    assert epochs.begun == [1, 2]  # the first had begun before
    assert rest.seen == whole.seen[-len(rest.seen) :]
    assert len(rest.seen) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lingshu", "cellvq"])
def test_a_killed_process_goes_on_in_another(name: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        command = [sys.executable, "-m", "tests._trainings", name, *map(str, arguments)]
        return subprocess.run(command, cwd=REPOSITORY, timeout=300, check=False).returncode

    folder, output = tmp_path / "states", tmp_path / "output.pt"
    n_batches = CASES[name].n_batches
    assert run(folder, output, n_batches, "batch") == -9  # last batch of an epoch
    assert run(folder, output, n_batches + 2, "write") == -9  # half a state is on disk
    assert list(folder.glob(".*partial"))
    assert run(folder, output) == 0
    assert not list(folder.glob(".*partial"))
    assert_same(torch.load(f"{output}.0"), uninterrupted(name))


@pytest.mark.slow
def test_processes_that_were_killed_go_on_together(tmp_path: Path) -> None:
    """Two, of which both are killed in the middle of an epoch; curves and weights of each."""

    def run(folder: str, *kill: object) -> list[Any]:
        arguments = ["bulkformer", tmp_path / folder, tmp_path / f"{folder}.pt", *(kill or (0,))]
        with_kill = [*map(str, arguments), *([] if kill else ["batch"]), "2"]
        run_killed("tests._trainings", *with_kill)
        return [torch.load(p) for p in sorted(tmp_path.glob(f"{folder}.pt.*"))]

    whole = run("whole")
    assert run("killed", 4, "batch") == []
    parts = run("killed")
    assert len(whole) == len(parts) == 2
    for found in (*parts, whole[1]):
        assert_same(found, whole[0])


def run_killed(*arguments: str) -> None:
    """Run a module in processes that may be killed, and see that none is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=REPOSITORY, start_new_session=True
    )
    try:
        process.wait(timeout=240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
