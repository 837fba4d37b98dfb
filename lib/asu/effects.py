"""What an option changes: runs with it on against runs with it off, on the same problems with the same seeds, paired.

An *arm* is the label that tells them apart (weights, kv_cache, prefix_caching, speculation, engine, trial);
everything else about two runs that are compared is equal. `trial` is the control: the same runs made again, which shows
what no difference looks like on this machine.

Intervals come from resampling the problems (for KV use: twentieths of both runs), the same on both sides. That holds
what hangs on the problems, but not that the machine is faster in one minute than in the next, which moves all requests
of a run together, and of all runs of a server more or less. Where the frame has the off runs made again, effects on
time are widened by how far those are apart. A study makes them last, on servers of their own; published ones that
followed at once on the same server (data/runs says which) hold less of the machine's changes than that.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from asu import metrics, stats
from asu.contrast import SETTINGS, groups, known_until, kv_samples, over_problems
from asu.errors import AsuError
from asu.stats import Estimate

CONTROL = "made again"  # how the arm `trial` is called in tables and figures
SERVER = ["engine", "pair", "size", "role", "max_requests", "kv_pool_tokens"]  # runs of one arm that share a server
RUN = [*SERVER, "task", "load", "prefix"]  # one of the off runs; each gives one distance

POOLED = 0.25  # level of the test by which servers differ
ANSWERED = 0.5  # share of right answers from which on a model has something to lose

COLUMNS = ["arm", "metric", "how", "off", "on", "value", "lo", "hi", "unit", "n", "note"]


@dataclass(frozen=True)
class Effect:
    """One thing an option may change: on − off or on / off of what `of` makes from rows of one arm.

    unit: that of the values on and off; rows: which frame they are made from (requests or samples); timed: whether the
    machine's pace moves it.
    """

    name: str
    title: str
    how: str
    unit: str
    better: str
    rows: str
    of: Callable[[pd.DataFrame], stats.Statistic]
    timed: bool = True

    @property
    def change(self) -> str:
        """Unit of the effect itself."""
        return self.unit if self.how == "difference" else "×"


def _mean(rows: pd.DataFrame, column: str) -> stats.Statistic:
    return stats.mean(rows[column])


def _ttfvt(rows: pd.DataFrame) -> stats.Statistic:
    return stats.km_mean(rows.ttfvt_observed_s, ~rows.ttfvt_censored, until=rows.until_s.iloc[0])


def _tbt(rows: pd.DataFrame, phase: str) -> stats.Statistic:
    return stats.ratio_of_sums(rows[f"{phase}_span_s"], rows[f"{phase}_gaps"])


def _tps(rows: pd.DataFrame) -> stats.Statistic:
    return stats.ratio_of_sums(rows.output_tokens, rows.share_s)


def _time_per_request(rows: pd.DataFrame) -> stats.Statistic:
    return stats.mean(rows.share_s)


def _energy(rows: pd.DataFrame) -> stats.Statistic:
    return stats.ratio_of_sums(rows.energy_j, rows.output_tokens)


def _kv(rows: pd.DataFrame, which: str) -> stats.Statistic:
    return metrics.kv_statistics(rows)[which]


EFFECTS = {effect.name: effect for effect in (
    Effect("accuracy", "Accuracy", "difference", "share", "higher", "requests", partial(_mean, column="hit"),
           timed=False),
    Effect("output_tokens", "Output tokens", "ratio", "tok", "", "requests", partial(_mean, column="output_tokens"),
           timed=False),
    Effect("e2e", "E2E", "ratio", "s", "lower", "requests", partial(_mean, column="e2e_s")),
    Effect("ttft", "TTFT", "ratio", "s", "lower", "requests", partial(_mean, column="ttft_s")),
    Effect("ttfvt", "TTFVT", "ratio", "s", "lower", "requests", _ttfvt),
    Effect("tbt_thinking", "TBT, thinking", "ratio", "s", "lower", "requests", partial(_tbt, phase="thinking")),
    Effect("tbt_answer", "TBT, answer", "ratio", "s", "lower", "requests", partial(_tbt, phase="answer")),
    Effect("tps", "Throughput", "ratio", "tok/s", "higher", "requests", _tps),
    Effect("time_per_request", "Time per request", "ratio", "s", "lower", "requests", _time_per_request),
    Effect("energy_per_token", "GPU energy per token", "ratio", "J/tok", "lower", "requests", _energy),
    Effect("kv_mean", "KV use, mean", "ratio", "share of pool", "", "samples", partial(_kv, which="mean"), timed=False),
    Effect("kv_peak", "KV use, peak", "ratio", "share of pool", "", "samples", partial(_kv, which="peak"), timed=False),
)}


def named(on, arm: str) -> str:
    """How a value of an arm is called in tables and figures."""
    if arm == "trial":
        return CONTROL if on == 1 else f"{CONTROL} ({on})"
    return {True: "on", False: "off"}[bool(on)] if isinstance(on, bool | np.bool_) else str(on)


def table(requests: pd.DataFrame, *, engine: pd.DataFrame | None = None, arm: str, off,
          by: Sequence[str] = ("pair", "size", "role"), metrics: Iterable[str] | None = None,
          events: pd.DataFrame | None = None, control: pd.DataFrame | None = None, **options) -> pd.DataFrame:
    """Every effect of every value of `arm` against `off`: one row per group of `by`, value and metric.

    Columns: `by`, arm (the value that is on, as `named`), metric, how, off, on (the two values, mean over sets and
    sizes, geometric for ratios), value, lo, hi, unit (of the effect), n (what was resampled), note (what is missing
    and why). A group without grades has no row for accuracy. Effects on KV use need `engine`, one on energy a column
    energy_j (of `metrics.energy_shares`); with `events`, times between tokens come from the stream's events, which
    matters where one event brings several tokens. control: requests whose runs made again tell the machine's changes of
    pace, where those of `requests` are few.
    options: those of `stats.bootstrap`. AsuError where a run with the option on has none with it off to stand beside.
    """
    by, wanted = list(by), [EFFECTS[name] for name in _wanted(metrics, requests, engine)]
    _check(requests, arm, off, by)
    pace, rows = _pace(requests if control is None else control, engine, events, arm, off), []
    for key, part in requests.groupby(by, sort=False, dropna=False) if by else [((), requests)]:
        label = dict(zip(by, key, strict=True))
        for on in part.loc[part[arm] != off, arm].drop_duplicates():
            pairs = _Pairs(part, engine, events, arm, on, off)
            for effect in wanted:
                found, note = _effect(effect, pairs, options)
                row = _row(effect, pairs, _widened(found, effect, pace, [pairs.made]), note)
                rows += [] if row is None else [label | row]
    return pd.DataFrame(rows, columns=[*by, *COLUMNS])


def estimate(requests: pd.DataFrame, name: str, *, arm: str, on, off, engine: pd.DataFrame | None = None,
             events: pd.DataFrame | None = None, control: pd.DataFrame | None = None, **options) -> Estimate:
    """One effect over all settings in the frame (sets, sizes, roles): their mean, geometric for a ratio.

    Not known where nothing was graded, or no gauge read. Filter the frame for one role or size, and pass the whole one
    as `control`: how far runs made again are apart is known the better, the more runs tell.
    """
    _check(requests, arm, off, [])
    effect = EFFECTS[_wanted([name], requests, engine)[0]]
    pairs = _Pairs(requests, engine, events, arm, on, off)
    found, _ = _effect(effect, pairs, options)
    control = requests if control is None else control
    return _widened(found, effect, _pace(control, engine, events, arm, off), [pairs.made])


def special(requests: pd.DataFrame, name: str, *, arm: str, on, off, engine: pd.DataFrame | None = None,
            events: pd.DataFrame | None = None, control: pd.DataFrame | None = None, **options) -> Estimate:
    """How far an effect is one on reasoning models: that on RLLMs minus that on LLMs, or over it for a ratio.

    Both are means over settings, of the same draws of problems; not known where one of the two is not. control: as in
    `estimate`.
    """
    _check(requests, arm, off, ["role"])
    effect = EFFECTS[_wanted([name], requests, engine)[0]]
    pairs = _Pairs(requests, engine, events, arm, on, off)
    rows, _ = pairs.rows(effect.rows)
    of_role = {role: _changes(effect, pairs, role)[1] for role in ("RLLM", "LLM")}
    if None in of_role.values():
        return Estimate(np.nan, unit=effect.change)
    combine = stats.difference if effect.how == "difference" else stats.ratio
    found = _interval(effect, rows, combine(of_role["RLLM"], of_role["LLM"]), 2.0, options)
    # the two roles' runs err apart from each other, so their variances add
    runs = [part for _, part in pairs.sent[pairs.sent[arm] == on].groupby("role")]
    control = requests if control is None else control
    return paced(found, name, on=runs, arm=arm, off=off, control=control, engine=engine, events=events)


def answered(requests: pd.DataFrame, *, arm: str, off) -> pd.DataFrame:
    """The rows of sets and sizes that both twins, with the option off, answer right at least ANSWERED of the time.

    On a set that one of them fails anyway only the other can lose, and any loss would pass for one on its role.
    """
    plain = metrics.derive(requests[requests[arm] == off])
    right = plain.groupby(["size", "task", "role"]).hit.mean().unstack().reindex(columns=["RLLM", "LLM"])
    both = right.index[(right >= ANSWERED).all(axis=1)]
    return requests[pd.MultiIndex.from_frame(requests[["size", "task"]]).isin(both)].reset_index(drop=True)


def paced(found: Estimate, name: str, *, on: Sequence[pd.DataFrame], arm: str, off, control: pd.DataFrame,
          engine: pd.DataFrame | None = None, events: pd.DataFrame | None = None, one_server: bool = False
          ) -> Estimate:
    """`found` with the machine's changes of pace added, as those of the effect `name` in the control's runs made again.

    For numbers on time that are made of several effects. on: the requests of each, with the option on; the more servers
    and runs they come from, the less the pace of one counts, and the paces of several effects add. one_server: both
    sides were served by one server, so that only what changes from run to run counts.
    """
    pace = _pace(control, engine, events, arm, off)
    return _widened(found, EFFECTS[name], pace, [_made(part) for part in on], one_server)


def _wanted(names: Iterable[str] | None, requests: pd.DataFrame, engine: pd.DataFrame | None) -> list[str]:
    powered = "energy_j" in requests and requests.energy_j.notna().any()
    able = [name for name, effect in EFFECTS.items()
            if (engine is not None or effect.rows != "samples") and (powered or name != "energy_per_token")]
    names = able if names is None else list(names)
    unknown = [name for name in names if name not in EFFECTS]
    if unknown:
        raise AsuError(f"there is no effect on {', '.join(unknown)}", f"use some of: {', '.join(EFFECTS)}")
    blind = [name for name in names if name not in able]
    if "energy_per_token" in blind:
        raise AsuError("an effect on energy needs the GPU's power", "add it to the requests of a GPU: "
                       "requests.assign(energy_j=metrics.energy_shares(requests, study.host()))")
    if blind:
        raise AsuError(f"an effect on {', '.join(blind)} needs the engine's gauges", "pass engine=study.engine()")
    return names


def _check(requests: pd.DataFrame, arm: str, off, by: list[str]) -> None:
    missing = [column for column in [arm, *by] if column not in requests]
    if missing:
        raise AsuError(f"the requests have no label {', '.join(missing)}",
                       f"use some of: {', '.join(c for c in [*SETTINGS, 'role'] if c in requests)}")
    if not (requests[arm] == off).any():
        raise AsuError(f"no run has {arm} {off!r}, which the others are compared with",
                       f"add it to the study; it has {', '.join(map(repr, requests[arm].unique().tolist()))}")


_Side = tuple[np.ndarray, pd.DataFrame]  # mask over the rows of a comparison, and those rows


class _Pairs:
    """The rows of one comparison, on against off; each frame is made when the first effect asks for it."""

    def __init__(self, requests: pd.DataFrame, engine: pd.DataFrame | None, events: pd.DataFrame | None, arm: str,
                 on, off):
        self.arm, self.on, self.off, self.events = arm, on, off, events
        self.sent = self._both(requests)
        self.engine = None if engine is None else engine[engine.run.isin(self.sent.run)]
        if self.sent.empty:
            raise AsuError(f"there is nothing to compare: no setting was run with {arm} {on} and with {arm} {off}",
                           f"add runs so that both have the same {', '.join(_equal(requests, arm))}")
        self._made: dict[str, tuple[pd.DataFrame, str]] = {}
        self._sides: dict[str, list[tuple[str, _Side, _Side]]] = {}

    @property
    def made(self) -> tuple[int, int]:
        """(servers, runs) with the option on."""
        return _made(self.sent[self.sent[self.arm] == self.on])

    def rows(self, which: str) -> tuple[pd.DataFrame, str]:
        """(rows, note) of "requests" or "samples": those of settings that have both arms."""
        if which not in self._made:
            self._made[which] = getattr(self, f"_{which}")()
        return self._made[which]

    def parts(self, which: str, of: Callable, combine: Callable, role: str | None = None) -> list[stats.Statistic]:
        """One statistic of `rows(which)` per setting, of one role or of each; none where there are no rows."""
        if which not in self._sides:
            self._sides[which] = list(self._cut(self.rows(which)[0]))
        return [combine(*(stats.on(mask, of(rows)) for mask, rows in sides))
                for setting_role, *sides in self._sides[which] if role in (None, setting_role)]

    def _cut(self, rows: pd.DataFrame) -> Iterator[tuple[str, _Side, _Side]]:
        """(role, side that is on, side that is off) of each setting, once for all effects."""
        for setting in groups(rows, ["setting"]) if len(rows) else ():
            on, off = (setting & (rows[self.arm] == value).to_numpy() for value in (self.on, self.off))
            sides = rows[on], rows[off]
            if "problem_id" in rows and set(sides[0].problem_id) != set(sides[1].problem_id):
                raise AsuError(f"{self.on} and {self.off} were asked different problems",
                               "compare runs over the same problems")
            yield sides[0].role.iloc[0], (on, sides[0]), (off, sides[1])

    def _both(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of settings that have both arms, with `setting`, which is equal on both sides."""
        frame = frame[frame[self.arm].isin([self.on, self.off])].reset_index(drop=True)
        setting = frame.groupby(_equal(frame, self.arm), dropna=False, sort=False)
        frame["setting"] = setting.ngroup()
        return frame[setting[self.arm].transform("nunique") == 2].reset_index(drop=True)

    def _requests(self) -> tuple[pd.DataFrame, str]:
        r = metrics.derive(self.sent).assign(share_s=metrics.time_shares(self.sent))
        pair = pd.MultiIndex.from_frame(r[["setting", "request_id"]])
        lost = pair[~r.finished].unique()
        r = self._both(r[~pair.isin(lost)])
        until = {setting: known_until(part, [self.arm]) for setting, part in r.groupby("setting")}
        r = _with_gaps(r, self.events).assign(until_s=r.setting.map(until))
        return r, f"{len(lost)} requests failed on one side and are left out on both" if len(lost) else ""

    def _samples(self) -> tuple[pd.DataFrame, str]:
        samples = kv_samples(self.engine)
        read = self._both(samples) if len(samples) else samples
        known, asked = (frame.task.nunique() for frame in (read, self.sent))
        return read, f"gauge read on {known} of {asked} sets" if known < asked else ""


def _made(frame: pd.DataFrame) -> tuple[int, int]:
    """(servers, runs) that the requests of one arm come from."""
    return _by(frame, SERVER).ngroups, _by(frame, RUN).ngroups


def _equal(frame: pd.DataFrame, arm: str) -> list[str]:
    """Labels that two runs share which are compared by `arm`."""
    return [key for key in [*SETTINGS, "role"] if key in frame and key != arm]


def _with_gaps(r: pd.DataFrame, events: pd.DataFrame | None) -> pd.DataFrame:
    """r with the time between tokens of each phase and the number of gaps it holds: <phase>_span_s, <phase>_gaps.

    A phase without two tokens has no gap. From the requests alone the tokens of the phase's first event count as if
    they had come one after the other.
    """
    if events is None:
        gaps = {"thinking": r.thinking_tokens - r.visible_s.isna(), "answer": r.answer_tokens - 1}
        known = {phase: r[f"tbt_{phase}_s"].notna() for phase in gaps}
        return r.assign(**{f"{phase}_gaps": gaps[phase].where(known[phase], 0) for phase in gaps},
                        **{f"{phase}_span_s": (r[f"tbt_{phase}_s"] * gaps[phase]).fillna(0) for phase in gaps})
    gaps = metrics.tbt(events, r)
    sums = gaps.assign(span_s=gaps.gap_s * gaps.tokens).groupby(["run", "request_id", "phase"])[["span_s", "tokens"]]
    sums = sums.sum().rename(columns={"tokens": "gaps"}).unstack("phase")
    sums.columns = [f"{phase}_{what}" for what, phase in sums.columns]
    wanted = [f"{phase}_{what}" for phase in ("thinking", "answer") for what in ("span_s", "gaps")]
    return r.join(sums.reindex(columns=wanted), on=["run", "request_id"]).fillna(dict.fromkeys(wanted, 0.0))


def _combined(effect: Effect, parts: list[stats.Statistic]) -> stats.Statistic:
    return (stats.average if effect.how == "difference" else stats.geometric_mean)(parts)


def _value(statistic: stats.Statistic, rows: pd.DataFrame) -> float:
    return float(statistic(np.ones((1, len(rows))))[0])


def _changes(effect: Effect, pairs: _Pairs, role: str | None = None
             ) -> tuple[pd.DataFrame, stats.Statistic | None, str]:
    """(rows, the effect over all settings, note); no statistic where there is nothing to make it from."""
    rows, note = pairs.rows(effect.rows)
    parts = pairs.parts(effect.rows, effect.of, stats.difference if effect.how == "difference" else stats.ratio, role)
    return rows, _combined(effect, parts) if parts else None, note


def _effect(effect: Effect, pairs: _Pairs, options: dict) -> tuple[Estimate, str]:
    """The effect over all settings with the interval of what it hangs on in the runs, and a note."""
    rows, change, note = _changes(effect, pairs)
    if change is None:
        return Estimate(np.nan, unit=effect.change), note
    return _interval(effect, rows, change, 1.0, options), note


def _interval(effect: Effect, rows: pd.DataFrame, change: stats.Statistic, reach: float, options: dict) -> Estimate:
    """`change` with the interval of what it hangs on in the runs; reach: the most that a share can change."""
    if effect.rows == "requests":
        bounds = (-reach, reach) if effect.unit == "share" else None
        return over_problems(rows, change, unit=effect.change, bounds=bounds, **options)
    return stats.bootstrap(change, rows[["setting", "block"]], strata=rows.setting, unit=effect.change, **options)


class _Pace:
    """How far the off runs are from the same made again, run by run: what the machine's changes of pace amount to."""

    def __init__(self, requests: pd.DataFrame, engine, events, arm: str, off):
        self._servers, self._logs = [], {}
        if arm != "trial" and "trial" in requests:
            plain = requests[requests[arm] == off]
            for _, server in _by(plain, SERVER):
                again = [_Pairs(part, engine, events, "trial", 1, 0) for _, part in _by(server, RUN)
                         if {0, 1} <= set(part.trial)]
                self._servers += [again] if again else []

    def logs(self, effect: Effect) -> list[np.ndarray]:
        """ln(made again / off) of an effect, one for each run that was made again, by the server that made them."""
        if effect.name not in self._logs:
            changes = [[_changes(effect, pairs) for pairs in server] for server in self._servers]
            ratios = [[_value(change, rows) for rows, change, _ in server if change] for server in changes]
            logs = [np.log([ratio for ratio in server if ratio > 0]) for server in ratios]
            self._logs[effect.name] = [part for part in logs if len(part)]
        return self._logs[effect.name]


def _by(frame: pd.DataFrame, keys: list[str]):
    return frame.groupby([key for key in keys if key in frame], dropna=False, sort=False)


_PACES: deque[tuple[list, _Pace]] = deque(maxlen=8)  # those made last: many effects have the same runs made again


def _pace(requests: pd.DataFrame, engine: pd.DataFrame | None, events: pd.DataFrame | None, arm: str, off) -> _Pace:
    """The pace of these very frames, made once; frames are never changed in place."""
    frames = (requests, engine, events)
    for (*refs, known_arm, known_off), pace in _PACES:
        same = all((None if ref is None else ref()) is frame for ref, frame in zip(refs, frames, strict=True))
        if same and known_arm == arm and known_off == off:
            return pace
    pace = _Pace(*frames, arm, off)
    _PACES.append(([*(None if frame is None else weakref.ref(frame) for frame in frames), arm, off], pace))
    return pace


def _widened(found: Estimate, effect: Effect, pace: _Pace, made: Sequence[tuple[int, int]],
             one_server: bool = False) -> Estimate:
    """`found` with the machine's own changes of pace added, as a variance, to its interval.

    made: (servers, runs) that each of the effects in `found` is a mean over. Runs of one server follow each other and
    share its pace, so that more of them do not even it out; more servers do. An effect on no time, or without a
    control, stays as it is.
    """
    if not (effect.timed and found.has_interval) or not (logs := pace.logs(effect)):
        return found
    if not (spread := _spread(logs, made, one_server)):
        return found
    low, high = (np.hypot(np.log(found.value / end), spread) for end in (found.lo, found.hi))
    return replace(found, lo=float(found.value * np.exp(-low)), hi=float(found.value * np.exp(high)))


def _spread(logs: list[np.ndarray], made: Sequence[tuple[int, int]], one_server: bool) -> float:
    """Half the interval of the ln of a mean over `made`, from ln(made again / off) by server; 0 where nothing tells it.

    Two components of variance by the method of moments: between servers, around nothing, and within a server, between
    its runs; degrees of freedom by Satterthwaite. Where servers differ by no more than their runs make likely, all runs
    are pooled (T. A. Bancroft, Biometrics 1964: an F test at POOLED). Where none made two runs again all is between,
    of runs of one server too.
    """
    free = len(logs), sum(len(part) - 1 for part in logs)
    within = sum(((part - part.mean()) ** 2).sum() for part in logs) / free[1] if free[1] else 0.0
    of_means, each = np.mean([part.mean() ** 2 for part in logs]), np.mean([1 / len(part) for part in logs])
    if one_server and free[1]:
        variance, freedom = within * sum(1 / runs for _, runs in made), free[1]
    elif free[1] and of_means <= within * each * scipy_stats.f.ppf(1 - POOLED, *free):
        variance, freedom = np.mean(np.concatenate(logs) ** 2) * sum(1 / runs for _, runs in made), sum(free)
    else:
        terms = (of_means * sum(1 / servers for servers, _ in made),
                 within * sum(1 / runs - each / servers for servers, runs in made))
        variance = max(sum(terms), 0.0)
        unsure = sum(term**2 / n for term, n in zip(terms, free, strict=True) if n)
        freedom = variance**2 / unsure if unsure else 1
    return float(np.sqrt(variance) * scipy_stats.t.ppf((1 + stats.LEVEL) / 2, max(freedom, 1)))


def _row(effect: Effect, pairs: _Pairs, found: Estimate, note: str) -> dict | None:
    """One row of the table; none for the accuracy of ungraded requests."""
    if effect.name == "accuracy" and not found.known:
        return None
    rows, _ = pairs.rows(effect.rows)
    off, on = (_value(_combined(effect, parts), rows) if (parts := pairs.parts(
        effect.rows, effect.of, lambda on, off, wanted=wanted: (off, on)[wanted])) else np.nan for wanted in (0, 1))
    return {"arm": named(pairs.on, pairs.arm), "metric": effect.name, "how": effect.how, "off": off, "on": on,
            **found.as_dict(), "note": note or ("" if found.known else "no such tokens")}
