"""07: KV-cache quantisation. The first format after the plain one decides; the larger pair and the smallest apart.

Frames: `requests` (every format, ample pool of equal tokens), `pressed` (pools of equal bytes, too small), `tokens`
(of `agreement.positions`: the same requests with either format, token by token).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from asu import drift, effects, stats
from asu.claims.core import MATERIAL_POINTS, SMALL_POINTS, Claim, Range, number
from asu.claims.paper import paper_effects
from asu.contrast import of_role
from asu.models import parameters
from asu.stats import Estimate

OFF = "bf16"


def formats(frame: pd.DataFrame) -> list[str]:
    """The quantised formats of a frame, in the order of its runs."""
    return [name for name in frame.kv_cache.drop_duplicates() if name != OFF]


def of_thinkers(requests: pd.DataFrame) -> pd.DataFrame:
    """The reasoning models' requests of the larger sizes, those made again left out."""
    r = _of_size(of_role(requests, "RLLM"), small=False)
    return r[r.trial == 0].reset_index(drop=True)


def _of_size(requests: pd.DataFrame, *, small: bool) -> pd.DataFrame:
    """Rows of the smallest model where there are several sizes, or of the others; one size alone is not small."""
    sizes = sorted(requests["size"].unique(), key=parameters)
    least = sizes[:1] if len(sizes) > 1 else []
    return requests[requests["size"].isin(least) == small].reset_index(drop=True)


def _effect(requests: pd.DataFrame, name: str, make=effects.estimate, **options) -> Estimate:
    if requests.empty or not formats(requests):
        return Estimate(np.nan)
    return make(requests, name, arm="kv_cache", on=formats(requests)[0], off=OFF, **options)


def _large(requests: pd.DataFrame, name: str, role: str = "RLLM", task: str | None = None, **options) -> Estimate:
    rows = _of_size(of_role(requests, role), small=False)
    return _effect(rows if task is None else rows[rows.task == task], name, control=requests, **options)


@number("07.tps_ratio", "×", "requests", per_task=True, whole=True)
def tps_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Throughput with the first quantised format over that without, RLLM of the larger pair, equal tokens of pool."""
    return _large(requests, "tps", **options)


@number("07.tps_ratio_llm", "×", "requests")
def tps_ratio_llm(requests: pd.DataFrame, **options) -> Estimate:
    """Throughput with the first quantised format over that without, LLM of the larger pair, equal tokens of pool."""
    return _large(requests, "tps", "LLM", **options)


@number("07.accuracy_change", "share", "requests", per_task=True, whole=True)
def accuracy_change(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy with the first quantised format minus that without, RLLM of the larger pair."""
    return _large(requests, "accuracy", **options)


@number("07.accuracy_change_llm", "share", "requests")
def accuracy_change_llm(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy with the first quantised format minus that without, LLM of the larger pair."""
    return _large(requests, "accuracy", "LLM", **options)


@number("07.accuracy_change_small", "share", "requests", per_task=True)
def accuracy_change_small(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy with the first quantised format minus that without, RLLM of the smallest model."""
    return _effect(_of_size(of_role(requests, "RLLM"), small=True), "accuracy", **options)


@number("07.accuracy_change_worst", "share", "requests")
def accuracy_change_worst(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy with the quantised format that loses most minus that without, RLLM of the larger pair."""
    r = _of_size(of_role(requests, "RLLM"), small=False)
    found = [effects.estimate(r, "accuracy", arm="kv_cache", on=name, off=OFF, **options) for name in formats(r)]
    return min((one for one in found if one.known), key=lambda one: one.value, default=Estimate(np.nan))


@number("07.accuracy_special", "share", "requests")
def accuracy_special(requests: pd.DataFrame, **options) -> Estimate:
    """Change of accuracy by the first quantised format, RLLM − LLM, all sizes, on sets that both can answer."""
    return _effect(effects.answered(requests, arm="kv_cache", off=OFF), "accuracy", effects.special, **options)


@number("07.tps_special", "×", "requests")
def tps_special(requests: pd.DataFrame, **options) -> Estimate:
    """Ratio of throughput by the first quantised format, RLLM over LLM, all sizes."""
    return _effect(requests, "tps", effects.special, **options)


@number("07.output_tokens_ratio", "×", "requests")
def output_tokens_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """Output tokens with the first quantised format over those without, RLLM of the larger pair."""
    return _large(requests, "output_tokens", **options)


@number("07.slip_ratio", "×", "requests")
def slip_ratio(requests: pd.DataFrame, **options) -> Estimate:
    """First wrong steps per token with the first quantised format over those without, RLLM of the larger pair."""
    r = of_thinkers(requests)
    checked = drift.first_wrong(r) if r.task.isin(drift.CHECKED).any() else r.iloc[:0]
    return drift.slip_ratio(checked, "kv_cache", formats(r)[0], OFF, **options) if len(checked) else Estimate(np.nan)


@number("07.pressed_tps_ratio", "×", "pressed", "requests")
def pressed_tps_ratio(pressed: pd.DataFrame, requests: pd.DataFrame, **options) -> Estimate:
    """Throughput with the quantised format over that without, in a pool of the same bytes that is too small."""
    return _effect(pressed.assign(kv_pool_tokens=pd.NA), "tps", control=requests, **options)


@number("07.pressed_ttft_ratio", "×", "pressed", "requests")
def pressed_ttft_ratio(pressed: pd.DataFrame, requests: pd.DataFrame, **options) -> Estimate:
    """TTFT with the quantised format over that without, in a pool of the same bytes that is too small."""
    return _effect(pressed.assign(kv_pool_tokens=pd.NA), "ttft", control=requests, **options)


@number("07.gap_growth", "×", "tokens")
def gap_growth(tokens: pd.DataFrame, **options) -> Estimate:
    """Distance of log-probabilities in the later half of equal text over that in its earlier half, first format."""
    first = tokens[tokens.comparison == tokens.comparison.iloc[0]].reset_index(drop=True) if len(tokens) else tokens
    if first.empty:
        return Estimate(np.nan)
    late = (first.position > first.groupby("request_id").position.transform("max") / 2).to_numpy()
    halves = [stats.on(rows, stats.mean(first.gap[rows])) for rows in (late, ~late)]
    return stats.bootstrap(stats.ratio(*halves), first.problem_id, **options)


_PAPER = paper_effects("kv_quant", "original", {"e4m3": "fp8_e4m3"}).groupby("metric").value
_TPS = float(_PAPER.get_group("tps").pow(1 / 4).prod())
_ACCURACY = float(_PAPER.get_group("accuracy").mean())

CLAIMS = [
    Claim("kv_quant.throughput", "A quantised KV cache gives a larger reasoning model more throughput.",
          "07.tps_ratio", Range(lo=1), f"E4M3 over original {_TPS:.2f} ×, 14B, mean of four sets [figure]", _TPS),
    Claim("kv_quant.accuracy", "A quantised KV cache leaves a larger reasoning model's accuracy as it was.",
          "07.accuracy_change", Range(-SMALL_POINTS, SMALL_POINTS),
          f"{_ACCURACY:+.3f}, E4M3, 14B, mean of four sets; E5M2 down to −0.04 on GSM8K [figure]", _ACCURACY),
    Claim("kv_quant.small", "A small reasoning model collapses with a quantised KV cache.",
          "07.accuracy_change_small", Range(hi=-MATERIAL_POINTS), "7B collapses, no number at hand [text]"),
    Claim("kv_quant.special", "Reasoning models lose more accuracy by a quantised KV cache than plain ones, on "
          "sets that both can answer.",
          "07.accuracy_special", Range(hi=0), "no plain models measured; asked by its reviewers"),
]


def guidance(numbers: Mapping[str, Estimate | Mapping | float]) -> str:
    """One sentence: whether to quantise the KV cache, what it buys and what it risks."""
    at = {name: Estimate.of(numbers.get(f"07.{name}")) for name in (
        "tps_ratio", "tps_ratio_llm", "accuracy_change", "accuracy_change_worst", "pressed_tps_ratio",
        "pressed_ttft_ratio")}
    held, _ = Range(-SMALL_POINTS, SMALL_POINTS).verdict(at["accuracy_change"])
    pressed, _ = Range(lo=1).verdict(at["pressed_tps_ratio"])
    if held == "not supported":
        return (f"Do not quantise the KV cache of such a model: accuracy changed by {at['accuracy_change']} with the "
                f"first format tried and by {at['accuracy_change_worst']} with the worst.")
    risk = {"supported": f"accuracy held within three points ({at['accuracy_change']})",
            "undecided": f"whether accuracy holds these runs cannot tell ({at['accuracy_change']})"}[held]
    buys = {"supported": "it raised throughput there to", "not supported": "though here it did not, at",
            "undecided": "though these runs leave open how much, at"}[pressed]
    purpose = "" if Range(lo=1).verdict(at["tps_ratio"])[0] == "supported" else " for room, not for speed,"
    speed = " and ".join(f"{_speed(at[name])} for the {whom}" for name, whom in (
        ("tps_ratio", "reasoning model"), ("tps_ratio_llm", "plain twin")) if at[name].known)
    room = f"with room to spare throughput {speed}" if speed else "with room to spare it was not run"
    gain = (f"{buys} {at['pressed_tps_ratio']} of that of a plain cache of the same bytes, with TTFT at "
            f"{at['pressed_ttft_ratio']}") if at["pressed_tps_ratio"].known else "what it buys there was not run here"
    if at["accuracy_change"].known:
        risk += f", but formats differ (the worst tried: {at['accuracy_change_worst']})"
    else:
        risk = "nothing was graded here: accuracy must be measured first"
    return (f"Quantise the KV cache{purpose} where requests wait for KV memory: {gain}; {room}; {risk}, so grade some "
            f"answers of your own model with the very format and engine before switching: that it starts does not "
            "show that it computes right.")


def _speed(ratio: Estimate) -> str:
    """What a ratio of throughput says."""
    return {"supported": "rises to", "not supported": "falls to",
            "undecided": "does not certainly change, at"}[Range(lo=1).verdict(ratio)[0]] + f" {ratio}"
