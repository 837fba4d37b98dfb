"""Engine against engine: a slower engine, one that is slower for one twin only, gauges that lag, what was not run."""

import numpy as np
import pandas as pd
import pytest
from asu import claims, effects, metrics, plots
from asu.claims import engines
from asu.stats import Estimate
from test_effects import gauges, run

FEW = {"n_boot": 200}
POOL = 4096


def on(engine, role, *, trial=0, **how):
    """Two sets on one engine, four in flight; how: of `test_effects.run`."""
    parts = [run(role, task, trial=trial, **how) for task in ("mini-easy", "mini-facts")]
    return pd.concat(parts, ignore_index=True).assign(
        engine=engine, run=lambda r: engine + r.run, difficulty=1.0, prompt_tokens=10,
        server_queue_s=np.nan, kv_pool_actual=POOL)


def both(llm=1.0, rllm=1.0, trials=(0,), **how):
    """vLLM, perhaps made again, and LMDeploy, by so much slower for either twin."""
    again = [on("vllm", role, trial=trial, pace=1 + 0.1 * trial) for trial in trials for role in ("RLLM", "LLM")]
    other = [on("lmdeploy", role, pace=pace, **how) for role, pace in (("RLLM", rllm), ("LLM", llm))]
    return pd.concat([*again, *other], ignore_index=True)


def streams(requests, per_event):
    """Stream events of as many tokens on each engine, which come when the last of them would have."""
    rows = []
    for row in requests.itertuples():
        kinds = ["thinking"] * row.thinking_tokens + ["answer"] * row.answer_tokens
        t, step = np.linspace(row.first_s, row.last_s, len(kinds)), per_event[row.engine]
        for start in range(0, len(kinds), step):
            here = kinds[start:start + step]
            rows.append({"run": row.run, "session": 0, "request_id": row.request_id, "t_s": t[start + len(here) - 1],
                         **{f"{phase}_tokens": here.count(phase) for phase in ("thinking", "answer")}})
    return pd.DataFrame(rows)


ONE_BY_ONE = {"vllm": 1, "lmdeploy": 1}


def measured(requests, per_event=ONE_BY_ONE, level=lambda kv: 0.3):
    events = streams(requests, per_event)
    return claims.measure("11", requests=requests, events=events, engine=gauges(requests, level),
                          held=engines.held(requests, events), **FEW)


def test_an_engine_that_is_slower_for_all_leaves_the_findings_as_they_are():
    numbers = measured(both(llm=2.0, rllm=2.0))
    for name in ("e2e_rllm", "e2e_llm", "ttft_llm", "tbt_thinking_rllm", "tbt_answer_llm"):
        assert numbers[f"11.{name}"].value == pytest.approx(2)
    assert numbers["11.tps_rllm"].value == pytest.approx(0.5)
    assert numbers["11.e2e_ratio_shift"].value == numbers["11.kv_ratio_shift_gauge"].value == pytest.approx(1)
    assert numbers["11.time_ratio_first"].value == pytest.approx(numbers["11.time_ratio_second"].value)
    verdicts = claims.decide(numbers).set_index("claim").verdict
    assert (verdicts[["engine.heavy", "engine.kv", "engine.e2e"]] == "supported").all()


def test_an_engine_that_is_slower_for_one_twin_moves_their_ratio():
    numbers = measured(both(llm=3.0))
    assert numbers["11.e2e_ratio_shift"].value == pytest.approx(1 / 3)
    assert claims.decide(numbers).set_index("claim").verdict["engine.e2e"] == "not supported"
    assert measured(both(rllm=3.0))["11.e2e_ratio_shift"].value == pytest.approx(3)


def test_what_is_held_does_not_hang_on_how_tokens_are_bundled():
    requests = both()
    shift = measured(requests, {"vllm": 1, "lmdeploy": 10})["11.kv_ratio_shift"]
    assert 0.8 < shift.value < 1.25, "a whole answer in one event holds its prompt until then"
    held = engines.held(requests, streams(requests, {"vllm": 1, "lmdeploy": 10}))
    peaks = held[held.role == "LLM"].groupby("engine").kv_use.max()
    assert peaks.to_dict() == pytest.approx({"vllm": 4 * 16 / POOL, "lmdeploy": 4 * 16 / POOL})


def test_what_is_held_is_read_so_many_times_a_run():
    requests = both()
    events = streams(requests, ONE_BY_ONE)
    held = engines.held(requests, events, points=20)
    assert set(held.run) == set(requests.run) and held.groupby("run").size().max() <= 21
    assert (held.groupby("run").kv_use.last() == 0).all()
    whole = metrics.predicted_engine(requests, events)
    assert engines.held(requests, events, points=10**6).groupby("run").kv_use.max().equals(
        whole.groupby("run").kv_use.max())


def test_accuracy_is_that_of_both_twins_and_grades_may_be_missing():
    requests = both(hit=lambda i: i % 4 != 0)
    assert measured(requests)["11.accuracy_change"].value == pytest.approx(-0.25)
    ungraded = requests.assign(outcome=None)
    assert not measured(ungraded)["11.accuracy_change"].known
    events = streams(ungraded, ONE_BY_ONE)
    found = engines.findings(ungraded, gauges(ungraded, lambda kv: 0.3), engines.held(ungraded, events), **FEW)
    assert not any(lead.known for lead in found.accuracy) and all(time.known for time in found.time)


def test_findings_stand_by_engine_and_set_without_the_runs_made_again():
    requests = both(llm=2.0, trials=(0, 1))
    held = engines.held(requests, streams(requests, ONE_BY_ONE))
    late = gauges(requests, lambda kv: 0.3).query("engine == 'vllm' or role == 'RLLM'")
    found = engines.findings(requests, late, held, **FEW).set_index(["engine", "task"])
    assert len(found) == 4
    assert found.time["vllm", "mini-easy"].value == pytest.approx(2 * found.time["lmdeploy", "mini-easy"].value)
    assert found.kv_peak_gauge["vllm", "mini-easy"].value == pytest.approx(1)
    assert not found.kv_peak_gauge["lmdeploy", "mini-easy"].known
    assert found.kv_peak["lmdeploy", "mini-easy"].value == pytest.approx(found.kv_peak["vllm", "mini-easy"].value)
    assert found.accuracy["vllm", "mini-easy"].value == 0


def test_a_slow_start_shows_in_the_first_wave_and_not_in_the_rest():
    requests = both()
    opening = requests[requests.engine == "lmdeploy"].groupby("run").head(4).index  # four in flight
    requests.loc[opening, ["first_s", "visible_s", "last_s", "end_s"]] += 2.0
    waves = engines.first_waves(requests, 4).set_index("engine")
    slow, steady = waves.loc["lmdeploy"], waves.loc["vllm"]
    assert waves.groupby("engine").size().to_dict() == {"vllm": 4, "lmdeploy": 4}
    assert slow.first_wave.to_numpy() == pytest.approx(steady.first_wave.to_numpy() + 2)
    assert slow.rest.to_numpy() == pytest.approx(steady.rest.to_numpy())
    assert engines.first_waves(requests, len(requests)).rest.isna().all()


def test_the_first_engine_made_again_widens_intervals_by_servers_of_the_second():
    requests = both(llm=2.0, rllm=2.0, trials=(0, 1))
    found = measured(requests)["11.e2e_rllm"]
    half = np.log(1.1) * 4.302653  # one server of the second engine; two made again, whose runs do not differ
    assert np.log([found.lo, found.hi]) == pytest.approx(np.log(2) + np.array([-half, half]), rel=1e-4)
    assert measured(both(llm=2.0, rllm=2.0))["11.e2e_rllm"].hi == pytest.approx(2)


def test_one_engine_alone_decides_nothing():
    numbers = measured(on("vllm", "RLLM").pipe(lambda r: pd.concat([r, on("vllm", "LLM")], ignore_index=True)))
    assert numbers and not any(number.known for number in numbers.values())
    decided = claims.decide(numbers).query("notebook == '11_engine_against_engine'")
    assert (decided.verdict == "undecided").all()
    assert "run notebook 11_engine" in claims.decide({}).set_index("claim").reason["engine.kv"]


def test_a_reasoning_model_without_its_twin_shows_the_engine_and_no_finding():
    alone = both(rllm=2.0).query("role == 'RLLM'").reset_index(drop=True)
    numbers = measured(alone)
    assert numbers["11.e2e_rllm"].value == pytest.approx(2) and numbers["11.accuracy_change"].value == 0
    assert not any(numbers[f"11.{name}"].known for name in ("e2e_llm", "kv_ratio_shift", "e2e_ratio_shift",
                                                            "time_ratio_first", "kv_peak_ratio_second"))
    held = engines.held(alone, streams(alone, ONE_BY_ONE))
    found = engines.findings(alone, gauges(alone, lambda kv: 0.3), held, **FEW)
    assert len(found) == 4 and not any(time.known for time in found.time)


def test_the_figures_draw_two_engines():
    requests = both(llm=2.0, trials=(0, 1))
    events = streams(requests, ONE_BY_ONE)
    held = engines.held(requests, events)
    table = pd.concat([effects.table(requests, engine=held, events=events, arm=arm, off=off, **FEW)
                       for arm, off in (("trial", 0), ("engine", "vllm"))])
    drawn = plots.effects(table)
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == ["4M made again", "4M lmdeploy"]
    gauged = gauges(requests, lambda kv: 0.3).assign(kv_pool_actual=POOL)
    read, told = (frame[frame.trial == 0].assign(pair=lambda rows: rows.pair + ", " + rows.engine)
                  for frame in (gauged, held.rename(columns={"kv_use": "predicted"})))
    assert len(plots.kv_use_over_time(read, predicted=told).axes) == 4


@pytest.mark.parametrize("rllm, llm, shift, words", [
    (Estimate(1.5, 1.4, 1.6), Estimate(2, 1.9, 2.1), Estimate(0.7, 0.6, 0.75), ["faster on vLLM", "does not carry"]),
    (Estimate(0.5, 0.4, 0.6), Estimate(1, 0.9, 1.1), Estimate(1, 0.9, 1.1), ["on LMDeploy", "as fast on either"]),
    (Estimate(0.5, 0.4, 0.6), Estimate(np.nan), Estimate(np.nan), ["reasoning models", "may not carry"])])
def test_guidance_follows_the_numbers(rllm, llm, shift, words):
    told = engines.guidance({"11.e2e_rllm": rllm, "11.e2e_llm": llm, "11.e2e_ratio_shift": shift,
                             "11.kv_ratio_shift": shift})
    assert all(word in told for word in words), told
    assert ("plain models" in told) == llm.known


def test_guidance_without_a_second_engine_advises_nothing():
    assert "no ground" in engines.guidance({})
