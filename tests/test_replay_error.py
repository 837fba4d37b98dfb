"""What replay gets wrong: errors whose truth is known, the error bar made of them, and its guidance."""

import pandas as pd
import pytest
from asu import claims, profiles, runs, workload
from asu.claims import replay
from asu.claims.core import NUMBERS
from asu.stats import Estimate
from test_effects import gauges, run

FEW = {"n_boot": 100}
SETS = ("mini-easy", "mini-medium")


def runs_with(method=1.0, forced=1.0, again=1.0):
    """Real twins' runs, the same made again and both replays, all times scaled by what is given."""
    arms = (("none", 0, 1.0), ("none", 1, again), ("real weights", 0, forced), ("random weights", 0, method))
    parts = [run(role, task, trial=trial, pace=pace).assign(replay=kind, run=f"{role}-{task}-{kind}-{trial}")
             for role in ("RLLM", "LLM") for task in SETS for kind, trial, pace in arms]
    requests = pd.concat(parts, ignore_index=True)
    engine = gauges(requests, lambda _: 0.2)
    return requests, engine.merge(requests[["run", "replay"]].drop_duplicates("run"), on="run")


def of(name, *frames):
    return NUMBERS[f"12.{name}"].of(*frames, **FEW)


def test_errors_are_ratios_less_one_and_tell_both_steps_apart():
    frames = runs_with(method=1.2, forced=1.1)
    for name in ("e2e", "ttft", "ttfvt", "tbt_thinking", "tbt_answer", "time_per_request"):
        assert of(f"error_{name}", *frames).value == pytest.approx(0.2)
        assert of(f"forced_{name}", *frames).value == pytest.approx(0.1)
        assert of(f"control_{name}", *frames).value == pytest.approx(0, abs=1e-12)
    assert of("error_tps", *frames).value == pytest.approx(1 / 1.2 - 1)
    assert of("error_e2e_llm", *frames).value == pytest.approx(0.2)
    assert of("error_kv_mean", *frames).value == pytest.approx(0)
    assert of("error_straggler_share", frames[0]).value == pytest.approx(0, abs=1e-12)


def test_the_machines_changes_of_pace_widen_errors_on_time():
    steady, moody = (of("error_e2e", *runs_with(again=again)) for again in (1.0, 1.3))
    assert steady.hi - steady.lo < 1e-9 < 0.2 < moody.hi - moody.lo


def test_a_step_that_was_not_run_is_not_known():
    requests, engine = (frame[frame.replay != "random weights"] for frame in runs_with())
    assert not of("error_e2e", requests, engine).known and not of("error_straggler_share", requests).known
    assert of("forced_e2e", requests, engine).known


def numbers(**errors):
    made = {f"12.error_{name}": Estimate(0.01, -0.01, 0.02, "share") for name in (*replay.TIMES, *replay.KV)}
    return made | {f"12.{name}": Estimate(*values, "share") for name, values in errors.items()}


def test_the_error_bar_is_what_the_furthest_error_reaches_without_its_sign():
    bars = replay.error_bars(numbers(error_tps=(-0.07, -0.09, -0.03), error_e2e=(0.08, 0.078, 0.082),
                                     error_kv_peak=(0.02, -0.01, 0.04)))
    assert (bars["12.error_bar_time"].value, bars["12.error_bar_time"].lo, bars["12.error_bar_time"].hi) == (
        0.07, 0.03, 0.09)
    assert (bars["12.error_bar_kv"].value, bars["12.error_bar_kv"].lo, bars["12.error_bar_kv"].hi) == (0.02, 0, 0.04)
    assert not replay.error_bars({})["12.error_bar_time"].known


@pytest.mark.parametrize("e2e, words", [
    ((0.03, -0.01, 0.05), "intervals; take absolute times from it;"), ((0.3, 0.2, 0.4), "do not take absolute times"),
    ((0.08, 0.02, 0.14), "with that margin")])
def test_guidance_follows_the_error_of_e2e(e2e, words):
    said = replay.guidance(numbers(error_e2e=e2e) | {"12.control_e2e": Estimate(0.004, 0, 0.01, "share")})
    assert words in said and f"of E2E may reach (seen: {e2e[0]:.1%}; 0.4% where the same real runs were made" in said


def test_guidance_names_the_metric_that_reaches_furthest_and_not_the_largest_seen():
    said = replay.guidance(numbers(error_e2e=(0.21, 0.19, 0.22), error_tbt_answer=(0.2, -0.1, 0.73)))
    assert "times and rates as good to 73.0%, which the error of TBT, answer may reach (seen: 20.0%)" in said


def test_guidance_without_replays_says_so():
    assert "no error bar" in replay.guidance({})


def test_within_a_tenth_is_decided_by_the_whole_interval():
    decided = claims.decide(numbers(error_kv_mean=(0.02, -0.05, 0.07), error_e2e=(0.05, -0.02, 0.12)))
    verdicts = decided.set_index("claim").verdict
    assert verdicts["replay.kv"] == "supported" and verdicts["replay.time"] == "undecided"


def test_processor_time_is_per_token_and_beside_that_of_the_real_runs():
    requests, _ = runs_with(method=1.5)
    host = requests[["run"]].drop_duplicates().assign(cpu_share=0.5)
    made = replay.processor_time(requests, pd.concat([host, host.assign(cpu_share=float("nan"))]))
    assert made[["replay", "trial"]].values.tolist() == [
        ["none", 0], ["none", 1], ["real weights", 0], ["random weights", 0]]
    assert made.of_real.tolist() == pytest.approx([1, 1, 1, 1.5])


def test_every_request_of_the_notebook_was_recorded():
    study = profiles.study_of("12_replay_error", "embedded")
    assert {spec.lengths for spec in study.specs if spec.trial} == {None}
    for spec in study.specs:
        wanted = runs.requests(spec)
        if spec.lengths:
            rows = workload.recorded_lengths(spec.lengths)
            assert [request.max_tokens for request in wanted] == [
                int(rows[request.problem.id, 0]["output_tokens"]) for request in wanted]
    twins = {(spec.model, spec.task): [request.id for request in runs.requests(spec)] for spec in study.specs}
    assert all(twins[spec.model, spec.task] == [r.id for r in runs.requests(spec)] for spec in study.specs)
