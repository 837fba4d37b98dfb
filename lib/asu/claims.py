"""The claims of the reproduced paper's pilot study as data: statement, the paper's numbers, the test, the verdict.

The paper is "Reasoning Language Model Inference Serving Unveiled: An Empirical Study" (arXiv 2510.18672). Its numbers
here were read off its published figures; statements are paraphrases. A claim is decided by a comparison made inside
the measurement, against a threshold set beforehand, never by closeness to the paper's absolute numbers.
Every number a claim needs is defined once, below, by the function that makes it: `measure("01", engine=...)` gives
all numbers of a notebook under the names that `decide` reads.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import wraps

import numpy as np
import pandas as pd

from asu import metrics, stats
from asu.errors import AsuError
from asu.stats import Estimate

NOTEBOOKS = {
    "01": "01_kv_cache_usage",
    "02": "02_stragglers",
    "03": "03_adaptive_running_time",
    "04": "04_domain_preference",
    "05": "05_token_budget_and_batch_size",
}

# which of the paper's problem sets a task is, or stands for
SETS = {
    "mini-easy": "GSM8K", "mini-medium": "MATH-500", "mini-hard": "AIME-2024", "mini-facts": "GPQA",
    "gsm8k": "GSM8K", "math500": "MATH-500", "aime24": "AIME-2024", "gpqa": "GPQA",
}
KNOWLEDGE = {"GPQA"}

# everything but the model's role that must be equal on both sides of a comparison
SETTINGS = ["engine", "pair", "size", "task", "load", "budget", "kv_pool_tokens", "weights", "kv_cache",
            "prefix_caching", "speculation", "max_requests"]

# thresholds: what counts as more than a little, chosen before measuring and the same for all claims of a kind
MATERIAL_RATIO = 1.5  # half as much again
MATERIAL_CORRELATION = 0.3  # Cohen's "medium"
MATERIAL_POINTS = 0.10  # accuracy
SMALL_POINTS = 0.03  # accuracy: the tolerance within which the paper calls it held


# --- the paper's numbers -------------------------------------------------------------------------------------------


def _paper() -> pd.DataFrame:
    """One row per number; `budget` [tokens] and `t_s` [s since the batch was sent] only where the number has one."""
    names, ends = ["GSM8K", "MATH-500", "AIME-2024", "GPQA"], ["RLLM", "LLM"]
    rows = []

    def add(quantity, unit, size, role, values, *, budget=np.nan, t_s=np.nan, source="figure", sets=names):
        rows.extend({"quantity": quantity, "size": size, "role": role, "set": name, "budget": budget, "t_s": t_s,
                     "value": value, "unit": unit, "source": source}
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
    return pd.DataFrame(rows)


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
        stands = pd.DataFrame([(task, SETS[task]) for task in dict.fromkeys(tasks) if task in SETS],
                              columns=["task", "set"])
        rows = stands.merge(rows, on="set")
    return rows.reset_index(drop=True)


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
    gains = _paper_budget_gains().groupby("set").mean()
    return pd.Series({task: gains[SETS[task]] for task in tasks if SETS.get(task) in gains})


def _by_set(quantity: str, **where) -> pd.Series:
    return paper(quantity, **where).set_index("set").value


def _paper_kv_peak_ratio() -> float:
    ratios = _by_set("kv_peak", size="7B", role="RLLM") / _by_set("kv_peak", size="7B", role="LLM")
    return float(np.exp(np.log(ratios).mean()))


def _paper_time_spread(role: str) -> float:
    each = _by_set("running_time", role=role) / _by_set("problems")
    return float(each.max() / each.min())


def _paper_accuracy_difference(knowledge: bool) -> float:
    change = _by_set("accuracy", role="RLLM") - _by_set("accuracy", role="LLM")
    return float(change[change.index.isin(KNOWLEDGE) == knowledge].mean())


def _paper_budget_gains() -> pd.Series:
    keys = ["size", "set"]
    at = {b: paper("accuracy_by_budget", budget=b).set_index(keys).value for b in (8192, 20480)}
    return at[20480] - at[8192]


# --- the recorded numbers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number that a notebook records: what it means, which frames it is made from, and the function that makes it."""

    name: str
    meaning: str
    unit: str
    frames: tuple[str, ...]
    per_task: bool  # also recorded per task, as <name>_<task>
    of: Callable[..., Estimate]


NUMBERS: dict[str, Number] = {}


def number(name: str, unit: str, *frames: str, per_task: bool = False):
    """Enter the decorated function of `frames` in NUMBERS; its docstring's first line is the meaning."""

    def enter(of: Callable[..., Estimate]) -> Callable[..., Estimate]:
        @wraps(of)
        def with_unit(*args, **options) -> Estimate:
            return replace(of(*args, **options), unit=unit)

        NUMBERS[name] = Number(name, of.__doc__.splitlines()[0], unit, frames, per_task, with_unit)
        return with_unit

    return enter


def measure(notebook: str, *, n_boot: int = stats.DRAWS, **frames: pd.DataFrame) -> dict[str, Estimate]:
    """All recorded numbers of a notebook ("01" … "05") from its frames, ready to record and for `decide`.

    Frames by notebook: 01 engine, requests, events; 02, 03, 04 requests; 05 requests (the budgets) and batches (the
    batch sizes). Per-task numbers carry the task's name after an underscore.
    """
    wanted = [n for n in NUMBERS.values() if n.name.startswith(f"{notebook}.")]
    needed = {f for n in wanted for f in n.frames}
    if not wanted or needed != set(frames):
        raise AsuError(f"notebook {notebook!r} measures from the frames {sorted(needed)}, not {sorted(frames)}",
                       f"pass the frames named; notebooks: {', '.join(NOTEBOOKS)}")
    by_task = {name: dict(iter(frame.groupby("task", sort=False))) for name, frame in frames.items()
               if any(n.per_task and name in n.frames for n in wanted)}
    numbers = {}
    for n in wanted:
        numbers[n.name] = n.of(*(frames[f] for f in n.frames), n_boot=n_boot)
        for task in by_task[n.frames[0]] if n.per_task else ():
            numbers[f"{n.name}_{task}"] = n.of(*(by_task[f][task] for f in n.frames), n_boot=n_boot)
    return numbers


def _groups(frame: pd.DataFrame, keys: list[str]) -> Iterator[np.ndarray]:
    """Row masks of the groups that share `keys` (those that the frame has)."""
    keys = [k for k in keys if k in frame]
    codes = frame.groupby(keys, dropna=False, sort=False).ngroup().to_numpy() if keys else np.zeros(len(frame), int)
    for code in np.unique(codes):
        yield codes == code


def _arms(frame: pd.DataFrame, arm: str, a, b, ignore: tuple[str, ...] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row masks of arm a and of arm b, for each combination of equal settings that has both."""
    for rows in _groups(frame, _equal(arm, ignore)):
        in_a, in_b = rows & (frame[arm] == a).to_numpy(), rows & (frame[arm] == b).to_numpy()
        if in_a.any() and in_b.any():
            yield in_a, in_b


def _equal(arm: str, ignore: tuple[str, ...]) -> list[str]:
    return [*(k for k in SETTINGS if k != arm and k not in ignore), "load_size"]


def _contrast(frame: pd.DataFrame, arm: str, a, b, make: Callable[[pd.DataFrame], stats.Statistic], *,
              combine=stats.difference, ignore: tuple[str, ...] = ()) -> list[stats.Statistic]:
    """combine(arm a, arm b) of the statistic that `make` makes from rows, one per combination of equal settings.

    AsuError where no combination has both arms, or where the two arms were asked different problems.
    """
    parts = []
    for in_a, in_b in _arms(frame, arm, a, b, ignore):
        if "problem_id" in frame and set(frame.problem_id[in_a]) != set(frame.problem_id[in_b]):
            raise AsuError(f"{a} and {b} were asked different problems", "compare runs over the same problems")
        parts.append(combine(stats.on(in_a, make(frame[in_a])), stats.on(in_b, make(frame[in_b]))))
    if not parts:
        keys = [k for k in _equal(arm, ignore) if k in frame]
        raise AsuError(f"there is nothing to compare: no setting was measured with {arm} {a} and with {arm} {b}",
                       f"add runs so that both have the same {', '.join(keys)}")
    return parts


def _over_problems(frame: pd.DataFrame, statistic: stats.Statistic, **options) -> Estimate:
    """Interval from resampled problems, within each task so that every draw has every task."""
    return stats.bootstrap(statistic, frame.problem_id, strata=frame.task, **options)


def _of_role(frame: pd.DataFrame, role: str) -> pd.DataFrame:
    return frame[frame.role == role].reset_index(drop=True)


# 01: KV-cache usage. The interval comes from resampled twentieths of each run: it tells how far a figure hangs on
# single moments of that run, not how it would differ in another run.


def _kv_samples(engine: pd.DataFrame) -> pd.DataFrame:
    return metrics.in_blocks(metrics.work_samples(engine))


def _over_blocks(samples: pd.DataFrame, statistic: stats.Statistic, **options) -> Estimate:
    return stats.bootstrap(statistic, samples[["run", "block"]], strata=samples.run, **options)


def _kv_ratio(engine: pd.DataFrame, which: str, **options) -> Estimate:
    samples = _kv_samples(engine)
    measured = any(_arms(engine, "role", "RLLM", "LLM"))
    if measured and not any(_arms(samples, "role", "RLLM", "LLM")):
        return Estimate(np.nan)  # one of each pair was done before its gauge was read even once
    parts = _contrast(samples, "role", "RLLM", "LLM", lambda rows: metrics.kv_statistics(rows)[which],
                      combine=stats.ratio)
    return _over_blocks(samples, stats.geometric_mean(parts), **options)


def _kv_largest(engine: pd.DataFrame, which: str, role: str, **options) -> Estimate:
    samples = _kv_samples(_of_role(engine, role))
    parts = [stats.on(rows, metrics.kv_statistics(samples[rows])[which]) for rows in _groups(samples, SETTINGS)]
    return _over_blocks(samples, stats.largest(parts), **options) if parts else Estimate(np.nan)


@number("01.kv_peak_ratio", "×", "engine", per_task=True)
def kv_peak_ratio(engine: pd.DataFrame, **options) -> Estimate:
    """Peak KV use, RLLM over LLM, geometric mean over sets and sizes."""
    return _kv_ratio(engine, "peak", **options)


@number("01.kv_mean_ratio", "×", "engine", per_task=True)
def kv_mean_ratio(engine: pd.DataFrame, **options) -> Estimate:
    """Time-weighted mean KV use, RLLM over LLM, geometric mean over sets and sizes."""
    return _kv_ratio(engine, "mean", **options)


@number("01.kv_swing_ratio", "×", "engine", per_task=True)
def kv_swing_ratio(engine: pd.DataFrame, **options) -> Estimate:
    """Swing of KV use (p95 − p5 over time), RLLM over LLM, geometric mean over sets and sizes."""
    return _kv_ratio(engine, "swing", **options)


@number("01.kv_peak_rllm", "share of pool", "engine", per_task=True)
def kv_peak_rllm(engine: pd.DataFrame, **options) -> Estimate:
    """Highest peak of KV use of an RLLM."""
    return _kv_largest(engine, "peak", "RLLM", **options)


@number("01.kv_peak_llm", "share of pool", "engine", per_task=True)
def kv_peak_llm(engine: pd.DataFrame, **options) -> Estimate:
    """Highest peak of KV use of an LLM."""
    return _kv_largest(engine, "peak", "LLM", **options)


@number("01.kv_range_rllm", "share of pool", "engine", per_task=True)
def kv_range_rllm(engine: pd.DataFrame, **options) -> Estimate:
    """Widest range of KV use (max − min while work ran) of an RLLM."""
    return _kv_largest(engine, "range", "RLLM", **options)


@number("01.kv_range_llm", "share of pool", "engine", per_task=True)
def kv_range_llm(engine: pd.DataFrame, **options) -> Estimate:
    """Widest range of KV use (max − min while work ran) of an LLM."""
    return _kv_largest(engine, "range", "LLM", **options)


@number("01.kv_prediction_error", "share of pool", "engine", "requests", "events")
def kv_prediction_error(engine: pd.DataFrame, requests: pd.DataFrame, events: pd.DataFrame, **options) -> Estimate:
    """Time-weighted mean |predicted − reported| KV use while work ran, all runs together."""
    both = metrics.in_blocks(metrics.kv_prediction(metrics.predicted_kv(requests, events), engine))
    return _over_blocks(both, stats.ratio_of_sums(both.error.abs() * both.dt_s, both.dt_s), **options)


# 02: stragglers. The interval comes from resampled batches (without a barrier: stretches of as many finishes).


def _batch_rows(requests: pd.DataFrame) -> pd.DataFrame:
    requests = requests.assign(load_size=load_size(requests.load), barrier=requests.batch >= 0)
    keep = [c for c in [*SETTINGS, "role", "load_size", "barrier"] if c in requests]
    return metrics.batches(requests, keep).reset_index(drop=True)


def _over_batches(batches: pd.DataFrame, statistic: stats.Statistic, **options) -> Estimate:
    return stats.bootstrap(statistic, batches[["run", "session", "batch"]], strata=batches.run, **options)


def load_size(load: pd.Series) -> pd.Series:
    """Requests at once of a batch or closed load from its label ("batch16", "closed16"); NaN for open loads."""
    return load.str.extract(r"^(?:batch|closed)(\d+)$")[0].astype(float)


def _barrier_average(requests: pd.DataFrame, role: str, make, **options) -> Estimate:
    batches = _batch_rows(_of_role(requests[requests.batch >= 0], role))
    if batches.empty:
        return Estimate(np.nan)
    parts = [stats.on(rows, make(batches[rows])) for rows in _groups(batches, SETTINGS)]
    return _over_batches(batches, stats.average(parts), **options)


@number("02.straggler_share_rllm", "share", "requests", per_task=True)
def straggler_share_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Share of barrier-batch time with under 20 % of the batch running, RLLM, mean over sets and sizes."""
    return _barrier_average(requests, "RLLM", metrics.straggler_share, **options)


@number("02.straggler_share_llm", "share", "requests", per_task=True)
def straggler_share_llm(requests: pd.DataFrame, **options) -> Estimate:
    """Share of barrier-batch time with under 20 % of the batch running, LLM, mean over sets and sizes."""
    return _barrier_average(requests, "LLM", metrics.straggler_share, **options)


@number("02.straggler_share_difference", "share", "requests", per_task=True)
def straggler_share_difference(requests: pd.DataFrame, **options) -> Estimate:
    """Straggler share under the barrier, RLLM − LLM, mean over sets and sizes."""
    batches = _batch_rows(requests[requests.batch >= 0])
    parts = _contrast(batches, "role", "RLLM", "LLM", metrics.straggler_share)
    return _over_batches(batches, stats.average(parts), **options)


@number("02.makespan_ratio_rllm", "×", "requests", per_task=True)
def makespan_ratio_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Barrier-batch time over ideal time (every slot always busy), RLLM, mean over sets and sizes."""
    return _barrier_average(requests, "RLLM", metrics.makespan_ratio, **options)


@number("02.makespan_ratio_llm", "×", "requests", per_task=True)
def makespan_ratio_llm(requests: pd.DataFrame, **options) -> Estimate:
    """Barrier-batch time over ideal time (every slot always busy), LLM, mean over sets and sizes."""
    return _barrier_average(requests, "LLM", metrics.makespan_ratio, **options)


def _barrier_against_continuous(requests: pd.DataFrame, a: bool, make, **options) -> Estimate:
    """Geometric mean over settings of make(barrier == a) / make(barrier != a), RLLM; the load's size is held equal."""
    batches = _batch_rows(_of_role(requests, "RLLM"))
    parts = _contrast(batches, "barrier", a, not a, make, combine=stats.ratio, ignore=("load",))
    return _over_batches(batches, stats.geometric_mean(parts), **options)


@number("02.barrier_cost_rllm", "×", "requests", per_task=True)
def barrier_cost_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Time per request under the barrier over time per request without it, same requests, RLLM."""
    return _barrier_against_continuous(requests, True, lambda rows: stats.ratio_of_sums(rows.wall_s, rows.requests),
                                       **options)


@number("02.straggler_share_kept_rllm", "×", "requests")
def straggler_share_kept_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Straggler share without the barrier over straggler share with it, all sets and sizes together, RLLM.

    Pooled before dividing, because without a barrier a single set may have no straggler time at all.
    """
    batches = _batch_rows(_of_role(requests, "RLLM"))
    # not used further: raises where one of the two loads is missing
    _contrast(batches, "barrier", False, True, metrics.straggler_share, ignore=("load",))
    arms = [stats.on(batches.barrier == barrier, metrics.straggler_share(batches[batches.barrier == barrier]))
            for barrier in (False, True)]
    return _over_batches(batches, stats.ratio(*arms), **options)


# 03: adaptive running time. A request's time is from sent to last token; one cut off at the budget counts with the
# time it had, which flattens every slope. Within a set, because sets measure difficulty in units of their own.


def _timed(requests: pd.DataFrame, role: str | None = None) -> pd.DataFrame:
    """Finished requests with log time, log tokens and difficulty in standard deviations of its task."""
    r = metrics.derive(requests if role is None else _of_role(requests, role))
    r = r[r.finished & (r.service_s > 0) & (r.output_tokens > 0)].reset_index(drop=True)
    problems = r.drop_duplicates(["task", "problem_id"]).groupby("task").difficulty
    spread = r.task.map(problems.std(ddof=0))
    r["difficulty_sd"] = (r.difficulty - r.task.map(problems.mean())) / spread.where(spread > 0)
    return r.assign(log_time=np.log(r.service_s), log_tokens=np.log(r.output_tokens.astype(float)))


def _within_sets(requests: pd.DataFrame, role: str, make, **options) -> Estimate:
    r = _timed(requests, role)
    parts = [stats.on(rows, make(r[rows])) for rows in _groups(r, SETTINGS)]
    return _over_problems(r, stats.average(parts), **options) if len(r) else Estimate(np.nan)


def _time_rank(rows: pd.DataFrame) -> stats.Statistic:
    return stats.spearman(rows.difficulty, rows.service_s)


def _time_slope(rows: pd.DataFrame) -> stats.Statistic:
    return stats.slope(rows.difficulty_sd, rows.log_time)


def _token_slope(rows: pd.DataFrame) -> stats.Statistic:
    return stats.slope(rows.difficulty_sd, rows.log_tokens)


@number("03.time_spearman_rllm", "", "requests", per_task=True)
def time_spearman_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Rank correlation of a request's time with its difficulty, within a set, RLLM, mean over sets and sizes."""
    return _within_sets(requests, "RLLM", _time_rank, **options)


@number("03.time_spearman_llm", "", "requests", per_task=True)
def time_spearman_llm(requests: pd.DataFrame, **options) -> Estimate:
    """Rank correlation of a request's time with its difficulty, within a set, LLM, mean over sets and sizes."""
    return _within_sets(requests, "LLM", _time_rank, **options)


@number("03.time_slope_rllm", "ln(s)/SD", "requests", per_task=True)
def time_slope_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Growth of log time per standard deviation of difficulty within a set, RLLM, mean over sets and sizes."""
    return _within_sets(requests, "RLLM", _time_slope, **options)


@number("03.time_slope_llm", "ln(s)/SD", "requests", per_task=True)
def time_slope_llm(requests: pd.DataFrame, **options) -> Estimate:
    """Growth of log time per standard deviation of difficulty within a set, LLM, mean over sets and sizes."""
    return _within_sets(requests, "LLM", _time_slope, **options)


@number("03.tokens_slope_rllm", "ln(tok)/SD", "requests", per_task=True)
def tokens_slope_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Growth of log output tokens per standard deviation of difficulty within a set, RLLM, mean over sets and sizes."""
    return _within_sets(requests, "RLLM", _token_slope, **options)


@number("03.tokens_slope_llm", "ln(tok)/SD", "requests", per_task=True)
def tokens_slope_llm(requests: pd.DataFrame, **options) -> Estimate:
    """Growth of log output tokens per standard deviation of difficulty within a set, LLM, mean over sets and sizes."""
    return _within_sets(requests, "LLM", _token_slope, **options)


def _both_roles(timed: pd.DataFrame) -> pd.DataFrame:
    """Requests of the problems that were timed with both roles of a pair: an answer of one token has no time."""
    keys = [k for k in ("pair", "task", "problem_id") if k in timed]
    return timed[timed.groupby(keys).role.transform("nunique") == 2].reset_index(drop=True)


@number("03.time_slope_difference", "ln(s)/SD", "requests", per_task=True)
def time_slope_difference(requests: pd.DataFrame, **options) -> Estimate:
    """Growth of log time with difficulty, RLLM − LLM, paired by problem, mean over sets and sizes."""
    r = _both_roles(_timed(requests))
    return _over_problems(r, stats.average(_contrast(r, "role", "RLLM", "LLM", _time_slope)), **options)


@number("03.time_ratio", "×", "requests", per_task=True)
def time_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Mean time per request, RLLM over LLM on the same problems, geometric mean over sets and sizes."""
    r = _both_roles(_timed(requests))
    parts = _contrast(r, "role", "RLLM", "LLM", lambda rows: stats.mean(rows.service_s), combine=stats.ratio)
    return _over_problems(r, stats.geometric_mean(parts), **options)


def _spread(r: pd.DataFrame, inside: np.ndarray) -> stats.Statistic:
    """Longest over shortest mean time of the tasks within the rows `inside`."""
    tasks = [inside & (r.task == task).to_numpy() for task in r.task[inside].unique()]
    means = [stats.on(rows, stats.mean(r.service_s[rows])) for rows in tasks]
    return stats.ratio(stats.largest(means), stats.smallest(means))


def _time_spread(requests: pd.DataFrame, combine: Callable[[pd.DataFrame, np.ndarray], stats.Statistic],
                 **options) -> Estimate:
    r = _timed(requests)
    if r.task.nunique() < 2:
        return Estimate(np.nan)  # a spread over sets needs two
    groups = _groups(r, [k for k in SETTINGS if k != "task"])
    return _over_problems(r, stats.geometric_mean([combine(r, rows) for rows in groups]), **options)


@number("03.time_spread_rllm", "×", "requests")
def time_spread_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Mean time per request of the slowest set over that of the fastest, RLLM, geometric mean over sizes."""
    return _time_spread(_of_role(requests, "RLLM"), _spread, **options)


@number("03.time_spread_llm", "×", "requests")
def time_spread_llm(requests: pd.DataFrame, **options) -> Estimate:
    """Mean time per request of the slowest set over that of the fastest, LLM, geometric mean over sizes."""
    return _time_spread(_of_role(requests, "LLM"), _spread, **options)


@number("03.time_spread_ratio", "×", "requests")
def time_spread_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Spread of mean time over sets, RLLM over LLM, geometric mean over sizes."""
    def both(r: pd.DataFrame, rows: np.ndarray) -> stats.Statistic:
        is_rllm = (r.role == "RLLM").to_numpy()
        return stats.ratio(_spread(r, rows & is_rllm), _spread(r, rows & ~is_rllm))

    return _time_spread(requests, both, **options)


# 04: domain preference. Accuracy over requests that did not fail, paired by problem.


def _hits(rows: pd.DataFrame) -> stats.Statistic:
    return stats.mean(rows.hit)


def _knowledge(requests: pd.DataFrame) -> pd.Series:
    unknown = sorted(set(requests.task) - set(SETS))
    if unknown:
        raise AsuError(f"no set of the paper is named for the task {', '.join(unknown)}",
                       "add it to SETS in lib/asu/claims.py")
    return requests.task.map(SETS).isin(KNOWLEDGE)


def _accuracy_differences(requests: pd.DataFrame) -> list[stats.Statistic]:
    return _contrast(requests, "role", "RLLM", "LLM", _hits)


@number("04.accuracy_difference", "share", "requests", per_task=True)
def accuracy_difference(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy, RLLM − LLM, paired by problem, mean over sets and sizes."""
    if requests.empty:
        return Estimate(np.nan)
    r = metrics.derive(requests).reset_index(drop=True)
    return _over_problems(r, stats.average(_accuracy_differences(r)), bounds=(-1, 1), **options)


@number("04.accuracy_difference_mathematics", "share", "requests")
def accuracy_difference_mathematics(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy on the mathematics sets, RLLM − LLM, paired by problem, mean over sets and sizes."""
    return accuracy_difference(requests[~_knowledge(requests)], **options)


@number("04.accuracy_difference_knowledge", "share", "requests")
def accuracy_difference_knowledge(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy on the knowledge sets, RLLM − LLM, paired by problem, mean over sets and sizes."""
    return accuracy_difference(requests[_knowledge(requests)], **options)


@number("04.domain_gap", "share", "requests")
def domain_gap(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy lead of the RLLM on mathematics minus its lead on knowledge."""
    r = metrics.derive(requests).reset_index(drop=True)
    knowledge = _knowledge(r).to_numpy()
    if knowledge.all() or not knowledge.any():
        return Estimate(np.nan)
    leads = [stats.on(rows, stats.average(_accuracy_differences(r[rows].reset_index(drop=True))))
             for rows in (~knowledge, knowledge)]
    return _over_problems(r, stats.difference(*leads), bounds=(-2, 2), **options)


@number("04.wrong_length_ratio", "×", "requests", per_task=True)
def wrong_length_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Mean output tokens of an RLLM's wrong answers over those of its right ones, geometric mean over sets and sizes.

    Answers cut off by the budget are neither: how long they would have become is not known.
    """
    r = _of_role(requests, "RLLM")
    r = r[r.outcome.isin(["correct", "wrong"])].reset_index(drop=True)
    wrong = (r.outcome == "wrong").to_numpy()
    means = [[stats.on(rows & arm, stats.mean(r.output_tokens[rows & arm])) for arm in (wrong, ~wrong)]
             for rows in _groups(r, SETTINGS)]
    return _over_problems(r, stats.geometric_mean([stats.ratio(*arms) for arms in means]), **options) if means \
        else Estimate(np.nan)


# 05: token budget (frame `requests`, several budgets) and batch size (frame `batches`, several load sizes), RLLM.


def _budget_gains(requests: pd.DataFrame) -> tuple[pd.DataFrame, list[stats.Statistic]]:
    """Accuracy at the largest budget minus accuracy at the next that is at most half of it, one per set and size."""
    r = metrics.derive(_of_role(requests, "RLLM"))
    budgets = np.sort(r.budget.unique())
    half = budgets[budgets <= budgets[-1] / 2] if len(budgets) else budgets
    if not len(half):
        raise AsuError(f"budgets {budgets.tolist()} do not span a factor of two",
                       "measure at least two budgets, one at most half of the largest")
    return r, _contrast(r, "budget", budgets[-1], half[-1], _hits)


@number("05.budget_gain_largest", "share", "requests")
def budget_gain_largest(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy gained by doubling to the largest budget, in the set and size that gains most."""
    r, gains = _budget_gains(requests)
    return _over_problems(r, stats.largest(gains), bounds=(-1, 1), **options)


@number("05.budget_gain", "share", "requests", per_task=True)
def budget_gain(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy gained by doubling to the largest budget, mean over sets and sizes."""
    r, gains = _budget_gains(requests)
    return _over_problems(r, stats.average(gains), bounds=(-1, 1), **options)


@number("05.cut_off_share", "share", "requests", per_task=True)
def cut_off_share(requests: pd.DataFrame, **options) -> Estimate:
    """Share of requests that ran into the largest budget."""
    r = _of_role(requests, "RLLM")
    r = r[r.budget == r.budget.max()]
    return _over_problems(r, stats.mean(r.finish_reason == "length"), bounds=(0, 1), **options)


def _sized(frame: pd.DataFrame) -> tuple[pd.DataFrame, float, float]:
    """RLLM rows with at_once, the load's size, and its largest and smallest value."""
    r = _of_role(frame, "RLLM")
    r["at_once"] = load_size(r.load)
    return r, r.at_once.max(), r.at_once.min()


def _size_contrast(frame: pd.DataFrame, big: float, small: float, make, combine) -> list[stats.Statistic]:
    # the engine's slots follow the batch size in the study, so they are no setting to hold equal here
    return _contrast(frame, "at_once", big, small, make, combine=combine, ignore=("load", "max_requests"))


def _size_ratio_of_batches(requests: pd.DataFrame, make, **options) -> Estimate:
    r, big, small = _sized(requests)
    keep = [c for c in [*SETTINGS, "role", "at_once"] if c in r]
    rows = metrics.batches(r, keep).reset_index(drop=True)
    return _over_batches(rows, stats.geometric_mean(_size_contrast(rows, big, small, make, stats.ratio)), **options)


@number("05.batch_time_ratio", "×", "batches", per_task=True)
def batch_time_ratio(batches: pd.DataFrame, **options) -> Estimate:
    """Time per request at the largest batch size over that at the smallest, geometric mean over sets and sizes."""
    return _size_ratio_of_batches(batches, lambda rows: stats.ratio_of_sums(rows.wall_s, rows.requests), **options)


@number("05.batch_tps_ratio", "×", "batches", per_task=True)
def batch_tps_ratio(batches: pd.DataFrame, **options) -> Estimate:
    """Throughput at the largest batch size over that at the smallest, geometric mean over sets and sizes."""
    return _size_ratio_of_batches(batches, lambda rows: stats.ratio_of_sums(rows.output_tokens, rows.wall_s),
                                  **options)


def _known_until(r: pd.DataFrame) -> float:
    """Up to when the survivor curves of TTFVT are known [s]: one whose last request is censored, to there only."""
    last = r.loc[r.groupby(["pair", "at_once"]).ttfvt_observed_s.idxmax()]
    cut = last.ttfvt_observed_s[last.ttfvt_censored]
    return float(last.ttfvt_observed_s.max() if cut.empty else cut.min())


@number("05.batch_ttfvt_ratio", "×", "batches", per_task=True)
def batch_ttfvt_ratio(batches: pd.DataFrame, **options) -> Estimate:
    """Mean TTFVT at the largest batch size over that at the smallest, paired by problem.

    Area under the survivor curve up to one common time per set, so that requests that never left thinking count on
    both sides.
    """
    r, big, small = _sized(metrics.derive(batches))
    until = {task: _known_until(part) for task, part in r[r.at_once.isin([big, small])].groupby("task")}

    def make(rows: pd.DataFrame) -> stats.Statistic:
        return stats.km_mean(rows.ttfvt_observed_s, ~rows.ttfvt_censored, until=until[rows.task.iloc[0]])

    return _over_problems(r, stats.geometric_mean(_size_contrast(r, big, small, make, stats.ratio)), **options)


@number("05.batch_accuracy_change", "share", "batches", per_task=True)
def batch_accuracy_change(batches: pd.DataFrame, **options) -> Estimate:
    """Accuracy at the largest batch size minus that at the smallest, paired by problem, mean over sets and sizes."""
    r, big, small = _sized(metrics.derive(batches))
    return _over_problems(r, stats.average(_size_contrast(r, big, small, _hits, stats.difference)), bounds=(-1, 1),
                          **options)


@number("05.batch_texts_changed", "share", "batches", per_task=True)
def batch_texts_changed(batches: pd.DataFrame, **options) -> Estimate:
    """Share of requests whose text differs between the largest and the smallest batch size, same sampling seed."""
    r, big, small = _sized(batches)
    r = r[r.at_once.isin([big, small]) & r.error.isna()]
    keys = [c for c in SETTINGS if c in r and c not in ("load", "max_requests")]
    same = r.assign(text=metrics.texts(r)).groupby([*keys, "problem_id", "request_id"], dropna=False).agg(
        texts=("text", "nunique"), sizes=("at_once", "nunique")).reset_index()
    same = same[same.sizes == 2]
    return _over_problems(same, stats.mean(same.texts > 1), bounds=(0, 1), **options)


# --- the claims ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Where a number must lie for a claim to hold: lo < number < hi; bounds on both sides are symmetric about 0."""

    lo: float = -np.inf
    hi: float = np.inf

    def __str__(self) -> str:
        if np.isinf(self.hi):
            return f"above {self.lo:g}"
        return f"below {self.hi:g}" if np.isinf(self.lo) else f"between {self.lo:g} and {self.hi:g}"

    @property
    def threshold(self) -> float:
        """The bound that decides; the upper one of two."""
        return self.lo if np.isinf(self.hi) else self.hi

    @property
    def direction(self) -> str:
        """Where the claim holds: ">" or "<" the threshold, or "within" ± the threshold."""
        return ">" if np.isinf(self.hi) else ("<" if np.isinf(self.lo) else "within")

    def verdict(self, measured: Estimate) -> tuple[str, str]:
        """(verdict, reason): supported or not only where the whole interval says so."""
        if not measured.known:
            return "undecided", "the number could not be measured from these runs"
        if not measured.has_interval:
            return "undecided", f"{measured} has no interval: too little to resample"
        above = measured.lo > self.lo or np.isneginf(self.lo)
        below = measured.hi < self.hi or np.isposinf(self.hi)
        if above and below:
            return "supported", f"the whole interval lies {self}"
        if measured.hi <= self.lo or measured.lo >= self.hi:
            return "not supported", f"no part of the interval lies {self}"
        return "undecided", f"only a part of the interval lies {self}"


@dataclass(frozen=True)
class Claim:
    """One claim: `number` decides it by lying in `holds`; `compared` (or `number`) is set beside `paper_value`."""

    id: str
    statement: str
    number: str
    holds: Range
    paper: str  # the paper's numbers, for the table, with where they were read
    paper_value: float = np.nan
    compared: str | None = None

    @property
    def notebook(self) -> str:
        return NOTEBOOKS[self.number.split(".")[0]]


def _claims() -> list[Claim]:
    gains = _paper_budget_gains()
    spread = {role: _paper_time_spread(role) for role in ("RLLM", "LLM")}
    mathematics, knowledge = (_paper_accuracy_difference(k) for k in (False, True))
    silent = "direction only, no number"
    return [
        Claim("F1.heavy", "Serving a reasoning model fills more of the KV cache than serving its plain twin.",
              "01.kv_peak_ratio", Range(lo=MATERIAL_RATIO),
              f"peaks {_paper_kv_peak_ratio():.1f} × on average, 1.8 to 8.1 × by set, 7B [figure]",
              _paper_kv_peak_ratio()),
        Claim("F1.swing", "A reasoning model's KV use swings widely during a run; its plain twin's does not.",
              "01.kv_swing_ratio", Range(lo=MATERIAL_RATIO),
              "RLLM 3 to 70 % in extreme cases, a range of 0.67; LLM below 3 % [text, at second hand]",
              float(paper("kv_range").value.iloc[0]), compared="01.kv_range_rllm"),
        Claim("F2.stragglers", "A few long requests keep a reasoning model's batch waiting, more than a plain one's.",
              "02.straggler_share_difference", Range(lo=0),
              "2 of 16 requests left for at least 0.6 of the time shown, RLLM 7B on MATH-500 [figure, inferred]",
              float(paper("straggler_share").value.iloc[0]), compared="02.straggler_share_rllm"),
        Claim("F2.engine", "The straggling is the model's own: most of it stays when no batch waits for its last one.",
              "02.straggler_share_kept_rllm", Range(lo=0.5),
              "not separated: the released client always waits for the whole batch [released client]"),
        Claim("F3.follows", "A reasoning model's time for a problem follows the problem's difficulty.",
              "03.time_spearman_rllm", Range(lo=MATERIAL_CORRELATION), silent),
        Claim("F3.flat", "A plain model's time for a problem does not depend on its difficulty.",
              "03.time_spearman_llm", Range(-MATERIAL_CORRELATION, MATERIAL_CORRELATION), silent),
        Claim("F3.spread", "Time per problem differs far more between sets for a reasoning model than for a plain one.",
              "03.time_spread_ratio", Range(lo=MATERIAL_RATIO),
              f"slowest over fastest set {spread['RLLM']:.1f} × RLLM, {spread['LLM']:.1f} × LLM, 7B "
              "[figure, per problem of each set]", spread["RLLM"] / spread["LLM"]),
        Claim("F4.mathematics", "Reasoning models are far ahead of plain ones on mathematics.",
              "04.accuracy_difference_mathematics", Range(lo=MATERIAL_POINTS),
              f"{mathematics:+.3f}, mean of three sets, 7B [figure]", mathematics),
        Claim("F4.knowledge", "On knowledge questions reasoning models and plain ones are on a par.",
              "04.accuracy_difference_knowledge", Range(-MATERIAL_POINTS, MATERIAL_POINTS),
              f"{knowledge:+.3f} on GPQA, 7B [figure; by this test not on a par]", knowledge),
        Claim("F4.gap", "The lead of reasoning models is larger on mathematics than on knowledge.",
              "04.domain_gap", Range(lo=0), f"{mathematics - knowledge:+.3f}, 7B [figure]", mathematics - knowledge),
        Claim("budget.suffices", "About half of the largest token budget suffices: no set gains by doubling it.",
              "05.budget_gain_largest", Range(hi=0.05),
              f"largest gain from 8,192 to 20,480 tokens {gains.max():+.2f} (14B GPQA) [figure]", float(gains.max())),
        Claim("budget.overthinking", "Beyond that budget accuracy falls, because models overthink.",
              "05.budget_gain", Range(hi=-0.01),
              f"mean change from 8,192 to 20,480 tokens {gains.mean():+.3f}, 14B and 32B [figure]",
              float(gains.mean())),
        Claim("batch.time", "A larger batch size takes less time in all.", "05.batch_time_ratio", Range(hi=1), silent),
        Claim("batch.tps", "A larger batch size gives more throughput.", "05.batch_tps_ratio", Range(lo=1), silent),
        Claim("batch.ttfvt", "A larger batch size makes users wait longer for the first visible token.",
              "05.batch_ttfvt_ratio", Range(lo=1), silent),
        Claim("batch.accuracy", "Batch size leaves accuracy unchanged.",
              "05.batch_accuracy_change", Range(-SMALL_POINTS, SMALL_POINTS), silent),
    ]


CLAIMS = _claims()


def decide(numbers: Mapping[str, Estimate | Mapping | float]) -> pd.DataFrame:
    """One row per claim with its verdict from the recorded numbers; a number that is missing leaves it undecided.

    Columns: claim, statement, paper (its numbers, as text), paper_value, measured (with interval, as text), value, lo,
    hi, unit, threshold, direction (">", "<", "within" ± threshold), compared (the number set beside paper_value, as
    text), ratio_to_paper (compared / paper_value), verdict ("supported", "not supported", "undecided"), reason,
    notebook.
    """
    rows = []
    for claim in CLAIMS:
        recorded = claim.number in numbers
        measured = Estimate.of(numbers.get(claim.number))
        verdict, reason = claim.holds.verdict(measured)
        if not recorded:
            reason = f"{claim.number} has not been recorded; run notebook {claim.notebook}"
        compared = Estimate.of(numbers.get(claim.compared or claim.number))
        rows.append({
            "claim": claim.id, "statement": claim.statement, "paper": claim.paper, "paper_value": claim.paper_value,
            "measured": str(measured), "value": measured.value, "lo": measured.lo, "hi": measured.hi,
            "unit": NUMBERS[claim.number].unit, "threshold": claim.holds.threshold, "direction": claim.holds.direction,
            "compared": str(compared), "ratio_to_paper": compared.value / claim.paper_value,
            "verdict": verdict, "reason": reason, "notebook": claim.notebook})
    return pd.DataFrame(rows)
