"""The effects of an option as a forest: what switching it on changes, per metric, option value, pair and role."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from asu import style
from asu.effects import CONTROL, EFFECTS
from asu.models import parameters
from asu.plots.core import legend, need, paper_handles, select

_COLUMNS = 4  # panels side by side
_APART = 0.36  # vertical distance of the two roles of one row
_ABOVE = 0.40  # of the paper's marks over the middle of a row, clear of our own


@style.styled
def effects(table: pd.DataFrame, *, paper: pd.DataFrame | None = None, by: str = "metric") -> Figure:
    """Forest plot: a panel per metric, a row per pair and arm value (the control first), the roles one above the other.

    by: "task" for a table of one metric made by task: a panel per problem set then, the paper's marks by `task` too.

    table: of `effects.table`, that of the control among it: size, role, arm, metric, how, value, lo, hi, note.
    paper: arm, metric, value, and size where it matters; hollow marks, without a size beside our largest only, for a
    large model is what the paper plots. Ratios on a logarithmic axis with a
    line at 1, differences of accuracy in points with a line at 0. What was not measured is a gap with its reason.
    """
    need(table, ["size", "role", "arm", "metric", "how", "value", "lo", "hi", "note"], "effects")
    names = [name for name in EFFECTS if name in set(table["metric"])] if by == "metric" else style.ordered(
        table[by], style.TASKS)
    rows = _rows(table)
    columns = min(_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(style.WIDTH, lines * (0.75 + 0.36 * len(rows)) + 0.6), layout="constrained")
    axes = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for ax, name in zip(axes, names, strict=False):
        here = select(table, **{by: name})
        effect = EFFECTS[here["metric"].iloc[0]]
        _panel(ax, here, select(paper, **{"metric": effect.name, by: name}), rows, effect)
        ax.set_title(_title(effect) if by == "metric" else f"{style.task(name).label}\n{_title(effect)}", fontsize=9)
    for ax in axes[len(names):]:
        ax.remove()
    looks = [style.role(role) for role in style.ordered(table["role"], style.ROLES)]
    handles = [Line2D([], [], color=look.colour, marker=look.marker, label=look.label) for look in looks]
    legend(figure, handles + paper_handles(paper, "paper"))
    return figure


def _rows(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(size, arm value) of every row from top to bottom: the largest model first, its control before the rest."""
    arms = sorted(dict.fromkeys(table["arm"]), key=lambda arm: not arm.startswith(CONTROL))
    present = set(zip(table["size"], table["arm"], strict=True))
    sizes = sorted(set(table["size"]), key=parameters, reverse=True)
    return [(size, arm) for size in sizes for arm in arms if (size, arm) in present]


def _panel(ax: Axes, here: pd.DataFrame, theirs: pd.DataFrame, rows: list[tuple[str, str]], effect) -> None:
    """One metric; `rows` from top to bottom."""
    nothing, scale = (0.0, 100.0) if effect.how == "difference" else (1.0, 1.0)
    shown = [nothing]
    largest = rows[0][0]
    for place, (size, arm) in enumerate(rows):
        if arm.startswith(CONTROL):
            ax.axhspan(place - 0.5, place + 0.5, color=style.FAINT, alpha=0.15, linewidth=0)
        for role in style.ordered(here["role"], style.ROLES):
            at = place + (list(style.ROLES).index(role) - 0.5) * _APART
            for row in select(here, size=size, arm=arm, role=role).itertuples():
                shown += _mark(ax, at, row, scale, style.role(role))
        known = len(select(here, size=size, arm=arm)) and (size == largest or "size" in theirs)
        for row in select(theirs, size=size, arm=arm).itertuples() if known else ():
            ax.plot(row.value * scale, place - _ABOVE, style.PAPER.marker, markerfacecolor="white",
                    markeredgecolor=style.INK, markersize=4, markeredgewidth=0.8, zorder=4)
            shown.append(row.value * scale)
    ax.axvline(nothing, color=style.INK, linewidth=0.8, zorder=1)
    ax.set_yticks(range(len(rows)), [f"{size} {arm}" for size, arm in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    _scale(ax, effect, np.array(shown))


def _mark(ax: Axes, at: float, row, scale: float, look: style.Look) -> list[float]:
    """One effect with its interval; the values that the axis must hold."""
    if not np.isfinite(row.value):
        ax.text(0.03, at, row.note, transform=ax.get_yaxis_transform(), fontsize=6, color=look.colour, va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        return []
    ends = [end * scale for end in (row.lo, row.hi) if np.isfinite(end)]
    if len(ends) == 2:
        ax.hlines(at, *ends, color=look.colour, linewidth=1.8)
    ax.plot(row.value * scale, at, look.marker, color=look.colour, markersize=4.5, zorder=3)
    return [row.value * scale, *ends]


def _title(effect) -> str:
    """Title with the unit of the change and, where one side is better, which."""
    unit = "points" if effect.how == "difference" else "×"
    side = {"higher": "right is better", "lower": "left is better", "": ""}[effect.better]
    return f"{effect.title} [{unit}]\n{side}"


def _scale(ax: Axes, effect, shown: Iterable[float]) -> None:
    """Symmetric about no effect, so that a gain and a loss of the same size look the same."""
    if effect.how == "difference":
        reach = max(5.0, 1.08 * np.abs(shown).max())
        ax.set_xlim(-reach, reach)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        return
    reach = max(np.log(1.25), 1.08 * np.abs(np.log(shown)).max())
    ax.set_xscale("log")
    ax.set_xlim(np.exp(-reach), np.exp(reach))
    steps = np.array([1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 100, 1000])
    step = steps[np.argmin(np.abs(np.log(steps) - 0.7 * reach))]
    ax.set_xticks([1 / step, 1, step])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
