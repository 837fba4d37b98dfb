"""Two runs of the same requests with the same seeds, token by token: how far sampling repeats itself, and why not."""

import os

import numpy as np
import pandas as pd

from asu import metrics, stats
from asu.errors import AsuError

_KEYS = ["task", "problem_id", "request_id"]
SAME = 1e-12  # nat: below the engine's own rounding, above that of adding up

MEASURES = {
    "changed": ("Texts that differ", "share"),
    "moved": ("Tokens of equal text whose log-probability differs at all", "share"),
    "logprob_gap": ("Mean distance of log-probabilities on equal text", "nat"),
    "parted_at": ("Tokens until half of the texts have parted", "tok"),
    "flipped": ("Requests right in one run and not in the other", "share"),
    "hit_change": ("Change of accuracy", "share"),
}


def other_size(sizes: dict[str, dict[str, list[int]]], concurrency: int) -> tuple[str, int]:
    """(problem set, batch size) whose texts are set beside those with `concurrency` in flight.

    sizes: batch sizes by role and set; taken is the first other size of the reasoning model's last set.
    """
    task, counts = list(sizes.get("RLLM", {}).items() or [(None, [])])[-1]
    others = [count for count in counts if count != concurrency]
    if not others:
        raise AsuError(f"SIZES {sizes} has no batch size but {concurrency} for the last set of the RLLM",
                       "give one more: texts are compared between two, and claims on batch size are made from them")
    return task, others[0]


def compare(requests: pd.DataFrame, events: pd.DataFrame, a: dict, b: dict, comparison: str) -> pd.DataFrame:
    """One row per request that both runs finished, none where texts were not kept.

    a, b: labels that name one run each, {"load": "closed8", "trial": 0}.
    Columns: comparison, task, problem_id, request_id; changed, flipped (0 or 1); hit_change = hit in b − hit in a;
    parted_at: tokens of equal text, all of them where nothing changed; shared, moved, gap: tokens compared, how many of
    them have another log-probability, Σ |difference| [nat]. Where a text parts is read off its characters, by the mean
    characters per token, at most one: exact for the miniature, whose tokens are characters, too early for others.
    """
    both, pair = _side_by_side(requests, events, a, b)
    steps = _steps(both, *pair)
    gaps = steps.assign(moved=steps.tokens.where(steps.gap > SAME, 0)).groupby("request_id", as_index=False).agg(
        shared=("tokens", "sum"), moved=("moved", "sum"), gap=("gap", "sum"))
    both = both.merge(gaps, on="request_id", how="left").fillna({"shared": 0, "moved": 0, "gap": 0.0})
    return both.assign(comparison=comparison)[["comparison", *_KEYS, "changed", "flipped", "hit_change", "parted_at",
                                               "shared", "moved", "gap"]]


def positions(requests: pd.DataFrame, events: pd.DataFrame, a: dict, b: dict, comparison: str) -> pd.DataFrame:
    """One row per token of equal text: comparison, task, problem_id, request_id, position [tok], gap [nat].

    gap: distance of its log-probabilities; where events hold several tokens, one row each with the sum of theirs.
    """
    both, pair = _side_by_side(requests, events, a, b)
    steps = _steps(both, *pair).merge(both[_KEYS], on="request_id").rename(columns={"end": "position"})
    return steps.assign(comparison=comparison)[["comparison", *_KEYS, "position", "gap"]]


def by_position(tokens: pd.DataFrame, width: int = 32, **options) -> pd.DataFrame:
    """Mean gap over stretches of `width` tokens: comparison, position (the middle), value, lo, hi, unit, n.

    tokens: from `positions`. Texts that have parted are no longer among them: what is left further on agrees better
    than all would.
    """
    placed = tokens.assign(position=(tokens.position - 1) // width * width + width / 2)
    return stats.by_group(placed, ["comparison", "position"], lambda part: stats.bootstrap(
        stats.mean(part.gap), part.problem_id, unit="nat", **options)).sort_values(
        ["comparison", "position"], ignore_index=True)


def _side_by_side(requests: pd.DataFrame, events: pd.DataFrame, a: dict, b: dict
                  ) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """(requests that both runs finished, with changed, flipped, hit_change and parted_at; the two runs' events)."""
    (run_a, one), (run_b, two) = _of_run(requests, a), _of_run(requests, b)
    columns = [*_KEYS, "run", "text", "hit", "output_tokens"]
    both = one[columns].merge(two[columns], on=_KEYS, suffixes=("_a", "_b"), validate="one_to_one")
    both["changed"] = (both.text_a != both.text_b).astype(float)
    both["flipped"] = (both.hit_a != both.hit_b).astype(float).where(both.hit_a.notna() & both.hit_b.notna())
    both["hit_change"] = both.hit_b - both.hit_a
    length = [len(os.path.commonprefix(texts)) for texts in zip(both.text_a, both.text_b, strict=True)]
    per_character = np.minimum(1.0, both.output_tokens_a / both.text_a.str.len())
    both["parted_at"] = np.where(both.changed == 1, np.floor(length * per_character), both.output_tokens_a)
    return both, [events[events.run == run] for run in (run_a, run_b)]


def _of_run(requests: pd.DataFrame, wanted: dict) -> tuple[str, pd.DataFrame]:
    """The one run with these labels, and its finished requests with hit and text (thinking, a mark, answer).

    Requests whose text was not kept (random weights) are left out: nobody saw whether they agree.
    """
    chosen = requests[np.logical_and.reduce([requests[name] == value for name, value in wanted.items()])]
    if chosen.run.nunique() != 1:
        raise AsuError(f"{chosen.run.nunique()} runs have {wanted}", "name exactly one run by its labels")
    r = metrics.derive(chosen)
    r = r[r.finished & metrics.kept(r)]
    return chosen.run.iloc[0], r.assign(text=metrics.texts(r))


def _steps(both: pd.DataFrame, a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """request_id, end [tok], tokens, gap [nat], token by token before the texts part.

    Where one run got several tokens in one event, the other's are summed up to the same token.
    """
    ends = []
    for events in (a, b):
        tokens = events.thinking_tokens + events.answer_tokens
        ends.append(events.assign(end=tokens.groupby(events.request_id).cumsum())[["request_id", "end", "logprob"]])
    common = ends[0][["request_id", "end"]].merge(ends[1][["request_id", "end"]])
    one, two = (_up_to(common, each) for each in ends)
    steps = common.assign(tokens=common.groupby("request_id").end.diff().fillna(common.end), gap=(one - two).abs())
    steps = steps.merge(both[["request_id", "parted_at"]], on="request_id").dropna(subset=["gap"])
    return steps.loc[steps.end <= steps.parted_at, ["request_id", "end", "tokens", "gap"]]


def _up_to(common: pd.DataFrame, ends: pd.DataFrame) -> pd.Series:
    """Log-probability summed over the events after one row of `common` up to the next, in its order."""
    next_end = pd.merge_asof(ends.sort_values("end"), common.assign(to=common.end).sort_values("end"), on="end",
                             by="request_id", direction="forward")
    sums = next_end.groupby(["request_id", "to"]).logprob.sum(min_count=1)
    return sums.reindex(pd.MultiIndex.from_frame(common)).reset_index(drop=True)


def summary(compared: pd.DataFrame, **options) -> pd.DataFrame:
    """MEASURES with intervals from resampled problems: comparison, metric, value, lo, hi, unit, n."""
    rows = []
    for comparison, part in compared.groupby("comparison", sort=False):
        made = {"changed": stats.mean(part.changed), "moved": stats.ratio_of_sums(part.moved, part.shared),
                "logprob_gap": stats.ratio_of_sums(part.gap, part.shared),
                "parted_at": stats.km_quantile(part.parted_at, part.changed == 1),
                "flipped": stats.mean(part.flipped), "hit_change": stats.mean(part.hit_change)}
        for name, (_, unit) in MEASURES.items():
            bounds = {"share": (-1.0 if name == "hit_change" else 0.0, 1.0)}.get(unit)
            found = stats.bootstrap(made[name], part.problem_id, strata=part.task, unit=unit, bounds=bounds, **options)
            rows.append({"comparison": comparison, "metric": name, **found.as_dict()})
    return pd.DataFrame(rows)
