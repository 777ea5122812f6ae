"""Sphinx extension: every image has alternative text, or the build warns (``-W``: it fails).

A page in Markdown says it in the brackets: ``![what the figure shows](figure.png)``. A notebook
says it in the metadata of the cell that draws, one figure in a cell::

    "metadata": {"mystnb": {"image": {"alt": "what the figure shows"}}}

A cell with such a text and no figure is warned about too: the figure was lost.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.util import logging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

#: Shorter than this is a file name or "figure", which a screen reader says already.
FEWEST_CHARACTERS = 15
logger = logging.getLogger(__name__)


def _cell(node: nodes.Node | None) -> str:
    """The cell of a notebook that a node comes from, in words, or nothing."""
    while node is not None and node.get("nb_element") != "cell_code":
        node = node.parent
    if node is None:
        return ""
    return f"cell {node['cell_index']} ({node.astext().strip().splitlines()[0]})"


def problems(doctree: nodes.document) -> Iterator[tuple[nodes.Node, str]]:
    """Where the images of a page and their texts are not as they should be, and why."""
    for image in doctree.findall(nodes.image):
        if len(image.get("alt", "").strip()) < FEWEST_CHARACTERS:
            yield image, f"image without alternative text: {_cell(image) or image['uri']}"
    for raw in doctree.findall(nodes.raw):
        for tag in re.findall(r"<img\b[^>]*>", raw.astext(), flags=re.IGNORECASE):
            text = re.search(r"""\balt\s*=\s*(["'])(.*?)\1""", tag, flags=re.IGNORECASE)
            if text is None or len(text[2].strip()) < FEWEST_CHARACTERS:
                yield raw, f"image without alternative text: {tag}"
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code":
            continue
        figures = len(list(cell.findall(nodes.image)))
        promised = "alt" in cell["cell_metadata"].get("mystnb", {}).get("image", {})
        if figures > 1:
            yield cell, f"{_cell(cell)} draws {figures} figures: give each a cell of its own"
        if promised and not figures:
            yield cell, f"{_cell(cell)} has alternative text and no figure"


def _warn(app: Sphinx, doctree: nodes.document) -> None:
    for node, problem in problems(doctree):
        logger.warning("%s", problem, location=node)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the check."""
    app.connect("doctree-read", _warn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
