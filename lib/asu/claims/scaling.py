"""13: test-time scaling. More samples of a question with a vote, against longer thinking; paired by problem.

Frames: `many` (every question asked several times, all of the budget each), `splits` (a reasoning model's budget given
to one sample, or divided among several), `control` (the single sample made twice).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from asu import effects, stats, votes
from asu.claims.core import MATERIAL_POINTS, SMALL_POINTS, Claim, Range, number
from asu.contrast import SETTINGS, arms, contrast, groups, of_role, over_problems
from asu.stats import Estimate

NOT_ASKED = "not asked by the paper"


def _gain(many: pd.DataFrame, role: str, way: str, **options) -> Estimate:
    asked = votes.questions(of_role(many, role))
    parts = [stats.on(rows, stats.difference(stats.mean(asked[way][rows]), stats.mean(asked.single[rows])))
             for rows in groups(asked, SETTINGS)]
    return over_problems(asked, stats.average(parts), bounds=(-1, 1), **options) if parts else Estimate(np.nan)


@number("13.vote_gain", "share", "many", per_task=True)
def vote_gain(many: pd.DataFrame, **options) -> Estimate:
    """Accuracy of the vote of all samples minus that of one, RLLM, mean over sets."""
    return _gain(many, "RLLM", "vote", **options)


@number("13.vote_gain_llm", "share", "many", per_task=True)
def vote_gain_llm(many: pd.DataFrame, **options) -> Estimate:
    """Accuracy of the vote of all samples minus that of one, LLM, mean over sets."""
    return _gain(many, "LLM", "vote", **options)


@number("13.any_gain", "share", "many", per_task=True)
def any_gain(many: pd.DataFrame, **options) -> Estimate:
    """Share of questions that one of all samples answers minus accuracy of one, RLLM: what no choice can surpass."""
    return _gain(many, "RLLM", "any", **options)


@number("13.twin_gap", "share", "many", per_task=True)
def twin_gap(many: pd.DataFrame, **options) -> Estimate:
    """Accuracy of one sample of the RLLM minus that of the vote of all samples of the LLM, mean over sets."""
    asked = votes.questions(many)
    parts = [stats.difference(stats.on(once, stats.mean(asked.single[once])),
                              stats.on(often, stats.mean(asked.vote[often])))
             for once, often in arms(asked, "role", "RLLM", "LLM")]
    return over_problems(asked, stats.average(parts), bounds=(-1, 1), **options) if parts else Estimate(np.nan)


def _split(splits: pd.DataFrame, make, combine, average, which: int = 1, **options) -> Estimate:
    """The division among the second fewest samples (which=1) or the most (-1), against the single sample."""
    asked = votes.questions(of_role(splits, "RLLM"))
    counts = np.sort(asked.samples.unique())
    if len(counts) < 2:
        return Estimate(np.nan)
    parts = contrast(asked, "samples", counts[which], counts[0], make, combine=combine, ignore=("budget", "trial"))
    return over_problems(asked, average(parts), **options)


@number("13.split_accuracy", "share", "splits", per_task=True)
def split_accuracy(splits: pd.DataFrame, **options) -> Estimate:
    """Accuracy of a vote of the fewest samples that share the budget minus that of one with all of it, RLLM."""
    return _split(splits, lambda rows: stats.mean(rows.vote), stats.difference, stats.average, bounds=(-1, 1),
                  **options)


@number("13.split_accuracy_most", "share", "splits", per_task=True)
def split_accuracy_most(splits: pd.DataFrame, **options) -> Estimate:
    """Accuracy of a vote of the most samples that share the budget minus that of one with all of it, RLLM."""
    return _split(splits, lambda rows: stats.mean(rows.vote), stats.difference, stats.average, -1, bounds=(-1, 1),
                  **options)


@number("13.split_tokens", "×", "splits", per_task=True)
def split_tokens(splits: pd.DataFrame, **options) -> Estimate:
    """Output tokens of a question with the fewest samples that share the budget over those with one, RLLM."""
    return _split(splits, lambda rows: stats.mean(rows.tokens), stats.ratio, stats.geometric_mean, **options)


@number("13.split_wait", "×", "splits", "control")
def split_wait(splits: pd.DataFrame, control: pd.DataFrame, **options) -> Estimate:
    """Time from sending a question to its last token with the fewest samples that share the budget over that with one.

    As many requests are in flight, so that fewer questions are.
    """
    found = _split(splits, lambda rows: stats.mean(rows.wait_s), stats.ratio, stats.geometric_mean, **options)
    counts = splits.groupby(["run", "problem_id"])["repeat"].transform("size")
    shared = splits[counts == np.sort(counts.unique())[min(1, counts.nunique() - 1)]]
    return effects.paced(found, "e2e", on=[shared], arm="weights", off="bf16", control=control, one_server=True)


CLAIMS = [
    Claim("scaling.vote", "Asking a reasoning model several times and taking the vote raises its accuracy.",
          "13.vote_gain", Range(lo=0), NOT_ASKED),
    Claim("scaling.split", "Half the token budget twice, with a vote, is within three points of all of it once.",
          "13.split_accuracy", Range(lo=-SMALL_POINTS), NOT_ASKED),
    Claim("scaling.tokens", "Half the token budget twice costs as many tokens as all of it once, within a tenth.",
          "13.split_tokens", Range(1 / 1.1, 1.1), NOT_ASKED),
    Claim("scaling.twin", "A plain model asked several times, with a vote, stays ten points behind its reasoning twin "
          "asked once.", "13.twin_gap", Range(lo=MATERIAL_POINTS), NOT_ASKED),
]


def guidance(numbers: Mapping[str, Estimate | Mapping | float]) -> str:
    """One sentence: whether to ask more often or to let it think longer, and what that costs."""
    at = {name: Estimate.of(numbers.get(f"13.{name}")) for name in (
        "vote_gain", "any_gain", "split_accuracy", "split_tokens", "split_wait")}
    vote, _ = Range(lo=0).verdict(at["vote_gain"])
    more = {"supported": f"Ask again where answers can be compared: the vote gains {at['vote_gain']} of accuracy",
            "not supported": f"Do not ask again for the vote's sake: it gains {at['vote_gain']} of accuracy",
            "undecided": f"Whether a vote of more samples pays is not decided: it gains {at['vote_gain']}"}[vote]
    split, _ = Range(lo=-SMALL_POINTS).verdict(at["split_accuracy"])
    halves = {"supported": "a budget halved and asked twice holds accuracy within three points",
              "not supported": "a budget halved and asked twice loses accuracy",
              "undecided": "what a budget halved and asked twice does to accuracy is not decided"}[split]
    return (f"{more}, and a grader that could pick the right sample would gain {at['any_gain']}; {halves} "
            f"({at['split_accuracy']}) for {at['split_tokens']} of the tokens, and a question takes "
            f"{at['split_wait']} of the time with as many requests in flight. (Problems with one short answer, one "
            "temperature.)")
