"""The reference is the authors' network, and the cases are given the same donors."""

from __future__ import annotations

import torch

from benchmarks import donor_tasks, pulsar


def test_the_reference_gives_the_published_numbers() -> None:
    assert pulsar.check_reference() < 1e-5


def test_the_operations_are_those_of_the_issue() -> None:
    assert 106e9 < pulsar.OPERATIONS < 114e9


def test_donors_are_padded_for_the_reference() -> None:
    cells = pulsar.donors([3, 5], 0, 8)
    x, padding = pulsar.padded(cells)
    assert x.shape == (2, 5, 8)
    assert padding is not None
    assert padding.sum(1).tolist() == [2, 0]
    torch.testing.assert_close(x[0, :3], cells[0])
    assert pulsar.padded(cells[:1])[1] is None


def test_all_cases_agree() -> None:
    runs = pulsar.cases(pulsar.GOLDEN / "PULSAR-tiny")
    for sizes in ([20], [4, 9, 20]):
        table = pulsar.compare(runs, sizes, 2, 48).set_index("case")
        assert table.loc["cfm float32", "largest difference"] < 1e-5
        assert (table["largest difference"] < 0.05).all()
        assert (table["donors/s"] > 0).all()


def test_what_is_planted_in_donors_is_read_off() -> None:
    found = donor_tasks.score(0, n_steps=2).set_index(["target", "representation"])["score"]
    for name in donor_tasks.NAMES:
        assert found["responder", name] > 0.8
        assert found["CXCL10", name] > 0.7
        assert found["CD14", name] > 0.4
        assert found["age", name] > 0.2
