"""The paper's numbers, and how a measured number is set beside them.

The paper is "Reasoning Language Model Inference Serving Unveiled: An Empirical Study" (arXiv 2510.18672). Its full text
was not at hand: each number says whether it was read off a figure, said in words (by the authors or where others quote
them), taken from the released client's source, or worked out from these.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from asu.errors import AsuError
from asu.stats import Estimate

# which of the paper's problem sets a task is, or stands for
SETS = {
    "mini-easy": "GSM8K", "mini-medium": "MATH-500", "mini-hard": "AIME-2024", "mini-facts": "GPQA",
    "gsm8k": "GSM8K", "math500": "MATH-500", "aime24": "AIME-2024", "gpqa": "GPQA",
}
KNOWLEDGE = {"GPQA"}


def _paper() -> pd.DataFrame:
    """One row per number; `budget` [tokens] and `t_s` [s since the batch was sent] only where the number has one.

    `variant` is what an optimisation was set to ("" in the pilot study). Quantities of sections 5 and 6 are named
    <optimisation>.<metric>; their seconds are those of one pass over the set.
    """
    names, ends = ["GSM8K", "MATH-500", "AIME-2024", "GPQA"], ["RLLM", "LLM"]
    rows = []

    def add(quantity, unit, size, role, values, *, budget=np.nan, t_s=np.nan, variant="", source="figure",
            sets=names):
        rows.extend({"quantity": quantity, "size": size, "role": role, "set": name, "variant": variant,
                     "budget": budget, "t_s": t_s, "value": value, "unit": unit, "source": source}
                    for name, value in zip(sets, values, strict=True))

    for role, peaks in zip(ends, [(0.021, 0.041, 0.127, 0.187), (0.012, 0.020, 0.037, 0.023)], strict=True):
        add("kv_peak", "share of pool", "7B", role, peaks)
    add("kv_range", "share of pool", "unknown", "RLLM", [0.67], source="text, at second hand", sets=["extreme case"])
    add("kv_peak", "share of pool", "unknown", "LLM", [0.03], source="text, at second hand", sets=["extreme case"])
    for role, means in zip(ends, [(0.566, 0.642), (0.132, 0.181)], strict=True):
        add("kv_mean", "share of pool", "14B", role, means, sets=["MATH-500", "ShareGPT"])
    for role, minutes in zip(ends, [(1.47, 17.4, 7.19, 24.3), (1.07, 1.38, 0.50, 2.21)], strict=True):
        add("running_time", "s", "7B", role, [60 * m for m in minutes], source="figure, unit inferred")
    for role, shares in zip(ends, [(0.80, 0.64, 0.367, 0.19), (0.72, 0.01, 0.133, 0.07)], strict=True):
        add("accuracy", "share", "7B", role, shares)
    add("problems", "", "all", "both", [100, 100, 30, 100], source="released client")
    # 2 of 16 requests left from 80 s to beyond 200 s, the end of the axis: at least 120 s of 200 s
    add("straggler_share", "share", "7B", "RLLM", [0.6], source="figure, inferred", sets=["MATH-500"])
    # tokens its client counted, against throughput times time, with n-gram speculation: so many times too few
    add("tokens_per_event", "×", "7B", "RLLM", [1.6, 1.75], source="figure, inferred", sets=["least", "most"])
    # of 16 sent at once; the RLLM's last point of a set is the end of the axis, not the end of the batch
    for name, role, points in [("MATH-500", "RLLM", [(0, 16), (50, 4), (80, 2), (200, 2)]),
                               ("MATH-500", "LLM", [(0, 16), (10, 1)]),
                               ("AIME-2024", "RLLM", [(0, 16), (90, 11), (200, 11)]),
                               ("AIME-2024", "LLM", [(0, 16), (20, 4)])]:
        for t_s, left in points:
            add("running_requests", "", "7B", role, [left], t_s=t_s, sets=[name])
    by_budget = {
        "14B": ["7 47 84 88 88 88 88 88", "0 1 24 50 59 67 65 65", "0 0 0 6.7 26.7 60 66.7 70",
                "0 0 1 8 15 18 28 29"],
        "32B": ["11 80 93 93 93 93 93 93", "0 6 35 52 66 68 68 68", "0 0 0 6.7 23.3 53.3 56.7 60",
                "0 0 1 10 21 23 25 21"],
    }
    budgets = [256, 512, 1024, 2048, 4096, 8192, 16384, 20480]
    for size, lines in by_budget.items():
        for budget, *shares in zip(budgets, *(line.split() for line in lines), strict=True):
            add("accuracy_by_budget", "share", size, "RLLM", [float(s) / 100 for s in shares], budget=budget)
    _optimisations(add)
    return pd.DataFrame(rows)


# Sections 5 and 6: optimisation, size, token budget, and per variant and metric GSM8K, MATH-500, AIME-2024, GPQA.
_UNITS = {"accuracy": "share", "seconds": "s", "tps": "tok/s", "ttfvt": "s"}
_OPTIMISATIONS = [
    ("weights", "7B", {"original": {
        "accuracy": [0.877, 0.610, 0.222, 0.163], "seconds": [115, 356, 145, 490], "tps": [532, 808, 811, 776],
        "ttfvt": [5.2, 10.8, 49.6, 40.3]}}),
    ("kv_quant", "14B", {
        "original": {"accuracy": [0.863, 0.600, 0.278, 0.153], "seconds": [161, 507, 191, 648],
                     "tps": [400, 389, 595, 581]},
        "e4m3": {"accuracy": [0.873, 0.630, 0.267, 0.150], "seconds": [137, 457, 180, 602],
                 "tps": [466, 418, 641, 631]},
        "e5m2": {"accuracy": [0.823, 0.593, 0.267, 0.157], "seconds": [161, 466, 183, 618],
                 "tps": [391, 395, 632, 608]}}),
    ("prefix", "32B", {
        "on": {"accuracy": [0.927, 0.610, 0.256, 0.190], "seconds": [150, 930, 309, 1065], "tps": [327, 197, 380, 350],
               "ttfvt": [5.9, 44.8, 113.6, 83.1]},
        "off": {"accuracy": [0.907, 0.663, 0.256, 0.217], "seconds": [147, 889, 303, 1045],
                "tps": [325, 202, 389, 353], "ttfvt": [5.5, 44.6, 111.2, 74.0]}}),
    ("spec", "7B", {"ngram4": {
        "accuracy": [0.823, 0.620, 0.189, 0.150], "seconds": [92, 506, 289, 1013], "tps": [380, 228, 249, 240],
        "ttfvt": [3.9, 30.2, 84.3, 86.0]}}),
]


def _optimisations(add) -> None:
    """Enter the numbers of sections 5 and 6; all of section 5's are of reasoning models, at 4,096 tokens."""
    for optimisation, size, variants in _OPTIMISATIONS:
        for variant, measured in variants.items():
            for metric, values in measured.items():
                add(f"{optimisation}.{metric}", _UNITS[metric], size, "RLLM", values, variant=variant, budget=4096)
    for variant, lost in (("gptq, least", 0.15), ("gptq, most", 0.25)):
        add("weights.accuracy_loss", "share", "all", "RLLM", [lost], variant=variant, source="text",
            sets=["AIME-2024"])
    for variant in ("awq", "bnb4"):
        add("weights.e2e_ratio", "×", "all", "RLLM", [2.0], variant=variant, source="text, at most", sets=["all"])
        add("weights.tps_ratio", "×", "all", "RLLM", [0.5], variant=variant, source="text, at least", sets=["all"])
    for variant, running in (("typical, least", 40), ("typical, most", 100), ("most", 170)):
        add("load.running", "", "14B", "RLLM", [running] * 2, variant=variant, sets=["MATH-500", "ShareGPT"])
    add("load.running", "", "14B", "LLM", [48, 57], variant="most", sets=["MATH-500", "ShareGPT"])


PAPER = _paper()


def paper(quantity: str, tasks: Iterable[str] | None = None, **where) -> pd.DataFrame:
    """The paper's rows of one quantity, limited by column values: paper("kv_peak", size="7B", role="RLLM").

    tasks: the tasks measured; each row is then given to the tasks that stand for its set, in a column `task`.
    """
    if quantity not in set(PAPER.quantity):
        raise AsuError(f"the paper gives no number called {quantity!r}",
                       f"use one of: {', '.join(PAPER.quantity.unique())}")
    rows = PAPER[PAPER.quantity == quantity]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    if tasks is not None:
        rows = sets(tasks).merge(rows, on="set")
    return rows.reset_index(drop=True)


def sets(tasks: Iterable[str]) -> pd.DataFrame:
    """task and set of each task that is, or stands for, one of the paper's sets."""
    return pd.DataFrame([(task, SETS[task]) for task in dict.fromkeys(tasks) if task in SETS],
                        columns=["task", "set"])


def paper_ratio(quantity: str, tasks: Iterable[str], **where) -> pd.Series:
    """The paper's RLLM over its LLM, one value per task, by the set the task is or stands for."""
    return paper(quantity, tasks, **where).pivot(index="task", columns="role", values="value").eval("RLLM / LLM")


def beside_paper(name: str, numbers: Mapping[str, Estimate], theirs: pd.Series) -> pd.DataFrame:
    """The number recorded per task as <name>_<task> beside the paper's (by task): task, measured, paper, ratio."""
    rows = [(task, numbers[f"{name}_{task}"]) for task in SETS if f"{name}_{task}" in numbers]
    return pd.DataFrame([{"task": task, "measured": number, "paper": theirs.get(task, np.nan),
                          "measured over paper": number.value / (theirs.get(task) or np.nan)} for task, number in rows])


def paper_difference(quantity: str, tasks: Iterable[str], **where) -> pd.Series:
    """The paper's RLLM minus its LLM, one value per task, by the set the task is or stands for."""
    return paper(quantity, tasks, **where).pivot(index="task", columns="role", values="value").eval("RLLM - LLM")


def paper_budget_gain(tasks: Iterable[str]) -> pd.Series:
    """The paper's accuracy at 20,480 tokens minus that at 8,192, mean of its two sizes, one value per task."""
    gains = paper_budget_gains().groupby("set").mean()
    return pd.Series({task: gains[SETS[task]] for task in tasks if SETS.get(task) in gains})


def paper_effects(optimisation: str, off: str, arms: Mapping[str, str]) -> pd.DataFrame:
    """What switching an optimisation on changed in the paper, as `plots.effects` marks it: arm, metric, set, value.

    off: the variant that is off; arms: what each other variant is called here, {"e4m3": "fp8_e4m3"}. Accuracy as a
    difference, tps, ttfvt and time_per_request as ratios; one row per set.
    """
    found = PAPER[PAPER.quantity.str.startswith(f"{optimisation}.")]
    wide = found.pivot(index=["quantity", "set"], columns="variant", values="value")
    names = {"accuracy": "accuracy", "tps": "tps", "ttfvt": "ttfvt", "seconds": "time_per_request"}
    rows = []
    for (quantity, name), values in wide.iterrows():
        metric = names[quantity.split(".")[1]]
        for variant, arm in arms.items():
            change = values[variant] - values[off] if metric == "accuracy" else values[variant] / values[off]
            rows.append({"arm": arm, "metric": metric, "set": name, "value": change})
    return pd.DataFrame(rows)


def by_set(quantity: str, **where) -> pd.Series:
    """The paper's values of one quantity by set."""
    return paper(quantity, **where).set_index("set").value


def paper_budget_gains() -> pd.Series:
    """The paper's accuracy at 20,480 tokens minus that at 8,192, by size and set."""
    keys = ["size", "set"]
    at = {b: paper("accuracy_by_budget", budget=b).set_index(keys).value for b in (8192, 20480)}
    return at[20480] - at[8192]
