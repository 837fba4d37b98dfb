"""10: real-world workload. Intervals from resampled stretches of arrivals, or twentieths of a run for the gauges.

Frames: `engine`, gauges of the twins under one load, at an equal rate; `equal_work`, the same with the LLM at a rate
that offers as many tokens; `held` and `held_work`, KV use of the same runs by the client's streams
(`metrics.predicted_engine`), for of a twin whose requests last a moment few readings of a gauge catch any; `calm` and
`bursts`, requests of one model at one nominal rate, arrivals of low and of high CV; `verdicts`, of `traffic.verdicts`.
Use counts over the whole run, idle moments included: a service that is idle most of the time uses little.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from asu import metrics, stats, traffic
from asu.claims.core import MATERIAL_RATIO, SILENT, Claim, Range, number
from asu.claims.paper import paper
from asu.contrast import over_blocks
from asu.metrics import SLO
from asu.stats import Estimate


def _twins(engine: pd.DataFrame, of, combine, **options) -> Estimate:
    """combine(RLLM, LLM) of a statistic of gauge samples, whatever the load of each."""
    samples = traffic.samples(engine)
    sides = [(samples.role == role).to_numpy() for role in ("RLLM", "LLM")]
    if not all(side.any() for side in sides):
        return Estimate(np.nan)  # a run over before its gauge was read twice
    return over_blocks(samples, combine(*(stats.on(side, of(samples[side])) for side in sides)), **options)


def _kv_mean(samples: pd.DataFrame) -> stats.Statistic:
    return metrics.kv_statistics(samples)["mean"]


def _share(name: str):
    return metrics.METRICS[name].statistic


@number("10.kv_mean_ratio", "×", "held")
def kv_mean_ratio(held: pd.DataFrame, **options) -> Estimate:
    """Time-weighted mean KV use at an equal rate, RLLM over LLM, by the client's streams."""
    return _twins(held, _kv_mean, stats.ratio, **options)


@number("10.kv_mean_ratio_gauge", "×", "engine")
def kv_mean_ratio_gauge(engine: pd.DataFrame, **options) -> Estimate:
    """The same by the engine's gauge."""
    return _twins(engine, _kv_mean, stats.ratio, **options)


@number("10.kv_mean_ratio_equal_work", "×", "held_work")
def kv_mean_ratio_equal_work(held: pd.DataFrame, **options) -> Estimate:
    """Time-weighted mean KV use at equal tokens offered per second, RLLM over LLM, by the client's streams."""
    return _twins(held, _kv_mean, stats.ratio, **options)


@number("10.kv_mean_ratio_equal_work_gauge", "×", "equal_work")
def kv_mean_ratio_equal_work_gauge(engine: pd.DataFrame, **options) -> Estimate:
    """The same by the engine's gauge."""
    return _twins(engine, _kv_mean, stats.ratio, **options)


@number("10.kv_mean_rllm", "share of pool", "engine")
def kv_mean_rllm(engine: pd.DataFrame, **options) -> Estimate:
    """Time-weighted mean KV use of the RLLM."""
    samples = traffic.samples(engine[engine.role == "RLLM"])
    return over_blocks(samples, _kv_mean(samples), **options)


@number("10.full_difference", "share", "engine")
def full_difference(engine: pd.DataFrame, **options) -> Estimate:
    """Share of time with a full KV pool at an equal rate, RLLM − LLM."""
    return _twins(engine, _share("kv_full_share"), stats.difference, bounds=(-1, 1), **options)


@number("10.waiting_difference", "share", "engine")
def waiting_difference(engine: pd.DataFrame, **options) -> Estimate:
    """Share of time with requests waiting at an equal rate, RLLM − LLM."""
    return _twins(engine, _share("waiting_share"), stats.difference, bounds=(-1, 1), **options)


@number("10.waiting_difference_equal_work", "share", "equal_work")
def waiting_difference_equal_work(engine: pd.DataFrame, **options) -> Estimate:
    """Share of time with requests waiting at equal tokens offered per second, RLLM − LLM."""
    return _twins(engine, _share("waiting_share"), stats.difference, bounds=(-1, 1), **options)


def _wait_ratio(calm: pd.DataFrame, bursts: pd.DataFrame, of, **options) -> Estimate:
    """A statistic of derived requests under bursts over that of calm arrivals; stretches resampled on both sides.

    Not known where one CV alone was offered, so that both are the same run.
    """
    if set(calm.run) == set(bursts.run):
        return Estimate(np.nan)
    r = traffic.stretches(pd.concat([calm, bursts], ignore_index=True))
    r = r[r.finished].reset_index(drop=True)
    sides = [r.run.isin(side.run).to_numpy() for side in (bursts, calm)]
    return traffic.over_stretches(r, stats.ratio(*(stats.on(side, of(r[side])) for side in sides)), **options)


def _ttft(q: float):
    return lambda rows: stats.quantile(rows.ttft_s, q)


def _ttfvt(q: float):
    return lambda rows: stats.km_quantile(rows.ttfvt_observed_s, ~rows.ttfvt_censored, q)


@number("10.burst_ttft_p90", "×", "calm", "bursts")
def burst_ttft_p90(calm: pd.DataFrame, bursts: pd.DataFrame, **options) -> Estimate:
    """TTFT, p90, of the burstiest arrivals over that of the calmest at one nominal rate, RLLM."""
    return _wait_ratio(calm, bursts, _ttft(0.9), **options)


@number("10.burst_ttfvt_p90", "×", "calm", "bursts")
def burst_ttfvt_p90(calm: pd.DataFrame, bursts: pd.DataFrame, **options) -> Estimate:
    """TTFVT, p90, of the burstiest arrivals over that of the calmest at one nominal rate, RLLM."""
    return _wait_ratio(calm, bursts, _ttfvt(0.9), **options)


@number("10.burst_ttfvt_p50", "×", "calm", "bursts")
def burst_ttfvt_p50(calm: pd.DataFrame, bursts: pd.DataFrame, **options) -> Estimate:
    """TTFVT, median, of the burstiest arrivals over that of the calmest at one nominal rate, RLLM."""
    return _wait_ratio(calm, bursts, _ttfvt(0.5), **options)


@number("10.verdicts_kept", "share", "verdicts")
def verdicts_kept(verdicts: pd.DataFrame, **options) -> Estimate:
    """Verdicts decided under a steady load and under bursts that are the same, share of options and waits.

    Options are resampled whole, for what changes one wait changes those that hold it; one alone has no interval.
    """
    decided = verdicts.dropna(subset=["kept"]).reset_index(drop=True)
    return stats.bootstrap(stats.mean(decided.kept.astype(float)), decided.option, bounds=(0, 1), **options)


def guidance(numbers: Mapping[str, Estimate | Mapping | float], slo: SLO, bursts_at: str = "") -> str:
    """One sentence for who sizes a service; needs 10.knee, for this SLO, beside the measured numbers.

    bursts_at: at which rate bursts were compared with what, as in "at 2 a second, a CV of 4 against 0.5".
    10.knee_bursts is that of the burstiest arrivals. Where the knee lies below the fewest requests offered it needs
    10.least_rate [1/s] and 10.least_rate_limit, of `traffic.kept_limit`.
    """
    knee, bursty, tail, kept, least, limit = (Estimate.of(numbers.get(f"10.{name}")) for name in (
        "knee", "knee_bursts", "burst_ttfvt_p90", "verdicts_kept", "least_rate", "least_rate_limit"))
    if np.isfinite(knee.value):
        below = "10.knee_bursts" in numbers and not bursty.known
        fewer = (f", {_rate(bursty)} in bursts like the strongest here," if np.isfinite(bursty.value) else
                 ", fewer than were offered in bursts like the strongest here," if below else ",")
        plan = (f"With this engine and pool admit at most {_rate(knee)} requests per second, arriving by chance{fewer} "
                f"if {slo.share * 100:g} % of users are to see a token within {slo.ttfvt_s:g} s and then one each "
                f"{slo.tbt_s:g} s")
    elif np.isnan(knee.value) and limit.known and np.isfinite(limit.value):
        plan = (f"Even {least.value:.3g} requests per second, the fewest offered here, are too many if "
                f"{slo.share * 100:g} % of users are to see a token within {slo.ttfvt_s:g} s: that share needs {limit}")
    else:
        plan = "Measure goodput at more rates before admitting traffic: the knee lies outside those measured here"
    if tail.has_interval and tail.lo > 1:
        where = f" ({bursts_at})" if bursts_at else ""
        bursts = f"leave room for bursts: the slowest tenth then waits {tail} as long for a visible token{where}"
    elif tail.has_interval and tail.hi <= 1:
        bursts = "bursts as strong as these did not lengthen the slowest tenth's wait for a visible token"
    else:
        bursts = "how much longer bursts make the slowest tenth wait is not decided by these runs"
    if kept.has_interval and kept.lo > 0.5:
        options = "optimisations may be chosen under a steady load"
    elif not kept.has_interval:
        options = "whether optimisations may be chosen under a steady load these runs cannot tell"
    else:
        options = "choose optimisations under the traffic they are meant for, since steady load does not vouch for it"
    return f"{plan}; {bursts}; {options}. (One machine, one model, a few dozen requests at most rates.)"


def _rate(knee: Estimate) -> str:
    return f"{knee.value:.3g}" + (f" [{knee.lo:.3g}, {knee.hi:.3g}]" if knee.has_interval else "")


@dataclass(frozen=True)
class _OverOptions(Range):
    """A range for what is resampled by option."""

    def verdict(self, measured: Estimate) -> tuple[str, str]:
        if not measured.has_interval:
            return "undecided", ("fewer than two options were decided under both loads; the waits of one hang together "
                                 "and count once")
        return super().verdict(measured)


_THEIRS = paper("kv_mean", size="14B").pivot(index="set", columns="role", values="value").eval("RLLM / LLM")

CLAIMS = [
    # first, since the plain twin's gauge is furthest from nothing here: an index shows a notebook's first claim
    Claim("load.work", "At equal work offered, in tokens per second, a reasoning model still uses more KV cache.",
          "10.kv_mean_ratio_equal_work", Range(lo=MATERIAL_RATIO), "not asked by the paper"),
    Claim("load.kv", "At an equal rate of traffic a reasoning model keeps far more of the KV cache in use than a plain "
          "one.", "10.kv_mean_ratio", Range(lo=MATERIAL_RATIO),
          "mean use RLLM/LLM 56.6/13.2 % on MATH-500, 64.2/18.1 % on ShareGPT, 14B [figure]",
          float(_THEIRS["MATH-500"])),
    Claim("load.full", "A reasoning model keeps the KV pool full for longer than its plain twin.",
          "10.full_difference", Range(lo=0), SILENT),
    Claim("load.waiting", "A reasoning model's requests wait for room for more of the time than its plain twin's.",
          "10.waiting_difference", Range(lo=0), SILENT),
    Claim("load.bursts", "Bursts make the slowest tenth wait longer for the first visible token, at an equal rate.",
          "10.burst_ttfvt_p90", Range(lo=1), "not asked by the paper"),
    Claim("load.options", "Optimisations are judged under bursts as they are under a steady load.",
          "10.verdicts_kept", _OverOptions(lo=0.5), "hardly retested by the paper"),
]
