"""``cfm.pl.perturbation_umap(kind="umap")`` lays out control, real and simulated cells together."""

from __future__ import annotations

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest

import cfm
from cfm.pl._perturbation import _joint_map
from cfm.pl._perturbation_cells import read_screen
from tests.pl._drawn import legend_texts, outside, overlapping
from tests.pl._stored import make_screen

ASKED = {
    "key": "perturbation",
    "control": "control",
    "groupby": "cell_type",
}


@pytest.fixture(scope="module")
def toy():
    cells = cfm.datasets.toy_perturbation()
    made = cfm.tl.simulate_perturbation(cells, "IFNB1", model="mean_shift", **ASKED)
    return cells, made


def screen(real, made, **arguments):
    names = ("key", "control", "perturbation", "groupby", "layer")
    return read_screen(real, made, **dict.fromkeys(names) | {"units": "auto"} | arguments)


def test_kinds_and_groups_are_drawn(toy, tmp_path):
    cells, made = toy
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ax = cfm.pl.perturbation_umap(
            cells,
            made,
            groupby="cell_type",
            n_cells=150,
            save=tmp_path / "a.png",
            show=False,
        )
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert legend_texts(ax) == [
        "control: 150 cells",
        "IFNB1, real: 133 cells",
        "IFNB1, simulated (mean_shift): 150 cells",
    ]
    written = [text.get_text() for text in ax.texts]
    assert sorted(written) == ["B cell", "Monocyte", "NK cell", "T cell"]
    assert overlapping(ax.texts) == []
    assert outside(ax.texts, ax.get_window_extent()) == []
    colors = {tuple(part.get_facecolor()[0][:3]) for part in ax.collections}
    assert len(colors) == 3
    assert sum(len(part.get_offsets()) for part in ax.collections) == 150 + 133 + 150
    assert plt.get_fignums() == []


def test_simulated_cells_lie_by_those_they_are_like(toy):
    cells, _ = toy
    # real cells of the same and of another condition stand in for simulations
    made = {
        name: cells[cells.obs["perturbation"] == name].copy() for name in ("IFNB1+IL6", "control")
    }
    apart = {}
    for name, part in made.items():
        part.obs["perturbation"] = "IFNB1+IL6"
        asked = screen(cells, part[part.obs["cell_type"] == "T cell"], **ASKED)
        points, kind, group = _joint_map(asked, 100)
        assert set(group) == {"T cell"}
        middle = [np.median(points[kind == number], axis=0) for number in range(3)]
        size = np.linalg.norm(middle[0] - middle[1])
        apart[name] = np.linalg.norm(middle[2] - middle[1]) / size
    assert apart["IFNB1+IL6"] < 0.3
    assert apart["control"] > 0.7


def test_it_repeats_in_any_row_order(toy):
    cells, made = toy
    first = _joint_map(screen(cells, made, **ASKED), 40)
    for real in (cells, cells[::-1].copy()):  # the same cells are drawn
        for found, expected in zip(_joint_map(screen(real, made, **ASKED), 40), first, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_bad_input():
    real, made = make_screen()
    with pytest.raises(ValueError, match="n_cells=1; expected"):
        cfm.pl.perturbation_umap(real, made, n_cells=1)
    one = made[:1].copy()
    with pytest.raises(ValueError, match="There are 1 simulated cells to draw"):
        cfm.pl.perturbation_umap(real, one)
    real.X[:], made.X[:] = 1.5, 1.5
    with pytest.raises(ValueError, match="Fewer than two genes vary"):
        cfm.pl.perturbation_umap(real, made)
    assert plt.get_fignums() == []
