"""Processes that train together see the parts of one batch, down to the last random number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cfm.models._streams import RowStream, StreamModule, n_rows_of
from cfm.models.bulkformer._training import SampleStream
from cfm.models.cellvq._data import CellReader
from cfm.models.cellvq._data import CellStream as CodedStream
from cfm.models.lingshu import Conditions
from cfm.models.lingshu._training import CellStream
from cfm.models.pulsar._data import DonorStream, PretrainingStream, read_donors
from cfm.nn import _distributed
from tests._cellvq import counted_cells, small_model
from tests._pulsar import donors
from tests._together import together

#: Two batches of twelve, and one of three.
N_ROWS = 27


def sample_stream(**layout: Any) -> RowStream:
    values = torch.rand(40, 30, generator=torch.Generator().manual_seed(0))
    values[values < 0.2] = -10.0
    rows = np.arange(5, 5 + N_ROWS)
    return SampleStream(lambda r: values[r], rows, mask_share=0.3, seed=3, **layout)


def token_stream(**layout: Any) -> RowStream:
    values = torch.randint(0, 9, (N_ROWS, 25), generator=torch.Generator().manual_seed(0))

    def read(rows: np.ndarray) -> tuple[torch.Tensor, Conditions]:
        source = torch.from_numpy(rows).long() % 3 + 1
        parts = source[:, None]
        return values[rows], Conditions(source, parts, parts, source.float())

    return CellStream(
        read,
        np.arange(N_ROWS),
        seed=3,
        least_time=1e-3,
        stratified=True,
        condition_dropout=0.3,
        **layout,
    )


def coded_stream(**layout: Any) -> RowStream:
    reader = CellReader(counted_cells(N_ROWS), small_model().vocabulary)
    labels = np.arange(N_ROWS)[:, None] % 4 - 1
    return CodedStream(
        reader,
        labels,
        np.arange(N_ROWS),
        seed=3,
        keep_share=(0.2, 0.8),
        code_only_share=0.4,
        **layout,
    )


def donor_stream(kind: type[DonorStream] = DonorStream, **layout: Any) -> RowStream:
    sizes = tuple(np.random.default_rng(0).integers(10, 30, N_ROWS).tolist())
    adata = donors(sizes, width=5)
    found = read_donors(adata, "donor_id", "X_uce", 5)
    return kind(found, np.arange(N_ROWS), n_cells=8, seed=3, **layout)


def paired_stream(**layout: Any) -> RowStream:
    labels = np.arange(N_ROWS) % 3 - 1
    more = {"labels": labels, "keep_share": 0.3, "mask_share": 0.5}
    return donor_stream(PretrainingStream, **more, **layout)


STREAMS = (sample_stream, token_stream, coded_stream, donor_stream, paired_stream)


def flat(batch: Any) -> list[torch.Tensor]:
    """The tensors of a batch."""
    found = []
    for part in batch:
        found += flat(part) if isinstance(part, tuple) else [part]
    return [t for t in found if t is not None]


def assert_parts(parts: list[Any], whole: Any, n_draws: int) -> None:
    """Check that parts are what their rows of the whole are; they may be padded to less."""
    n = len(flat(whole)[0]) // n_draws
    start = 0
    for part in parts:
        stop = start + len(flat(part)[0]) // n_draws
        rows = np.arange(n * n_draws).reshape(n_draws, n)[:, start:stop].ravel()
        for place, (own, all_) in enumerate(zip(flat(part), flat(whole), strict=True)):
            expected = all_[rows]
            if own.ndim > 1:
                expected = expected[:, : own.shape[1]]
            assert torch.equal(own.nan_to_num(-5.0), expected.nan_to_num(-5.0)), place
        start = stop
    assert start == n


@pytest.mark.parametrize("make", STREAMS)
@pytest.mark.parametrize("n_processes", [2, 3])
def test_parts_make_up_the_batches_of_one_process(
    make: Any, n_processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_draws = 2 if make is paired_stream else 1
    alone = make(batch_size=12)
    streams = [make(batch_size=12 // n_processes, n_processes=n_processes) for _ in range(3)]
    for _ in range(2):  # epochs
        batches = list(alone)
        shared = together(n_processes, lambda i: list(streams[i]), monkeypatch)
        assert len(batches) == len(shared[0]) == 3
        for whole, *parts in zip(batches, *shared, strict=True):
            assert_parts(parts, whole, n_draws)
            sizes = [len(flat(p)[0]) // n_draws for p in parts]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("make", STREAMS)
def test_of_a_last_batch_that_is_too_small_each_has_all_or_it_is_left_out(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_draws = 2 if make is paired_stream else 1
    layout = {"batch_size": 13, "n_processes": 2}  # 26 rows and one
    whole = list(make(batch_size=26, fixed=True))[-1]
    checks = [make(fixed=True, **layout) for _ in range(2)]
    shared = together(2, lambda i: list(checks[i]), monkeypatch)
    assert len(shared[0]) == checks[0].n_batches == 2
    for part in shared:
        assert_parts([part[-1]], whole, n_draws)
    assert [checks[0].n_rows(i) for i in range(2)] == [26, 1]
    training = [make(**layout) for _ in range(2)]
    assert training[0].n_batches == 1
    assert len(together(2, lambda i: list(training[i]), monkeypatch)[0]) == 1


def test_a_stream_that_was_laid_out_for_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="laid out for 1 processes, but 2 train"):
        together(2, lambda _: list(sample_stream(batch_size=4)), monkeypatch)


def test_batches_that_are_there_go_to_all_processes() -> None:
    module = StreamModule(sample_stream(batch_size=4), [1, 2, 3])
    loader = module.val_dataloader()
    assert list(loader) == [1, 2, 3]
    assert len(loader) == 3
    assert isinstance(loader.dataset, torch.utils.data.IterableDataset)  # Lightning deals out lists


def test_a_curve_counts_a_batch_by_the_rows_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    training, checks = (sample_stream(batch_size=13, n_processes=2, fixed=f) for f in (False, True))
    module = StreamModule(training, checks)
    for is_training, expected in ((True, [26, 26]), (False, [26, 1])):
        trainer = SimpleNamespace(datamodule=module, training=is_training)
        plan: Any = SimpleNamespace(trainer=trainer)
        batches = [0, 0] if is_training else [0, 1]
        found = together(2, lambda _: [n_rows_of(plan, i, 9) for i in batches], monkeypatch)  # noqa: B023
        assert found == [expected] * 2
    assert n_rows_of(plan, 0, 9) == 9  # alone
    plan.trainer.datamodule = StreamModule(training, [1])  # whole batches in every process
    assert together(2, lambda _: n_rows_of(plan, 0, 9), monkeypatch) == [9, 9]


def test_processes_that_begin_drop_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seeds = StreamModule(sample_stream(batch_size=4), None), []
    for number in (0, 1):
        monkeypatch.setattr(_distributed, "process_number", lambda n=number: (n, 2))
        with torch.random.fork_rng():
            torch.manual_seed(7)
            module.setup("validate")
            assert torch.initial_seed() == 7
            module.setup("fit")
            seeds.append(torch.initial_seed())
    assert seeds[0] == 7 != seeds[1]
