"""Figures of the pilot study: notebooks 00 to 05."""

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from asu import style
from asu.claims import CLAIMS
from asu.plots.core import (
    accuracy_axes,
    band,
    bar_handles,
    bars,
    from_zero,
    grid,
    legend,
    line,
    metric_label,
    need,
    paper_handle,
    paper_handles,
    role_handles,
    select,
    share_axis,
    theirs_by_task,
    trace,
)
from asu.stats import Estimate, kaplan_meier

# Requests still running of a batch of 16, 7B, read off the paper's figure.
PAPER_RUNNING = pd.DataFrame(
    [("MATH-500", "RLLM", 0, 16), ("MATH-500", "RLLM", 50, 4), ("MATH-500", "RLLM", 80, 2),
     ("MATH-500", "RLLM", 200, 2), ("MATH-500", "LLM", 0, 16), ("MATH-500", "LLM", 10, 1),
     ("AIME-2024", "RLLM", 0, 16), ("AIME-2024", "RLLM", 90, 11), ("AIME-2024", "RLLM", 200, 11),
     ("AIME-2024", "LLM", 0, 16), ("AIME-2024", "LLM", 20, 4)],
    columns=["set", "role", "t_s", "running"])


@style.styled
def kv_use_over_time(engine: pd.DataFrame, predicted: pd.DataFrame | None = None,
                     paper: pd.DataFrame | None = None) -> Figure:
    """KV-cache use against time, one panel per pair and task.

    engine: task, pair, role, run, t_s, kv_use (share), kv_pool_actual [tokens]; predicted: the same with `predicted`
    (share) for kv_use, from `metrics.kv_prediction`; paper: task, role, value (peak share), marked at the right edge.
    """
    need(engine, ["task", "pair", "role", "run", "t_s", "kv_use", "kv_pool_actual"], "kv_use_over_time")
    paper = theirs_by_task(paper, engine["task"])
    figure, panels = grid(engine, "pair", "task", height=1.75, sharey=True)
    for (pair, task), ax in panels.items():
        here = engine[(engine["pair"] == pair) & (engine["task"] == task)]
        trace(ax, here, "kv_use")
        guesses = select(predicted, pair=pair, task=task)
        for _, run in guesses.groupby(["role", "run"]) if len(guesses) else ():
            run = run.sort_values("t_s")
            ax.plot(run["t_s"], run["predicted"], color=style.INK, linewidth=0.8, linestyle=":", zorder=4)
        for row in select(paper, task=task).itertuples():
            ax.plot(1.0, row.value, marker="<", color=style.role(row.role).colour, markerfacecolor="white",
                    transform=ax.get_yaxis_transform(), clip_on=False, zorder=5, markersize=6)
        ax.set_title(style.task(task).label)
        ax.set_xlim(left=0)
        share_axis(ax)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(f"KV cache in use [%]\n{pair}: pool of\n{_pools(engine[engine['pair'] == pair])}")
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("time since start [s]")
    from_zero(panels.values())
    handles = role_handles(engine["role"])
    if predicted is not None:
        handles.append(Line2D([], [], color=style.INK, linestyle=":", linewidth=0.8, label="predicted by the client"))
    if paper is not None:
        handles.append(Line2D([], [], color=style.INK, marker="<", markerfacecolor="white", linestyle="none",
                              label="the paper's peak (7B)"))
    legend(figure, handles)
    return figure


def _pools(engine: pd.DataFrame) -> str:
    pools = sorted(engine["kv_pool_actual"].dropna().unique())
    return (" and ".join(f"{int(pool):,}" for pool in pools) + " tokens") if pools else "unknown size"


@style.styled
def kv_summary(summary: pd.DataFrame, paper: pd.DataFrame | None = None) -> Figure:
    """Peak, mean and swing of KV use: bars with intervals, the paper's values as marks.

    summary: task, pair, role, metric (kv_peak, kv_mean, kv_swing), value, lo, hi (shares of the pool);
    paper: task, role, metric, value.
    """
    need(summary, ["task", "pair", "role", "metric", "value", "lo", "hi"], "kv_summary")
    paper = theirs_by_task(paper, summary["task"])
    metrics = list(dict.fromkeys(summary["metric"]))
    figure, panels = grid(summary, "pair", "metric", height=2.1, columns=metrics)
    series = [({"role": role}, style.role(role), True) for role in style.ordered(summary["role"], style.ROLES)]
    for (pair, metric), ax in panels.items():
        here = summary[(summary["pair"] == pair) & (summary["metric"] == metric)]
        bars(ax, here, series, select(paper, metric=metric))
        ax.tick_params(labelbottom=ax.get_subplotspec().is_last_row())
        label, share = metric_label(metric, 26)
        if share:
            share_axis(ax)
        if ax.get_subplotspec().is_first_row():
            ax.set_title(label)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(pair)
    from_zero(panels.values())
    legend(figure, bar_handles(summary["role"]) + paper_handles(paper))
    return figure


@style.styled
def running_over_time(engine: pd.DataFrame, paper: pd.DataFrame | None = None) -> Figure:
    """Requests running against time, one panel per load (barrier, continuous) and task.

    engine: task, role, load, run, t_s, running; paper: PAPER_RUNNING (a batch of 16 on a GPU), drawn in the barrier's
    panels against a time axis of its own, above.
    """
    need(engine, ["task", "role", "load", "run", "t_s", "running"], "running_over_time")
    paper = theirs_by_task(paper, engine["task"])
    figure, panels = grid(engine, "load", "task", height=1.9, sharey=True)
    drawn = False
    for (load, task), ax in panels.items():
        here = engine[(engine["load"] == load) & (engine["task"] == task)]
        trace(ax, here, "running", drawstyle="steps-post")
        ax.set_title(style.task(task).label)
        ax.set_xlim(left=0)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        theirs = select(paper, task=task) if load.startswith("batch") else pd.DataFrame()
        if len(theirs):
            drawn = True
            above = ax.twiny()
            above.grid(False)
            above.spines["top"].set_visible(True)
            for role, points in theirs.groupby("role"):
                above.plot(points["t_s"], points["running"], linestyle="none", marker=style.role(role).marker,
                           markerfacecolor="white", color=style.role(role).colour, markersize=6, zorder=5)
            above.set_xlim(left=0, right=theirs["t_s"].max() * 1.05)
            above.set_xlabel("paper's time [s]", fontsize=8, color=style.FAINT)
            above.tick_params(labelsize=8, labelcolor=style.FAINT)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(f"{load_label(load)}\nrequests running")
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("time since start [s]")
    from_zero(panels.values())
    handles = role_handles(engine["role"])
    if drawn:
        handles.append(Line2D([], [], color=style.INK, marker="o", markerfacecolor="white", linestyle="none",
                              label="paper (7B, batch of 16), hollow"))
    legend(figure, handles)
    return figure


def load_label(load: str) -> str:
    """A load's label in words: "batch16" -> "barrier, 16 at once"."""
    for prefix, words in (("batch", "barrier, {} at once"), ("closed", "continuous, {} in flight")):
        if load.startswith(prefix):
            return words.format(load.removeprefix(prefix))
    return load


@style.styled
def queue_over_time(engine: pd.DataFrame) -> Figure:
    """Requests running and, stacked on them, requests waiting against time: a row per pair and role, a column per task.

    engine: task, pair, role, run, t_s, running, waiting.
    """
    need(engine, ["task", "pair", "role", "run", "t_s", "running", "waiting"], "queue_over_time")
    engine = engine.assign(who=engine["pair"] + "\n" + engine["role"]).dropna(subset=["running", "waiting"])
    rows = [f"{pair}\n{role}" for pair in sorted(set(engine["pair"])) for role in style.ordered(
        engine.loc[engine["pair"] == pair, "role"], style.ROLES)]
    figure, panels = grid(engine, "who", "task", height=1.25, sharey=True, rows=rows)
    for (who, task), ax in panels.items():
        here = engine[(engine["who"] == who) & (engine["task"] == task)]
        for (role, _), run in here.groupby(["role", "run"]):
            run = run.sort_values("t_s")
            ax.fill_between(run["t_s"], run["running"], run["running"] + run["waiting"], step="post",
                            color=style.FAINT, alpha=0.6, linewidth=0)
            ax.plot(run["t_s"], run["running"], drawstyle="steps-post", **line(role, linewidth=1.3))
        if ax.get_subplotspec().is_first_row():
            ax.set_title(style.task(task).label)
        ax.set_xlim(left=0)
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(f"{who}\n[requests]")
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("time since start [s]")
    from_zero(panels.values())
    legend(figure, [*role_handles(engine["role"], marker=False),
                     Patch(facecolor=style.FAINT, alpha=0.6, label="waiting, on top of the running ones")])
    return figure


@style.styled
def swimlane(requests: pd.DataFrame) -> Figure:
    """One line per request: waiting, thinking, answering; a cross where the budget cut it off. One panel per role.

    requests: role, due_s, first_s, visible_s (NaN: never left thinking), last_s, thinking_tokens, finish_reason.
    """
    need(requests, ["role", "due_s", "first_s", "visible_s", "last_s", "thinking_tokens", "finish_reason"], "swimlane")
    requests = requests.dropna(subset=["first_s", "last_s"])
    roles = style.ordered(requests["role"], style.ROLES)
    most = requests.groupby("role").size().max()
    figure = Figure(figsize=(style.WIDTH, float(np.clip(1.6 + 0.05 * most, 2.8, 7.0))), layout="constrained")
    start = requests["due_s"].min()
    for ax, role in zip(figure.subplots(1, len(roles), squeeze=False)[0], roles, strict=True):
        here = requests[requests["role"] == role].sort_values(["due_s", "first_s"]).reset_index(drop=True)
        for phase, since, until in _phases(here):
            look = style.PHASES[phase]
            lanes = [((a - start, lane), (b - start, lane))
                     for lane, (a, b) in enumerate(zip(since, until, strict=True)) if b > a]
            width = {"queue": 0.8, "thinking": 1.6, "answer": 2.6}[phase]
            ax.add_collection(LineCollection(lanes, colors=look.colour, linestyles=look.dash, linewidths=width))
        cut = here[here["finish_reason"] == "length"]
        ax.plot(cut["last_s"] - start, cut.index, "x", color=style.INK, markersize=4.5, markeredgewidth=1.2, zorder=4)
        ax.set_xlim(0, (here["last_s"].max() - start) * 1.03)
        ax.set_ylim(len(here), -1)
        ax.grid(axis="y", visible=False)
        ax.set_title(style.role(role).label)
        ax.set_xlabel("time since the first request was due [s]")
    figure.axes[0].set_ylabel("requests, in the order they were due")
    handles = [Line2D([], [], color=look.colour, linestyle=look.dash, label=look.label,
                      linewidth={"queue": 1.0, "thinking": 2.0, "answer": 3.2}[phase])
               for phase, look in style.PHASES.items()]
    handles.append(Line2D([], [], color=style.INK, marker="x", linestyle="none", label="cut off by the budget"))
    legend(figure, handles)
    return figure


def _phases(requests: pd.DataFrame) -> list[tuple[str, pd.Series, pd.Series]]:
    """(phase, since, until) of every request [s]; who never thought answers from the first token on."""
    thought = requests["thinking_tokens"] > 0
    visible = requests["visible_s"].where(thought, requests["first_s"]).fillna(requests["last_s"])
    return [("queue", requests["due_s"], requests["first_s"]), ("thinking", requests["first_s"], visible),
            ("answer", visible, requests["last_s"])]


@style.styled
def straggler_summary(summary: pd.DataFrame, paper: pd.DataFrame | None = None) -> Figure:
    """What stragglers cost, under the barrier (filled) and under continuous batching (outlined).

    summary: task, role, load, metric, value, lo, hi; paper: task, role, load, metric, value.
    """
    need(summary, ["task", "role", "load", "metric", "value", "lo", "hi"], "straggler_summary")
    order = list(dict.fromkeys(summary["metric"]))
    loads = sorted(set(summary["load"]))  # "batch…" first
    paper = theirs_by_task(paper, summary["task"])
    if paper is not None and "load" not in paper:
        paper = paper.assign(load=loads[0])  # the paper's client always waits for the whole batch
    roles = style.ordered(summary["role"], style.ROLES)
    figure = Figure(figsize=(style.WIDTH, 3.7), layout="constrained")
    for ax, metric in zip(figure.subplots(1, len(order), squeeze=False)[0], order, strict=True):
        series = [({"role": role, "load": load}, style.role(role), load == loads[0])
                  for role in roles for load in loads]
        bars(ax, summary[summary["metric"] == metric], series, select(paper, metric=metric))
        label, share = metric_label(metric)
        ax.set_title(label)
        if share:
            share_axis(ax)
    from_zero(figure.axes)
    handles = [Patch(facecolor=style.role(role).colour if load == loads[0] else "white", hatch=style.role(role).hatch,
                     edgecolor="white" if load == loads[0] else style.role(role).colour,
                     label=f"{role}, {load_label(load)}") for role in roles for load in loads]
    legend(figure, handles + paper_handles(paper), columns=3)
    return figure


@style.styled
def time_vs_difficulty(requests: pd.DataFrame, slopes: pd.DataFrame) -> Figure:
    """Tokens and time of each request against the task's own difficulty, with the slope and its interval.

    requests: task, role, difficulty and one column per metric; slopes: task, role, metric, value, lo, hi (change of the
    metric per unit of difficulty). The line has that slope and goes through the means, as least squares does.
    """
    need(slopes, ["task", "role", "metric", "value", "lo", "hi"], "time_vs_difficulty")
    metrics = list(dict.fromkeys(slopes["metric"]))
    need(requests, ["task", "role", "difficulty", *metrics], "time_vs_difficulty")
    figure, panels = grid(slopes, "metric", "task", height=2.3, sharey=False, rows=metrics)
    for (metric, task), ax in panels.items():
        notes = []
        for role in style.ordered(requests["role"], style.ROLES):
            points = requests[(requests["task"] == task) & (requests["role"] == role)].dropna(
                subset=[metric, "difficulty"])
            slope = select(slopes, task=task, role=role, metric=metric)
            if points.empty or slope.empty:
                continue
            look, slope = style.role(role), slope.iloc[0]
            ax.plot(points["difficulty"], points[metric], look.marker, color=look.colour, alpha=0.35, markersize=3.5,
                    markeredgewidth=0, rasterized=len(points) > 2000)
            middle, height = points["difficulty"].mean(), points[metric].mean()
            x = np.linspace(points["difficulty"].min(), points["difficulty"].max(), 2)
            ax.plot(x, height + slope["value"] * (x - middle), zorder=4, **line(role, linewidth=2))
            x = np.linspace(x[0], x[1], 21)
            edges = np.sort([height + slope[bound] * (x - middle) for bound in ("lo", "hi")], axis=0)
            ax.fill_between(x, *edges, color=look.colour, alpha=0.25, linewidth=0)
            notes.append(f"{role} {_short(slope['value'], slope['lo'], slope['hi'])}")
        ax.set_title("\n".join(notes), fontsize=7)
        if ax.get_subplotspec().is_first_row():
            ax.set_title(f"{style.task(task).label}\n" + "\n".join(notes), fontsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True) if notes else NullLocator())
        if not notes:
            ax.text(0.5, 0.5, "no difficulty\nrecorded", ha="center", va="center", transform=ax.transAxes)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(metric_label(metric)[0])
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("difficulty")
    from_zero(panels.values())
    legend(figure, role_handles(requests["role"]))
    return figure


def _short(value: float, lo: float, hi: float) -> str:
    """"+0.28 [0.25, 0.31]", with two digits of the largest, since four of these stand side by side."""
    if np.isnan(value):
        return "not known"
    most = np.nanmax(np.abs([value, lo, hi]))
    digits = int(np.clip(1 - np.floor(np.log10(most)), 0, 6)) if most > 0 else 0
    return f"{value:+.{digits}f} [{lo:.{digits}f}, {hi:.{digits}f}]".replace("-", "−")


@style.styled
def domain_preference(differences: pd.DataFrame, paper: pd.DataFrame | None = None) -> Figure:
    """Accuracy of RLLM minus LLM on the same problems, per task, with its interval.

    differences: task, pair, value, lo, hi (shares of one); paper: task, value, or both roles' accuracies.
    """
    need(differences, ["task", "pair", "value", "lo", "hi"], "domain_preference")
    tasks = style.ordered(differences["task"], style.TASKS)
    paper = theirs_by_task(paper, tasks)
    if paper is not None and "role" in paper:
        by_role = paper.pivot(index="task", columns="role", values="value").reindex(columns=list(style.ROLES))
        paper = (by_role["RLLM"] - by_role["LLM"]).rename("value").reset_index()
    pairs = sorted(set(differences["pair"]))
    step = min(0.26, 0.8 / len(pairs))
    figure = Figure(figsize=(style.WIDTH, 1.4 + max(0.62, 0.16 * len(pairs)) * len(tasks)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color=style.INK, linewidth=1)
    for k, pair in enumerate(pairs):
        rows = differences[differences["pair"] == pair]
        y = np.array([tasks.index(task) for task in rows["task"]]) + (k - (len(pairs) - 1) / 2) * step
        colours = [style.task(task).colour for task in rows["task"]]
        ax.hlines(y, rows["lo"] * 100, rows["hi"] * 100, colors=colours, linewidth=2)
        for at, row, colour in zip(y, rows.itertuples(), colours, strict=True):
            ax.plot(row.value * 100, at, _PAIR_MARKS[k % len(_PAIR_MARKS)], color=colour, markersize=8)
    for row in select(paper).itertuples():
        if row.task in tasks:
            ax.plot(row.value * 100, tasks.index(row.task), style.PAPER.marker, markerfacecolor="white",
                    markeredgecolor=style.INK, markersize=7, zorder=4)
    ax.set_yticks(range(len(tasks)), [style.task(task).label for task in tasks])
    ax.set_ylim(len(tasks) - 0.5, -0.5)
    ax.set_xlabel("accuracy of RLLM − accuracy of LLM [percentage points]")
    handles = [Line2D([], [], color=style.FAINT, marker=_PAIR_MARKS[k % len(_PAIR_MARKS)], markersize=8, label=pair)
               for k, pair in enumerate(pairs)]
    legend(figure, handles + paper_handles(paper))
    return figure


_PAIR_MARKS = ["o", "^", "s", "v", "P", "X", "*", "p"]  # not the paper's


@style.styled
def outcomes(shares: pd.DataFrame) -> Figure:
    """All five outcomes of each group as stacked shares, with the interval of the share correct.

    shares: task, role, outcome, value, lo, hi, n, and optionally pair; one row per outcome.
    """
    need(shares, ["task", "role", "outcome", "value", "lo", "hi", "n"], "outcomes")
    keys = ["pair", "task", "role"] if "pair" in shares else ["task", "role"]
    groups = shares[keys].drop_duplicates()
    tasks = style.ordered(groups["task"], style.TASKS)
    rank = {"task": tasks.index, "role": list(style.ROLES).index, "pair": str}
    groups = groups.sort_values(keys, key=lambda column: column.map(rank[column.name])).reset_index(drop=True)
    figure = Figure(figsize=(style.WIDTH, 1.3 + 0.3 * len(groups)), layout="constrained")
    ax = figure.subplots()
    for y, group in groups.iterrows():
        left = 0.0
        rows = select(shares, **{key: group[key] for key in keys}).set_index("outcome")
        for outcome, look in style.OUTCOMES.items():
            width = rows["value"].get(outcome, 0.0)
            ax.barh(y, width, 0.72, left=left, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0)
            left += width
        if "correct" in rows.index:
            ax.hlines(y, rows["lo"]["correct"], rows["hi"]["correct"], color=style.INK, linewidth=1.8, zorder=4)
            ax.plot([rows["value"]["correct"]], [y], "|", color=style.INK, markersize=10, zorder=4)
        ax.text(1.01, y, f"n = {int(rows['n'].iloc[0])}", va="center", fontsize=8)
    labels = groups.assign(task=[style.task(task).label for task in groups["task"]])[keys]
    ax.set_yticks(range(len(groups)), labels.agg(" · ".join, axis=1))
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("share of requests [%]")
    ax.grid(axis="y", visible=False)
    handles = [Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", label=look.label)
               for look in style.OUTCOMES.values()]
    handles.append(Line2D([], [], color=style.INK, linewidth=1.8, label="95 % interval of correct"))
    legend(figure, handles, columns=3)
    return figure


@style.styled
def accuracy_by_level(levels: pd.DataFrame) -> Figure:
    """Accuracy against the set's own level of difficulty: a row of panels per pair, a column per task.

    levels: task, pair, role, level, value, lo, hi (shares of one).
    """
    need(levels, ["task", "pair", "role", "level", "value", "lo", "hi"], "accuracy_by_level")
    figure, panels = grid(levels, "pair", "task", height=1.8, sharey=True)
    for (pair, task), ax in panels.items():
        here = levels[(levels["pair"] == pair) & (levels["task"] == task)]
        for role in style.ordered(here["role"], style.ROLES):
            band(ax, here[here["role"] == role], "level", role)
        accuracy_axes(ax, pair, task)
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("level")
    legend(figure, role_handles(levels["role"]))
    return figure


@style.styled
def length_by_outcome(requests: pd.DataFrame) -> Figure:
    """Output tokens of every answer by what came of it, medians as bars: a row of panels per pair, a column per task.

    requests: task, pair, outcome, output_tokens, budget [tokens], of one role.
    """
    need(requests, ["task", "pair", "outcome", "output_tokens", "budget"], "length_by_outcome")
    requests = requests[requests["output_tokens"] > 0]
    outcomes = [name for name in style.OUTCOMES if name in set(requests["outcome"])]
    figure, panels = grid(requests, "pair", "task", height=1.9, sharey=True)
    for (pair, task), ax in panels.items():
        here = requests[(requests["pair"] == pair) & (requests["task"] == task)]
        for place, outcome in enumerate(outcomes):
            tokens = np.sort(here.loc[here["outcome"] == outcome, "output_tokens"])
            if not len(tokens):
                continue
            # side by side in a fixed zigzag: dots of equal length stay apart without a random number
            x = place + 0.3 * (np.arange(len(tokens)) * 0.618 % 1 * 2 - 1)
            ax.plot(x, tokens, ".", color=style.OUTCOMES[outcome].colour, markersize=4, alpha=0.7, markeredgewidth=0)
            ax.hlines(np.median(tokens), place - 0.4, place + 0.4, color=style.INK, linewidth=2, zorder=4)
            ax.text(place, 1.01, len(tokens), transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=7)
        ax.axhline(here["budget"].max(), color=style.FAINT, linewidth=1, linestyle=":")
        ax.set_yscale("log")
        ax.set_xlim(-0.6, len(outcomes) - 0.4)
        ax.set_xticks(range(len(outcomes)), outcomes, rotation=40, ha="right")
        ax.tick_params(labelbottom=ax.get_subplotspec().is_last_row())
        if ax.get_subplotspec().is_first_row():
            ax.set_title(style.task(task).label, pad=14)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(f"{pair}\noutput [tok]")
    handles = [Line2D([], [], color=style.INK, linewidth=2, label="median"),
               Line2D([], [], color=style.FAINT, linestyle=":", label="budget")]
    legend(figure, handles)
    return figure


@style.styled
def budget_curve(curve: pd.DataFrame, paper: pd.DataFrame | None = None) -> Figure:
    """Accuracy and share cut off against the token budget; below, normalised, with the paper's curves faint.

    curve: task, role, budget [tokens], metric ("accuracy", "cut_off"), value, lo, hi; paper: task, model, budget,
    value. The last row divides a curve's budgets by its largest and its accuracies by the one there, so that curves of
    different models share an axis.
    """
    need(curve, ["task", "role", "budget", "metric", "value", "lo", "hi"], "budget_curve")
    tasks = style.ordered(curve["task"], style.TASKS)
    paper = theirs_by_task(paper, tasks)
    names = ["accuracy", "cut_off"] + ([] if paper is None else ["normalised"])
    figure = Figure(figsize=(style.WIDTH, 1.85 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots(len(names), len(tasks), sharey="row", squeeze=False)
    for j, task in enumerate(tasks):
        for i, metric in enumerate(names[:2]):
            for role in style.ordered(curve["role"], style.ROLES):
                band(axes[i, j], select(curve, task=task, role=role, metric=metric), "budget", role)
            axes[i, j].set_ylim(0, 1.02)
            share_axis(axes[i, j])
            _budget_ticks(axes[i, j], curve["budget"])
        axes[0, j].set_title(style.task(task).label)
        axes[1, j].set_xlabel("token budget")
        if paper is not None:
            _normalised(axes[2, j], select(curve, task=task, role="RLLM", metric="accuracy"),
                        select(paper, task=task))
    for ax, label in zip(axes[:, 0], ["accuracy [%]", "cut off [%]", "accuracy, share of\nits own at full budget"],
                         strict=False):
        ax.set_ylabel(label)
    handles = role_handles(curve["role"])
    if paper is not None:
        handles += [Line2D([], [], color=style.FAINT, linestyle=dash, label=f"paper, {model}")
                    for model, dash in zip(sorted(set(paper["model"]), key=_size), _PAPER_DASHES, strict=False)]
    legend(figure, handles)
    return figure


_PAPER_DASHES = ["-", "--", ":", "-."]


def _size(model: str) -> float:
    digits = "".join(c for c in model if c.isdigit() or c == ".")
    return float(digits) if digits else 0.0


def _budget_ticks(ax: Axes, budgets) -> None:
    """Doubling budgets on a logarithmic axis, every second one named."""
    values = sorted(set(budgets))
    ax.set_xscale("log", base=2)
    named = values[::-1][::max(1, -(-len(values) // 3))][::-1]
    ax.set_xticks(named, [f"{int(v / 1024)}k" if v >= 1024 and v % 1024 == 0 else f"{v:g}" for v in named])
    ax.minorticks_off()


def _normalised(ax: Axes, ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    for role, rows in ours.groupby("role"):
        rows = rows.sort_values("budget")
        full = rows["value"].iloc[-1]
        if full > 0:
            ax.plot(rows["budget"] / rows["budget"].iloc[-1], rows["value"] / full, marker=style.role(role).marker,
                    zorder=3, **line(role))
    models = sorted(set(theirs["model"]), key=_size) if len(theirs) else []
    for model, dash in zip(models, _PAPER_DASHES, strict=False):
        rows = theirs[theirs["model"] == model].sort_values("budget")
        ax.plot(rows["budget"] / rows["budget"].iloc[-1], rows["value"] / rows["value"].iloc[-1], dash,
                color=style.FAINT, linewidth=1.2)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"1/{round(1 / x)}" if x < 1 else f"{x:g}"))
    ax.set_xticks([1 / 64, 1 / 8, 1])
    ax.minorticks_off()
    ax.set_ylim(0, 1.25)  # some of the paper's curves fall again after their best
    ax.set_xlabel("budget / largest")


@style.styled
def batch_size(curve: pd.DataFrame) -> Figure:
    """Any metrics, such as throughput, TTFVT and accuracy, against the number of requests sent at once.

    curve: task, role, batch (requests), metric, value, lo, hi; metrics in the order they come, one row of panels each.
    """
    need(curve, ["task", "role", "batch", "metric", "value", "lo", "hi"], "batch_size")
    metrics = list(dict.fromkeys(curve["metric"]))
    figure, panels = grid(curve, "metric", "task", height=1.7, sharey="row", rows=metrics)
    sizes = sorted(set(curve["batch"]))
    for (metric, task), ax in panels.items():
        for role in style.ordered(curve["role"], style.ROLES):
            band(ax, select(curve, task=task, role=role, metric=metric), "batch", role)
        label, share = metric_label(metric, 20)
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
        ax.minorticks_off()
        if share:
            share_axis(ax)
            if not metric.startswith("kv_"):  # shares of a pool may all be small
                ax.set_ylim(-0.03, 1.05)
        else:
            ax.set_yscale("log")  # a reasoning model and a plain one are a factor of ten and more apart
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        if ax.get_subplotspec().is_first_row():
            ax.set_title(style.task(task).label)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(label)
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("batch size [requests]")
    legend(figure, role_handles(curve["role"]))
    return figure


@style.styled
def agreement(compared: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """How alike two runs of the same requests are: equal texts by length, log-probabilities, answers.

    compared: of `agreement.compare`, one or more comparisons; summary: of `agreement.summary`.
    """
    need(compared, ["comparison", "changed", "parted_at", "shared", "gap"], "agreement")
    figure = Figure(figsize=(style.WIDTH, 3.1), layout="constrained")
    equal, distance, answers = figure.subplots(1, 3)
    names = list(dict.fromkeys(compared["comparison"]))
    for k, (name, (colour, dash, marker)) in enumerate(zip(names, _ARMS, strict=False)):
        rows = compared[compared["comparison"] == name]
        look = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}
        curve = kaplan_meier(rows["parted_at"], rows["changed"] == 1)
        equal.plot(curve["time"], curve["survival"], drawstyle="steps-post", markevery=0.2, **look)
        equal.fill_between(curve["time"], curve["lo"], curve["hi"], step="post", color=colour, alpha=0.15, linewidth=0)
        gaps = np.sort((rows["gap"] / rows["shared"])[rows["shared"] > 0])
        distance.plot(gaps, (np.arange(len(gaps)) + 1) / max(len(gaps), 1), drawstyle="steps-post", markevery=0.2,
                      **look)
        for place, metric in enumerate(("changed", "flipped", "hit_change")):
            row = select(summary, comparison=name, metric=metric).iloc[0]
            at = place + (k - (len(names) - 1) / 2) * 0.25
            answers.vlines(at, row["lo"], row["hi"], color=colour, linewidth=2)
            answers.plot(at, row["value"], marker, color=colour, markersize=6)
    equal.set(xlim=(0, None), ylim=(0, 1.02), xlabel="tokens from the start", ylabel="texts still equal [%]")
    distance.set(ylim=(0, 1.02), xlabel="mean |Δ log-probability|\non equal text [nat]",
                 ylabel="requests at or below [%]")
    distance.set_xscale("symlog", linthresh=1e-4)
    distance.set_xlim(-3e-5, max(1e-2, 2 * distance.get_xlim()[1]))
    answers.axhline(0, color=style.INK, linewidth=0.8)
    answers.set_xticks(range(3), ["text\nchanged", "answer\nflipped", "accuracy\nchange"], fontsize=8)
    answers.set(xlim=(-0.5, 2.5), ylabel="requests [%]")
    for ax in (equal, distance, answers):
        share_axis(ax)
    legend(figure, [Line2D([], [], color=colour, linestyle=dash, marker=marker, label=name)
                     for name, (colour, dash, marker) in zip(names, _ARMS, strict=False)])
    return figure


_ARMS = [(style.FAINT, "--", "s"), (style.INK, "-", "o"), ("#5E3C99", ":", "^")]


@style.styled
def survivor(curves: pd.DataFrame) -> Figure:
    """Share of requests still without a visible token against time (Kaplan–Meier), one panel per task.

    curves: task, role, time [s], survival, lo, hi (shares), censored (requests censored then), one row per step, as
    `stats.kaplan_meier` makes it.
    """
    need(curves, ["task", "role", "time", "survival", "lo", "hi", "censored"], "survivor")
    tasks = style.ordered(curves["task"], style.TASKS)
    figure = Figure(figsize=(style.WIDTH, 3.0), layout="constrained")
    for ax, task in zip(figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks, strict=True):
        for role in style.ordered(curves["role"], style.ROLES):
            rows = select(curves, task=task, role=role).sort_values("time")
            if rows.empty:
                continue
            look = style.role(role)
            ax.plot(rows["time"], rows["survival"], drawstyle="steps-post", marker=look.marker, markevery=0.3,
                    **line(role))
            ax.fill_between(rows["time"], rows["lo"], rows["hi"], step="post", color=look.colour, alpha=0.2,
                            linewidth=0)
            cut = rows[rows["censored"] > 0]
            ax.plot(cut["time"], cut["survival"], "+", color=style.INK, markersize=6, zorder=4)
        ax.set_title(style.task(task).label)
        ax.set_xlim(left=0)
        ax.set_ylim(0, 1.02)
        ax.set_xlabel("time since due [s]")
        share_axis(ax)
    figure.axes[0].set_ylabel("still without a visible\ntoken [% of requests]")
    handles = role_handles(curves["role"])
    handles.append(Line2D([], [], color=style.INK, marker="+", linestyle="none", label="ended while still thinking"))
    legend(figure, handles)
    return figure


@style.styled
def claims_picture(decided: pd.DataFrame, beside: pd.DataFrame | None = None, name: str = "") -> Figure:
    """Every claim on a line: the measured effect with its interval, the range that decides, the verdict.

    decided: of `claims.decide`; beside: of `report.beside`, measured by others under `name`, below the line. Each line
    has a scale of its own; where the claim would hold is shaded. The paper's number is marked where it is the same
    quantity.
    """
    need(decided, ["claim", "statement", "value", "lo", "hi", "unit", "paper_value", "verdict"], "claims_picture")
    others = {} if beside is None else {row.claim: row for row in beside.itertuples()}
    figure = Figure(figsize=(style.WIDTH, 0.6 * len(decided) + 0.7))
    top, bottom = 1 - 0.45 / figure.get_figheight(), 0.2 / figure.get_figheight()
    grid = figure.add_gridspec(len(decided), 1, left=0.43, right=0.78, top=top, bottom=bottom, hspace=0.55)
    claims = {claim.id: claim for claim in CLAIMS}
    for place, row in enumerate(decided.itertuples()):
        low, high = grid[place].get_position(figure).y0, grid[place].get_position(figure).y1
        look, middle, measured = style.VERDICTS[row.verdict], (low + high) / 2, "not measured"
        other = others.get(row.claim)
        if np.isfinite(row.value) or other:
            claim = claims[row.claim]
            theirs = np.nan if claim.compared else row.paper_value
            _against_range(figure.add_subplot(grid[place]), row, claim.holds.lo, claim.holds.hi, theirs, look, other)
        if np.isfinite(row.value):
            measured = fill(_told(row), 26)
        if other:
            measured += f"\n{fill(f'{name}: {_told(other)}', 29)}"
        figure.text(0.01, middle, fill(f"{row.claim}: {row.statement}", 50), va="center", fontsize=8)
        figure.text(0.79, middle, f"{look.label}\n{measured}", va="center", fontsize=7.5)
    handles = [Line2D([], [], color=look.colour, marker=look.marker, label=look.label)
               for look in style.VERDICTS.values()]
    handles += [Patch(color=style.VERDICTS["supported"].colour, alpha=0.15, label="the claim holds"),
                paper_handle("the paper's number")]
    if others:
        handles.append(Line2D([], [], color=style.INK, marker="s", markerfacecolor="white", markersize=4.5,
                              linewidth=1.2, label=name))
    figure.legend(handles=handles, loc="upper center", ncols=len(handles), bbox_to_anchor=(0.5, 1.0), fontsize=8,
                  columnspacing=1.2, handletextpad=0.5)
    return figure


def _told(row) -> str:
    """Value with interval and unit, as printed in the picture."""
    return str(Estimate(row.value, row.lo, row.hi, row.unit)).replace("-", "−")


def _against_range(ax: Axes, row, low: float, high: float, theirs: float, look: style.Look, other=None) -> None:
    """One claim's effect with its interval on a scale of its own, the range from `low` to `high` shaded."""
    others = (other.value, other.lo, other.hi) if other else ()
    spread = np.array([v for v in (row.value, row.lo, row.hi, low, high, theirs, *others) if np.isfinite(v)])
    room = 0.12 * (np.ptp(spread) or abs(row.value) or 1.0)
    left, right = spread.min() - room, spread.max() + room
    ax.axvspan(max(left, low), min(right, high), color=style.VERDICTS["supported"].colour, alpha=0.15, linewidth=0)
    for bound in (low, high):
        if np.isfinite(bound):
            ax.axvline(bound, color=style.INK, linewidth=1.2)
    if not np.isnan([row.lo, row.hi]).any():  # no interval is no line, and not one without end
        ax.hlines(0, max(left, row.lo), min(right, row.hi), color=look.colour, linewidth=2.4)
    ax.plot(row.value, 0, look.marker, color=look.colour, markersize=8, markeredgecolor="white", zorder=4)
    if other:
        if not np.isnan([other.lo, other.hi]).any():
            ax.hlines(-0.65, max(left, other.lo), min(right, other.hi), color=style.INK, linewidth=1.2)
        ax.plot(other.value, -0.65, "s", markerfacecolor="white", markeredgecolor=style.INK, markersize=4.5, zorder=4)
    if np.isfinite(theirs):
        ax.plot(theirs, 0, style.PAPER.marker, markerfacecolor="white", markeredgecolor=style.INK, markersize=5.5)
    ax.set(xlim=(left, right), ylim=(-1, 1), yticks=[])
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(labelsize=7, pad=1, length=2)
    ax.spines["left"].set_visible(False)
