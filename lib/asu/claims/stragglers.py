"""02: stragglers. The interval comes from resampled batches (without a barrier: stretches of as many finishes)."""

import numpy as np
import pandas as pd

from asu import metrics, stats
from asu.claims.core import Claim, Range, number
from asu.claims.paper import paper
from asu.contrast import SETTINGS, batch_rows, contrast, groups, of_role, over_batches
from asu.stats import Estimate


def _barrier_average(requests: pd.DataFrame, role: str, make, **options) -> Estimate:
    batches = batch_rows(of_role(requests[requests.batch >= 0], role))
    if batches.empty:
        return Estimate(np.nan)
    parts = [stats.on(rows, make(batches[rows])) for rows in groups(batches, SETTINGS)]
    return over_batches(batches, stats.average(parts), **options)


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
    batches = batch_rows(requests[requests.batch >= 0])
    parts = contrast(batches, "role", "RLLM", "LLM", metrics.straggler_share)
    return over_batches(batches, stats.average(parts), **options)


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
    batches = batch_rows(of_role(requests, "RLLM"))
    parts = contrast(batches, "barrier", a, not a, make, combine=stats.ratio, ignore=("load",))
    return over_batches(batches, stats.geometric_mean(parts), **options)


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
    batches = batch_rows(of_role(requests, "RLLM"))
    # not used further: raises where one of the two loads is missing
    contrast(batches, "barrier", False, True, metrics.straggler_share, ignore=("load",))
    arms = [stats.on(batches.barrier == barrier, metrics.straggler_share(batches[batches.barrier == barrier]))
            for barrier in (False, True)]
    return over_batches(batches, stats.ratio(*arms), **options)


CLAIMS = [
    Claim("F2.stragglers", "A few long requests keep a reasoning model's batch waiting, more than a plain one's.",
          "02.straggler_share_difference", Range(lo=0),
          "2 of 16 requests left for at least 0.6 of the time shown, RLLM 7B on MATH-500 [figure, inferred]",
          float(paper("straggler_share").value.iloc[0]), compared="02.straggler_share_rllm"),
    Claim("F2.engine", "The straggling is the model's own: most of it stays when no batch waits for its last one.",
          "02.straggler_share_kept_rllm", Range(lo=0.5),
          "not separated: the released client always waits for the whole batch [released client]"),
]
