"""03: adaptive running time.

A request's time is from sent to last token; one cut off at the budget counts with the time it had, which flattens every
slope. Within a set, because sets measure difficulty in units of their own. Wall time is that of a whole set, which the
paper plots: beside others in flight a request takes up a part of it only, and the last of a set keep all waiting.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from asu import metrics, stats
from asu.claims.core import MATERIAL_CORRELATION, MATERIAL_RATIO, SILENT, Claim, Range, number
from asu.claims.paper import by_set
from asu.contrast import SETTINGS, contrast, groups, of_role, over_problems
from asu.stats import Estimate


def _timed(requests: pd.DataFrame, role: str | None = None) -> pd.DataFrame:
    """Finished requests with log time, log tokens and difficulty in standard deviations of its task."""
    r = metrics.derive(requests if role is None else of_role(requests, role))
    r = r[r.finished & (r.service_s > 0) & (r.output_tokens > 0)].reset_index(drop=True)
    problems = r.drop_duplicates(["task", "problem_id"]).groupby("task").difficulty
    spread = r.task.map(problems.std(ddof=0))
    r["difficulty_sd"] = (r.difficulty - r.task.map(problems.mean())) / spread.where(spread > 0)
    return r.assign(log_time=np.log(r.service_s), log_tokens=np.log(r.output_tokens.astype(float)))


def _walled(requests: pd.DataFrame) -> pd.DataFrame:
    """Requests sent, with wall_s, the part of its set's wall time that each took up; they add up to all of it."""
    sent = requests[requests.sent_s.notna()].reset_index(drop=True)
    return sent.assign(wall_s=metrics.time_shares(sent))


def _within_sets(requests: pd.DataFrame, role: str, make, **options) -> Estimate:
    r = _timed(requests, role)
    parts = [stats.on(rows, make(r[rows])) for rows in groups(r, SETTINGS)]
    return over_problems(r, stats.average(parts), **options) if len(r) else Estimate(np.nan)


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


def _twins(r: pd.DataFrame, make, combine, average, **options) -> Estimate:
    """combine(RLLM, LLM) of what `make` makes from rows of `_timed` or `_walled`, of the problems that both twins have.

    An answer of one token has no time. Where no problem was asked of both (their lengths were recorded on different
    ones) set stands against set, and each twin's problems are resampled by themselves.
    """
    keys = [k for k in ("pair", "task", "problem_id") if k in r]
    shared = r[r.groupby(keys).role.transform("nunique") == 2].reset_index(drop=True)
    paired = len(shared) > 0
    r = shared if paired else r
    parts = contrast(r, "role", "RLLM", "LLM", make, combine=combine, paired=paired)
    return stats.bootstrap(average(parts), r.problem_id, strata=r[["task"] if paired else ["task", "role"]], **options)


@number("03.time_slope_difference", "ln(s)/SD", "requests", per_task=True)
def time_slope_difference(requests: pd.DataFrame, **options) -> Estimate:
    """Growth of log time with difficulty, RLLM − LLM, paired by problem, mean over sets and sizes."""
    return _twins(_timed(requests), _time_slope, stats.difference, stats.average, **options)


@number("03.time_ratio", "×", "requests", per_task=True)
def time_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Mean time per request, RLLM over LLM on the same problems, geometric mean over sets and sizes."""
    return _twins(_timed(requests), lambda rows: stats.mean(rows.service_s), stats.ratio, stats.geometric_mean,
                  **options)


@number("03.wall_ratio", "×", "requests", per_task=True)
def wall_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Wall time of a set per problem, RLLM over LLM on the same problems, geometric mean over sets and sizes."""
    return _twins(_walled(requests), lambda rows: stats.mean(rows.wall_s), stats.ratio, stats.geometric_mean, **options)


def _spread(r: pd.DataFrame, inside: np.ndarray, column: str = "service_s") -> stats.Statistic:
    """Longest over shortest mean time of the tasks within the rows `inside`."""
    tasks = [inside & (r.task == task).to_numpy() for task in r.task[inside].unique()]
    means = [stats.on(rows, stats.mean(r[column][rows])) for rows in tasks]
    return stats.ratio(stats.largest(means), stats.smallest(means))


def _spread_ratio(r: pd.DataFrame, rows: np.ndarray, column: str = "service_s") -> stats.Statistic:
    """Spread over the tasks within `rows`, RLLM over LLM."""
    is_rllm = (r.role == "RLLM").to_numpy()
    return stats.ratio(_spread(r, rows & is_rllm, column), _spread(r, rows & ~is_rllm, column))


def _time_spread(r: pd.DataFrame, combine: Callable[..., stats.Statistic], **options) -> Estimate:
    if r.task.nunique() < 2:
        return Estimate(np.nan)  # a spread over sets needs two
    parts = [combine(r, rows) for rows in groups(r, [k for k in SETTINGS if k != "task"])]
    return over_problems(r, stats.geometric_mean(parts), **options)


@number("03.time_spread_rllm", "×", "requests")
def time_spread_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Mean time per request of the slowest set over that of the fastest, RLLM, geometric mean over sizes."""
    return _time_spread(_timed(requests, "RLLM"), _spread, **options)


@number("03.time_spread_llm", "×", "requests")
def time_spread_llm(requests: pd.DataFrame, **options) -> Estimate:
    """Mean time per request of the slowest set over that of the fastest, LLM, geometric mean over sizes."""
    return _time_spread(_timed(requests, "LLM"), _spread, **options)


@number("03.time_spread_ratio", "×", "requests")
def time_spread_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Spread of mean time over sets, RLLM over LLM, geometric mean over sizes."""
    return _time_spread(_timed(requests), _spread_ratio, **options)


@number("03.wall_spread_ratio", "×", "requests")
def wall_spread_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Spread of wall time per problem over sets, RLLM over LLM, geometric mean over sizes."""
    return _time_spread(_walled(requests), partial(_spread_ratio, column="wall_s"), **options)


def _paper_time_spread(role: str) -> float:
    each = by_set("running_time", role=role) / by_set("problems")
    return float(each.max() / each.min())


_SPREAD = {role: _paper_time_spread(role) for role in ("RLLM", "LLM")}

CLAIMS = [
    Claim("F3.follows", "A reasoning model's time for a problem follows the problem's difficulty.",
          "03.time_spearman_rllm", Range(lo=MATERIAL_CORRELATION), SILENT),
    Claim("F3.flat", "A plain model's time for a problem hardly depends on its difficulty.",
          "03.time_spearman_llm", Range(-MATERIAL_CORRELATION, MATERIAL_CORRELATION), SILENT),
    Claim("F3.spread", "Time per problem differs far more between sets for a reasoning model than for a plain one.",
          "03.time_spread_ratio", Range(lo=MATERIAL_RATIO),
          f"slowest over fastest set {_SPREAD['RLLM']:.1f} × RLLM, {_SPREAD['LLM']:.1f} × LLM, 7B "
          "[figure, wall time of each set per problem]", _SPREAD["RLLM"] / _SPREAD["LLM"],
          compared="03.wall_spread_ratio"),
]
