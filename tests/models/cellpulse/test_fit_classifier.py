"""The convex problems behind the virus classifier, and its calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cfm.models.cellpulse._classifier import (
    SIGNED_STATISTICS,
    LabelledProfiles,
    Views,
    VirusClassifier,
    VirusFit,
    center,
    clearly_lower,
    fit_infected,
    fit_odds_calibration,
    fit_temperature,
    profile_statistics,
    softmax_regression,
    unit,
)

N_GENES = 60


def planted(
    n_classes: int = 3, seed: int = 0, n_per: int = 5
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Views of profiles of some viruses in four studies, two viruses in each, and uninfected."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(n_classes + 1, N_GENES))
    effects, labels, studies = [], [], []
    for study in range(4):
        batch = rng.normal(size=N_GENES)
        for kind in (study % n_classes, (study + 1) % n_classes, n_classes):
            for _ in range(n_per):
                effects.append(centre[kind] + 0.7 * batch + 0.7 * rng.normal(size=N_GENES))
                labels.append("uninfected" if kind == n_classes else f"v{kind}")
                studies.append(f"s{study}")
    x = torch.tensor(np.array(effects), dtype=torch.float32)
    common = torch.cat([unit(center(x[:, :40])), torch.zeros(len(x), N_GENES - 40)], dim=1)
    interferon = torch.zeros(N_GENES)
    interferon[:5] = 1
    views = (unit(center(x)), common, profile_statistics(x, interferon))
    arrays = tuple(view.numpy() for view in views)
    return arrays, np.array(labels), np.array(studies)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_the_dual_solution_is_sklearns(n_classes: int, penalty: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 200)) / 200**0.5  # of about unit length, as the model's rows are
    y = np.array(list("abc"))[rng.integers(n_classes, size=30)]
    weight = rng.uniform(0.2, 3.0, size=30)
    names, dual, intercept = softmax_regression(x @ x.T, y, weight, penalty)
    model = LogisticRegression(C=penalty, tol=1e-8, max_iter=10000)
    model.fit(x, y, sample_weight=weight / weight.mean())
    new = rng.normal(size=(10, 200)) / 200**0.5
    found = new @ x.T @ dual + intercept
    found = np.exp(found - found.max(axis=1, keepdims=True))
    found /= found.sum(axis=1, keepdims=True)
    assert names.tolist() == model.classes_.tolist()
    np.testing.assert_allclose(found, model.predict_proba(new), atol=2e-3)


def fitted() -> tuple[VirusFit, VirusClassifier, np.ndarray]:
    views, labels, studies = planted()
    classes = np.array(["v0", "v1", "v2"])
    fit = VirusFit(
        LabelledProfiles(views, labels, studies), np.flatnonzero(labels != "uninfected"), classes
    )
    classifier = VirusClassifier(N_GENES, classes=list(classes))
    held_out = fit.out_of_fold()
    fit.store(classifier, held_out)
    return fit, classifier, held_out


def test_held_out_logits_never_saw_their_study() -> None:
    """Whatever the study holds, what the others say of it is the same."""
    views, labels, studies = planted()
    classes = np.array(["v0", "v1", "v2"])
    infected = np.flatnonzero(labels != "uninfected")
    first = VirusFit(LabelledProfiles(views, labels, studies), infected, classes).out_of_fold()
    swapped = labels.copy()
    own = (studies == "s1") & (labels == "v1")
    swapped[own] = "v2"
    second = VirusFit(LabelledProfiles(views, swapped, studies), infected, classes).out_of_fold()
    test = studies[infected] == "s1"
    first, second = first[infected], second[infected]
    np.testing.assert_allclose(first[test], second[test], atol=1e-8)
    assert np.abs(first[~test] - second[~test]).max() > 1e-3
    truth = np.searchsorted(classes, labels[infected])
    assert (first.argmax(axis=1) == truth).mean() > 0.8


def test_stored_weights_give_the_logits_of_the_fit() -> None:
    """The network computes from genes what the dual computes from inner products."""
    fit, classifier, _ = fitted()
    views, _, _ = planted()
    found = classifier.raw_logits(Views(*map(torch.from_numpy, views)))
    found = found.detach().numpy()[fit.training]
    everything = np.ones(len(fit.training), dtype=bool)
    expected = []
    for view, dual, intercept in fit.fits(everything):
        wide = views[view][fit.training]
        expected.append(wide @ wide.T @ dual + intercept)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-3, atol=1e-3)


def test_temperature_is_that_of_the_smallest_log_loss() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (p.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    weight = np.ones(4000)
    assert fit_temperature(logits * 1.1, truth, weight) == pytest.approx(1.1, abs=0.08)
    assert fit_temperature(logits * 10, truth, weight) == pytest.approx(1.25, abs=0.01)
    assert fit_temperature(logits / 10, truth, weight) == pytest.approx(0.8, abs=0.01)


def test_odds_are_calibrated_and_never_turned_round() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, size=5000)
    truth = rng.random(5000) < 1 / (1 + np.exp(-(0.5 * odds + 1)))
    scale, shift = fit_odds_calibration(odds, truth, np.ones(5000))
    assert scale == pytest.approx(0.5, abs=0.05)
    assert shift == pytest.approx(1.0, abs=0.1)
    scale, shift = fit_odds_calibration(-odds, truth, np.ones(5000))
    assert scale == 0.0
    assert 1 / (1 + np.exp(-shift)) == pytest.approx(truth.mean())


def test_infection_is_told_from_the_rest_and_null_profiles_from_both_sides() -> None:
    views, labels, studies = planted()
    classifier = VirusClassifier(N_GENES, classes=["v0", "v1", "v2"])
    infected = labels != "uninfected"
    odds = fit_infected(classifier, LabelledProfiles(views, labels, studies), infected)
    assert ((odds > 0) == infected).mean() > 0.85
    wide, _, statistics = (torch.tensor(v) for v in views)
    mirrored = statistics.clone()
    mirrored[:, list(SIGNED_STATISTICS)] *= -1

    def raw(x: torch.Tensor, s: torch.Tensor) -> np.ndarray:
        return (
            (
                x @ classifier.infected_all
                + s @ classifier.infected_statistics
                + classifier.infected_bias
            )
            .detach()
            .numpy()
        )

    null = ~infected
    assert (raw(wide, statistics)[null] < 0).mean() > 0.8
    assert (raw(-wide, mirrored)[null] < 0).mean() > 0.8


def test_mirroring_a_profile_mirrors_the_signed_statistics_only() -> None:
    """The code mirrors statistics without going back to the profile."""
    effects = torch.randn(6, 301) ** 3  # an odd number: the median is a value
    interferon = torch.zeros(301)
    interferon[:6] = 1
    there, back = (profile_statistics(s * effects, interferon) for s in (1, -1))
    signs = torch.ones(there.shape[1])
    signs[list(SIGNED_STATISTICS)] = -1
    torch.testing.assert_close(back, there * signs, rtol=1e-4, atol=1e-4)


def test_statistics_do_not_depend_on_genes_that_are_not_measured() -> None:
    effects = torch.randn(4, 200)
    wide = torch.cat([effects, torch.full((4, 300), torch.nan)], dim=1)
    interferon = (torch.arange(500) % 50 == 0).float()
    torch.testing.assert_close(
        profile_statistics(wide, interferon), profile_statistics(effects, interferon[:200])
    )


def test_views_are_centred_clipped_and_of_unit_length() -> None:
    classifier = VirusClassifier(4, classes=["a", "b"])
    classifier.common.copy_(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    effects = torch.tensor([[1.0, 2.0, 100.0, torch.nan]])
    views = classifier.views(effects)
    direction = torch.tensor([[-1.0, 0.0, 6.0, 0.0]])  # minus the median of 2, at most 6
    torch.testing.assert_close(views.all, direction / 37**0.5)
    torch.testing.assert_close(views.common, direction / 37**0.5)


def test_only_a_difference_beyond_its_standard_error_is_clear() -> None:
    reference = np.array([1.0, 1.0, 1.0, 1.0])
    # mean -0.25, standard error 0.5 / 2: not beyond it
    assert not clearly_lower(reference + np.array([-1.0, 0.0, 0.0, 0.0]), reference)
    # mean -0.5, standard error 0.577 / 2
    assert clearly_lower(reference + np.array([-1.0, -1.0, 0.0, 0.0]), reference)
    assert not clearly_lower(reference + np.array([1.0, 1.0, 0.0, 0.0]), reference)
    assert not clearly_lower(reference[:1] - 1.0, reference[:1])  # one unit says nothing
