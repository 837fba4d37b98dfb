"""The miniature's model card: its numbers are the runs', and the bands fail where the weights do."""

import pandas as pd
import pytest
from asu import models, paths, runs
from asu.errors import AsuError
from asu.mini import card, train
from asu.study import Study

ACCURACY = {  # of 100: easy, medium, hard, facts
    "mini-4m-think": (91, 75, 45, 62), "mini-4m-direct": (60, 20, 5, 65),
    "mini-1m-think": (70, 40, 10, 40), "mini-1m-direct": (30, 10, 3, 38)}
THINKING = {"mini-easy": 30, "mini-medium": 200, "mini-hard": 1200, "mini-facts": 25}


def measured(accuracy=ACCURACY, thinking=THINKING, cut_off=3):
    """100 requests of every model and task; of the hard ones the first few are cut off, and one failed."""
    rows = []
    for name, rights in accuracy.items():
        thinks = models.get(name).thinks
        for task, right in zip(card.TASKS, rights, strict=True):
            for i in range(100):
                cut = thinks and task == "mini-hard" and i < cut_off
                outcome = "cut off" if cut else "correct" if i >= 100 - right else "wrong"
                thought = (2048 if cut else thinking[task]) if thinks else 0
                rows.append({"model": name, "task": task, "problem_id": f"{task}-{i:03d}", "level": 1 + i % 5,
                             "outcome": outcome, "error": None, "thinking_tokens": thought,
                             "output_tokens": min(thought + 4, 2048), "answer_tokens": 0 if cut else 4})
    frame = pd.DataFrame(rows)
    for time in ("due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s"):
        frame[time] = 0.0
    frame.loc[0, ["outcome", "error"]] = "failed", "http 500: x"
    return frame


PROVENANCE = pd.DataFrame({"engine": ["vllm 1.2", "vllm 1.2"], "machine": ["a processor, 2 cores"] * 2})


class Made:
    """A study whose runs are there."""

    def __init__(self, frame):
        self.requests, self.provenance = lambda: frame, lambda: PROVENANCE


def test_the_study_is_two_pairs_on_four_sets():
    specs = card.study().specs
    assert len(specs) == 16 and {spec.model for spec in specs} == set(train.RECIPES)
    assert len({spec.server_key for spec in specs}) == 4, "one server a model"
    assert {spec.task: spec.problems for spec in specs} == card.PROBLEMS
    assert {(s.load.label, s.sampling.budget, s.sampling.temperature, s.seed, s.repeats) for s in specs} == {
        ("closed32", 2048, 0.6, 0, 1)}
    assert {(s.options.kv_pool_tokens, s.options.context, s.options.max_requests) for s in specs} == {
        (131072, 4096, 64)}


def test_weights_as_wanted_pass_every_band():
    frame = card.bands(measured())
    assert frame.passed.all(), card.verdicts(frame)
    assert frame.measured[:4].tolist() == pytest.approx([91 / 99, 0.75, 0.45, 0.55])


@pytest.mark.parametrize(("change", "what"), [
    ({"mini-4m-think": (99, 75, 45, 62)}, "thinking 4M on easy"),
    ({"mini-4m-think": (91, 95, 45, 62)}, "thinking 4M on medium"),
    ({"mini-4m-think": (91, 75, 20, 62)}, "thinking 4M on hard"),
    ({"mini-4m-direct": (60, 50, 20, 65)}, "the larger"),
    ({"mini-4m-direct": (60, 20, 5, 80)}, "on facts"),
    ({"mini-1m-think": (91, 85, 45, 62)}, "thinking 4M − 1M"),
    ({"mini-1m-direct": (70, 20, 5, 65)}, "direct 4M − 1M")])
def test_a_band_that_is_missed_is_named(change, what):
    failed = card.bands(measured(ACCURACY | change))
    assert failed[~failed.passed].what.str.contains(what, regex=False).all() and not failed.passed.all()


def test_lengths_that_do_not_grow_or_end_are_named():
    flat = card.bands(measured(thinking=dict.fromkeys(THINKING, 100), cut_off=0))
    assert flat.what[~flat.passed].tolist() == [
        "median thinking tokens of the 4M, hard / easy", "output tokens of the thinking 4M over all sets, p99 / p50",
        "answers of the thinking 4M cut off by the budget"]


def test_failed_requests_are_neither_right_nor_wrong():
    found = card.accuracy(measured()).set_index(["model", "task"])
    assert found.loc[("mini-4m-think", "mini-easy"), "n"] == 99
    assert found.loc[("mini-4m-think", "mini-medium"), ["value", "n"]].tolist() == [0.75, 100]
    assert found.lo.lt(found["value"]).all() and found.hi.gt(found["value"]).all()
    assert card.lengths(measured()).failed.tolist() == [1] + [0] * 15


def test_the_card_tells_what_the_runs_and_the_training_say():
    trained = card.records()
    text = card.card(measured(), PROVENANCE, trained)
    assert "| mini-4m-think | 92 [85, 96] | 75 [66, 82] | 45 [36, 55] | 62 [52, 71] |" in text
    assert "| mini-4m-think | mini-hard | 1204 | 1204 | 2048 | 1200 | 3.0% | 0 |" in text
    assert "vllm 1.2 on a processor, 2 cores" in text and "100 problems of mini-easy" in text
    for name, record in trained.items():
        assert f"| {name} | {record['parameters']:,} |" in text
        assert f"| {record['seconds']} | {record['machine']} |" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 7 and all(len({line.count("|") for line in lines}) == 1 for lines in tables)
    assert "| mini-1m-direct | mini-facts | " in text and "nan" not in text
    made = [folder.parent.name for folder in paths.MODELS.glob("*/quantisation.json")]
    assert made and all(f"| {name} | {name.split('-')[-1]} | " in text for name in made)


def test_the_command_writes_the_card_or_checks_the_bands(tmp_path, monkeypatch, capsys):
    trained = card.records()
    monkeypatch.setattr(card, "records", lambda folder: trained)
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    assert card.main([], lambda: Made(measured())) == 0
    assert (tmp_path / "README.md").read_text() == card.card(measured(), PROVENANCE, trained)
    assert card.main(["--check"], lambda: Made(measured())) == 0
    assert card.main(["--check"], lambda: Made(measured(ACCURACY | {"mini-4m-think": (99, 75, 45, 62)}))) == 1
    lines = [line[:4] for line in capsys.readouterr().out.splitlines()]
    assert lines[-11:].count("FAIL") == 1 and lines[-22:-11] == ["pass"] * 11


def test_answers_that_no_grader_reads_are_no_accuracy():
    frame = measured()
    frame.loc[frame.task == "mini-facts", "outcome"] = "unparsed"
    missed = card.bands(frame)
    assert missed.what[~missed.passed].tolist() == ["answers of all four that could not be graded, share"]


def test_the_command_names_the_run_that_is_missing(tmp_path, monkeypatch, capsys):
    def missing():
        return Study.of(card.study().specs[:1], store=runs.Store(tmp_path))

    monkeypatch.setattr(runs, "inputs", lambda spec: {})
    assert card.main([], missing) == 1
    assert "error: no complete run in runs for vllm-mini-4m-think-mini-easy" in capsys.readouterr().err


def test_a_missing_training_record_is_an_error(tmp_path):
    with pytest.raises(AsuError, match="training.json is missing"):
        card.records(tmp_path)
