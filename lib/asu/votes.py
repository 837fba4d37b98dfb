"""A question asked several times: which answer the samples vote for, what they cost together, how long they take."""

import pandas as pd

from asu import contrast, metrics, stats
from asu.columns import LABELS
from asu.errors import AsuError
from asu.tasks import grading

UNITS = {"single": "share", "vote": "share", "any": "share", "cut_off": "share", "tokens": "tok", "wait_s": "s"}


def questions(requests: pd.DataFrame, samples: int | None = None) -> pd.DataFrame:
    """One row per question: the repeats of a problem in a run, or each `samples` of them in a row, first to last.

    Columns: run and its other labels, problem_id, level, difficulty, samples, group (which of them);
    single, the mean of its samples' hits; vote, the hit of the answer given most often, of equally frequent ones of one
    drawn by lot (its expectation, so that two samples that differ are worth as much as one), 0 where none gave any;
    any, whether one of the samples is right; tokens, output of all [tok]; cut_off, the share of them that ran into the
    budget; wait_s, from sending the first to the last token of all [s].
    Answers are the same where `grading.spelling` says so; a sample that the budget cut off gave none. Failed and
    ungraded samples have no vote; single, vote and any are NaN where no other is left, tokens and wait_s where one
    failed. wait_s is NaN also where `samples` leaves some out, which then ran beside them, and where an interrupted
    run sent some later. Repeats that do not fill a group of `samples` are left out.
    """
    r = metrics.derive(requests).sort_values(["run", "problem_id", "repeat"], kind="stable")
    asked = r.groupby(["run", "problem_id"])["repeat"].transform("size")
    r = r.assign(asked=asked, samples=asked if samples is None else samples, failed=r.error.notna(),
                 cut=(r.outcome == "cut off").astype(float).where(r.outcome.notna()))
    r["group"] = r.groupby(["run", "problem_id"]).cumcount() // r.samples
    r = r[(r.group + 1) * r.samples <= r.asked]
    keys = ["run", "problem_id", "group"]
    same = [column for column in LABELS if column in r and column not in keys]
    grouped = r.groupby(keys, sort=False)
    found = grouped[[*same, "level", "difficulty", "samples"]].first()
    found["single"], found["any"], found["cut_off"] = grouped.hit.mean(), grouped.hit.max(), grouped.cut.mean()
    found["vote"] = _votes(r, keys).reindex(found.index, fill_value=0.0).where(found.single.notna())
    whole = ~grouped.failed.any()
    found["tokens"] = grouped.output_tokens.sum().where(whole)
    beside = (grouped.asked.first() == found.samples) & (grouped.session.nunique() == 1)
    found["wait_s"] = (grouped.last_s.max() - grouped.sent_s.min()).where(whole & beside)
    return found.reset_index()


def _votes(r: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Expected hit of the answer given most often, by `keys`; without those where nobody gave one."""
    given = r[r.outcome.isin(["correct", "wrong"])]
    given = given.assign(answer=[grading.spelling(answer) for answer in given.extracted])
    answers = given.groupby([*keys, "answer"], sort=False).hit.agg(["size", "mean"]).reset_index()
    most = answers[answers["size"] == answers.groupby(keys, sort=False)["size"].transform("max")]
    return most.groupby(keys, sort=False)["mean"].mean()


def curve(requests: pd.DataFrame, counts: list[int | None], **options) -> pd.DataFrame:
    """What samples give and cost over how many are asked, with intervals from resampled problems.

    Each count takes every group of as many that the repeats hold, so that small ones are averaged over several; None:
    all of a run's repeats, whatever their number. Columns: task, role, budget [tok], samples, metric (single, vote,
    any and cut_off [share], tokens of a question [tok], wait_s [s]), value, lo, hi, unit, n, and spent, the mean tokens
    of a question [tok], to draw against. options: of `stats.bootstrap`.
    """
    rows = []
    for count in counts:
        asked = questions(requests, count)
        for label, part in asked.groupby(["task", "role", "budget", "samples"], sort=False):
            part = part.reset_index(drop=True)
            for metric, unit in UNITS.items():
                bounds = (0, 1) if unit == "share" else None
                estimate = contrast.over_problems(part, stats.mean(part[metric]), unit=unit, bounds=bounds, **options)
                rows.append(dict(zip(("task", "role", "budget", "samples"), label, strict=True)) | {
                    "metric": metric, "spent": part.tokens.mean(), **estimate.as_dict()})
    if not rows:
        raise AsuError(f"no question was asked as often as {min(filter(None, counts), default=1)} times",
                       "ask it more often: raise the study's repeats")
    return pd.DataFrame(rows)


def doublings(samples: int, *, shares: list[int], budgets: list[int]) -> list[int]:
    """1, 2, 4 … `samples`, over which votes are drawn; AsuError for what cannot be asked.

    shares: samples that the largest of `budgets` [tok] is divided among.
    """
    counts = [2**i for i in range(samples.bit_length())]
    if samples < 2 or counts[-1] != samples:
        raise AsuError(f"SAMPLES is {samples}, no power of two from 2 on", "ask 2, 4, 8 … times")
    if budgets != sorted(set(budgets)):
        raise AsuError(f"BUDGETS {budgets} do not rise", "give each once, the largest last: it is the one divided")
    if not shares or shares != sorted(set(shares)) or shares[0] < 2 or shares[-1] > budgets[-1]:
        raise AsuError(f"SHARES {shares} do not divide a budget of {budgets[-1]} tokens",
                       "give rising numbers of samples from 2 on, at most one for each token")
    return counts
