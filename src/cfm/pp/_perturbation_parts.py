"""The parts of a perturbation."""

from __future__ import annotations

from cfm._fields import COMBINED

#: Parts of a perturbation, without order; none for the control.
Parts = frozenset[str]


def split_parts(name: str) -> list[str]:
    """Return the parts of ``"A+B"``; a ``+`` at an end belongs to a name, as in ``"Ca2+"``."""
    parts = [p.strip() for p in name.split(COMBINED)]
    return parts if all(parts) else [name.strip()]


def parts_of(level: str, control: str | None) -> Parts:
    """Return the parts of a level of a column, without the control in a combination."""
    return frozenset() if level == control else frozenset(split_parts(level)) - {control or ""}
