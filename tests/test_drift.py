"""Worked solutions checked step by step, and accuracy lost against the length of the thinking."""

import random

import numpy as np
import pandas as pd
import pytest
from asu import drift
from asu.mini import problems
from hypothesis import given
from hypothesis import strategies as st

FAMILIES = [("mini-easy", problems.easy), ("mini-medium", problems.medium), ("mini-hard", problems.hard)]


@pytest.mark.parametrize(("task", "make"), FAMILIES, ids=[task for task, _ in FAMILIES])
def test_the_taught_solution_has_no_wrong_step(task, make):
    for grade in problems.GRADES[task]:
        item = make(random.Random(grade), grade)
        found = drift.steps(task, item.prompt, item.work)
        assert found and all(right for _, _, right in found), (item.prompt, item.work)
        assert "".join(item.work[begin:end] for begin, end, _ in found) == item.work.replace(
            "\n" if task == "mini-medium" else " ", "")


@given(st.text(alphabet="0123456789+-*()=: \nx", max_size=60))
def test_any_text_is_checked_without_an_error(text):
    for task, prompt in (("mini-easy", "Tom has 3 cards."), ("mini-medium", "Compute (1+2)*3."),
                         ("mini-hard", "Find the least x>0 with 3*x mod 7 = 5.")):
        assert all(0 <= begin < end <= len(text) for begin, end, _ in drift.steps(task, prompt, text))


@pytest.mark.parametrize(("task", "prompt", "text", "right"), [
    ("mini-easy", "Tom has 30 cards. Tom buys 12 more.", "30+12=43", [False]),
    ("mini-easy", "Tom has 30 cards. Tom gets 2 boxes of 11.", "2*11=22 30+22=52", [True, True]),
    ("mini-easy", "Tom has 30 cards. Tom gets 2 boxes of 11.", "2*11=22 31+22=53", [True, False]),
    ("mini-easy", "Tom has 30 cards.", "so 30+30=60", [False, True]),
    ("mini-medium", "Compute (1+2)*(3+4).", "3*(3+4)\n3*7\n21", [True] * 3),
    ("mini-medium", "Compute (1+2)*(3+4).", "3*(3+4)\n3*8\n24", [True, False, True]),
    ("mini-medium", "Compute (1+2)*(3+4).", "3*(3+4\n3*7\n21", [False, False, True]),
    ("mini-medium", "Compute 2*3.", "2**3", [False]),
    ("mini-hard", "Find the least x>0 with 3*x mod 7 = 5.", "1:3 2:6 3:2 4:5", [True] * 4),
    ("mini-hard", "Find the least x>0 with 3*x mod 7 = 5.", "1:3 3:2 4:4", [True, False, False]),
    ("mini-hard", "Find the least x>0 with 3*x mod 7 = 5.", "", []),
])
def test_wrong_steps_are_found(task, prompt, text, right):
    assert [ok for _, _, ok in drift.steps(task, prompt, text)] == right


def row(problem, thinking, *, weights="bf16", visible=1.0, outcome="correct", task="mini-medium", tokens=None):
    return {"run": weights, "model": "mini-4m-think", "task": task, "problem_id": problem, "request_id": f"{problem}#0",
            "repeat": 0, "weights": weights, "error": None, "thinking_text": thinking, "answer_text": "21",
            "visible_s": visible, "thinking_tokens": len(thinking) if tokens is None else tokens, "answer_tokens": 2,
            "output_tokens": len(thinking) + 2, "outcome": outcome, "due_s": 0.0, "sent_s": 0.0, "first_s": 0.5,
            "last_s": 2.0, "end_s": 2.0}


PROMPTS = {"p": "Compute (1+2)*(3+4)."}


def test_the_first_wrong_step_and_the_tokens_before_it():
    requests = pd.DataFrame([
        row("p", "<think>3*(3+4)\n3*8\n24"), row("p", "3*(3+4)\n3*7\n21</think>"),
        row("p", "3*(3+4)\n3*", visible=np.nan), row("p", "What", task="mini-facts"),
        row("p", "3*8") | {"error": "HTTP 500"}])
    found = drift.first_wrong(requests, PROMPTS)
    assert found.index.tolist() == [0, 1, 2], "facts have no steps, failed requests no solution"
    assert found.wrong.tolist() == [True, False, False], "the step that the budget broke off is not judged"
    assert found.wrong_step.iloc[0] == 2 and np.isnan(found.wrong_step.iloc[1])
    assert found.right_tokens.tolist() == [len("3*(3+4)\n"), len("3*(3+4)\n3*7\n21"), len("3*(3+4)")]


def test_slips_and_survivors_count_right_tokens_as_time():
    requests = pd.DataFrame([row("p", "3*(3+4)\n3*8\n24", weights="w4a16"), row("p", "3*(3+4)\n3*7\n21")])
    found = drift.first_wrong(requests, PROMPTS)
    rate = drift.slips(found, ["weights"]).set_index("weights").value
    assert rate["w4a16"] == pytest.approx(1000 / 8) and rate["bf16"] == 0
    curve = drift.still_right(found, ["weights"])
    assert curve[curve.weights == "w4a16"].survival.tolist() == [1, 0]
    assert curve[curve.weights == "bf16"].survival.tolist() == [1, 1]


def test_prompts_are_those_of_the_sets():
    requests = pd.DataFrame([row("mini-easy-000", "", task="mini-easy"), row("x", "", task="mini-facts")])
    assert drift.prompts(requests)["mini-easy-000"].endswith("now?")


def lost(loses):
    """Off always right; on wrong where `loses(thinking tokens)`."""
    rows = []
    for k, tokens in enumerate(range(10, 1010, 20)):
        rows.append(row(f"p{k}", "x", tokens=tokens))
        rows.append(row(f"p{k}", "x", weights="w4a16", tokens=3, outcome="wrong" if loses(tokens) else "correct"))
    return drift.losses(pd.DataFrame(rows), "weights", "bf16")


def test_losses_stand_at_the_length_without_the_option():
    found = lost(lambda tokens: tokens >= 400)
    assert len(found) == 50 and set(found.weights) == {"w4a16"}
    bins = drift.loss_by_length(found, "weights")
    assert bins.value.tolist() == [0, 0, 0, 0, 1, 1] and (bins.lo <= bins.value).all()
    assert bins.length.is_monotonic_increasing
    slope = drift.loss_slope(found)
    assert slope.lo > 0 and slope.unit == "share/1,000 tok"
    assert drift.loss_slope(lost(lambda tokens: False)).value == 0


def test_slip_ratio_is_of_the_same_problems():
    requests = pd.DataFrame([row(f"p{k}", text, weights=weights) for k in range(8) for weights, text in
                             (("bf16", "3*(3+4)\n3*7\n2" + "01"[k % 2]), ("w4a16", "3*(3+4)\n3*8"))])
    found = drift.first_wrong(requests, {f"p{k}": PROMPTS["p"] for k in range(8)})
    assert drift.slip_ratio(found, "weights", "w4a16", "bf16").value > 2
