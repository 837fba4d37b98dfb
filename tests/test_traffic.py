"""Open-loop traffic from made-up requests: arrivals, backlog, waits, goodput and its knee, options under bursts."""

import itertools

import numpy as np
import pandas as pd
import pytest
from asu import claims, load, metrics, plots, profiles, traffic
from asu.claims import workload
from asu.errors import AsuError
from asu.metrics import SLO
from asu.specs import Gamma
from asu.stats import Estimate

FEW = {"n_boot": 100}


def requests(due, takes, *, name="gamma4cv1", role="RLLM", run=None, visible=0.8, trial=0, **labels):
    """Requests due at `due` [s] that take `takes` [s]: first token after a tenth, visible after `visible` of it."""
    due = np.asarray(due, float)
    takes = np.broadcast_to(np.asarray(takes, float), due.shape)
    n = len(due)
    return pd.DataFrame({
        "run": run or f"{name}{role}{trial}", "session": 0, "engine": "vllm", "model": "mini-4m-think",
        "pair": "mini-4m", "size": "4M", "role": role, "task": "mini-medium", "load": name, "budget": 512,
        "trial": trial, "kv_pool_tokens": 3072, "weights": "bf16", "kv_cache": "bf16", "prefix_caching": False,
        "speculation": "none", "max_requests": 64, "request_id": [f"p{i}#0" for i in range(n)],
        "problem_id": [f"p{i}" for i in range(n)],
        "batch": -1, "due_s": due, "sent_s": due + 0.001, "first_s": due + 0.1 * takes, "error": None,
        "visible_s": due + visible * takes, "last_s": due + takes, "end_s": due + takes, "server_queue_s": 0.05 * takes,
        "prompt_tokens": 60, "output_tokens": 101, "thinking_tokens": 81, "answer_tokens": 20, "event_tokens": 101,
        "outcome": None, "finish_reason": "stop", "temperature": 0.6}).assign(**labels)


def engine(role="RLLM", use=0.9, waiting=2.0, run="a", n=60):
    return pd.DataFrame({"run": run, "session": 0, "role": role, "t_s": np.arange(n) * 0.2,
                         "kv_use": use + 0.05 * np.sin(np.arange(n)), "running": 5.0, "waiting": waiting,
                         "preemptions": 0.0})


def queue(n, rate, service_s, cv=1.0, seed=3):
    """Arrivals at one server that takes `service_s` for each, first come first served."""
    due = load.due_times(Gamma(rate=rate, cv=cv), n, seed)
    free, waited = 0.0, []
    for at in due:
        waited.append(max(free, at) - at)
        free = at + waited[-1] + service_s
    return requests(due, np.array(waited) + service_s, server_queue_s=waited)


def gauges(r):
    """The gauge of requests waiting, read two hundred times, of requests that wait for `server_queue_s`."""
    at = np.linspace(0, r.last_s.max(), 200)
    waiting = (r.due_s.to_numpy() <= at[:, None]) & (at[:, None] < (r.due_s + r.server_queue_s).to_numpy())
    return pd.DataFrame({"t_s": at, "waiting": waiting.sum(axis=1).astype(float)})


def verdict(r):
    return traffic.verdict(traffic.growth(r, gauges(r)))


@pytest.mark.parametrize("profile", [None, "replay", "paper"])
def test_the_seed_of_the_notebook_is_chosen_by_the_arrivals_alone(profile):
    given = profiles.load(profile).parameters("10_real_world_workload") if profile else {}
    asked = profiles.parameters("10_real_world_workload") | given
    cvs, seed = asked["CVS"], asked["SERVER"]["seed"]
    counts = {asked["RATES"][f"{rate:g}"] for rate in (asked["RATE"], *asked["GRID"])}
    assert seed == traffic.closest_seed(cvs, counts)
    for n, cv in itertools.product(counts, cvs):
        rate, spread = traffic.arrivals(load.due_times(Gamma(rate=1.0, cv=cv), n, seed))
        assert rate == pytest.approx(1, rel=0.2) and spread == pytest.approx(cv, rel=0.2)


def test_every_burstiness_offered_at_several_rates_has_a_knee():
    late = {(1, 1): 0, (2, 1): 2, (1, 4): 0, (2, 4): 8, (2, 2): 0}  # of ten requests, by rate and CV
    runs = [requests(np.arange(40) / rate, np.where(np.arange(40) % 10 < slow, 5.0, 1.0), name=f"gamma{rate}cv{cv}")
            for (rate, cv), slow in late.items()]
    found = traffic.knees(pd.concat(runs, ignore_index=True), SLO(2.0, 1.0), **FEW)
    assert found.cv.tolist() == [1.0, 4.0] and found.rates.tolist() == [2, 2]
    assert 1 < found.knee[1].value < found.knee[0].value < 2


def test_arrivals_that_span_no_time_have_no_rate():
    assert np.isnan(traffic.arrivals([1.0])).all() and np.isnan(traffic.arrivals([2.0, 2.0])).all()
    assert traffic.arrivals([0, 400, 800]) == (1 / 400, 0.0)  # nothing rounds a rate below one a second


def test_labels_tell_what_was_asked_for():
    found = traffic.asked(pd.Series(["gamma0.25cv4", "gamma1e-05cv0", "trace-a-b1x0.3", "closed32"]))
    assert found.rate.tolist()[:2] == [0.25, 1e-5] and found.cv.tolist()[:2] == [4.0, 0.0]
    assert found.trace[2] == "a-b1" and found.iloc[3].isna().all()


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_saturation_is_seen_at_any_time_scale(scale):
    over = queue(100, 8 * scale, 0.25 / scale)
    under = queue(100, 2 * scale, 0.25 / scale)
    assert verdict(over) == "saturated" and verdict(under) == "no sign of it"
    assert traffic.growth(over, gauges(over)).value == pytest.approx(0.5, abs=0.1)


def test_the_last_of_many_bursts_is_no_saturation():
    due = np.concatenate([start + np.arange(12) * 0.01 for start in range(0, 60, 12)])
    waiting = requests(due, 3.0, server_queue_s=2.0)
    assert traffic.growth(waiting, gauges(waiting)).value > 0.1  # the last burst waits when the arrivals end
    assert verdict(waiting) == "no sign of it"


def test_an_engine_that_fills_with_long_requests_is_not_saturated():
    long = requests(np.arange(40.0), 60.0, server_queue_s=0.0)
    assert traffic.completed(long) == 0.0 and traffic.growth(long, gauges(long)).value == 0.0


def test_what_was_completed_is_counted_within_the_second_half():
    assert traffic.completed(requests(np.arange(40.0), 3.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("due", [[1.0], [1.0, 1.0, 1.0]])
def test_growth_of_arrivals_without_time_is_not_known(due):
    assert verdict(requests(due, 1.0)) == "not known"


def test_growth_without_a_gauge_is_not_known():
    r = requests(np.arange(40.0), 1.0)
    assert traffic.verdict(traffic.growth(r, gauges(r)[:1])) == "not known"


def test_the_backlog_rises_with_arrivals_and_ends_at_nothing():
    steps = traffic.backlog(requests([10.0, 11.0, 12.0], [5.0, 0.5, 5.0]))
    assert steps.t_s.tolist() == [0.0, 1.0, 1.5, 2.0, 5.0, 7.0] and steps.backlog.tolist() == [1, 2, 1, 2, 1, 0]
    assert steps.due.tolist() == [True] * 4 + [False] * 2


def test_percentiles_count_a_request_that_never_left_thinking_as_waiting():
    r = requests(np.arange(20.0), 1.0)
    r.loc[15:, "visible_s"] = np.nan
    found = traffic.percentiles(r, **FEW).set_index(["metric", "q"]).value
    assert found["ttft", 0.5] == pytest.approx(0.1) and found["lag", 0.99] == pytest.approx(0.001)
    assert found["ttfvt", 0.5] == pytest.approx(0.8) and np.isinf(found["ttfvt", 0.9])
    assert found["queue", 0.9] == pytest.approx(0.05)
    with pytest.raises(AsuError, match="no wait called e2e"):
        traffic.percentiles(r, waits=["e2e"])


def test_stretches_keep_arrivals_in_a_row_together():
    r = traffic.stretches(pd.concat([requests(np.arange(40.0)[::-1], 1.0), requests([1.0, 2.0], 1.0, run="z")]))
    assert r.groupby("run", sort=False).stretch.nunique().tolist() == [10, 2]
    assert r[r.run != "z"].stretch.is_monotonic_increasing


def test_goodput_is_the_share_in_time_of_the_rate_offered():
    r = requests(np.arange(40) * 0.5, np.where(np.arange(40) % 4, 1.0, 9.0))
    row = traffic.goodput(r, SLO(ttfvt_s=1.0, tbt_s=1.0), **FEW).iloc[0]
    assert row.offered == pytest.approx(2) and row.value == pytest.approx(1.5) and row.lo <= 1.5 <= row.hi


@pytest.mark.parametrize("slo, value", [(SLO(0.0, 0.0), 0.0), (SLO(np.inf, np.inf), 2.0)])
def test_an_slo_never_or_always_met(slo, value):
    r = requests(np.arange(40) * 0.5, 1.0)
    row = traffic.goodput(r, slo, **FEW).iloc[0]
    assert row.value == pytest.approx(value) and row.lo < row.hi and 0 <= row.lo and row.hi <= 2.0 + 1e-9
    knee = traffic.knee(r, slo, **FEW)
    assert np.isinf(knee.value) if value else not knee.known
    assert str(knee).startswith("not reached" if value else "not known")


def test_a_failed_or_never_visible_request_meets_no_slo():
    r = requests([0.0, 1.0, 2.0], 1.0)
    r.loc[0, "error"], r.loc[1, "visible_s"] = "broken", np.nan
    assert metrics.met(r, SLO(np.inf, np.inf)).tolist() == [False, False, True]


@pytest.mark.parametrize("limits", [(-1.0, 1.0), (1.0, float("nan"))])
def test_an_slo_that_is_no_time_is_refused(limits):
    with pytest.raises(AsuError, match="an SLO of"):
        SLO(*limits)


@pytest.mark.parametrize("share", [0.0, 95, float("nan")])
def test_an_slo_for_no_share_is_refused(share):
    with pytest.raises(AsuError, match="an SLO for a share of"):
        SLO(1.0, 1.0, share)


def test_the_knee_lies_where_the_share_in_time_falls_below():
    def run(rate, late):
        return requests(np.arange(40) / rate, np.where(np.arange(40) % 10 < late, 9.0, 1.0), name=f"gamma{rate:g}cv1")

    r = pd.concat([run(4.0, 5), run(1.0, 0), run(2.0, 0)], ignore_index=True)
    knee = traffic.knee(r, SLO(2.0, 1.0), **FEW)
    assert knee.value == pytest.approx(2 + 2 * 0.05 / 0.5) and knee.lo <= knee.value <= knee.hi
    assert traffic.knee(r, SLO(2.0, 1.0, share=0.75), **FEW).value == pytest.approx(2 + 2 * 0.25 / 0.5)


def test_attainment_tells_the_share_in_time_for_every_limit():
    takes = np.where(np.arange(40) % 4, 1.0, 9.0)
    found = traffic.attainment(requests(np.arange(40) * 0.5, takes), SLO(2.0, 1.0), **FEW)
    assert found.ttfvt_s.iloc[[0, -1]].tolist() == pytest.approx([0.8, 7.2])
    assert found.value.tolist() == pytest.approx([0.75] * (len(found) - 1) + [1.0])
    slow = traffic.attainment(requests(np.arange(40) * 0.5, takes), SLO(2.0, 0.04), **FEW)
    assert slow.value.max() == pytest.approx(0.75), "no limit on the first token helps what is slow between tokens"
    assert traffic.attainment(requests([0.0, 1.0], 1.0, visible_s=np.nan), SLO(2.0, 1.0), **FEW).empty


def test_the_limit_that_the_share_keeps():
    r = requests(np.arange(40) * 0.5, np.where(np.arange(40) % 4, 1.0, 9.0))
    assert traffic.kept_limit(r, SLO(2.0, 1.0, share=0.75), **FEW).value == pytest.approx(0.8)
    limit = traffic.kept_limit(r, SLO(2.0, 1.0), **FEW)
    assert limit.value == pytest.approx(7.2) and limit.lo <= 7.2 <= limit.hi
    hidden = r.assign(visible_s=r.visible_s.where(r.index % 4 > 0))
    assert np.isinf(traffic.kept_limit(hidden, SLO(2.0, 1.0), **FEW).value)


def test_the_table_has_a_row_per_run_and_copes_without_gauges():
    r = pd.concat([requests(np.arange(30.0), 1.0, run="a"), requests(np.arange(30.0), 1.0, run="b", role="LLM")])
    found = traffic.table(r, engine(run="a"), SLO(2.0, 1.0), **FEW)
    assert found.verdict.tolist() == ["no sign of it", "not known"]
    assert found.completed[0] == pytest.approx(1.0, rel=0.1)
    assert found.kv_mean[0] == pytest.approx(0.9, abs=0.02) and np.isnan(found.kv_mean[1])


def test_idle_moments_count_as_time():
    half = engine(n=61).assign(running=0.0, waiting=0.0, kv_use=np.where(np.arange(61) < 30, 0.8, 0.0))
    rows = traffic.samples(half)
    assert (rows.kv_use * rows.dt_s).sum() / rows.dt_s.sum() == pytest.approx(0.4)


def option(name, slower, **labels):
    parts = []
    for trial, on in ((0, False), (1, False), (0, True)):
        more = labels if on else {}
        takes = np.linspace(1, 2, 40) * (slower if on else 1.0)
        parts.append(requests(np.arange(40.0), takes, name=name, trial=trial, run=f"{name}{trial}{on}", **more))
    return pd.concat(parts, ignore_index=True)


def test_an_option_is_judged_under_each_load_and_the_verdicts_compared():
    r = pd.concat([option("closed32", 0.5, weights="w8a8"), option("gamma4cv4", 0.5, weights="w8a8")])
    table = traffic.effects_by_load(r, **FEW)
    assert set(table.option) == {"trial", "weights"} and set(table.load) == {"closed32", "gamma4cv4"}
    assert set(table[table.option == "weights"].judged) == {"better"}
    both = traffic.verdicts(table, "gamma4cv4")
    assert len(both) == len(traffic.JUDGED) and both.kept.all() and set(both.option) == {"weights"}
    kept = workload.verdicts_kept(both)
    assert kept.value == 1 and kept.n == 1 and not kept.has_interval, "four waits of one option count once"
    other = pd.concat([option("closed32", 0.5, weights="w8a8"), option("gamma4cv4", 2.0, weights="w8a8")])
    assert not traffic.verdicts(traffic.effects_by_load(other, **FEW), "gamma4cv4").kept.any()


def test_a_quantised_cache_with_more_tokens_in_the_same_bytes_is_compared_all_the_same():
    r = option("gamma4cv4", 0.5, kv_cache="fp8_e4m3", kv_pool_tokens=6144)
    assert set(traffic.effects_by_load(r, **FEW).option) == {"trial", "kv_cache"}


def test_undecided_verdicts_neither_confirm_nor_contradict():
    table = pd.DataFrame({"role": "RLLM", "option": "weights", "arm": "w8a8", "metric": ["e2e", "e2e"],
                          "load": ["closed32", "gamma4cv4"], "judged": ["better", "undecided"]})
    both = traffic.verdicts(table, "gamma4cv4")
    assert both.kept.isna().all() and not workload.verdicts_kept(both).known
    with pytest.raises(AsuError, match="no option was measured"):
        traffic.verdicts(table[:1], "gamma4cv4")


def test_without_options_there_are_no_verdicts():
    none = traffic.verdicts(None, "gamma4cv4")
    assert none.empty and not workload.verdicts_kept(none).known


@pytest.mark.parametrize("kept, verdict, reason", [
    ([[True] * 4, [None] * 4, [None] * 4, [None] * 4], "undecided", "fewer than two options"),
    ([[True, True, None, None], [True, None, None, None], [None] * 4, [None] * 4], "undecided", "a part"),
    ([[True] * 4] * 4, "supported", "whole interval"), ([[False] * 4] * 4, "not supported", "no part")])
def test_options_not_their_waits_decide_whether_verdicts_hold_under_bursts(kept, verdict, reason):
    rows = [{"option": f"o{k}", "kept": one} for k, waits in enumerate(kept) for one in waits]
    both = pd.DataFrame(rows).astype({"kept": "boolean"})
    numbers = {"10.verdicts_kept": workload.verdicts_kept(both, **FEW)}
    row = claims.decide(numbers).set_index("claim").loc["load.options"]
    assert row.verdict == verdict and reason in row.reason
    words = workload.guidance(numbers, SLO(2.0, 0.1))
    assert ("; optimisations may be chosen under a steady load" in words) == (verdict == "supported")


def test_the_first_claim_does_not_divide_by_an_idle_twin():
    assert workload.CLAIMS[0].id == "load.work"


def test_runs_without_an_option_are_refused():
    with pytest.raises(AsuError, match="no run has an option"):
        traffic.effects_by_load(requests(np.arange(10.0), 1.0))


@pytest.fixture
def measured():
    twins = pd.concat([engine(), engine("LLM", use=0.1, waiting=0.0, run="b")])
    calm = requests(np.arange(48.0), 1.0, run="calm")
    bursts = requests(np.arange(48.0), np.where(np.arange(48) % 4, 1.0, 4.0), run="bursts")
    both = pd.DataFrame({"option": list("aabbccdde"), "kept": pd.array([True] * 8 + [None], dtype="boolean")})
    return claims.measure("10", engine=twins, equal_work=twins, held=twins, held_work=twins, calm=calm, bursts=bursts,
                          verdicts=both, n_boot=200)


def test_the_claims_are_decided_from_the_frames(measured):
    decided = claims.decide(measured).query("notebook == '10_real_world_workload'").set_index("claim")
    # The pool is 90 % in use and never full: that does not show that it never would be.
    assert list(decided.index[decided.verdict != "supported"]) == ["load.full"]
    assert decided.verdict["load.full"] == "undecided"
    assert decided.ratio_to_paper["load.kv"] == pytest.approx(9 / (0.566 / 0.132), rel=0.05)


def test_waits_of_one_run_are_not_compared_with_themselves():
    r = requests(np.arange(10.0), 1.0)
    assert not workload.burst_ttft_p90(r, r).known


@pytest.mark.parametrize("knee, says", [
    (Estimate(4.0, 3.0, 5.0), "at most 4 [3, 5] requests per second"), (Estimate(4.0), "at most 4 requests per second"),
    (Estimate(np.inf), "the knee lies outside"), (Estimate(np.nan), "lies outside")])
def test_guidance_follows_the_numbers(measured, knee, says):
    words = workload.guidance(measured | {"10.knee": knee}, SLO(2.0, 0.1))
    assert says in words and f"then waits {measured['10.burst_ttfvt_p90']} as long" in words
    assert "under a steady load;" not in words
    least = {"10.least_rate": Estimate(2.0), "10.least_rate_limit": Estimate(9.0, 8.0, 11.0, "s")}
    low = workload.guidance({"10.knee": Estimate(np.nan)} | least, SLO(3.0, 0.1))
    assert "lies outside" in workload.guidance({"10.knee": Estimate(np.inf)} | least, SLO(3.0, 0.1))
    assert low.startswith("Even 2 requests per second") and "within 3 s: that share needs 9.0 [8.0, 11.0] s" in low
    bursty = workload.guidance({"10.knee": Estimate(4.0), "10.knee_bursts": Estimate(2.0, 1.0, 3.0)}, SLO(3.0, 0.1))
    assert "by chance, 2 [1, 3] in bursts like the strongest here, if" in bursty
    worse = workload.guidance({"10.knee": Estimate(4.0), "10.knee_bursts": Estimate(np.nan)}, SLO(3.0, 0.1))
    assert "by chance, fewer than were offered in bursts like the strongest here, if" in worse
    calm = measured | {"10.burst_ttfvt_p90": Estimate(0.8, 0.5, 1.0), "10.verdicts_kept": Estimate(0.4, 0.2, 0.6)}
    said = workload.guidance(calm, SLO(2.0, 0.1))
    assert "did not lengthen" in said and "does not vouch" in said
    nothing = workload.guidance({}, SLO(2.0, 0.1))
    assert "not decided" in nothing and "cannot tell" in nothing


def test_every_figure_draws_what_it_is_given():
    twins = pd.concat([engine().assign(panel="RLLM"), engine("LLM", run="b").assign(panel="LLM, equal rate")])
    over_time = plots.traffic_over_time(twins, paper=claims.paper("kv_mean", ["mini-medium"]))
    assert [ax.get_title() for ax in over_time.axes[:2]] == ["RLLM", "LLM, equal rate"]
    r = pd.concat([requests(np.arange(40) / rate, 1.0, name=f"gamma{rate}cv1") for rate in (1, 2, 4)])
    waits = traffic.percentiles(r, **FEW).assign(x=lambda rows: rows.rate)
    assert len(plots.waits(waits, waits).axes) == 6
    good = traffic.goodput(r, SLO(2.0, 1.0), **FEW).assign(arm="RLLM")
    twin = plots.goodput(pd.concat([good, good.assign(arm="LLM", role="LLM")]), Estimate(2.0), 0.95).axes[0]
    drawn = {line.get_label(): line.get_linestyle() for line in twin.lines}
    assert drawn["RLLM"] == "-" and drawn["LLM"] == "None", "only the reasoning model's rates are joined"
    for knee in (Estimate(2.0, 1.0, np.inf), Estimate(np.inf), Estimate(np.nan)):
        assert plots.goodput(good, knee, 0.95).axes[0].get_ylabel() == "served in time\n[% of the offered]"
    bursty = waits.assign(cv=4.0, value=2 * waits.value)
    both = pd.concat([waits, bursty])[lambda rows: rows.metric.isin(["ttft", "ttfvt"]) & (rows.q == 0.9)]
    drawn = plots.waits_by_burstiness(both)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["CV 1", "CV 4"]
    assert drawn.axes[1].lines[1].get_ydata() == pytest.approx(2 * drawn.axes[1].lines[0].get_ydata())
    promised = plots.attainment(traffic.attainment(r, SLO(2.0, 1.0), **FEW), SLO(2.0, 1.0))
    labels = [text.get_text() for text in promised.legends[0].get_texts()]
    assert labels == [f"{n} a second" for n in (1, 2, 4)]
    table = traffic.effects_by_load(option("gamma4cv4", 0.5, weights="w8a8"), **FEW)
    figure = plots.effects_by_load(table, {"gamma4cv4": "bursts"})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][0].startswith("RLLM, all off")
    with pytest.raises(AsuError, match="figure goodput"):
        plots.goodput(good.drop(columns="arm"), Estimate(2.0), 0.95)
