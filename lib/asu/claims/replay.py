"""12: what replay gets wrong (frames of runs that end by themselves, the same made again, and their replays).

Frames: `requests`; `engine`, KV use over time (of `metrics.predicted_engine`, which misses nothing in a short run).
An error is a ratio of replayed over real, less one.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from asu import effects, metrics, stats
from asu.claims.core import Claim, Range, number
from asu.contrast import batch_rows, contrast, of_role, over_batches
from asu.stats import Estimate

REAL, FORCED, METHOD = "none", "real weights", "random weights"  # values of the label `replay`
TIMES = ("e2e", "ttft", "ttfvt", "tbt_thinking", "tbt_answer", "tps", "time_per_request")
KV = ("kv_mean", "kv_peak")
TOLERANCE = 0.10  # how far replay may be off and still stand for serving real outputs


def _error(requests: pd.DataFrame, engine: pd.DataFrame, name: str, *, role: str = "RLLM", arm: str = "replay",
           on=METHOD, off=REAL, **options) -> Estimate:
    """An effect's ratio less one, over sets; not known where the arm was not run."""
    chosen = of_role(requests, role)
    if not (chosen[arm] == on).any():
        return Estimate(np.nan)
    found = effects.estimate(chosen, name, arm=arm, on=on, off=off, engine=engine, control=requests, **options)
    return replace(found, value=found.value - 1, lo=found.lo - 1, hi=found.hi - 1)


def _enter(name: str) -> None:
    """The errors of one metric."""
    title = effects.EFFECTS[name].title
    made = [(f"error_{name}", "replayed with random weights over real, less one, RLLM", {}),
            (f"forced_{name}", "replayed with real weights over real, less one, RLLM", {"on": FORCED}),
            (f"control_{name}", "made again over real, less one, RLLM", {"arm": "trial", "on": 1, "off": 0})]
    if name in ("e2e", "kv_peak"):  # a plain twin's runs are too short for the rest
        made.append((f"error_{name}_llm", "replayed with random weights over real, less one, LLM", {"role": "LLM"}))
    for key, meaning, fixed in made:

        def of(requests: pd.DataFrame, engine: pd.DataFrame, fixed=fixed, **options) -> Estimate:
            return _error(requests, engine, name, **fixed, **options)

        of.__doc__ = f"{title}: {meaning}."
        number(f"12.{key}", "share", "requests", "engine")(of)


for _name in (*TIMES, *KV):
    _enter(_name)


@number("12.error_straggler_share", "share", "requests")
def error_straggler_share(requests: pd.DataFrame, **options) -> Estimate:
    """Share of time with under 20 % of the slots in flight: replayed with random weights minus real, RLLM."""
    batches = batch_rows(of_role(requests, "RLLM"))
    if not (batches.replay == METHOD).any():
        return Estimate(np.nan)
    changes = contrast(batches, "replay", METHOD, REAL, metrics.straggler_share)
    return over_batches(batches, stats.average(changes), **options)


def worst(numbers: Mapping[str, Estimate | Mapping | float], names: tuple[str, ...]) -> tuple[str, Estimate]:
    """(metric, size of its error) of the RLLM's error among `names` that may be largest: the furthest upper end.

    ("", not known) where none is known.
    """
    sizes = {name: _size(Estimate.of(numbers.get(f"12.error_{name}"))) for name in names}
    known = {name: size for name, size in sizes.items() if size.known}
    name = max(known, key=lambda name: known[name].upper, default="")
    return name, known.get(name, Estimate(np.nan, unit="share"))


def _size(error: Estimate) -> Estimate:
    """The error without its sign; an interval that holds no error begins at 0."""
    ends = sorted((abs(error.lo), abs(error.hi)))
    return replace(error, value=abs(error.value), lo=0.0 if error.lo <= 0 <= error.hi else ends[0], hi=ends[1])


def error_bars(numbers: Mapping[str, Estimate | Mapping | float]) -> dict[str, Estimate]:
    """12.error_bar_time and 12.error_bar_kv: what the error of any time or rate, and of KV use, may reach (`worst`)."""
    return {"12.error_bar_time": worst(numbers, TIMES)[1], "12.error_bar_kv": worst(numbers, KV)[1]}


_ASKED = "not asked by the paper"
CLAIMS = [
    Claim("replay.kv", "Replay gets a reasoning model's mean KV use right within a tenth.", "12.error_kv_mean",
          Range(-TOLERANCE, TOLERANCE), _ASKED),
    Claim("replay.time", "Replay gets a reasoning model's E2E right within a tenth.", "12.error_e2e",
          Range(-TOLERANCE, TOLERANCE), _ASKED),
]


def guidance(numbers: Mapping[str, Estimate | Mapping | float]) -> str:
    """One sentence: how a replayed number is to be read."""
    time, kv = _reach(numbers, TIMES), _reach(numbers, KV)
    if not (time and kv):
        return "Nothing was replayed beside real outputs here, so these runs give replayed numbers no error bar."
    right, _ = Range(-TOLERANCE, TOLERANCE).verdict(Estimate.of(numbers.get("12.error_e2e")))
    use = {"supported": "take absolute times from it",
           "not supported": "do not take absolute times from it, only comparisons of one replay with another",
           "undecided": "take absolute times from it with that margin, and comparisons of one replay with another "
                        "before them"}[right]
    return (f"Read KV use from a replay as good to {kv}, and times and rates as good to {time}, beside their own "
            f"intervals; {use}; and "
            "take no accuracy from it at all. This is the error of the method on this engine and machine, with a model "
            "whose steps are short: what replay adds to a step weighs less where a step takes longer.")


def _reach(numbers: Mapping[str, Estimate | Mapping | float], names: tuple[str, ...]) -> str:
    """How far the errors among `names` reach, which one does, and what was seen of it; "" where none is known."""
    name, size = worst(numbers, names)
    if not size.known:
        return ""
    control = _size(Estimate.of(numbers.get(f"12.control_{name}")))
    again = f"; {control.value:.1%} where the same real runs were made again" if control.known else ""
    return (f"{size.upper:.1%}, which the error of {effects.EFFECTS[name].title} may reach (seen: {size.value:.1%}"
            f"{again})")


def processor_time(requests: pd.DataFrame, host: pd.DataFrame) -> pd.DataFrame:
    """Processor time of the engine per output token of the RLLM's runs: replay, trial, ms_per_token, of_real.

    ms of the whole machine (all cores busy). It tells a replay that costs more from a machine that was slower.
    """
    shares = host.groupby("run").cpu_share.mean()
    runs = of_role(requests, "RLLM").groupby(["replay", "trial", "run"], sort=False)
    made = pd.DataFrame({"busy_s": runs.apply(metrics.window_s), "tokens": runs.output_tokens.sum()})
    made["busy_s"] *= made.index.get_level_values("run").map(shares)
    made = made[made.busy_s.notna()].groupby(["replay", "trial"], sort=False).sum().reset_index()
    made["ms_per_token"] = 1e3 * made.busy_s / made.tokens
    made["of_real"] = made.ms_per_token / made.ms_per_token[(made.replay == REAL) & (made.trial == 0)].squeeze()
    return made[["replay", "trial", "ms_per_token", "of_real"]]
