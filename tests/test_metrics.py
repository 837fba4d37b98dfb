"""The ASU metrics against cases worked by hand, and properties that hold for any load."""

import numpy as np
import pandas as pd
import pytest
from asu import metrics
from asu.errors import AsuError
from hypothesis import given, settings
from hypothesis import strategies as st


def request(request_id, due, sent, first, visible, last, *, thinking=0, answer=1, batch=-1, **more):
    row = {
        "run": "r", "session": 0, "request_id": request_id, "problem_id": request_id.split("#")[0], "batch": batch,
        "due_s": due, "sent_s": sent, "first_s": first, "visible_s": visible, "last_s": last, "end_s": last,
        "prompt_tokens": 10, "output_tokens": thinking + answer, "thinking_tokens": thinking, "answer_tokens": answer,
        "event_tokens": thinking + answer, "finish_reason": "stop", "error": None, "outcome": "correct",
    }
    return row | more


@pytest.fixture
def requests():
    """Three requests: a correct one, one cut off while thinking, one that failed at 3 s."""
    return pd.DataFrame([
        request("a#0", 0.0, 0.1, 1.0, 3.0, 5.0, thinking=4, answer=5),
        request("b#0", 0.0, 0.2, 2.0, np.nan, 10.0, thinking=9, answer=0, finish_reason="length", outcome="cut off"),
        request("c#0", 1.0, 1.0, np.nan, np.nan, np.nan, thinking=0, answer=0, end_s=3.0, error="HTTP 500",
                finish_reason=None, outcome="failed"),
    ])


def events_of(*rows):
    return pd.DataFrame([{"run": "r", "session": 0, "request_id": i, "t_s": t, "thinking_tokens": thinking,
                          "answer_tokens": answer} for i, t, thinking, answer in rows])


def test_derived_times_by_hand(requests):
    r = metrics.derive(requests)
    np.testing.assert_allclose(r.lag_s, [0.1, 0.2, 0])
    np.testing.assert_allclose(r.ttft_s, [1, 2, np.nan])
    np.testing.assert_allclose(r.ttfvt_s, [3, np.nan, np.nan])
    np.testing.assert_allclose(r.ttfvt_observed_s, [3, 10, 2])
    assert r.ttfvt_censored.tolist() == [False, True, True]
    np.testing.assert_allclose(r.e2e_s, [5, 10, np.nan])
    np.testing.assert_allclose(r.service_s, [4.9, 9.8, np.nan])
    np.testing.assert_allclose(r.tbt_s, [4 / 8, 8 / 8, np.nan])
    np.testing.assert_allclose(r.tbt_thinking_s, [2 / 4, 8 / 8, np.nan])
    np.testing.assert_allclose(r.tbt_answer_s, [2 / 4, np.nan, np.nan])
    np.testing.assert_allclose(r.hit, [1, 0, np.nan])
    assert "ttft_s" not in requests  # the given frame is left alone


def test_outcome_shares_add_up_to_one():
    requests = pd.DataFrame([
        request(f"p{i}#0", 0.0, 0.0, 1.0, 1.0, 2.0, task="t", outcome=outcome)
        for i, outcome in enumerate(["correct"] * 5 + ["wrong"] * 3 + ["cut off", "unparsed"])])
    shares = metrics.outcome_shares(requests, ["task"], n_boot=50).set_index("outcome").value
    assert shares.to_dict() == {"correct": 0.5, "wrong": 0.3, "cut off": 0.1, "unparsed": 0.1, "failed": 0.0}


def test_time_between_tokens_counts_tokens_not_events():
    # one token a second, sent in events of 1, 3 and 2 tokens
    requests = pd.DataFrame([request("a#0", 0, 0, 1.0, 4.0, 6.0, thinking=4, answer=2)])
    gaps = metrics.tbt(events_of(("a#0", 1.0, 1, 0), ("a#0", 4.0, 3, 0), ("a#0", 6.0, 0, 2)), requests)
    assert gaps[["phase", "gap_s", "tokens"]].values.tolist() == [["thinking", 1.0, 3], ["answer", 1.0, 2]]


def test_an_event_of_both_phases_counts_for_each():
    requests = pd.DataFrame([request("a#0", 0, 0, 1.0, 3.0, 3.0, thinking=3, answer=2)])
    gaps = metrics.tbt(events_of(("a#0", 1.0, 1, 0), ("a#0", 3.0, 2, 2)), requests)
    assert gaps[["phase", "gap_s", "tokens"]].values.tolist() == [["thinking", 0.5, 2], ["answer", 0.5, 2]]


def test_gaps_do_not_cross_requests_runs_or_failures(requests):
    events = pd.concat([events_of(("a#0", 1.0, 1, 0), ("a#0", 2.0, 1, 0), ("c#0", 1.5, 1, 0), ("c#0", 2.5, 1, 0)),
                        events_of(("a#0", 7.0, 1, 0)).assign(run="other")])
    both = pd.concat([requests, requests.assign(run="other")])
    gaps = metrics.tbt(events, both)
    assert gaps[["request_id", "gap_s"]].values.tolist() == [["a#0", 1.0]]


def test_the_asu_table_by_hand(requests):
    row = metrics.asu(requests, by=["run"]).iloc[0]
    assert list(metrics.asu(requests, names=["tps"])) == ["run", "tps"]
    assert (row.n, row.accuracy) == (3, 0.5)
    assert [row[o] for o in ("correct", "wrong", "cut_off", "unparsed", "failed")] == pytest.approx(
        [1 / 3, 0, 1 / 3, 0, 1 / 3])
    assert row.window_s == 10
    assert row.tps == pytest.approx(18 / 10)
    assert row.rps == pytest.approx(2 / 10)  # the failed request does not count
    assert row.output_tokens == 9
    assert row.token_gap == 0
    assert row.censored == 0.5
    assert (row.ttft_p50, row.ttft_p99, row.ttft_mean) == (1, 2, 1.5)
    assert row.lag_p99 == pytest.approx(0.2)
    assert row.e2e_mean == 7.5
    # survivor curve: censored at 2 s, seen at 3 s (1 of 2 left), censored at 10 s
    assert row.ttfvt_p50 == 3
    assert np.isnan(row.ttfvt_p99)
    assert row.ttfvt_mean == pytest.approx(3 + 7 / 2)
    assert row.ttfvt_seen_mean == 3
    assert "kv_peak" not in row and "tbt_p50" not in row and "energy_j" not in row


def test_without_grades_accuracy_is_empty_not_zero(requests):
    row = metrics.asu(requests.assign(outcome=None)).iloc[0]
    assert np.isnan(row.accuracy) and np.isnan(row.correct) and np.isnan(row.failed)


def test_tokens_lost_on_the_way_show_as_a_gap(requests):
    row = metrics.asu(requests.assign(event_tokens=[6, 9, 0])).iloc[0]
    assert row.token_gap == pytest.approx(3 / 18)


def test_the_pause_between_two_sessions_does_not_count(requests):
    later = requests.assign(session=1, request_id=["d#0", "e#0", "f#0"])
    later[["due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s"]] += 1000.0
    resumed = pd.concat([requests, later], ignore_index=True)
    assert metrics.window_s(resumed) == 20
    assert metrics.asu(resumed).tps[0] == pytest.approx(36 / 20)


def test_an_slo_is_met_by_hand(requests):
    assert metrics.met(requests, metrics.SLO(ttfvt_s=3, tbt_s=0.5)).sum() == 1
    assert metrics.met(requests, metrics.SLO(ttfvt_s=3, tbt_s=0.4)).sum() == 0
    assert metrics.met(requests, metrics.SLO(ttfvt_s=2, tbt_s=0.5)).sum() == 0
    one_token = requests.assign(answer_tokens=1)
    assert metrics.met(one_token, metrics.SLO(ttfvt_s=3, tbt_s=0.1)).sum() == 1


def test_requests_in_flight_by_hand(requests):
    at, in_flight = metrics._steps(requests.sent_s.to_numpy(), metrics.last_known(requests).to_numpy())
    assert at.tolist() == [0.1, 0.2, 1.0, 3.0, 5.0, 10.0]
    assert in_flight.tolist() == [1, 2, 3, 2, 1, 0]


intervals = st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 50)), min_size=1, max_size=30)


@given(intervals)
@settings(max_examples=50)
def test_in_flight_ends_at_zero_and_its_integral_is_the_time_spent(spans):
    start = np.array([a for a, _ in spans])
    stop = start + [d for _, d in spans]
    at, in_flight = metrics._steps(start, stop)
    assert in_flight[-1] == 0 and (in_flight >= 0).all()
    assert (in_flight[:-1] * np.diff(at)).sum() == pytest.approx((stop - start).sum())


@given(intervals, st.integers(1, 5), st.booleans())
@settings(max_examples=50)
def test_stragglers_and_idle_slots_stay_within_bounds(spans, size, barrier):
    rows, start = [], 0.0
    for first in range(0, len(spans), size):
        part = spans[first:first + size]
        batch = first // size if barrier else -1
        rows += [request(f"{first + i}#0", start, start, start, start, start + d, batch=batch)
                 for i, (_, d) in enumerate(part)]
        start += max(d for _, d in part)
    table = metrics.batches(pd.DataFrame(rows))
    assert table.requests.sum() == len(spans)
    assert table.wall_s.sum() == pytest.approx(start)
    assert (table.few_s <= table.wall_s + 1e-9).all()
    assert (table.busy_s <= table.slots * table.wall_s + 1e-6).all()
    assert table.busy_s.sum() == pytest.approx(sum(d for _, d in spans))


def test_a_barrier_batch_by_hand():
    # ten requests: eight end at 1 s, one at 4 s, one at 10 s
    ends = [1.0] * 8 + [4.0, 10.0]
    batch = [request(f"{i}#0", 0.0, 0.0, 0.1, 0.1, end, batch=0) for i, end in enumerate(ends)]
    table = metrics.batches(pd.DataFrame(batch))
    row = table.iloc[0]
    assert (row.wall_s, row.slots, row.requests) == (10, 10, 10)
    assert row.few_s == 6  # two of ten running is not fewer than 20 %; one is, from 4 s to 10 s
    assert row.busy_s == 22
    result = metrics.asu(pd.DataFrame(batch)).iloc[0]
    assert result.straggler_share == pytest.approx(0.6)
    assert result.makespan_ratio == pytest.approx(100 / 22)
    assert result.idle_share == pytest.approx(1 - 22 / 100)
    left = metrics.last_remaining(pd.DataFrame(batch), ks=(1, 2, 10))
    assert left[["k", "remain_s", "wall_s"]].values.tolist() == [[1, 4, 10], [2, 1, 10]]
    labelled = metrics.last_remaining(pd.DataFrame(batch).assign(role="RLLM"), keep=["role"])
    assert labelled.role.eq("RLLM").all() and labelled.columns.get_loc("role") < labelled.columns.get_loc("k")


def test_without_a_barrier_a_batch_is_as_many_finishes_as_slots():
    # two slots: 0-4 and 4-5 in one, 0-1 and 1-7 in the other
    spans = [(0, 4), (0, 1), (1, 7), (4, 5)]
    frame = pd.DataFrame([request(f"{i}#0", a, a, a, a, b) for i, (a, b) in enumerate(spans)]).astype({"last_s": float})
    table = metrics.batches(frame)
    assert table[["start_s", "end_s", "slots", "requests"]].values.tolist() == [[0, 4, 2, 2], [4, 7, 2, 2]]
    assert table.busy_s.tolist() == [8, 4]
    assert table.few_s.tolist() == [0, 0]  # one of two is half


def test_a_resumed_run_keeps_its_stragglers():
    # of a batch of 16 fourteen end at 10 s and two at 100 s; killed at 10 s the two are sent again, for all of 90 s
    ends = [10.0] * 14 + [100.0] * 2
    whole = pd.DataFrame([request(f"{i}#0", 0.0, 0.0, 0.1, 0.1, end, batch=0) for i, end in enumerate(ends)])
    again = whole[14:].assign(session=1, last_s=90.0, end_s=90.0)
    resumed = pd.concat([whole[:14], again], ignore_index=True)
    for batch, load in ((0, "batch16"), (-1, "closed16")):
        assert metrics.asu(whole.assign(load=load, batch=batch)).straggler_share[0] == pytest.approx(0.9)
        made = metrics.batches(resumed.assign(load=load, batch=batch))
        assert made[["session", "requests", "slots", "few_s"]].values.tolist() == [[0, 14, 16, 0], [1, 2, 16, 90]]


@pytest.mark.parametrize("load, slots, few", [("batch16", 16, 9), ("gamma4", 2, 0)])
def test_a_batch_of_few_requests_can_straggle_on_the_places_of_its_load(load, slots, few):
    pair = pd.DataFrame([request(f"{i}#0", 0.0, 0.0, 0.1, 0.1, end, batch=0, load=load)
                         for i, end in enumerate((1.0, 9.0))])
    assert metrics.batches(pair)[["slots", "few_s"]].values.tolist() == [[slots, few]]


@pytest.fixture
def engine():
    """Four samples at work, 1, 1 and 2 s apart, between idle ones; the last sample at work ends at the idle one."""
    return pd.DataFrame({
        "run": "r", "session": 0, "t_s": [0.0, 1, 2, 3, 5, 6], "kv_use": [0.0, 0.2, 0.4, 0.1, 0.0, 0.0],
        "running": [0.0, 2, 3, 1, 0, 0], "waiting": [0.0, 0, 1, 0, 0, 0], "preemptions": [5.0, 5, 6, 8, 8, 8],
        "prefix_queries": [0.0, 10, 20, 20, 20, 20], "prefix_hits": [0.0, 0, 5, 5, 5, 5]})


def test_kv_use_by_hand(engine):
    samples = metrics.work_samples(engine)
    use = {name: of(np.ones((1, len(samples))))[0] for name, of in metrics.kv_statistics(samples).items()}
    assert use == pytest.approx({"peak": 0.4, "mean": (0.2 + 0.4 + 2 * 0.1) / 4, "range": 0.3, "swing": 0.3})


def test_time_with_a_full_pool_and_with_requests_waiting(requests, engine):
    row = metrics.asu(requests, by=["run"], engine=engine.assign(kv_use=engine.kv_use * 2.4)).iloc[0]
    assert row.kv_full_share == pytest.approx(1 / 4) and row.waiting_share == pytest.approx(1 / 4)
    silent = engine.assign(waiting=np.nan)
    assert np.isnan(metrics.asu(requests, by=["run"], engine=silent).waiting_share.iloc[0])


def test_engine_counters_and_kv_use_enter_the_table(requests, engine):
    row = metrics.asu(requests, by=["run"], engine=engine).iloc[0]
    assert (row.kv_peak, row.preemptions, row.prefix_hit_share) == (0.4, 3, 0.25)
    silent = engine.assign(preemptions=np.nan, kv_use=np.nan)
    row = metrics.asu(requests, by=["run"], engine=silent).iloc[0]
    assert np.isnan(row.kv_peak) and np.isnan(row.preemptions)


def test_what_streams_hold_is_seen_from_when_the_engine_took_a_request_up():
    sent = pd.DataFrame({"run": "a", "session": 0, "role": "LLM", "request_id": ["a#0", "b#0"], "prompt_tokens": 30,
                         "sent_s": [0.5, 2.0], "server_queue_s": [0.25, np.nan], "last_s": [1.02, 3.5],
                         "end_s": [1.02, 3.5], "kv_pool_actual": 64})
    events = pd.DataFrame({"run": "a", "session": 0, "request_id": ["a#0", "b#0", "b#0"], "t_s": [1.0, 3.0, 3.25],
                           "thinking_tokens": 0, "answer_tokens": [1, 40, 1]})
    seen = metrics.predicted_engine(sent, events)
    assert seen.t_s.tolist() == [0.75, 1.02, 2.0, 3.0, 3.5] and seen.role.eq("LLM").all() and seen.session.eq(0).all()
    assert seen.kv_use.tolist() == [0.5, 0.0, 0.5, 1.0, 0.0], "whole blocks of 16, and never more than the pool"


def test_blocks_are_twentieths_of_a_runs_time():
    t = np.concatenate([np.linspace(0, 1, 50), [5.0, 9.9, 20.0]])
    made = metrics.in_blocks(pd.DataFrame({"run": "a", "session": 0, "t_s": t}))
    assert made.block.tolist() == [0] * 49 + [1, 5, 9, 19]


def test_kv_prediction_by_hand():
    requests = pd.DataFrame([request("a#0", 0, 0, 1.0, 1.0, 3.0, answer=3, prompt_tokens=15),
                             request("b#0", 0, 0, 2.0, 2.0, 2.0, answer=1, prompt_tokens=30)])
    events = events_of(("a#0", 1.0, 0, 1), ("a#0", 2.0, 0, 1), ("a#0", 3.0, 0, 1), ("b#0", 2.0, 0, 1))
    exact = metrics.predicted_kv(requests, events, 100, block=None)
    assert exact.t_s.tolist() == [1, 2, 3]
    assert exact.tokens.tolist() == [16, 17, 0]  # b comes and goes at 2 s
    blocks = metrics.predicted_kv(requests, events, 64, block=16)
    assert blocks.tokens.tolist() == [16, 32, 0]
    assert blocks.predicted.tolist() == [0.25, 0.5, 0]
    with pytest.raises(AsuError, match="size of the KV pool"):
        metrics.predicted_kv(requests, events)
    own = metrics.predicted_kv(requests.assign(kv_pool_actual=64), events, block=16)
    assert own.predicted.tolist() == blocks.predicted.tolist()


def test_prediction_is_compared_at_the_same_moment(engine):
    predicted = pd.DataFrame({"run": "r", "session": 0, "t_s": [1.5, 2.5], "tokens": [1, 2], "predicted": [0.3, 0.2]})
    both = metrics.kv_prediction(predicted, engine)
    assert both.predicted.tolist() == [0, 0.3, 0.2]
    np.testing.assert_allclose(both.error, [-0.2, -0.1, 0.1])


HOST = pd.DataFrame({"run": "r", "session": 0, "t_s": [1.1, 5.1, 8.1], "gpu_energy_j": [100.0, 140.0, 170.0],
                     "gpu_power_w": [10.0, 30, 20]})


def test_energy_is_that_of_the_serving_time_and_absent_is_not_zero(requests):
    row = metrics.asu(requests, host=HOST).iloc[0]  # sent from 0.1 s to 10 s, at 10 W also where nobody read
    assert row.energy_j == pytest.approx(99) and row.energy_per_token_j == pytest.approx(99 / 18)
    powered = metrics.asu(requests, host=HOST.assign(gpu_energy_j=np.nan)).iloc[0]
    assert powered.energy_j == pytest.approx(20 * 9.9)
    absent = metrics.asu(requests, host=HOST.assign(gpu_energy_j=np.nan, gpu_power_w=np.nan)).iloc[0]
    assert np.isnan(absent.energy_j) and np.isnan(absent.energy_per_token_j)


def test_a_moments_energy_is_parted_among_the_requests_in_flight(requests):
    # alone to 0.2 s, two to 1 s, three to 3 s, two to 5 s, alone to 10 s; the counter rises by 10 J a second
    shares = metrics.energy_shares(requests, HOST)
    np.testing.assert_allclose(shares, [1 + 4 + 20 / 3 + 10, 4 + 20 / 3 + 10 + 50, 20 / 3])
    uneven = HOST.assign(gpu_energy_j=[100.0, 100.0, 130.0])  # nothing up to 5.1 s, but for before the first reading
    assert metrics.energy_shares(requests, uneven)[1] > 0.9 * 30
    assert metrics.energy_shares(requests, HOST.assign(run="s")).isna().all()
    assert metrics.energy_shares(requests, HOST.assign(session=1)).isna().all()


def test_groups_are_separate_and_a_missing_column_is_named(requests, engine):
    two = pd.concat([requests, requests.assign(run="s", task="x", outcome="wrong")])
    events = events_of(("a#0", 1.0, 1, 0), ("a#0", 2.0, 1, 0))
    table = metrics.asu(two, pd.concat([events, events.assign(run="s", t_s=events.t_s * 3)]), by=["run"])
    assert table.accuracy.tolist() == [0.5, 0]
    assert table.tbt_p50.tolist() == [1, 3]
    assert table.tbt_answer_p50.isna().all()
    with pytest.raises(AsuError, match="engine frame has no column task"):
        metrics.asu(two, by=["task"], engine=engine)


def test_every_metric_says_what_it_is():
    for name, metric in metrics.METRICS.items():
        assert metric.name == name and metric.title and metric.formula
        assert metric.family in "ASU" and metric.better in ("higher", "lower", "")
    assert metrics.METRICS["tps"].label == "Throughput [tok/s]"


def many(slots=4, n=40):
    """n requests of two tasks on `slots` slots, request i taking 1 + i mod 5 seconds, difficulty i mod 5."""
    free, rows = np.zeros(slots), []
    for i in range(n):
        slot, spent = free.argmin(), 1.0 + i % 5
        due = free[slot]
        free[slot] += spent
        rows.append(request(f"{i}#0", due, due, due + 0.5, due + 0.5, due + spent, answer=10, task="ab"[i % 2],
                            role="RLLM", difficulty=float(i % 5)))
    return pd.DataFrame(rows)


def test_intervals_hold_the_values_of_the_table(engine):
    requests = many()
    names = ["accuracy", "cut_off", "e2e_p50", "ttfvt_p50", "tps", "rps", "straggler_share", "kv_mean", "kv_swing"]
    table = metrics.intervals(names, ["run"], requests=requests, engine=engine, n_boot=200)
    values = metrics.asu(requests, by=["run"], engine=engine).iloc[0]
    for row in table.itertuples():
        assert row.value == pytest.approx(values[row.metric]), row.metric
    assert (table.lo <= table.value).all() and (table.value <= table.hi).all()
    assert table.set_index("metric").n[["accuracy", "tps"]].tolist() == [40, 10]
    by_task = metrics.intervals(["accuracy"], ["task"], requests=requests, n_boot=50)
    assert by_task.task.tolist() == ["a", "b"]


@pytest.mark.parametrize("name", ["window_s", "tbt_p50", "speed"])
def test_what_cannot_be_resampled_has_no_interval(name):
    with pytest.raises(AsuError, match="no metric"):
        metrics.intervals([name], ["run"], requests=many())


def test_intervals_name_the_frame_they_need():
    with pytest.raises(AsuError, match="needs the engine frame"):
        metrics.intervals(["kv_peak"], ["run"], requests=many())


def test_slopes_are_per_unit_of_difficulty():
    table = metrics.slopes(many(), n_boot=100).set_index(["task", "metric"])
    assert table.value["a", "service_s"] == pytest.approx(1)
    assert (table.lo["a", "service_s"], table.hi["a", "service_s"]) == pytest.approx((1, 1))
    assert table.value["b", "output_tokens"] == pytest.approx(0)
    assert not np.isfinite(metrics.slopes(many().assign(difficulty=2.0), n_boot=50).value).any()


def test_survivor_curves_per_group(requests):
    curve = metrics.survivors(requests.assign(task="a"), by=["task"])
    assert curve[["task", "time", "survival"]].values.tolist() == [
        ["a", 0, 1], ["a", 2, 1], ["a", 3, 0.5], ["a", 10, 0.5]]


@pytest.mark.parametrize("batch", [-1, 0])
def test_batches_fill_the_window_of_a_run(batch):
    requests = many().assign(batch=np.arange(40) // 4 if batch == 0 else -1)
    table = metrics.batches(requests, keep=["role"])
    assert table.wall_s.sum() == pytest.approx(metrics.window_s(requests))
    assert table.output_tokens.sum() == 400 and table.finished.sum() == 40
    assert set(table.role) == {"RLLM"}
