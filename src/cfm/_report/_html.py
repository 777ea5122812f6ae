"""Filling the report's template."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_PACKAGES = (
    "cfm-tools", "anndata", "captum", "decoupler", "gseapy", "igraph", "numpy", "pandas",
    "pydeseq2", "scanpy", "scikit-learn", "scvi-tools", "torch",
)  # fmt: skip
#: Sections of a model card that a reader of a result has to see.
_SHOWN_SECTIONS = re.compile(r"use|limit|patent|independen|caution|out of scope", re.IGNORECASE)


def render(context: Mapping[str, Any]) -> str:
    """Fill the template; a name missing from ``context`` is an error, not an empty space."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cfm._report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    environment.filters["breakable"] = breakable
    return environment.get_template("report.html.j2").render(context)


def versions() -> dict[str, str]:
    """Python and the packages whose version can change a number in the report."""
    found = {"python": python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree that was never installed
            continue
    return found


def shown(value: Any) -> str:
    """Write a stored parameter as text."""
    if value is None or (isinstance(value, str) and not value):
        return "–"
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):.4g}"
    if isinstance(value, list | tuple | set):
        return ", ".join(shown(part) for part in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} = {shown(part)}" for name, part in value.items()) or "none"
    return str(value)


def breakable(name: str) -> Markup:
    """Let a long name of a contrast break after its separators."""
    text = str(escape(name))
    for separator in ("|", "_"):
        text = text.replace(separator, separator + "<wbr>")
    return Markup(text)


def card_excerpt(card: str) -> list[dict[str, Any]]:
    """Pick the sections on use and limits from a Markdown model card.

    Returns
    -------
    One ``{"heading": str, "blocks": [{"bullets": bool, "items": [str]}]}`` per section.
    """
    sections = []
    for part in re.split(r"^#{1,3}\s+", card, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        if _SHOWN_SECTIONS.search(heading):
            sections.append({"heading": heading.strip(), "blocks": _blocks(body)})
    return sections


def _blocks(body: str) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for paragraph in re.split(r"\n\s*\n", body.strip()):
        lines = [line.rstrip() for line in paragraph.splitlines()]
        if not any(lines) or lines[0].startswith(("|", "```")):
            continue  # tables and code stay in the card itself
        items: list[str] = []
        bullets = bool(re.match(r"\s*[-*]\s", lines[0]))
        for line in lines:
            start = re.match(r"\s*[-*]\s+(.*)", line)
            if start or not items:
                items.append(start.group(1) if start else line.strip())
            else:
                items[-1] += " " + line.strip()
        blocks.append({"bullets": bullets, "items": [_plain(item) for item in items]})
    return blocks


def _plain(text: str) -> str:
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)  # links: their text
    return re.sub(r"[*`]{1,3}", "", text)
