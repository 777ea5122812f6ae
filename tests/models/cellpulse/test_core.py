"""Registration of data, saving and loading."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm.data import GeneVocabulary
from cfm.models import CellPulse
from cfm.models.cellpulse._data import check_effects
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


def test_registering_small_categories_is_quiet(contrasts: ad.AnnData) -> None:
    """Each sample has one contrast: nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        CellPulse.setup_anndata(contrasts, study_key="study", sample_key="sample")


def test_counts_are_refused_as_training_data() -> None:
    counts = cfm.datasets.toy_infection()
    CellPulse.setup_anndata(counts, study_key="study")
    with pytest.raises(ValueError, match="looks like expression or counts"):
        CellPulse(counts, **SIZES)


@pytest.mark.parametrize("make", [np.round, np.log1p], ids=["counts", "log"])
def test_a_row_of_expression_is_refused(make, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 300))
    x[1] = make(rng.gamma(2.0, 20.0, size=300))
    with pytest.raises(ValueError, match=r"Row 1 .*looks like expression or counts"):
        check_effects(x)


def test_one_sided_contrasts_of_few_genes_pass() -> None:
    x = np.zeros((1, 300))
    x[0, :150] = 2.0
    check_effects(x)


def test_the_share_of_the_vocabulary(model: CellPulse, contrasts: ad.AnnData) -> None:
    assert model.vocabulary_share(contrasts) == 1.0
    assert model.vocabulary_share(contrasts[:, :200]) == 0.25


def test_saving_keeps_predictions_of_viruses_and_hidden_effects(
    model: CellPulse, contrasts: ad.AnnData, tmp_path: Path
) -> None:
    """Embeddings: ``tests/models/test_all_checkpoints.py``."""
    loaded = CellPulse.load(model.save(tmp_path / "saved"))
    first, second = model.predict(contrasts), loaded.predict(contrasts)
    assert first.response_proba.equals(second.response_proba)
    assert first.virus_proba.equals(second.virus_proba)
    np.testing.assert_array_equal(first.support, second.support)
    assert first.call.tolist() == second.call.tolist()
    hidden = np.zeros((2, 800), dtype=bool)
    hidden[:, :7] = True
    found, expected = (m.predict_hidden(contrasts.X[:2], hidden) for m in (loaded, model))
    np.testing.assert_array_equal(found, expected)
    compact = CellPulse.load(model.save(tmp_path / "compact", compact=True)).predict(contrasts)
    for table in ("response_proba", "virus_proba"):
        assert (getattr(first, table) - getattr(compact, table)).abs().max(axis=None) < 0.01
    assert (first.call == compact.call).mean() > 0.95


def test_gene_names_may_hold_spaces(tmp_path: Path) -> None:
    names = ["HLA A", "B", "β-globin"]
    model = CellPulse(vocabulary=names, **SIZES)
    assert CellPulse.load(model.save(tmp_path / "x")).vocabulary.genes.tolist() == names


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
