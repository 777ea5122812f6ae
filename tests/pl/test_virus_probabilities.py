"""``cfm.pl.virus_probabilities`` shows what is stored, all of it, and nothing else."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import QuadMesh
from matplotlib.text import Annotation, Text

import cfm

KEY = "predicted_virus"
KINDS, VIRUSES = f"{KEY}_response_proba", f"{KEY}_proba"


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.findobj(Text) if text.get_text()]


def drawn(ax, adata) -> tuple[np.ndarray, np.ndarray]:
    """Values of the cells, and whether they are in the colours of viruses that are not named."""
    shape = adata.n_obs, len(ax.get_xticks())
    values, grey = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    for mesh in (mesh for mesh in ax.collections if isinstance(mesh, QuadMesh)):
        column = int(np.searchsorted(ax.get_xticks(), mesh.get_coordinates()[0, 0, 0]))
        cells = np.ma.masked_array(mesh.get_array()).reshape(-1)
        shown = ~np.ma.getmaskarray(cells)
        assert np.isnan(values[shown, column]).all()
        values[shown, column] = cells[shown]
        grey[shown, column] = mesh.get_cmap().name == "Greys"
    return values, grey


def column_of_texts(ax, title: str) -> list[list[str]]:
    """Texts below each header of that name, from left to right."""
    notes = [text for text in ax.texts if isinstance(text, Annotation)]
    starts = [text.xyann[0] for text in notes if text.get_text() == title]
    below = [t for t in notes if t.get_verticalalignment() == "center"]
    return [[t.get_text() for t in below if t.xyann[0] == start] for start in sorted(starts)]


def test_cells_hold_the_stored_probabilities(predicted):
    adata = predicted(5, 4)
    ax = cfm.pl.virus_probabilities(adata, show=False)
    values, _ = drawn(ax, adata)
    np.testing.assert_allclose(values, np.hstack([adata.obsm[KINDS], adata.obsm[VIRUSES]]))
    names = [t.get_text() for t in ax.get_xticklabels()]
    assert names == [*adata.uns[KEY]["responses"], *adata.uns[KEY]["classes"]]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(adata.obs_names)


def test_viruses_have_the_colour_only_where_one_is_named(predicted):
    adata = predicted(4, 4)
    adata.obs[KEY] = ["IAV", "unresolved", "not viral", "uninfected"]
    ax = cfm.pl.virus_probabilities(adata, cmap="Purples", show=False)
    _, grey = drawn(ax, adata)
    assert not grey[:, :4].any()
    assert not grey[0].any()
    assert grey[1:, 4:].all()
    assert "grey" in " ".join(texts(ax))
    adata.obs[KEY] = "IAV"
    ax = cfm.pl.virus_probabilities(adata, show=False)
    assert not drawn(ax, adata)[1].any()
    assert "grey" not in " ".join(texts(ax))


def test_numbers_of_the_answers_are_bold(predicted):
    adata = predicted(2, 2)
    adata.obs[KEY] = ["SARS-CoV", "unresolved"]
    adata.obs[f"{KEY}_response"] = ["viral", "interferon I/III"]
    adata.obsm[KINDS].iloc[:] = [[0.02, 0.9, 0.05, 0.03], [0.04, 0.4, 0.1, 0.46]]
    adata.obsm[VIRUSES].iloc[:] = [[0.97, 0.03], [0.01, 0.99]]
    ax = cfm.pl.virus_probabilities(adata, show=False)
    cells = [t for t in ax.texts if t.get_text().isdigit()]
    assert [t.get_text() for t in cells] == ["90", "5", "97", "3", "40", "10", "46", "99"]
    assert [t.get_text() for t in cells if t.get_fontweight() == "bold"] == ["90", "3", "46"]
    del adata.uns[KEY]  # as after anndata.concat: names are those of obs
    ax = cfm.pl.virus_probabilities(adata, show=False)
    assert ax.get_xticklabels()[3].get_text() == "interferon I/III"
    cells = [t for t in ax.texts if t.get_text().isdigit()]
    assert [t.get_text() for t in cells if t.get_fontweight() == "bold"] == ["90", "3", "46"]


def test_response_and_call_stand_beside_the_cells_with_their_support(predicted):
    adata = predicted(5, 4)
    adata.obs[KEY] = ["IAV", "uninfected", "unresolved", "not viral", "unresolved"]
    responses = ["viral", "none", "interferon I/III", "bacterial", "unresolved"]
    adata.obs[f"{KEY}_response"] = responses
    adata.obs[f"{KEY}_support"] = [0.92, 0.71, 0.33, 0.86, np.nan]
    ax = cfm.pl.virus_probabilities(adata, truth="virus", show=False)
    assert column_of_texts(ax, "known") == [adata.obs["virus"].tolist()]
    assert column_of_texts(ax, "response") == [responses]
    calls = ["● IAV", "○ uninfected", "? unresolved", "◇ not viral", "? unresolved"]
    assert column_of_texts(ax, "call") == [calls]
    # as in uns["predicted_virus"]["support"]; what is unresolved has no support of its own
    of_response, of_call = column_of_texts(ax, "support")
    assert of_response == ["0.81", "0.71", "0.33", "0.14", "–"]
    assert of_call == ["0.92", "0.71", "–", "0.86", "–"]


def test_support_of_the_response_without_the_table(predicted):
    """As after ``anndata.concat``, which leaves ``uns`` out."""
    adata = predicted(3, 4)
    adata.obs[KEY] = ["IAV", "uninfected", "unresolved"]
    adata.obs[f"{KEY}_support"] = [np.nan, 0.7, 0.3]
    del adata.uns[KEY]
    of_response, of_call = column_of_texts(cfm.pl.virus_probabilities(adata, show=False), "support")
    assert of_response == ["–", "0.70", "0.30"]
    assert of_call == ["–", "0.70", "–"]
