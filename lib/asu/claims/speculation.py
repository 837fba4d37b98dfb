"""09: speculative decoding, on against off, by prompt look-up ("ngram") and with a smaller model's drafts ("draft").

A step of the engine yields one token of its own and the drafted ones it keeps. Its counters tell how many those are;
the client sees the same as tokens per stream event, which also tells phase and difficulty. Intervals come from
resampled problems.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from asu import audit, effects, metrics, stats
from asu.claims.core import SILENT, SMALL_POINTS, Claim, Range, number
from asu.contrast import contrast, groups, of_role, over_blocks, over_problems, texts_changed
from asu.errors import AsuError
from asu.specs import MOST_DRAFTED
from asu.stats import Estimate

OFF = "none"
METHODS = ("ngram", "draft")
PHASES = ("thinking", "answer")


def configurations(model: str, drafts: Mapping[str, str], tokens: Iterable[int],
                   acceptances: Sequence[float] = ()) -> list[dict]:
    """What to speculate with, for a study: prompt look-up, and the draft model where `drafts` names one for `model`.

    acceptances: with random weights, mean tokens a step shall yield, one way of drafting for each. There is no look-up
    then: it finds nothing to draft in their random text.
    """
    chosen = []
    for count in tokens:
        if not acceptances:
            chosen.append({"method": "ngram", "tokens": count})
        if model in drafts:
            chosen += [{"method": "draft", "tokens": count, "draft": drafts[model], "acceptance": mean}
                       for mean in acceptances or [None]]
    return chosen


# --- frames ---------------------------------------------------------------------------------------------------------


def method(speculation: pd.Series) -> pd.DataFrame:
    """method and tokens of speculation labels: "ngram4" → ngram, 4; "draft4@2" → draft, 4; "none" → none, 0."""
    parts = speculation.str.extract(r"^([a-z]+)(\d*)(?:@.*)?$")
    return pd.DataFrame({"method": parts[0], "tokens": pd.to_numeric(parts[1]).fillna(0).astype(int)},
                        index=speculation.index)


def _on(frame: pd.DataFrame, wanted: str) -> str | None:
    """The one label of a method in the frame, None without it."""
    found = [label for label in frame.speculation.unique() if label.startswith(wanted)]
    if len(found) > 1:
        raise AsuError(f"the frame has {' and '.join(found)}", "pass runs that draft one number of tokens")
    return found[0] if found else None


def positions(engine: pd.DataFrame, **options) -> pd.DataFrame:
    """Share of drafts kept up to each position, by the engine's counters, a row per group and position.

    Columns: pair, size, role, task, speculation, method, tokens, position (from 1), value, lo, hi [share of drafts],
    unit, n (stretches of time). Intervals from resampled twentieths of each run. Empty where the engine does not count
    by position.
    """
    by, rows = ["pair", "size", "role", "task", "speculation"], []
    told = [c for c in (f"spec_accepted_{i}" for i in range(MOST_DRAFTED)) if c in engine]
    if "spec_drafts" in engine:
        for key, part in engine[engine.speculation != OFF].groupby(by, sort=False):
            made = metrics.in_blocks(_increases(part.dropna(subset=["spec_drafts"]), ["spec_drafts", *told]))
            rows += [dict(zip(by, key, strict=True)) | {"position": i + 1} | over_blocks(
                made, stats.ratio_of_sums(made[c], made.spec_drafts), unit="share", **options).as_dict()
                     for i, c in enumerate(told) if len(made) and made[c].notna().all()]
    found = pd.DataFrame(rows, columns=[*by, "position", "value", "lo", "hi", "unit", "n"])
    return found.join(method(found.speculation)) if len(found) else found.assign(method=[], tokens=[])


def _increases(engine: pd.DataFrame, counters: list[str]) -> pd.DataFrame:
    """Readings with what each cumulative counter rose by since the one before, within a run and session."""
    engine = engine.sort_values(["run", "session", "t_s"], kind="stable")
    rose = engine.groupby(["run", "session"])[counters].diff()
    return engine.assign(**rose)[rose[counters[0]].notna()]


def longest(positions: pd.DataFrame) -> pd.DataFrame:
    """Of `positions`, each method's longest drafts; of several ways to make them the first."""
    first = positions.loc[positions.groupby("method").tokens.idxmax()].speculation
    return positions[positions.speculation.isin(first)]


def yields(requests: pd.DataFrame, events: pd.DataFrame, by=("speculation", "size", "role"), **options) -> pd.DataFrame:
    """Tokens per stream event with speculation on, in each phase: `by`, phase, value, lo, hi, unit, n."""
    r, rows = _steps(requests, events), []
    for key, part in r.groupby(list(by), sort=False):
        for phase in PHASES:
            found = over_problems(part.reset_index(drop=True), _per_step(part, phase), unit="tok", **options)
            rows.append(dict(zip(by, key, strict=True)) | {"phase": phase} | found.as_dict())
    return pd.DataFrame(rows).dropna(subset=["value"]).reset_index(drop=True)


def event_check(requests: pd.DataFrame, events: pd.DataFrame, engine: pd.DataFrame) -> pd.DataFrame:
    """Does one event hold one step? A row per run: stream events, the engine's steps, and events per step.

    steps: the larger of output tokens − drafted tokens kept (the engine counts as kept also what lies beyond the end
    of a text and is never sent) and drafts made + requests (the first token has no draft; prompt look-up does not
    always find one). Below one, the engine merged steps into an event because the client read late.
    """
    found = requests.groupby(["run", "size", "role", "task", "speculation"], sort=False).agg(
        requests=("output_tokens", "size"), output_tokens=("output_tokens", "sum")).reset_index()
    found["events"] = found.run.map(events.groupby("run").size())
    by_run = dict(iter(engine.groupby("run")))
    kept, drafts = ([metrics.counted(by_run[run], name) if run in by_run and name in engine else np.nan
                     for run in found.run] for name in ("spec_accepted", "spec_drafts"))
    found["steps"] = _steps_taken(found.output_tokens, found.requests, np.nan_to_num(kept), drafts)
    return found.assign(events_per_step=found.events / found.steps)


def _steps_taken(tokens, requests, kept, drafts):
    """Steps that wrote `tokens`, by the engine's counters; see `event_check`. Not known where neither counter is."""
    return np.fmax(tokens - kept, drafts + requests)


def _per_engine_step(requests: pd.DataFrame, engine: pd.DataFrame) -> float:
    """Tokens per step of runs that speculated, by the engine's counters."""
    kept, drafts = (metrics.counted(engine, name) if name in engine else np.nan
                    for name in ("spec_accepted", "spec_drafts"))
    tokens = requests.output_tokens.sum()
    return tokens / _steps_taken(tokens, len(requests), kept, drafts)


def rates(requests: pd.DataFrame, engine: pd.DataFrame, control: pd.DataFrame, by: Sequence[str] = ("speculation",),
          **options) -> pd.DataFrame:
    """What drafts are worth: a row per combination of `by`, of one model.

    Columns: `by`, kept [share of drafted tokens] and tokens_per_step by the engine's counters, speed_up (time per
    request off / on) and step_cost (how many times as long a step takes as one without drafts: tokens_per_step over
    speed_up, so that drafting pays where a step yields more tokens than that), both Estimates. control: requests whose
    runs made again tell the machine's changes of pace.
    """
    rows = []
    for key, part in engine[engine.speculation != OFF].groupby(list(by), sort=False):
        named = dict(zip(by, key, strict=True))
        both = requests[requests.speculation.isin([OFF, named["speculation"]])]
        for label in by:
            both = both if label == "speculation" else both[both[label] == named[label]]
        drafted, kept = metrics.counted(part, "spec_drafted"), metrics.counted(part, "spec_accepted")
        per_step = _per_engine_step(both[both.speculation != OFF], part)
        faster = _faster(both, named["speculation"], control, **options)
        cost = replace(faster, value=per_step / faster.value, lo=per_step / faster.hi, hi=per_step / faster.lo)
        rows.append(named | {"kept": kept / drafted if drafted else np.nan, "tokens_per_step": per_step,
                             "speed_up": faster, "step_cost": cost})
    return pd.DataFrame(rows, columns=[*by, "kept", "tokens_per_step", "speed_up", "step_cost"])


def speedups(requests: pd.DataFrame, control: pd.DataFrame, **options) -> pd.DataFrame:
    """Time per request off over on, by batch size: speculation, at_once, value, lo, hi, unit, n; above 1 is faster.

    control: requests whose runs made again tell the machine's changes of pace.
    """
    at_once, rows = metrics.load_size(requests.load), []
    for label in [x for x in requests.speculation.unique() if x != OFF]:
        rows += [{"speculation": label, "at_once": size} | _faster(
            requests[at_once == size], label, control, **options).as_dict()
                 for size in sorted(at_once[requests.speculation == label].unique())]
    return pd.DataFrame(rows)


def _faster(requests: pd.DataFrame, on: str, control: pd.DataFrame, **options) -> Estimate:
    """Time per request off over on, over all settings; no interval from fewer problems than one can be told by."""
    took = effects.estimate(requests, "time_per_request", arm="speculation", on=on, off=OFF, control=control, **options)
    told = took.n >= stats.FEWEST_CLUSTERS
    return replace(took, value=1 / took.value, lo=1 / took.hi if told else np.nan, hi=1 / took.lo if told else np.nan)


def two_ways(requests: pd.DataFrame, events: pd.DataFrame, control: pd.DataFrame | None = None, **options
             ) -> pd.DataFrame:
    """Throughput on over off by set, counted in tokens and in stream events, rows of `effects.table` with `count`.

    control: requests whose runs made again tell the machine's changes of pace; None: `requests`.
    """
    control = requests if control is None else control
    counted = {"tokens": (requests, control),
               "stream events": (audit.in_chunks(requests, events), audit.in_chunks(control, events))}
    return pd.concat([effects.table(frame, arm="speculation", off=OFF, by=["task", "role"], metrics=["tps"],
                                    control=pace, **options).assign(count=name)
                      for name, (frame, pace) in counted.items()], ignore_index=True)


def _steps(requests: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    on = requests[(requests.speculation != OFF) & requests.error.isna()]
    return audit.count_events(on, events).reset_index(drop=True)


def _per_step(rows: pd.DataFrame, phase: str) -> stats.Statistic:
    return stats.ratio_of_sums(rows[f"{phase}_tokens"], rows[f"{phase}_events"])


def _speedup(rows: pd.DataFrame, label: str) -> stats.Statistic:
    """Off over on; the runs of every setting in `rows` have both."""
    return stats.geometric_mean(contrast(rows, "speculation", OFF, label, lambda part: stats.mean(part.share_s),
                                         combine=stats.ratio))


# --- numbers --------------------------------------------------------------------------------------------------------


def _effect(requests: pd.DataFrame, wanted: str, name: str, role: str | None = "RLLM", task: str | None = None,
            **options) -> Estimate:
    """An effect on one role and task, or on all; how far runs made again are apart, all runs tell."""
    rows = requests if role is None else of_role(requests, role)
    rows = rows if task is None else rows[rows.task == task]
    on = _on(rows, wanted)
    if on is None:
        return Estimate(np.nan)
    return effects.estimate(rows, name, arm="speculation", on=on, off=OFF, control=requests, **options)


def _enter_effects() -> None:
    """The effects of both methods on the RLLM, over sets and sizes."""
    said = {"time_per_request": ("time", "Time per request"), "e2e": ("e2e", "E2E"), "ttfvt": ("ttfvt", "TTFVT"),
            "tps": ("tps", "Throughput in tokens"), "output_tokens": ("length", "Output tokens")}
    for wanted in METHODS:
        for name, (short, title) in said.items():
            def of(requests, _wanted=wanted, _name=name, **options):
                return _effect(requests, _wanted, _name, **options)

            of.__doc__ = f"{title} with {wanted} speculation over without, RLLM, geometric mean over sets and sizes."
            number(f"09.{short}_ratio_{wanted}", "×", "requests", per_task=short in ("time", "tps"), whole=True)(of)

        def chunks(requests, events, _wanted=wanted, **options):
            return _effect(audit.in_chunks(requests, events), _wanted, "tps", **options)

        chunks.__doc__ = f"Throughput in stream events with {wanted} speculation over without, RLLM."
        number(f"09.tps_ratio_{wanted}_chunks", "×", "requests", "events", per_task=True, whole=True)(chunks)

        def accuracy(requests, _wanted=wanted, **options):
            return _effect(requests, _wanted, "accuracy", None, **options)

        accuracy.__doc__ = f"Accuracy with {wanted} speculation − without, over sets, sizes and roles."
        number(f"09.accuracy_change_{wanted}", "share", "requests")(accuracy)

        def texts(requests, _wanted=wanted, **options):
            return _texts_changed(requests, _wanted, **options)

        texts.__doc__ = f"Share of requests whose text differs with {wanted} speculation from that without."
        number(f"09.texts_changed_{wanted}", "share", "requests")(texts)

        def phases(requests, events, _wanted=wanted, **options):
            return _phase_difference(requests, events, _wanted, **options)

        phases.__doc__ = f"Tokens per step with {wanted} speculation, thinking − answer, RLLM."
        number(f"09.step_difference_{wanted}", "tok", "requests", "events")(phases)

        def cost(requests, engine, _wanted=wanted, **options):
            return _step_cost(requests, engine, _wanted, **options)

        cost.__doc__ = f"How many times as long a step with {wanted} speculation takes: tokens it must yield to pay."
        number(f"09.step_cost_{wanted}", "×", "requests", "engine")(cost)

        def crossed(sizes, _wanted=wanted, **options):
            return crossing(sizes, _wanted, **options)

        crossed.__doc__ = f"Requests in flight from which on {wanted} speculation no longer saves time."
        number(f"09.crossing_{wanted}", "requests", "sizes")(crossed)

        for end, pick in (("smallest", min), ("largest", max)):
            def at(sizes, requests, _wanted=wanted, _pick=pick, **options):
                return _speedup_at(sizes, requests, _wanted, _pick, **options)

            at.__doc__ = f"Speed-up by {wanted} speculation at the {end} batch size."
            number(f"09.speedup_{wanted}_{end}", "×", "sizes", "requests")(at)


def _texts_changed(requests: pd.DataFrame, wanted: str, **options) -> Estimate:
    on = _on(requests, wanted)
    return texts_changed(requests[requests.trial == 0], arm="speculation", on=on, off=OFF, **options)


def _phase_difference(requests: pd.DataFrame, events: pd.DataFrame, wanted: str, **options) -> Estimate:
    r = of_role(requests, "RLLM")
    if _on(r, wanted) is None:
        return Estimate(np.nan)
    r = _steps(r[r.speculation == _on(r, wanted)], events)
    parts = [stats.on(mask, stats.difference(_per_step(r[mask], "thinking"), _per_step(r[mask], "answer")))
             for mask in groups(r, ["size", "task"])]
    return over_problems(r, stats.average(parts), **options)


def _step_cost(requests: pd.DataFrame, engine: pd.DataFrame, wanted: str, **options) -> Estimate:
    """Tokens per step by the engine's counters times time per request on / off, geometric means over sets and sizes."""
    on = _on(of_role(requests, "RLLM"), wanted)
    if on is None:
        return Estimate(np.nan)
    sent, read = (frame[(frame.role == "RLLM") & (frame.speculation == on)] for frame in (requests, engine))
    counters = dict(iter(read.groupby(["size", "task"])))
    yielded = [_per_engine_step(part, counters[key]) if key in counters else np.nan
               for key, part in sent.groupby(["size", "task"])]
    took, per_step = _effect(requests, wanted, "time_per_request", **options), np.exp(np.mean(np.log(yielded)))
    return replace(took, value=took.value * per_step, lo=took.lo * per_step, hi=took.hi * per_step)


@number("09.role_ratio_ngram", "×", "requests")
def role_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Time per request with ngram speculation over without, RLLM over LLM: below 1, reasoning profits more."""
    on = _on(requests, "ngram")
    if on is None:
        return Estimate(np.nan)
    return effects.special(requests, "time_per_request", arm="speculation", on=on, off=OFF, **options)


def crossing(sizes: pd.DataFrame, wanted: str, **options) -> Estimate:
    """Batch size from which on the speed-up stays below 1, between measured sizes along their logarithms.

    Not known where it is above 1 at the largest size measured; the smallest size where it is below at all of them. A
    bound beyond the largest size is that size.
    """
    on = _on(sizes, wanted)
    if on is None:
        return Estimate(np.nan)
    r = sizes.assign(at_once=metrics.load_size(sizes.load), share_s=metrics.time_shares(sizes))
    r = r[r.speculation.isin([OFF, on])].reset_index(drop=True)
    at, parts = np.sort(r.at_once[r.speculation == on].unique()), []
    for size in at:
        mask = (r.at_once == size).to_numpy()
        parts.append(stats.on(mask, _speedup(r[mask].reset_index(drop=True), on)))

    def statistic(w: np.ndarray) -> np.ndarray:
        return _from_where(np.log2(at), np.log(np.stack([part(w) for part in parts])))

    found = over_problems(r, statistic, **options)
    if not np.isfinite(found.value):
        return Estimate(np.nan)
    return Estimate(found.value, found.lo, min(found.hi, float(at[-1])), found.unit, found.n)


def _from_where(x: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """2^x from which on each column of `gains` (sizes, draws) stays below 0, linear between sizes; inf if it does not.

    A dip that the largest size has overcome is no crossing: it is more often noise.
    """
    above = np.vstack([np.ones(gains.shape[1], bool), gains >= 0])
    last = len(x) - np.argmax(above[::-1], axis=0)  # sizes up to the last one where it pays; 0: none
    found = np.where(last == len(x), np.inf, 2 ** x[0])
    for column in np.flatnonzero((last > 0) & (last < len(x))):
        i = last[column]
        paid, lost = gains[i - 1, column], gains[i, column]
        found[column] = 2 ** (x[i - 1] + paid / (paid - lost) * (x[i] - x[i - 1]))
    return found


def _speedup_at(sizes: pd.DataFrame, requests: pd.DataFrame, wanted: str, pick, **options) -> Estimate:
    on, at_once = _on(sizes, wanted), metrics.load_size(sizes.load)
    if on is None:
        return Estimate(np.nan)
    return _faster(sizes[at_once == pick(at_once[sizes.speculation == on])], on, requests, **options)


_enter_effects()


# --- what follows ---------------------------------------------------------------------------------------------------


def break_even(rates: pd.DataFrame, wanted: str) -> float:
    """Tokens a step must yield for a method's drafts to pay, between the assumed yields of `rates` around it.

    Along the logarithm of the speed-up. NaN where yields were not varied or none is on each side: what a step costs may
    depend on how many drafts are kept, so that one yield does not tell of another.
    """
    mine = rates[rates.speculation.str.startswith(wanted)]
    mine = mine[mine.speculation.str.split("@").str[0].duplicated(keep=False)].sort_values("tokens_per_step")
    yields, gains = mine.tokens_per_step.to_numpy(float), np.log([faster.value for faster in mine.speed_up])
    if len(mine) < 2 or not gains[0] <= 0 <= gains[-1] or (np.diff(gains) <= 0).any():
        return np.nan
    return float(np.interp(0, gains, yields))


def guidance(numbers: Mapping[str, Estimate], sizes: pd.DataFrame, rates: pd.DataFrame, at_once: int) -> str:
    """One sentence for a serving engineer from the recorded numbers.

    sizes: requests by batch size; rates: of `rates`; at_once: requests in flight of all other numbers.
    """
    told, crossings = [], False
    for wanted, title in (("ngram", "prompt look-up"), ("draft", "a small draft model")):
        time, cost, crossed, *ends = (Estimate.of(numbers.get(f"09.{name}_{wanted}{end}")) for name, end in (
            ("time_ratio", ""), ("step_cost", ""), ("crossing", ""), ("speedup", "_smallest"), ("speedup", "_largest")))
        mine = sizes[sizes.speculation.str.startswith(wanted)]
        sent = metrics.load_size(mine.load)
        parts = [] if sent.empty else _at_ends(ends, [int(sent.min()), int(sent.max())])
        parts = [f"on {' and '.join(mine.task.unique())} {part}" for part in parts[:1]] + parts[1:]
        assumed = mine.speculation.str.extract(r"@(.*)")[0].dropna()
        if parts and len(assumed):
            parts[0] = f"whose drafts yield {assumed.iloc[0]} tokens a step (set, not measured) {parts[0]}"
        if crossed.known and crossed.value <= sent.min():
            parts.append("pays with no number in flight that was measured")
        elif crossed.known and Range(lo=1).verdict(ends[1])[0] == "not supported":
            crossings = True
            parts.append(f"stops paying between {sent[sent <= crossed.value].max():.0f} and "
                         f"{sent[sent >= crossed.value].min():.0f} in flight")
        if time.known:
            does = {"supported": f"saves {1 - time.value:.0%} of the time per request",
                    "not supported": f"costs {time.value - 1:.0%} more time per request",
                    "undecided": "has no effect on time per request that is certain"}[Range(hi=1).verdict(time)[0]]
            parts.append(f"over all sets together {does} ({time}, {at_once} in flight, runs made again counted)")
        parts += _worth(cost, break_even(rates, wanted), mine.speculation)
        if parts:
            told.append(f"{title} {', '.join(parts[:-1])}{', and ' * (len(parts) > 1)}{parts[-1]}")
    if not told:
        return "No speculation was measured, so nothing is advised."
    off = ", and switch it off beyond the crossing" if crossings else ""
    return (f"For a reasoning model: {'; '.join(told)} (these models, this machine); count tokens, not stream events, "
            f"when you judge it{off}.")


def _worth(cost: Estimate, even: float, labels: pd.Series) -> list[str]:
    """What a step must yield to pay, or that no draft of so many tokens can: it costs more than it could yield."""
    if not cost.known:
        return []
    if np.isfinite(even):
        return [f"must yield more than about {even:.1f} tokens a step to pay"]
    most = method(labels).tokens.max() + 1
    if cost.lo > most:
        return [f"cannot pay with drafts this short: a step takes {cost} as long, and yields {most} tokens at most"]
    return [f"must yield more than {cost.value:.1f} [{cost.lo:.1f}, {cost.hi:.1f}] tokens a step to pay"]


def _at_ends(ends: list[Estimate], at_once: list[int]) -> list[str]:
    """What it does to speed with the fewest and with the most requests in flight; once where both are one or alike."""
    found = {size: end for end, size in zip(ends, at_once, strict=True) if end.known}
    words = {"supported": "is faster", "not supported": "is slower", "undecided": "is not certainly faster or slower"}
    by_verdict: dict[str, list[str]] = {}
    for size, end in found.items():
        by_verdict.setdefault(Range(lo=1).verdict(end)[0], []).append(f"with {size} in flight ({end} as fast)")
    return [f"{words[verdict]} {' and '.join(where)}" for verdict, where in by_verdict.items()]


CLAIMS = [
    Claim("spec.time", "Speculative decoding cuts the running time.", "09.time_ratio_ngram", Range(hi=1), SILENT),
    Claim("spec.tps", "Speculative decoding lowers the throughput.", "09.tps_ratio_ngram", Range(hi=1), SILENT),
    Claim("spec.tps_events", "Counted in stream events, as the paper's client counts, it lowers the throughput.",
          "09.tps_ratio_ngram_chunks", Range(hi=1), SILENT),
    Claim("spec.ttfvt", "Speculative decoding makes users wait longer for the first visible token.",
          "09.ttfvt_ratio_ngram", Range(lo=1), SILENT),
    Claim("spec.accuracy", "Speculative decoding keeps accuracy.", "09.accuracy_change_ngram",
          Range(-SMALL_POINTS, SMALL_POINTS), SILENT),
    Claim("spec.reasoning", "Speculative decoding saves a reasoning model more time than its plain twin.",
          "09.role_ratio_ngram", Range(hi=1), SILENT),
]
