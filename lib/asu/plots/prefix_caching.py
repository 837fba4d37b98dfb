"""Figures of prefix caching: what a shared beginning gains, and what a prompt token costs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from asu import style
from asu.effects import EFFECTS
from asu.plots.core import legend, need, select
from asu.style import Look

# Who shares the beginning of a prompt: from nobody to everybody.
KINDS = {
    "unique": Look("nobody", style.FAINT, "x"),
    "template": Look("all, a short template", "#56B4E9", "v"),
    "multi_turn": Look("turns of a conversation", "#CC79A7", "^"),
    "samples": Look("samples of one question", "#E69F00", "D"),
    "few_shot": Look("all, examples included", "#009E73", "o"),
}
COSTS = {"prefill": "Prefill without\ncaching [µs/tok]", "saving": "Saved per token\nfound [µs/tok]",
         "look_up": "Added where nothing\nis shared [µs/tok]", "break_even": "Hit share from which\ncaching pays [%]"}
_SMALLEST, _LARGEST = 3.5, 9.0  # marker sizes of the shortest and of the longest prompt


def _megas(size: str) -> float:
    return float(size[:-1]) * {"M": 1.0, "B": 1e3}[size[-1]]


@style.styled
def break_even(gains: pd.DataFrame) -> Figure:
    """Time with caching over without against the share of the prompt found in the cache, a point per cell.

    gains: of `claims.prefix_caching.gains`: size, role, metric, kind, tokens, hit_share, value, lo, hi. A row of panels
    per metric, a column per size and role; the longer the prompt, the larger the mark. Below the line caching pays.
    """
    need(gains, ["size", "role", "metric", "kind", "tokens", "hit_share", "value", "lo", "hi"], "break_even")
    metrics = [name for name in EFFECTS if name in set(gains["metric"])]
    columns = [(size, role) for size in sorted(set(gains["size"]), key=_megas, reverse=True)
               for role in style.ordered(gains["role"], style.ROLES) if len(select(gains, size=size, role=role))]
    figure = Figure(figsize=(style.WIDTH, 2.3 * len(metrics) + 1.1), layout="constrained")
    axes = figure.subplots(len(metrics), len(columns), sharex=True, sharey=True, squeeze=False)
    tokens = sorted(set(gains["tokens"]))
    sizes = dict(zip(tokens, np.linspace(_SMALLEST, _LARGEST, len(tokens)), strict=True))
    for i, metric in enumerate(metrics):
        for j, (size, role) in enumerate(columns):
            ax = axes[i, j]
            ax.axhline(1, color=style.INK, linewidth=0.8, zorder=1)
            _points(ax, select(gains, metric=metric, size=size, role=role), sizes)
            if i == 0:
                ax.set_title(f"{size} {role}")
        axes[i, 0].set_ylabel(f"{EFFECTS[metric].title}\nwith over without [×]")
    _log_axis(axes[0, 0])
    figure.supxlabel("prompt tokens found in the cache [%]", fontsize=10)
    present = [kind for kind in KINDS if kind in set(gains["kind"])]
    handles = [Line2D([], [], linestyle="none", marker=KINDS[kind].marker, color=KINDS[kind].colour,
                      label=KINDS[kind].label) for kind in present]
    handles += [Line2D([], [], linestyle="none", label=" ")] * (-len(handles) % 3)  # the prompts' lengths apart
    handles += [Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", color=style.INK,
                       markersize=sizes[count], label=f"{count:,.0f} tokens before the question") for count in tokens]
    legend(figure, handles, columns=3)
    return figure


def _points(ax: Axes, cells: pd.DataFrame, sizes: dict[float, float]) -> None:
    for cell in cells.itertuples():
        look = KINDS.get(cell.kind, Look(cell.kind, style.INK, "s"))
        ax.vlines(cell.hit_share, cell.lo, cell.hi, color=look.colour, linewidth=1.0, alpha=0.7)
        ax.plot(cell.hit_share, cell.value, look.marker, color=look.colour, markersize=sizes[cell.tokens], alpha=0.9)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    ax.set_xlim(-0.05, 1.02)


def _log_axis(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


@style.styled
def prompt_costs(costs: pd.DataFrame) -> Figure:
    """What a prompt token costs and saves, a panel per cost, a row per size, with intervals.

    costs: of `claims.prefix_caching.costs`: size, cost, value, lo, hi. A cost that is not known leaves its row empty.
    """
    need(costs, ["size", "cost", "value", "lo", "hi"], "prompt_costs")
    sizes = sorted(set(costs["size"]), key=_megas)
    figure = Figure(figsize=(style.WIDTH, 1.25 + 0.45 * len(sizes)), layout="constrained")
    axes = figure.subplots(1, len(COSTS), sharey=True)
    for ax, (cost, title) in zip(axes, COSTS.items(), strict=True):
        scale = 100.0 if cost == "break_even" else 1.0
        ax.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
        for row in select(costs, cost=cost).itertuples():
            at = sizes.index(row.size)
            ax.hlines(at, row.lo * scale, row.hi * scale, color="#0072B2", linewidth=1.8)
            ax.plot(row.value * scale, at, "o", color="#0072B2")
        ax.set_title(title, fontsize=9)
        ax.margins(x=0.15)
        if cost == "break_even":  # a share: what lies outside says only that the runs cannot tell
            ax.set_xlim(max(ax.get_xlim()[0], -100), min(ax.get_xlim()[1], 100))
    axes[0].set_yticks(range(len(sizes)), sizes)
    axes[0].set_ylim(-0.6, len(sizes) - 0.4)
    return figure
