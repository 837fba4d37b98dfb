"""01: KV-cache usage.

Frames: `engine`, the gauge; `held`, what the client's own streams hold (`metrics.predicted_engine`); `requests` and
`events`, which that comes from. The interval comes from resampled twentieths of each run: it tells how far a figure
hangs on single moments of that run, not how it would differ in another run.
"""

import numpy as np
import pandas as pd

from asu import metrics, stats
from asu.claims.core import MATERIAL_RATIO, Claim, Range, number
from asu.claims.paper import by_set, paper
from asu.contrast import SETTINGS, arms, contrast, groups, kv_samples, of_role, over_blocks
from asu.stats import Estimate


def kv_ratio(engine: pd.DataFrame, which: str, **options) -> Estimate:
    """Peak, mean or swing of KV use (`which`), RLLM over LLM, geometric mean over the sets and sizes that were read."""
    samples = kv_samples(engine)
    measured = any(arms(engine, "role", "RLLM", "LLM"))
    if measured and not any(arms(samples, "role", "RLLM", "LLM")):
        return Estimate(np.nan)  # one of each pair was done before its gauge was read even once
    parts = contrast(samples, "role", "RLLM", "LLM", lambda rows: metrics.kv_statistics(rows)[which],
                      combine=stats.ratio)
    return over_blocks(samples, stats.geometric_mean(parts), **options)


def _kv_largest(engine: pd.DataFrame, which: str, role: str, **options) -> Estimate:
    samples = kv_samples(of_role(engine, role))
    parts = [stats.on(rows, metrics.kv_statistics(samples[rows])[which]) for rows in groups(samples, SETTINGS)]
    return over_blocks(samples, stats.largest(parts), **options) if parts else Estimate(np.nan)


def _enter_ratios() -> None:
    """Each ratio by the client's streams, and by the gauge."""
    said = {"peak": "Peak KV use", "mean": "Time-weighted mean KV use", "swing": "Swing of KV use (p95 − p5 over time)"}
    for which, title in said.items():
        for name, frame, by in (("", "held", "client's streams"), ("_gauge", "engine", "engine's gauge")):
            def of(samples, _which=which, **options):
                return kv_ratio(samples, _which, **options)

            of.__doc__ = f"{title}, RLLM over LLM, geometric mean over sets and sizes, by the {by}."
            number(f"01.kv_{which}_ratio{name}", "×", frame, per_task=True)(of)


_enter_ratios()


@number("01.kv_peak_rllm", "share of pool", "engine", per_task=True)
def kv_peak_rllm(engine: pd.DataFrame, **options) -> Estimate:
    """Highest peak of KV use of an RLLM."""
    return _kv_largest(engine, "peak", "RLLM", **options)


@number("01.kv_peak_llm", "share of pool", "engine", per_task=True)
def kv_peak_llm(engine: pd.DataFrame, **options) -> Estimate:
    """Highest peak of KV use of an LLM."""
    return _kv_largest(engine, "peak", "LLM", **options)


@number("01.kv_range_rllm", "share of pool", "engine", per_task=True)
def kv_range_rllm(engine: pd.DataFrame, **options) -> Estimate:
    """Widest range of KV use (max − min while work ran) of an RLLM."""
    return _kv_largest(engine, "range", "RLLM", **options)


@number("01.kv_range_llm", "share of pool", "engine", per_task=True)
def kv_range_llm(engine: pd.DataFrame, **options) -> Estimate:
    """Widest range of KV use (max − min while work ran) of an LLM."""
    return _kv_largest(engine, "range", "LLM", **options)


@number("01.kv_prediction_error", "share of pool", "engine", "requests", "events")
def kv_prediction_error(engine: pd.DataFrame, requests: pd.DataFrame, events: pd.DataFrame, **options) -> Estimate:
    """Time-weighted mean |predicted − reported| KV use while work ran, all runs together."""
    both = metrics.in_blocks(metrics.kv_prediction(metrics.predicted_kv(requests, events), engine))
    return over_blocks(both, stats.ratio_of_sums(both.error.abs() * both.dt_s, both.dt_s), **options)


def _paper_kv_peak_ratio() -> float:
    ratios = by_set("kv_peak", size="7B", role="RLLM") / by_set("kv_peak", size="7B", role="LLM")
    return float(np.exp(np.log(ratios).mean()))


CLAIMS = [
    Claim("F1.heavy", "Serving a reasoning model fills more of the KV cache than serving its plain twin.",
          "01.kv_peak_ratio", Range(lo=MATERIAL_RATIO),
          f"peaks {_paper_kv_peak_ratio():.1f} × on average, 1.8 to 8.1 × by set, 7B [figure]",
          _paper_kv_peak_ratio()),
    Claim("F1.swing", "A reasoning model's KV use swings far more widely during a run than its plain twin's.",
          "01.kv_swing_ratio", Range(lo=MATERIAL_RATIO),
          "RLLM 3 to 70 % in extreme cases, a range of 0.67; LLM below 3 % [text, at second hand]",
          float(paper("kv_range").value.iloc[0]), compared="01.kv_range_rllm"),
]
