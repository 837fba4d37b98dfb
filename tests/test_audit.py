"""Flaws of the released client: each moves what it should by as much as it must, and nothing else."""

import numpy as np
import pandas as pd
import pytest
from asu import audit, claims, metrics
from asu.claims import honesty
from asu.errors import AsuError
from asu.plots import flawed_claims, flaws
from asu.tasks import released

N = 8  # requests per role


def requests(**changes) -> pd.DataFrame:
    """Per role N requests of one run, one after the other: 1 s to the first token, 0.1 s a token; LLM thinks nothing.

    The last request of the RLLM never leaves thinking.
    """
    parts = []
    for role, thinking in (("RLLM", 20), ("LLM", 0)):
        k = np.arange(N)
        due = k * 10.0
        first = due + 1.0
        visible = first + 0.1 * thinking
        last = visible + 0.1 * 4  # 5 tokens of answer
        cut = (k == N - 1) & (role == "RLLM")
        parts.append(pd.DataFrame({
            "run": role, "session": 0, "task": "mini-easy", "pair": "mini-4m", "size": "4M", "role": role,
            "engine": "vllm", "model": f"mini-4m-{'think' if thinking else 'direct'}", "load": "closed1",
            "prefix_caching": False, "repeat": 0, "batch": -1, "problem_id": [f"mini-easy-{i:03d}" for i in k],
            "request_id": [f"mini-easy-{i:03d}#0" for i in k], "due_s": due, "sent_s": due, "first_s": first,
            "visible_s": np.where(cut, np.nan, visible), "last_s": last, "end_s": last + 0.05,
            "output_tokens": np.where(cut, 25, thinking + 5), "thinking_tokens": np.where(cut, 25, thinking),
            "answer_tokens": np.where(cut, 0, 5), "event_tokens": thinking + 5, "prompt_tokens": 90, "error": None,
            "outcome": np.where(cut, "cut off", np.where(k % 2, "wrong", "correct")), "expected": "42",
            "answer_text": np.where(cut, "", np.where(k % 2, "41", "42")), "difficulty": 1.0}))
    return pd.concat(parts, ignore_index=True).assign(**changes)


def events(frame: pd.DataFrame, per_event: int) -> pd.DataFrame:
    """Stream events of `per_event` tokens each, thinking first; an event may hold the end of one and the other."""
    rows = []
    for row in frame.itertuples():
        kinds = ["thinking"] * row.thinking_tokens + ["answer"] * row.answer_tokens
        for start in range(0, len(kinds), per_event):
            here = kinds[start:start + per_event]
            rows.append({"run": row.run, "request_id": row.request_id, "t_s": row.first_s + 0.1 * start,
                         "thinking_tokens": here.count("thinking"), "answer_tokens": here.count("answer")})
    return pd.DataFrame(rows)


def cell(table: pd.DataFrame, role: str, metric: str) -> pd.Series:
    return table[(table.role == role) & (table.metric == metric)].iloc[0]


OPTIONS = {"n_boot": 50}


def test_headline_is_what_the_metrics_say():
    r = requests()
    found, told = audit.headline(r[r.role == "LLM"]), metrics.asu(r[r.role == "LLM"], by=["role"]).iloc[0]
    for ours, theirs in (("tps", "tps"), ("rps", "rps"), ("ttft", "ttft_mean"), ("ttfvt", "ttfvt_mean"),
                         ("accuracy", "accuracy"), ("straggler_share", "straggler_share")):
        assert found[ours] == pytest.approx(told[theirs])
    assert found.tbt == pytest.approx(0.1) and "kv_mean" not in found


def test_one_token_an_event_is_counted_right():
    r = requests()
    table = audit.table(r, ["chunks"], events=events(r, 1), **OPTIONS)
    assert set(table.metric) == {"tps", "tbt", "output_tokens"} and np.allclose(table.value, 1)


def test_several_tokens_an_event_are_counted_as_one():
    r = requests()
    seen = events(r, 4)
    counted = audit.in_chunks(r, seen)
    # 20 thinking tokens are 5 events, 5 answer tokens 2; the one that never answers has 7 of thinking
    assert counted[r.role == "RLLM"].output_tokens.tolist() == [7] * N
    assert counted[r.role == "RLLM"].thinking_tokens.tolist() == [5] * (N - 1) + [7]
    assert audit.tokens_per_event(r, seen)[r.role == "LLM"].tolist() == [2.5] * N
    table = audit.table(r, ["chunks"], events=seen, **OPTIONS)
    assert cell(table, "RLLM", "tps").value == pytest.approx(7 / 25)
    assert cell(table, "RLLM", "tbt").value == pytest.approx(24 / 6)


def test_an_event_of_both_phases_counts_twice_and_none_counts_nothing():
    one = requests().iloc[[0]]
    both = pd.DataFrame([{"run": "RLLM", "request_id": "mini-easy-000#0", "thinking_tokens": 2, "answer_tokens": 1},
                         {"run": "other", "request_id": "mini-easy-000#0", "thinking_tokens": 2, "answer_tokens": 1}])
    assert audit.in_chunks(one, both).output_tokens.tolist() == [2]
    assert audit.in_chunks(one, both.iloc[1:]).output_tokens.tolist() == [0]
    assert audit.tokens_per_event(one, both.iloc[1:]).isna().all()


def test_counting_needs_the_events():
    with pytest.raises(AsuError, match="needs the events"):
        audit.table(requests(), ["chunks"])


def test_the_old_field_hides_thinking_from_a_reasoning_model_only():
    table = audit.table(requests(), ["reasoning_field"], **OPTIONS)
    assert cell(table, "RLLM", "output_tokens").flawed == pytest.approx(5 * (N - 1) / N)
    assert cell(table, "RLLM", "ttft").flawed == pytest.approx(3.0)
    assert np.allclose(table[table.role == "LLM"].value, 1)


def test_tbt_as_released_divides_the_answers_time_by_all_tokens():
    table = audit.table(requests(), ["tbt"], **OPTIONS)
    assert cell(table, "RLLM", "tbt").flawed == pytest.approx(0.45 / 24)
    assert cell(table, "LLM", "tbt").flawed == pytest.approx(0.45 / 4)


def test_survivors_leave_out_who_never_answered_and_keep_the_rows():
    honest, flawed = audit.both("survivors", requests())
    assert len(honest) == len(flawed)
    table = audit.table(requests(), ["survivors"], **OPTIONS)
    row = cell(table, "RLLM", "ttfvt")
    assert row.flawed == pytest.approx(3.0) and row.honest > 3.0
    assert cell(table, "LLM", "ttfvt").value == pytest.approx(1)


def test_words_are_added_and_unknown_prompts_stay_unknown():
    r = requests()
    row = cell(audit.table(r, ["words"], **OPTIONS), "LLM", "tps")
    words = audit.prompt_words(r)[r.role == "LLM"]
    assert words.notna().all() and row.value == pytest.approx((5 * N + words.sum()) / (5 * N))
    assert audit.prompt_words(r.assign(problem_id="nowhere")).isna().all()


def test_the_window_begins_with_the_first_visible_token():
    row = cell(audit.table(requests(), ["window"], **OPTIONS), "RLLM", "tps")
    assert row.value == pytest.approx((70 + 3.4) / 70.4)


def test_failures_raise_the_rate_and_lower_accuracy():
    r = requests()
    assumed = audit.Assumed(failed=0.5)
    honest, flawed = audit.both("failures", r, assumed=assumed)
    failed = honest.error.notna()
    assert 0 < failed.sum() < len(r) and flawed.error.isna().all()
    assert (honest.outcome[failed] == "failed").all() and (flawed.outcome[failed] == "wrong").all()
    table = audit.table(r, ["failures"], assumed=assumed, **OPTIONS)
    assert cell(table, "LLM", "rps").value > 1 and cell(table, "LLM", "accuracy").value < 0
    assert cell(table, "LLM", "e2e").value < 1
    pd.testing.assert_frame_equal(audit.failing(r, 0), r, check_dtype=False)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_cannot_fail_is_refused(share):
    with pytest.raises(AsuError, match="cannot fail"):
        audit.failing(requests(), share)


def test_one_bucket_calls_a_cut_off_request_wrong():
    row = cell(audit.table(requests(), ["bucket"], **OPTIONS), "RLLM", "wrong")
    assert row.value == pytest.approx(1 / N)
    r = requests()
    r.loc[r.index[:2], "outcome"] = ["unparsed", "failed"]  # one was right, one wrong already
    assert cell(audit.table(r, ["bucket"], **OPTIONS), "RLLM", "wrong").value == pytest.approx(3 / N)


def test_a_step_of_the_clock_lengthens_the_run_and_a_step_back_drops_who_ends_before_it_begins():
    r = requests()
    assert cell(audit.table(r, ["wall_clock"], assumed=audit.Assumed(clock_step_s=7.0), **OPTIONS), "LLM",
                "time").value == pytest.approx((71.4 + 7) / 71.4)
    back = audit.both("wall_clock", r, assumed=audit.Assumed(clock_step_s=-1000.0))[1]
    assert (back.end_s >= back.due_s).all()
    assert np.allclose(audit.table(r, ["wall_clock"], assumed=audit.Assumed(clock_step_s=0.0), **OPTIONS).value, 1)


def test_the_barrier_compares_runs_with_it_to_runs_without():
    slow = requests(run="slow", batch=0).assign(due_s=lambda r: r.due_s * 2, sent_s=lambda r: r.sent_s * 2,
                                                last_s=lambda r: r.last_s * 2)
    r = pd.concat([requests(), slow.assign(run="slow" + slow.role)], ignore_index=True)
    assert cell(audit.table(r, ["barrier"], **OPTIONS), "LLM", "time").value == pytest.approx(2)
    with pytest.raises(AsuError, match="no request shows"):
        audit.table(slow, ["barrier"], **OPTIONS)


def test_passes_and_the_warm_cache():
    later = [requests(repeat=k, prefix_caching=on, run=f"{on}").assign(
        request_id=lambda r, k=k: r.problem_id + f"#{k}", run=lambda r, on=on: f"{on}" + r.role,
        first_s=lambda r, k=k, on=on: r.due_s + (0.4 if on and k else 1.0)) for on in (False, True) for k in (0, 1)]
    r = pd.concat(later, ignore_index=True)
    table = audit.table(r, ["warm_cache", "one_pass"], **OPTIONS)
    assert cell(table[table.flaw == "warm_cache"], "RLLM", "ttft").value == pytest.approx(0.7)
    assert cell(table[table.flaw == "one_pass"], "RLLM", "ttft").value == pytest.approx(1)
    rllm = r[r.role == "RLLM"]
    assert honesty.warm_ttft(rllm, **OPTIONS).value == pytest.approx(0.4)
    assert not honesty.warm_ttft(rllm[rllm.repeat == 0], **OPTIONS).known


def test_all_at_once_is_one_on_top_of_the_other():
    r = requests()
    found = audit.together(r, events(r, 2), **OPTIONS)
    assert set(found.title) == {"all of these at once"} and not {"kv_mean", "rps", "e2e"} & set(found.metric)
    alone = audit.table(r, ["survivors", "bucket"], **OPTIONS)
    assert cell(found, "RLLM", "ttfvt").value == cell(alone, "RLLM", "ttfvt").value, "one flaw touches it, and no other"
    # of 25 tokens a client that sees no thinking has 3 events of answer, and the words of the prompts beside them
    plain = cell(found, "LLM", "output_tokens")
    assert (plain.honest, plain.flawed) == (5.0, 3.0)
    assert cell(found, "RLLM", "output_tokens").flawed == pytest.approx(3 * (N - 1) / N, rel=0.35)
    both = cell(found, "RLLM", "tbt")
    assert both.flawed == pytest.approx(0.45 / 2, rel=0.3), "the answer's time by its own events, the thinking unseen"


def test_an_unknown_flaw_names_those_there_are():
    with pytest.raises(AsuError, match="(?s)no flaw 'chunk'.*chunks"):
        audit.table(requests(), ["chunk"])


def test_ungraded_requests_have_no_accuracy_to_move():
    table = audit.table(requests(outcome=None, expected=None), ["graders", "bucket", "failures"], **OPTIONS)
    assert not set(table.metric) & {"accuracy", "wrong"} and "rps" in set(table.metric)


def test_the_catalogue_tells_every_flaw():
    told = audit.catalogue()
    assert len(told) == len(audit.FLAWS) and (told.source == "released client").all()
    assert set(audit.ON_SAME_RUNS) < set(audit.FLAWS)


# --- graders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of, expected, text, accepted", [
    ("GSM8K", "42", "It is 42.", True), ("GSM8K", "42", "#### 42", False), ("GSM8K", "70000", "70,000", False),
    ("GSM8K", "42", "-42", True), ("GSM8K", "42", "", False),
    ("MATH-500", "5", "so\nAnswer: 5", True), ("MATH-500", "5", "**Answer: 5**", False),
    ("MATH-500", "0.75", "3/4", False), ("MATH-500", "\\frac{3}{4}", "Answer: 3/4", True),
    ("MATH-500", "70000", "70,000", True), ("MATH-500", "5", "", False), ("MATH-500", "Evelyn", "evelyn", True),
    ("AIME 2024", "42", "\\boxed{042}", True), ("AIME 2024", "42", "The answer is not 42", True),
    ("AIME 2024", "42", "none", False),
    ("GPQA-diamond", "B", "Answer: B", True), ("GPQA-diamond", "B", "**Answer: B**", False),
    ("GPQA-diamond", "B", "\\boxed{B}", False), ("GPQA-diamond", "B", "Samus (B)", False),
    ("GPQA-diamond", "B", "b", True), ("GPQA-diamond", "B", "", False)])
def test_the_released_graders_rules(of, expected, text, accepted):
    assert released.accepts(of, expected, text) is accepted


def test_a_set_without_a_released_grader_is_an_error():
    with pytest.raises(AsuError, match="no grader for 'SuperGPQA'"):
        released.accepts("SuperGPQA", "A", "A")


def test_the_forms_are_right_here_and_many_are_rejected_there():
    forms = audit.forms()
    assert (forms.here[:-3] == "correct").all() and (forms.here[-3:] != "correct").all()
    assert (forms["released client"][-3:] == "correct").all()
    rejected = forms[(forms.here == "correct") & (forms["released client"] == "wrong")].answer
    assert {"**Answer: B**", "\\boxed{B}", "Answer: 3/4", "He made $70,000."} <= set(rejected)


def test_strict_graders_move_accuracy_by_what_they_reject():
    r = requests(task="mini-facts", expected="B").assign(
        answer_text=lambda r: np.where(r.outcome == "correct", "Samus (B)", "Samus (A)"))
    row = cell(audit.table(r, ["graders"], **OPTIONS), "LLM", "accuracy")
    assert row.honest == 0.5 and row.flawed == 0


# --- numbers, claims, figures ---------------------------------------------------------------------------------------


def measured(**frames):
    r = requests()
    loads = pd.concat([r, r.assign(batch=0, run="b" + r.role)], ignore_index=True)
    given = {"requests": r, "events": events(r, 1), "speculation": r, "speculation_events": events(r, 2),
             "loads": loads, "passes": r} | frames
    return claims.measure("14", **given, **OPTIONS)


def test_numbers_and_their_claims():
    numbers = measured()
    assert numbers["14.tokens_per_event_speculation"].value == pytest.approx(25 * N / (13 * N), rel=0.02)
    assert numbers["14.tbt_tbt_rllm"].value == pytest.approx(0.45 / 24 / 0.1)
    assert numbers["14.tbt_role_shift"].value == pytest.approx((0.45 / 24) / (0.45 / 4))
    assert not numbers["14.warm_ttft"].known
    verdicts = claims.decide(numbers).set_index("claim").verdict
    assert verdicts["honest.chunks"] == verdicts["honest.tbt"] == verdicts["honest.field"] == "supported"
    assert verdicts["honest.warm"] == "undecided"


def test_roles_that_were_not_measured_leave_numbers_unknown():
    llm = requests().query("role == 'LLM'")
    numbers = measured(requests=llm, speculation=llm, loads=llm, passes=llm)
    assert not any(numbers[name].known for name in numbers if name != "14.warm_ttft")


def test_guidance_names_what_matters_and_only_that():
    told = honesty.guidance(measured())
    assert "engine's own count" in told and "1.92 times" in told and "whole batches" not in told
    assert honesty.guidance({}).startswith("None of the flaws")


def test_verdicts_are_recomputed_where_a_flaw_touches_the_number():
    facts = requests(task="mini-facts").assign(request_id=lambda r: "f" + r.request_id, run=lambda r: "f" + r.run)
    r = pd.concat([requests(), facts.assign(problem_id="f" + facts.problem_id)], ignore_index=True)
    frames = {"04": {"requests": r, "events": events(r, 1)}}
    found = honesty.verdicts(claims.CLAIMS, frames, **OPTIONS)
    assert set(found.claim) == {"F4.mathematics", "F4.knowledge", "F4.gap"}
    assert set(found.flaw) == {"failures", "graders"}
    one = found.groupby("claim").agg({"honest": "nunique", "verdict_honest": "nunique"})
    assert (one == 1).all(axis=None), "a claim has one honest number, whatever the flaw needs to show"
    none = honesty.verdicts(claims.CLAIMS, {}, **OPTIONS)
    assert none.empty and none[none.flips].columns.equals(found.columns)


def test_a_flaw_turns_a_verdict_only_by_itself():
    claim, flaw = next(c for c in claims.CLAIMS if c.id == "F4.knowledge"), audit.FLAWS["failures"]
    within, open_ = claims.Estimate(0.0, -0.09, 0.09), claims.Estimate(0.05, -0.02, 0.12)
    for honest, shown_on, flawed, flips in ((within, within, open_, True), (within, open_, open_, False),
                                            (open_, within, within, False), (open_, within, open_, False)):
        assert honesty._row(claim, flaw, "share", honest, shown_on, flawed)["flips"] == flips


def speculating(trials: tuple[int, ...]) -> dict[str, dict[str, pd.DataFrame]]:
    """Frames of 09: requests without speculation, made again a third slower as trial 1, and twice as fast with it."""
    arms = [("none", trial, 1 + trial / 3) for trial in trials] + [("ngram4", 0, 0.5)]
    r = pd.concat([requests(speculation=how, trial=trial, run=f"{how}{trial}").assign(
        run=lambda r: r.run + r.role, **{t: lambda r, t=t, pace=pace: r[t] * pace for t in (
            "due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s")}) for how, trial, pace in arms],
        ignore_index=True)
    return {"09": {"requests": r, "events": events(r, 2)}}


def test_claims_on_time_between_runs_need_the_runs_made_again():
    alone, controlled = speculating((0,)), speculating((0, 1))
    timed = {"spec.time", "spec.tps", "spec.ttfvt"}
    assert set(honesty.not_told(claims.CLAIMS, alone).claim) == timed
    assert set(honesty.verdicts(claims.CLAIMS, alone, **OPTIONS).claim) == {"spec.accuracy"}
    assert honesty.not_told(claims.CLAIMS, controlled).empty
    found = honesty.verdicts(claims.CLAIMS, controlled, **OPTIONS).query("claim == 'spec.tps'").set_index("flaw")
    decided = claims.NUMBERS["09.tps_ratio_ngram"].of(controlled["09"]["requests"], **OPTIONS)
    assert (found.honest == decided).all(), "the number of the notebook that decides it"
    for side in (found.honest["chunks"], found.flawed["chunks"]):
        assert np.log(side.hi / side.lo) > 2 * np.log(4 / 3), "the distance of the runs made again is in both"


def test_no_number_between_runs_but_an_effect_holds_the_machines_pace():
    r = requests(trial=0)
    frames = {"03": {"requests": r}, "05": {"batches": pd.concat([r, r.assign(trial=1)]), "control": r}}
    assert set(honesty.not_told(claims.CLAIMS, frames).claim) == {"F3.spread", "batch.time", "batch.tps", "batch.ttfvt"}


def test_figures_draw_every_role_and_refuse_empty_frames():
    r = requests()
    table = audit.table(r, [*audit.ON_SAME_RUNS, "chunks"], events=events(r, 2), **OPTIONS)
    drawn = flaws(table)
    assert len(drawn.axes) == 2 and [t.get_text() for t in drawn.axes[0].get_yticklabels()] == list(
        dict.fromkeys(table[table.role == "RLLM"].title.str.replace("`", "")))
    again = honesty.verdicts(claims.CLAIMS, {"04": {"requests": r}}, **OPTIONS)
    assert len(flawed_claims(again).axes) == len(again)
    assert "no claim" in flawed_claims(again[:0]).texts[0].get_text()
    with pytest.raises(AsuError, match="no rows"):
        flaws(table[:0])


def test_a_server_that_is_down_refuses_every_connection():
    down = audit.server_down(20, at_once=8)
    assert down.refused == down.requests == 20 and down.rps == pytest.approx(20 / down.seconds)


# --- replay: random weights, nothing graded -------------------------------------------------------------------------


def replayed(**changes) -> pd.DataFrame:
    return requests(outcome=None, expected="", answer_text="", task="math500").assign(**changes)


def test_made_up_prompts_have_no_words_and_no_set_is_asked_for_them(monkeypatch):
    monkeypatch.setattr(audit.tasks, "get", lambda name: pytest.fail(f"asked for the set {name}"))
    assert audit.prompt_words(replayed()).isna().all()
    assert "words" not in audit.able(audit.ON_SAME_RUNS, replayed())
    assert set(audit.able(audit.ON_SAME_RUNS, replayed())) == set(audit.ON_SAME_RUNS) - {"words"}


def test_what_cannot_be_shown_is_named_with_its_reason():
    once = replayed()
    found = audit.gaps(once, once[:0], once, once).set_index("flaw").why
    assert len(found) == 7 and found["strict graders"].startswith("nothing was graded")
    assert found["a token is a stream event, with speculation"] == "no run speculated"
    assert found["one pass without seeds"] == "every problem was asked once"
    loads = pd.concat([once, once.assign(batch=0)])
    passes = pd.concat([once.assign(prefix_caching=on, repeat=k) for on in (True, False) for k in (0, 1)])
    assert set(audit.gaps(once, once, loads, passes).flaw) == {
        "strict graders", "all that is not correct is wrong", "words of the prompt are added"}
    graded = requests()
    assert audit.gaps(graded, graded, loads, passes).empty


def test_numbers_claims_and_figures_without_grades_speculation_or_passes():
    r = replayed()
    loads = pd.concat([r, r.assign(batch=0, run="b" + r.role)], ignore_index=True)
    seen = events(r, 1)
    numbers = measured(requests=r, events=seen, speculation=r[:0], speculation_events=seen[:0], loads=loads, passes=r)
    assert numbers["14.tbt_tbt_rllm"].known and numbers["14.barrier_time_rllm"].known
    unknown = ["14.graders_accuracy_rllm", "14.tokens_per_event_speculation", "14.warm_ttft"]
    assert not any(numbers[name].known for name in unknown)
    decided = claims.decide(numbers).set_index("claim")
    assert (decided.verdict[["honest.graders", "honest.chunks", "honest.warm"]] == "undecided").all()
    assert "accuracy" not in honesty.guidance(numbers)
    table = pd.concat([audit.table(r, ["chunks"], events=seen, **OPTIONS),
                       audit.table(r[:0], ["chunks"], events=seen[:0], **OPTIONS),
                       audit.table(r, audit.able(audit.ON_SAME_RUNS, r), **OPTIONS),
                       audit.table(r, audit.able(["one_pass", "warm_cache"], r), **OPTIONS)], ignore_index=True)
    assert not set(table.metric) & {"accuracy", "wrong"} and len(flaws(table).axes) == 2


def test_claims_that_need_grades_are_not_decided_again_without_them():
    r = replayed(difficulty=np.tile(np.arange(N, dtype=float), 2), problem_id=[f"{k}" for k in range(2 * N)])
    r["last_s"] += np.tile(np.arange(N) / 10, 2)
    found = honesty.verdicts(claims.CLAIMS, {"03": {"requests": r}, "04": {"requests": r}}, **OPTIONS)
    assert set(found.claim) == {"F3.follows", "F3.flat"}, "one set has no spread, and nothing is graded"
    assert len(flawed_claims(found).axes) == len(found)
