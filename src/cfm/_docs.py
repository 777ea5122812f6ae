"""Texts of parameters that many docstrings share, written once."""

from __future__ import annotations

import re
from inspect import cleandoc
from textwrap import indent
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_PLACE = re.compile(r"^([ \t]*)%\((\w+)\)s[ \t]*$", re.MULTILINE)


def shares_docs(**texts: str) -> Callable[[T], T]:
    r"""Make a decorator that fills lines ``%(name)s`` of a docstring with these texts.

    Each line of a text is indented as the line that it replaces. The decorated object is returned
    itself, with the complete docstring; put other decorators that copy docstrings above this one.
    Names without a text are left to another decorator of this kind.

    Examples
    --------
    >>> documented = shares_docs(show="show\n    Show the figure.")
    >>> @documented
    ... def plot(show):
    ...     '''Draw.
    ...
    ...     Parameters
    ...     ----------
    ...     %(show)s
    ...     '''
    >>> print(plot.__doc__.strip().splitlines()[-1].strip())
    Show the figure.
    """
    texts = {name: cleandoc(text) for name, text in texts.items()}

    def decorate(documented: T) -> T:
        if documented.__doc__:  # None under python -OO
            documented.__doc__ = _PLACE.sub(
                lambda place: indent(texts.get(place[2], place[0].strip()), place[1]),
                documented.__doc__,
            )
        return documented

    return decorate
