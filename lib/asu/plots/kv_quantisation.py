"""Figure on KV-cache quantisation: how its rounding shows along the text."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from asu import style
from asu.effects import CONTROL
from asu.plots.core import legend, need, select, share_axis
from asu.stats import kaplan_meier

_ARMS = [("#D55E00", "-", "o"), ("#5E3C99", "--", "s"), ("#0072B2", ":", "^"), ("#009E73", "-.", "D")]


@style.styled
def error_growth(compared: pd.DataFrame, curve: pd.DataFrame, losses: pd.DataFrame) -> Figure:
    """What rounding does along the text: texts still equal, log-probabilities on equal text, accuracy lost by length.

    compared: of `agreement.compare`; curve: of `agreement.by_position`; losses: of `drift.loss_by_length` with arm
    kv_cache, no rows where nothing was graded. Comparisons wear the same look in all panels, the control grey.
    """
    need(compared, ["comparison", "changed", "parted_at"], "error_growth")
    need(curve, ["comparison", "position", "value", "lo", "hi"], "error_growth")
    names = list(dict.fromkeys(compared["comparison"]))
    arms = iter(_ARMS)
    looks = {name: (style.FAINT, "--", "x") if name.startswith(CONTROL) else next(arms) for name in names}
    figure = Figure(figsize=(style.WIDTH, 3.1), layout="constrained")
    equal, distance, lost = figure.subplots(1, 3)
    for place, (name, (colour, dash, marker)) in enumerate(looks.items()):
        look = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}
        rows = select(compared, comparison=name)
        texts = kaplan_meier(rows["parted_at"], rows["changed"] == 1)
        equal.plot(texts["time"], texts["survival"], drawstyle="steps-post", markevery=0.25, **look)
        equal.fill_between(texts["time"], texts["lo"], texts["hi"], step="post", color=colour, alpha=0.12, linewidth=0)
        gaps = select(curve, comparison=name)
        distance.plot(gaps["position"], gaps["value"], **look)
        distance.fill_between(gaps["position"], gaps["lo"], gaps["hi"], color=colour, alpha=0.12, linewidth=0)
        bins = select(losses, kv_cache=name)
        if len(bins):
            at = bins["length"] * 1.04**place
            lost.vlines(at, bins["lo"] * 100, bins["hi"] * 100, color=colour, linewidth=1.4)
            lost.plot(at, bins["value"] * 100, **look)
    equal.set(xlim=(0, None), ylim=(0, 1.02), xlabel="tokens from the start", ylabel="texts still equal [%]")
    share_axis(equal)
    distance.set(xlim=(0, None), ylim=(0, None), xlabel="tokens from the start",
                 ylabel="mean |Δ log-probability|\non equal text [nat]")
    lost.axhline(0, color=style.INK, linewidth=0.8)
    lost.set(xlabel="thinking tokens\nwithout quantisation", ylabel="accuracy lost [points]")
    if len(losses):
        lost.set_xscale("log")
        lost.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        lost.xaxis.set_minor_formatter(NullFormatter())
    else:
        lost.set(xticks=[], yticks=[])
        lost.text(0.5, 0.5, "nothing was graded", transform=lost.transAxes, ha="center", color=style.FAINT)
    legend(figure, [Line2D([], [], color=colour, linestyle=dash, marker=marker, label=name)
                    for name, (colour, dash, marker) in looks.items()])
    return figure
