"""Draws the rooms of ``src/cfm`` and what they import: ``python docs/draw_architecture.py``.

Floors are those of the import contract in ``pyproject.toml``, arrows are the imports in the source;
an import that follows from others is left out. ``tests/test_docs.py`` fails if the picture is old.
"""

from __future__ import annotations

import ast
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cfm"
PICTURE = ROOT / "docs" / "_static" / "architecture.svg"
#: By room: what it holds, and where it stands on its floor.
ROOMS = {
    "_cli": ("command line", 1.5),
    "_report": ("report in HTML", 1.5),
    "tl": ("tools store results", 1.5),
    "pl": ("plots of what is stored", 4.9),
    "models": ("the systems", 1.5),
    "datasets": ("toy and public data", 0.0),
    "pp": ("AnnData → AnnData", 3.6),
    "get": ("results as tables", 1.8),
    "hub": ("checkpoints", 0.4),
    "metrics": ("scores", 1.64),
    "stats": ("nulls, enrichment", 2.6),
    "data": ("genes, matrices, files", 3.56),
    "nn": ("layers: torch alone", 0.8),
    "_fields": ("names of stored fields", 4.9),
}
_UNIT, _WIDTH, _HEIGHT, _FLOOR, _MARGIN = 160, 146, 46, 88, 12


def imports() -> dict[str, set[str]]:
    """Return by room the rooms that its files import."""
    out: dict[str, set[str]] = {room: set() for room in ROOMS}
    for file in sorted(SOURCE.rglob("*.py")):
        room = file.relative_to(SOURCE).with_suffix("").parts[0]
        if room not in ROOMS:
            if file.parent.parent == SOURCE and file.name == "__init__.py":
                raise KeyError(f"src/cfm/{room} is not in ROOMS of {__file__}")
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{a.name}" for a in node.names]
            found = {name.split(".")[1] for name in names if name.startswith("cfm.")}
            out[room] |= (found & ROOMS.keys()) - {room}
    return out


def without_detours(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports that do not follow from others (transitive reduction)."""

    def reached(room: str) -> set[str]:
        return graph[room].union(*(reached(other) for other in graph[room]))

    return {
        room: {b for b in below if not any(b in reached(other) for other in below - {b})}
        for room, below in graph.items()
    }


def floors() -> list[list[str]]:
    """Return the rooms of each floor, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]
    parts = [[r for r in layer.split(" | ") if r in ROOMS] for layer in contract["layers"]]
    return [part for part in parts if part]


def draw() -> str:
    """Return the picture as SVG."""
    heights = [(room, y) for y, floor in enumerate(floors()) for room in floor]
    corner = {
        room: (_MARGIN + round(ROOMS[room][1] * _UNIT), _MARGIN + y * _FLOOR) for room, y in heights
    }
    width = max(x for x, _ in corner.values()) + _WIDTH + _MARGIN
    height = max(y for _, y in corner.values()) + _HEIGHT + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" text-anchor="middle">',
        '<marker id="arrow" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0 0L9 4L0 8z" fill="#446"/></marker>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for room, below in without_detours(imports()).items():
        for other in sorted(below):
            (x1, y1), (x2, y2) = corner[room], corner[other]
            lines.append(
                f'<path d="M{x1 + _WIDTH // 2} {y1 + _HEIGHT}L{x2 + _WIDTH // 2} {y2}" '
                'stroke="#446" stroke-width="1.3" marker-end="url(#arrow)"/>'
            )
    for room, (x, y) in corner.items():
        lines += [
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" fill="#eef2fa" '
            'stroke="#446"/>',
            f'<text x="{x + _WIDTH // 2}" y="{y + 19}" font-size="15" font-weight="bold">{room}'
            "</text>",
            f'<text x="{x + _WIDTH // 2}" y="{y + 36}" font-size="12">{escape(ROOMS[room][0])}'
            "</text>",
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
