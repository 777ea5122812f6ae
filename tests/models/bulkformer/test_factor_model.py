"""The local factor model, alone and as linear term: planted factors, locality, round trips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cfm.models import BulkFormer
from cfm.models.bulkformer import LocalFactorModel, _factor_model
from tests._bulk import TRAINING, toy_log_tpm, untrained


def two_groups(seed: int, n: int = 40, n_genes: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Two groups with centres of their own, whose genes follow factors of their own."""
    truth = np.random.default_rng(0)
    base = truth.uniform(3.0, 6.0, (2, n_genes))
    loadings = truth.normal(size=(2, 2, n_genes))
    rng = np.random.default_rng(seed)
    groups = np.repeat([0, 1], n)
    x = base[groups] + np.einsum("nk,nkg->ng", rng.normal(size=(2 * n, 2)), loadings[groups])
    return (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32), groups


def hide(x: np.ndarray, share: float = 0.3, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.random.default_rng(seed).random(x.shape) < share
    return np.where(hidden, np.float32("nan"), x), hidden


def test_planted_factors_are_found() -> None:
    x, groups = two_groups(1)
    term = LocalFactorModel.fit(x, groups, n_factors=8)
    new, _ = two_groups(2)
    seen, hidden = hide(new)
    error = np.square(term.predict(seen) - new)[hidden].mean()
    mean = np.square(x.reshape(2, 40, -1).mean(1)[groups] - new)[hidden].mean()
    assert error < 0.05 * mean


def test_a_sample_belongs_to_its_group() -> None:
    x, groups = two_groups(1)
    term = LocalFactorModel.fit(x, groups, n_factors=8)
    seen = torch.from_numpy(hide(two_groups(2)[0])[0])
    belongs = torch.stack([term.membership(s)[0] for s in seen])
    unlike = torch.stack([term.membership(s)[1] for s in seen])
    assert float(unlike.median()) < 0.5 < float(term.membership(seen[0] + 3.0)[1])
    assert (belongs.argmax(1).numpy() == groups).mean() > 0.95
    torch.testing.assert_close(belongs.sum(1), torch.ones(len(seen)))
    without = torch.tensor([True, False])
    assert float(term.membership(seen[0], without)[0][0]) == 0.0


def test_noise_and_locality_are_chosen_for_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fixed setting is as good for sparse clean samples and for complete noisy ones."""
    x, groups = two_groups(1, n_genes=300)
    rng = np.random.default_rng(3)
    x = x + 0.5 * rng.normal(size=x.shape).astype(np.float32)
    term = LocalFactorModel.fit(x, groups, n_factors=8)
    truth, _ = two_groups(2, n_genes=300)
    noise = rng.normal(size=truth.shape).astype(np.float32)
    cases = [hide(truth + 0.05 * noise, 0.9), hide(truth + 2.0 * noise, 0.3)]

    def error() -> float:
        """Geometric mean of the squared errors of both cases."""
        each = [np.square(term.predict(seen) - truth)[hidden].mean() for seen, hidden in cases]
        return float(np.sqrt(np.prod(each)))

    chosen = error()
    for local in (0.03, 10.0):
        for times in (0.5, 8.0):
            monkeypatch.setattr(_factor_model, "_LOCAL", (local,))
            monkeypatch.setattr(_factor_model, "_NOISE", (times,))
            assert chosen < 0.97 * error()


def test_hidden_values_are_not_read_and_samples_do_not_mix() -> None:
    x, groups = two_groups(1)
    term = LocalFactorModel.fit(x, groups, n_factors=8)
    seen, _ = hide(x)
    alone = np.concatenate([term.predict(s[None]) for s in seen])
    np.testing.assert_allclose(term.predict(seen), alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(term.predict(seen[::-1])[::-1], alone, rtol=1e-5, atol=1e-5)


def test_a_group_may_lack_genes() -> None:
    x, groups = two_groups(1)
    x[groups == 1, :20] = np.nan
    term = LocalFactorModel.fit(x, groups, n_factors=8)
    assert not term.measured[1, :20].any()
    for buffer in term.buffers():
        assert bool(torch.isfinite(buffer.float()).all())
    new, _ = two_groups(3)
    seen, hidden = hide(new)
    made = term.predict(seen)
    own = groups == 0
    assert np.square(made - new)[own][hidden[own]].mean() < 0.1


@pytest.fixture(scope="module")
def model() -> BulkFormer:
    made = untrained()
    made.train(max_steps=10, **TRAINING)
    made.fit_linear_term(8)
    return made


def test_it_improves_on_a_network_that_was_hardly_trained(model: BulkFormer) -> None:
    new = toy_log_tpm(seed=9, n=16)
    mask = np.random.default_rng(0).random(new.shape) < 0.3
    both = np.square(model.impute(new, mask=mask) - new.X)[mask].mean()
    assert float(model.linear_term.weight) > 0.5
    term, model.linear_term = model.linear_term, None
    network = np.square(model.impute(new, mask=mask) - new.X)[mask].mean()
    model.linear_term = term
    assert both < 0.3 * network


def test_the_factors_embed_where_they_have_most_of_the_weight(model: BulkFormer) -> None:
    new = toy_log_tpm(seed=9, n=8)
    factors = model.get_latent_representation(new, pooling="factors")
    network = model.get_latent_representation(new, pooling="mean")
    np.testing.assert_array_equal(model.get_latent_representation(new), factors)
    part = model.get_latent_representation(new, genes=list(new.var_names[:10]))
    assert np.abs(part - factors).max() > 1e-3
    fewer = model.get_latent_representation(new[:, 5:].copy())
    same = model.get_latent_representation(new, genes=list(new.var_names[5:]))
    np.testing.assert_allclose(fewer, same, rtol=1e-5, atol=1e-5)
    weight = model.linear_term.weight.clone()
    model.linear_term.weight.fill_(0.5)
    np.testing.assert_array_equal(model.get_latent_representation(new), network)
    model.linear_term.weight.copy_(weight)
    with pytest.raises(ValueError, match=r"fit_linear_term\(\), or pass pooling='mean'"):
        untrained().get_latent_representation(new, pooling="factors")


def test_a_network_without_a_share_is_not_run(
    model: BulkFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = toy_log_tpm(seed=9, n=8)
    mask = np.random.default_rng(0).random(new.shape) < 0.3
    weight = model.linear_term.weight.clone()
    model.linear_term.weight.fill_(np.nextafter(np.float32(1), np.float32(0)))
    blended = model.impute(new, mask=mask)
    model.linear_term.weight.fill_(1.0)
    monkeypatch.setattr(model.module, "predict", None)
    alone = model.impute(new, mask=mask)
    np.testing.assert_allclose(alone, blended, atol=1e-4)
    np.testing.assert_array_equal(model.impute(new, mask=mask, batch_size=2), alone)
    model.linear_term.weight.copy_(weight)


def test_weight_zero_is_the_network(model: BulkFormer) -> None:
    new = toy_log_tpm(seed=9, n=4)
    term = model.linear_term
    weight = term.weight.clone()
    term.weight.zero_()
    blended = model.predict_expression(new)
    term.weight.copy_(weight)
    model.linear_term = None
    network = model.predict_expression(new)
    model.linear_term = term
    pd.testing.assert_frame_equal(blended, network)


@pytest.mark.parametrize("compact", [False, True])
def test_it_survives_saving(model: BulkFormer, tmp_path: Path, compact: bool) -> None:
    new = toy_log_tpm(seed=9, n=4)
    mask = np.random.default_rng(0).random(new.shape) < 0.3
    loaded = BulkFormer.load(model.save(tmp_path / "m", compact=compact))
    made = loaded.impute(new, mask=mask)
    np.testing.assert_allclose(made, model.impute(new, mask=mask), atol=0.05 if compact else 1e-5)
    assert loaded.module.edges.dtype == torch.int64


def test_the_model_is_no_longer_the_checkpoint(model: BulkFormer, tmp_path: Path) -> None:
    adata = toy_log_tpm()
    BulkFormer.setup_anndata(adata, study_key="study")
    loaded = BulkFormer.load(model.save(tmp_path / "m", card="Old."), adata)
    sha256 = loaded.checkpoint_sha256
    loaded.fit_linear_term(3, weight=1.0)
    assert loaded.checkpoint_sha256 == loaded.checkpoint_name == ""
    assert loaded.card is None
    assert loaded.provenance["started_from"] == {"name": "m", "sha256": sha256}
    facts = {k: v for k, v in loaded.provenance.items() if k != "started_from"}
    assert facts == model.provenance


def test_two_fits_are_the_same(model: BulkFormer) -> None:
    again = untrained()
    again.train(max_steps=10, **TRAINING)
    again.fit_linear_term(8)
    assert again.weights_digest() == model.weights_digest()


def test_it_can_be_fitted_by_other_groups() -> None:
    adata = toy_log_tpm()
    adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    model = untrained(adata)
    model.fit_linear_term(4, group_key="half")
    assert model.linear_term.sizes["n_groups"] == 2
    model.fit_linear_term(4, weight=0.25)
    assert float(model.linear_term.weight) == 0.25
    with pytest.raises(ValueError, match="weight="):
        model.fit_linear_term(4, weight=2.0)
    with pytest.raises(KeyError, match="no column 'none'"):
        model.fit_linear_term(4, group_key="none")
