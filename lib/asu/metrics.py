"""The ASU metrics: Accuracy, Service-end, User-end, from the recorded frames.

One metric is one short function, entered in `METRICS` with its title, unit, direction and formula; tables, intervals,
axis labels and the column page all read that registry. Times are seconds on the run clock, shares
0..1, tokens the engine's own counts. What was not recorded is NaN, never 0.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from asu import models, stats
from asu.columns import LABELS
from asu.errors import AsuError

OUTCOMES = ["correct", "wrong", "cut off", "unparsed", "failed"]
FEW_RUNNING = 0.2  # share of the batch below which the rest are waiting for stragglers
KV_FULL = 0.95  # share of the pool from which on it counts as full
BLOCK = 16  # tokens per KV block, vLLM's default


# --- per request ---------------------------------------------------------------------------------------------------


def derive(requests: pd.DataFrame) -> pd.DataFrame:
    """A copy of requests with what follows from the recorded times and counts.

    lag_s = sent − due; ttft_s = first − due; ttfvt_s = visible − due, NaN if never visible (ttfvt_censored);
    ttfvt_observed_s = (visible, else end) − due, the time for survivor curves; e2e_s = last − due;
    service_s = last − sent; tbt_s = (last − first)/(output tokens − 1);
    tbt_thinking_s, tbt_answer_s = the same within a phase, over its own tokens; finished: no error;
    hit = 1 correct, 0 otherwise, NaN for failed and for ungraded requests.
    """
    r = requests.copy()
    r["finished"] = r.error.isna()
    r["lag_s"] = r.sent_s - r.due_s
    r["ttft_s"] = r.first_s - r.due_s
    r["ttfvt_s"] = r.visible_s - r.due_s
    r["ttfvt_censored"] = r.visible_s.isna()
    r["ttfvt_observed_s"] = r.visible_s.fillna(r.end_s) - r.due_s
    r["e2e_s"] = r.last_s - r.due_s
    r["service_s"] = r.last_s - r.sent_s
    r["tbt_s"] = (r.last_s - r.first_s) / _more_than_one(r.output_tokens)
    # thinking lasts from the first token to the first visible one, so its n tokens span n gaps
    thought = r.thinking_tokens.where(r.thinking_tokens > 0)
    r["tbt_thinking_s"] = (r.visible_s.fillna(r.last_s) - r.first_s) / thought.where(
        r.visible_s.notna(), _more_than_one(thought))
    r["tbt_answer_s"] = (r.last_s - r.visible_s) / _more_than_one(r.answer_tokens)
    graded = r.outcome.notna() & (r.outcome != "failed")
    r["hit"] = (r.outcome == "correct").astype(float).where(graded)
    return r


def kept(requests: pd.DataFrame) -> pd.Series:
    """Whether a request's text was kept: with random weights none is, and nobody knows whether two agree."""
    return requests.thinking_text + requests.answer_text != ""


def texts(requests: pd.DataFrame) -> pd.Series:
    """Thinking, a mark (NUL, one character), answer: to compare texts by.

    Without the opening mark of thinking, which vLLM leaves in the text where one event holds it and more.
    """
    marks = {name: models.get(name).start for name in requests.model.unique()}
    thinking = [text.removeprefix(marks[name]) for text, name in
                zip(requests.thinking_text.fillna(""), requests.model, strict=True)]
    return pd.Series(thinking, requests.index) + "\0" + requests.answer_text.fillna("")


def _more_than_one(tokens: pd.Series) -> pd.Series:
    """tokens − 1 where there are at least two tokens, else NaN."""
    return (tokens - 1).where(tokens > 1)


def _run_keys(frame: pd.DataFrame) -> list[str]:
    """Columns that name one stretch of one clock: a run, and within it the session between two resumes."""
    return [c for c in ("run", "session") if c in frame]


def _request_keys(frame: pd.DataFrame) -> list[str]:
    """Columns that name one request; ids repeat from run to run."""
    return [c for c in ("run", "request_id") if c in frame]


def tbt(events: pd.DataFrame, requests: pd.DataFrame) -> pd.DataFrame:
    """Time between tokens, one row per gap between two stream events of a request.

    Columns: run (where given), request_id, t_s, phase ("thinking" or "answer", that of the tokens that ended the
    gap), gap_s = gap / tokens of the event, tokens = its weight. The weighted mean is time per token however the
    engine groups tokens into events. An event with tokens of both phases gives a row to each.
    """
    keys = _request_keys(events)
    wanted = requests.loc[requests.error.isna(), keys]
    e = events.merge(wanted, on=keys).sort_values([*keys, "t_s"], kind="stable")
    e["tokens"] = e.thinking_tokens + e.answer_tokens
    e = e[e.tokens > 0]
    e["gap_s"] = e.groupby(keys, sort=False).t_s.diff() / e.tokens
    e = e[e.gap_s.notna()]
    phases = [e.assign(phase=phase, tokens=e[f"{phase}_tokens"])[[*keys, "t_s", "phase", "gap_s", "tokens"]]
              for phase in ("thinking", "answer")]
    gaps = pd.concat(phases, ignore_index=True)
    return gaps[gaps.tokens > 0].sort_values([*keys, "t_s"], kind="stable").reset_index(drop=True)


def last_known(requests: pd.DataFrame) -> pd.Series:
    """When a request stopped being served: its last token, or its end where it failed without one."""
    return requests.last_s.fillna(requests.end_s)


def window_s(requests: pd.DataFrame) -> float:
    """max last − min due [s], summed over runs and sessions: the time a resumed run stood still does not count."""
    if requests.empty:
        return np.nan
    times = requests.assign(_last=last_known(requests))
    if not _run_keys(times):
        return float(times._last.max() - times.due_s.min())
    spans = times.groupby(_run_keys(times), dropna=False).agg(first=("due_s", "min"), last=("_last", "max"))
    return float((spans["last"] - spans["first"]).sum())


@dataclass(frozen=True)
class SLO:
    """What one request must meet to count as good: time to the first visible token, mean answer-phase TBT [s].

    Infinite: whatever it takes. share: of the requests, how many have to be good for a service to keep its promise.
    AsuError for a limit that is no time, and for a share that is none.
    """

    ttfvt_s: float
    tbt_s: float
    share: float = 0.95

    def __post_init__(self):
        if not (self.ttfvt_s >= 0 and self.tbt_s >= 0):
            raise AsuError(f"an SLO of {self.ttfvt_s} s to the first visible token and {self.tbt_s} s between tokens",
                           "give both as seconds, 0 or more")
        if not 0 < self.share <= 1:
            raise AsuError(f"an SLO for a share of {self.share} of the requests", "give it as more than 0, at most 1")


def met(requests: pd.DataFrame, slo: SLO) -> pd.Series:
    """Whether each request met all of `slo`; never visible is a miss, as is a failure; one token has no TBT."""
    r = derive(requests)
    return r.finished & (r.ttfvt_s <= slo.ttfvt_s) & ~(r.tbt_answer_s > slo.tbt_s)


# --- requests in flight, stragglers --------------------------------------------------------------------------------


def _steps(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times at which the number in flight changes, and the number from each on."""
    times = np.concatenate([start, stop])
    change = np.concatenate([np.ones(len(start)), -np.ones(len(stop))])
    order = np.argsort(times, kind="stable")
    at, position = np.unique(times[order], return_index=True)
    count = np.cumsum(change[order])
    return at, count[np.append(position[1:], len(times)) - 1]


def time_shares(requests: pd.DataFrame) -> pd.Series:
    """Seconds of its run that each request took up, every moment parted equally among the requests in flight.

    They add up to the run's time from the first sent to the last token, so that throughput and time per request are
    sums over requests and can be paired by problem. A moment with nobody in flight goes to whoever is sent next.
    """
    return _shares(requests, lambda label, at: at)


def energy_shares(requests: pd.DataFrame, host: pd.DataFrame) -> pd.Series:
    """Energy [J] of the GPU that each request took up: that of every moment parted equally among those in flight.

    They add up to what the GPU drew from the first sent to the last token, its idle draw included. NaN for runs
    without a reading.
    """
    readings = {tuple(label.values()): part for label, part in _parts(host, _run_keys(requests))}
    return _shares(requests, lambda label, at: _joules(readings.get(tuple(label.values()), host.iloc[:0]), at))


def _joules(host: pd.DataFrame, at: np.ndarray) -> np.ndarray:
    """Energy drawn up to the times `at` [J, from anywhere]: by the counter, at its mean rate beyond its readings.

    Mean power times time where the counter was read less than twice; NaN without either.
    """
    known = host[host.gpu_energy_j.notna()].sort_values("t_s")
    if len(known) < 2:
        return host.gpu_power_w.mean() * at
    t, joules = known.t_s.to_numpy(), known.gpu_energy_j.to_numpy()
    rate = (joules[-1] - joules[0]) / (t[-1] - t[0])
    return np.interp(at, t, joules) + rate * (np.minimum(at - t[0], 0) + np.maximum(at - t[-1], 0))


def _shares(requests: pd.DataFrame, amount: Callable[[dict, np.ndarray], np.ndarray]) -> pd.Series:
    """What each request took up of a quantity that grows while its run goes on: amount(run's label, times)."""
    shares = pd.Series(0.0, requests.index)
    sent = requests[requests.sent_s.notna()]
    for label, part in _parts(sent, _run_keys(sent)):
        start, stop = part.sent_s.to_numpy(), last_known(part).to_numpy()
        at, n = _steps(start, stop)
        length, busy = np.diff(amount(label, at)), n[:-1] > 0
        spent = np.concatenate([[0.0], np.cumsum(np.divide(length, n[:-1], out=np.zeros(len(length)), where=busy))])
        begun, ended = np.searchsorted(at, start), np.searchsorted(at, stop)
        waited = np.concatenate([[0.0], np.where(busy, 0.0, length)]) / np.bincount(begun, minlength=len(at)).clip(1)
        shares[part.index] = spent[ended] - spent[begun] + waited[begun]
    return shares


def _parts(frame: pd.DataFrame, by: list[str]):
    """(labels as a dict, rows) per group; the whole frame where `by` is empty."""
    if not by:
        yield {}, frame
        return
    for key, part in frame.groupby(by, sort=False, dropna=False):
        yield dict(zip(by, key, strict=True)), part


def batches(requests: pd.DataFrame, keep: Sequence[str] = ()) -> pd.DataFrame:
    """One row per batch: how long it took, and how much of that the stragglers took.

    Under a barrier a batch is what was sent together. Without one, a batch is as many finishes in a row as there are
    slots. Either lasts from the end of the batch before to its own last token, so that batches fill the window of a run
    without gaps, and can be resampled whatever the load. Slots are the load's places, also where fewer requests are
    left to fill them (the first batch after a resume, the last of a run); of an open load, the most ever in flight.
    Columns: run, session, batch, `keep`; start_s, end_s, wall_s; requests, finished (without error); slots;
    output_tokens; few_s = time with fewer than 20 % of the slots in flight; busy_s = request-seconds in flight (due to
    last token under a barrier, sent to last without).
    """
    rows = []
    keys = _run_keys(requests)
    wanted = [*keys, *keep, "due_s", "sent_s", "last_s", "end_s", "batch", "output_tokens", "error"]
    wanted += ["load"] if "load" in requests else []
    for label, part in _parts(requests.loc[requests.sent_s.notna(), list(dict.fromkeys(wanted))], keys):
        label |= {column: part[column].iloc[0] for column in keep}
        stop, began = last_known(part).to_numpy(), part.due_s.min()
        barrier = (part.batch >= 0).all()
        start = (part.due_s if barrier else part.sent_s).to_numpy()
        places = _places(part)
        slots = places or int(_steps(start, stop)[1].max())
        counts = part[["output_tokens", "batch"]].assign(finished=part.error.isna())
        if barrier:
            own = [np.flatnonzero(part.batch == batch) for batch in np.unique(part.batch)]
        else:
            own = np.split(np.argsort(stop, kind="stable"), range(slots, len(stop), slots))
        for number, members in enumerate(own):
            span = (began, stop[members].max())
            seen = members if barrier else slice(None)
            mine = counts.iloc[members]
            rows.append(label | {"batch": int(mine.batch.iloc[0]) if barrier else number}
                        | _batch(mine, span, slots if places or not barrier else len(members), start[seen], stop[seen]))
            began = span[1]
    return pd.DataFrame(rows)


def load_size(load: pd.Series) -> pd.Series:
    """Requests at once of a batch or closed load from its label ("batch16", "closed16"); NaN for open loads."""
    return load.str.extract(r"^(?:batch|closed)(\d+)$")[0].astype(float)


def _places(requests: pd.DataFrame) -> int | None:
    """Requests that the load of one run keeps in flight; None of an open load, or where it has no label."""
    size = load_size(requests.load.iloc[:1]).iloc[0] if "load" in requests else np.nan
    return None if np.isnan(size) else int(size)


def _batch(members: pd.DataFrame, span: tuple[float, float], slots: int, start: np.ndarray, stop: np.ndarray) -> dict:
    """The figures of one batch; start, stop: the intervals in flight that may reach into `span`."""
    t, n = _steps(start, stop)
    edges = np.concatenate([[span[0]], t[(t > span[0]) & (t < span[1])], [span[1]]])
    index = np.searchsorted(t, edges[:-1], side="right") - 1
    in_flight = np.where(index >= 0, n[index], 0)
    length = np.diff(edges)
    return {"start_s": span[0], "end_s": span[1], "wall_s": span[1] - span[0], "requests": len(members),
            "finished": int(members.finished.sum()), "slots": slots,
            "output_tokens": float(members.output_tokens.sum()),
            "few_s": float(length[in_flight < FEW_RUNNING * slots].sum()), "busy_s": float(length @ in_flight)}


def last_remaining(requests: pd.DataFrame, ks: Sequence[int] = (1, 2, 4), keep: Sequence[str] = ()) -> pd.DataFrame:
    """Per barrier batch and k: seconds from the batch's start until only k requests were left, and the batch's length.

    Columns: run, session, batch, `keep`, k, remain_s, wall_s. Batches of k or fewer requests give no row.
    """
    rows = []
    barrier = requests[requests.batch >= 0]
    for label, part in _parts(barrier, [*_run_keys(barrier), "batch"]):
        label |= {column: part[column].iloc[0] for column in keep}
        stop = np.sort(last_known(part).to_numpy()) - part.due_s.min()
        rows += [label | {"k": k, "remain_s": stop[-k - 1], "wall_s": stop[-1]} for k in ks if k < len(stop)]
    return pd.DataFrame(rows, columns=[*_run_keys(barrier), "batch", *keep, "k", "remain_s", "wall_s"])


# --- KV cache, energy ----------------------------------------------------------------------------------------------


def work_samples(engine: pd.DataFrame) -> pd.DataFrame:
    """Engine samples taken while requests ran or waited, with dt_s, the time until the next sample of the session.

    Where an engine does not tell how many run, every sample counts as work.
    """
    e = engine[engine.kv_use.notna()].sort_values([*_run_keys(engine), "t_s"], kind="stable")
    dt = e.groupby(_run_keys(e), dropna=False).t_s.diff(-1) if _run_keys(e) else e.t_s.diff(-1)
    e = e.assign(dt_s=-dt)
    at_work = (e.running.fillna(0) + e.waiting.fillna(0) > 0) | e.running.isna()
    return e[at_work & e.dt_s.notna()]


def in_blocks(samples: pd.DataFrame, blocks: int = 20) -> pd.DataFrame:
    """Samples in order of time with `block`, the twentieth of its run that each belongs to, for resampling."""
    samples = samples.sort_values([*_run_keys(samples), "t_s"], kind="stable").reset_index(drop=True)
    of_run = samples.groupby("run", sort=False).t_s
    start, end = of_run.transform("min"), of_run.transform("max")
    share = ((samples.t_s - start) / (end - start).where(end > start, 1.0)).clip(upper=np.nextafter(1, 0))
    return samples.assign(block=(share * blocks).astype(int))


def kv_statistics(samples: pd.DataFrame) -> dict[str, stats.Statistic]:
    """Statistics of the KV use in `samples` (from `work_samples`), each weighted by time: peak, mean, swing, range."""
    use, dt = samples.kv_use.to_numpy(), samples.dt_s.to_numpy()
    return {
        "peak": stats.maximum(use),
        "mean": stats.ratio_of_sums(use * dt, dt),
        "swing": stats.difference(stats.quantile(use, 0.95, dt), stats.quantile(use, 0.05, dt)),
        "range": stats.difference(stats.maximum(use), stats.minimum(use)),
    }


def predicted_kv(requests: pd.DataFrame, events: pd.DataFrame, pool_tokens: int | None = None,
                 block: int | None = BLOCK) -> pd.DataFrame:
    """KV use that the client can tell from its own stream: tokens resident over the pool, as a step function.

    A request holds its prompt and what it has generated, rounded up to blocks of `block` tokens (None: not rounded),
    from its first event to its last token. pool_tokens: None takes the column kv_pool_actual.
    Columns: run, session (where given), t_s, tokens, predicted [share of pool]. It knows nothing of prefixes shared
    between requests (too high) nor of preempted requests, which hold nothing (too high). A row per moment at which
    blocks are taken or given back.
    """
    keys, per_run = _request_keys(events), _run_keys(events)
    if pool_tokens is None and "kv_pool_actual" not in requests:
        raise AsuError("the size of the KV pool is not known", "pass pool_tokens, the pool's size in tokens")
    pool = requests.kv_pool_actual if pool_tokens is None else pool_tokens
    facts = requests.assign(_pool=pool, _stop=last_known(requests))[[*keys, "prompt_tokens", "_pool", "_stop"]]
    e = events.merge(facts, on=keys).sort_values([*keys, "t_s"], kind="stable")
    made = (e.thinking_tokens + e.answer_tokens).groupby([e[k] for k in keys], sort=False).cumsum()
    held = (e.prompt_tokens + made).astype(float)
    e["held"] = np.ceil(held / block) * block if block else held
    e["change"] = e.groupby(keys, sort=False).held.diff().fillna(e.held)
    out = e.groupby(keys, sort=False).tail(1)
    out = out.assign(t_s=np.maximum(out.t_s, out._stop), change=-out.held)
    moves = pd.concat([e[e.change != 0], out])[[*per_run, "t_s", "change", "_pool"]]  # most tokens open no new block
    moves = moves.groupby([*per_run, "t_s"], as_index=False, dropna=False).agg(change=("change", "sum"),
                                                                              _pool=("_pool", "first"))
    moves["tokens"] = moves.groupby(per_run, dropna=False).change.cumsum() if per_run else moves.change.cumsum()
    moves["predicted"] = moves.tokens / moves._pool
    return moves[[*per_run, "t_s", "tokens", "predicted"]]


def from_taken_up(requests: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Stream events with one more per request, without a token, at which the engine took the request up.

    That is its sending plus the time in the server's queue; where that is not told, its sending.
    """
    keys = list(dict.fromkeys([*_run_keys(events), *_request_keys(events)]))
    taken = requests[requests.sent_s.notna() & requests.last_s.notna()]
    taken = taken[keys].assign(t_s=taken.sent_s + taken.server_queue_s.fillna(0.0), thinking_tokens=0, answer_tokens=0)
    return pd.concat([taken, events[list(taken.columns)]], ignore_index=True)


def predicted_engine(requests: pd.DataFrame, events: pd.DataFrame, **options) -> pd.DataFrame:
    """An engine frame as the client would write it: the runs' labels, t_s, kv_use as predicted, running, waiting (0).

    One row per change, so that nothing is missed between readings. A prompt is held from when the engine took the
    request up (`from_taken_up`), and no more than the whole pool is: requests that were pushed out count as if they
    still held their tokens. options: those of `predicted_kv`.
    """
    predicted = predicted_kv(requests, from_taken_up(requests, events), **options)
    predicted["predicted"] = predicted.predicted.clip(upper=1.0)
    labels = [c for c in LABELS if c in requests and c not in predicted]
    of_run = requests[["run", *(c for c in labels if c != "run")]].drop_duplicates("run")
    return predicted.merge(of_run, on="run").rename(columns={"predicted": "kv_use"}).assign(
        running=lambda e: (e.tokens > 0).astype(float), waiting=0.0).drop(columns="tokens")


def kv_prediction(predicted: pd.DataFrame, engine: pd.DataFrame) -> pd.DataFrame:
    """The engine's KV samples at work beside the prediction at the same moment.

    Returns the rows of `work_samples` with predicted and error = predicted − kv_use [share of pool]. Before the first
    event of a session the prediction is 0: nothing is held.
    """
    per_run = _run_keys(engine)
    samples = work_samples(engine).sort_values("t_s", kind="stable")
    both = pd.merge_asof(samples, predicted.sort_values("t_s", kind="stable")[[*per_run, "t_s", "predicted"]],
                         on="t_s", by=per_run or None)
    both["predicted"] = both.predicted.fillna(0.0)
    both["error"] = both.predicted - both.kv_use
    return both


def counted(frame: pd.DataFrame, column: str) -> float:
    """Increase of a cumulative counter, summed over runs and sessions; NaN where it was not reported."""
    known = frame[frame[column].notna()].sort_values("t_s")
    if known.empty:
        return np.nan
    return float(sum(p[column].iloc[-1] - p[column].iloc[0] for _, p in _parts(known, _run_keys(known))))


# --- the registry --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """What the metrics of one group of requests may look at; a frame that was not given is None."""

    requests: pd.DataFrame  # with the columns of `derive`
    batches: pd.DataFrame  # of `batches`
    gaps: pd.DataFrame | None = None  # of `tbt`
    samples: pd.DataFrame | None = None  # of `work_samples`
    engine: pd.DataFrame | None = None
    host: pd.DataFrame | None = None


@dataclass(frozen=True)
class Metric:
    """One metric: how it is printed, which way is better, how it is made, and which frame of `Group` it `needs`."""

    name: str
    title: str
    unit: str
    better: str  # "higher", "lower" or "" where neither is
    family: str  # "A", "S" or "U"
    formula: str
    needs: str
    of: Callable[[Group], float]
    statistic: Callable[[pd.DataFrame], stats.Statistic] | None = None  # None: a total, which has no interval

    @property
    def label(self) -> str:
        """Axis label, as in "Throughput [tok/s]"."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title


METRICS: dict[str, Metric] = {}


def metric(name: str, title: str, unit: str, better: str, family: str, formula: str, needs: str = "requests"):
    """Enter the decorated function, from the frame it needs to a statistic, in METRICS."""

    def enter(make: Callable[[pd.DataFrame], stats.Statistic]) -> Callable[[pd.DataFrame], stats.Statistic]:
        def of(group: Group) -> float:
            frame = getattr(group, needs)
            value = _value(make(frame), len(frame))
            return value if np.isfinite(value) else np.nan

        METRICS[name] = Metric(name, title, unit, better, family, formula, needs, of, make)
        return make

    return enter


def total(name: str, title: str, unit: str, better: str, family: str, formula: str, needs: str = "requests"):
    """Enter the decorated function, from a Group to a number, in METRICS."""

    def enter(of: Callable[[Group], float]) -> Callable[[Group], float]:
        METRICS[name] = Metric(name, title, unit, better, family, formula, needs, of)
        return of

    return enter


def _value(statistic: stats.Statistic, rows: int) -> float:
    return float(statistic(np.ones((1, rows)))[0])


@total("n", "Requests", "", "", "A", "number of requests sent")
def _n(g: Group) -> float:
    return len(g.requests)


@metric("accuracy", "Accuracy", "share", "higher", "A", "correct / (requests − failed); empty without grades")
def _accuracy(r: pd.DataFrame) -> stats.Statistic:
    return stats.mean(r.hit)


def _outcome_share(r: pd.DataFrame, outcome: str) -> stats.Statistic:
    return stats.mean((r.outcome == outcome).astype(float).where(r.outcome.notna()))


for _outcome, _better in zip(OUTCOMES, ["higher", "lower", "lower", "lower", "lower"], strict=True):
    metric(_outcome.replace(" ", "_"), f"Share {_outcome}", "share", _better, "A",
           f"requests with outcome {_outcome} / requests")(partial(_outcome_share, outcome=_outcome))


@total("window_s", "Duration", "s", "lower", "S", "max last − min due, summed over sessions")
def _window(g: Group) -> float:
    return window_s(g.requests)


@metric("tps", "Throughput", "tok/s", "higher", "S", "output tokens / duration", "batches")
def _tps(b: pd.DataFrame) -> stats.Statistic:
    return stats.ratio_of_sums(b.output_tokens, b.wall_s)


@metric("rps", "Request rate", "1/s", "higher", "S", "finished requests / duration; failed ones never count", "batches")
def _rps(b: pd.DataFrame) -> stats.Statistic:
    return stats.ratio_of_sums(b.finished, b.wall_s)


@metric("output_tokens", "Output tokens per request", "tok", "", "S", "mean output tokens of finished requests")
def _output_tokens(r: pd.DataFrame) -> stats.Statistic:
    return stats.mean(r.output_tokens.where(r.finished))


@metric("token_gap", "Token count gap", "share", "lower", "S",
        "Σ |tokens seen in events − output tokens| / Σ output tokens, finished requests")
def _token_gap(r: pd.DataFrame) -> stats.Statistic:
    gap = (r.event_tokens - r.output_tokens).abs()
    return stats.ratio_of_sums(gap.where(r.finished, 0), r.output_tokens.where(r.finished, 0))


_KV_FORMULAS = {"peak": "largest gauge value while work ran", "mean": "time-weighted mean while work ran",
                "swing": "p95 − p5 over time while work ran", "range": "max − min while work ran"}


def _kv(samples: pd.DataFrame, which: str) -> stats.Statistic:
    return kv_statistics(samples)[which]


for _which, _formula in _KV_FORMULAS.items():
    metric(f"kv_{_which}", f"KV use, {_which}", "share of pool", "", "S", _formula, "samples")(
        partial(_kv, which=_which))


@metric("kv_full_share", "Time with a full KV pool", "share", "lower", "S",
        "time with KV use ≥ 95 % / time at work", "samples")
def _kv_full(samples: pd.DataFrame) -> stats.Statistic:
    return stats.ratio_of_sums((samples.kv_use >= KV_FULL) * samples.dt_s, samples.dt_s)


@metric("waiting_share", "Time with requests waiting", "share", "lower", "S",
        "time with at least one request in the engine's queue / time at work", "samples")
def _waiting(samples: pd.DataFrame) -> stats.Statistic:
    known = samples.waiting.notna()
    return stats.ratio_of_sums((samples.waiting > 0) * samples.dt_s, samples.dt_s.where(known, 0.0))


@total("preemptions", "Preemptions", "", "lower", "S", "increase of the engine's counter", "engine")
def _preemptions(g: Group) -> float:
    return counted(g.engine, "preemptions")


@total("prefix_hit_share", "Prefix-cache hits", "share", "higher", "S", "prompt tokens found / looked up", "engine")
def _prefix_hits(g: Group) -> float:
    asked = counted(g.engine, "prefix_queries")
    return counted(g.engine, "prefix_hits") / asked if asked else np.nan


@metric("straggler_share", "Time with under 20 % of the batch running", "share", "lower", "S",
        "Σ time with < 20 % of the slots in flight / Σ batch time", "batches")
def straggler_share(b: pd.DataFrame) -> stats.Statistic:
    return stats.ratio_of_sums(b.few_s, b.wall_s)


@metric("makespan_ratio", "Batch time over ideal", "×", "lower", "S",
        "Σ slots · batch time / Σ request-seconds in flight; ideal: the same request-seconds with every slot always "
        "busy, at the speed each request had", "batches")
def makespan_ratio(b: pd.DataFrame) -> stats.Statistic:
    return stats.ratio_of_sums(b.slots * b.wall_s, b.busy_s)


@metric("idle_share", "Idle slots", "share", "lower", "S",
        "1 − Σ request-seconds in flight / Σ slots · batch time", "batches")
def idle_share(b: pd.DataFrame) -> stats.Statistic:
    return stats.ratio_of_sums(b.slots * b.wall_s - b.busy_s, b.slots * b.wall_s)


@total("energy_j", "GPU energy", "J", "lower", "S",
       "GPU energy counter (else power · time) from first sent to last token, idle draw included", "host")
def _energy(g: Group) -> float:
    return float(energy_shares(g.requests, g.host).sum(skipna=False))


@total("energy_per_token_j", "GPU energy per output token", "J/tok", "lower", "S",
       "GPU energy / output tokens, idle draw included", "host")
def _energy_per_token(g: Group) -> float:
    return _energy(g) / float(g.requests.output_tokens.sum())


@metric("lag_p99", "Client lag, p99", "s", "lower", "U", "sent − due")
def _lag(r: pd.DataFrame) -> stats.Statistic:
    return stats.quantile(r.lag_s, 0.99)


_HOWS = {"p50": "median", "p99": "p99", "mean": "mean"}


def _latency(r: pd.DataFrame, column: str, how: str) -> stats.Statistic:
    x = r[column].where(r.finished)
    return stats.mean(x) if how == "mean" else stats.quantile(x, int(how[1:]) / 100)


def _ttfvt(r: pd.DataFrame, how: str) -> stats.Statistic:
    rows = (r.ttfvt_observed_s, ~r.ttfvt_censored)
    return stats.km_mean(*rows) if how == "mean" else stats.km_quantile(*rows, int(how[1:]) / 100)


def _tbt(gaps: pd.DataFrame, how: str, phase: str | None) -> stats.Statistic:
    tokens = gaps.tokens if phase is None else gaps.tokens.where(gaps.phase == phase, 0)
    if how == "mean":
        return stats.ratio_of_sums(gaps.gap_s * tokens, tokens)
    return stats.quantile(gaps.gap_s, int(how[1:]) / 100, tokens)


for _how, _word in _HOWS.items():
    metric(f"ttft_{_how}", f"TTFT, {_word}", "s", "lower", "U", "first token − due")(
        partial(_latency, column="ttft_s", how=_how))
    metric(f"ttfvt_{_how}", f"TTFVT, {_word}", "s", "lower", "U",
           "first visible token − due, from the survivor curve (right-censored at the end of requests that never left "
           + ("thinking): mean of min(TTFVT, longest time seen)" if _how == "mean" else
              "thinking); empty where the curve never falls that far"))(partial(_ttfvt, how=_how))
    metric(f"tbt_{_how}", f"TBT, {_word}", "s", "lower", "U",
           "gap between stream events / tokens of the later one, weighted by those tokens", "gaps")(
        partial(_tbt, how=_how, phase=None))
    for _phase in ("thinking", "answer"):
        metric(f"tbt_{_phase}_{_how}", f"TBT in the {_phase} phase, {_word}", "s", "lower", "U",
               f"TBT over tokens of the {_phase} phase", "gaps")(partial(_tbt, how=_how, phase=_phase))
    metric(f"e2e_{_how}", f"E2E, {_word}", "s", "lower", "U", "last token − due")(
        partial(_latency, column="e2e_s", how=_how))


@metric("ttfvt_seen_mean", "TTFVT, mean of those seen", "s", "lower", "U",
        "mean of visible − due over requests that showed a visible token; too low wherever some never did")
def _ttfvt_seen(r: pd.DataFrame) -> stats.Statistic:
    return stats.mean(r.ttfvt_s)


@metric("censored", "Never left thinking", "share", "lower", "U",
        "finished requests without a visible token / finished requests")
def _censored(r: pd.DataFrame) -> stats.Statistic:
    return stats.mean(r.ttfvt_censored.astype(float).where(r.finished))


def asu(requests: pd.DataFrame, events: pd.DataFrame | None = None, by: Sequence[str] = ("run",), *,
        engine: pd.DataFrame | None = None, host: pd.DataFrame | None = None,
        names: Collection[str] = METRICS.keys()) -> pd.DataFrame:
    """The ASU table: one row per group of `by`, its columns `by` and then METRICS, or those of them in `names`.

    A metric whose frame is not given has no column. Duration, batches and the engine's and host's figures belong to
    whole runs, so `by` should not cut a run in two; AsuError where a frame lacks a column of `by`.
    """
    by = list(by)
    _need(by, requests=requests, engine=engine, host=host)
    if unknown := set(names) - set(METRICS):
        raise AsuError(f"there is no metric {', '.join(sorted(unknown))}", f"use some of: {', '.join(METRICS)}")
    given = {"requests", "batches"}
    given |= {"gaps"} if events is not None else set()
    given |= {"samples", "engine"} if engine is not None else set()
    given |= {"host"} if host is not None else set()
    chosen = [m for m in METRICS.values() if m.needs in given and m.name in names]
    engines, hosts = _by_label(engine, by), _by_label(host, by)
    rows = []
    for label, part in _parts(derive(requests), by):
        key = tuple(label.values())
        own_engine = None if engine is None else engines.get(key, engine.iloc[:0])
        group = Group(
            requests=part, batches=batches(part), gaps=None if events is None else tbt(events, part),
            samples=None if engine is None else work_samples(own_engine), engine=own_engine,
            host=None if host is None else hosts.get(key, host.iloc[:0]))
        rows.append(label | {m.name: m.of(group) for m in chosen})
    return pd.DataFrame(rows, columns=[*by, *(m.name for m in chosen)])


def intervals(names: Sequence[str], by: Sequence[str], *, requests: pd.DataFrame | None = None,
              engine: pd.DataFrame | None = None, **options) -> pd.DataFrame:
    """Metrics with their intervals: one row per group of `by` and metric, columns `by`, metric, value, lo, hi, unit, n.

    What is resampled is what the metric is made of: problems (within tasks), batches, or twentieths of a run for KV
    use; the latter two within runs. options: those of `stats.bootstrap`. AsuError for totals and for TBT from events
    (use the per-request columns of `derive`), which have no interval, and where the frame needed is not given.
    """
    by = list(by)
    _need(by, requests=requests, engine=engine)
    sources = {} if requests is None else {"requests": derive(requests), "batches": batches(
        requests, [c for c in by if c not in _run_keys(requests)])}
    sources |= {} if engine is None else {"samples": in_blocks(work_samples(engine))}
    units = {"requests": ["problem_id"], "batches": ["run", "session", "batch"], "samples": ["run", "block"]}
    strata = {"requests": "task", "batches": "run", "samples": "run"}
    rows = []
    for name in names:
        m = METRICS.get(name)
        if m is None or m.statistic is None or m.needs not in units:
            able = [m.name for m in METRICS.values() if m.statistic and m.needs in units]
            raise AsuError(f"there is no metric {name!r} with an interval", f"use one of: {', '.join(able)}")
        if m.needs not in sources:
            raise AsuError(f"{name} needs the {'engine' if m.needs == 'samples' else 'requests'} frame",
                           "pass it by that name")
        for label, part in _parts(sources[m.needs], by):
            share = (0.0, 1.0) if m.needs == "requests" and m.unit == "share" else None
            estimate = stats.bootstrap(m.statistic(part), part[units[m.needs]], strata=part[strata[m.needs]],
                                       unit=m.unit, bounds=share, **options)
            rows.append(label | {"metric": name} | estimate.as_dict())
    return pd.DataFrame(rows, columns=[*by, "metric", "value", "lo", "hi", "unit", "n"])


def outcome_shares(requests: pd.DataFrame, by: Sequence[str] = ("pair", "task", "role"), **options) -> pd.DataFrame:
    """Share of each of the five outcomes with its interval: `by`, outcome, value, lo, hi, unit, n."""
    names = {outcome.replace(" ", "_"): outcome for outcome in OUTCOMES}
    shares = intervals(list(names), by, requests=requests, **options)
    return shares.assign(outcome=shares.metric.map(names)).drop(columns="metric")


def slopes(requests: pd.DataFrame, columns: Sequence[str] = ("output_tokens", "service_s"),
           by: Sequence[str] = ("task", "role"), **options) -> pd.DataFrame:
    """Least-squares change of columns of `derive` per unit of the task's own difficulty, over finished requests.

    Columns: `by`, metric (the column), value, lo, hi, unit, n; problems are resampled. NaN: difficulty is constant.
    """
    r = derive(requests)
    r = r[r.finished]
    tables = [stats.by_group(r, list(by), lambda rows, y=y: stats.bootstrap(
        stats.slope(rows.difficulty, rows[y]), rows.problem_id, unit="s" if y.endswith("_s") else "", **options)
        ).assign(metric=y) for y in columns]
    return pd.concat(tables, ignore_index=True)[[*by, "metric", "value", "lo", "hi", "unit", "n"]]


def survivors(requests: pd.DataFrame, by: Sequence[str] = ("task", "role")) -> pd.DataFrame:
    """Survivor curves of TTFVT, one per group: `by`, then the columns of `stats.kaplan_meier`, time in s."""
    curves = [stats.kaplan_meier(part.ttfvt_observed_s, ~part.ttfvt_censored).assign(**label)
              for label, part in _parts(derive(requests), list(by))]
    curves = pd.concat(curves, ignore_index=True)
    return curves[[*by, *(c for c in curves if c not in by)]]


def _need(by: list[str], **frames: pd.DataFrame | None) -> None:
    for name, frame in frames.items():
        missing = [c for c in by if frame is not None and c not in frame]
        if missing:
            raise AsuError(f"the {name} frame has no column {', '.join(missing)}",
                           f"group by columns it has, among them: {', '.join(map(str, frame.columns[:12]))}")


def _by_label(frame: pd.DataFrame | None, by: list[str]) -> dict[tuple, pd.DataFrame]:
    return {} if frame is None else {tuple(label.values()): part for label, part in _parts(frame, by)}
