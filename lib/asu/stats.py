"""Numbers with intervals: bootstrap over problems, Wilson, Kaplan-Meier, slopes and rank correlation.

A *statistic* here is a function of row weights: it takes an array (draws, rows) and returns one value per draw.
Weights of one give the estimate, resampled cluster counts give its interval, so every statistic is written once,
is vectorised over draws, and two statistics of the same weights are paired without further work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

Statistic = Callable[[np.ndarray], np.ndarray]

DRAWS = 1000
FEWEST_CLUSTERS = 5  # from which on a bootstrapped interval covers as promised
LEVEL = 0.95
_CELLS_AT_ONCE = 4_000_000  # draws x rows held in memory at a time
_UNDEFINED_SHARE = 0.1  # more draws without a value than this: no interval


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `n` counts what was resampled. NaN: not known; inf: not reached."""

    value: float
    lo: float = np.nan
    hi: float = np.nan
    unit: str = ""
    n: int = 0

    @property
    def known(self) -> bool:
        """Whether there is a value at all."""
        return not np.isnan(self.value)

    @property
    def has_interval(self) -> bool:
        """Whether both ends of the interval are known."""
        return not (np.isnan(self.lo) or np.isnan(self.hi))

    @property
    def upper(self) -> float:
        """Upper end of the interval; the value where there is none."""
        return self.hi if self.has_interval else self.value

    def as_dict(self) -> dict:
        """Plain data with the fields of this class, for records."""
        return asdict(self)

    @classmethod
    def of(cls, number: "Estimate | Mapping | float | None") -> "Estimate":
        """Estimate from a record: a mapping with `value` (absent or null ends are unknown), or a bare number."""
        if isinstance(number, Estimate):
            return number
        fields = dict(number) if isinstance(number, Mapping) else {"value": number}
        ends = {key: np.nan if fields.get(key) is None else float(fields[key]) for key in ("value", "lo", "hi")}
        return cls(**ends, unit=fields.get("unit") or "", n=int(fields.get("n") or 0))

    def __str__(self) -> str:
        if not self.known:
            return "not known"
        sizes = [abs(x) for x in (self.value, self.lo, self.hi) if np.isfinite(x) and x != 0]
        decimals = int(np.clip(2 - np.floor(np.log10(max(sizes))), 0, 6)) if sizes else 0

        def show(x: float) -> str:
            return f"{x:,.{decimals}f}" if np.isfinite(x) else ("∞" if x > 0 else "−∞")

        text = show(self.value) if np.isfinite(self.value) else "not reached"
        if self.has_interval and np.isfinite([self.value, self.lo]).any():
            text += f" [{show(self.lo)}, {show(self.hi)}]"
        return f"{text} {self.unit}".strip()


# --- statistics of row weights -------------------------------------------------------------------------------------


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0 or both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)


def mean(x: Sequence[float]) -> Statistic:
    """Weighted mean of the values that are known."""
    x = np.asarray(x, float)
    known = ~np.isnan(x)
    return ratio_of_sums(np.where(known, x, 0.0), known)


def ratio_of_sums(numerator: Sequence[float], denominator: Sequence[float]) -> Statistic:
    """Sum of `numerator` over sum of `denominator`; rows must be complete."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return lambda w: _divide(w @ numerator, w @ denominator)


def maximum(x: Sequence[float]) -> Statistic:
    """Largest value among rows of positive weight."""
    x = np.asarray(x, float)

    def of(w: np.ndarray) -> np.ndarray:
        top = np.where((w > 0) & ~np.isnan(x), x, -np.inf).max(axis=1, initial=-np.inf)
        return np.where(np.isfinite(top), top, np.nan)

    return of


def minimum(x: Sequence[float]) -> Statistic:
    """Smallest value among rows of positive weight."""
    top = maximum(-np.asarray(x, float))
    return lambda w: -top(w)


def quantile(x: Sequence[float], q: float, weights: Sequence[float] | None = None) -> Statistic:
    """Smallest value with at least a share `q` of the weight at or below it; `weights` multiply the row weights."""
    x = np.asarray(x, float)
    base = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    rows = np.flatnonzero(~np.isnan(x) & (base > 0))
    rows = rows[np.argsort(x[rows], kind="stable")]

    def of(w: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.full(len(w), np.nan)
        below = np.cumsum(w[:, rows] * base[rows], axis=1)
        total = below[:, -1]
        first = np.argmax((below >= q * total[:, None] * (1 - 1e-12)) & (below > 0), axis=1)
        return np.where(total > 0, x[rows][first], np.nan)

    return of


def _survival(w: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Kaplan-Meier survival after each row; rows sorted by time, at equal times the seen ones first."""
    at_risk = np.cumsum(w[:, ::-1], axis=1)[:, ::-1]
    gone = np.divide(w * seen, at_risk, out=np.zeros_like(w, dtype=float), where=at_risk > 0)
    return np.cumprod(1 - gone, axis=1)


def _by_time(time: Sequence[float], seen: Sequence[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with a known time in survival order, their times, and whether the event was seen."""
    time, seen = np.asarray(time, float), np.asarray(seen, bool)
    rows = np.lexsort((~seen, time))
    rows = rows[~np.isnan(time[rows])]
    return rows, time[rows], seen[rows]


def km_quantile(time: Sequence[float], seen: Sequence[bool], q: float = 0.5) -> Statistic:
    """Time by which a share `q` had the event, from the survivor curve; inf where the curve never falls that far."""
    rows, time, seen = _by_time(time, seen)

    def of(w: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.full(len(w), np.nan)
        w = w[:, rows]
        reached = _survival(w, seen) <= 1 - q + 1e-9
        value = np.where(reached.any(axis=1), time[reached.argmax(axis=1)], np.inf)
        return np.where(w.sum(axis=1) > 0, value, np.nan)

    return of


def km_mean(time: Sequence[float], seen: Sequence[bool], until: float | None = None) -> Statistic:
    """Area under the survivor curve from 0 to `until` (the longest time where None): the mean of min(time, until)."""
    rows, time, seen = _by_time(time, seen)
    if len(rows) and until is None:
        until = time[-1]

    def of(w: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.full(len(w), np.nan)
        w = w[:, rows]
        survival = np.hstack([np.ones((len(w), 1)), _survival(w, seen)])
        edges = np.minimum(np.concatenate([[0.0], time, [max(until, time[-1])]]), until)
        return np.where(w.sum(axis=1) > 0, survival @ np.diff(edges), np.nan)

    return of


def _moments(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted covariance and variances of x and y, per draw; x and y may be (rows,) or (draws, rows)."""
    total = w.sum(axis=1, keepdims=True)
    dx = x - _divide((w * x).sum(axis=1, keepdims=True), total)
    dy = y - _divide((w * y).sum(axis=1, keepdims=True), total)
    return (w * dx * dy).sum(axis=1), (w * dx * dx).sum(axis=1), (w * dy * dy).sum(axis=1)


def _complete(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    rows = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    return rows, x[rows], y[rows]


def slope(x: Sequence[float], y: Sequence[float]) -> Statistic:
    """Least-squares slope of y on x over complete rows; NaN where x does not vary."""
    rows, x, y = _complete(x, y)

    def of(w: np.ndarray) -> np.ndarray:
        cov, var, _ = _moments(x, y, w[:, rows])
        return _divide(cov, np.where(var > 1e-12, var, 0))

    return of


def correlation(x: Sequence[float], y: Sequence[float]) -> Statistic:
    """Pearson correlation over complete rows; NaN where either does not vary."""
    rows, x, y = _complete(x, y)
    return lambda w: _pearson(x, y, w[:, rows])


def spearman(x: Sequence[float], y: Sequence[float]) -> Statistic:
    """Spearman rank correlation over complete rows, ranks taken anew in every draw, ties at their middle rank."""
    rows, x, y = _complete(x, y)
    return lambda w: _pearson(_ranks(x, w[:, rows]), _ranks(y, w[:, rows]), w[:, rows])


def _pearson(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    cov, var_x, var_y = _moments(x, y, w)
    return _divide(cov, np.where((var_x > 1e-12) & (var_y > 1e-12), np.sqrt(var_x * var_y), 0))


def _ranks(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Middle ranks of x when row i stands there w[i] times: (draws, rows)."""
    _, group = np.unique(x, return_inverse=True)
    counts = np.stack([np.bincount(group, weights=row) for row in w]) if len(x) else np.zeros((len(w), 0))
    return (np.cumsum(counts, axis=1) - counts / 2 + 0.5)[:, group]


def on(mask: Sequence[bool], statistic: Statistic) -> Statistic:
    """`statistic` of the rows in `mask` only; it must have been made from those rows."""
    rows = np.flatnonzero(np.asarray(mask))
    return lambda w: statistic(w[:, rows])


def difference(a: Statistic, b: Statistic) -> Statistic:
    """a − b, of the same draw."""
    return lambda w: a(w) - b(w)


def ratio(a: Statistic, b: Statistic) -> Statistic:
    """a / b, of the same draw; NaN where b is 0."""
    return lambda w: _divide(a(w), b(w))


def average(parts: Sequence[Statistic]) -> Statistic:
    """Mean over several statistics, those without a value in a draw left out."""
    return lambda w: _nan_mean(np.stack([part(w) for part in parts]))


def geometric_mean(parts: Sequence[Statistic]) -> Statistic:
    """Geometric mean over several positive statistics (ratios), those without a value in a draw left out."""

    def of(w: np.ndarray) -> np.ndarray:
        values = np.stack([part(w) for part in parts])
        return np.exp(_nan_mean(np.log(np.where(values > 0, values, np.nan))))

    return of


def largest(parts: Sequence[Statistic]) -> Statistic:
    """Largest of several statistics, per draw; a part without a value is left out."""
    return lambda w: reduce(np.fmax, [part(w) for part in parts])


def smallest(parts: Sequence[Statistic]) -> Statistic:
    """Smallest of several statistics, per draw; a part without a value is left out."""
    return lambda w: reduce(np.fmin, [part(w) for part in parts])


def _nan_mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))


# --- intervals -----------------------------------------------------------------------------------------------------


def bootstrap(statistic: Statistic, clusters, *, strata=None, unit: str = "", n_boot: int = DRAWS,
              level: float = LEVEL, seed: int = 0, bounds: tuple[float, float] | None = None) -> Estimate:
    """Estimate with an expanded percentile interval, whole clusters resampled within strata.

    clusters, strata: one label per row (a Series, or a frame whose columns together are the label).
    The percentiles are widened for few clusters (Hesterberg 2015, sec. 5.3): by t instead of z and by
    √(clusters/(clusters − strata)). In simulation it covers as promised from FEWEST_CLUSTERS on, too seldom below.
    No interval (NaN) where a stratum leaves nothing to resample or over a tenth of the draws have no value.
    bounds: least and greatest value of a share, or of a difference of shares. That no cluster differs to one side does
    not show that none ever would: an end that no draw passes lies as much farther out, within the bounds, as Wilson's
    for n equal outcomes. In simulation, 2 in 100 problems better and 6 worse: covers 97 % at n = 20, without it 87 %.
    Of strata that count alike n is what their mean is worth, strata²/Σ(1/clusters): a small one hides most.
    """
    rows = len(clusters)
    if rows == 0:
        return Estimate(np.nan, unit=unit)
    value = float(statistic(np.ones((1, rows)))[0])
    stratum = _codes(strata) if strata is not None else np.zeros(rows, int)
    cluster = _codes(pd.DataFrame({"stratum": stratum, "cluster": _codes(clusters)}))
    k = cluster.max() + 1
    members = [np.unique(cluster[stratum == s]) for s in np.unique(stratum)]
    freedom = k - len(members)
    if freedom < 1 or np.isnan(value):
        return Estimate(value, unit=unit, n=int(k))

    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // rows)
    draws = []
    for done in range(0, n_boot, at_once):
        counts = np.zeros((min(at_once, n_boot - done), k))
        for part in members:
            counts[:, part] = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=len(counts))
        draws.append(statistic(counts[:, cluster]))
    draws = np.concatenate(draws)
    draws = draws[~np.isnan(draws)]
    if len(draws) < (1 - _UNDEFINED_SHARE) * n_boot:
        return Estimate(value, unit=unit, n=int(k))
    tail = scipy_stats.norm.cdf(np.sqrt(k / freedom) * scipy_stats.t.ppf((1 - level) / 2, freedom))
    # inverted_cdf picks a drawn value, so that a draw of inf (a median not reached) stays inf
    lo, hi = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
    if bounds:
        z2 = scipy_stats.norm.ppf((1 + level) / 2) ** 2
        worth = len(members) ** 2 / sum(1 / len(part) for part in members)
        unseen = z2 / (worth + z2)
        lo, hi = np.clip([lo - unseen * (lo == draws.min()), hi + unseen * (hi == draws.max())], *bounds)
    return Estimate(value, float(lo), float(hi), unit, int(k))


def _codes(labels) -> np.ndarray:
    """0..k−1, one code per distinct label."""
    if isinstance(labels, pd.DataFrame):
        return labels.groupby(list(labels.columns), sort=False, dropna=False).ngroup().to_numpy()
    return pd.factorize(np.asarray(labels), use_na_sentinel=False)[0]


def by_group(frame: pd.DataFrame, by: list[str], estimator: Callable[[pd.DataFrame], Estimate]) -> pd.DataFrame:
    """One row per group: the `by` columns, then value, lo, hi, unit, n of `estimator(rows of the group)`."""
    rows = [dict(zip(by, key, strict=True)) | estimator(part).as_dict()
            for key, part in frame.groupby(by, sort=False, dropna=False)]
    return pd.DataFrame(rows, columns=[*by, "value", "lo", "hi", "unit", "n"])


def wilson(successes: int, n: int, level: float = LEVEL, unit: str = "") -> Estimate:
    """Wilson score interval of one proportion; unknown for n = 0."""
    if n == 0:
        return Estimate(np.nan, unit=unit)
    interval = scipy_stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), unit, int(n))


def kaplan_meier(time: Sequence[float], seen: Sequence[bool], level: float = LEVEL) -> pd.DataFrame:
    """Survivor curve: time, at_risk, events, censored, survival, lo, hi; one row per distinct time, after t = 0.

    time: until the event or the end of observation; seen: False where the event was still to come at `time`.
    lo, hi: pointwise, Greenwood's variance on the log(−log) scale; they take rows as independent.
    """
    rows = pd.DataFrame({"time": np.asarray(time, float), "seen": np.asarray(seen, bool)}).dropna()
    table = rows.groupby("time").agg(events=("seen", "sum"), total=("seen", "size")).reset_index()
    table["censored"] = table.total - table.events
    table["at_risk"] = table.total[::-1].cumsum()[::-1]
    table["survival"] = (1 - table.events / table.at_risk).cumprod()
    left = table.at_risk - table.events
    greenwood = (table.events / (table.at_risk * left.where(left > 0))).cumsum()
    log_survival = np.log(table.survival.where((table.survival > 0) & (table.survival < 1)))
    half = scipy_stats.norm.ppf((1 + level) / 2) * np.sqrt(greenwood) / log_survival.abs()
    table["lo"] = table.survival ** np.exp(half)
    table["hi"] = table.survival ** np.exp(-half)
    start = {"time": 0.0, "at_risk": len(rows), "events": 0, "censored": 0, "survival": 1.0, "lo": np.nan, "hi": np.nan}
    columns = list(start)
    return pd.concat([pd.DataFrame([start]), table[columns]], ignore_index=True)
