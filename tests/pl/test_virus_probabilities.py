"""``cfm.pl.virus_probabilities`` shows what is stored, all of it, and nothing else."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PatchCollection, QuadMesh
from matplotlib.text import Text

import cfm


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.findobj(Text) if text.get_text()]


def test_cells_hold_the_stored_probabilities(predicted):
    adata = predicted(5, 4)
    ax = cfm.pl.virus_probabilities(adata, show=False)
    columns = [mesh for mesh in ax.collections if isinstance(mesh, QuadMesh)]
    drawn = np.hstack([np.asarray(mesh.get_array()).reshape(5, 1) for mesh in columns])
    np.testing.assert_allclose(drawn, adata.obsm["predicted_virus_proba"].to_numpy())
    assert [t.get_text() for t in ax.get_xticklabels()] == list(
        adata.obsm["predicted_virus_proba"].columns
    )
    assert [t.get_text() for t in ax.get_yticklabels()] == list(adata.obs_names)


def test_uninfected_comes_first_and_stands_apart(predicted):
    adata = predicted(3, 4)
    key = "predicted_virus_proba"
    adata.obsm[key] = adata.obsm[key][["IAV", "uninfected", "RSV", "SARS-CoV-2", "SARS-CoV"]]
    ax = cfm.pl.virus_probabilities(adata, show=False)
    names = [t.get_text() for t in ax.get_xticklabels()]
    assert names == ["uninfected", "IAV", "RSV", "SARS-CoV-2", "SARS-CoV"]
    gaps = np.diff(ax.get_xticks())
    assert gaps[0] > 1 and np.allclose(gaps[1:], 1)


def test_conformal_sets_are_outlined(predicted):
    adata = predicted(4, 4)
    adata.obs["predicted_virus_set"] = ["IAV|RSV", "", "uninfected", "IAV"]
    ax = cfm.pl.virus_probabilities(adata, show=False)
    (frames,) = (c for c in ax.collections if isinstance(c, PatchCollection))
    assert len(frames.get_paths()) == 4
    assert "conformal set (90 %)" in texts(ax)


def test_the_called_class_is_bold_and_candidates_carry_their_number(predicted):
    adata = predicted(2, 2)
    adata.obs["predicted_virus"] = ["SARS-CoV", "unknown"]
    adata.obs["predicted_virus_set"] = ["uninfected|SARS-CoV", "SARS-CoV-2"]
    adata.obsm["predicted_virus_proba"].iloc[:] = [[0.6, 0.37, 0.03], [0.02, 0.01, 0.97]]
    ax = cfm.pl.virus_probabilities(adata, show=False)
    cells = [t for t in ax.texts if t.get_text().isdigit()]
    assert [t.get_text() for t in cells] == ["60", "37", "3", "1", "97"]
    assert [t.get_text() for t in cells if t.get_fontweight() == "bold"] == ["3"]


def test_every_kind_of_answer_has_its_own_mark(predicted):
    adata = predicted(3, 4)
    adata.obs["predicted_virus"] = ["IAV", "uninfected", "unknown"]
    ax = cfm.pl.virus_probabilities(adata, truth="virus", show=False)
    assert {"● IAV", "○ uninfected", "? unknown", "known"} <= set(texts(ax))
    assert f"{adata.obs['predicted_virus_novelty'].iloc[0]:.2f}" in texts(ax)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 20), (80, 20)])
def test_no_text_is_clipped_or_written_over_another(predicted, n, k):
    ax = cfm.pl.virus_probabilities(
        predicted(n, k, "placental macrophages|early gestation|donor {i:03d}|{virus}_vs_mock"),
        truth="virus",
        show=False,
    )
    figure = ax.figure
    figure.draw_without_rendering()
    shown = [t for t in ax.findobj(Text) if t.get_text() and t.get_visible()]
    boxes = [t.get_window_extent() for t in shown]
    page = figure.bbox
    for text, box in zip(shown, boxes, strict=True):
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert inside, text.get_text()
    corners = np.array([box.extents for box in boxes]) + np.array([1, 1, -1, -1])
    for i, (x0, y0, x1, y1) in enumerate(corners):
        rest = corners[i + 1 :]
        hit = (rest[:, 0] < x1) & (rest[:, 2] > x0) & (rest[:, 1] < y1) & (rest[:, 3] > y0)
        assert not hit.any(), (shown[i].get_text(), shown[i + 1 + hit.argmax()].get_text())


def test_draws_into_the_given_axes_and_leaves_its_figure_open(predicted):
    figure, panels = plt.subplots(1, 2, figsize=(12, 4))
    size = tuple(figure.get_size_inches())
    ax = cfm.pl.virus_probabilities(predicted(3), ax=panels[1], show=False)
    assert ax is panels[1]
    assert not panels[0].collections
    assert tuple(figure.get_size_inches()) == size
    assert plt.fignum_exists(figure.number)


def test_own_figure_is_saved_and_closed(predicted, tmp_path):
    before = dict(mpl.rcParams)
    path = tmp_path / "calls.png"
    ax = cfm.pl.virus_probabilities(predicted(3), show=False, save=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before
    ax.figure.savefig(tmp_path / "again.png")


def test_input_is_left_alone(predicted):
    adata = predicted(4)
    copy = adata.copy()
    cfm.pl.virus_probabilities(adata, show=False)
    assert adata.obs.equals(copy.obs)
    assert set(adata.uns) == set(copy.uns)


def test_missing_fields_name_the_tool_to_run(predicted):
    adata = predicted(3)
    with pytest.raises(KeyError, match=r"run cfm\.tl\.predict_virus\(adata, key_added='other'\)"):
        cfm.pl.virus_probabilities(adata, key="other", show=False)
    del adata.obs["predicted_virus_novelty"]
    with pytest.raises(KeyError, match=r"obs\['predicted_virus_novelty'\] not found"):
        cfm.pl.virus_probabilities(adata, show=False)


def test_bad_arguments(predicted):
    adata = predicted(3)
    with pytest.raises(KeyError, match="no column 'strain'"):
        cfm.pl.virus_probabilities(adata, truth="strain", show=False)
    with pytest.raises(ValueError, match="no contrasts"):
        cfm.pl.virus_probabilities(adata[:0], show=False)
    adata.obsm["predicted_virus_proba"] = adata.obsm["predicted_virus_proba"].to_numpy()
    with pytest.raises(TypeError, match="expected the DataFrame"):
        cfm.pl.virus_probabilities(adata, show=False)
