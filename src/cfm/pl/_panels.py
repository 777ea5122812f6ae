"""One panel for each group of a stored table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cfm.pl._figure import new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

#: Panels beside each other.
_ACROSS = 3


def chosen_groups(table: pd.DataFrame, group: str | Sequence[str] | None, key: str) -> list[str]:
    """Say which groups of ``table["group"]`` to draw: all in stored order, or those named.

    Raises
    ------
    KeyError
        If a group is not there.
    ValueError
        If the list is empty.
    """
    found = [str(name) for name in table["group"].unique()]
    if group is None:
        return found
    wanted = [group] if isinstance(group, str) else [str(name) for name in group]
    if not wanted:
        raise ValueError("group is an empty list; pass None for all groups or name at least one.")
    for name in wanted:
        if name not in found:
            raise KeyError(
                f"group {name!r} is not in uns[{key!r}]; expected one of {', '.join(found)}."
            )
    return wanted


def group_axes(groups: list[str], ax: Axes | None, width: float, height: float) -> dict[str, Axes]:
    """Give each group its Axes: ``ax`` for a single one, else panels of that size in inches.

    Raises
    ------
    ValueError
        If ``ax`` is given with several groups.
    """
    if ax is not None:
        if len(groups) > 1:
            raise ValueError(
                f"ax= takes one panel, but there are {len(groups)} groups "
                f"({', '.join(groups)}); pass group=."
            )
        return {groups[0]: ax}
    across = 2 if len(groups) == 4 else min(_ACROSS, len(groups))
    down = -(-len(groups) // across)
    figure = new_figure(width * across, height * down)
    if down > 1:  # a title keeps its distance from the legend above it
        engine = figure.get_layout_engine()
        engine.set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
    panels = np.ravel(figure.subplots(down, across, squeeze=False))
    for unused in panels[len(groups) :]:
        unused.remove()
    return dict(zip(groups, panels, strict=False))


def one_or_all(
    panels: dict[str, Axes], group: str | Sequence[str] | None
) -> Axes | dict[str, Axes]:
    """Return the Axes itself where one group was named or found, else the dict of them."""
    if len(panels) == 1 and (group is None or isinstance(group, str)):
        return next(iter(panels.values()))
    return panels
