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

import cfm
from cfm.data import GeneVocabulary
from cfm.models import CellPulse
from tests._toy import SIZES


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
    again = CellPulse.load(loaded.save(tmp_path / "again"))
    assert again.checkpoint_sha256 == loaded.checkpoint_sha256
    compact = CellPulse.load(model.save(tmp_path / "compact", compact=True)).predict(contrasts)
    for table in ("response_proba", "virus_proba"):
        assert (getattr(first, table) - getattr(compact, table)).abs().max(axis=None) < 0.01
    assert (first.call == compact.call).mean() > 0.95


def test_gene_names_may_hold_spaces(tmp_path: Path) -> None:
    names = ["HLA A", "B", "β-globin"]
    model = CellPulse(vocabulary=names, **SIZES)
    assert CellPulse.load(model.save(tmp_path / "x")).vocabulary.genes.tolist() == names


def edited(checkpoint: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    header = json.loads(path.read_text())
    edit(header)
    path.write_text(json.dumps(header))
    return folder


def test_a_vocabulary_of_another_length_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    def edit(header: dict[str, Any]) -> None:
        path = tmp_path / "x" / "genes.txt"
        path.write_text("A\nB\n")
        header["files"]["genes.txt"] = hashlib.sha256(path.read_bytes()).hexdigest()

    with pytest.raises(ValueError, match="do not fit the sizes"):
        CellPulse.load(edited(checkpoint, tmp_path / "x", edit))


def test_settings_in_the_provenance_do_not_displace_the_models_own(
    fresh: CellPulse, tmp_path: Path
) -> None:
    fresh.provenance = {"size": "big", "note": "kept"}
    loaded = CellPulse.load(fresh.save(tmp_path / "x"))
    assert loaded.provenance == {"note": "kept"}
    assert loaded.size == fresh.size


def test_a_classifier_of_other_data_is_not_passed_off_as_the_checkpoint(
    fresh: CellPulse, contrasts: ad.AnnData
) -> None:
    sha256, name = fresh.checkpoint_sha256, fresh.checkpoint_name
    CellPulse.setup_anndata(contrasts, labels_key="label", study_key="study")
    fresh.attach(contrasts)
    fresh.train_classifier()
    assert (fresh.checkpoint_sha256, fresh.card) == ("", None)
    assert fresh.provenance["started_from"] == {"name": name, "sha256": sha256}


def test_a_vocabulary_may_be_given_as_one(contrasts: ad.AnnData) -> None:
    vocabulary = GeneVocabulary(contrasts.var_names[:80])
    assert CellPulse(vocabulary=vocabulary, **SIZES).vocabulary is vocabulary
