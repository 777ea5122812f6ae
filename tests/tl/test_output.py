"""Tools that read files and write results as they are made: the same as in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from tests._bulk import toy_bulkformer, toy_log_tpm
from tests._cellvq import counted_cells, small_model
from tests._storages import STORAGES, stored
from tests._toy import toy_contrasts, toy_model


@pytest.fixture(autouse=True)
def chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfm.settings, "chunk_size", 8)


def _log_tpm() -> ad.AnnData:
    made = toy_log_tpm(seed=4, n=20)
    made.layers["hidden"] = np.random.default_rng(0).random(made.shape) < 0.1
    made.X[:4, 7] = np.nan
    made.strings_to_categoricals()
    return made


def _cells() -> ad.AnnData:
    made = counted_cells(50)
    made.obs["kind"] = pd.Categorical(["a", "b"] * 25)
    made.X[3, :40] = 0  # expresses nothing that the model knows
    return made


def _contrasts() -> ad.AnnData:
    made = toy_contrasts()
    made.layers["lfc"] = made.X.copy()
    made.strings_to_categoricals()
    return made


#: By name the tool, its data, and its arguments.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[], ad.AnnData], Callable[[], dict]]] = {
    "embed": (cfm.tl.embed, _contrasts, lambda: {"model": toy_model()}),
    "embed_layer": (
        cfm.tl.embed,
        _contrasts,
        lambda: {"model": toy_model(), "layer": "lfc", "key_added": "X_mine"},
    ),
    "embed_cellvq": (cfm.tl.embed, _cells, lambda: {"model": small_model()}),
    "embed_bulkformer": (
        cfm.tl.embed,
        _log_tpm,
        lambda: {"model": toy_bulkformer(), "batch_size": 4},
    ),
    "predict_virus": (
        cfm.tl.predict_virus,
        _contrasts,
        lambda: {"model": toy_model(), "n_matches": 0},
    ),
    "impute": (cfm.tl.impute, _log_tpm, lambda: {"model": toy_bulkformer(), "batch_size": 4}),
    "impute_mask": (
        cfm.tl.impute,
        _log_tpm,
        lambda: {
            "model": toy_bulkformer(),
            "batch_size": 4,
            "mask": "hidden",
            "key_added": "filled",
        },
    ),
    "impute_array": (
        cfm.tl.impute,
        _log_tpm,
        lambda: {"model": toy_bulkformer(), "batch_size": 4, "mask": _log_tpm().layers["hidden"]},
    ),
    "cell_codes": (
        cfm.tl.cell_codes,
        _cells,
        lambda: {"model": small_model(), "min_cells": 2, "groupby": "kind", "n_groups": 2},
    ),
    "predict_properties": (cfm.tl.predict_properties, _cells, lambda: {"model": small_model()}),
}
_UNREAD = "ignore:1 of 50 cells express none"


def _as_object(table: pd.DataFrame) -> pd.DataFrame:
    """Text as objects: pandas 3 reads text of a file as ``str``, and keeps objects in memory."""
    text = [c for c in table if pd.api.types.is_string_dtype(table[c].dtype)]
    return table.astype(dict.fromkeys(text, object))


def assert_close(found: Any, expected: Any) -> None:
    """Equal but for the last digits of floating-point numbers."""
    if isinstance(expected, pd.DataFrame):
        found, expected = _as_object(found), _as_object(expected)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-6)
    elif isinstance(expected, Mapping):
        assert set(found) == set(expected)
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    elif isinstance(expected, np.ndarray | list):
        assert list(found) == list(expected)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5)
    else:
        assert found == expected


def assert_results(found: ad.AnnData, expected: ad.AnnData, before: ad.AnnData) -> None:
    """What a tool wrote into ``expected``, which was ``before``, is what ``found`` has."""
    assert_close(found.obs, expected.obs)
    assert_close(dict(found.uns), dict(expected.uns))
    for slot in ("obsm", "layers"):
        new = set(getattr(expected, slot)) - set(getattr(before, slot))
        assert new <= set(getattr(found, slot))
        for name in new:
            matrix = getattr(found, slot)[name]
            matrix = matrix if isinstance(matrix, pd.DataFrame) else np.asarray(matrix[:])
            assert_close(matrix, getattr(expected, slot)[name])


@cache
def _expected(call: str) -> tuple[ad.AnnData, ad.AnnData]:
    """What a tool makes of data in memory, in one chunk; and the data before."""
    tool, data, arguments = CALLS[call]
    made = data()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(cfm.settings, "chunk_size", 2048)
        tool(made, **arguments())
    return made, data()


@pytest.mark.filterwarnings(_UNREAD)
@pytest.mark.parametrize("into", [".h5ad", ".zarr", None])
@pytest.mark.parametrize("call", CALLS)
def test_files_give_what_memory_gives(call: str, into: str | None, tmp_path: Path) -> None:
    tool, _, arguments = CALLS[call]
    expected, before = _expected(call)
    source = tmp_path / ("in.zarr" if into == ".h5ad" else "in.h5ad")
    before.write_zarr(source) if source.suffix == ".zarr" else before.write_h5ad(source)
    if into is None:
        found = tool(str(source), **arguments())
        assert not isinstance(found.X, np.ndarray)
        np.testing.assert_array_equal(found.X[:3], before.X[:3])
        assert_results(found, expected, before)
        return
    output = tmp_path / f"out{into}"
    found = tool(source, **arguments(), output=output)
    assert found.X is None
    assert_results(found, expected, before)
    again = ad.read_zarr(output) if into == ".zarr" else ad.read_h5ad(output)
    assert_results(again, expected, before)
    assert {p.name for p in tmp_path.iterdir()} == {source.name, output.name}


@pytest.mark.parametrize("kind", STORAGES)
def test_any_storage(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfm.settings, "chunk_size", 50)  # one chunk, so that bits are equal
    cells = _cells()[4:].copy()
    model = small_model()
    expected = model.get_latent_representation(cells)
    found = cfm.tl.embed(stored(cells, kind, tmp_path), model, output=tmp_path / "out.h5ad")
    np.testing.assert_array_equal(found.obsm["X_cellvq"][:], expected)
    assert found.obs_names.tolist() == cells.obs_names.tolist()


def test_contrasts_of_counts_in_a_file(tmp_path: Path) -> None:
    counts = cfm.datasets.blanco_melo()
    design = {"groupby": "virus", "control": "none", "by": "series"}
    expected = cfm.tl.predict_virus(counts, **design)
    counts.write_h5ad(tmp_path / "counts.h5ad")
    out = tmp_path / "out.h5ad"
    found = cfm.tl.predict_virus(tmp_path / "counts.h5ad", **design, output=out)
    plain = cfm.tl.predict_virus(tmp_path / "counts.h5ad", **design)
    for made in (found, plain):
        assert_close(made.obs, expected.obs)
        name = "predicted_virus_proba"
        assert_close(made.obsm[name], expected.obsm[name])
        assert_close(made.uns["predicted_virus"], expected.uns["predicted_virus"])


@pytest.mark.filterwarnings("ignore:Only .* of the .* genes:UserWarning")
def test_files_with_other_genes_are_read_each_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cfm.settings, "chunk_size", 50)
    cells, model = _cells()[4:].copy(), small_model()
    parts = [cells[:20, :30].copy(), cells[20:, 10:].copy()]
    paths = []
    for i, part in enumerate(parts):
        paths.append(tmp_path / f"part{i}.h5ad")
        part.write_h5ad(paths[-1])
    alone = np.concatenate([model.get_latent_representation(part) for part in parts])
    out = tmp_path / "out.zarr"
    for found in (cfm.tl.embed(paths, model), cfm.tl.embed(paths, model, output=out)):
        np.testing.assert_array_equal(np.asarray(found.obsm["X_cellvq"][:]), alone)
        assert found.obs_names.tolist() == cells.obs_names.tolist()
        assert found.obs["file"].tolist() == ["part0.h5ad"] * 20 + ["part1.h5ad"] * 26
        assert found.var_names.tolist() == cells.var_names[10:30].tolist()
        share = found.uns["X_cellvq"]["params"]["vocabulary_share"]
        assert share == pytest.approx((20 * 30 + 26 * 30) / 46 / 40)


def test_samples_of_files_with_other_genes_are_filled_in_on_common_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cfm.settings, "chunk_size", 50)
    whole, model = _log_tpm(), toy_bulkformer()
    parts = [whole[:8, :75].copy(), whole[8:, 5:].copy()]
    paths = []
    for i, part in enumerate(parts):
        paths.append(tmp_path / f"part{i}.zarr")
        part.write_zarr(paths[-1])
    own = [part.layers["hidden"] for part in parts]
    common = [hidden.copy() for hidden in own]  # a mask as an array is of the common genes
    common[0][:, :5] = common[1][:, 70:] = False
    n_hidden = (whole[:, 5:75].layers["hidden"] | np.isnan(whole[:, 5:75].X)).sum()
    for mask, masks in (("hidden", own), (whole[:, 5:75].layers["hidden"], common)):
        alone = [model.impute(part, mask=one) for part, one in zip(parts, masks, strict=True)]
        found = cfm.tl.impute(paths, model, mask=mask)
        expected = np.concatenate([alone[0][:, 5:], alone[1][:, :70]])
        np.testing.assert_array_equal(found.layers["imputed"], expected)
        assert found.uns["imputed"]["n_imputed"] == n_hidden


def test_genes_that_samples_do_not_have(tmp_path: Path) -> None:
    model, few = toy_bulkformer(), _log_tpm()[:, :70].copy()
    expected = few.copy()
    cfm.tl.impute(expected, model, absent_genes=True)
    found = cfm.tl.impute(few, model, absent_genes=True, output=tmp_path / "out.h5ad")
    table = expected.obsm["imputed"]
    # in bfloat16, which some processors choose, chunks of other sizes differ in the third digit
    np.testing.assert_allclose(found.obsm["imputed"][:], table.to_numpy(), rtol=1e-3)
    assert list(found.uns["imputed"]["absent_genes"]) == table.columns.tolist()


def test_chunks_without_anything_missing_are_fine_as_long_as_some_have(tmp_path: Path) -> None:
    model, adata = toy_bulkformer(), toy_log_tpm(n=20)
    adata.X[17, 3] = np.nan
    found = cfm.tl.impute(adata, model, output=tmp_path / "out.zarr")
    assert found.uns["imputed"]["n_imputed"] == 1
    adata.X[17, 3] = 1.0
    with pytest.raises(ValueError, match="nothing to fill in"):
        cfm.tl.impute(adata, model, output=tmp_path / "none.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


def test_results_of_whole_chunks_are_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cfm.settings, "chunk_size", 2048)
    cells, model = counted_cells(2100), small_model()
    expected = model.get_latent_representation(cells, batch_size=50)
    found = cfm.tl.embed(cells, model, batch_size=50, output=tmp_path / "out.zarr")
    np.testing.assert_array_equal(found.obsm["X_cellvq"][:], expected)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    adata, model = toy_contrasts(), toy_model()
    out = tmp_path / "out.zarr"
    for error, match, arguments in (
        (ValueError, "copy=True does not go with output=", {"output": out, "copy": True}),
        (ValueError, "only goes with output=", {"overwrite": True}),
        (ValueError, "expected one of", {"output": tmp_path / "out.npy"}),
    ):
        with pytest.raises(error, match=match):
            cfm.tl.embed(adata, model, **arguments)
    with pytest.raises(TypeError, match="embeds observations only"):
        cfm.tl.embed(adata, model, level="gene", output=out)
    adata.write_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        cfm.tl.embed(adata, model, output=tmp_path / "in.h5ad")
    backed = ad.read_h5ad(tmp_path / "in.h5ad", backed="r")
    for data in (tmp_path / "in.h5ad", backed):
        with pytest.raises(ValueError, match=r"is .*in\.h5ad, which is read; choose"):
            cfm.tl.embed(data, model, output=tmp_path / "in.h5ad", overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        cfm.tl.embed(tmp_path / "none.h5ad", model)
    assert [p.name for p in tmp_path.iterdir()] == ["in.h5ad"]


def test_another_result_is_replaced_in_the_output_with_a_warning(tmp_path: Path) -> None:
    adata = toy_contrasts()
    adata.uns["X_mine"] = "made elsewhere"
    with pytest.warns(UserWarning, match=r"uns\['X_mine'\] was not written by this tool"):
        found = cfm.tl.embed(adata, toy_model(), key_added="X_mine", output=tmp_path / "out.zarr")
    assert "params" in found.uns["X_mine"]
    assert adata.uns["X_mine"] == "made elsewhere"


def test_its_own_result_is_replaced_in_the_output_quietly(tmp_path: Path) -> None:
    adata, model = toy_contrasts(), toy_model()
    cfm.tl.embed(adata, model)
    cfm.tl.predict_virus(adata, model, n_matches=0)
    cfm.tl.embed(adata, model, output=tmp_path / "e.zarr")  # a warning would be an error
    found = cfm.tl.predict_virus(adata, model, n_matches=0, output=tmp_path / "v.zarr")
    assert "predicted_virus_proba" in found.obsm
