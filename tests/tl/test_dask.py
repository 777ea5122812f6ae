"""Chunks that the workers of a dask client compute: the bits of one process, also after a kill."""

from __future__ import annotations

import logging
import os
import platform
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import cfm
from tests._bulk import toy_bulkformer, toy_log_tpm
from tests._cellvq import counted_cells, small_model

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow

N, CHUNK = 900, 50


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=logging.CRITICAL
    )
    with cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture(autouse=True)
def chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfm.settings, "chunk_size", CHUNK)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return counted_cells(N)


@pytest.fixture(scope="module")
def expected(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What one process writes, of the same chunks, on one thread as dask's workers have."""
    before, cfm.settings.chunk_size = cfm.settings.chunk_size, CHUNK
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cfm.tl._run._dask_client", lambda n_rows: None)
        out = tmp_path_factory.mktemp("serial") / "out.zarr"
        found = cfm.tl.embed(cells, small_model(), output=out).obsm["X_cellvq"][:]
    cfm.settings.chunk_size = before
    torch.set_num_threads(n_threads)
    return np.asarray(found)


@pytest.mark.parametrize("source", ["memory", "h5ad", "zarr", "two files"])
def test_any_input_gives_the_bits_of_one_process(
    client: Any, cells: ad.AnnData, expected: np.ndarray, source: str, tmp_path: Path
) -> None:
    data: Any = cells
    if source == "two files":
        data = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
        for path, part in zip(data, (cells[:500], cells[500:]), strict=True):
            part.copy().write_h5ad(path)
    elif source != "memory":
        data = tmp_path / f"in.{source}"
        getattr(cells, f"write_{source}")(data)
    found = cfm.tl.embed(data, small_model(), output=tmp_path / "out.zarr")
    np.testing.assert_array_equal(found.obsm["X_cellvq"][:], expected)
    assert found.obs_names.tolist() == cells.obs_names.tolist()


def test_an_anndata_of_many_chunks_is_shared_too(
    client: Any, cells: ad.AnnData, expected: np.ndarray
) -> None:
    adata = cells.copy()
    cfm.tl.embed(adata, small_model())
    np.testing.assert_array_equal(adata.obsm["X_cellvq"], expected)


def test_a_killed_worker_loses_nothing(
    client: Any,
    cells: ad.AnnData,
    expected: np.ndarray,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[int] = []

    class Kill(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "event", "") == "chunk":
                done.append(record.done)  # type: ignore[attr-defined]
                if len(done) in (3, 9):  # one worker, and later another one
                    pids = client.run(os.getpid)
                    os.kill(next(iter(pids.values())), signal.SIGKILL)

    handler = Kill()
    logger = logging.getLogger("cfm.tl._run")
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, logger="cfm"):
            found = cfm.tl.embed(cells, small_model(), output=tmp_path / "out.zarr")
    finally:
        logger.removeHandler(handler)
    assert done == list(range(1, N // CHUNK + 1))
    np.testing.assert_array_equal(found.obsm["X_cellvq"][:], expected)
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


def test_a_mask_and_several_results(client: Any, tmp_path: Path) -> None:
    samples, model = toy_log_tpm(n=120), toy_bulkformer()
    mask = np.random.default_rng(0).random(samples.shape) < 0.1
    found = cfm.tl.impute(samples, model, mask=mask, output=tmp_path / "out.zarr")
    alone = samples.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cfm.tl._run._dask_client", lambda n_rows: None)
        cfm.tl.impute(alone, model, mask=mask)
    np.testing.assert_allclose(found.layers["imputed"][:], alone.layers["imputed"], rtol=1e-5)
    assert found.uns["imputed"]["n_imputed"] == mask.sum()


def test_errors_and_warnings_of_workers_reach_the_caller(client: Any, cells: ad.AnnData) -> None:
    wrong = cells.copy()
    wrong.X[800, 3] = 0.5
    with pytest.raises(ValueError, match="values that are not whole"):
        cfm.tl.embed(wrong, small_model())
    assert not wrong.obsm
    few = small_model(vocabulary=[f"G{i}" for i in range(45)])
    empty = counted_cells(N, genes=[*few.vocabulary.genes[:10], "X1"])
    empty.X[[2, 801], :10] = 0
    with pytest.warns(UserWarning) as raised:
        cfm.tl.embed(empty, few)
    texts = [str(w.message) for w in raised if w.category is UserWarning]
    assert len(texts) == 2
    assert texts[0].startswith("Only 22% of the model's 45 genes are measured")
    assert texts[1].startswith(f"2 of {N} cells express none")


def test_few_rows_stay_here(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "submit", None)
    few = counted_cells(CHUNK)
    cfm.tl.embed(few, small_model())
    assert few.obsm["X_cellvq"].shape[0] == CHUNK


def test_donors_are_sent_without_the_other_donors(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donors = cfm.datasets.toy_donors()
    rng = np.random.default_rng(0)
    donors.obsm["X_uce"] = rng.standard_normal((donors.n_obs, 12)).astype(np.float32)
    monkeypatch.setattr("cfm.tl._donor_rows.DONORS_AT_ONCE", 5)
    arguments = {"use_rep": "X_uce", "n_cells": None}
    cfm.models.Pulsar.setup_anndata(donors, donor_key="donor_id", use_rep="X_uce")
    model = cfm.models.Pulsar(donors, dim=16, encoder_layers=1, encoder_ff=16, decoder_ff=16)
    with monkeypatch.context() as patch:
        patch.setattr("cfm.tl._run._dask_client", lambda n_rows: None)
        alone = cfm.tl.embed_donors(
            donors, "donor_id", model, output=tmp_path / "alone.h5ad", **arguments
        )
    sent: list[ad.AnnData] = []
    submit = client.submit

    def watched(*args: Any, **kwargs: Any) -> Any:
        sent.append(args[-1])
        return submit(*args, **kwargs)

    monkeypatch.setattr(client, "submit", watched)
    found = cfm.tl.embed_donors(
        donors, "donor_id", model, output=tmp_path / "shared.h5ad", **arguments
    )
    np.testing.assert_array_equal(found.obsm["X_pulsar"][:], alone.obsm["X_pulsar"][:])
    assert len(sent) == -(-found.n_obs // 5)
    assert not [part for part in sent if part.is_view]
    assert sum(part.n_obs for part in sent) == donors.n_obs


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about its allocator")
def test_workers_keep_the_memory_that_they_use_again(client: Any) -> None:
    assert set(client.run(lambda: os.environ["MALLOC_TRIM_THRESHOLD_"]).values()) == {"65536"}
    cfm.tl.embed(counted_cells(4 * CHUNK), small_model())

    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100):
            np.ones(2**20)  # 2,048 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert max(client.run(page_faults).values()) < 5 * 2**11
