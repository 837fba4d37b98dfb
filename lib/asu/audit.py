"""What each way of measuring does to a headline number: the released client's flaws, switched on alone, on our records.

A flaw is one short function from requests (and their stream events) to two sets of requests: measured honestly, and as
the released client of the reproduced paper would have measured. Everything downstream is the same for both, so that the
distance between them is the flaw's alone. What a flaw does not touch is not computed again.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pandas as pd

from asu import metrics, stats, tasks
from asu.errors import AsuError
from asu.stats import Estimate
from asu.study import Study
from asu.tasks import grading, released

Sides = tuple[pd.DataFrame, pd.DataFrame]  # requests measured honestly, and as released

COUNTS = ("tps", "tbt", "output_tokens")  # headline numbers that count tokens
CLOCKS = ("tps", "rps", "time", "ttft", "ttfvt", "tbt", "e2e")  # those that read a clock


# --- headline numbers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """One number that papers print: what it is made from, and how two of them are compared ("ratio", "difference")."""

    title: str
    unit: str
    how: str
    rows: str  # requests (of `metrics.derive`), batches or samples
    of: Callable[[pd.DataFrame], stats.Statistic]


def _registered(name: str, title: str, how: str) -> Headline:
    metric = metrics.METRICS[name]
    return Headline(title, metric.unit, how, metric.needs, metric.statistic)


HEADLINES = {
    "tps": _registered("tps", "TPS", "ratio"),
    "rps": _registered("rps", "RPS", "ratio"),
    "time": Headline("time per request", "s", "ratio", "batches", lambda b: stats.ratio_of_sums(b.wall_s, b.requests)),
    "ttft": _registered("ttft_mean", "TTFT", "ratio"),
    "ttfvt": _registered("ttfvt_mean", "TTFVT", "ratio"),
    "tbt": Headline("TBT", "s", "ratio", "requests", lambda r: stats.mean(r.tbt_s.where(r.finished))),
    "e2e": _registered("e2e_mean", "E2E", "ratio"),
    "output_tokens": _registered("output_tokens", "output tokens", "ratio"),
    "kv_mean": _registered("kv_mean", "KV use", "ratio"),
    "accuracy": _registered("accuracy", "accuracy", "difference"),
    "wrong": _registered("wrong", "called wrong", "difference"),
    "straggler_share": _registered("straggler_share", "straggler share", "difference"),
    "idle_share": _registered("idle_share", "idle slots", "difference"),
}


def headline(requests: pd.DataFrame, engine: pd.DataFrame | None = None) -> pd.Series:
    """Every headline number of these requests taken together; without `engine` none for the KV cache."""
    made = {}
    for name, head in HEADLINES.items():
        rows = _rows(head.rows, requests, engine)
        if rows is not None:
            made[name] = float(head.of(rows)(np.ones((1, len(rows))))[0])
    return pd.Series(made)


def _rows(which: str, requests: pd.DataFrame, engine: pd.DataFrame | None) -> pd.DataFrame | None:
    """The rows that a headline number is made from; None where the engine's gauges are needed and not given."""
    if which == "requests":
        return metrics.derive(requests)
    if which == "batches":
        return metrics.batches(requests)
    if engine is None:
        return None
    return metrics.in_blocks(metrics.work_samples(engine[engine.run.isin(requests.run.unique())]))


# --- the flaws -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assumed:
    """What has to be assumed for a flaw to show where our records give it no occasion."""

    failed: float = 0.05  # share of requests that fail at once
    clock_step_s: float = 0.128  # how far the wall clock is set forward in mid-run; ntpd steps it only from there on
    seed: int = 0  # which requests fail


@dataclass(frozen=True)
class Flaw:
    """One way of measuring: what the released client does, which headline numbers it makes from that, and how."""

    name: str
    title: str
    does: str
    touches: tuple[str, ...]
    sides: Callable[[pd.DataFrame, pd.DataFrame | None, Assumed], Sides]
    source: str = "released client"


FLAWS: dict[str, Flaw] = {}
# those that change what is noted and not what is sent, so that one run shows both sides; counting events apart
ON_SAME_RUNS = ("reasoning_field", "words", "window", "tbt", "survivors", "failures", "graders", "bucket", "wall_clock")

# those of them that need nothing assumed, in the order in which the released client comes by its numbers
TOGETHER = ("chunks", "reasoning_field", "words", "tbt", "window", "survivors", "graders", "bucket")


def flaw(name: str, title: str, does: str, *touches: str):
    """Enter the decorated function of requests, events and what is assumed in FLAWS."""

    def enter(sides: Callable[[pd.DataFrame, pd.DataFrame | None, Assumed], Sides]):
        FLAWS[name] = Flaw(name, title, does, touches, sides)
        return sides

    return enter


def catalogue(names: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per flaw: flaw, what the client does, the headline numbers it touches, where that was read."""
    return pd.DataFrame([{"flaw": f.title, "what the released client does": f.does, "touches": ", ".join(
        HEADLINES[name].title for name in f.touches), "source": f.source} for f in map(FLAWS.get, names or FLAWS)])


def count_events(requests: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Requests with thinking_events and answer_events: stream events that brought tokens of that phase.

    An event that brings tokens of both phases counts in both, as in the released client.
    """
    keys = [key for key in ("run", "request_id") if key in requests]
    phases = ["thinking", "answer"]
    brought = pd.DataFrame({f"{phase}_events": events[f"{phase}_tokens"] > 0 for phase in phases})
    counted = brought.groupby([events[key] for key in keys], sort=False).sum().reset_index()
    columns = [f"{phase}_events" for phase in phases]
    joined = requests.merge(counted, on=keys, how="left", validate="one_to_one").set_axis(requests.index)
    return joined.assign(**joined[columns].fillna(0).astype("int64"))


def tokens_per_event(requests: pd.DataFrame, events: pd.DataFrame) -> pd.Series:
    """Output tokens over counted stream events, per request; NaN where no event came."""
    counted = count_events(requests, events)
    return counted.output_tokens / (counted.thinking_events + counted.answer_events).replace(0, np.nan)


def in_chunks(requests: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Requests whose token counts are counts of stream events, as the released client has them."""
    counted = count_events(requests, events)
    return counted.assign(thinking_tokens=counted.thinking_events, answer_tokens=counted.answer_events,
                          output_tokens=counted.thinking_events + counted.answer_events
                          ).drop(columns=["thinking_events", "answer_events"])


@flaw("chunks", "a token is a stream event", "adds one token per event of the stream, whatever the event holds",
      *COUNTS)
def chunks(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    if events is None:
        raise AsuError("counting stream events needs the events", "pass events=study.events()")
    return requests, in_chunks(requests, events)


@flaw("reasoning_field", "only `reasoning_content` is read",
      "reads the field vLLM once sent; vLLM now sends `reasoning`, so that no thinking is seen at all",
      "tps", "ttft", "tbt", "output_tokens")
def reasoning_field(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    return requests, requests.assign(first_s=requests.visible_s, output_tokens=requests.answer_tokens,
                                     thinking_tokens=0)


@flaw("words", "words of the prompt are added", "its tokens per second add the prompt to the output, in words", "tps")
def words(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    asked = requests.assign(output_tokens=requests.output_tokens + prompt_words(requests))
    return (requests, asked) if asked.output_tokens.notna().any() else (requests[:0], asked[:0])


@flaw("window", "TPS since the first visible token",
      "its system throughput divides by the time since the first visible token of the whole run", "tps")
def window(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    began = requests.groupby("run").visible_s.transform("min")
    return requests, requests.assign(due_s=requests.due_s.clip(lower=began.fillna(-np.inf)))


@flaw("tbt", "TBT from the first visible token on",
      "divides the time from the first visible token to the end by all tokens less one, the hidden ones too", "tbt")
def tbt_as_released(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    return requests, requests.assign(first_s=requests.visible_s, last_s=requests.end_s)


@flaw("survivors", "TTFVT of survivors only",
      "averages over requests that showed a visible token, and forgets the rest", "ttfvt")
def survivors(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    # without an end their waiting is not known; the rows stay, so that both sides of a comparison ask the same problems
    return requests, requests.assign(end_s=requests.end_s.where(requests.visible_s.notna()))


@flaw("barrier", "batches with a barrier", "sends a batch when the slowest request of the last one has ended",
      "tps", "rps", "time", "ttft", "ttfvt", "tbt", "e2e", "kv_mean", "straggler_share", "idle_share")
def barrier(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    return requests[requests.batch < 0], requests[requests.batch >= 0]


@flaw("failures", "failures count as finished",
      "counts failed requests in the request rate, with their short times, and as wrong answers",
      "rps", "e2e", "accuracy", "wrong")
def failures(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    honest = failing(requests, assumed.failed, assumed.seed)
    failed = honest.error.notna()
    graded = failed & requests.outcome.notna()
    return honest, honest.assign(error=honest.error.mask(failed), last_s=honest.last_s.where(~failed, honest.end_s),
                                 outcome=honest.outcome.mask(graded, "wrong"))


@flaw("graders", "strict graders", "accepts an answer in few forms, by rules of its own for each set", "accuracy",
      "wrong")
def graders(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    right = pd.Series([released.accepts(tasks.get(row.task).stands_for, row.expected, row.answer_text or "")
                       if isinstance(row.outcome, str) else False for row in requests.itertuples()],
                      requests.index, dtype=bool)
    outcome = requests.outcome.mask(~right & (requests.outcome == "correct"), "wrong")
    return requests, requests.assign(outcome=outcome.mask(right & requests.outcome.notna(), "correct"))


@flaw("bucket", "all that is not correct is wrong", "has one bucket for wrong, cut off, unparsed and failed", "wrong")
def bucket(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    other = requests.outcome.notna() & (requests.outcome != "correct")
    return requests, requests.assign(outcome=requests.outcome.mask(other, "wrong"))


@flaw("wall_clock", "the wall clock", "reads a clock that is set while it runs", *CLOCKS)
def wall_clock(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    spans = requests.assign(stop=metrics.last_known(requests)).groupby("run")
    middle = (spans.due_s.transform("min") + spans["stop"].transform("max")) / 2
    times = ("due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s")
    moved = requests.assign(**{t: requests[t] + assumed.clock_step_s * (requests[t] >= middle) for t in times})
    return requests, moved[~(moved.end_s < moved.due_s)]  # it drops a request that ends before it begins


@flaw("one_pass", "one pass without seeds", "draws anew each time, and the paper's pilot figures show one pass",
      "ttft", "ttfvt", "tbt", "e2e", "output_tokens", "accuracy", "wrong")
def one_pass(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    cold = requests[~requests.prefix_caching]
    cold = cold if cold.repeat.nunique() > 1 else cold[:0]
    return cold, cold[cold.repeat == cold.repeat.min()]


@flaw("warm_cache", "passes find their prompts cached",
      "sends the same prompts three times in order, with the prefix cache as it is", "ttft", "ttfvt", "tbt", "e2e")
def warm_cache(requests: pd.DataFrame, events: pd.DataFrame | None, assumed: Assumed) -> Sides:
    cached = requests[requests.prefix_caching]
    cached = cached if cached.repeat.nunique() > 1 else cached[:0]
    return cached[cached.repeat == 0], cached


def failing(requests: pd.DataFrame, share: float, seed: int = 0) -> pd.DataFrame:
    """Requests of which a share, drawn at random, failed the moment they were sent; the rest are as they were."""
    if not 0 <= share < 1:
        raise AsuError(f"a share of {share} cannot fail", "choose a share from 0 to below 1")
    drawn = pd.Series(np.random.default_rng(seed).random(len(requests)) < share, requests.index)
    gone = {column: requests[column].mask(drawn) for column in ("first_s", "visible_s", "last_s")}
    counts = {column: requests[column].mask(drawn, 0)
              for column in ("output_tokens", "thinking_tokens", "answer_tokens")}
    return requests.assign(**gone, **counts, end_s=requests.end_s.mask(drawn, requests.sent_s),
                           error=requests.error.mask(drawn, "refused"),
                           outcome=requests.outcome.mask(drawn & requests.outcome.notna(), "failed"))


def prompt_words(requests: pd.DataFrame) -> pd.Series:
    """Words in each request's prompt, apart by spaces; NaN where its set is not at hand, or its prompt was made up."""
    asked = requests.outcome.notna()  # an answer to a prompt that was made up is not graded
    return pd.Series([_words(row.task).get(row.problem_id, np.nan) if known else np.nan
                      for row, known in zip(requests.itertuples(), asked, strict=True)], requests.index, dtype=float)


@lru_cache(maxsize=16)
def _words(task: str) -> dict[str, int]:
    try:
        return {problem.id: len(problem.prompt.split()) for problem in tasks.get(task).problems()}
    except AsuError:  # a set of the hub that is not in the cache
        return {}


def published(records: str, **labels) -> Study:
    """The runs in data/runs/<records> with these labels: published("h200", engine="lmdeploy")."""
    everything = Study.of([], records=records)
    return Study.of([spec for spec, _ in everything.store.history()], records=records).where(**labels)


def server_down(requests: int = 1000, at_once: int = 16) -> pd.Series:
    """What counting failures reports where no server listens: every connection refused, batch after batch.

    requests, refused, seconds; rps as the released client has it, from this machine's refusals. An HTTP client spends
    more time on each, so its number is lower; the honest one is 0 in any case.
    """
    with ThreadPoolExecutor(1) as pool:  # a notebook's own thread has an event loop already
        refused, seconds = pool.submit(asyncio.run, _refusals(requests, at_once)).result()
    return pd.Series({"requests": requests, "refused": refused, "seconds": seconds, "rps": requests / seconds})


async def _refusals(requests: int, at_once: int) -> tuple[int, float]:
    """(connections refused, seconds) at a port that is bound, so that nobody else has it, but does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        began, refused = time.monotonic(), 0
        for start in range(0, requests, at_once):
            tries = [asyncio.open_connection(*bound.getsockname()) for _ in range(min(at_once, requests - start))]
            refused += sum(isinstance(found, ConnectionRefusedError)
                           for found in await asyncio.gather(*tries, return_exceptions=True))
        return refused, time.monotonic() - began


def forms() -> pd.DataFrame:
    """Answers as models write them, and what two graders make of them: set, right answer, answer, ours, released.

    ours is "correct", "wrong" or "unparsed"; the released client knows only "correct" and "wrong".
    """
    rows = []
    for of, expected, text in released.FORMS:
        ours = {True: "correct", False: "wrong", None: "unparsed"}[_OURS[of](expected, text).correct]
        rows.append({"set": of, "right answer": expected, "answer": text, "here": ours,
                     "released client": "correct" if released.accepts(of, expected, text) else "wrong"})
    return pd.DataFrame(rows)


_OURS = {"GSM8K": partial(grading.integer, last_number=True), "MATH-500": grading.mathematics,
         "AIME 2024": grading.integer, "GPQA-diamond": partial(grading.choice, options={"A": "Paris", "B": "London"})}


# --- flaw by flaw --------------------------------------------------------------------------------------------------


COLUMNS = ["flaw", "title", "metric", "how", "honest", "flawed", "value", "lo", "hi", "unit", "n"]


def table(requests: pd.DataFrame, names: Iterable[str], *, events: pd.DataFrame | None = None,
          engine: pd.DataFrame | None = None, by: Sequence[str] = ("role",), assumed: Assumed | None = None,
          **options) -> pd.DataFrame:
    """Each flaw's effect on each headline number it touches: one row per group of `by`, flaw and number.

    Columns: `by`, flaw, title, metric, how ("ratio": flawed / honest; "difference": flawed − honest), honest, flawed,
    value, lo, hi (of the ratio or difference), unit (of value), n. Both sides are resampled together: problems,
    batches or twentieths of a run, whichever the number is made from. A number that neither side has gives no row.
    options: those of `stats.bootstrap`.
    """
    by, rows = list(by), []
    for key, part in requests.groupby(by, sort=False, dropna=False) if by else [((), requests)]:
        label = dict(zip(by, key, strict=True))
        for chosen in _known(names):
            sides = both(chosen, part, events, assumed)
            for name in chosen.touches:
                found = _compared(HEADLINES[name], sides, engine, options)
                if found is not None:
                    rows.append(label | {"flaw": chosen.name, "title": chosen.title, "metric": name} | found)
    return pd.DataFrame(rows, columns=[*by, *COLUMNS])


def together(requests: pd.DataFrame, events: pd.DataFrame, by: Sequence[str] = ("role",), **options) -> pd.DataFrame:
    """All flaws of TOGETHER at once, those that these requests can show: rows as `table` has them.

    Each headline number is made with all that touch it, one on top of the other, and with nothing else.
    """
    by, rows = list(by), []
    names = able(TOGETHER, requests, events)
    for key, part in requests.groupby(by, sort=False, dropna=False):
        label = dict(zip(by, key, strict=True)) | {"flaw": "together", "title": "all of these at once"}
        made = {(): part}  # by the flaws so far: numbers that begin with the same ones share them
        for metric in HEADLINES:
            chosen = tuple(name for name in names if metric in FLAWS[name].touches)
            for upto in range(1, len(chosen) + 1):
                if chosen[:upto] not in made:
                    made[chosen[:upto]] = FLAWS[chosen[upto - 1]].sides(made[chosen[:upto - 1]], events, Assumed())[1]
            found = _compared(HEADLINES[metric], (part, made[chosen]), None, options) if chosen else None
            if found is not None:
                rows.append(label | {"metric": metric} | found)
    return pd.DataFrame(rows, columns=[*by, *COLUMNS])


def both(chosen: Flaw | str, requests: pd.DataFrame, events: pd.DataFrame | None = None,
         assumed: Assumed | None = None) -> Sides:
    """The requests measured honestly and with one flaw; AsuError where these requests cannot show it."""
    chosen = FLAWS[chosen] if isinstance(chosen, str) else chosen
    honest, flawed = chosen.sides(requests, events, assumed or Assumed())
    if honest.empty:
        raise AsuError(f"no request shows “{chosen.title}”", "pass runs of both kinds: with a barrier and without, "
                       "or with the prefix cache on and several passes")
    return honest, flawed


def able(names: Iterable[str], requests: pd.DataFrame, events: pd.DataFrame | None = None) -> list[str]:
    """Those of the flaws that these requests can show, whichever of both sides they have to have."""
    sides = {flaw.name: flaw.sides(requests, events, Assumed()) for flaw in _known(names)}
    return [name for name, both_sides in sides.items() if not any(side.empty for side in both_sides)]


def gaps(requests: pd.DataFrame, speculation: pd.DataFrame, loads: pd.DataFrame, passes: pd.DataFrame) -> pd.DataFrame:
    """What the runs of the notebook cannot show, and why: columns flaw, why; no rows where nothing is missing."""
    found = []
    if speculation.empty:
        found.append((f"{FLAWS['chunks'].title}, with speculation", "no run speculated"))
    if requests.outcome.isna().all():
        found += [(FLAWS[name].title, "nothing was graded: what random weights say is no answer")
                  for name in ("graders", "bucket")]
    reasons = {"words": (requests, "the prompts were made up, as long as those recorded"),
               "barrier": (loads, "no runs with a barrier and without"),
               "one_pass": (passes, "every problem was asked once"),
               "warm_cache": (passes, "no problem was asked again with the prefix cache on")}
    found += [(FLAWS[name].title, why) for name, (rows, why) in reasons.items() if not able([name], rows)]
    return pd.DataFrame(found, columns=["flaw", "why"])


def change(name: str, metric: str, requests: pd.DataFrame, *, events: pd.DataFrame | None = None,
           engine: pd.DataFrame | None = None, assumed: Assumed | None = None, **options) -> Estimate:
    """What one flaw does to one headline number of these requests: flawed / honest, or flawed − honest."""
    found = _compared(HEADLINES[metric], both(next(_known([name])), requests, events, assumed), engine, options)
    return Estimate(np.nan) if found is None else Estimate.of({key: found[key] for key in
                                                               ("value", "lo", "hi", "unit", "n")})


def _known(names: Iterable[str]) -> Iterable[Flaw]:
    for name in names:
        if name not in FLAWS:
            raise AsuError(f"there is no flaw {name!r}", f"use some of: {', '.join(FLAWS)}")
        yield FLAWS[name]


_UNITS = {"requests": ["task", "problem_id"], "batches": ["run", "session", "batch"], "samples": ["run", "block"]}
_STRATA = {"requests": "task", "batches": "run", "samples": "run"}


def _compared(head: Headline, sides: Sides, engine: pd.DataFrame | None, options: dict) -> dict | None:
    """honest, flawed and their ratio or difference with its interval; None where neither side has the number."""
    made = [_rows(head.rows, side, engine) for side in sides]
    if any(rows is None for rows in made):
        return None
    frame = pd.concat([rows.assign(flawed=k) for k, rows in enumerate(made)], ignore_index=True)
    arms = [stats.on(frame.flawed == k, head.of(rows)) for k, rows in enumerate(made)]
    honest, flawed = (float(arm(np.ones((1, len(frame))))[0]) for arm in arms)
    if np.isnan(honest) and np.isnan(flawed):
        return None
    combine = stats.ratio if head.how == "ratio" else stats.difference
    found = stats.bootstrap(combine(arms[1], arms[0]), frame[_UNITS[head.rows]], strata=frame[_STRATA[head.rows]],
                            unit="×" if head.how == "ratio" else head.unit,
                            bounds=(-1, 1) if head.how == "difference" else None, **options)
    return {"how": head.how, "honest": honest, "flawed": flawed, **found.as_dict()}
