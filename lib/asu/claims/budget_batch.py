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
    load_size,
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


def _sized(frame: pd.DataFrame, task: str | None = None) -> tuple[pd.DataFrame, float, float]:
    """RLLM rows, of one task or of all, with at_once, the load's size, and its largest and smallest value."""
    r = of_role(frame if task is None else frame[frame.task == task], "RLLM")
    r["at_once"] = load_size(r.load)
    return r, r.at_once.max(), r.at_once.min()


def _size_contrast(frame: pd.DataFrame, big: float, small: float, make, combine) -> list[stats.Statistic]:
    # the engine's slots follow the batch size in the study, so they are no setting to hold equal here
    return contrast(frame, "at_once", big, small, make, combine=combine, ignore=("load", "max_requests"))


def _paced(found: Estimate, name: str, batches: pd.DataFrame, control: pd.DataFrame, task: str | None) -> Estimate:
    r, big, _ = _sized(batches, task)
    return effects.paced(found, name, on=[r[r.at_once == big]], arm="weights", off="bf16", control=control,
                         one_server=True)


def _size_ratio_of_batches(requests: pd.DataFrame, make, task: str | None, **options) -> Estimate:
    r, big, small = _sized(requests, task)
    keep = [c for c in [*SETTINGS, "role", "at_once"] if c in r]
    rows = metrics.batches(r, keep).reset_index(drop=True)
    return over_batches(rows, stats.geometric_mean(_size_contrast(rows, big, small, make, stats.ratio)), **options)


@number("05.batch_time_ratio", "×", "batches", "control", per_task=True, whole=True)
def batch_time_ratio(batches: pd.DataFrame, control: pd.DataFrame, task: str | None = None, **options) -> Estimate:
    """Time per request at the largest batch size over that at the smallest, geometric mean over sets and sizes."""
    found = _size_ratio_of_batches(batches, lambda rows: stats.ratio_of_sums(rows.wall_s, rows.requests), task,
                                   **options)
    return _paced(found, "time_per_request", batches, control, task)


@number("05.batch_tps_ratio", "×", "batches", "control", per_task=True, whole=True)
def batch_tps_ratio(batches: pd.DataFrame, control: pd.DataFrame, task: str | None = None, **options) -> Estimate:
    """Throughput at the largest batch size over that at the smallest, geometric mean over sets and sizes."""
    found = _size_ratio_of_batches(batches, lambda rows: stats.ratio_of_sums(rows.output_tokens, rows.wall_s),
                                   task, **options)
    return _paced(found, "tps", batches, control, task)


@number("05.batch_ttfvt_ratio", "×", "batches", "control", per_task=True, whole=True)
def batch_ttfvt_ratio(batches: pd.DataFrame, control: pd.DataFrame, task: str | None = None, **options) -> Estimate:
    """Mean TTFVT at the largest batch size over that at the smallest, paired by problem.

    Area under the survivor curve up to one common time per set, so that requests that never left thinking count on
    both sides.
    """
    r, big, small = _sized(metrics.derive(batches), task)
    sized = r[r.at_once.isin([big, small])]
    until = {task: known_until(part, ["pair", "at_once"]) for task, part in sized.groupby("task")}

    def make(rows: pd.DataFrame) -> stats.Statistic:
        return stats.km_mean(rows.ttfvt_observed_s, ~rows.ttfvt_censored, until=until[rows.task.iloc[0]])

    found = over_problems(r, stats.geometric_mean(_size_contrast(r, big, small, make, stats.ratio)), **options)
    return _paced(found, "ttfvt", batches, control, task)


@number("05.batch_accuracy_change", "share", "batches", per_task=True)
def batch_accuracy_change(batches: pd.DataFrame, **options) -> Estimate:
    """Accuracy at the largest batch size minus that at the smallest, paired by problem, mean over sets and sizes."""
    r, big, small = _sized(metrics.derive(batches))
    return over_problems(r, stats.average(_size_contrast(r, big, small, hits, stats.difference)), bounds=(-1, 1),
                          **options)


@number("05.batch_texts_changed", "share", "batches", per_task=True)
def batch_texts_changed(batches: pd.DataFrame, **options) -> Estimate:
    """Share of requests whose text differs between the largest and the smallest batch size, same sampling seed."""
    r, big, small = _sized(batches)
    return texts_changed(r, arm="at_once", on=big, off=small, ignore=("load", "max_requests"), **options)


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
