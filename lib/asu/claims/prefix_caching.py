"""08: prefix caching, on against off: on the problems as they are, and over prompts that share their beginnings.

The sweep's prompts are words without meaning before a problem (`specs.Prefix`), its outputs of fixed length; nothing
in it is graded. A run without caching does not look at what a prompt says, only at how long it is: kinds of equal
length share one such run.

What a look-up costs is no larger than what changes from run to run: its intervals come from resampled runs. Those of
effects come from resampled problems and the runs made again (`asu.effects`).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from asu import effects, metrics, stats
from asu.claims.core import SILENT, SMALL_POINTS, Claim, Range, number
from asu.claims.paper import paper_effects
from asu.contrast import contrast, groups, of_role, over_problems, texts_changed
from asu.errors import AsuError
from asu.models import parameters
from asu.stats import Estimate

ARM = {"arm": "prefix_caching", "on": True, "off": False}
AGAIN = {"arm": "trial", "on": 1, "off": 0}
TWINS_ALIKE = 1.05  # E2E: reasoning and plain twin closer than this factor are affected alike
UNSHARED, SHARED, GROWING = "unique", "few_shot", "multi_turn"
COSTS = {"prefill": "µs/tok", "saving": "µs/tok", "look_up": "µs/tok", "break_even": "share"}


# --- frames ---------------------------------------------------------------------------------------------------------


def kinds(prefix: pd.Series) -> pd.DataFrame:
    """kind and tokens of prefix labels: "few_shot512" → few_shot, 512; "none" has neither."""
    parts = prefix.str.extract(r"^([a-z_]+?)(\d+)$")
    return pd.DataFrame({"kind": parts[0], "tokens": parts[1].astype(float)}, index=prefix.index)


def cells(sharing: list[str], lengths: list[int], caching: bool = True) -> list[dict]:
    """The prefixes to run: with caching all; without, those whose lengths the others share."""
    return [{"kind": kind, "tokens": tokens} for kind in sharing if caching or kind in (UNSHARED, GROWING)
            for tokens in lengths]


def beside_off(sweep: pd.DataFrame) -> pd.DataFrame:
    """Requests of the sweep's caching runs, each run beside the one without caching that had prompts of its lengths.

    The latter is given the former's prefix, so that the two differ in prefix_caching alone. Repeated trials are left
    out. AsuError where such a run is missing.
    """
    sweep = sweep[sweep.trial == 0].reset_index(drop=True)
    on, off = sweep[sweep.prefix_caching], sweep[~sweep.prefix_caching]
    parts = [on]
    for row in on[["model", "prefix"]].drop_duplicates().join(kinds(on.prefix)).itertuples():
        same_work = f"{row.kind if row.kind == GROWING else UNSHARED}{row.tokens:.0f}"
        other = off[(off.model == row.model) & (off.prefix == same_work)]
        if other.empty:
            raise AsuError(f"{row.prefix} of {row.model} has no run without caching to stand beside",
                           f"add prefix {same_work} with prefix_caching False")
        parts.append(other.assign(prefix=row.prefix, run=other.run + "/" + row.prefix))
    return pd.concat(parts, ignore_index=True)


def hit_shares(requests: pd.DataFrame, engine: pd.DataFrame) -> pd.DataFrame:
    """What the cache gave each run that had one: model, pair, size, role, task, prefix, trial, hit_share, hit_tokens.

    hit_share: prompt tokens found / looked up, by the engine's counters; hit_tokens: per request; prompt_tokens: mean.
    """
    by = ["run", "model", "pair", "size", "role", "task", "prefix", "trial"]
    cached = requests[requests.prefix_caching]
    found = metrics.asu(cached, by=by, engine=engine[engine.prefix_caching], names=["prefix_hit_share"])
    found = found.rename(columns={"prefix_hit_share": "hit_share"})
    found["prompt_tokens"] = found.run.map(cached.groupby("run").prompt_tokens.mean())
    return found.assign(hit_tokens=found.hit_share * found.prompt_tokens).drop(columns="run")


def gains(sweep: pd.DataFrame, engine: pd.DataFrame, **options) -> pd.DataFrame:
    """TTFT and E2E with caching over without, beside what was shared: a row per cell and metric.

    Columns: pair, size, role, prefix, kind, tokens, prompt_tokens, hit_share, hit_tokens, and those of `effects.table`.
    """
    by = ["pair", "size", "role", "prefix"]
    changed = effects.table(beside_off(sweep), arm="prefix_caching", off=False, by=by,
                            metrics=["ttft", "e2e"], **options)
    shared = hit_shares(sweep, engine).query("trial == 0").drop(columns=["trial", "task", "model"])
    return changed.merge(shared.join(kinds(shared.prefix)), on=by)


def texts_table(requests: pd.DataFrame, again: pd.DataFrame, **options) -> pd.DataFrame:
    """`texts_changed` by size and role, with caching against without, and for runs without made again."""
    rows = []
    for (size, role), part in requests.groupby(["size", "role"], sort=False):
        same = again[(again["size"] == size) & (again.role == role)]
        rows.append({"size": size, "role": role, "with caching": texts_changed(part, **ARM, **options),
                     "made again without": texts_changed(same, **AGAIN, **options)})
    return pd.DataFrame(rows)


def costs(sweep: pd.DataFrame, engine: pd.DataFrame, **options) -> pd.DataFrame:
    """What a prompt token costs and saves, by size: size, cost, value, lo, hi, unit, n.

    prefill: the engine's time per prompt token without caching. The other three are of the line through all cells of
    a size: time per prompt token with caching − without = look_up − saving · hit share. look_up is what caching costs
    where nothing is shared, saving what a prompt token found is worth, break_even = look_up / saving the hit share
    from which caching pays.
    """
    rows = []
    for size, part in sweep.groupby("size", sort=False):
        gauges = engine[engine["size"] == size]
        rows += [{"size": size, "cost": cost, **_cost(part, gauges, cost, **options).as_dict()} for cost in COSTS]
    return pd.DataFrame(rows)


def _cost(sweep: pd.DataFrame, engine: pd.DataFrame, cost: str, **options) -> Estimate:
    """One of COSTS, mean over the sizes of the frame; runs are resampled. Not known without runs."""
    if sweep.empty:
        return Estimate(np.nan)
    rows = _per_run(sweep, engine)
    parts = [stats.on(mask, _prefill(rows[mask]) if cost == "prefill" else _line(rows[mask], cost))
             for mask in groups(rows, ["size"])]
    return stats.bootstrap(stats.average(parts), rows.without, strata=rows["size"], unit=COSTS[cost], **options)


def _per_run(sweep: pd.DataFrame, engine: pd.DataFrame) -> pd.DataFrame:
    """One row per caching run of the sweep beside the run without that did the same work, whose name is `without`.

    Columns: model, size, role, kind, without, hit_share, prompt_tokens (mean), off_us (time per request without
    caching), ratio (time with over without), added_us (time per prompt token with − without).
    """
    pairs = beside_off(sweep)
    pairs = pairs.assign(share_us=metrics.time_shares(pairs) * 1e6)
    by = ["model", "size", "role", "prefix"]
    means = pairs.groupby([*by, "prefix_caching"], sort=False)[["share_us", "prompt_tokens"]].mean().unstack()
    runs = pairs[~pairs.prefix_caching].groupby(by, sort=False).run.first().str.split("/").str[0]
    rows = pd.DataFrame({
        "without": runs, "prompt_tokens": means["prompt_tokens", False], "off_us": means["share_us", False],
        "ratio": means["share_us", True] / means["share_us", False],
        "added_us": (means["share_us", True] - means["share_us", False]) / means["prompt_tokens", True]})
    found = hit_shares(sweep, engine).query("trial == 0")[[*by, "hit_share"]]
    rows = rows.reset_index().merge(found, on=by, validate="one_to_one")
    return rows.join(kinds(rows.prefix))


def _prefill(rows: pd.DataFrame) -> stats.Statistic:
    """Growth of the time per request with the prompt's length, from run to run without caching, within roles."""
    own = rows.kind.isin([UNSHARED, GROWING]).to_numpy()
    within = rows[own].groupby("role")[["prompt_tokens", "off_us"]].transform(lambda x: x - x.mean())
    return stats.on(own, stats.slope(within.prompt_tokens, within.off_us))


def _line(rows: pd.DataFrame, cost: str) -> stats.Statistic:
    """look_up, saving or break_even of the least-squares line through one size's runs."""
    slope, added, found = stats.slope(rows.hit_share, rows.added_us), stats.mean(rows.added_us), stats.mean(
        rows.hit_share)

    def look_up(w: np.ndarray) -> np.ndarray:
        return added(w) - slope(w) * found(w)

    def saving(w: np.ndarray) -> np.ndarray:
        return np.where(slope(w) < 0, -slope(w), np.nan)  # nothing saved: no share makes up for the cost

    return {"saving": lambda w: -slope(w), "look_up": look_up, "break_even": stats.ratio(look_up, saving)}[cost]


def of_size(frame: pd.DataFrame, small: bool) -> pd.DataFrame:
    """Rows of the smallest model, or of all larger ones: none of the latter where there is one size."""
    if frame.empty:
        return frame
    least = min(frame["size"].unique(), key=parameters)
    return frame[(frame["size"] == least) == small].reset_index(drop=True)


def _effect(requests: pd.DataFrame, name: str, compared: Mapping, **options) -> Estimate:
    return effects.estimate(requests, name, **compared, **options) if len(requests) else Estimate(np.nan)


def _longest_shared(sweep: pd.DataFrame) -> pd.DataFrame:
    """The pairs of `beside_off` at the longest prefix that all requests share."""
    pairs = beside_off(sweep)
    found = kinds(pairs.prefix)
    shared = pairs[found.kind == SHARED]
    return shared[found.tokens[shared.index] == found.tokens[shared.index].max()].reset_index(drop=True)


# --- numbers --------------------------------------------------------------------------------------------------------


@number("08.accuracy_change", "share", "requests", per_task=True)
def accuracy_change(requests: pd.DataFrame, **options) -> Estimate:
    """Accuracy with caching − without, paired by problem, mean over sets, sizes and roles."""
    return _effect(requests, "accuracy", ARM, **options)


@number("08.accuracy_change_again", "share", "again")
def accuracy_change_again(again: pd.DataFrame, **options) -> Estimate:
    """Accuracy of the runs made again − that of the first, both without caching."""
    return _effect(again, "accuracy", AGAIN, **options)


@number("08.texts_changed", "share", "requests")
def texts_changed_caching(requests: pd.DataFrame, **options) -> Estimate:
    """Share of requests whose text differs with caching from that without, same seed."""
    return texts_changed(requests, **ARM, **options)


@number("08.texts_changed_again", "share", "again")
def texts_changed_again(again: pd.DataFrame, **options) -> Estimate:
    """Share of requests whose text differs when the runs without caching are made again, same seed."""
    return texts_changed(again, **AGAIN, **options)


@number("08.e2e_ratio", "×", "requests", "again")
def e2e_ratio(requests: pd.DataFrame, again: pd.DataFrame, **options) -> Estimate:
    """E2E with caching over without, single questions, RLLM, geometric mean over sets and sizes."""
    return _effect(of_role(requests, "RLLM"), "e2e", ARM, control=again, **options)


@number("08.e2e_ratio_small", "×", "requests", "again")
def e2e_ratio_small(requests: pd.DataFrame, again: pd.DataFrame, **options) -> Estimate:
    """The same of the smallest model."""
    return e2e_ratio(of_size(requests, small=True), again, **options)


@number("08.e2e_ratio_large", "×", "requests", "again")
def e2e_ratio_large(requests: pd.DataFrame, again: pd.DataFrame, **options) -> Estimate:
    """The same of all larger models."""
    return e2e_ratio(of_size(requests, small=False), again, **options)


@number("08.e2e_ratio_llm", "×", "requests", "again")
def e2e_ratio_llm(requests: pd.DataFrame, again: pd.DataFrame, **options) -> Estimate:
    """E2E with caching over without, single questions, LLM, geometric mean over sets and sizes."""
    return _effect(of_role(requests, "LLM"), "e2e", ARM, control=again, **options)


@number("08.e2e_ratio_again", "×", "again")
def e2e_ratio_again(again: pd.DataFrame, **options) -> Estimate:
    """E2E of the RLLM's runs made again over that of the first, both without caching: what no change looks like."""
    return _effect(of_role(again, "RLLM"), "e2e", AGAIN, **options)


@number("08.e2e_role_ratio", "×", "requests", "again")
def e2e_role_ratio(requests: pd.DataFrame, again: pd.DataFrame, **options) -> Estimate:
    """E2E with caching over without, single questions, RLLM over LLM, geometric means over sets and sizes."""
    if not {"RLLM", "LLM"} <= set(requests.role):
        return Estimate(np.nan)
    return effects.special(requests, "e2e", **ARM, control=again, **options)


@number("08.tbt_change", "ms", "requests")
def tbt_change(requests: pd.DataFrame, **options) -> Estimate:
    """Time between tokens with caching − without, single questions, RLLM: the cost per step of the engine."""
    r = metrics.derive(of_role(requests, "RLLM"))
    r = r.assign(tbt_ms=r.tbt_s * 1e3)
    parts = contrast(r, "prefix_caching", True, False, lambda rows: stats.mean(rows.tbt_ms)) if len(r) else []
    return over_problems(r, stats.average(parts), **options) if parts else Estimate(np.nan)


@number("08.unshared_cost", "×", "sweep", "gauges")
def unshared_cost(sweep: pd.DataFrame, gauges: pd.DataFrame, **options) -> Estimate:
    """Time per request with caching over without where nothing is shared, geometric mean over lengths, sizes, roles."""
    rows = _per_run(sweep, gauges).query("kind == @UNSHARED")
    mean, on = stats.mean(np.log(rows.ratio)), sweep[sweep.prefix_caching & (kinds(sweep.prefix).kind == UNSHARED)]
    return effects.paced(stats.bootstrap(lambda w: np.exp(mean(w)), rows.without, **options), "time_per_request",
                         on=[on], arm="prefix_caching", off=False, control=sweep)


@number("08.break_even_share", "share", "sweep", "gauges")
def break_even_share(sweep: pd.DataFrame, gauges: pd.DataFrame, **options) -> Estimate:
    """Share of a prompt that must be found in the cache for caching to pay, mean over sizes."""
    return _cost(sweep, gauges, "break_even", **options)


@number("08.prefill_small", "µs/tok", "sweep", "gauges")
def prefill_small(sweep: pd.DataFrame, gauges: pd.DataFrame, **options) -> Estimate:
    """The engine's time per prompt token without caching, smallest model."""
    return _cost(of_size(sweep, small=True), of_size(gauges, small=True), "prefill", **options)


@number("08.prefill_large", "µs/tok", "sweep", "gauges")
def prefill_large(sweep: pd.DataFrame, gauges: pd.DataFrame, **options) -> Estimate:
    """The engine's time per prompt token without caching, larger models."""
    return _cost(of_size(sweep, small=False), of_size(gauges, small=False), "prefill", **options)


@number("08.look_up_small", "µs/tok", "sweep", "gauges")
def look_up_small(sweep: pd.DataFrame, gauges: pd.DataFrame, **options) -> Estimate:
    """Time per prompt token that caching adds where nothing is shared, smallest model."""
    return _cost(of_size(sweep, small=True), of_size(gauges, small=True), "look_up", **options)


@number("08.look_up_large", "µs/tok", "sweep", "gauges")
def look_up_large(sweep: pd.DataFrame, gauges: pd.DataFrame, **options) -> Estimate:
    """Time per prompt token that caching adds where nothing is shared, larger models."""
    return _cost(of_size(sweep, small=False), of_size(gauges, small=False), "look_up", **options)


@number("08.unshared_cost_again", "×", "sweep")
def unshared_cost_again(sweep: pd.DataFrame, **options) -> Estimate:
    """Time per request of unshared runs without caching made again over the first: what no difference looks like."""
    off = sweep[~sweep.prefix_caching & (kinds(sweep.prefix).kind == UNSHARED)].reset_index(drop=True)
    shares = off.assign(share_s=metrics.time_shares(off))
    per_run = shares.groupby(["model", "prefix", "trial"]).share_s.mean().unstack()
    if 1 not in per_run:
        return Estimate(np.nan)
    log_ratio = np.log(per_run[1] / per_run[0]).dropna().reset_index(name="log_ratio")
    mean = stats.mean(log_ratio.log_ratio)
    return stats.bootstrap(lambda w: np.exp(mean(w)), log_ratio[["model", "prefix"]], **options)


@number("08.cold_hit_share", "share", "sweep", "gauges")
def cold_hit_share(sweep: pd.DataFrame, gauges: pd.DataFrame, **options) -> Estimate:
    """Largest hit share of unshared prompts: 0 if the cache was emptied before each run.

    A longer one begins with a shorter one, which the same server was sent in the run before.
    """
    found = hit_shares(sweep, gauges)
    found = found[kinds(found.prefix).kind == UNSHARED]
    return Estimate(float(found.hit_share.max()), n=len(found))


@number("08.shared_ttft_ratio", "×", "sweep")
def shared_ttft_ratio(sweep: pd.DataFrame, **options) -> Estimate:
    """TTFT with caching over without at the longest beginning that all share, geometric mean over sizes and roles."""
    return _effect(_longest_shared(sweep), "ttft", ARM, control=sweep, **options)


@number("08.shared_e2e_ratio_rllm", "×", "sweep")
def shared_e2e_ratio_rllm(sweep: pd.DataFrame, **options) -> Estimate:
    """E2E with caching over without at the longest beginning that all share, long outputs (RLLM)."""
    return _effect(of_role(_longest_shared(sweep), "RLLM"), "e2e", ARM, control=sweep, **options)


@number("08.shared_e2e_ratio_llm", "×", "sweep")
def shared_e2e_ratio_llm(sweep: pd.DataFrame, **options) -> Estimate:
    """E2E with caching over without at the longest beginning that all share, short outputs (LLM)."""
    return _effect(of_role(_longest_shared(sweep), "LLM"), "e2e", ARM, control=sweep, **options)


@number("08.size_advantage", "×", "sweep")
def size_advantage(sweep: pd.DataFrame, **options) -> Estimate:
    """Time per request with caching over without where all is shared: larger models' ratio over the smallest one's."""
    rows = _longest_shared(sweep)
    rows = rows.assign(share_s=metrics.time_shares(rows))
    small = (rows["size"] == of_size(rows, small=True)["size"].iloc[0]).to_numpy()
    if small.all():
        return Estimate(np.nan)
    sides = []
    for mask in (~small, small):
        parts = [stats.on(mask, stats.on((rows.role[mask] == role).to_numpy(), part))
                 for role in rows.role[mask].unique() for part in contrast(
                     rows[mask & (rows.role == role).to_numpy()], "prefix_caching", True, False,
                     lambda part: stats.mean(part.share_s), combine=stats.ratio)]
        sides.append(stats.geometric_mean(parts))
    on = [rows[mask & rows.prefix_caching.to_numpy()] for mask in (~small, small)]
    return effects.paced(over_problems(rows, stats.ratio(*sides), **options), "time_per_request", on=on,
                         arm="prefix_caching", off=False, control=sweep)


# --- claims ---------------------------------------------------------------------------------------------------------


_PAPER = paper_effects("prefix", "off", {"on": "on"}).groupby("metric").value
_TIME = float(_PAPER.get_group("time_per_request").pow(1 / 4).prod())
_ACCURACY = float(_PAPER.get_group("accuracy").mean())
_PLOTTED = f"time with over without {_TIME:.3f}, 32B, mean of four sets [figure]"

CLAIMS = [
    Claim("prefix.large", "Prefix caching speeds up larger reasoning models on single questions.",
          "08.e2e_ratio_large", Range(hi=1), f"said from 14B on; as plotted, {_PLOTTED}", _TIME),
    Claim("prefix.small", "Prefix caching slows the smallest reasoning model down on single questions.",
          "08.e2e_ratio_small", Range(lo=1), "said of 7B; direction only"),
    Claim("prefix.plotted", "As plotted against the text: with caching, single questions take longer on average.",
          "08.e2e_ratio", Range(lo=1), _PLOTTED, _TIME),
    Claim("prefix.accuracy", "Prefix caching leaves accuracy unchanged.",
          "08.accuracy_change", Range(-SMALL_POINTS, SMALL_POINTS),
          f"mean change {_ACCURACY:+.3f}, 32B, from {_PAPER.get_group('accuracy').min():+.3f} to "
          f"{_PAPER.get_group('accuracy').max():+.3f} by set [figure]", _ACCURACY),
    Claim("prefix.alike", "Its effect on single questions is not special to reasoning models.",
          "08.e2e_role_ratio", Range(1 / TWINS_ALIKE, TWINS_ALIKE),
          "no plain models measured; asked by its reviewers"),
    Claim("prefix.size", "A small model gains less from a shared beginning than larger ones.",
          "08.size_advantage", Range(hi=1), SILENT),
]


# --- guidance -------------------------------------------------------------------------------------------------------


def guidance(numbers: Mapping[str, Estimate | Mapping | float]) -> str:
    """One sentence: when to switch prefix caching on, for whom, and how far that reaches."""
    at = {name: Estimate.of(numbers.get(f"08.{name}")) for name in (
        "unshared_cost", "break_even_share", "shared_ttft_ratio", "shared_e2e_ratio_rllm", "shared_e2e_ratio_llm",
        "e2e_ratio_small", "e2e_ratio_llm")}
    pays, _ = Range(hi=1).verdict(at["shared_ttft_ratio"])
    dearer, _ = Range(lo=1).verdict(at["unshared_cost"])
    if pays != "supported":
        return (f"These runs give no reason to switch prefix caching on: at the longest shared beginning TTFT was "
                f"{at['shared_ttft_ratio']} of that without, and where nothing is shared a request took "
                f"{at['unshared_cost']} of its time; measure it on your own prompts first.")
    price = "costs time" if dearer == "supported" else "shows no certain cost"
    price += f" where nothing is shared ({at['unshared_cost']} per request, mean over all)"
    slowed = [f"{whom} {at[name]}" for name, whom in (
        ("e2e_ratio_small", "the smallest reasoning model"), ("e2e_ratio_llm", "plain models"))
        if Range(lo=1).verdict(at[name])[0] == "supported"]
    if slowed:
        price += f", but single questions took {' and '.join(slowed)} as long, so leave it off for those"
    when = (f"as soon as requests share more than about {at['break_even_share'].upper:.0%} of their prompts"
            if dearer == "supported" and 0 < at["break_even_share"].upper < 1 else "where requests share a beginning")
    less = at["shared_e2e_ratio_rllm"]
    long = f", but only to {less} for long ones, because it saves prefill alone" if less.known else \
        ", and less the longer the output, because it saves prefill alone"
    return (f"Switch prefix caching on {when}: it {price}; at the longest beginning shared by all it cut TTFT to "
            f"{at['shared_ttft_ratio']} and E2E to {at['shared_e2e_ratio_llm']} for short outputs{long}; this holds "
            f"while the KV pool keeps the shared blocks, and not for the first request of each beginning.")
