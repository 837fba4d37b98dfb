"""Comparing two arms of a measurement, everything else equal: which rows go together and what is resampled.

A statistic is made per combination of equal settings and then averaged, so that no set or size outweighs another by
its number of requests. What is resampled: problems (within tasks), batches (within runs), or twentieths of a run.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from asu import metrics, stats
from asu.errors import AsuError
from asu.stats import Estimate

# everything but the model's role that must be equal on both sides of a comparison
SETTINGS = ["engine", "pair", "size", "task", "load", "budget", "kv_pool_tokens", "weights", "kv_cache",
            "prefix_caching", "speculation", "max_requests", "prefix", "replay", "trial"]


def groups(frame: pd.DataFrame, keys: list[str]) -> Iterator[np.ndarray]:
    """Row masks of the groups that share `keys` (those that the frame has)."""
    keys = [k for k in keys if k in frame]
    codes = frame.groupby(keys, dropna=False, sort=False).ngroup().to_numpy() if keys else np.zeros(len(frame), int)
    for code in np.unique(codes):
        yield codes == code


def arms(frame: pd.DataFrame, arm: str, a, b, ignore: tuple[str, ...] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row masks of arm a and of arm b, for each combination of equal settings that has both."""
    for rows in groups(frame, _equal(arm, ignore)):
        in_a, in_b = rows & (frame[arm] == a).to_numpy(), rows & (frame[arm] == b).to_numpy()
        if in_a.any() and in_b.any():
            yield in_a, in_b


def _equal(arm: str, ignore: tuple[str, ...]) -> list[str]:
    return [*(k for k in SETTINGS if k != arm and k not in ignore), "load_size"]


def contrast(frame: pd.DataFrame, arm: str, a, b, make: Callable[[pd.DataFrame], stats.Statistic], *,
             combine=stats.difference, ignore: tuple[str, ...] = (), paired: bool = True) -> list[stats.Statistic]:
    """combine(arm a, arm b) of the statistic that `make` makes from rows, one per combination of equal settings.

    AsuError where no combination has both arms, or where the two arms were asked different problems although `paired`.
    """
    parts = []
    for in_a, in_b in arms(frame, arm, a, b, ignore):
        if paired and "problem_id" in frame and set(frame.problem_id[in_a]) != set(frame.problem_id[in_b]):
            raise AsuError(f"{a} and {b} were asked different problems", "compare runs over the same problems")
        parts.append(combine(stats.on(in_a, make(frame[in_a])), stats.on(in_b, make(frame[in_b]))))
    if not parts:
        keys = [k for k in _equal(arm, ignore) if k in frame]
        raise AsuError(f"there is nothing to compare: no setting was measured with {arm} {a} and with {arm} {b}",
                       f"add runs so that both have the same {', '.join(keys)}")
    return parts


def texts_changed(requests: pd.DataFrame, *, arm: str, on, off, ignore: tuple[str, ...] = (), **options) -> Estimate:
    """Share of requests whose text differs between on and off, everything else equal, same sampling seed.

    Requests that failed, or whose text was not kept (random weights), say nothing: not known where none is left.
    """
    kept = requests[requests[arm].isin([on, off]) & requests.error.isna() & metrics.kept(requests)]
    keys = [k for k in [*SETTINGS, "role"] if k in kept and k != arm and k not in ignore]
    both = kept.assign(text=metrics.texts(kept)).groupby([*keys, "problem_id", "request_id"], dropna=False).agg(
        arms=(arm, "nunique"), texts=("text", "nunique")).reset_index()
    both = both[both.arms == 2].reset_index(drop=True)
    return over_problems(both, stats.mean(both.texts > 1), unit="share", bounds=(0, 1), **options)


def over_problems(frame: pd.DataFrame, statistic: stats.Statistic, **options) -> Estimate:
    """Interval from resampled problems, within each task so that every draw has every task."""
    return stats.bootstrap(statistic, frame.problem_id, strata=frame.task, **options)


def of_role(frame: pd.DataFrame, role: str) -> pd.DataFrame:
    """The rows of one role, numbered anew."""
    return frame[frame.role == role].reset_index(drop=True)


def kv_samples(engine: pd.DataFrame) -> pd.DataFrame:
    """Gauge samples at work, each with the twentieth of its run that it belongs to."""
    return metrics.in_blocks(metrics.work_samples(engine))


def over_blocks(samples: pd.DataFrame, statistic: stats.Statistic, **options) -> Estimate:
    """Interval from resampled twentieths of each run: how far a figure hangs on single moments of that run."""
    return stats.bootstrap(statistic, samples[["run", "block"]], strata=samples.run, **options)


def batch_rows(requests: pd.DataFrame) -> pd.DataFrame:
    """`metrics.batches` with the settings of each, load_size, and whether there was a barrier."""
    requests = requests.assign(load_size=metrics.load_size(requests.load), barrier=requests.batch >= 0)
    keep = [c for c in [*SETTINGS, "role", "load_size", "barrier"] if c in requests]
    return metrics.batches(requests, keep).reset_index(drop=True)


def over_batches(batches: pd.DataFrame, statistic: stats.Statistic, **options) -> Estimate:
    """Interval from resampled batches, within each run."""
    return stats.bootstrap(statistic, batches[["run", "session", "batch"]], strata=batches.run, **options)


def hits(rows: pd.DataFrame) -> stats.Statistic:
    """Accuracy of rows of `metrics.derive`."""
    return stats.mean(rows.hit)


def known_until(r: pd.DataFrame, curves: list[str]) -> float:
    """Up to when the survivor curves of TTFVT, one per group of `curves`, are all known [s].

    A curve whose last request is censored is known to there only, the others for good. r: of `metrics.derive`.
    """
    last = r.loc[r.groupby(curves).ttfvt_observed_s.idxmax()]
    cut = last.ttfvt_observed_s[last.ttfvt_censored]
    return float(last.ttfvt_observed_s.max() if cut.empty else cut.min())
