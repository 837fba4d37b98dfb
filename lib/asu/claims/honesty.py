"""14: measuring honestly. What the released client's way of measuring does to numbers, and to the verdicts on claims.

Frames: requests and events of runs without options, speculation and speculation_events of the same with n-gram
speculation, loads (with a barrier and without), passes (every problem several times, prefix cache on and off).
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pandas as pd

from asu import audit, metrics, stats
from asu.claims.core import MATERIAL_POINTS, MATERIAL_RATIO, NUMBERS, Claim, Number, Range, number
from asu.claims.paper import paper
from asu.contrast import of_role, over_problems
from asu.stats import Estimate

QUARTER = 1.25  # by so much a count or a time must be off to matter

# which headline number a recorded number is made of: a flaw that touches the one moves the other
MADE_OF = {
    "03.time_spearman_rllm": "e2e", "03.time_spearman_llm": "e2e", "03.time_spread_ratio": "e2e",
    "04.accuracy_difference_mathematics": "accuracy", "04.accuracy_difference_knowledge": "accuracy",
    "04.domain_gap": "accuracy",
    "05.batch_time_ratio": "time", "05.batch_tps_ratio": "tps", "05.batch_ttfvt_ratio": "ttfvt",
    "05.batch_accuracy_change": "accuracy",
    "09.time_ratio_ngram": "time", "09.tps_ratio_ngram": "tps", "09.ttfvt_ratio_ngram": "ttfvt",
    "09.accuracy_change_ngram": "accuracy",
}
# those that set the time of one run against that of another: the machine's pace in between is in them as well
BETWEEN_RUNS = {name for name, made in MADE_OF.items() if made != "accuracy" and "_ratio" in name}


def _per_event(requests: pd.DataFrame, events: pd.DataFrame, role: str, **options) -> Estimate:
    r = of_role(requests, role)
    if r.empty:
        return Estimate(np.nan)
    counted = audit.in_chunks(r, events)
    finished = r.error.isna().to_numpy()
    return over_problems(r, stats.ratio_of_sums(r.output_tokens * finished, counted.output_tokens * finished),
                         **options)


def _change(flaw: str, metric: str, requests: pd.DataFrame, role: str, events: pd.DataFrame | None = None,
            **options) -> Estimate:
    r = of_role(requests, role)
    return audit.change(flaw, metric, r, events=events, **options) if len(r) else Estimate(np.nan)


@number("14.tokens_per_event_rllm", "×", "requests", "events")
def tokens_per_event_rllm(requests: pd.DataFrame, events: pd.DataFrame, **options) -> Estimate:
    """Output tokens per stream event that the released client would count, RLLM, without speculation."""
    return _per_event(requests, events, "RLLM", **options)


@number("14.tokens_per_event_speculation", "×", "speculation", "speculation_events")
def tokens_per_event_speculation(speculation: pd.DataFrame, speculation_events: pd.DataFrame, **options) -> Estimate:
    """Output tokens per stream event that the released client would count, RLLM, n-gram speculation on."""
    return _per_event(speculation, speculation_events, "RLLM", **options)


@number("14.reasoning_field_tps_rllm", "×", "requests")
def reasoning_field_tps_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Throughput as seen by a client that reads only `reasoning_content`, over the true one, RLLM."""
    return _change("reasoning_field", "tps", requests, "RLLM", **options)


@number("14.tbt_tbt_rllm", "×", "requests")
def tbt_tbt_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """TBT as released over TBT, RLLM."""
    return _change("tbt", "tbt", requests, "RLLM", **options)


@number("14.tbt_role_shift", "×", "requests")
def tbt_role_shift(requests: pd.DataFrame, **options) -> Estimate:
    """RLLM over LLM of the TBT as released, over the same of the TBT: what the flaw does to their comparison."""
    sides = [metrics.derive(side) for side in audit.both("tbt", requests)]
    r = pd.concat([side.assign(flawed=k) for k, side in enumerate(sides)], ignore_index=True)
    arms = {(role, k): stats.on(rows, stats.mean(r.tbt_s.where(r.finished)[rows])) for role in ("RLLM", "LLM")
            for k in (0, 1) for rows in [(r.role == role) & (r.flawed == k)]}
    changes = [stats.ratio(arms[role, 1], arms[role, 0]) for role in ("RLLM", "LLM")]
    return over_problems(r, stats.ratio(*changes), **options)


@number("14.survivors_ttfvt_rllm", "×", "requests")
def survivors_ttfvt_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Mean TTFVT of requests that showed a visible token, over that of all (survivor curve), RLLM."""
    return _change("survivors", "ttfvt", requests, "RLLM", **options)


@number("14.graders_accuracy_rllm", "share", "requests")
def graders_accuracy_rllm(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy by the released client's graders minus accuracy, RLLM."""
    return _change("graders", "accuracy", requests, "RLLM", **options)


@number("14.barrier_time_rllm", "×", "loads")
def barrier_time_rllm(loads: pd.DataFrame, **options) -> Estimate:
    """Time per request with the client's barrier over that without, RLLM, all sets together."""
    return _change("barrier", "time", loads, "RLLM", **options)


@number("14.warm_ttft", "×", "passes")
def warm_ttft(passes: pd.DataFrame, **options) -> Estimate:
    """Mean TTFT of later passes over that of the first with the prefix cache on, over the same with it off."""
    r = metrics.derive(passes)
    r = r[r.finished].reset_index(drop=True)
    if r.prefix_caching.nunique() < 2 or r.repeat.max() == r.repeat.min():
        return Estimate(np.nan)
    first = r.repeat == r.repeat.min()
    later = [stats.ratio(*(stats.on(rows, stats.mean(r.ttft_s[rows])) for rows in (~first & on, first & on)))
             for on in (r.prefix_caching, ~r.prefix_caching)]
    return over_problems(r, stats.ratio(*later), **options)


def verdicts(claims: Iterable[Claim], frames: Mapping[str, Mapping[str, pd.DataFrame]],
             flaws: Iterable[str] = ("chunks", *audit.ON_SAME_RUNS), assumed: audit.Assumed | None = None,
             **options) -> pd.DataFrame:
    """Each claim decided honestly and with each flaw that touches its number: one row per claim and flaw.

    None for a number that neither way of measuring has, for a flaw that these runs cannot show, nor for claims
    `not_told` from them.

    frames: by notebook ("04"), the frames its numbers are made from, and `events` where there are any.
    Columns: claim, statement, flaw, title, lo_holds, hi_holds (the claim's range), unit, honest (of the runs as they
    are, the same in all rows of a claim), flawed (Estimates), verdict_honest, verdict_flawed, flips: whether the flaw
    turns the verdict, also from the honest one on the records that the flaw is shown on, where some are made to fail.
    """
    claims, rows = list(claims), []
    flaws = [audit.FLAWS[name] for name in flaws]
    untold = set(not_told(claims, frames).claim)
    for claim, n, given in _measured(claims, frames):
        of, first = MADE_OF[claim.number], given[n.frames[0]]
        if claim.id in untold or (of == "accuracy" and first.outcome.isna().all()):
            continue
        honest = n.of(*(given[name] for name in n.frames), **options)
        for flaw in flaws:
            if of in flaw.touches and audit.able([flaw.name], first, given.get("events")):
                sides = [audit.both(flaw, given[name], given.get("events"), assumed) for name in n.frames]
                shown_on, flawed = (n.of(*(side[k] for side in sides), **options) for k in (0, 1))
                rows += [_row(claim, flaw, n.unit, honest, shown_on, flawed)] if honest.known or flawed.known else []
    return pd.DataFrame(rows, columns=["claim", "statement", "flaw", "title", "lo_holds", "hi_holds", "unit", "honest",
                                       "flawed", "verdict_honest", "verdict_flawed", "flips"]).astype({"flips": bool})


def not_told(claims: Iterable[Claim], frames: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Claims on time between runs whose interval would lack the machine's own changes of pace.

    An effect's interval has them where the runs with the option off were made again (trial 1); no other number's has.
    Columns: claim, statement, notebook (the one that decides it).
    """
    rows = [(claim.id, claim.statement, claim.notebook) for claim, n, given in _measured(claims, frames)
            if claim.number in BETWEEN_RUNS and not _widened(claim.number, given[n.frames[0]])]
    return pd.DataFrame(rows, columns=["claim", "statement", "notebook"])


def _measured(claims: Iterable[Claim], frames: Mapping[str, Mapping[str, pd.DataFrame]]
              ) -> Iterator[tuple[Claim, Number, Mapping[str, pd.DataFrame]]]:
    """The claims whose number a flaw may touch and that the frames can make, with the number and its frames."""
    for claim in claims:
        given, n = frames.get(claim.number[:2], {}), NUMBERS[claim.number]
        if claim.number in MADE_OF and set(n.frames) <= set(given):
            yield claim, n, given


def _widened(name: str, requests: pd.DataFrame) -> bool:
    return name.startswith("09.") and "trial" in requests and {0, 1} <= set(requests.trial)


def _row(claim: Claim, flaw: audit.Flaw, unit: str, honest: Estimate, shown_on: Estimate, flawed: Estimate) -> dict:
    before, injected, after = (claim.holds.verdict(number)[0] for number in (honest, shown_on, flawed))
    return {"claim": claim.id, "statement": claim.statement, "flaw": flaw.name, "title": flaw.title,
            "lo_holds": claim.holds.lo, "hi_holds": claim.holds.hi, "unit": unit, "honest": honest, "flawed": flawed,
            "verdict_honest": before, "verdict_flawed": after, "flips": after not in (before, injected)}


def guidance(numbers: Mapping[str, Estimate | Mapping | float]) -> str:
    """One sentence for who measures, from the recorded numbers."""
    worst = {name: Estimate.of(numbers.get(name)) for name, _ in _ADVICE}
    told = [words.format(times=_times(worst[name])) for name, words in _ADVICE
            if worst[name].known and _matters(worst[name])]
    if not told:
        return ("None of the flaws moved a number here by a quarter; on other engines and models each still may, "
                "so count the engine's tokens and report all five outcomes.")
    return (f"Before a number is believed, ask how it was made: {'; '.join(told)} (with these models on this "
            "machine; how far another engine's numbers move must be measured there).")


_ADVICE = [
    ("14.tokens_per_event_speculation", "take tokens from the engine's own count, for a stream event held {times} as "
                                        "many under speculation"),
    ("14.tbt_role_shift", "divide a time by the tokens made in it, or a reasoning model's TBT comes out {times} what "
                          "it is, beside its plain twin's"),
    ("14.survivors_ttfvt_rllm", "keep requests that were cut off while thinking, or the mean TTFVT comes out {times} "
                                "what it is"),
    ("14.barrier_time_rllm", "send the next request when one leaves, for waiting for whole batches took {times} as "
                             "long"),
    ("14.graders_accuracy_rllm", "read the answers that a grader rejects: strict rules moved accuracy by {times}, all "
                                  "by forms of answers that they do not know"),
]


def _times(number: Estimate) -> str:
    return f"{100 * number.value:+.0f} points" if number.unit == "share" else f"{number.value:.3g} times"


def _matters(number: Estimate) -> bool:
    if not number.has_interval:
        return False
    if number.unit == "share":
        return number.hi < -MATERIAL_POINTS or number.lo > MATERIAL_POINTS
    return number.lo > QUARTER or number.hi < 1 / QUARTER


_TOO_FEW = paper("tokens_per_event").value
_CLIENT = "not separated: built into the released client [released client]"
CLAIMS = [
    Claim("honest.chunks", "With speculation, counting stream events misses more than a fifth of a reasoning model's "
          "tokens.", "14.tokens_per_event_speculation", Range(lo=QUARTER),
          f"counted tokens {_TOO_FEW.min():g} to {_TOO_FEW.max():g} times too few, 7B [figure, inferred]",
          float(_TOO_FEW.mean())),
    Claim("honest.field", "A client that reads only the old name of the thinking field misses most of a reasoning "
          "model's tokens.", "14.reasoning_field_tps_rllm", Range(hi=0.5), _CLIENT),
    Claim("honest.tbt", "Dividing by hidden tokens flatters a reasoning model's TBT beside its plain twin's.",
          "14.tbt_role_shift", Range(hi=1 / MATERIAL_RATIO), _CLIENT),
    Claim("honest.survivors", "Leaving out requests cut off while thinking flatters the mean TTFVT by over a tenth.",
          "14.survivors_ttfvt_rllm", Range(hi=1 - MATERIAL_POINTS), _CLIENT),
    Claim("honest.graders", "Strict graders take more than ten points of accuracy from a reasoning model.",
          "14.graders_accuracy_rllm", Range(hi=-MATERIAL_POINTS), _CLIENT),
    Claim("honest.barrier", "The client's barrier makes a reasoning model's run longer by more than a quarter.",
          "14.barrier_time_rllm", Range(lo=QUARTER), _CLIENT),
    Claim("honest.warm", "Passes that find their prompts in the cache have earlier first tokens than the first pass.",
          "14.warm_ttft", Range(hi=1), _CLIENT),
]
