"""Figures on weight quantisation: accuracy by difficulty, where a step's time goes, damage against length."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter, StrMethodFormatter

from asu import style
from asu.plots.core import accuracy_axes, grid, legend, need, nothing, share_axis, whisker
from asu.style import Look

FORMATS = {
    "bf16": Look("bf16", style.INK, "o", "-"), "w4a16": Look("w4a16 (GPTQ)", "#D55E00", "s", "--"),
    "w8a8": Look("w8a8 (INT8)", "#009E73", "^", "-."), "fp8": Look("fp8", "#0072B2", "D", ":"),
    "awq": Look("awq", "#CC79A7", "v", "--"), "bnb4": Look("bnb4", "#E69F00", "X", "-."),
    "fp8_e4m3": Look("fp8 E4M3", "#0072B2", "D", ":"), "fp8_e5m2": Look("fp8 E5M2", "#D55E00", "s", "--"),
    "int8_per_token_head": Look("int8 per token and head", "#009E73", "^", "-."),
    "int8": Look("int8", "#CC79A7", "v", "--"), "int4": Look("int4", "#E69F00", "X", "-."),
}


def _look(name: str) -> Look:
    return FORMATS.get(name, Look(name, style.FAINT, "x"))


def _handles(names) -> list[Line2D]:
    return [Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=look.label)
            for look in map(_look, style.ordered(names, FORMATS))]


@style.styled
def accuracy_by_format(levels: pd.DataFrame, *, arm: str = "weights") -> Figure:
    """Accuracy against the set's level, a line per number format: a row per pair, a column per task; one role.

    levels: task, pair, level, `arm`, value, lo, hi (shares of one).
    """
    if levels.empty:
        return nothing("nothing was graded in these runs: there is no accuracy to show")
    need(levels, ["task", "pair", "level", arm, "value", "lo", "hi"], "accuracy_by_format")
    figure, panels = grid(levels, "pair", "task", height=1.9, sharey=True)
    names = style.ordered(levels[arm], FORMATS)
    for (pair, task), ax in panels.items():
        here = levels[(levels["pair"] == pair) & (levels["task"] == task)]
        for k, name in enumerate(names):
            rows, look = here[here[arm] == name].sort_values("level"), _look(name)
            x = rows["level"] + 0.12 * (k - (len(names) - 1) / 2)
            ax.vlines(x, rows["lo"], rows["hi"], color=look.colour, linewidth=1.0, alpha=0.6)
            ax.plot(x, rows["value"], color=look.colour, marker=look.marker, linestyle=look.dash)
        accuracy_axes(ax, pair, task)
        ax.set_xlabel("level")
    legend(figure, _handles(names))
    return figure


@style.styled
def step_time(steps: pd.DataFrame) -> Figure:
    """Time between tokens per model and weights, and the part of it that memory or arithmetic must take.

    steps: model, weights, memory_s, compute_s, bound_s, step_s, share, of `roofline.table`.
    """
    need(steps, ["model", "weights", "memory_s", "compute_s", "bound_s", "step_s", "share"], "step_time")
    steps = steps[steps["step_s"].notna()]
    order = {model: place for place, model in enumerate(dict.fromkeys(steps["model"]))}  # a model's formats together
    steps = steps.sort_values("model", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)
    figure = Figure(figsize=(style.WIDTH, 0.34 * len(steps) + 1.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(steps))[::-1]
    left.barh(y, steps["step_s"] * 1e3, color="#D9D9D9", edgecolor=style.FAINT)
    left.barh(y, steps["bound_s"] * 1e3, color=style.INK)
    left.set_xlabel("time per token of a request [ms]")
    left.set_yticks(y, steps["model"] + ", " + steps["weights"])
    for column, offset, look in (("memory_s", 0.14, ("#0072B2", "o")), ("compute_s", -0.14, ("#D55E00", "s"))):
        right.plot(steps[column] * 1e6, y + offset, look[1], color=look[0])
    right.set_xlabel("least time [µs], logarithmic")
    right.set_xscale("log")
    _few_ticks(right, steps[["memory_s", "compute_s"]].to_numpy() * 1e6)
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
    for at, share, wide in zip(y, steps["share"], steps["step_s"] * 1e3, strict=True):
        if np.isfinite(share):
            left.annotate(f"{share:.1%}", (wide, at), (3, 0), textcoords="offset points", va="center", fontsize=8)
    left.set_xlim(right=steps["step_s"].max() * 1e3 * 1.2)
    legend(figure, [Patch(facecolor="#D9D9D9", edgecolor=style.FAINT, label="measured"),
                    Patch(facecolor=style.INK, label="the bound (its share beside the bar)"),
                    Line2D([], [], color="#0072B2", marker="o", linestyle="none", label="moving bytes"),
                    Line2D([], [], color="#D55E00", marker="s", linestyle="none", label="arithmetic")])
    return figure


def _few_ticks(ax: Axes, shown: np.ndarray) -> None:
    """At most five labels on a logarithmic axis, however narrow its range: at 1, 2 and 5 times powers of ten."""
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if len(shown):
        low, high = shown.min() / 1.15, shown.max() * 1.15
        steps = np.array([m * 10.0**k for k in range(-6, 12) for m in (1, 2, 5)])
        inside = steps[(steps >= low) & (steps <= high)]
        if len(inside) < 2:  # too narrow for the steps: its ends say most
            inside = np.unique([shown.min(), shown.max()])
        ax.set_xlim(low, high)
        ax.set_xticks(inside[::-(-len(inside) // 5)])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:.2g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()


@style.styled
def damage_by_length(loss: pd.DataFrame, curves: pd.DataFrame, *, arm: str = "weights") -> Figure:
    """Accuracy lost by thinking length (left), and solutions without a wrong step so far, a panel per task.

    loss: of `drift.loss_by_length`; curves: of `drift.still_right` by task and `arm`.
    """
    if loss.empty or curves.empty:
        return nothing("no graded solutions with steps to check in these runs: damage cannot be seen")
    need(loss, [arm, "length", "value", "lo", "hi"], "damage_by_length")
    need(curves, ["task", arm, "time", "survival"], "damage_by_length")
    tasks = style.ordered(curves["task"], style.TASKS)
    figure = Figure(figsize=(style.WIDTH, 3.1), layout="constrained")
    first, *panels = figure.subplots(1, 1 + len(tasks), width_ratios=[1.4] + [1] * len(tasks))
    names = style.ordered(loss[arm], FORMATS)
    for k, name in enumerate(names):
        rows, look = loss[loss[arm] == name].sort_values("length"), _look(name)
        x = rows["length"] * 1.06 ** (k - (len(names) - 1) / 2)
        whisker(first, x, rows)
        first.plot(x, rows["value"], color=look.colour, marker=look.marker, linestyle=look.dash, zorder=4)
    _lost(first)
    for ax, task in zip(panels, tasks, strict=True):
        _right(ax, curves[curves["task"] == task], arm, task, task == tasks[0])
    legend(figure, _handles([*names, *curves[arm]]))
    return figure


def _lost(ax: Axes) -> None:
    ax.axhline(0, color=style.INK, linewidth=0.8)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("thinking tokens with bf16")
    ax.set_ylabel("accuracy lost [points]")
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")


def _right(ax: Axes, curves: pd.DataFrame, arm: str, task: str, labelled: bool) -> None:
    for name in style.ordered(curves[arm], FORMATS):
        rows, look = curves[curves[arm] == name].sort_values("time"), _look(name)
        ax.step(rows["time"], rows["survival"], where="post", color=look.colour, linestyle=look.dash)
    ax.set_ylim(-0.03, 1.05)
    share_axis(ax)
    ax.set_title(style.task(task).label)
    ax.set_xlabel("thinking tokens")
    if labelled:
        ax.set_ylabel("no wrong step so far [%]")
