"""Questions asked several times: votes, what they cost, and the numbers and figures made from them."""

import frames
import numpy as np
import pandas as pd
import pytest
from asu import claims, pages, plots, votes, workload
from asu.claims import scaling
from asu.errors import AsuError
from asu.specs import RunSpec
from hypothesis import given
from hypothesis import strategies as st

FEW = {"n_boot": 200}
OUTCOMES = ["correct", "wrong", "cut off", "unparsed", "failed"]


def asked(answers, *, run="a", role="RLLM", task="mini-medium", budget=2048, trial=0, tokens=10):
    """A requests frame: `answers[i]` are the samples of question i, each (outcome, answer); 1 s apart, 2 s each."""
    rows = []
    for i, samples in enumerate(answers):
        for repeat, (outcome, answer) in enumerate(samples):
            sent = float(i * len(samples) + repeat)
            rows.append({
                "run": run, "engine": "vllm", "model": f"mini-4m-{'think' if role == 'RLLM' else 'direct'}",
                "pair": "mini-4m", "size": "4M", "role": role, "task": task, "load": "closed32", "budget": budget,
                "kv_pool_tokens": 4096, "weights": "bf16", "kv_cache": "bf16", "prefix_caching": False,
                "speculation": "none", "max_requests": 64, "prefix": "none", "trial": trial, "replay": "none",
                "session": 0, "batch": -1, "problem_id": f"{task}-{i}", "request_id": f"{task}-{i}#{repeat}",
                "repeat": repeat, "level": 1, "difficulty": 1.0, "due_s": sent, "sent_s": sent, "first_s": sent + 0.5,
                "visible_s": sent + 1.0, "last_s": sent + 2.0, "end_s": sent + 2.0, "output_tokens": tokens,
                "thinking_tokens": tokens // 2, "answer_tokens": tokens - tokens // 2, "prompt_tokens": 5,
                "error": "gone" if outcome == "failed" else None, "outcome": outcome, "extracted": answer})
    return pd.DataFrame(rows)


RIGHT, WRONG, OTHER = ("correct", "7"), ("wrong", "8"), ("wrong", "9")
CUT, UNREAD, FAILED = ("cut off", None), ("unparsed", None), ("failed", None)


@pytest.mark.parametrize(("samples", "vote", "single", "any_"), [
    ([RIGHT, WRONG, RIGHT], 1, 2 / 3, 1),
    ([WRONG, RIGHT, WRONG], 0, 1 / 3, 1),
    ([WRONG, RIGHT, OTHER], 1 / 3, 1 / 3, 1),  # a tie goes by lot
    ([RIGHT, CUT, OTHER], 1 / 2, 1 / 3, 1),
    ([WRONG, ("correct", "18"), ("correct", "18 dollars")], 1, 2 / 3, 1),  # one answer, spelt twice
    ([CUT, CUT, RIGHT], 1, 1 / 3, 1),  # who was cut off has no vote
    ([CUT, UNREAD, CUT], 0, 0, 0),
    ([("cut off", "8"), ("cut off", "8"), RIGHT], 1, 1 / 3, 1),
    ([FAILED, FAILED, RIGHT], 1, 1, 1),
])
def test_the_answer_given_most_often_wins(samples, vote, single, any_):
    question = votes.questions(asked([samples])).iloc[0]
    assert (question["any"], question.samples) == (any_, 3)
    assert (question.vote, question.single) == pytest.approx((vote, single))
    assert question.cut_off == pytest.approx(sum(outcome == "cut off" for outcome, _ in samples) / 3)
    if FAILED in samples:
        assert np.isnan(question.tokens) and np.isnan(question.wait_s), "what failed took nobody knows how much"
    else:
        assert question.tokens == 30 and question.wait_s == 4.0


def test_what_failed_or_was_not_graded_is_not_wrong():
    for samples in ([FAILED, FAILED], [(None, None), (None, None)]):
        question = votes.questions(asked([samples])).iloc[0]
        assert np.isnan(question.vote) and np.isnan(question.single) and np.isnan(question["any"])
    assert np.isnan(question.cut_off), "not graded"


def test_samples_sent_before_and_after_an_interruption_have_no_time_together():
    requests = asked([[RIGHT, WRONG], [RIGHT, RIGHT]])
    requests.loc[1, "session"] = 1
    assert votes.questions(requests).wait_s.isna().tolist() == [True, False]


@given(st.lists(st.tuples(st.sampled_from(OUTCOMES[:4]), st.sampled_from(["1", "2", "3"])), min_size=2, max_size=2))
def test_two_who_answer_cannot_outvote_each_other(samples):
    question = votes.questions(asked([[("correct" if a == "1" else "wrong", a) for _, a in samples]])).iloc[0]
    assert question.vote == question.single


def test_what_cannot_be_asked_is_told_before_anything_runs():
    assert votes.doublings(8, shares=[2, 4], budgets=[64, 2048]) == [1, 2, 4, 8]
    for samples in (0, 1, 6):
        with pytest.raises(AsuError, match=f"SAMPLES is {samples}"):
            votes.doublings(samples, shares=[2], budgets=[64])
    for shares in ([], [1, 2], [4, 2], [2, 2], [2, 128]):
        with pytest.raises(AsuError, match="SHARES"):
            votes.doublings(2, shares=shares, budgets=[64])
    with pytest.raises(AsuError, match="do not rise"):
        votes.doublings(2, shares=[2], budgets=[2048, 64])
    with pytest.raises(AsuError, match="no question was asked as often as 4 times"):
        votes.curve(asked([[RIGHT, WRONG]]), [4])


def test_fewer_samples_are_groups_in_a_row_without_a_time_of_their_own():
    found = votes.questions(asked([[RIGHT, WRONG, WRONG, WRONG, RIGHT]]), 2)
    assert found.vote.tolist() == [0.5, 0] and found.group.tolist() == [0, 1], "the fifth fills no group"
    assert found.tokens.tolist() == [20, 20] and found.wait_s.isna().all()


@given(st.lists(st.lists(st.tuples(st.sampled_from(OUTCOMES), st.sampled_from(["1", "2", "3"])), min_size=4,
                         max_size=4), min_size=1, max_size=6))
def test_no_choice_surpasses_any_and_one_sample_votes_for_itself(answers):
    # a grader gives equal answers equal marks
    answers = [[(o if o not in ("correct", "wrong") else ("correct" if a == "1" else "wrong"), a) for o, a in q]
               for q in answers]
    requests = asked(answers)
    for count in (1, 2, 4):
        found = votes.questions(requests, count)
        assert len(found) == len(answers) * 4 // count
        known = found[found.single.notna()]
        assert (known.vote <= known["any"]).all() and (known.single <= known["any"]).all()
        assert found.single.isna().equals(found.vote.isna())
        assert count > 1 or known.vote.equals(known.single)


@pytest.fixture
def frames_of_13():
    """20 questions: one sample is right in half of them; of three samples two are, so that the vote is always right."""
    one = [[RIGHT if i % 2 else WRONG] for i in range(20)]
    many = asked([[RIGHT, RIGHT, WRONG]] * 20, run="b")
    plain = asked([[WRONG, OTHER, RIGHT]] * 20, run="c", role="LLM", tokens=2)
    full, again = asked(one, run="d", tokens=40), asked(one, run="e", tokens=40, trial=1)
    shared = [asked([[WRONG, OTHER]] * 20, run="f", budget=1024, tokens=30),
              asked([[RIGHT, RIGHT, WRONG, CUT]] * 20, run="g", budget=512, tokens=20),
              asked([[WRONG] * 8] * 20, run="h", budget=256, tokens=9)]
    return {"many": pd.concat([many, plain], ignore_index=True),
            "splits": pd.concat([full, *shared], ignore_index=True),
            "control": pd.concat([full, again], ignore_index=True)}


def test_numbers_and_verdicts(frames_of_13):
    numbers = claims.measure("13", **frames_of_13, **FEW)
    value = {name: numbers[f"13.{name}"].value for name in (
        "vote_gain", "vote_gain_llm", "any_gain", "vote_samples", "twin_gap", "split_samples", "split_accuracy",
        "split_accuracy_most", "split_tokens", "split_wait", "split_wait_mini-medium")}
    assert value == pytest.approx({
        "vote_gain": 1 / 3, "vote_gain_llm": 0, "any_gain": 1 / 3, "vote_samples": 3, "twin_gap": 1 / 3,
        "split_samples": 4, "split_accuracy": 0.5, "split_accuracy_most": -0.5, "split_tokens": 80 / 40,
        "split_wait": 5 / 2, "split_wait_mini-medium": 5 / 2})
    verdicts = claims.decide(numbers).set_index("claim").verdict
    assert verdicts[["scaling.vote", "scaling.split", "scaling.tokens", "scaling.twin"]].tolist() == [
        "supported", "supported", "not supported", "supported"]
    says = scaling.guidance(numbers)
    assert "Ask again" in says and "3 samples, for as many times the tokens" in says
    assert "a budget shared by 4 samples holds accuracy within three points" in says


def test_twins_that_were_asked_other_questions_are_not_compared(frames_of_13):
    many = frames_of_13["many"]
    fewer = many[(many.role == "RLLM") | (many.problem_id != "mini-medium-3")]
    with pytest.raises(AsuError, match="different problems"):
        claims.measure("13", **frames_of_13 | {"many": fewer}, **FEW)


def test_one_role_or_one_share_alone_is_not_known(frames_of_13):
    one_role = frames_of_13 | {"many": frames_of_13["many"].query("role == 'RLLM'")}
    numbers = claims.measure("13", **one_role, **FEW)
    assert not numbers["13.twin_gap"].known and not numbers["13.vote_gain_llm"].known and numbers["13.vote_gain"].known
    no_share = frames_of_13 | {"splits": frames_of_13["splits"].query("budget == 2048")}
    alone = claims.measure("13", **no_share, **FEW)
    assert not alone["13.split_accuracy"].known and not alone["13.split_samples"].known
    assert "shared" not in scaling.guidance(alone) and "cannot tell" in scaling.guidance({})
    halves = frames_of_13 | {"splits": frames_of_13["splits"].query("budget >= 1024")}
    assert claims.measure("13", **halves, **FEW)["13.split_samples"].value == 2


def test_curves_and_their_figures(frames_of_13):
    curve = votes.curve(frames_of_13["many"], [1, 3], **FEW)
    known = curve[curve.value.notna()]
    assert set(curve.metric) == set(votes.UNITS) and (known.lo <= known.value).all()
    ways = pd.concat([curve.query("metric == 'vote' and role == 'RLLM'").assign(way="vote"),
                      curve.query("metric == 'vote' and role == 'LLM'").assign(way="plain")])
    divided = votes.curve(frames_of_13["splits"], [None], **FEW)
    assert sorted(divided.samples.unique()) == [1, 2, 4, 8] and divided.value.notna().all()
    for figure in (plots.accuracy_by_tokens(ways), plots.shared_budget(divided)):
        assert all(ax.lines for ax in figure.axes) and "<svg" in pages.svg(figure, "example", "an example")
    with pytest.raises(AsuError, match="no rows"):
        plots.accuracy_by_tokens(ways.iloc[:0])


def test_samples_that_belong_together_are_sent_one_after_the_other():
    spec = {"model": "mini-4m-think", "task": frames.TASKS[0], "problems": 3, "repeats": 2}
    apart, together = (workload.requests(RunSpec(**spec, together=on)) for on in (False, True))
    assert [r.repeat for r in apart] == [0, 0, 0, 1, 1, 1] and [r.repeat for r in together] == [0, 1] * 3
    assert {(r.id, r.seed) for r in apart} == {(r.id, r.seed) for r in together}
