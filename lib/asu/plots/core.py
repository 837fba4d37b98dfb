"""What the figures share: axes in a grid, labels, marks, legends."""

from collections.abc import Iterable
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from asu import style
from asu.claims import SETS
from asu.errors import AsuError
from asu.metrics import METRICS


def need(frame: pd.DataFrame, columns: Iterable[str], what: str) -> pd.DataFrame:
    """`frame`, if it has rows and `columns`; an empty panel is never drawn."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise AsuError(f"figure {what}: its frame lacks the columns {', '.join(missing)}",
                       f"pass a frame with {', '.join(columns)}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise AsuError(f"figure {what}: its frame has no rows",
                       "check the filter before the figure and the runs it reads")
    return frame


def nothing(why: str) -> Figure:
    """A figure that says why it shows nothing, where that is no mistake of the caller's; its label is its only text."""
    figure = Figure(figsize=(style.WIDTH, 1.2), layout="constrained")
    figure.text(0.5, 0.5, why, ha="center", va="center", color=style.FAINT)
    figure.set_label(why)
    return figure


def metric_label(name: str, width: int = 24) -> tuple[str, bool]:
    """(axis label, whether it is a share, drawn in percent) of a metric or of a per-request column such as e2e_s."""
    if name not in METRICS:
        title, unit = name.removesuffix("_s").replace("_", " "), "s" if name.endswith("_s") else ""
        title = "time, sent to last token" if name == "service_s" else title
        title = title.upper() if title in ("e2e", "ttft", "ttfvt", "tbt") else title
    else:
        title, unit = METRICS[name].title, METRICS[name].unit
    share = unit.startswith("share")
    unit = unit.replace("share", "%") if share else unit
    return fill(f"{title} [{unit}]" if unit else title, width), share


def select(frame: pd.DataFrame | None, **where) -> pd.DataFrame:
    """The rows where each named column, if there is one, has the value; None selects nothing."""
    if frame is None:
        return pd.DataFrame()
    for column, value in where.items():
        if column in frame:
            frame = frame[frame[column] == value]
    return frame


def theirs_by_task(paper: pd.DataFrame | None, tasks: Iterable[str]) -> pd.DataFrame | None:
    """The paper's rows under this module's columns: each of `tasks` gets those of the set it is or stands for."""
    if paper is None:
        return paper
    paper = paper.rename(columns={"quantity": "metric", "size": "model"})
    if "task" in paper:
        return paper
    sets = pd.DataFrame([(task, SETS[task]) for task in set(tasks) if task in SETS], columns=["task", "set"])
    return paper.merge(sets, on="set")


def grid(frame, row: str, column: str, height: float, sharex=False, sharey="row", rows=None, columns=None):
    """A figure with one panel per (row, column) value that occurs: (figure, {(row, column): axes})."""
    known = {"task": style.TASKS, "role": style.ROLES}
    rows = rows or style.ordered(frame[row], known.get(row, {}))
    columns = columns or style.ordered(frame[column], known.get(column, {}))
    figure = Figure(figsize=(style.WIDTH, height * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), sharex=sharex, sharey=sharey, squeeze=False)
    present = set(zip(frame[row], frame[column], strict=True))
    panels = {}
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            if (r, c) in present:
                panels[r, c] = axes[i, j]
            else:
                axes[i, j].remove()
    return figure, panels


def line(role: str, **more) -> dict:
    """How a role's lines look."""
    look = style.role(role)
    return {"color": look.colour, "linestyle": look.dash, **more}


def trace(ax: Axes, runs: pd.DataFrame, column: str, **more) -> None:
    """One line per run of `column` against t_s, with a few marks so that colour is not alone in naming the role."""
    for (role, _), run in runs.dropna(subset=[column]).groupby(["role", "run"]):
        run = run.sort_values("t_s")
        ax.plot(run["t_s"], run[column], marker=style.role(role).marker, markevery=max(1, len(run) // 5), markersize=4,
                **line(role, linewidth=1.3), **more)


def role_handles(roles, marker=True, line=True) -> list[Line2D]:
    """Legend entries of the roles."""
    return [Line2D([], [], color=style.role(role).colour, linestyle=style.role(role).dash if line else "none",
                   marker=style.role(role).marker if marker else "none", label=style.role(role).label)
            for role in style.ordered(roles, style.ROLES)]


def paper_handle(label: str = "paper (7B)") -> Line2D:
    """Legend entry of the paper's marks."""
    return Line2D([], [], color=style.INK, marker=style.PAPER.marker, markerfacecolor="none", linestyle="none",
                  label=label)


def paper_handles(paper: pd.DataFrame | None, label: str = "paper (7B)") -> list[Line2D]:
    """Legend entry of the paper's marks, where there are any."""
    return [] if paper is None or paper.empty else [paper_handle(label)]


def from_zero(axes: Iterable[Axes]) -> None:
    """Start the value axes at zero; after all panels are drawn, for a set limit ends the scaling of shared axes."""
    for ax in axes:
        low, high = ax.get_ylim()
        ax.set_ylim(0, high + 0.05 * max(low, 0))  # the margin of the longer axis


def legend(figure: Figure, handles: list, columns: int = 4) -> None:
    """One legend above all panels."""
    figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)))


def share_axis(ax: Axes) -> None:
    """Write the value axis in percent."""
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))  # one each: a formatter knows only its last axis


def whisker(ax: Axes, x, rows: pd.DataFrame, **look) -> None:
    """Intervals around `value`; drawn from the bounds themselves, which need not be symmetric."""
    ax.vlines(x, rows["lo"], rows["hi"], color=style.INK, linewidth=1.1, zorder=3, **look)


def bars(ax: Axes, frame: pd.DataFrame, series: list[tuple], paper: pd.DataFrame | None) -> None:
    """Bars grouped by task; `series` = [(selection, look, face)]: one bar of each group, with its interval."""
    tasks = style.ordered(frame["task"], style.TASKS)
    width = 0.8 / len(series)
    for k, (where, look, face) in enumerate(series):
        rows = select(frame, **where)
        if rows.empty:
            continue
        x = np.array([tasks.index(task) for task in rows["task"]]) + (k - (len(series) - 1) / 2) * width
        ax.bar(x, rows["value"], width * 0.92, color=look.colour if face else "white", edgecolor=look.colour if not face
               else "white", hatch=look.hatch, linewidth=1.2 if not face else 0.0)
        whisker(ax, x, rows)
        for task, at in zip(rows["task"], x, strict=True):
            theirs = select(paper, task=task, **where)
            if len(theirs):
                ax.plot([at] * len(theirs), theirs["value"], style.PAPER.marker, markerfacecolor="white",
                        markeredgecolor=style.INK, markersize=5.5, zorder=4)
    ax.set_xticks(range(len(tasks)), [style.task(task).label for task in tasks], rotation=30, ha="right")
    ax.grid(axis="x", visible=False)


def bar_handles(roles) -> list[Patch]:
    """Legend entries of bars by role."""
    return [Patch(facecolor=style.role(role).colour, edgecolor="white", hatch=style.role(role).hatch,
                  label=style.role(role).label) for role in style.ordered(roles, style.ROLES)]


def band(ax: Axes, rows: pd.DataFrame, x: str, role: str) -> None:
    """A role's line with its interval as a band."""
    if rows.empty:
        return
    rows = rows.sort_values(x)
    ax.plot(rows[x], rows["value"], marker=style.role(role).marker, **line(role))
    ax.fill_between(rows[x], rows["lo"], rows["hi"], color=style.role(role).colour, alpha=0.2, linewidth=0)


def accuracy_axes(ax: Axes, pair: str, task: str) -> None:
    """Axes of a panel of accuracy over a set's levels, titled in the first row and named in the first column."""
    ax.set_ylim(-0.03, 1.05)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    share_axis(ax)
    if ax.get_subplotspec().is_first_row():
        ax.set_title(style.task(task).label)
    if ax.get_subplotspec().is_first_col():
        ax.set_ylabel(f"{pair}\naccuracy [%]")
