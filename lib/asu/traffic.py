"""Open-loop traffic: what was offered against what was completed, how long requests waited, goodput and its knee.

Requests that arrive together wait together, so that no wait or rate here takes them as independent: intervals come from
resampled stretches of arrivals in a row (`stretches`); effects of options are paired by problem. Rates are per second
of the run's clock and never rounded.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from asu import effects, load, metrics, stats
from asu.errors import AsuError
from asu.metrics import SLO
from asu.specs import Gamma
from asu.stats import Estimate

STRETCHES = 10  # stretches of arrivals in each run, for resampling
LIMITS = 25  # points of an attainment curve
PERCENTILES = (0.5, 0.9, 0.99)
LABELS = ["engine", "pair", "size", "role", "task", "load"]
GAUGES = ["kv_mean", "kv_full_share", "waiting_share"]
WAITS = {"queue": "server_queue_s", "ttft": "ttft_s", "ttfvt": "ttfvt_observed_s", "lag": "lag_s"}


# --- arrivals -------------------------------------------------------------------------------------------------------


def closest_seed(cvs: Sequence[float], counts: Sequence[int], among: int = 60) -> int:
    """Of the seeds 0 … among − 1 that whose Gamma arrivals come nearest to their nominal rate and CV at every CV.

    counts: how many arrivals runs have. The n gaps of a bursty draw miss their nominal mean by about CV / √n of it, so
    that streams of equal nominal rate differ in the rate they offer. Chosen by the arrivals alone, before anything is
    sent.
    """
    def distance(seed: int) -> float:
        drawn = [(cv, *arrivals(load.due_times(Gamma(rate=1.0, cv=cv), n, seed))) for n in counts for cv in cvs]
        return max(abs(np.log(got / asked)) for cv, rate, spread in drawn
                   for got, asked in ((rate, 1.0), (spread, cv)) if asked)

    return min(range(among), key=distance)


def gammas(rates: Sequence[float], cvs: Sequence[float]) -> list[dict]:
    """The loads of a study whose arrivals have every rate [1/s] with every CV."""
    return [{"kind": "gamma", "rate": rate, "cv": cv} for rate in rates for cv in cvs]


def arrivals(due_s: Sequence[float]) -> tuple[float, float]:
    """(rate [1/s], CV of the gaps) that arrivals had; NaN where they span no time."""
    gaps = np.diff(np.sort(np.asarray(due_s, float)))
    if not len(gaps) or gaps.sum() <= 0:
        return np.nan, np.nan
    return float(1 / gaps.mean()), float(gaps.std() / gaps.mean())


def asked(labels: pd.Series) -> pd.DataFrame:
    """What load labels ask for: `rate` [1/s] and `cv` of Gamma arrivals, `trace` by name; empty for other loads."""
    gamma = labels.str.extract(r"^gamma(?P<rate>[-+.\de]+?)cv(?P<cv>[-+.\de]+)$").astype(float)
    return gamma.assign(trace=labels.str.extract(r"^trace-(.+)x[-+.\de]+$")[0])


def stretches(requests: pd.DataFrame) -> pd.DataFrame:
    """Derived requests in order of arrival with `stretch`, the tenth of its run's arrivals that each belongs to."""
    r = metrics.derive(requests).sort_values(["run", "due_s"], kind="stable").reset_index(drop=True)
    of_run = r.groupby("run", sort=False).due_s
    return r.assign(stretch=of_run.cumcount() * STRETCHES // of_run.transform("size"))


def over_stretches(r: pd.DataFrame, statistic: stats.Statistic, **options) -> Estimate:
    """Interval from resampled stretches of arrivals, within each run."""
    return stats.bootstrap(statistic, r[["run", "stretch"]], strata=r.run, **options)


# --- does the engine keep up? ---------------------------------------------------------------------------------------


def growth(requests: pd.DataFrame, engine: pd.DataFrame, level: float = stats.LEVEL) -> Estimate:
    """Share of the second half of the arrivals by which the queue grew while they came; one run's requests and gauges.

    (waiting at the last arrival − waiting at the middle one) / arrived between them: 0 for an engine that keeps up, 1
    for one that takes up nothing, more where requests that were preempted wait again. Those being served do not count:
    an engine with room fills for as long as its requests last, and a run may be over before that. The interval takes
    the number taken up, or pushed out, as a count whose variance is its mean times the arrivals' own dispersion (CV² of
    the gaps, at least 1), so that one burst at the end does not pass for saturation. Not known without two readings of
    the gauge.
    """
    since, until = _second_half(requests)
    gauge = engine.dropna(subset=["waiting"]).sort_values("t_s")
    waiting = [gauge.waiting[gauge.t_s <= at].tail(1).sum() for at in (since, until)]
    arrived = _within(requests.due_s, since, until)
    if not arrived or len(gauge) < 2:
        return Estimate(np.nan, unit="share", n=len(requests))
    value = (waiting[1] - waiting[0]) / arrived
    taken_up = max(abs(arrived * (1 - value)), 1)
    spread = np.sqrt(max(1.0, arrivals(requests.due_s)[1] ** 2) * taken_up) * scipy_stats.norm.ppf((1 + level) / 2)
    return Estimate(value, value - spread / arrived, value + spread / arrived, "share", arrived)


def completed(requests: pd.DataFrame) -> float:
    """Requests of one run finished per second between the middle arrival and the last [1/s]; NaN without such time."""
    since, until = _second_half(requests)
    return _within(metrics.last_known(requests), since, until) / (until - since) if until > since else np.nan


def _second_half(requests: pd.DataFrame) -> tuple[float, float]:
    """When the middle one of the arrivals was due, and the last [s]."""
    due = np.sort(requests.due_s.to_numpy(float))
    return due[len(due) // 2], due[-1]


def _within(at: pd.Series, since: float, until: float) -> int:
    return int(((at > since) & (at <= until)).sum())


def verdict(grown: Estimate) -> str:
    """"saturated" where the whole interval of `growth` lies above 0, else "no sign of it", or "not known"."""
    if not grown.has_interval:
        return "not known"
    return "saturated" if grown.lo > 0 else "no sign of it"


def backlog(requests: pd.DataFrame) -> pd.DataFrame:
    """Requests arrived and not finished over time, as a step function: run, its LABELS, t_s, backlog, due (arrivals).

    t_s counts from the first arrival; `due` is False on steps after the last one, when the run only drains.
    """
    parts = []
    for run, part in requests.groupby("run", sort=False):
        moves = pd.concat([pd.Series(1, part.due_s), pd.Series(-1, metrics.last_known(part))]).sort_index()
        count = moves.groupby(level=0).sum().cumsum()
        labels = {c: part[c].iloc[0] for c in LABELS if c in part}
        parts.append(pd.DataFrame({"run": run, **labels, "t_s": count.index - part.due_s.min(),
                                   "backlog": count.to_numpy(), "due": count.index <= part.due_s.max()}))
    return pd.concat(parts, ignore_index=True)


# --- waiting, goodput, the knee -------------------------------------------------------------------------------------


def _labelled(r: pd.DataFrame) -> Iterator[tuple[dict, pd.DataFrame]]:
    """(run, its LABELS and what its load asked for; its rows) of each run."""
    for run, part in r.groupby("run", sort=False):
        labels = {c: part[c].iloc[0] for c in LABELS if c in part} | asked(part.load).iloc[0].to_dict()
        yield {"run": run} | labels, part.reset_index(drop=True)


def percentiles(requests: pd.DataFrame, waits: Sequence[str] = tuple(WAITS),
                shares: Sequence[float] = PERCENTILES, **options) -> pd.DataFrame:
    """Percentiles of what requests waited for: one row per run, wait and share.

    waits: names of WAITS: the server's queue, TTFT, TTFVT (from the survivor curve: a request that never left thinking
    waited at least as long as it lasted), and the client's own lag, which TTFT and TTFVT hold. Failed requests are left
    out. Columns: run, LABELS, rate, cv, trace (asked for), metric, q, value, lo, hi [s], unit, n.
    """
    unknown = [name for name in waits if name not in WAITS]
    if unknown:
        raise AsuError(f"there is no wait called {', '.join(unknown)}", f"use some of: {', '.join(WAITS)}")
    rows, r = [], stretches(requests)
    for labels, part in _labelled(r[r.finished]):
        for wait in waits:
            x = part[WAITS[wait]]
            seen = ~part.ttfvt_censored if wait == "ttfvt" else x.notna()
            for q in shares:
                of = stats.km_quantile(x, seen, q) if wait == "ttfvt" else stats.quantile(x, q)
                rows.append({**labels, "metric": wait, "q": q}
                            | over_stretches(part, of, unit="s", **options).as_dict())
    return pd.DataFrame(rows)


def goodput(requests: pd.DataFrame, slo: SLO, **options) -> pd.DataFrame:
    """Requests per second that meet every SLO, one row per run: the share that does times the rate offered.

    Columns: run, LABELS, rate, cv, trace (asked for), offered [1/s], good (share), value, lo, hi [1/s], unit, n. Where
    no two stretches differ, as when all requests meet the SLO or none does, the interval is Wilson's for as many
    stretches.
    """
    rows, r = [], stretches(requests).assign(good=lambda frame: metrics.met(frame, slo).astype(float))
    for labels, part in _labelled(r):
        rate, share = arrivals(part.due_s)[0], over_stretches(part, stats.mean(part.good), bounds=(0, 1), **options)
        rows.append({**labels, "offered": rate, "good": share.value, "value": rate * share.value,
                     "lo": rate * share.lo, "hi": rate * share.hi, "unit": "1/s", "n": share.n})
    return pd.DataFrame(rows)


def attainment(requests: pd.DataFrame, slo: SLO, **options) -> pd.DataFrame:
    """Share of the requests served in time for every limit on the first visible token, a row per run and limit.

    The limit between answer tokens stays the SLO's. Columns: run, LABELS, rate, cv, trace (asked for), ttfvt_s (the
    limit: LIMITS of them, evenly spaced in their logarithm from the fastest request to the slowest), value, lo, hi
    (share), unit, n. Empty where nothing ever became visible.
    """
    rows, r = [], _visible_in(stretches(requests), slo)
    seen = r.visible_in_s[np.isfinite(r.visible_in_s)]
    limits = np.geomspace(seen.min(), seen.max(), LIMITS) if len(seen) else []
    for labels, part in _labelled(r):
        for limit in limits:
            share = over_stretches(part, stats.mean((part.visible_in_s <= limit * (1 + 1e-9)).astype(float)),
                                   bounds=(0, 1), **options)
            rows.append({**labels, "ttfvt_s": limit} | share.as_dict())
    return pd.DataFrame(rows)


def kept_limit(requests: pd.DataFrame, slo: SLO, **options) -> Estimate:
    """Shortest limit on the first visible token that the SLO's share of one run's requests keeps [s].

    inf: so many are not visible within any time, or are too slow between answer tokens.
    """
    r = _visible_in(stretches(requests), slo)
    known = np.isfinite(r.visible_in_s)
    return over_stretches(r, stats.km_quantile(r.visible_in_s, known, slo.share), unit="s", **options)


def _visible_in(derived: pd.DataFrame, slo: SLO) -> pd.DataFrame:
    """`visible_in_s`: shortest limit on the first visible token with which a request meets the SLO [s], or inf."""
    ever = metrics.met(derived, SLO(np.inf, slo.tbt_s))
    return derived.assign(visible_in_s=derived.ttfvt_s.where(ever, np.inf))


def knee(requests: pd.DataFrame, slo: SLO, **options) -> Estimate:
    """Largest rate offered up to which the SLO's share of the requests meets it [1/s], runs of rising rate.

    Between two measured rates the share is taken as a straight line; the first crossing counts. inf: never seen to
    fall below; NaN: too low at the lowest rate already, so that the knee lies below what was measured. A lower end of 0
    says the same of it.
    """
    r = stretches(requests).assign(good=lambda frame: metrics.met(frame, slo).astype(float))
    runs = sorted((arrivals(part.due_s)[0], run) for run, part in r.groupby("run", sort=False))
    rates = np.array([rate for rate, _ in runs])
    shares = [stats.on(r.run == run, stats.mean(r.good[r.run == run])) for _, run in runs]

    def of(w: np.ndarray) -> np.ndarray:
        good = np.stack([share(w) for share in shares], axis=1)
        return np.array([_crossing(rates, row, slo.share) for row in good])

    found = over_stretches(r, of, unit="1/s", **options)
    return found if found.value > 0 else Estimate(np.nan, unit="1/s", n=found.n)


def knees(requests: pd.DataFrame, slo: SLO, **options) -> pd.DataFrame:
    """`knee` of Gamma arrivals of every CV: one row per CV that came at more than one rate, the calmest first.

    Columns: cv (asked for), rates (how many), knee (Estimate, 1/s).
    """
    cvs = asked(requests.load).cv
    rows = [{"cv": cv, "rates": part.load.nunique(), "knee": knee(part, slo, **options)}
            for cv, part in requests.groupby(cvs, sort=True) if part.load.nunique() > 1]
    return pd.DataFrame(rows, columns=["cv", "rates", "knee"])


def _crossing(rates: np.ndarray, good: np.ndarray, level: float) -> float:
    """Where the line through (rates, good) first falls below `level`; inf if never, 0 if it starts there."""
    below = np.flatnonzero(good < level)
    if not len(below):
        return np.inf
    k = below[0]
    if k == 0:
        return 0.0
    return float(rates[k - 1] + (rates[k] - rates[k - 1]) * (good[k - 1] - level) / (good[k - 1] - good[k]))


def table(requests: pd.DataFrame, engine: pd.DataFrame, slo: SLO, **options) -> pd.DataFrame:
    """One row per run, as printed: what arrived, whether the engine kept up, what users waited, the client's lag.

    Columns: model, load, offered [1/s], cv (of the gaps, as drawn or recorded), completed [1/s] (within the second half
    of the arrivals), growth (of the queue), verdict, lag_p99, ttft_p50, ttft_p99, ttfvt_p50, ttfvt_p99, queue_p99 [s],
    goodput [1/s], and of the whole run, idle moments included, kv_mean, kv_full_share, waiting_share.
    """
    good = goodput(requests, slo, **options).set_index("run")
    users = metrics.asu(requests).set_index("run")
    read, gauges = (dict(iter(frame.groupby("run", sort=False))) for frame in (engine, samples(engine)))
    rows = []
    for run, part in requests.groupby("run", sort=False):
        (rate, cv), r = arrivals(part.due_s), metrics.derive(part)
        grown = growth(part, read.get(run, engine[:0]))
        rows.append({"model": part.model.iloc[0], "load": part.load.iloc[0], "offered": rate, "cv": cv,
                     "completed": completed(part), "growth": grown,
                     "verdict": verdict(grown),
                     **{name: users[name][run] for name in
                        ("lag_p99", "ttft_p50", "ttft_p99", "ttfvt_p50", "ttfvt_p99")},
                     "queue_p99": _quantile(r.server_queue_s[r.finished], 0.99),
                     "goodput": Estimate.of(good.loc[run, ["value", "lo", "hi", "unit", "n"]].to_dict()),
                     **{name: _whole(metrics.METRICS[name].statistic, gauges.get(run)) for name in GAUGES}})
    return pd.DataFrame(rows)


def _quantile(x: pd.Series, q: float) -> float:
    return float(stats.quantile(x, q)(np.ones((1, len(x))))[0])


def _whole(make, rows: pd.DataFrame | None) -> float:
    """A statistic of all rows; NaN where there are none."""
    return np.nan if rows is None else float(make(rows)(np.ones((1, len(rows))))[0])


def samples(engine: pd.DataFrame) -> pd.DataFrame:
    """Gauge samples of whole runs, idle moments included, with dt_s and `block`, for resampling (`contrast`)."""
    e = engine[engine.kv_use.notna()].sort_values(["run", "session", "t_s"], kind="stable")
    e = e.assign(dt_s=-e.groupby(["run", "session"]).t_s.diff(-1))
    return metrics.in_blocks(e[e.dt_s.notna()])


def work(requests: pd.DataFrame) -> float:
    """Tokens of prompt and output a finished request takes on average [tok]: what one arrival offers to the engine."""
    r = requests[requests.error.isna()]
    return float((r.prompt_tokens + r.output_tokens).mean())


# --- optimisations under bursts -------------------------------------------------------------------------------------

CONTROL = "trial"  # the runs with everything off, made again
ARMS = {CONTROL: 0, "weights": "bf16", "kv_cache": "bf16", "prefix_caching": False, "speculation": "none"}  # off values
JUDGED = ["ttft", "ttfvt", "e2e", "tbt_thinking"]  # throughput is set by the arrivals in an open loop


def effects_by_load(requests: pd.DataFrame, **options) -> pd.DataFrame:
    """What each option changes under each load, by temperature: `effects.table` with load, temperature, option, judged.

    judged: "better", "worse" or "undecided", by whether the interval of the ratio lies below 1, above, or on it. The
    runs with everything off made again (trial 1) are an option of their own, the control; those of all loads and
    temperatures widen the others' intervals by the machine's pace. Pools of one load count as equal: a quantised cache
    may have more tokens in the same bytes.
    """
    requests = requests.assign(kv_pool_tokens=requests.groupby("load").kv_pool_tokens.transform("min"))
    off = requests[np.logical_and.reduce([requests[arm] == value for arm, value in ARMS.items() if arm != CONTROL])]
    # The load stands for the temperature as well, which labels do not tell and which only equal runs may share.
    control = off.assign(load=off.load + " " + off.temperature.astype(str))
    parts = []
    for (temperature, label), part in requests.groupby(["temperature", "load"], sort=False):
        for arm, value in ARMS.items():
            if (part[arm] != value).any():
                others = [other for other in ARMS if other not in (arm, CONTROL)]
                plain = part[np.logical_and.reduce([part[other] == ARMS[other] for other in others])]
                parts.append(effects.table(
                    plain, arm=arm, off=value, metrics=JUDGED, control=control, **options).assign(
                        load=label, temperature=temperature, option=arm))
    if not parts:
        raise AsuError("no run has an option switched on", f"add runs with one of: {', '.join(ARMS)}")
    found = pd.concat(parts, ignore_index=True)
    return found.assign(judged=np.select([found.hi < 1, found.lo > 1], ["better", "worse"], "undecided"))


def verdicts(table: pd.DataFrame | None, bursts: str) -> pd.DataFrame:
    """The verdicts of `effects_by_load` side by side: one row per role, option and metric; none without a table.

    Columns: role, option, arm, metric, steady, under_bursts (verdicts), kept: True, False, or NA where one of the two
    is undecided, which neither confirms nor contradicts the other.
    """
    keys = ["role", "option", "arm", "metric"]
    if table is None:
        return pd.DataFrame(columns=[*keys, "steady", "under_bursts", "kept"])
    table = table[table.option != CONTROL]
    sides = [table[(table.load == bursts) == side].set_index(keys).judged for side in (False, True)]
    both = pd.concat(sides, axis=1, keys=["steady", "under_bursts"], join="inner").reset_index()
    if both.empty:
        raise AsuError(f"no option was measured under {bursts} and under another load", "add the runs that lack")
    decided = (both.steady != "undecided") & (both.under_bursts != "undecided")
    return both.assign(kept=(both.steady == both.under_bursts).astype("boolean").where(decided))
