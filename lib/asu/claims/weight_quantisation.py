"""06: weight quantisation (frame `requests`, runs with quantised weights and with bf16, made again once)."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from asu import drift, effects, metrics
from asu.claims.core import MATERIAL_POINTS, SILENT, SMALL_POINTS, Claim, Range, number
from asu.claims.paper import SETS
from asu.contrast import of_role
from asu.stats import Estimate

SCHEMES = {"w4a16": "GPTQ-Int4 (w4a16)", "w8a8": "INT8 (w8a8)", "fp8": "FP8", "awq": "AWQ",
           "bnb4": "bitsandbytes 4-bit", "modelopt_fp8": "Model Optimizer's FP8"}
SHIPPED = ("w4a16", "w8a8", "fp8")  # what runs on every machine; the rest needs a GPU
ARM = {"arm": "weights", "off": "bf16"}
HARD = "AIME-2024"


def _effect(requests: pd.DataFrame, name: str, scheme: str, **options) -> Estimate:
    """An effect on reasoning models over their sets and sizes; not known for a scheme that was not run."""
    chosen = of_role(requests, "RLLM")
    if not (chosen.weights == scheme).any():
        return Estimate(np.nan)
    return effects.estimate(chosen, name, on=scheme, **ARM, **options)


def _enter(scheme: str, title: str) -> None:
    """The numbers of one scheme."""

    def enter(name: str, unit: str, meaning: str, of: Callable[..., Estimate]) -> None:
        of.__doc__ = meaning
        number(f"06.{name}_{scheme}", unit, "requests")(of)

    def hard(requests: pd.DataFrame, **options) -> Estimate:
        return _effect(requests[requests.task.map(SETS) == HARD], "accuracy", scheme, **options)

    def special(requests: pd.DataFrame, **options) -> Estimate:
        both = effects.answered(requests, **ARM)
        if set(both.role[both.weights == scheme]) != {"RLLM", "LLM"}:
            return Estimate(np.nan)
        return effects.special(both, "accuracy", on=scheme, **ARM, **options)

    for name, unit, what in (("accuracy", "share", "Change of accuracy"), ("tokens", "×", "Ratio of output tokens"),
                             ("tps", "×", "Ratio of throughput"), ("e2e", "×", "Ratio of mean E2E")):
        effect = "output_tokens" if name == "tokens" else name
        enter(name, unit, f"{what} by {title} weights against bf16, RLLM, mean over sets and sizes.",
              lambda requests, effect=effect, **options: _effect(requests, effect, scheme, **options))
    enter("accuracy_hard", "share", f"Change of accuracy by {title} weights on the hard set, RLLM.", hard)
    enter("special", "share", f"Change of accuracy by {title} weights, RLLM − LLM, on sets that both can answer.",
          special)
    enter("loss_slope", "share/1,000 tok",
          f"Right answers lost by {title} weights per 1,000 more thinking tokens, RLLM.",
          lambda requests, **options: loss_slope(requests, scheme, **options))
    enter("slips", "×", f"Wrong steps per thinking token by {title} weights over those by bf16, RLLM.",
          lambda requests, **options: slip_ratio(requests, scheme, **options))


def first_trial(requests: pd.DataFrame) -> pd.DataFrame:
    """Reasoning requests without the runs made again."""
    return of_role(requests[requests.trial == 0], "RLLM")


def loss_slope(requests: pd.DataFrame, scheme: str, **options) -> Estimate:
    """Right answers lost by a scheme per 1,000 more thinking tokens; not known where not run or nothing graded."""
    chosen = first_trial(requests)
    lost = drift.losses(chosen[chosen.weights.isin(["bf16", scheme])], "weights", "bf16")
    return drift.loss_slope(lost, **options) if len(lost) else Estimate(np.nan)


def slip_ratio(requests: pd.DataFrame, scheme: str, **options) -> Estimate:
    """First wrong steps per token by a scheme over those by bf16, on the sets that it was run on."""
    chosen = checkable(first_trial(requests))
    chosen = chosen[chosen.weights.isin(["bf16", scheme])]
    both = chosen.groupby(["model", "task"]).weights.transform("nunique") == 2
    checked = drift.first_wrong(chosen[both])
    return drift.slip_ratio(checked, "weights", scheme, "bf16", **options) if len(checked) else Estimate(np.nan)


def checkable(requests: pd.DataFrame) -> pd.DataFrame:
    """Requests whose solutions have steps to check, and whose weights are real."""
    return requests[requests.task.isin(drift.CHECKED) & requests.outcome.notna()]


for _scheme, _title in SCHEMES.items():
    _enter(_scheme, _title)


def _claims() -> list[Claim]:
    """The paper's claims by scheme."""
    made = [
        Claim("weights.gptq", "GPTQ-Int4 weights hold accuracy within three points.", "06.accuracy_w4a16",
              Range(-SMALL_POINTS, SMALL_POINTS), "within 3 % on most sets [text]"),
        Claim("weights.fp8", "FP8 weights hold accuracy within three points.", "06.accuracy_fp8",
              Range(-SMALL_POINTS, SMALL_POINTS), "within 3 % on most sets [text]"),
        Claim("weights.gptq_hard", "On the hardest mathematics GPTQ-Int4 weights cost much accuracy.",
              "06.accuracy_hard_w4a16", Range(hi=-MATERIAL_POINTS), "15 to 25 % lost on AIME-2024 [text]", -0.20),
    ]
    for scheme in SHIPPED:
        made += [Claim(f"weights.{scheme}_tps", f"{SCHEMES[scheme]} weights raise throughput.", f"06.tps_{scheme}",
                       Range(lo=1.0), SILENT),
                 Claim(f"weights.{scheme}_e2e", f"{SCHEMES[scheme]} weights shorten requests.", f"06.e2e_{scheme}",
                       Range(hi=1.0), SILENT)]
    for scheme in ("awq", "bnb4"):
        made.append(Claim(f"weights.{scheme}", f"{SCHEMES[scheme]} weights make requests longer.", f"06.e2e_{scheme}",
                          Range(lo=1.0), "up to 2 × E2E [text]", 2.0))
    made.append(Claim("weights.reasoning", "GPTQ-Int4 weights cost a reasoning model more accuracy than a plain one, "
                      "on sets that both can answer.",
                      "06.special_w4a16", Range(hi=0.0), "no plain baseline published"))
    return made


CLAIMS = _claims()


def levels(requests: pd.DataFrame, arm: str = "weights", **options) -> pd.DataFrame:
    """Accuracy by level of difficulty, set, size, role and number format; empty where nothing is graded."""
    graded = requests[(requests.trial == 0) & requests.outcome.notna()]
    return metrics.intervals(["accuracy"], ["task", "pair", "role", arm, "level"], requests=graded, **options)


def guidance(numbers: Mapping[str, Estimate | Mapping | float]) -> str:
    """What to do with the numbers, in one sentence; sizes under 06.size_<scheme> and verdicts decide its branches."""
    known = {name: Estimate.of(value) for name, value in numbers.items()}
    run = [scheme for scheme in SCHEMES if known.get(f"06.e2e_{scheme}", Estimate(np.nan)).known]
    if not run:
        return "Nothing quantised was served on this machine, so these runs give no ground to choose by."
    faster = [scheme for scheme in run if known[f"06.e2e_{scheme}"].hi < 1]
    best = min(faster or run, key=lambda scheme: known[f"06.e2e_{scheme}"].value)
    e2e, change = known[f"06.e2e_{best}"], known.get(f"06.accuracy_{best}", Estimate(np.nan))
    size = known.get(f"06.size_{best}", Estimate(np.nan))
    cost = "with accuracy not graded" if not change.known else (
        f"at a change of accuracy of {change}" + ("" if change.lo > -SMALL_POINTS else
                                                  ", which may be more than three points: check your own hard set"))
    memory = f" and {size.value:.2f} × the bytes of weights" if size.known else ""
    if faster:
        text = f"Serve {SCHEMES[best]} weights: E2E {e2e} of bf16's{memory}, {cost}"
        if others := [f"{SCHEMES[scheme]} ({known[f'06.e2e_{scheme}']})" for scheme in faster if scheme != best]:
            text += f"; certainly faster than bf16, too: {', '.join(others)}"
    else:
        text = (f"Quantise for memory, not for speed: no scheme shortened requests here; the nearest, {SCHEMES[best]}, "
                f"has E2E {e2e} of bf16's{memory}, {cost}")
    return f"{text}; this holds for these models, this engine and this machine."
