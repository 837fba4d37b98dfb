"""Effects: paired differences whose truth is known, what a missing side does, and the control's part in intervals."""

import numpy as np
import pandas as pd
import pytest
from asu import effects, metrics, plots
from asu.errors import AsuError

FEW = {"n_boot": 200}
PROBLEMS = 24


def run(role="RLLM", task="mini-easy", kv="bf16", trial=0, *, pace=1.0, longer=1.0, hit=lambda i: True, pair="mini-4m",
        broken=(), answer=3):
    """One run, four in flight: request i thinks 10·(i+1) tokens of 0.1 s, all times `pace`-fold, lengths `longer`."""
    slots, rows = np.zeros(4), []
    for i in range(PROBLEMS):
        slot = slots.argmin()
        due = slots[slot]
        thinking = round(10 * (1 + i % 6) * longer) if role == "RLLM" else 0
        first = due + 0.2 * pace
        visible = first + 0.1 * thinking * pace
        last = visible + 0.1 * (answer - 1) * pace
        failed = i in broken
        slots[slot] = last
        rows.append({
            "run": f"{pair}-{role}-{task}-{kv}-{trial}", "session": 0, "engine": "vllm", "pair": pair, "size": "4M",
            "model": f"{pair}-{'think' if role == 'RLLM' else 'direct'}", "role": role, "task": task,
            "load": "closed4", "kv_cache": kv, "trial": trial, "prefix_caching": False,
            "request_id": f"{task}-{i}#0", "problem_id": f"{task}-{i}", "batch": -1, "due_s": due, "sent_s": due,
            "first_s": first, "visible_s": visible, "last_s": np.nan if failed else last, "end_s": last,
            "thinking_tokens": thinking, "answer_tokens": answer, "output_tokens": thinking + answer,
            "error": "connection lost" if failed else None,
            "outcome": "failed" if failed else "correct" if hit(i) else "wrong"})
    return pd.DataFrame(rows)


def gauges(requests, level):
    """KV readings every 0.5 s for as long as each run lasts; level(kv format) is their constant value."""
    parts = []
    for _, part in requests.groupby("run", sort=False):
        labels = part.iloc[0][["run", "session", "engine", "pair", "size", "role", "task", "load", "kv_cache", "trial"]]
        t = np.arange(0, part.end_s.max(), 0.5)
        parts.append(pd.DataFrame({**labels, "t_s": t, "kv_use": level(labels.kv_cache), "running": 4.0,
                                   "waiting": 0.0}))
    return pd.concat(parts, ignore_index=True)


def both(**on):
    """bf16 and an fp8 run with `on`, reasoning and plain twin, two sets."""
    cells = [(role, task) for role in ("RLLM", "LLM") for task in ("mini-easy", "mini-medium")]
    return pd.concat([run(*cell, kv, **(on if kv == "fp8_e4m3" else {})) for cell in cells
                      for kv in ("bf16", "fp8_e4m3")], ignore_index=True)


def test_a_faster_arm_is_faster_by_what_it_was_made_faster():
    frame = both(pace=0.5)
    rows = effects.table(frame, arm="kv_cache", off="bf16", **FEW).set_index(["role", "metric"])
    assert set(rows.arm) == {"fp8_e4m3"}
    for name in ("e2e", "ttft", "ttfvt", "tbt_answer", "time_per_request"):
        row = rows.loc[("LLM", name)]
        assert row.value == pytest.approx(0.5) and row.how == "ratio" and row.unit == "×"
        assert row.lo == pytest.approx(0.5) and row.hi == pytest.approx(0.5)
    assert rows.loc[("RLLM", "tps"), "value"] == pytest.approx(2)
    assert rows.loc[("RLLM", "tbt_thinking"), ["off", "on"]].tolist() == pytest.approx([0.1, 0.05])
    assert rows.loc[("RLLM", "output_tokens"), "value"] == 1
    assert rows.loc[("RLLM", "accuracy"), ["off", "on", "value"]].tolist() == [1, 1, 0]
    assert rows.loc[("RLLM", "e2e"), "n"] == 2 * PROBLEMS


def test_a_plain_model_has_no_time_between_thinking_tokens_and_an_answer_of_one_token_none_either():
    rows = effects.table(both(answer=1), arm="kv_cache", off="bf16", metrics=["tbt_thinking", "tbt_answer"], **FEW)
    plain = rows[rows.role == "LLM"]
    assert plain.value.isna().all() and set(plain.note) == {"no such tokens"}
    assert rows.set_index(["role", "metric"]).loc[("RLLM", "tbt_thinking"), "value"] == pytest.approx(1)


def test_accuracy_is_paired_by_problem():
    frame = both(hit=lambda i: i % 4 != 0)
    found = effects.estimate(frame, "accuracy", arm="kv_cache", on="fp8_e4m3", off="bf16", **FEW)
    assert found.value == pytest.approx(-0.25) and found.unit == "share" and found.lo < -0.25 < found.hi < 0


def test_a_failed_request_is_left_out_on_both_sides_and_said():
    frame = both(broken=(5,), longer=1.0)  # request 5 is a longest one: leaving it out on one side only would show
    row = effects.table(frame, arm="kv_cache", off="bf16", metrics=["e2e", "accuracy"], **FEW).iloc[0]
    assert row.value == 1 and row.n == 2 * PROBLEMS - 2
    assert row.note == "2 requests failed on one side and are left out on both"


def test_all_requests_of_an_arm_failing_leaves_effects_unknown():
    frame = both(broken=range(PROBLEMS))
    row = effects.table(frame, arm="kv_cache", off="bf16", metrics=["e2e"], **FEW).iloc[0]
    assert np.isnan([row.value, row.off, row.on]).all() and "failed on one side" in row.note


def test_ungraded_runs_have_no_row_for_accuracy():
    frame = both().assign(outcome=None)
    rows = effects.table(frame, arm="kv_cache", off="bf16", metrics=["accuracy", "e2e"], **FEW)
    assert set(rows.metric) == {"e2e"}
    assert not effects.estimate(frame, "accuracy", arm="kv_cache", on="fp8_e4m3", off="bf16").known


def test_a_first_visible_token_that_never_came_counts_up_to_a_common_time():
    frame = both()
    slow = (frame.kv_cache == "fp8_e4m3") & (frame.role == "RLLM") & frame.problem_id.str.endswith(("-5", "-11"))
    frame.loc[slow, "visible_s"] = np.nan
    frame.loc[slow, ["last_s", "end_s"]] += 100.0
    row = effects.table(frame, arm="kv_cache", off="bf16", metrics=["ttfvt"], **FEW).iloc[0]
    assert row.value > 1 and row.hi < 100 / row.off  # later, yet not by the 100 s that nobody waited for a token


def test_kv_effects_need_gauges_and_a_run_too_short_for_them_is_a_gap():
    frame = both()
    engine = gauges(frame, {"bf16": 0.4, "fp8_e4m3": 0.2}.get)
    with pytest.raises(AsuError, match="needs the engine's gauges"):
        effects.table(frame, arm="kv_cache", off="bf16", metrics=["kv_mean"])
    short = engine[(engine.role == "RLLM") & ((engine.task == "mini-easy") | (engine.kv_cache == "bf16"))]
    rows = effects.table(frame, engine=short, arm="kv_cache", off="bf16", metrics=["kv_mean", "kv_peak"], **FEW)
    rows = rows.set_index(["role", "metric"])
    assert rows.loc[("RLLM", "kv_mean"), ["value", "note"]].tolist() == [0.5, "gauge read on 1 of 2 sets"]
    assert np.isnan(rows.loc[("LLM", "kv_peak"), "value"])
    assert rows.loc[("LLM", "kv_peak"), "note"] == "gauge read on 0 of 2 sets"


def test_the_control_is_the_off_runs_made_again_and_widens_intervals():
    frame = both(pace=0.9)
    alone = effects.estimate(frame, "e2e", arm="kv_cache", on="fp8_e4m3", off="bf16", **FEW)
    assert (alone.lo, alone.hi) == pytest.approx((0.9, 0.9))
    again = [run(role, task, trial=1, pace=1.2) for role in ("RLLM", "LLM") for task in ("mini-easy", "mini-medium")]
    frame = pd.concat([frame, *again], ignore_index=True)
    found = effects.estimate(frame, "e2e", arm="kv_cache", on="fp8_e4m3", off="bf16", **FEW)
    half = np.log(1.2) / np.sqrt(2) * 4.302653  # two runs on each of two servers: t with two degrees of freedom
    assert found.value == pytest.approx(0.9)
    assert np.log([found.lo, found.hi]) == pytest.approx(np.log(0.9) + np.array([-half, half]))
    control = effects.table(frame, arm="trial", off=0, metrics=["e2e", "accuracy"], **FEW)
    assert set(control.arm) == {"made again"} and set(control.role) == {"RLLM", "LLM"}
    assert control[control.metric == "e2e"].value.tolist() == pytest.approx([1.2, 1.2])
    same = effects.estimate(frame, "accuracy", arm="kv_cache", on="fp8_e4m3", off="bf16", **FEW)
    assert abs(same.lo) < 0.1  # the machine's pace changes no answer


def test_the_pace_that_runs_of_a_server_share_does_not_even_out_with_more_of_them():
    normal = 1.959964
    apart = [np.full(50, sign * np.log(1.2)) for sign in (1, -1)] * 50
    for servers, runs in ((1, 1), (1, 50), (4, 4), (4, 200)):
        assert effects._spread(apart, [(servers, runs)], False) == pytest.approx(
            normal * np.log(1.2) / np.sqrt(servers), rel=0.02)
    assert effects._spread(apart, [(1, 1), (1, 1)], False) == pytest.approx(normal * np.log(1.2) * 2**0.5, rel=0.02)
    assert effects._spread(apart, [(1, 1)], True) == pytest.approx(0, abs=1e-6), "within a server nothing changed"


def test_the_paces_of_servers_and_of_their_runs_are_told_apart():
    rng = np.random.default_rng(0)
    both = [0.3 * rng.standard_normal() + 0.1 * rng.standard_normal(8) for _ in range(4000)]
    for servers, runs in ((1, 1), (1, 8), (2, 16)):
        wanted = 1.96 * np.sqrt(0.3**2 / servers + 0.1**2 / runs)
        assert effects._spread(both, [(servers, runs)], False) == pytest.approx(wanted, rel=0.05)
    assert effects._spread(both, [(1, 4)], True) == pytest.approx(1.96 * 0.1 / 2, rel=0.05)
    alone = [rng.standard_normal(1) for _ in range(4000)]
    assert effects._spread(alone, [(1, 1)], False) == pytest.approx(1.96, rel=0.05)
    assert effects._spread(alone, [(1, 1)], True) == pytest.approx(1.96, rel=0.05), "nothing is told of what is within"


def test_few_servers_are_unsure():
    assert effects._spread([np.array([0.1])], [(1, 1)], False) == pytest.approx(1.27, rel=0.01)  # t of one degree
    quiet = [np.array([0.1, -0.1, 0.1, -0.1])]
    assert effects._spread(quiet, [(1, 4)], False) == pytest.approx(2.776 * 0.1 / 2, rel=0.01)  # of four, pooled


def test_times_between_tokens_from_events_count_each_token_of_an_event():
    frame = both()
    events = [{"run": r.run, "request_id": r.request_id, "t_s": t, "thinking_tokens": 0, "answer_tokens": n}
              for r in frame[frame.role == "LLM"].itertuples() for t, n in ((r.first_s, 1), (r.first_s + 0.4, 2))]
    rows = effects.table(frame, arm="kv_cache", off="bf16", metrics=["tbt_answer"], events=pd.DataFrame(events), **FEW)
    assert rows.set_index("role").loc["LLM", ["off", "on"]].tolist() == pytest.approx([0.2, 0.2])


def test_shares_of_time_add_up_to_the_run_and_give_its_throughput():
    frame = pd.concat([run(), run("LLM")], ignore_index=True)
    shares = metrics.time_shares(frame)
    for _, part in frame.groupby("run"):
        assert shares[part.index].sum() == pytest.approx(metrics.window_s(part))
    late = run().assign(run="late")
    late.loc[late.index[12:], ["due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s"]] += 50  # nobody in between
    assert metrics.time_shares(late).sum() == pytest.approx(metrics.window_s(late))


def test_what_cannot_be_compared_is_refused():
    frame = both()
    with pytest.raises(AsuError, match="no run has kv_cache 'int8'"):
        effects.table(frame, arm="kv_cache", off="int8")
    with pytest.raises(AsuError, match="no label colour"):
        effects.table(frame, arm="colour", off="red")
    with pytest.raises(AsuError, match="no effect on speed"):
        effects.estimate(frame, "speed", arm="kv_cache", on="fp8_e4m3", off="bf16")
    lonely = frame[(frame.kv_cache == "bf16") != (frame.role == "LLM")]  # each role with one format only
    with pytest.raises(AsuError, match="nothing to compare"):
        effects.table(lonely, arm="kv_cache", off="bf16", by=["pair", "task"])
    fewer = frame.drop(frame[(frame.kv_cache == "bf16") & (frame.problem_id == "mini-easy-3")].index)
    with pytest.raises(AsuError, match="asked different problems"):
        effects.table(fewer, arm="kv_cache", off="bf16")


def test_values_of_an_arm_have_names():
    assert effects.named(True, "prefix_caching") == "on" and effects.named(np.False_, "prefix_caching") == "off"
    assert effects.named("ngram4", "speculation") == "ngram4"
    assert effects.named(1, "trial") == "made again" and effects.named(2, "trial") == "made again (2)"


def test_the_forest_has_a_panel_per_metric_and_the_control_on_top():
    again = [run(role, task, trial=1) for role in ("RLLM", "LLM") for task in ("mini-easy", "mini-medium")]
    frame = pd.concat([both(pace=0.5), *again], ignore_index=True)
    table = pd.concat([effects.table(frame, arm=arm, off=off, engine=gauges(frame[frame.role == "RLLM"], lambda _: 0.5),
                                     **FEW) for arm, off in (("kv_cache", "bf16"), ("trial", 0))])
    theirs = pd.DataFrame([{"arm": "fp8_e4m3", "metric": "tps", "value": 1.1}])
    figure = plots.effects(table, paper=theirs)
    assert len(figure.axes) == table.metric.nunique() == len(effects.EFFECTS) - 1, "no power was read"
    accuracy, throughput = figure.axes[0], figure.axes[list(effects.EFFECTS).index("tps")]
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["4M made again", "4M fp8_e4m3"]
    drawn = [line.get_xdata()[0] for line in throughput.lines]
    assert sum(x == pytest.approx(2) for x in drawn) == 2 and 1.1 in drawn
    gaps = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert gaps.count("gauge read on 0 of 2 sets") == 4 and gaps.count("no such tokens") == 2


def test_the_forest_needs_rows():
    with pytest.raises(AsuError, match="figure effects: its frame has no rows"):
        plots.effects(effects.table(both(), arm="kv_cache", off="bf16", **FEW).iloc[:0])


def test_what_is_special_to_reasoning_is_the_difference_of_the_twins_effects():
    cells = {("RLLM", "bf16"): {}, ("LLM", "bf16"): {}, ("LLM", "fp8_e4m3"): {"pace": 0.5},
             ("RLLM", "fp8_e4m3"): {"pace": 0.4, "hit": lambda i: i % 4 != 0}}
    frame = pd.concat([run(role, task, kv, **how) for (role, kv), how in cells.items()
                       for task in ("mini-easy", "mini-medium")], ignore_index=True)
    asked = {"arm": "kv_cache", "on": "fp8_e4m3", "off": "bf16"}
    assert effects.special(frame, "e2e", **asked, **FEW).value == pytest.approx(0.8)
    lost = effects.special(frame, "accuracy", **asked, **FEW)
    assert lost.value == pytest.approx(-0.25) and lost.lo < -0.25 < lost.hi < 0 and lost.unit == "share"
    assert not effects.special(frame, "tbt_thinking", **asked, **FEW).known
    assert not effects.special(frame[frame.role == "RLLM"], "e2e", **asked, **FEW).known


def test_a_set_that_one_twin_fails_anyway_tells_nothing_on_roles():
    lost = {"hit": lambda i: i % 4 != 0}
    frame = pd.concat([
        run("RLLM", "mini-easy"), run("RLLM", "mini-easy", "fp8_e4m3", **lost), run("LLM", "mini-easy"),
        run("LLM", "mini-easy", "fp8_e4m3", **lost), run("RLLM", "mini-hard"),
        run("RLLM", "mini-hard", "fp8_e4m3", **lost),
        *(run("LLM", "mini-hard", kv, hit=lambda i: False) for kv in ("bf16", "fp8_e4m3"))], ignore_index=True)
    kept = effects.answered(frame, arm="kv_cache", off="bf16")
    assert set(kept.task) == {"mini-easy"}
    assert effects.special(kept, "accuracy", arm="kv_cache", on="fp8_e4m3", off="bf16", **FEW).value == 0
    assert effects.special(frame, "accuracy", arm="kv_cache", on="fp8_e4m3", off="bf16", **FEW).value < 0
    assert effects.answered(frame[frame.role == "RLLM"], arm="kv_cache", off="bf16").empty


def test_energy_is_an_effect_only_where_power_was_read():
    frame = both(pace=0.5)
    assert "energy_per_token" not in set(effects.table(frame, arm="kv_cache", off="bf16", **FEW).metric)
    with pytest.raises(AsuError, match="needs the GPU's power"):
        effects.estimate(frame, "energy_per_token", arm="kv_cache", on="fp8_e4m3", off="bf16", **FEW)
    host = pd.DataFrame([{"run": run, "session": 0, "t_s": t, "gpu_energy_j": 300.0 * t, "gpu_power_w": 300.0}
                         for run in frame.run.unique() for t in (0.0, 1.0, 2.0)])
    powered = frame.assign(energy_j=metrics.energy_shares(frame, host))
    rows = effects.table(powered, arm="kv_cache", off="bf16", **FEW).set_index(["role", "metric"])
    found = rows.xs("energy_per_token", level="metric")
    assert found.value.tolist() == pytest.approx([0.5, 0.5]), "half the time at the same power"
    unread = frame.assign(energy_j=np.nan)
    assert "energy_per_token" not in set(effects.table(unread, arm="kv_cache", off="bf16", **FEW).metric)
