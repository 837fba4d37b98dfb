"""04: domain preference. Accuracy over requests that failed for neither twin, paired by problem."""

import numpy as np
import pandas as pd

from asu import metrics, stats, tasks
from asu.claims.core import MATERIAL_POINTS, Claim, Range, number
from asu.claims.paper import KNOWLEDGE, by_set
from asu.contrast import SETTINGS, contrast, groups, hits, of_role, over_problems
from asu.stats import Estimate


def _knowledge(requests: pd.DataFrame) -> pd.Series:
    return requests.task.isin([name for name in requests.task.unique() if tasks.get(name).kind == "knowledge"])


def _graded(requests: pd.DataFrame) -> pd.DataFrame:
    """Requests with `hit`; one that failed for either twin counts for neither, else their problems would differ."""
    r = metrics.derive(requests).reset_index(drop=True)
    request = [r[key] for key in [*SETTINGS, "request_id"] if key in r]
    failed = (r.outcome == "failed").groupby(request, dropna=False).transform("any")
    return r.assign(hit=r.hit.mask(failed))


def _accuracy_differences(requests: pd.DataFrame) -> list[stats.Statistic]:
    return contrast(requests, "role", "RLLM", "LLM", hits)


@number("04.accuracy_difference", "share", "requests", per_task=True)
def accuracy_difference(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy, RLLM − LLM, paired by problem, mean over sets and sizes."""
    if requests.empty:
        return Estimate(np.nan)
    r = _graded(requests)
    return over_problems(r, stats.average(_accuracy_differences(r)), bounds=(-1, 1), **options)


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
    r = _graded(requests)
    knowledge = _knowledge(r).to_numpy()
    if knowledge.all() or not knowledge.any():
        return Estimate(np.nan)
    leads = [stats.on(rows, stats.average(_accuracy_differences(r[rows].reset_index(drop=True))))
             for rows in (~knowledge, knowledge)]
    return over_problems(r, stats.difference(*leads), bounds=(-2, 2), **options)


@number("04.wrong_length_ratio", "×", "requests", per_task=True)
def wrong_length_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Mean output tokens of an RLLM's wrong answers over those of its right ones, geometric mean over sets and sizes.

    Answers cut off by the budget are neither: how long they would have become is not known.
    """
    r = of_role(requests, "RLLM")
    r = r[r.outcome.isin(["correct", "wrong"])].reset_index(drop=True)
    wrong = (r.outcome == "wrong").to_numpy()
    means = [[stats.on(rows & arm, stats.mean(r.output_tokens[rows & arm])) for arm in (wrong, ~wrong)]
             for rows in groups(r, SETTINGS)]
    return over_problems(r, stats.geometric_mean([stats.ratio(*arms) for arms in means]), **options) if means \
        else Estimate(np.nan)


def _paper_accuracy_difference(knowledge: bool) -> float:
    change = by_set("accuracy", role="RLLM") - by_set("accuracy", role="LLM")
    return float(change[change.index.isin(KNOWLEDGE) == knowledge].mean())


_MATHEMATICS, _KNOWLEDGE = (_paper_accuracy_difference(knowledge) for knowledge in (False, True))

CLAIMS = [
    Claim("F4.mathematics", "Reasoning models are far ahead of plain ones on mathematics.",
          "04.accuracy_difference_mathematics", Range(lo=MATERIAL_POINTS),
          f"{_MATHEMATICS:+.3f}, mean of three sets, 7B [figure]", _MATHEMATICS),
    Claim("F4.knowledge", "On knowledge questions reasoning models and plain ones are on a par.",
          "04.accuracy_difference_knowledge", Range(-MATERIAL_POINTS, MATERIAL_POINTS),
          f"{_KNOWLEDGE:+.3f} on GPQA, 7B [figure; by this test not on a par]", _KNOWLEDGE),
    Claim("F4.gap", "The lead of reasoning models is larger on mathematics than on knowledge.",
          "04.domain_gap", Range(lo=0), f"{_MATHEMATICS - _KNOWLEDGE:+.3f}, 7B [figure]", _MATHEMATICS - _KNOWLEDGE),
]
