"""Registration of data, saving and loading."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cfm
from cfm.data import GeneVocabulary
from cfm.models import CellPulse
from tests._toy import SIZES, TRAINING, toy_contrasts


def test_registered_effects_follow_the_vocabulary(contrasts: ad.AnnData) -> None:
    CellPulse.setup_anndata(contrasts, study_key="study")
    genes = ["ABSENT", *contrasts.var_names[200:100:-1]]
    model = CellPulse(contrasts, vocabulary=genes, **SIZES)
    effects, studies = model.registered_effects()
    assert effects.dtype == np.float32
    assert np.isnan(effects[:, 0]).all()
    np.testing.assert_array_equal(effects[:, 1:], contrasts.X[:, 200:100:-1])
    assert studies.tolist() == contrasts.obs["study"].tolist()
    assert model.registered_categories("sample").tolist() == [""] * contrasts.n_obs


def test_a_layer_is_read_when_registered(contrasts: ad.AnnData) -> None:
    contrasts.layers["lfc"] = contrasts.X * 2
    CellPulse.setup_anndata(contrasts, layer="lfc", study_key="study")
    effects, _ = CellPulse(contrasts, **SIZES).registered_effects()
    np.testing.assert_array_equal(effects, contrasts.X * 2)


def test_registering_small_categories_is_quiet(contrasts: ad.AnnData) -> None:
    """Each sample has one contrast: nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        CellPulse.setup_anndata(contrasts, study_key="study", sample_key="sample")


def test_columns_are_checked_when_registered(contrasts: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"no column 'studie'; it has \['virus'"):
        CellPulse.setup_anndata(contrasts, study_key="studie")
    contrasts.obs.loc[contrasts.obs_names[:3], "label"] = np.nan
    with pytest.raises(ValueError, match=r"'label'.* is missing in 3 of 48 rows"):
        CellPulse.setup_anndata(contrasts, labels_key="label")
    with pytest.raises(KeyError, match="no layer 'lfc'"):
        CellPulse.setup_anndata(contrasts, layer="lfc")


def test_data_have_to_be_registered_first(contrasts: ad.AnnData, fresh: CellPulse) -> None:
    with pytest.raises(ValueError, match=r"set up your AnnData with .*setup_anndata"):
        CellPulse(contrasts, **SIZES)
    with pytest.raises(ValueError, match=r"set up your AnnData with .*setup_anndata"):
        fresh.attach(contrasts)


def test_counts_are_refused_as_training_data() -> None:
    counts = cfm.datasets.toy_infection()
    CellPulse.setup_anndata(counts, study_key="study")
    with pytest.raises(ValueError, match="looks like expression or counts"):
        CellPulse(counts, **SIZES)


def test_a_model_needs_genes() -> None:
    with pytest.raises(ValueError, match="needs adata or vocabulary"):
        CellPulse()
    assert len(CellPulse(vocabulary=["A", "B"], **SIZES).vocabulary) == 2
    with pytest.raises(ValueError, match="unique names"):
        CellPulse(vocabulary=["A", "A"], **SIZES)


def test_the_share_of_the_vocabulary(model: CellPulse, contrasts: ad.AnnData) -> None:
    assert model.vocabulary_share(contrasts) == 1.0
    assert model.vocabulary_share(contrasts[:, :200]) == 0.25


def test_saving_and_loading_keeps_every_prediction(
    model: CellPulse, contrasts: ad.AnnData, tmp_path: Path
) -> None:
    folder = model.save(tmp_path / "saved", card="# Card\n\nText.")
    loaded = CellPulse.load(folder)
    assert loaded.vocabulary == model.vocabulary
    assert loaded.size.n_tokens == SIZES["n_tokens"]
    assert loaded.card == "# Card\n\nText."
    assert loaded.checkpoint_name == "saved"
    assert len(loaded.checkpoint_sha256) == 64
    assert loaded.provenance == model.provenance
    np.testing.assert_array_equal(
        loaded.get_latent_representation(contrasts), model.get_latent_representation(contrasts)
    )
    first, second = model.predict(contrasts), loaded.predict(contrasts)
    np.testing.assert_array_equal(first.response_proba, second.response_proba)
    np.testing.assert_array_equal(first.virus_proba, second.virus_proba)
    np.testing.assert_array_equal(first.support, second.support)
    assert first.call.tolist() == second.call.tolist()
    hidden = np.zeros((2, 800), dtype=bool)
    hidden[:, :7] = True
    for found, expected in zip(
        loaded.predict_hidden(contrasts.X[:2], hidden),
        model.predict_hidden(contrasts.X[:2], hidden),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_a_saved_checkpoint_is_saved_again_the_same(checkpoint: Path, tmp_path: Path) -> None:
    again = CellPulse.load(CellPulse.load(checkpoint).save(tmp_path / "again"))
    assert again.checkpoint_sha256 == CellPulse.load(checkpoint).checkpoint_sha256
    assert again.card == CellPulse.load(checkpoint).card


def test_a_model_that_was_never_trained_or_taught_saves_too(
    contrasts: ad.AnnData, tmp_path: Path
) -> None:
    CellPulse.setup_anndata(contrasts, study_key="study")
    model = CellPulse(contrasts, **SIZES)
    loaded = CellPulse.load(model.save(tmp_path / "raw"))
    np.testing.assert_allclose(
        loaded.get_latent_representation(contrasts),
        model.get_latent_representation(),
        rtol=1e-4,
        atol=1e-5,
    )
    assert loaded.classifier is None


def test_gene_names_may_hold_spaces(tmp_path: Path) -> None:
    names = ["HLA A", "B", "β-globin"]
    model = CellPulse(vocabulary=names, **SIZES)
    assert CellPulse.load(model.save(tmp_path / "x")).vocabulary.genes.tolist() == names


def test_compact_checkpoints_are_smaller_and_nearly_the_same(
    model: CellPulse, contrasts: ad.AnnData, tmp_path: Path
) -> None:
    folders = [model.save(tmp_path / str(c), compact=c) for c in (False, True)]
    sizes = [(f / "model.safetensors").stat().st_size for f in folders]
    assert sizes[1] < 0.8 * sizes[0]
    loaded = CellPulse.load(folders[1])
    assert all(p.dtype == torch.float32 for p in loaded.module.parameters())
    full, compact = (m.get_latent_representation(contrasts) for m in (model, loaded))
    assert np.linalg.norm(full - compact) < 5e-3 * np.linalg.norm(full)
    first, second = model.predict(contrasts), loaded.predict(contrasts)
    for table in ("response_proba", "virus_proba"):
        difference = getattr(first, table).to_numpy() - getattr(second, table).to_numpy()
        assert np.abs(difference).max() < 0.01
    assert (first.call == second.call).mean() > 0.95


def test_an_existing_folder_is_not_replaced_unasked(
    model: CellPulse, checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "here")
    with pytest.raises(FileExistsError, match="overwrite"):
        model.save(folder)
    model.save(folder, overwrite=True)
    CellPulse.load(folder)


def test_data_are_not_saved_with_a_model(model: CellPulse, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"does not take \['save_anndata'\]"):
        model.save(tmp_path / "x", save_anndata=True)


def test_loading_with_data_attaches_them(checkpoint: Path, contrasts: ad.AnnData) -> None:
    CellPulse.setup_anndata(contrasts, study_key="study")
    model = CellPulse.from_pretrained(checkpoint, contrasts)
    assert model.adata is contrasts
    assert len(model.get_latent_representation()) == contrasts.n_obs
    model.train(max_steps=2, n_linear_steps=1, **TRAINING)


def edited(checkpoint: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    header = json.loads(path.read_text())
    edit(header)
    path.write_text(json.dumps(header))
    return folder


def resized(checkpoint: Path, folder: Path, **changes: torch.Tensor) -> Path:
    """The checkpoint with other weights, and a header that vouches for them."""

    def edit(header: dict[str, Any]) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path) | changes
        save_file(tensors, path)
        header["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        for name, tensor in changes.items():
            header["tensors"][name]["shape"] = list(tensor.shape)

    return edited(checkpoint, folder, edit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 64}, "do not fit the sizes"),
        ({"dim": 33}, "must be divisible by n_heads=2"),
        ({"dim": 10**9}, "garbles a setting"),
        ({"n_layers": 10**9}, "more layers than"),
        ({"n_factors": 10**7}, "do not fit the sizes"),
        ({"ff_mult": 10**9}, "do not fit the sizes"),
        ({"n_heads": "2"}, "n_heads=.*; expected a whole number"),
        ({"n_tokens": -1}, "n_tokens=-1; expected a whole number"),
        ({"width": 3}, "garbles a setting.*width"),
        ({"learn_gene_embedding": True}, "gene_embedding.weight: found nothing"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_memory_is_taken(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = edited(checkpoint, tmp_path / "x", lambda h: h["config"]["size"].update(change))
    with pytest.raises(ValueError, match=message):
        CellPulse.load(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size", None, "garbles a setting"),
        ("size", [1, 2], "garbles a setting"),
        ("n_relevances", 0, "n_relevances=0; expected a whole number from 1 to"),
        ("n_relevances", "many", "garbles a setting"),
        ("classifier", "yes", "garbles a setting"),
        ("classifier", {"classes": ["a", "b"]}, "do not fit the sizes"),
        ("classifier", {"kinds": 3}, "garbles a setting"),
    ],
)
def test_garbled_settings_are_refused(
    checkpoint: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    folder = edited(checkpoint, tmp_path / "x", lambda h: h["config"].update({key: value}))
    with pytest.raises(ValueError, match=message):
        CellPulse.load(folder)


@pytest.mark.parametrize("key", ["size", "n_relevances", "classifier"])
def test_missing_settings_are_refused(checkpoint: Path, tmp_path: Path, key: str) -> None:
    folder = edited(checkpoint, tmp_path / "x", lambda h: h["config"].pop(key))
    with pytest.raises(ValueError, match=f"lacks or garbles a setting.*{key}"):
        CellPulse.load(folder)


def test_weights_of_another_shape_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = resized(checkpoint, tmp_path / "x", **{"module.norm.weight": torch.ones(7)})
    with pytest.raises(ValueError, match=r"norm.weight: found \(7,\), expected \(32,\)"):
        CellPulse.load(folder)


def test_truncated_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "x")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        CellPulse.load(folder)


def test_a_vocabulary_of_another_length_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    def edit(header: dict[str, Any]) -> None:
        path = tmp_path / "x" / "genes.txt"
        path.write_text("A\nB\n")
        header["files"]["genes.txt"] = hashlib.sha256(path.read_bytes()).hexdigest()

    with pytest.raises(ValueError, match="do not fit the sizes"):
        CellPulse.load(edited(checkpoint, tmp_path / "x", edit))


def test_checkpoints_of_other_models_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited(checkpoint, tmp_path / "x", lambda h: h.update(model="Lingshu"))
    with pytest.raises(ValueError, match="holds a Lingshu model; expected CellPulse"):
        CellPulse.load(folder)


def test_settings_in_the_provenance_do_not_displace_the_models_own(
    fresh: CellPulse, tmp_path: Path
) -> None:
    fresh.provenance = {"size": "big", "note": "kept"}
    loaded = CellPulse.load(fresh.save(tmp_path / "x"))
    assert loaded.provenance == {"note": "kept"}
    assert loaded.size == fresh.size


def test_a_vocabulary_may_be_given_as_one(contrasts: ad.AnnData) -> None:
    vocabulary = GeneVocabulary(contrasts.var_names[:80])
    assert CellPulse(vocabulary=vocabulary, **SIZES).vocabulary is vocabulary


def test_registering_leaves_the_matrix_alone() -> None:
    adata = toy_contrasts()
    before = adata.X.copy()
    CellPulse.setup_anndata(adata, study_key="study", labels_key="label")
    CellPulse(adata, **SIZES)
    np.testing.assert_array_equal(adata.X, before)


def test_weights_trained_further_are_not_passed_off_as_the_checkpoint(tmp_path: Path) -> None:
    contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    cfm.models.CellPulse.setup_anndata(contrasts, labels_key="virus", study_key="study")
    first = cfm.models.CellPulse(contrasts, dim=32, n_tokens=64, n_factors=8)
    first.provenance = {"training_studies": ["earlier"], "note": "of the first"}
    first.save(tmp_path / "first", card="# card of the first")
    model = cfm.models.CellPulse.load(tmp_path / "first", contrasts)
    sha256 = model.checkpoint_sha256
    model.train_classifier()
    assert model.checkpoint_sha256 == ""
    assert model.card is None
    assert model.provenance["started_from"] == {"name": "first", "sha256": sha256}
    studies = {"earlier", *contrasts.obs["study"]}
    assert set(model.provenance["training_studies"]) == studies
    assert "note" not in model.provenance
