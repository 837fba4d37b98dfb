"""Replay: recorded thinking in place of what random weights say, no texts, no grades; lengths are recorded and read."""

import numpy as np
import pandas as pd
import pytest
from asu import claims, records, workload
from asu.errors import AsuError
from asu.specs import Closed, EngineOptions, RunSpec, Sampling

SPEC = RunSpec(model="r1-qwen-7b", task="math500", problems=12, lengths="r1-qwen-7b-math500-level5", load=Closed(
    concurrency=4), options=EngineOptions(random_weights=True, context=4096), sampling=Sampling(budget=3000))


def record(request, step=4):
    """A journal's record of a request whose stream brought `step` tokens an event, all said to be thinking."""
    counts = [step] * (request.max_tokens // step) + [request.max_tokens % step] * bool(request.max_tokens % step)
    row = {name: 0 for name in records.REQUESTS.names} | {
        "request_id": request.id, "problem_id": request.problem.id, "task": "math500", "finish_reason": "length",
        "error": None, "thinking_text": "year life man", "answer_text": "way", "expected": "", "due_s": 0.0,
        "output_tokens": request.max_tokens, "thinking_tokens": request.max_tokens, "answer_tokens": 0,
        "event_tokens": request.max_tokens, "visible_s": None, "end_s": 9.0}
    return {"kind": "request", "row": row, "events": [(0.1 * i, count, 0) for i, count in enumerate(counts)]}


@pytest.fixture(scope="module")
def wanted():
    return workload.requests(SPEC)


def test_the_recorded_thinking_is_what_is_replayed(wanted):
    recorded = workload.recorded_lengths(SPEC.lengths)
    for request in wanted:
        row = recorded[request.problem.id, 0]
        assert request.thinking_tokens == int(row["thinking_tokens"] or row["output_tokens"])
    plain = SPEC.model_copy(update={"model": "qwen2.5-math-7b", "lengths": "qwen2.5-math-7b-math500-level5"})
    assert {request.thinking_tokens for request in workload.requests(plain)} == {0}


def test_thinking_ends_where_it_did_and_no_token_is_lost(wanted):
    made = records.tables(SPEC, wanted, [record(request) for request in wanted])
    requests, events = made["requests"].to_pandas(), made["events"].to_pandas()
    for request, row in zip(wanted, requests.itertuples(), strict=True):
        thinking = min(request.thinking_tokens, request.max_tokens)
        assert (row.thinking_tokens, row.answer_tokens) == (thinking, request.max_tokens - thinking)
        stream = events[events.request_id == request.id]
        assert stream.thinking_tokens.sum() == thinking
        assert stream.thinking_tokens.sum() + stream.answer_tokens.sum() == row.event_tokens == request.max_tokens
        if row.answer_tokens:
            assert row.visible_s == pytest.approx(0.1 * (thinking // 4))
        else:
            assert np.isnan(row.visible_s), "cut off while it would still have thought"
        assert row.thinking_text == row.answer_text == ""
        assert row.finish_reason == ("length" if request.max_tokens == SPEC.sampling.budget else "stop")
    assert requests.outcome.isna().all()
    assert requests.visible_s.isna().any() and requests.visible_s.notna().any(), "the test sees both kinds"


def test_what_was_not_recorded_stays_as_the_stream_said(wanted):
    unknown = [workload.replace(request, thinking_tokens=None) for request in wanted]
    made = records.tables(SPEC, unknown, [record(request) for request in wanted])["requests"].to_pandas()
    assert (made.thinking_tokens == made.output_tokens).all() and made.visible_s.isna().all()


def test_twins_recorded_on_different_problems_are_compared_set_against_set():
    rng = np.random.default_rng(0)
    rows = [dict(pair="7b", size="7B", role=role, task="math500", load="closed32", problem_id=f"{role}-{i}", repeat=0,
                 difficulty=5.0, output_tokens=100, due_s=0.0, sent_s=0.0, first_s=0.1, visible_s=0.2, last_s=seconds,
                 end_s=seconds, error=None, outcome=None, thinking_tokens=0, answer_tokens=100, event_tokens=100,
                 finish_reason="length", max_tokens=100, run=role, session=0, batch=-1)
            for role, scale in (("RLLM", 8.0), ("LLM", 2.0)) for i, seconds in enumerate(rng.uniform(1, 3, 40) * scale)]
    apart = claims.running_time.time_ratio(pd.DataFrame(rows))
    assert apart.lo < 4 < apart.hi and apart.hi - apart.lo < 2
    shared = pd.DataFrame(rows).assign(problem_id=[f"p{i % 40}" for i in range(80)])
    assert claims.running_time.time_ratio(shared).value == apart.value


def test_real_weights_keep_their_thinking_and_texts_but_are_not_graded():
    spec = RunSpec(model="mini-4m-think", task="mini-easy", problems=4, lengths="mini-4m-think-mini-easy")
    wanted = workload.requests(spec)
    assert {request.thinking_tokens for request in wanted} == {None}
    requests = records.tables(spec, wanted, [record(request) for request in wanted])["requests"].to_pandas()
    assert (requests.thinking_text == "year life man").all()
    assert (requests.thinking_tokens == requests.output_tokens).all()
    assert requests.outcome.isna().all() and (requests.finish_reason == "stop").all()


def test_a_miniature_is_sent_as_many_characters_as_the_prompt_had_tokens():
    spec = RunSpec(model="mini-4m-think", task="mini-easy", problems=8, lengths="mini-4m-think-mini-easy",
                   options=EngineOptions(random_weights=True))
    rows = workload.recorded_lengths(spec.lengths)
    prompts = [request.problem.prompt for request in workload.requests(spec)]
    assert [len(prompt) for prompt in prompts] == [int(row["prompt_tokens"]) for row in rows.values()][:8]
    assert len(set(prompts)) == 8


def finished(**more):
    return pd.DataFrame({"run": "a", "model": "mini-4m-think", "task": "mini-easy", "problem_id": ["p0", "p1"],
                         "repeat": 0, "output_tokens": [40, 9], "thinking_tokens": [30, 9], "prompt_tokens": 20,
                         "level": 1, "difficulty": 2.0, "error": None} | more)


def test_recorded_lengths_are_those_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(workload.paths, "LENGTHS", tmp_path)
    assert workload.record_lengths(finished()) == [tmp_path / "mini-4m-think-mini-easy.csv"]
    read = workload.recorded_lengths("mini-4m-think-mini-easy")
    assert {key: (int(row["output_tokens"]), int(row["thinking_tokens"])) for key, row in read.items()} == {
        ("p0", 0): (40, 30), ("p1", 0): (9, 9)}


@pytest.mark.parametrize("frame, words", [
    (finished(error=["lost", None]), "1 requests failed"), (finished(run=["a", "b"]), "2 runs of mini-4m-think")])
def test_lengths_of_failed_or_several_runs_are_not_recorded(tmp_path, frame, words):
    with pytest.raises(AsuError, match=words):
        workload.record_lengths(frame, tmp_path)
