"""Speculative decoding: what a study may ask, what is refused, and the numbers of notebook 09 on made-up frames."""

import json

import numpy as np
import pandas as pd
import pytest
from asu import agreement, claims, engines, models, plots
from asu.claims import speculation
from asu.engines import base
from asu.engines.vllm import VLLM
from asu.errors import AsuError
from asu.runs import Store
from asu.specs import EngineOptions, Sampling, Speculation, parse
from asu.stats import Estimate
from asu.study import Study

DRAFT = Speculation(method="draft", tokens=4, draft="mini-1m-think")
PAGE = "".join(f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{i}"}} {9 - i}\n'
               for i in range(4)) + 'vllm:spec_decode_num_drafts_total{engine="0"} 10\n'


def on_the(monkeypatch, device):
    monkeypatch.setattr(VLLM, "device", device)


def test_a_draft_of_the_catalogue_becomes_a_folder(monkeypatch):
    on_the(monkeypatch, "cpu")
    model = models.get("mini-4m-think")
    engine, options = engines.get("vllm"), EngineOptions(speculation=DRAFT)
    engine.check(options, model, str(model.folder))
    argv = engine.command(model, str(model.folder), options, "h", 1, "m")
    assert json.loads(argv[argv.index("--speculative-config") + 1]) == {
        "method": "draft_model", "model": str(models.get("mini-1m-think").folder), "num_speculative_tokens": 4}


def test_a_draft_with_another_vocabulary_is_refused(tmp_path):
    held = json.loads((models.get("mini-1m-think").folder / "tokenizer.json").read_text())
    config = json.loads((models.get("mini-1m-think").folder / "config.json").read_text())
    model = models.get("mini-4m-think")

    def refused(match):
        (tmp_path / "tokenizer.json").write_text(json.dumps(held))
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(AsuError, match=match) as error:
            base.check_vocabulary(model, str(model.folder), models.get("mini-1m-think"), str(tmp_path))
        assert "ngram" in error.value.remedy

    text, place = next((text, i) for text, i in held["model"]["vocab"].items() if i == 20)
    held["model"]["vocab"]["changed"] = held["model"]["vocab"].pop(text)
    refused(f"id {place} is 'changed' in mini-1m-think and {text!r} in mini-4m-think")
    config["vocab_size"] = 64
    refused("mini-1m-think has 64 ids, mini-4m-think 128")


def test_an_unknown_draft_is_refused(monkeypatch):
    on_the(monkeypatch, "cpu")
    model = models.get("mini-4m-think")
    options = EngineOptions(speculation=Speculation(method="draft", tokens=4, draft="nobody"))
    with pytest.raises(AsuError, match="unknown model 'nobody'"):
        engines.get("vllm").check(options, model, str(model.folder))


@pytest.mark.parametrize("device, temperature, refused", [("cpu", 0.6, True), ("cpu", 0.0, False), ("gpu", 0.6, False)])
def test_the_cpu_speculates_at_temperature_0_alone(monkeypatch, device, temperature, refused):
    on_the(monkeypatch, device)
    options, sampling = EngineOptions(speculation=DRAFT), Sampling(temperature=temperature)
    if not refused:
        engines.get("vllm").check_sampling(options, sampling)
        return
    with pytest.raises(AsuError, match="temperature 0.6") as error:
        engines.get("vllm").check_sampling(options, sampling)
    assert "temperature to 0" in error.value.remedy


@pytest.mark.parametrize("asked, message", [
    ({"method": "ngram", "tokens": 4, "acceptance": 2.0}, "prompt look-up finds nothing"),
    ({"method": "draft", "tokens": 2, "draft": "mini-1m-think", "acceptance": 3.5}, "at most tokens \\+ 1"),
    ({"method": "draft", "tokens": 2, "draft": "mini-1m-think", "acceptance": 2.0}, "needs random_weights"),
])
def test_acceptance_by_lot_where_it_means_something(asked, message):
    with pytest.raises(AsuError, match=message):
        parse({"model": "mini-4m-think", "task": "mini-easy", "options": {"speculation": asked}}, "test")


def test_acceptance_by_lot_reaches_vllm_and_the_cpu_refuses_it(monkeypatch, tmp_path):
    asked = Speculation(method="draft", tokens=4, draft="r1-qwen-7b", acceptance=2.5)
    options, model = EngineOptions(speculation=asked, random_weights=True), models.get("r1-qwen-32b")
    monkeypatch.setattr(base.shapes, "folder", lambda *_: tmp_path)
    on_the(monkeypatch, "gpu")
    argv = engines.get("vllm").command(model, str(tmp_path), options, "h", 1, "m")
    config = json.loads(argv[argv.index("--speculative-config") + 1])
    assert (config["rejection_sample_method"], config["synthetic_acceptance_length"]) == ("synthetic", 2.5)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text(json.dumps({"model": {"vocab": {}}}))
    on_the(monkeypatch, "cpu")
    with pytest.raises(AsuError, match="accept drafts by lot"):
        engines.get("vllm").check(options, model, str(tmp_path))


def test_acceptance_is_counted_by_position():
    found = engines.get("vllm").gauges(PAGE)
    assert [found[f"spec_accepted_{i}"] for i in range(4)] == [9, 8, 7, 6] and found["spec_drafts"] == 10


def labelled(rows, **labels):
    return pd.DataFrame(rows).assign(engine="vllm", model="m", pair="p", size="4M", role="RLLM", task="mini-easy",
                                     trial=0, **labels)


def frames(step_on=3, answer_on=2, pace_on=0.5, load="closed2", problems=8):
    """(requests, events): off a token per event and second; on `step_on` tokens per event of pace_on seconds."""
    requests, events = [], []
    for label, step, answer, pace in (("none", 1, 1, 1.0), ("ngram4", step_on, answer_on, pace_on)):
        for i in range(problems):
            thinking, said = [step] * (12 // step), [answer] * (4 // answer)
            at, t0 = 0.0, i * pace * (len(thinking) + len(said))
            run = f"{label}-{load}"
            for tokens, kind in [(n, "t") for n in thinking] + [(n, "a") for n in said]:
                at += pace
                events.append({"run": run, "request_id": f"p{i}#0", "session": 0, "t_s": t0 + at,
                               "speculation": label, "thinking_tokens": tokens * (kind == "t"),
                               "answer_tokens": tokens * (kind == "a")})
            requests.append({"run": run, "session": 0, "request_id": f"p{i}#0", "problem_id": f"p{i}",
                             "level": 1 + i % 2, "speculation": label, "due_s": t0, "sent_s": t0, "first_s": t0 + pace,
                             "visible_s": t0 + pace * (len(thinking) + 1), "last_s": t0 + at, "end_s": t0 + at,
                             "output_tokens": 16, "thinking_tokens": 12, "answer_tokens": 4, "error": None,
                             "outcome": "correct", "batch": -1, "thinking_text": "t", "answer_text": "a",
                             "prompt_tokens": 5, "load": load})
    return tuple(labelled(rows, max_requests=8).assign(model="mini-4m-think") for rows in (requests, events))


def test_tokens_per_step_by_phase():
    found = speculation.yields(*frames(), n_boot=50).set_index("phase").value
    assert found.to_dict() == {"thinking": 3.0, "answer": 2.0}


def test_kept_by_position_from_the_counters():
    rows = [{"run": "r", "session": 0, "t_s": t, "speculation": "ngram2", "spec_drafts": 10.0 * t + 3,
             "spec_accepted_0": 8.0 * t, "spec_accepted_1": 5.0 * t} for t in range(5)]
    found = speculation.positions(labelled(rows), n_boot=50)
    assert found.value.tolist() == [0.8, 0.5] and found.lo.tolist() == [0.8, 0.5] and found.position.tolist() == [1, 2]
    assert found.method.unique() == ["ngram"] and found.tokens.unique() == [2]
    assert speculation.positions(labelled(rows).drop(columns="spec_drafts")).empty, "an engine that does not count so"
    twice = pd.concat([found, found.assign(speculation="ngram1", tokens=1), found.assign(speculation="ngram2@3")])
    assert set(speculation.longest(twice.reset_index(drop=True)).speculation) == {"ngram2"}


def test_drafts_kept_at_changing_rates_have_an_interval_and_sessions_do_not_mix():
    rows = [{"run": "r", "session": s, "t_s": t, "speculation": "ngram2", "spec_drafts": 10.0 * t,
             "spec_accepted_0": 4.0 * t + (t % 2), "spec_accepted_1": 3.0 * t} for s in (0, 1) for t in range(20)]
    found = speculation.positions(labelled(rows), n_boot=200)
    assert found.value.tolist() == pytest.approx([(4 * 19 + 1) / 190, 0.3])
    assert found.lo[0] < found.value[0] < found.hi[0] and found.n[0] == 19, "a reading less than there are"


def test_one_event_is_one_step_by_the_engine():
    requests, events = frames()
    kept = {"none": np.nan, "ngram4": 8 * (16 - 6)}
    engine = labelled([{"run": f"{label}-closed2", "session": 0, "t_s": t, "speculation": label,
                        "spec_accepted": t * count} for label, count in kept.items() for t in (0.0, 1.0)])
    found = speculation.event_check(requests, events, engine).set_index("speculation").events_per_step
    assert found.to_dict() == {"none": 1.0, "ngram4": 1.0}


def test_tokens_kept_beyond_the_end_of_a_text_make_no_step_fewer():
    requests, events = frames()
    engine = labelled([{"run": "ngram4-closed2", "session": 0, "t_s": t, "speculation": "ngram4",
                        "spec_accepted": 200 * t, "spec_drafts": 5 * 8 * t} for t in (0.0, 1.0)])
    found = speculation.event_check(requests, events, engine).set_index("speculation")
    assert found.steps["ngram4"] == 5 * 8 + 8 and found.events_per_step["ngram4"] == 1.0


def test_crossing_lies_between_the_sizes_around_it():
    x = np.log2([1.0, 4.0, 16.0])
    gains = np.log([[2.0, 0.5, 2.0, 2.0], [2.0, 0.5, 0.5, 2.0], [0.5, 0.5, 2.0, 2.0]])
    found = speculation._from_where(x, gains)
    assert found.tolist() == [8.0, 1.0, np.inf, np.inf], "a dip that is overcome is no crossing"


def test_numbers_and_crossing_of_made_up_runs():
    requests, events = frames()
    slow = frames(pace_on=4.0, load="closed8")[0]
    sizes = pd.concat([requests, slow], ignore_index=True)
    found = speculation.crossing(sizes, "ngram", n_boot=50)
    assert 2 < found.value < 8
    assert speculation.crossing(requests, "draft", n_boot=50).known is False
    assert speculation._texts_changed(requests, "ngram", n_boot=50).value == 0
    bare = requests.assign(thinking_text="", answer_text="")
    assert not speculation._texts_changed(bare, "ngram", n_boot=50).known, "random weights: nobody saw the texts"
    tokens = speculation._effect(requests, "ngram", "tps", n_boot=50)
    chunks = speculation._effect(speculation.audit.in_chunks(requests, events), "ngram", "tps", n_boot=50)
    assert tokens.value == pytest.approx(16 / 3) and chunks.value == pytest.approx(2.0)


def test_figures_have_their_panels():
    requests, events = frames()
    phases = speculation.yields(requests, events, by=["speculation"], n_boot=50)
    levels = speculation.yields(requests, events, by=["speculation", "level"], n_boot=50)
    empty = speculation.positions(labelled([{"run": "r", "t_s": 0.0, "speculation": "ngram4"}]))
    figure = plots.acceptance(empty, phases, levels.query("phase == 'thinking'"))
    assert len(figure.axes) == 3 and "not counted" in figure.axes[0].texts[0].get_text()
    faster = speculation.speedups(requests, requests, n_boot=50)
    assert plots.speedup_by_batch(faster, crossings={"ngram4": 3.0}).axes[0].get_xlabel() == "requests in flight"
    assert len(plots.throughput_two_ways(speculation.two_ways(requests, events, n_boot=50)).axes) == 1


def test_sets_alone_are_as_certain_as_in_the_figure():
    again = {"mini-easy": 1.1, "mini-medium": 0.95, "mini-facts": 1.05}
    requests, events = [], []
    for task, pace in again.items():
        first, second = frames(), frames(pace_on=pace)
        for found, frame, more in zip((requests, events), first, second, strict=True):
            found += [frame, more[more.speculation == "none"].assign(trial=1)]
        for found in (requests, events):
            found[-2:] = [part.assign(task=task, run=task + part.run + part.trial.astype(str)) for part in found[-2:]]
        seconds = ["due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s"]
        requests[-1][seconds] *= pace
        events[-1]["t_s"] *= pace
    requests, events = (pd.concat(parts, ignore_index=True) for parts in (requests, events))
    numbers = claims.measure("09", requests=requests, events=events, sizes=requests, n_boot=50,
                             engine=counters(64.0))
    drawn = speculation.two_ways(requests, events, n_boot=50).set_index(["count", "task"])
    for task in again:
        for count, name in (("tokens", "09.tps_ratio_ngram"), ("stream events", "09.tps_ratio_ngram_chunks")):
            told, row = numbers[f"{name}_{task}"], drawn.loc[(count, task)]
            assert (told.value, told.lo, told.hi) == pytest.approx((row.value, row.lo, row.hi))
            assert told.hi / told.lo < 2, "three runs made again, not one, tell the machine's changes of pace"


def counters(kept, label="ngram4", run="ngram4-closed2"):
    """The engine's counters at the beginning and the end of a run."""
    return labelled([{"run": run, "session": 0, "t_s": t, "speculation": label, "spec_drafted": 40.0 * (t > 0),
                      "spec_accepted": kept * (t > 0)} for t in (0.0, 9.0)])


def test_a_step_costs_what_it_yields_over_what_it_gains():
    requests, events = frames(pace_on=0.5)  # 8 texts of 16 tokens; 6 events of half a second in place of 16
    row, = speculation.rates(requests, counters(kept=64.0), requests, by=["speculation", "task"],
                             n_boot=50).itertuples()
    assert (row.task, row.tokens_per_step) == ("mini-easy", 2.0) and row.kept == pytest.approx(1.6)
    assert row.speed_up.value == pytest.approx(16 / 3) and row.step_cost.value == pytest.approx(2 / (16 / 3))
    assert row.step_cost.lo <= row.step_cost.value <= row.step_cost.hi
    numbers = claims.measure("09", requests=requests, events=events, sizes=requests, engine=counters(kept=64.0),
                             n_boot=50)
    assert numbers["09.step_cost_ngram"].value == pytest.approx(2 * 3 / 16)
    assert not numbers["09.step_cost_draft"].known
    assert plots.speedup_by_yield(speculation.rates(requests, counters(64.0), requests, n_boot=50).assign(varied=True))


def test_a_method_is_measured_where_it_was_served():
    requests = pd.concat([frames()[0], frames(load="closed4")[0].query("speculation == 'none'")], ignore_index=True)
    faster = speculation.speedups(requests, requests, n_boot=50)
    assert list(faster.at_once) == [2.0]
    numbers = claims.measure("09", requests=requests.query("load == 'closed2'"), events=frames()[1], sizes=requests,
                             engine=counters(64.0), n_boot=50)
    assert numbers["09.speedup_ngram_largest"].value == pytest.approx(16 / 3)


def test_drafts_kept_by_lot_carry_the_mean_in_their_label():
    assert Speculation(method="draft", tokens=4, draft="r1-qwen-7b", acceptance=2.5).label == "draft4@2.5"
    found = speculation.method(pd.Series(["draft4@2.5", "ngram8", "none"]))
    assert list(found.method) == ["draft", "ngram", "none"] and list(found.tokens) == [4, 8, 0]


UNVARIED = pd.DataFrame({"speculation": ["ngram4"], "tokens_per_step": [2.0], "speed_up": [Estimate(1.2)]})


def test_guidance_follows_the_numbers():
    sizes = pd.DataFrame({"load": ["closed1", "closed64"] * 2, "speculation": ["ngram4"] * 2 + ["draft4"] * 2,
                          "task": "mini-medium"})
    numbers = {"09.time_ratio_ngram": Estimate(0.5, 0.4, 0.6), "09.crossing_ngram": Estimate(20.0, 10, 30),
               "09.speedup_ngram_smallest": Estimate(2.0, 1.9, 2.1, "×"),
               "09.speedup_ngram_largest": Estimate(0.8, 0.7, 0.9, "×"),
               "09.time_ratio_draft": Estimate(1.5, 1.4, 1.6), "09.crossing_draft": Estimate(np.nan)}
    text = speculation.guidance(numbers, sizes, UNVARIED, 32)
    assert "saves 50%" in text and "between 1 and 64 in flight" in text and "costs 50% more" in text
    assert "on mini-medium is faster with 1 in flight (2.00 [1.90, 2.10] × as fast)" in text
    assert "32 in flight, runs" in text
    assert "is slower with 64 in flight" in text
    assert text.endswith("switch it off beyond the crossing.")
    assert "nothing is advised" in speculation.guidance({}, sizes, UNVARIED, 32)


def test_guidance_names_no_crossing_that_was_not_found():
    sizes = pd.DataFrame({"load": ["closed1", "closed64"] * 2, "speculation": ["ngram4"] * 2 + ["draft4"] * 2,
                          "task": "mini-medium"})
    numbers = {"09.time_ratio_ngram": Estimate(0.9, 0.8, 1.02, "×"), "09.crossing_ngram": Estimate(np.nan),
               "09.speedup_ngram_smallest": Estimate(1.9, 1.7, 2.1, "×"),
               "09.speedup_ngram_largest": Estimate(1.3, 1.2, 1.4, "×")}
    text = speculation.guidance(numbers, sizes, UNVARIED, 32)
    assert "is faster with 1 in flight" in text and "and with 64 in flight (1.30" in text
    assert "crossing" not in text and "no effect on time per request that is certain" in text


def test_guidance_says_where_drafting_never_pays():
    sizes = pd.DataFrame({"load": ["closed1", "closed64"] * 2, "speculation": ["ngram4"] * 2 + ["draft4"] * 2,
                          "task": "mini-medium"})
    text = speculation.guidance({"09.crossing_draft": Estimate(1.0, 1.0, 1.0)}, sizes, UNVARIED, 32)
    assert "a small draft model pays with no number in flight that was measured" in text and "crossing" not in text


def test_what_a_step_must_yield_is_read_between_yields_where_they_were_varied():
    rates = pd.DataFrame({"speculation": ["draft4@4", "draft4@2", "draft4@3", "draft2@2"],
                          "tokens_per_step": [4.0, 2.0, 3.0, 2.0],
                          "speed_up": [Estimate(2.0), Estimate(0.5), Estimate(1.0), Estimate(5.0)]})
    assert speculation.break_even(rates, "draft") == pytest.approx(3.0), "of the first length alone"
    assert np.isnan(speculation.break_even(rates[:1], "draft")) and np.isnan(speculation.break_even(rates, "ngram"))
    assert np.isnan(speculation.break_even(rates[:1].assign(tokens_per_step=1.0), "draft"))
    sizes = pd.DataFrame({"load": ["closed32"], "speculation": ["draft4"], "task": "mini-medium"})
    cost = {"09.step_cost_draft": Estimate(10.0, 7.4, 13.4, "×")}
    assert "more than about 3.0 tokens a step" in speculation.guidance(cost, sizes, rates, 32)
    assert "cannot pay with drafts this short" in speculation.guidance(cost, sizes, UNVARIED, 32)


def test_a_speed_up_over_too_few_problems_has_no_interval():
    requests, _ = frames()
    few = requests[requests.problem_id.isin(requests.problem_id.unique()[:3])]
    assert not speculation.speedups(few, few, n_boot=50).lo.notna().any()


@pytest.mark.engine
def test_greedy_texts_are_the_same_with_either_speculation(tmp_path):
    ngram = Speculation(method="ngram", tokens=4)
    study = Study(model="mini-4m-think", task="mini-medium", problems=4, budget=256, context=1024, max_requests=8,
                  kv_pool_tokens=4096, temperature=0.0, load={"kind": "closed", "concurrency": 4},
                  speculations=[None, DRAFT.model_dump(), ngram.model_dump()], store=Store(tmp_path)).run()
    requests, events = study.requests(), study.events()
    for label in ("draft4", "ngram4"):
        compared = agreement.compare(requests, events, {"speculation": "none"}, {"speculation": label}, label)
        assert len(compared) == 4 and compared.changed.sum() == 0
    kept = speculation.positions(study.engine()).set_index("method").value
    assert all(len(kept[method]) == 4 and kept[method].is_monotonic_decreasing for method in ("draft", "ngram"))
    assert kept["draft"].iloc[0] > 0.5
