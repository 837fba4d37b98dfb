"""A question asked several times: which answer the samples vote for, what they cost together, how long they take."""

import pandas as pd

from asu import contrast, metrics, stats
from asu.columns import LABELS

UNITS = {"single": "share", "vote": "share", "any": "share", "cut_off": "share", "tokens": "tok", "wait_s": "s"}


def questions(requests: pd.DataFrame, samples: int | None = None) -> pd.DataFrame:
    """One row per question: the repeats of a problem in a run, or each `samples` of them in a row, first to last.

    Columns: run and its other labels, problem_id, level, difficulty, samples, group (which of them);
    single, the mean of its samples' hits; vote, whether the answer given most often is right, of equally frequent ones
    that which was given first, none at all being wrong (answers are the same where they are spelt the same; a sample
    that the budget cut off gave none); any, whether one of the samples is right; tokens, output of all [tok]; cut_off,
    the share of them that ran into the budget; wait_s, from sending the first to the last token of all [s], NaN where
    `samples` leaves some out, which then ran beside them. Failed and ungraded samples have no vote; single, vote and
    any are NaN where no other is left. Repeats that do not fill a group of `samples` are left out.
    """
    r = metrics.derive(requests).sort_values(["run", "problem_id", "repeat"], kind="stable")
    asked = r.groupby(["run", "problem_id"])["repeat"].transform("size")
    r = r.assign(samples=asked if samples is None else samples)
    r["group"] = r.groupby(["run", "problem_id"]).cumcount() // r.samples
    r = r[(r.group + 1) * r.samples <= asked]
    keys = ["run", "problem_id", "group"]
    same = [column for column in LABELS if column in r and column not in keys]
    grouped = r.groupby(keys, sort=False)
    found = grouped[[*same, "level", "difficulty", "samples"]].first()
    found["single"], found["any"] = grouped.hit.mean(), grouped.hit.max()
    found["vote"] = _votes(r, keys).reindex(found.index).where(found.single.notna())
    found["tokens"] = grouped.output_tokens.sum()
    found["cut_off"] = (r.outcome == "cut off").groupby([r[key] for key in keys], sort=False).mean()
    found["wait_s"] = (grouped.last_s.max() - grouped.sent_s.min()).where(
        grouped["repeat"].size() == asked.groupby([r[key] for key in keys], sort=False).first())
    return found.reset_index()


def _votes(r: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Hit of the answer given most often, by `keys`; 0 where there are none. r: in the order that breaks ties."""
    given = r[r.outcome.isin(["correct", "wrong"])]
    answers = given.groupby([*keys, "extracted"], sort=False).hit.agg(["size", "max"]).reset_index()
    most = answers.sort_values("size", ascending=False, kind="stable").drop_duplicates(keys)
    won = most.set_index(keys)["max"]
    everyone = pd.MultiIndex.from_frame(r[keys].drop_duplicates())
    return won.reindex(everyone).fillna(0.0)


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
    return pd.DataFrame(rows)
