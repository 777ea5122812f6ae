"""Texts of parameters that many docstrings share, written once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from inspect import cleandoc
from textwrap import indent
from typing import TypeVar

T = TypeVar("T")

_PLACE = re.compile(r"^([ \t]*)%\((\w+)\)s[ \t]*$", re.MULTILINE)


def fill_docs(texts: Mapping[str, str]) -> Callable[[T], T]:
    r"""Make a decorator that replaces lines ``%(name)s`` of a docstring by the text ``name``.

    A text is a whole entry of a section, the name of the parameter included; it is indented as the
    line that it replaces. The decorated object is returned itself; put other decorators that copy
    docstrings above this one. Names without a text are left to another decorator of this kind.

    Examples
    --------
    >>> @fill_docs({"seed": "seed\n    Seed of the run."})
    ... def draw(seed):
    ...     '''Draw.
    ...
    ...     %(seed)s
    ...     '''
    >>> print(draw.__doc__.splitlines()[3].strip())
    Seed of the run.
    """
    clean = {name: cleandoc(text) for name, text in texts.items()}

    def fill(item: T) -> T:
        if item.__doc__:  # None under python -OO
            item.__doc__ = _PLACE.sub(
                lambda place: indent(clean.get(place[2], place[0].strip()), place[1]), item.__doc__
            )
        return item

    return fill
