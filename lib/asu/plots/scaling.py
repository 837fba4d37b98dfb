"""Figures of test-time scaling: accuracy over tokens spent, by thinking longer and by asking more often."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from asu import style
from asu.plots.core import band, from_zero, grid, legend, need, role_handles, select, share_axis
from asu.style import Look

WAYS = {
    "longer": Look("RLLM, longer thinking", "#D55E00", "o", "-"),
    "vote": Look("RLLM, more samples and a vote", "#CC79A7", "D", "-"),
    "any": Look("RLLM, any of the samples (pass@k)", style.FAINT, "^", ":"),
    "shared": Look("RLLM, one budget shared, vote", "#009E73", "v", "-."),
    "plain": Look("LLM, more samples and a vote", "#0072B2", "s", "--"),
}
PANELS = {"vote": "right by vote [%]", "cut_off": "samples cut off [%]", "tokens": "tokens of a\nquestion [tok]",
          "wait_s": "sending to last\ntoken of all [s]"}


@style.styled
def accuracy_by_tokens(curves: pd.DataFrame) -> Figure:
    """Accuracy against the tokens spent on a question, a panel per set, a line per way to spend them.

    curves: task, way (one of WAYS), samples, budget [tok], spent [tok], value, lo, hi [share]; a line joins its points
    by samples and budget.
    """
    need(curves, ["task", "way", "samples", "budget", "spent", "value", "lo", "hi"], "accuracy_by_tokens")
    tasks = style.ordered(curves["task"], style.TASKS)
    figure = Figure(figsize=(style.WIDTH, 4.2), layout="constrained")
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    present = [way for way in WAYS if way in set(curves["way"])]
    for ax, task in zip(axes, tasks, strict=True):
        for way in present:
            rows, look = select(curves, task=task, way=way).sort_values(["samples", "budget"]), WAYS[way]
            ax.fill_between(rows["spent"], rows["lo"], rows["hi"], color=look.colour, alpha=0.12, linewidth=0)
            ax.plot(rows["spent"], rows["value"], color=look.colour, marker=look.marker, linestyle=look.dash)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(-0.03, 1.05)
        share_axis(ax)
        ax.set_title(style.task(task).label)
        ax.set_xlabel("output tokens of a question [tok]")
    axes[0].set_ylabel("accuracy [%]")
    legend(figure, [Line2D([], [], color=WAYS[way].colour, marker=WAYS[way].marker, linestyle=WAYS[way].dash,
                           label=WAYS[way].label) for way in present], columns=2)
    return figure


@style.styled
def shared_budget(curve: pd.DataFrame) -> Figure:
    """One budget shared by more and more samples: rows of accuracy, cut-offs, tokens and time, a column per set.

    curve: of `votes.curve`: task, role, samples, metric (those of PANELS), value, lo, hi.
    """
    need(curve, ["task", "role", "samples", "metric", "value", "lo", "hi"], "shared_budget")
    curve = curve[curve["metric"].isin(list(PANELS))]
    figure, panels = grid(curve, "metric", "task", height=1.7, sharey="row", rows=list(PANELS))
    counts = sorted(set(curve["samples"]))
    for (metric, task), ax in panels.items():
        for role in style.ordered(curve["role"], style.ROLES):
            band(ax, select(curve, task=task, role=role, metric=metric), "samples", role)
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [f"{count:g}" for count in counts])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        if metric in ("vote", "cut_off"):
            share_axis(ax)
            ax.set_ylim(-0.03, 1.05)
        if ax.get_subplotspec().is_first_row():
            ax.set_title(style.task(task).label)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(PANELS[metric])
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("samples that share the budget")
    from_zero([ax for (metric, _), ax in panels.items() if metric in ("tokens", "wait_s")])
    legend(figure, role_handles(curve["role"]))
    return figure
