"""13: test-time scaling. More samples of a question with a vote, against longer thinking; paired by problem.

Frames: `many` (every question asked several times, all of the budget each), `splits` (a reasoning model's budget given
to one sample, or divided among several), `control` (the single sample made twice). Single sample and divisions are
taken to be of one server, as in a study that runs in one go.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from asu import effects, stats, votes
from asu.claims.core import MATERIAL_POINTS, SMALL_POINTS, Claim, Range, number
from asu.contrast import SETTINGS, contrast, groups, of_role, over_problems
from asu.stats import Estimate

NOT_ASKED = "not asked by the paper"
LIMITS = "(Problems with one short answer, one temperature.)"


def _gain(many: pd.DataFrame, role: str, way: str, least: float = -1, **options) -> Estimate:
    asked = votes.questions(of_role(many, role))
    parts = [stats.on(rows, stats.difference(stats.mean(asked[way][rows]), stats.mean(asked.single[rows])))
             for rows in groups(asked, SETTINGS)]
    return over_problems(asked, stats.average(parts), bounds=(least, 1), **options) if parts else Estimate(np.nan)


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
    return _gain(many, "RLLM", "any", least=0, **options)


@number("13.vote_samples", "samples", "many")
def vote_samples(many: pd.DataFrame, **options) -> Estimate:
    """How many samples of a question vote, and so many times the tokens of one they take."""
    return Estimate(float(votes.questions(many).samples.max()))


@number("13.twin_gap", "share", "many", per_task=True)
def twin_gap(many: pd.DataFrame, **options) -> Estimate:
    """Accuracy of one sample of the RLLM minus that of the vote of all samples of the LLM, mean over sets."""
    asked = votes.questions(many)
    if asked.role.nunique() < 2:
        return Estimate(np.nan)
    parts = contrast(asked, "role", "RLLM", "LLM", lambda rows: stats.mean(rows.single.where(rows.role == "RLLM",
                                                                                            rows.vote)))
    return over_problems(asked, stats.average(parts), bounds=(-1, 1), **options)


def _ends(splits: pd.DataFrame, task: str | None = None) -> tuple[pd.DataFrame, list[int]]:
    """Questions of the RLLM, and among how many samples their budget is divided, from 1 on.

    Two cannot outvote each other: they are left out where a larger division was made.
    """
    asked = votes.questions(of_role(splits if task is None else splits[splits.task == task], "RLLM"))
    counts = sorted(asked.samples.unique())
    return asked, [count for count in counts if count != 2] if counts[-1:] > [2] else counts


def _split(splits: pd.DataFrame, make, combine, average, which: int = 1, task: str | None = None,
           **options) -> Estimate:
    """The division among the fewest samples (which=1) or the most (-1), against the single sample."""
    asked, counts = _ends(splits, task)
    if len(counts) < 2:
        return Estimate(np.nan)
    parts = contrast(asked, "samples", counts[which], counts[0], make, combine=combine, ignore=("budget",))
    return over_problems(asked, average(parts), **options)


@number("13.split_samples", "samples", "splits")
def split_samples(splits: pd.DataFrame, **options) -> Estimate:
    """The fewest samples that share the budget and can outvote each other, to which the numbers on sharing belong."""
    return Estimate(float(counts[1]) if len(counts := _ends(splits)[1]) > 1 else np.nan)


@number("13.split_accuracy", "share", "splits", per_task=True)
def split_accuracy(splits: pd.DataFrame, **options) -> Estimate:
    """Accuracy of a vote of these samples minus that of one with all of the budget, RLLM."""
    return _split(splits, lambda rows: stats.mean(rows.vote), stats.difference, stats.average, bounds=(-1, 1),
                  **options)


@number("13.split_accuracy_most", "share", "splits", per_task=True)
def split_accuracy_most(splits: pd.DataFrame, **options) -> Estimate:
    """Accuracy of a vote of the most samples that share the budget minus that of one with all of it, RLLM."""
    return _split(splits, lambda rows: stats.mean(rows.vote), stats.difference, stats.average, -1, bounds=(-1, 1),
                  **options)


@number("13.split_tokens", "×", "splits", per_task=True)
def split_tokens(splits: pd.DataFrame, **options) -> Estimate:
    """Output tokens of a question whose samples share the budget over those of one with all of it, RLLM."""
    return _split(splits, lambda rows: stats.mean(rows.tokens), stats.ratio, stats.geometric_mean, **options)


@number("13.split_wait", "×", "splits", "control", per_task=True, whole=True)
def split_wait(splits: pd.DataFrame, control: pd.DataFrame, task: str | None = None, **options) -> Estimate:
    """Time from sending a question to its last token with a shared budget over that with one sample, RLLM.

    As many requests are in flight, so that fewer questions are.
    """
    found = _split(splits, lambda rows: stats.mean(rows.wait_s), stats.ratio, stats.geometric_mean, task=task,
                   **options)
    asked, counts = _ends(splits, task)
    shared = splits[splits.run.isin(asked.run[asked.samples == counts[min(1, len(counts) - 1)]])]
    return effects.paced(found, "e2e", on=[shared], arm="weights", off="bf16", control=control, one_server=True)


CLAIMS = [
    Claim("scaling.vote", "Asking a reasoning model several times and taking the vote raises its accuracy.",
          "13.vote_gain", Range(lo=0), NOT_ASKED),
    Claim("scaling.split", "One token budget shared by a few samples, with a vote, answers as well as one sample with "
          "all of it, or at most three points worse.", "13.split_accuracy", Range(lo=-SMALL_POINTS), NOT_ASKED),
    Claim("scaling.tokens", "A budget shared by a few samples costs as many tokens as one sample with all of it, "
          "within a tenth.", "13.split_tokens", Range(1 / 1.1, 1.1), NOT_ASKED),
    Claim("scaling.twin", "A plain model asked several times, with a vote, stays ten points behind its reasoning twin "
          "asked once.", "13.twin_gap", Range(lo=MATERIAL_POINTS), NOT_ASKED),
]


def guidance(numbers: Mapping[str, Estimate | Mapping | float]) -> str:
    """One sentence: whether to ask more often or to let it think longer, and what that costs."""
    at = {name: Estimate.of(numbers.get(f"13.{name}")) for name in (
        "vote_gain", "vote_samples", "any_gain", "split_samples", "split_accuracy", "split_tokens")}
    gain = at["vote_gain"]
    if not gain.has_interval:
        more = "Whether a vote of more samples pays these runs cannot tell"
    else:
        verdict, _ = Range(lo=0).verdict(gain)
        says = {"supported": "Ask again where answers can be compared and that is worth it",
                "not supported": "Do not ask again for the vote's sake",
                "undecided": "Whether a vote of more samples gains anything is not decided"}[verdict]
        more = (f"{says}: {at['vote_samples'].value:.0f} samples, for as many times the tokens, change accuracy by "
                f"{gain}, and who could pick a right one among them would gain {at['any_gain']}")
    split = at["split_accuracy"]
    if not split.has_interval:
        return f"{more}. {LIMITS}"
    shared = f"a budget shared by {at['split_samples'].value:.0f} samples"
    verdict, _ = Range(lo=-SMALL_POINTS).verdict(split)
    holds = {"supported": f"{shared} holds accuracy within three points",
             "not supported": f"{shared} loses more than three points of accuracy",
             "undecided": f"whether {shared} holds accuracy within three points is not decided"}[verdict]
    return f"{more}; {holds} ({split}), for {at['split_tokens']} the tokens. {LIMITS}"
