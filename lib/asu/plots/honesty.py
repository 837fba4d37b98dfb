"""Figures of the notebook on measuring honestly: flaw by flaw over the headline numbers, and claim by claim."""

from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from asu import style
from asu.audit import HEADLINES
from asu.plots.core import legend, need, nothing

_FULL_RATIO, _FULL_DIFFERENCE = 4.0, 0.3  # changes from which on a cell has the full colour
_COLOURS = matplotlib.colormaps["PuOr_r"]  # told apart under every common colour-vision deficiency


@style.styled
def flaws(table: pd.DataFrame) -> Figure:
    """What each flaw does to each headline number, as a matrix per role; untouched numbers stay empty.

    table: of `audit.table`: role, flaw, title, metric, how, value, lo, hi. Bold: the interval leaves out no change.
    """
    need(table, ["role", "title", "metric", "how", "value", "lo", "hi"], "flaws")
    columns = [name for name in HEADLINES if name in set(table["metric"])]
    titles = {role: list(dict.fromkeys(table.loc[table["role"] == role, "title"]))
              for role in style.ordered(table["role"], style.ROLES)}
    heights = [len(rows) + 2.6 for rows in titles.values()]
    figure = Figure(figsize=(style.WIDTH, 0.29 * sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(titles), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (role, rows) in zip(panels, titles.items(), strict=True):
        here = table[table["role"] == role]
        ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        for cell in here.itertuples():
            _cell(ax, columns.index(cell.metric), rows.index(cell.title), cell)
        ax.set_yticks(range(len(rows)), [title.replace("`", "") for title in rows], fontsize=8)
        ax.set_xticks(range(len(columns)), [HEADLINES[name].title.replace(" ", "\n") for name in columns], fontsize=7)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.hlines(np.arange(len(rows) + 1) - 0.5, -0.5, len(columns) - 0.5, color="#E3E3E3", linewidth=0.6)
        ax.set_ylabel(style.role(role).label, color=style.role(role).colour, fontweight="bold", labelpad=8)
    legend(figure, [Patch(color=_shade(1 / _FULL_RATIO, "ratio"), label="a quarter, or 30 points less"),
                    Patch(facecolor=_shade(1, "ratio"), edgecolor=style.FAINT, label="as measured honestly"),
                    Patch(color=_shade(_FULL_RATIO, "ratio"), label="four times, or 30 points more")], columns=3)
    return figure


def _shade(value: float, how: str) -> tuple:
    """Colour of a change: log scale for ratios, linear for differences, white for none."""
    if how == "ratio":
        place = np.log(max(value, 1e-9)) / np.log(_FULL_RATIO)
    else:
        place = value / _FULL_DIFFERENCE
    return _COLOURS(0.5 + 0.42 * float(np.clip(place, -1, 1)))  # the map's ends are too dark to write on


def _cell(ax: Axes, x: int, y: int, cell) -> None:
    none = 1.0 if cell.how == "ratio" else 0.0
    if np.isnan(cell.value):
        ax.text(x, y, "none left", ha="center", va="center", fontsize=6.5, color=style.FAINT)
        return
    ax.add_patch(matplotlib.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=_shade(cell.value, cell.how),
                                              linewidth=0))
    clear = cell.lo > none or cell.hi < none
    if cell.how == "ratio":
        words = f"×{cell.value:.2f}" if cell.value < 9.95 else f"×{cell.value:.0f}"
    else:
        words = f"{100 * cell.value:+.0f} pt".replace("-0 pt", "+0 pt")
    dark = sum(_shade(cell.value, cell.how)[:3]) < 1.5
    ax.text(x, y, words.replace("-", "−"), ha="center", va="center", fontsize=7.5,
            fontweight="bold" if clear else "normal", color="white" if dark else style.INK if clear else "#5A5A5A")


@style.styled
def flawed_claims(table: pd.DataFrame) -> Figure:
    """Every claim that a flaw touches: the number measured honestly over the same measured with the flaw.

    table: of `claims.honesty.verdicts`; verdicts that the flaw turns come first. Each line has a scale of its
    own; where the claim would hold is shaded. A table without rows is an outcome too, and said in words.
    """
    if table.empty:
        return nothing("no claim can be decided again from these runs")
    need(table, ["claim", "title", "lo_holds", "hi_holds", "honest", "flawed", "verdict_honest", "verdict_flawed"],
         "flawed_claims")
    table = table.sort_values("flips", ascending=False, kind="stable")
    figure = Figure(figsize=(style.WIDTH, 0.42 * len(table) + 0.7))
    top, bottom = 1 - 0.5 / figure.get_figheight(), 0.2 / figure.get_figheight()
    grid = figure.add_gridspec(len(table), 1, left=0.42, right=0.83, top=top, bottom=bottom, hspace=0.75)
    for place, row in enumerate(table.itertuples()):
        ax = figure.add_subplot(grid[place])
        _two(ax, row)
        box = grid[place].get_position(figure)
        middle = (box.y0 + box.y1) / 2
        figure.text(0.01, middle, row.claim, va="center", fontsize=8, fontweight="bold" if row.flips else "normal")
        figure.text(0.17, middle, fill(row.title.replace("`", ""), 34), va="center", fontsize=7.5)
        before, after = style.VERDICTS[row.verdict_honest].label, style.VERDICTS[row.verdict_flawed].label
        figure.text(0.845, middle, before if before == after else f"{before}\n→ {after}", va="center", fontsize=7.5,
                    fontweight="bold" if row.flips else "normal")
    figure.legend(handles=[
        Line2D([], [], color=style.INK, marker="o", label="honest (above)"),
        Line2D([], [], color=_WITH_FLAW, marker="s", markerfacecolor="white", label="with the flaw (below)"),
        Patch(color=style.VERDICTS["supported"].colour, alpha=0.15, label="the claim holds")],
        loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.0))
    return figure


_WITH_FLAW = "#8E3B8A"


def _two(ax: Axes, row) -> None:
    """Honest number and flawed number with their intervals, one above the other, against the range that decides."""
    pairs = [(row.honest, 0.45, style.INK, "o", style.INK), (row.flawed, -0.45, _WITH_FLAW, "s", "white")]
    known = [v for number, *_ in pairs for v in (number.value, number.lo, number.hi) if np.isfinite(v)]
    spread = np.array(known + [v for v in (row.lo_holds, row.hi_holds) if np.isfinite(v)] or [0.0])
    room = 0.12 * (np.ptp(spread) or abs(spread[0]) or 1.0)
    left, right = spread.min() - room, spread.max() + room
    ax.axvspan(max(left, row.lo_holds), min(right, row.hi_holds), color=style.VERDICTS["supported"].colour, alpha=0.15,
               linewidth=0)
    for number, height, colour, marker, face in pairs:
        if number.has_interval:
            ax.hlines(height, max(left, number.lo), min(right, number.hi), color=colour, linewidth=2)
        if np.isfinite(number.value):
            ax.plot(number.value, height, marker, color=colour, markerfacecolor=face, markersize=5, zorder=4)
    ax.set(xlim=(left, right), ylim=(-1, 1), yticks=[])
    ax.locator_params(axis="x", nbins=4)
    ax.tick_params(labelsize=7, pad=1, length=2)
    ax.spines["left"].set_visible(False)
