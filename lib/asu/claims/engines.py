"""11: engine against engine. The first engine of the frames is what the second is compared with.

Frames: `requests` and `events` of the same requests on both engines (the first one's perhaps made again), `engine`
(their gauges), `held` (of `held`: KV use as the client's streams tell it, by one rule for both engines).
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd

from asu import effects, metrics
from asu.claims import domain, kv_cache, running_time
from asu.claims.core import MATERIAL_RATIO, SILENT, Claim, Range, number
from asu.contrast import of_role
from asu.stats import Estimate

ALIKE = Range(1 / 1.25, 1.25)  # by less than a quarter: what bioequivalence asks for, and half of MATERIAL_RATIO
ALIKE_POINTS = 0.05  # accuracy: temperature and seeds do not repeat across engines, so that three points are too few
TITLES = {"vllm": "vLLM", "lmdeploy": "LMDeploy", "sglang": "SGLang", "tensorrt_llm": "TensorRT-LLM"}

ROLES = {"rllm": "RLLM", "llm": "LLM"}
BY_ROLE = ("e2e", "ttft", "ttfvt", "tbt_thinking", "tbt_answer", "tps", "output_tokens")


def arm(requests: pd.DataFrame) -> dict:
    """How `effects` compares the last engine of a frame with its first."""
    names = list(dict.fromkeys(requests.engine))
    return {"arm": "engine", "off": names[0], "on": names[-1]}


def held(requests: pd.DataFrame, events: pd.DataFrame, points: int = 400) -> pd.DataFrame:
    """KV use by what requests in flight hold: an engine frame as `metrics.predicted_engine`, thinned.

    On an engine that does not tell its queue a request that waits there counts too. Of each run the last value in each
    of `points` equal stretches of time, as if a gauge had been read.
    """
    seen = metrics.predicted_engine(requests, events)
    stretch = np.ceil(seen.t_s / seen.groupby("run").t_s.transform("max") * points)
    return seen.groupby([seen.run, stretch], sort=False).tail(1).reset_index(drop=True)


_kv_peak_ratio = partial(kv_cache.kv_ratio, which="peak")


def by_engine(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each engine, runs made again left out."""
    rows = frame[frame.trial == 0]
    return {name: part.reset_index(drop=True) for name, part in rows.groupby("engine", sort=False)}


def first_waves(requests: pd.DataFrame, places: int) -> pd.DataFrame:
    """Mean TTFT [s] of the first `places` requests of each run, those that open it, and of the rest.

    Columns: engine, trial, pair, role, task, first_wave, rest (NaN: there is none). A first wave that waits far longer
    is a server's start, such as kernels compiled at their first use, and not its steady behaviour.
    """
    r = metrics.derive(requests)
    wave = np.where(r.groupby("run").sent_s.rank(method="first") <= places, "first_wave", "rest")
    by = ["engine", "trial", "pair", "role", "task"]
    means = r.pivot_table(index=by, columns=wave, values="ttft_s", sort=False)
    return means.reindex(columns=["first_wave", "rest"]).reset_index().rename_axis(columns=None)


def findings(requests: pd.DataFrame, engine: pd.DataFrame, held: pd.DataFrame, **options) -> pd.DataFrame:
    """What the pilot study found, per engine and set: RLLM over LLM of KV use and time, RLLM minus LLM of accuracy.

    Columns: engine, task, kv_peak (by the client), kv_peak_gauge (by the engine), time, accuracy; Estimates. Unknown
    where a gauge was not read in time, or nothing was graded.
    """
    rows = []
    for name, part in by_engine(requests).items():
        for task, asked in part.groupby("task", sort=False):
            seen, read = (frame[(frame.engine == name) & (frame.task == task) & (frame.trial == 0)]
                          for frame in (held, engine))
            rows.append({"engine": name, "task": task, "kv_peak": _twins(seen, _kv_peak_ratio, **options),
                         "kv_peak_gauge": _twins(read, _kv_peak_ratio, **options),
                         "time": _twins(asked, running_time.time_ratio, **options),
                         "accuracy": _twins(asked, _lead, **options)})
    return pd.DataFrame(rows)


def _twins(frame: pd.DataFrame, make: Callable[..., Estimate], **options) -> Estimate:
    """A number that compares twins; not known where there are no rows of one of them."""
    return make(frame.reset_index(drop=True), **options) if frame.role.nunique() == 2 else Estimate(np.nan)


def _lead(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy of the RLLM minus that of the LLM; not known where nothing was graded."""
    return domain.accuracy_difference(requests, **options) if requests.outcome.notna().any() else Estimate(np.nan)


def _two(requests: pd.DataFrame) -> bool:
    return requests.engine.nunique() > 1


def _shift(requests: pd.DataFrame, name: str, engine: pd.DataFrame | None = None, **options) -> Estimate:
    """How far an effect of the engine is one on reasoning models; for a ratio that of RLLM/LLM on either engine."""
    if not _two(requests):
        return Estimate(np.nan)
    return effects.special(requests, name, engine=engine, **arm(requests), **options)


@number("11.kv_ratio_shift", "×", "requests", "held")
def kv_ratio_shift(requests: pd.DataFrame, held: pd.DataFrame, **options) -> Estimate:
    """RLLM/LLM of peak KV use on the second engine over that on the first, by the client's streams."""
    return _shift(requests, "kv_peak", held, **options)


@number("11.kv_mean_ratio_shift", "×", "requests", "held")
def kv_mean_ratio_shift(requests: pd.DataFrame, held: pd.DataFrame, **options) -> Estimate:
    """RLLM/LLM of mean KV use on the second engine over that on the first, by the client's streams."""
    return _shift(requests, "kv_mean", held, **options)


@number("11.kv_ratio_shift_gauge", "×", "requests", "engine")
def kv_ratio_shift_gauge(requests: pd.DataFrame, engine: pd.DataFrame, **options) -> Estimate:
    """RLLM/LLM of peak KV use on the second engine over that on the first, by the engines' gauges."""
    return _shift(requests, "kv_peak", engine, **options)


@number("11.e2e_ratio_shift", "×", "requests")
def e2e_ratio_shift(requests: pd.DataFrame, **options) -> Estimate:
    """RLLM/LLM of mean E2E on the second engine over that on the first."""
    return _shift(requests, "e2e", **options)


@number("11.accuracy_change", "share", "requests")
def accuracy_change(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy on the second engine minus that on the first, mean over sets, sizes and roles."""
    return effects.estimate(requests, "accuracy", **arm(requests), **options) if _two(requests) else Estimate(np.nan)


def _of(frame: pd.DataFrame, place: int, make: Callable[..., Estimate], **options) -> Estimate:
    """A number of the pilot study on the engine at `place`; not known where there is none."""
    parts = list(by_engine(frame).values())
    return _twins(parts[place], make, **options) if len(parts) > 1 else Estimate(np.nan)


def _enter_finding(name: str, frame: str, what: str, make: Callable[..., Estimate]) -> None:
    """A number of the pilot study on the first engine and on the second."""
    for place, which in ((0, "first"), (-1, "second")):

        def of(rows: pd.DataFrame, place=place, **options) -> Estimate:
            return _of(rows, place, make, **options)

        of.__doc__ = f"{what.format(which)}, RLLM over LLM, geometric mean over sets and sizes."
        number(f"11.{name}_{which}", "×", frame)(of)


_enter_finding("kv_peak_ratio", "held", "Peak KV use on the {} engine by the client's streams", _kv_peak_ratio)
_enter_finding("time_ratio", "requests", "Mean time per request on the {} engine", running_time.time_ratio)


def _enter(name: str, key: str, role: str) -> None:
    """One effect of the engine on one role's requests."""

    def of(requests: pd.DataFrame, events: pd.DataFrame, **options) -> Estimate:
        chosen = of_role(requests, role)
        if not _two(chosen):
            return Estimate(np.nan)
        seen = events if name.startswith("tbt") else None  # the others do not hang on single events
        return effects.estimate(chosen, name, events=seen, control=requests, **arm(chosen), **options)

    of.__doc__ = f"{effects.EFFECTS[name].title} on the second engine over that on the first, {role}."
    number(f"11.{name}_{key}", "×", "requests", "events")(of)


for _name in BY_ROLE:
    for _key, _role in ROLES.items():
        if (_name, _key) != ("tbt_thinking", "llm"):  # a plain model does not think
            _enter(_name, _key, _role)


_PAPER = "vLLM and SGLang; no numbers by engine at hand"
CLAIMS = [
    Claim("engine.heavy", "On another engine, too, a reasoning model fills more of the KV cache than its plain twin.",
          "11.kv_peak_ratio_second", Range(lo=MATERIAL_RATIO), SILENT),
    Claim("engine.kv", "How much more of the KV cache a reasoning model fills does not depend on the engine.",
          "11.kv_ratio_shift", ALIKE, _PAPER),
    Claim("engine.e2e", "How much longer a reasoning model's requests take does not depend on the engine.",
          "11.e2e_ratio_shift", ALIKE, _PAPER),
    Claim("engine.accuracy", "Accuracy does not depend on the engine.", "11.accuracy_change",
          Range(-ALIKE_POINTS, ALIKE_POINTS), _PAPER),
]


def guidance(numbers: Mapping[str, Estimate | Mapping | float], first: str = "vllm", second: str = "lmdeploy") -> str:
    """One sentence: which of the two engines to serve either kind of model with, and what carries over between them."""
    known = {name: Estimate.of(value) for name, value in numbers.items()}
    at = {key: known.get(f"11.e2e_{key}", Estimate(np.nan)) for key in ROLES}
    titles = [TITLES.get(name, name) for name in (first, second)]
    if not any(e2e.known for e2e in at.values()):
        return "These runs were not made on two engines, and give no ground to choose between them."
    told = "; ".join(f"{kind} models {_choice(at[key], *titles)}" for key, kind in
                     (("rllm", "reasoning"), ("llm", "plain")) if at[key].known)
    carries = {"supported": "carries over from one to the other", "not supported": "does not carry over",
               "undecided": "may not carry over"}
    e2e, kv = (ALIKE.verdict(known.get(f"11.{name}_ratio_shift", Estimate(np.nan)))[0] for name in ("e2e", "kv"))
    return (f"Choose the engine by measuring your own mix of models, since a lead with one kind need not hold with the "
            f"other: {told} (E2E of {titles[1]} over {titles[0]}'s, on servers just started, whose first requests "
            f"wait for what an engine does only once); how many times as much KV cache a reasoning model "
            f"needs as a plain one {carries[kv]}, how many times as long it takes {carries[e2e]}; for these models, "
            "this load and these versions of the engines.")


def _choice(e2e: Estimate, first: str, second: str) -> str:
    """Which engine was faster, with the number."""
    if not e2e.has_interval or e2e.lo <= 1 <= e2e.hi:
        return f"were as fast on either as these runs can tell ({e2e})"
    return f"were faster on {first if e2e.lo > 1 else second} ({e2e})"
