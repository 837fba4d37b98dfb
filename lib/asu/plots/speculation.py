"""Figures of speculative decoding: what is kept of drafts, speed-up over the batch size, throughput counted twice."""

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator, ScalarFormatter

from asu import style
from asu.plots.core import from_zero, legend, need, share_axis
from asu.style import Look

METHODS = {"ngram": Look("prompt look-up", "#0072B2", "s", "--"), "draft": Look("draft model", "#D55E00", "o", "-")}


def _method(label: str) -> Look:
    return METHODS[re.match("[a-z]+", label)[0]]


def _handles(axes) -> list:
    """One legend entry per label, from all panels."""
    return list({line.get_label(): line for ax in axes for line in ax.get_lines() + list(ax.containers)
                 if not str(line.get_label()).startswith("_")}.values())


@style.styled
def acceptance(positions: pd.DataFrame, phases: pd.DataFrame, levels: pd.DataFrame) -> Figure:
    """Three panels: drafts kept up to each position; tokens per step by phase; the same over the problems' level.

    positions: of `claims.speculation.positions`, of one model and task; phases, levels: speculation, phase or level,
    value, lo, hi.
    """
    need(phases, ["speculation", "phase", "value", "lo", "hi"], "acceptance")
    figure = Figure(figsize=(style.WIDTH, 3.1), layout="constrained")
    axes = figure.subplots(1, 3)
    _by_position(axes[0], positions)
    _by_phase(axes[1], phases)
    _by_level(axes[2], levels)
    from_zero(axes)
    handles = _handles(axes)
    if handles:
        legend(figure, handles)
    return figure


def _by_position(ax, positions: pd.DataFrame) -> None:
    for label, part in positions.groupby("speculation", sort=False):
        look = _method(label)
        ax.fill_between(part.position, part.lo, part.hi, color=look.colour, alpha=0.15, linewidth=0)
        ax.plot(part.position, part.value, color=look.colour, marker=look.marker, linestyle=look.dash, label=look.label)
    if positions.empty:
        ax.text(0.5, 0.5, "not counted by this engine", ha="center", va="center", transform=ax.transAxes)
    ax.set_xlabel("position in the draft")
    ax.set_ylabel("drafts kept up to there [%]")
    ax.xaxis.set_major_locator(FixedLocator(range(1, 17)))
    share_axis(ax)


def _by_phase(ax, phases: pd.DataFrame) -> None:
    labels = list(dict.fromkeys(phases.speculation))
    names = [name for name in ("thinking", "answer") if name in set(phases.phase)]
    for k, label in enumerate(labels):
        rows = phases[phases.speculation == label]
        x = np.array([names.index(phase) for phase in rows.phase]) + (k - (len(labels) - 1) / 2) * 0.15
        look = _method(label)
        ax.vlines(x, rows.lo, rows.hi, color=look.colour)
        ax.plot(x, rows.value, look.marker, color=look.colour)
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylabel("tokens per step [tok]")


def _by_level(ax, levels: pd.DataFrame) -> None:
    for label, rows in levels.groupby("speculation", sort=False):
        rows, look = rows.sort_values("level"), _method(label)
        ax.plot(rows.level, rows.value, color=look.colour, marker=look.marker, linestyle=look.dash)
        ax.fill_between(rows.level, rows.lo, rows.hi, color=look.colour, alpha=0.2, linewidth=0)
    ax.xaxis.set_major_locator(FixedLocator(sorted(set(levels.level))))
    ax.set_xlabel("level of the problem")
    ax.set_ylabel("tokens per step, thinking [tok]")


@style.styled
def speedup_by_batch(speedups: pd.DataFrame, *, crossings: dict[str, float] | None = None) -> Figure:
    """Time per request off over on against requests in flight; below the line at 1 speculation costs time.

    speedups: speculation, at_once, value, lo, hi; crossings: label to batch size, drawn as a mark on the line.
    """
    need(speedups, ["speculation", "at_once", "value", "lo", "hi"], "speed-up by batch size")
    figure = Figure(figsize=(style.WIDTH * 0.75, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.axhline(1, color=style.INK, linewidth=0.9)
    for label, rows in speedups.groupby("speculation", sort=False):
        rows, look = rows.sort_values("at_once"), _method(label)
        ax.plot(rows.at_once, rows.value, color=look.colour, marker=look.marker, linestyle=look.dash,
                label=f"{look.label} ({label})")
        ax.fill_between(rows.at_once, rows.lo, rows.hi, color=look.colour, alpha=0.2, linewidth=0)
        at = (crossings or {}).get(label, np.nan)
        if np.isfinite(at) and at > rows.at_once.min():  # else there is nothing to cross
            ax.plot(at, 1, "X", color=look.colour, markersize=9, markeredgecolor="white")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(set(speedups.at_once))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.set_xlabel("requests in flight")
    ax.set_ylabel("time per request, off / on [×]")
    legend(figure, _handles([ax]))
    return figure


COSTS = (1, 1.5, 2, 3, 4)  # step costs drawn as rays [times a step without drafts]


@style.styled
def speedup_by_yield(rates: pd.DataFrame) -> Figure:
    """Time per request off over on against tokens a step yields: a ray is a step's cost, below the line at 1 it loses.

    rates: of `claims.speculation.rates`: speculation, tokens_per_step, speed_up (Estimate); varied: drafts whose length
    or acceptance was varied, drawn hollow.
    """
    need(rates, ["speculation", "tokens_per_step", "speed_up", "varied"], "speed-up by tokens per step")
    figure = Figure(figsize=(style.WIDTH * 0.75, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.axhline(1, color=style.INK, linewidth=0.9)
    right = 1.12 * rates.tokens_per_step.max()
    top = 1.08 * max(1.2, *(found.upper for found in rates.speed_up))
    for cost in COSTS:
        end = min(right, top * cost)
        ax.plot([0, end], [0, end / cost], color=style.FAINT, linewidth=0.8, linestyle=":", zorder=0)
        if end > 1:
            ax.annotate(f"step × {cost:g}", (end, end / cost), xytext=(-2, -2), textcoords="offset points", ha="right",
                        va="top", fontsize="x-small", color=style.FAINT)
    for row in rates.itertuples():
        look, found = _method(row.speculation), row.speed_up
        label = f"{look.label}{', varied' if row.varied else ''}"
        if found.has_interval:
            ax.vlines(row.tokens_per_step, found.lo, found.hi, color=look.colour, linewidth=1.0, alpha=0.7)
        ax.plot(row.tokens_per_step, found.value, look.marker, color=look.colour, label=label,
                markerfacecolor="white" if row.varied else look.colour)
    ax.set_xlim(0.9, right)
    ax.set_ylim(0, top)
    ax.set_xlabel("tokens a step yields [tok]")
    ax.set_ylabel("time per request, off / on [×]")
    legend(figure, _handles([ax]), columns=2)
    return figure


@style.styled
def throughput_two_ways(table: pd.DataFrame) -> Figure:
    """Throughput on over off, counted in tokens (filled) and in stream events (hollow): a panel per method.

    table: of `claims.speculation.two_ways`: task, role, arm, count, value, lo, hi.
    """
    need(table, ["task", "role", "arm", "count", "value", "lo", "hi"], "throughput counted two ways")
    arms, tasks = list(dict.fromkeys(table.arm)), style.ordered(table.task, style.TASKS)
    figure = Figure(figsize=(style.WIDTH, 3.2), layout="constrained")
    axes = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    for ax, arm in zip(axes, arms, strict=True):
        ax.axhline(1, color=style.INK, linewidth=0.9)
        for (role, count), rows in table[table.arm == arm].groupby(["role", "count"], sort=False):
            tokens, look = count == "tokens", style.role(role)
            x = np.array([tasks.index(task) for task in rows.task]) + (0.16 if role == "LLM" else -0.16) + (
                -0.06 if tokens else 0.06)
            ax.vlines(x, rows.lo, rows.hi, color=look.colour, linewidth=1.1)
            ax.plot(x, rows.value, look.marker, color=look.colour, label=f"{role}, in {count}",
                    markerfacecolor=look.colour if tokens else "white")
        ax.set_title(f"{_method(arm).label} ({arm})")
        ax.set_xticks(range(len(tasks)), [style.task(task).label for task in tasks], rotation=20, ha="right")
        ax.set_xlim(-0.5, len(tasks) - 0.5)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(FixedLocator([0.125, 0.25, 0.5, 1, 2, 4]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("throughput, on / off [×]")
    legend(figure, _handles(axes))
    return figure
