"""Real traffic: queue and KV use over time, waits against rate and burstiness, goodput and its knee, options."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from asu import style
from asu.effects import EFFECTS
from asu.metrics import SLO
from asu.plots.core import from_zero, legend, line, need, role_handles, share_axis
from asu.stats import Estimate

_SHARES = {0.5: ("median", "#5E3C99", "o", "-"), 0.9: ("90th percentile", "#009E73", "s", "--"),
           0.99: ("99th percentile", "#D55E00", "^", "-.")}
_WAITS = {"queue": "server's queue [s]", "ttft": "TTFT [s]", "ttfvt": "TTFVT [s]"}


@style.styled
def traffic_over_time(engine: pd.DataFrame, paper: pd.DataFrame | None = None) -> Figure:
    """KV use (above) and requests running, with the waiting on top (below), against time: a column per `panel`.

    engine: panel (its title), role, run, t_s, kv_use, running, waiting; paper: role, value (mean KV use, share), as
    faint lines across the panels of that role.
    """
    need(engine, ["panel", "role", "run", "t_s", "kv_use", "running", "waiting"], "traffic_over_time")
    panels = list(dict.fromkeys(engine["panel"]))
    figure = Figure(figsize=(style.WIDTH, 4.0), layout="constrained")
    axes = figure.subplots(2, len(panels), sharex="col", sharey="row", squeeze=False)
    for column, panel in enumerate(panels):
        (kv, queue), here = axes[:, column], engine[engine["panel"] == panel].dropna(subset=["kv_use"])
        for (role, _), run in here.groupby(["role", "run"]):
            run = run.sort_values("t_s")
            kv.plot(run["t_s"], run["kv_use"], **line(role, linewidth=1.3))
            queue.fill_between(run["t_s"], run["running"], run["running"] + run["waiting"], step="post",
                               color=style.FAINT, alpha=0.6, linewidth=0)
            queue.plot(run["t_s"], run["running"], drawstyle="steps-post", **line(role, linewidth=1.3))
            for theirs in paper[paper["role"] == role]["value"] if paper is not None else ():
                kv.axhline(theirs, color=style.INK, linewidth=0.8, linestyle=":")
        kv.set_title(panel)
        kv.set(ylim=(0, 1.04), xlim=(0, None))
        share_axis(kv)
        queue.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        queue.xaxis.set_major_locator(MaxNLocator(4))
        queue.set_xlabel("time since start [s]")
    axes[0, 0].set_ylabel("KV cache in use [%]")
    axes[1, 0].set_ylabel("requests")
    from_zero(axes[1])
    handles = [*role_handles(engine["role"], marker=False), Patch(facecolor=style.FAINT, alpha=0.6, label="waiting")]
    if paper is not None:
        handles.append(Line2D([], [], color=style.INK, linewidth=0.8, linestyle=":", label="the paper's mean (14B)"))
    legend(figure, handles)
    return figure


@style.styled
def waits(by_rate: pd.DataFrame, by_cv: pd.DataFrame) -> Figure:
    """Percentiles of queue, TTFT and TTFVT against the rate (left) and the burstiness (right), with intervals.

    Both of `traffic.percentiles`, with rate [1/s] or cv and offered as `x`; the client's own lag, where the frame has
    it, is the grey line: nothing below it was measured.
    """
    columns = ["metric", "q", "value", "lo", "hi", "x"]
    need(by_rate, columns, "waits")
    need(by_cv, columns, "waits")
    names = [name for name in _WAITS if name in set(by_rate["metric"])]
    figure = Figure(figsize=(style.WIDTH, 1.75 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots(len(names), 2, sharex="col", sharey="row", squeeze=False)
    for (left, right), name in zip(axes, names, strict=True):
        for ax, frame in ((left, by_rate), (right, by_cv)):
            _percentiles(ax, frame, name)
        both = pd.concat([by_rate, by_cv])
        both = both[(both["metric"] == name) & both["q"].isin(list(_SHARES))]
        _wait_axis(left, name, both[["value", "lo", "hi"]].to_numpy(float).ravel())
        left.set_ylabel(_WAITS[name])
    axes[-1, 0].set_xlabel("rate of arrivals, as asked for [1/s]")
    axes[-1, 1].set_xlabel("CV of the gaps, as asked for")
    cvs = sorted(set(by_cv["x"]))
    if cvs[0] > 0:
        axes[-1, 1].set_xscale("log", base=2)
    axes[-1, 1].set_xticks(cvs, [f"{cv:g}" for cv in cvs])
    axes[-1, 1].minorticks_off()
    handles = [Line2D([], [], color=colour, marker=marker, linestyle=dash, label=label)
               for label, colour, marker, dash in _SHARES.values()]
    legend(figure, [*handles, Line2D([], [], color=style.FAINT, linewidth=1.0, label="client's own lag, p99")])
    return figure


def _percentiles(ax: Axes, frame: pd.DataFrame, name: str) -> None:
    for q, (_, colour, marker, dash) in _SHARES.items():
        rows = frame[(frame["metric"] == name) & (frame["q"] == q)].sort_values("x")
        seen = rows[np.isfinite(rows["value"])]
        ax.plot(seen["x"], seen["value"], color=colour, marker=marker, linestyle=dash)
        ax.fill_between(seen["x"], seen["lo"], seen["hi"].where(np.isfinite(seen["hi"])), color=colour, alpha=0.15,
                        linewidth=0)
    lag = frame[(frame["metric"] == "lag") & (frame["q"] == 0.99)].sort_values("x")
    ax.plot(lag["x"], lag["value"], color=style.FAINT, linewidth=1.0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _wait_axis(ax: Axes, name: str, shown: np.ndarray) -> None:
    """A logarithmic axis around what is `shown` [s]; a queue is mostly empty, so its axis holds nothing too."""
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if name == "queue":
        ax.set_yscale("symlog", linthresh=1e-3)
        ax.set_yticks([0, 1e-3, 1e-2, 0.1, 1, 10, 100])
        ax.set_ylim(0, 1.5 * max([1.0, *shown]))
    else:
        low, high = (shown.min() / 1.4, shown.max() * 1.4) if len(shown) else (0.1, 10.0)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(low, high)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


@style.styled
def goodput(good: pd.DataFrame, knee: Estimate, share: float) -> Figure:
    """Share of the offered requests served in time against the rate, an arm each for role and kind of arrivals.

    good: of `traffic.goodput`, with `arm` (the legend's words) and role; an arm of the RLLM with several runs is a
    line, all else is marks.
    knee: of `traffic.knee`, of the RLLM's curve at a CV of 1, in the same unit; share: the SLO's, dotted. Of offered,
    because beside the rates themselves a loss of a few percent cannot be seen.
    """
    need(good, ["arm", "role", "offered", "value", "lo", "hi"], "goodput")
    figure = Figure(figsize=(style.WIDTH, 3.6), layout="constrained")
    ax = figure.subplots()
    most = float(good["offered"].max()) * 1.1
    ax.axhline(share, color=style.FAINT, linewidth=1.0, linestyle=":")
    arms = good.groupby("arm", sort=False).agg(role=("role", "first"), runs=("role", "size"))
    curves = arms.index[(arms["role"] == "RLLM") & (arms["runs"] > 1)]
    lines = dict(zip(curves, _shades(len(curves)), strict=True))
    marks = iter("^DvPX*h<>")
    for arm, rows in good.groupby("arm", sort=False):
        rows = rows.sort_values("offered")
        if arm in lines:
            look = lines[arm]
        else:
            look = {"color": style.role(rows["role"].iloc[0]).colour, "linestyle": "none", "marker": next(marks),
                    "markerfacecolor": "white", "markersize": 7}
        shares = rows[["value", "lo", "hi"]].div(rows["offered"], axis=0)
        ax.vlines(rows["offered"], shares["lo"], shares["hi"], color=look["color"], linewidth=1.1)
        ax.plot(rows["offered"], shares["value"], label=arm, **look)
    if np.isfinite(knee.value):
        ax.axvline(knee.value, color=style.INK, linewidth=1.2)
        ends = [end if np.isfinite(end) else most for end in (knee.lo, knee.hi)]
        ax.axvspan(*ends, color=style.INK, alpha=0.08, linewidth=0)
        ax.annotate(f"knee {knee.value:.3g}/s", (knee.value, 0), xytext=(4, 6), textcoords="offset points", fontsize=8)
    ax.set(xlim=(0, most), ylim=(0, 1.04), xlabel="requests offered [1/s]", ylabel="served in time\n[% of the offered]")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    handles, _ = ax.get_legend_handles_labels()
    legend(figure, [*handles, Line2D([], [], color=style.FAINT, linewidth=1.0, linestyle=":", label=f"{share:.0%}")],
           columns=3)
    return figure


def _shades(count: int) -> list[dict]:
    """Looks of so many lines in order, the first the darkest; dash and mark tell them apart as well."""
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.75, count))
    return [{"color": colour, "linestyle": dash, "marker": marker, "markersize": 5} for colour, dash, marker in
            zip(colours, itertools.cycle(("-", "--", "-.", ":")), itertools.cycle("osD^v"), strict=False)]


@style.styled
def waits_by_burstiness(table: pd.DataFrame) -> Figure:
    """One percentile of TTFT and TTFVT against the rate offered, a line per CV, the calmest first; bands: intervals.

    table: of `traffic.percentiles`, with rate [1/s] and cv as asked for.
    """
    need(table, ["metric", "rate", "cv", "value", "lo", "hi"], "waits_by_burstiness")
    names = [name for name in _WAITS if name in set(table["metric"])]
    figure = Figure(figsize=(style.WIDTH, 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), sharex=True, squeeze=False)[0]
    cvs = sorted(table["cv"].unique())
    for ax, name in zip(axes, names, strict=True):
        here = table[(table["metric"] == name) & np.isfinite(table["value"])]
        for cv, look in zip(cvs, _shades(len(cvs)), strict=True):
            rows = here[here["cv"] == cv].sort_values("rate")
            ax.fill_between(rows["rate"], rows["lo"], rows["hi"].where(np.isfinite(rows["hi"])), color=look["color"],
                            alpha=0.12, linewidth=0)
            ax.plot(rows["rate"], rows["value"], label=f"CV {cv:g}", **look)
        _wait_axis(ax, name, here[["value", "lo", "hi"]].to_numpy(float).ravel())
        ax.set(xlabel="rate of arrivals, as asked for [1/s]", ylabel=_WAITS[name])
    legend(figure, axes[0].get_legend_handles_labels()[0])
    return figure


@style.styled
def attainment(table: pd.DataFrame, slo: SLO) -> Figure:
    """Share of the requests served in time by the limit on the first visible token, a line per rate, the lowest first.

    table: of `traffic.attainment`; bands where some requests, not all or none, are in time. The SLO's limit and share
    are dotted: where a line passes above their crossing, that rate is borne.
    """
    need(table, ["rate", "ttfvt_s", "value", "lo", "hi"], "attainment")
    figure = Figure(figsize=(style.WIDTH, 3.4), layout="constrained")
    ax = figure.subplots()
    rates = sorted(table["rate"].unique())
    for rate, look in zip(rates, _shades(len(rates)), strict=True):
        rows = table[table["rate"] == rate].sort_values("ttfvt_s")
        some = rows[rows["value"].between(0, 1, inclusive="neither")]
        ax.fill_between(some["ttfvt_s"], some["lo"], some["hi"], color=look["color"], alpha=0.12, linewidth=0)
        ax.plot(rows["ttfvt_s"], rows["value"], label=f"{rate:g} a second", **look | {"marker": "none"})
    ax.axhline(slo.share, color=style.FAINT, linewidth=1.0, linestyle=":")
    ax.axvline(slo.ttfvt_s, color=style.FAINT, linewidth=1.0, linestyle=":")
    ax.set(xscale="log", ylim=(0, 1.04), xlabel="limit on the first visible token [s]",
           ylabel="served in time\n[% of the offered]")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    legend(figure, ax.get_legend_handles_labels()[0], columns=4)
    return figure


@style.styled
def effects_by_load(table: pd.DataFrame, names: dict[str, str]) -> Figure:
    """What each option changes, on over off, under each load: a panel per wait, a row per role and option.

    table: of `traffic.effects_by_load`, with the temperature of the runs; names: load label -> what it is called.
    """
    need(table, ["role", "option", "arm", "metric", "load", "temperature", "value", "lo", "hi"], "effects_by_load")
    waits = [name for name in EFFECTS if name in set(table["metric"])]
    again = ", temperature " + table["temperature"].map("{:g}".format)
    table = table.assign(word=table["role"] + ", " + table["option"].replace("trial", "all off").str.replace("_", " ")
                         + "\n" + table["arm"] + again.where(table["option"] == "trial", ""))
    rows = list(dict.fromkeys(table["word"]))
    figure = Figure(figsize=(style.WIDTH, 0.5 * len(rows) + 1.4), layout="constrained")
    loads = [load for load in names if load in set(table["load"])]
    for ax, name in zip(figure.subplots(1, len(waits), sharey=True, squeeze=False)[0], waits, strict=True):
        here = table[table["metric"] == name].dropna(subset=["value"])
        for k, (label, (colour, marker)) in enumerate(zip(loads, _LOADS, strict=False)):
            mine = here[here["load"] == label]
            at = np.array([rows.index(word) for word in mine["word"]]) + (k - (len(loads) - 1) / 2) * 0.3
            ax.hlines(at, mine["lo"], mine["hi"], color=colour, linewidth=1.6)
            ax.plot(mine["value"], at, marker, color=colour, markersize=6)
        ax.axvline(1, color=style.INK, linewidth=0.8)
        ax.set_xscale("log")
        _ratio_ticks(ax, here)
        ax.set_title(f"{EFFECTS[name].title}, on / off", fontsize=9)
        ax.grid(axis="y", visible=False)
    figure.axes[0].set_yticks(range(len(rows)), rows, fontsize=8)
    figure.axes[0].set_ylim(len(rows) - 0.5, -0.5)
    legend(figure, [Line2D([], [], color=colour, marker=marker, label=names[label])
                    for label, (colour, marker) in zip(loads, _LOADS, strict=False)])
    return figure


_LOADS = [(style.FAINT, "s"), ("#5E3C99", "o"), ("#009E73", "^")]


# Ratios to mark, by how far apart the ends of an axis are at least.
_ROUND = [(1000, [1e-3, 1, 1e3]), (100, [1 / 64, 1 / 8, 1, 8, 64]), (10, [1 / 16, 0.25, 1, 4, 16]),
          (4, [0.25, 0.5, 1, 2, 4]), (1.5, [0.25, 0.5, 0.7, 1, 1.4, 2, 4]), (0, [0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.4])]


def _ratio_ticks(ax: Axes, rows: pd.DataFrame) -> None:
    """A logarithmic axis with few, round ratios on it."""
    ends = np.array([1.0, *rows["lo"], *rows["hi"], *rows["value"]])
    low, high = (float(f(ends[np.isfinite(ends) & (ends > 0)])) for f in (np.min, np.max))
    apart = high / low
    round_ones = next(ratios for least, ratios in _ROUND if apart > least)
    ax.set_xlim(low / 1.15, high * 1.15)
    ax.set_xticks([tick for tick in round_ones if low / 1.15 <= tick <= high * 1.15])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", labelsize=8)
