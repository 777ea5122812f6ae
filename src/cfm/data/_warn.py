"""Warnings that point at the line of whoever called the package."""

from __future__ import annotations

import sys
import warnings

#: Frames of these lie between a user and our functions, and are not what a warning is about.
_INSIDE = ("cfm", "torch", "scvi", "lightning", "contextlib")
#: These call the tools themselves, and collect their warnings.
_CALLERS = ("cfm._cli.", "cfm._report.")


def warn_user(message: str) -> None:
    """Warn, in the name of the first line outside the package, however deep the call is."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_inside(str(frame.f_globals.get("__name__", ""))):
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level + 1)


def _is_inside(module: str) -> bool:
    return module.split(".")[0] in _INSIDE and not f"{module}.".startswith(_CALLERS)
