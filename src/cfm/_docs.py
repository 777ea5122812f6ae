"""Parameter texts that stand once: docrep-style fragments for docstrings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from inspect import cleandoc
from textwrap import indent
from typing import TypeVar

T = TypeVar("T")

_PLACE = re.compile(r"^( *)%\((\w+)\)s$", re.MULTILINE)


def fill_docs(texts: Mapping[str, str]) -> Callable[[T], T]:
    r"""Return a decorator that replaces each line ``%(name)s`` of a docstring by the text ``name``.

    A text is a whole entry of a section, the name of the parameter included; it is indented as the
    line that it replaces.

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

    def fill(item: T) -> T:
        if item.__doc__:
            item.__doc__ = _PLACE.sub(
                lambda place: indent(cleandoc(texts[place[2]]), place[1]), item.__doc__
            )
        return item

    return fill
