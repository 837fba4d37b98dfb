"""Two runs of the same requests, compared token by token, on texts whose parting is known."""

import pandas as pd
import pytest
from asu import agreement, plots
from asu.errors import AsuError


def run(trial, texts, logprobs, outcomes):
    """(requests, events) of one run: a token a character, one event each, times of no interest."""
    requests = pd.DataFrame([{
        "run": f"r{trial}", "trial": trial, "session": 0, "task": "t", "model": "mini-4m-think",
        "request_id": f"p{i}#0", "problem_id": f"p{i}",
        "thinking_text": thinking, "answer_text": answer, "output_tokens": len(thinking) + 1 + len(answer),
        "outcome": outcome, "error": None, "thinking_tokens": len(thinking) + 1, "answer_tokens": len(answer),
        **dict.fromkeys(["due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s"], 1.0),
    } for i, ((thinking, answer), outcome) in enumerate(zip(texts, outcomes, strict=True))])
    events = pd.DataFrame([{"run": f"r{trial}", "request_id": f"p{i}#0", "thinking_tokens": 1, "answer_tokens": 0,
                            "logprob": logprob} for i, one in enumerate(logprobs) for logprob in one])
    return requests, events


def two_runs():
    """p0 is the same but for one log-probability, p1 parts after two tokens and turns wrong, p2 is wholly the same."""
    one = run(0, [("abc", "7"), ("xyz", "5"), ("m", "1")], [[-1, -1, -1, -1, -1], [-2, -2, -2, -2, -2], [-1, -1, -1]],
              ["correct", "correct", "wrong"])
    two = run(1, [("abc", "7"), ("xyw", "4"), ("m", "1")],
              [[-1, -1, -1.5, -1, -1], [-2, -2.25, -9, -2, -2], [-1, -1, -1]], ["correct", "wrong", "wrong"])
    return [pd.concat(frames, ignore_index=True) for frames in zip(one, two, strict=True)]


def test_comparison_by_hand():
    compared = agreement.compare(*two_runs(), {"trial": 0}, {"trial": 1}, "again").set_index("problem_id")
    assert compared.changed.tolist() == [0, 1, 0] and compared.flipped.tolist() == [0, 1, 0]
    assert compared.hit_change.tolist() == [0, -1, 0] and compared.parted_at.tolist() == [5, 2, 3]
    assert compared.shared.tolist() == [5, 2, 3]  # what follows the parting is not compared
    assert compared.moved.tolist() == [1, 1, 0] and compared.gap.tolist() == pytest.approx([0.5, 0.25, 0])


def test_summary_by_hand():
    compared = agreement.compare(*two_runs(), {"trial": 0}, {"trial": 1}, "again")
    found = agreement.summary(compared, n_boot=200).set_index("metric")
    assert found.value["changed"] == pytest.approx(1 / 3) and found.value["moved"] == pytest.approx(2 / 10)
    assert found.value["logprob_gap"] == pytest.approx(0.075) and found.value["hit_change"] == pytest.approx(-1 / 3)
    assert list(found.index) == list(agreement.MEASURES) and (found.lo <= found.value).all()


def test_a_run_that_repeats_itself_exactly():
    requests, events = two_runs()
    again = [frame[frame.run == "r0"].replace({"run": {"r0": "r1"}, "trial": {0: 1}}) for frame in (requests, events)]
    frames = [pd.concat([frame[frame.run == "r0"], copy]) for frame, copy in
              zip((requests, events), again, strict=True)]
    found = agreement.summary(agreement.compare(*frames, {"trial": 0}, {"trial": 1}, "x"), n_boot=50)
    found = found.set_index("metric")
    assert found.value[["changed", "moved", "logprob_gap", "flipped", "hit_change"]].eq(0).all()
    assert found.hi["changed"] > 0.3, "three requests that agree do not show that all would"
    assert found.value["parted_at"] == float("inf")


def test_tokens_that_came_together_are_no_difference():
    requests, events = two_runs()
    requests.loc[requests.run == "r1", "thinking_text"] = "<think>" + requests.thinking_text  # left in by the engine
    joined = events[(events.run == "r1") & (events.request_id == "p0#0")].index[:2]
    events.loc[joined[1], ["thinking_tokens", "logprob"]] = [2, -2.0]
    compared = agreement.compare(requests, events.drop(joined[0]), {"trial": 0}, {"trial": 1}, "again")
    assert compared.changed.tolist() == [0, 1, 0] and compared.shared.tolist() == [5, 2, 3]
    assert compared.moved.tolist() == [1, 1, 0] and compared.gap.tolist() == pytest.approx([0.5, 0.25, 0])


def test_texts_that_were_not_kept_neither_agree_nor_differ():
    requests, events = two_runs()
    bare = requests.assign(thinking_text="", answer_text="", outcome=None)
    labels = {"trial": 0}, {"trial": 1}
    assert agreement.compare(bare, events, *labels, "x").empty and agreement.positions(bare, events, *labels, "x").empty
    ungraded = agreement.compare(requests.assign(outcome=None), events, *labels, "x")
    assert ungraded.flipped.isna().all() and ungraded.changed.tolist() == [0, 1, 0]


def test_labels_must_name_one_run():
    with pytest.raises(AsuError, match="2 runs have"):
        agreement.compare(*two_runs(), {"task": "t"}, {"trial": 1}, "x")


def test_the_figure_shows_every_comparison():
    compared = agreement.compare(*two_runs(), {"trial": 0}, {"trial": 1}, "again")
    compared = pd.concat([compared, compared.assign(comparison="other")])
    figure = plots.agreement(compared, agreement.summary(compared, n_boot=50))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["again", "other"]
    assert all(ax.lines for ax in figure.axes) and len(figure.axes) == 3


def test_the_other_batch_size_is_the_first_that_differs():
    assert agreement.other_size({"RLLM": {"a": [8], "b": [32, 16, 64]}, "LLM": {"c": [4]}}, 32) == ("b", 16)
    for sizes in ({}, {"LLM": {"a": [16]}}, {"RLLM": {}}, {"RLLM": {"a": [16], "b": [32]}}):
        with pytest.raises(AsuError, match="has no batch size but 32"):
            agreement.other_size(sizes, 32)
