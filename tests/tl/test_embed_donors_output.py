"""``cfm.tl.embed_donors`` from files, to files, and after it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm.models import Pulsar
from cfm.tl import _donor_rows
from tests._pulsar import donors
from tests.tl.test_output import assert_close

ARGUMENTS: dict[str, Any] = {"n_cells": 12, "n_draws": 2, "precision": "float32"}


@pytest.fixture(autouse=True)
def donors_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_donor_rows, "DONORS_AT_ONCE", 2)


@pytest.fixture
def cells() -> ad.AnnData:
    return donors()


@pytest.fixture
def model(cells: ad.AnnData) -> Pulsar:
    Pulsar.setup_anndata(cells, use_rep="X_uce")
    return Pulsar(cells, dim=32, encoder_layers=1, encoder_ff=64, decoder_ff=64)


def _assert_same(found: ad.AnnData, expected: ad.AnnData) -> None:
    assert_close(found.obs, expected.obs)
    assert_close(np.asarray(found.obsm["X_pulsar"][:]), expected.obsm["X_pulsar"])
    assert_close(dict(found.uns["X_pulsar"]["params"]), expected.uns["X_pulsar"]["params"])
    assert_close(found.uns["X_pulsar"]["varying"], expected.uns["X_pulsar"]["varying"])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_from_a_file_to_a_file(
    cells: ad.AnnData, model: Pulsar, tmp_path: Path, suffix: str
) -> None:
    expected = cfm.tl.embed_donors(cells, "donor_id", model, **ARGUMENTS)
    source = tmp_path / "in.h5ad"
    cells.write_h5ad(source)
    plain = cfm.tl.embed_donors(source, "donor_id", model, **ARGUMENTS)
    _assert_same(plain, expected)
    out = tmp_path / f"out{suffix}"
    for data in (source, cells):
        found = cfm.tl.embed_donors(
            data, "donor_id", model, **ARGUMENTS, output=out, overwrite=True
        )
        _assert_same(found, expected)
    back = ad.read_zarr(out) if suffix == ".zarr" else ad.read_h5ad(out)
    _assert_same(back, expected)


def test_donors_of_several_files(cells: ad.AnnData, model: Pulsar, tmp_path: Path) -> None:
    expected = cfm.tl.embed_donors(cells, "donor_id", model, **ARGUMENTS)
    paths = [tmp_path / f"part{i}.h5ad" for i in range(2)]
    for path, part in zip(paths, (cells[:80], cells[80:]), strict=True):
        part.copy().write_h5ad(path)  # donors have cells in both
    found = cfm.tl.embed_donors(paths, "donor_id", model, **ARGUMENTS)
    embeddings = (found.obsm["X_pulsar"], expected.obsm["X_pulsar"])
    np.testing.assert_allclose(*embeddings, rtol=1e-5, atol=1e-6)
    assert found.obs_names.equals(expected.obs_names)


def test_a_stopped_run_goes_on(
    cells: ad.AnnData, model: Pulsar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cfm.tl.embed_donors(cells, "donor_id", model, **ARGUMENTS)
    plain, seen = Pulsar.get_donor_embeddings, []

    def stopping(self: Pulsar, adata: ad.AnnData, **kwargs: Any) -> Any:
        if len(seen) == 2:
            seen.append([])
            raise KeyboardInterrupt
        seen.append(sorted(set(adata.obs["donor_id"])))
        return plain(self, adata, **kwargs)

    monkeypatch.setattr(Pulsar, "get_donor_embeddings", stopping)
    shared: dict[str, Any] = ARGUMENTS | {"output": tmp_path / "out.zarr"}
    with pytest.raises(KeyboardInterrupt):
        cfm.tl.embed_donors(cells, "donor_id", model, **shared)
    changed = cells.copy()
    changed.obsm["X_uce"] = changed.obsm["X_uce"] + 1
    with pytest.raises(ValueError, match=r"obsm\['X_uce'\] changed"):
        cfm.tl.embed_donors(changed, "donor_id", model, **shared)
    found = cfm.tl.embed_donors(cells, "donor_id", model, **shared)
    names = [f"donor{i}" for i in range(6)]
    assert seen == [names[:2], names[2:4], [], names[4:]]
    _assert_same(found, expected)


def test_what_does_not_go_together_is_refused(
    cells: ad.AnnData, model: Pulsar, tmp_path: Path
) -> None:
    cells.write_h5ad(tmp_path / "in.h5ad")
    for data in (tmp_path / "in.h5ad", ad.read_h5ad(tmp_path / "in.h5ad", backed="r")):
        with pytest.raises(ValueError, match=r"is .*in\.h5ad, which is read; choose"):
            cfm.tl.embed_donors(
                data, "donor_id", model, output=tmp_path / "in.h5ad", overwrite=True
            )
