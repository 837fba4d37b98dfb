"""05: token budget (frame `requests`, several budgets) and batch size (frame `batches`, several load sizes), RLLM.

`control` has runs made again (trial 1): how far those of one server are apart widens the intervals on time between
batch sizes, which share a server.
"""

import numpy as np
import pandas as pd

from asu import effects, metrics, stats
from asu.claims.core import SILENT, SMALL_POINTS, Claim, Range, number
from asu.claims.paper import paper_budget_gains
from asu.contrast import (
    SETTINGS,
    contrast,
    hits,
    known_until,
    of_role,
    over_batches,
    over_problems,
    texts_changed,
)
from asu.errors import AsuError
from asu.stats import Estimate


def _budget_gains(requests: pd.DataFrame) -> tuple[pd.DataFrame, list[stats.Statistic]]:
    """Accuracy at the largest budget minus accuracy at the next that is at most half of it, one per set and size.

    None where only one budget was served.
    """
    r = metrics.derive(of_role(requests, "RLLM"))
    budgets = np.sort(r.budget.unique())
    if len(budgets) == 1:
        return r, []
    half = budgets[budgets <= budgets[-1] / 2] if len(budgets) else budgets
    if not len(half):
        raise AsuError(f"budgets {budgets.tolist()} do not span a factor of two",
                       "measure at least two budgets, one at most half of the largest")
    return r, contrast(r, "budget", budgets[-1], half[-1], hits)


@number("05.budget_gain_largest", "share", "requests")
def budget_gain_largest(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy gained by doubling to the largest budget, in the set and size that gains most."""
    r, gains = _budget_gains(requests)
    return over_problems(r, stats.largest(gains), bounds=(-1, 1), **options) if gains else Estimate(np.nan)


@number("05.budget_gain", "share", "requests", per_task=True)
def budget_gain(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy gained by doubling to the largest budget, mean over sets and sizes."""
    r, gains = _budget_gains(requests)
    return over_problems(r, stats.average(gains), bounds=(-1, 1), **options) if gains else Estimate(np.nan)


@number("05.cut_off_share", "share", "requests", per_task=True)
def cut_off_share(requests: pd.DataFrame, **options) -> Estimate:
    """Share of requests that ran into the largest budget."""
    r = of_role(requests, "RLLM")
    r = r[r.budget == r.budget.max()]
    return over_problems(r, stats.mean(r.finish_reason == "length"), bounds=(0, 1), **options)


_IGNORED = ("load", "max_requests")  # slots of the engine may follow the batch size


def _ends(frame: pd.DataFrame, task: str | None = None) -> pd.DataFrame:
    """RLLM rows at the largest and smallest load of each engine, pair and set, named by `end`; those with two loads."""
    r = of_role(frame if task is None else frame[frame.task == task], "RLLM")
    r["at_once"] = metrics.load_size(r.load)
    sizes = r.groupby(["engine", "pair", "size", "task"], dropna=False).at_once
    most, least = sizes.transform("max"), sizes.transform("min")
    r["end"] = np.select([most == least, r.at_once == most, r.at_once == least], [None, "largest", "smallest"], None)
    return r[r.end.notna()].reset_index(drop=True)


def _end_contrast(rows: pd.DataFrame, make, combine) -> list[stats.Statistic]:
    return contrast(rows, "end", "largest", "smallest", make, combine=combine, ignore=_IGNORED)


def _paced(found: Estimate, name: str, ends: pd.DataFrame, control: pd.DataFrame) -> Estimate:
    return effects.paced(found, name, on=[ends[ends.end == "largest"]], arm="weights", off="bf16", control=control,
                         one_server=True)


def _ratio_of_batches(batches: pd.DataFrame, name: str, make, control: pd.DataFrame, task: str | None,
                      **options) -> Estimate:
    ends = _ends(batches, task)
    if ends.empty:
        return Estimate(np.nan)
    keep = [c for c in [*SETTINGS, "role", "end"] if c in ends]
    rows = metrics.batches(ends, keep).reset_index(drop=True)
    found = over_batches(rows, stats.geometric_mean(_end_contrast(rows, make, stats.ratio)), **options)
    return _paced(found, name, ends, control)


@number("05.batch_time_ratio", "×", "batches", "control", per_task=True, whole=True)
def batch_time_ratio(batches: pd.DataFrame, control: pd.DataFrame, task: str | None = None, **options) -> Estimate:
    """Time per request at a set's largest batch size over that at its smallest, geometric mean over sets and sizes."""
    return _ratio_of_batches(batches, "time_per_request", lambda rows: stats.ratio_of_sums(rows.wall_s, rows.requests),
                             control, task, **options)


@number("05.batch_tps_ratio", "×", "batches", "control", per_task=True, whole=True)
def batch_tps_ratio(batches: pd.DataFrame, control: pd.DataFrame, task: str | None = None, **options) -> Estimate:
    """Throughput at a set's largest batch size over that at its smallest, geometric mean over sets and sizes."""
    return _ratio_of_batches(batches, "tps", lambda rows: stats.ratio_of_sums(rows.output_tokens, rows.wall_s),
                             control, task, **options)


@number("05.batch_ttfvt_ratio", "×", "batches", "control", per_task=True, whole=True)
def batch_ttfvt_ratio(batches: pd.DataFrame, control: pd.DataFrame, task: str | None = None, **options) -> Estimate:
    """Mean TTFVT at a set's largest batch size over that at its smallest, paired by problem.

    Area under the survivor curve up to one common time per set, so that requests that never left thinking count on
    both sides, and pull the ratio towards one.
    """
    ends = _ends(metrics.derive(batches), task)
    if ends.empty:
        return Estimate(np.nan)
    until = {task: known_until(part, ["pair", "end"]) for task, part in ends.groupby("task")}

    def make(rows: pd.DataFrame) -> stats.Statistic:
        return stats.km_mean(rows.ttfvt_observed_s, ~rows.ttfvt_censored, until=until[rows.task.iloc[0]])

    found = over_problems(ends, stats.geometric_mean(_end_contrast(ends, make, stats.ratio)), **options)
    return _paced(found, "ttfvt", ends, control)


@number("05.batch_accuracy_change", "share", "batches", per_task=True)
def batch_accuracy_change(batches: pd.DataFrame, **options) -> Estimate:
    """Accuracy at a set's largest batch size minus that at its smallest, by problem, mean over sets and sizes."""
    ends = _ends(metrics.derive(batches))
    if ends.empty:
        return Estimate(np.nan)
    return over_problems(ends, stats.average(_end_contrast(ends, hits, stats.difference)), bounds=(-1, 1), **options)


@number("05.batch_texts_changed", "share", "batches", per_task=True)
def batch_texts_changed(batches: pd.DataFrame, **options) -> Estimate:
    """Share of requests whose text differs between a set's largest and smallest batch size, same sampling seed."""
    return texts_changed(_ends(batches), arm="end", on="largest", off="smallest", ignore=_IGNORED, **options)


_GAINS = paper_budget_gains()

CLAIMS = [
    Claim("budget.suffices", "About half of the largest token budget suffices: no set gains by doubling it.",
          "05.budget_gain_largest", Range(hi=0.05),
          f"largest gain from 8,192 to 20,480 tokens {_GAINS.max():+.2f} (14B GPQA) [figure]", float(_GAINS.max())),
    Claim("budget.overthinking", "Beyond that budget accuracy falls, because models overthink.",
          "05.budget_gain", Range(hi=-0.01),
          f"mean change from 8,192 to 20,480 tokens {_GAINS.mean():+.3f}, 14B and 32B [figure]",
          float(_GAINS.mean())),
    Claim("batch.time", "A larger batch size takes less time in all.", "05.batch_time_ratio", Range(hi=1), SILENT),
    Claim("batch.tps", "A larger batch size gives more throughput.", "05.batch_tps_ratio", Range(lo=1), SILENT),
    Claim("batch.ttfvt", "A larger batch size makes users wait longer for the first visible token.",
          "05.batch_ttfvt_ratio", Range(lo=1), SILENT),
    Claim("batch.accuracy", "Batch size leaves accuracy unchanged.",
          "05.batch_accuracy_change", Range(-SMALL_POINTS, SMALL_POINTS), SILENT),
]
