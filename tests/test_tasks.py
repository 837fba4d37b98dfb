"""Problem sets: rows become prompts, bad sets become errors with a remedy, answers become one of five outcomes."""

import json
import math
import re

import datasets
import pytest
from asu import paths, tasks
from asu.errors import AsuError
from asu.tasks import base, gpqa
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

MINI = [
    {"id": "e-0", "prompt": "Ann has 3 cups and buys 4. How many?", "expected": "7", "level": 1, "difficulty": 1},
    {"id": "e-1", "prompt": "Ann has 9 cups and loses 4. How many?", "expected": "5", "level": 2, "difficulty": 2.5},
    {"id": "e-2", "prompt": "Ann has 2 boxes of 6. How many cups?", "expected": "12", "level": 3, "difficulty": 3},
]
FACTS = [{"id": "f-0", "prompt": "What is the colour of Tolu? A) Red B) Dark blue C) Green D) Grey", "expected": "B",
          "level": 1, "difficulty": 1}]
GSM8K = [{"question": "Tom has 2 bags of 600 nuts. How many nuts?\n",
          "answer": "Two bags are 2*600=<<2*600=1200>>1200 nuts.\n#### 1,200"}]
MATH500 = [{"problem": "Solve $x+1=\\{6\\}$.", "solution": "Subtract.", "answer": "x=5", "subject": "Algebra",
            "level": 3, "unique_id": "test/algebra/7.json"}]
AIME = [{"id": 61, "problem": "Find $n$.", "solution": "It is 25.", "answer": "025", "year": "2024",
         "url": "https://example.org/2024_AIME_II_Problems/Problem_10"}]
GPQA = [{"Record ID": f"rec{n}", "Question": "Which one decays first?", "Correct Answer": "The muon\n",
         "Incorrect Answer 1": "The proton", "Incorrect Answer 2": "The electron\n\nat rest",
         "Incorrect Answer 3": "The photon"} for n in range(40)]
CSQA = [{"id": "c0", "question": "Where is bread kept?", "question_concept": "bread", "answerKey": "E",
         "choices": {"label": list("ABCDE"), "text": ["sky", "sea", "car", "bank", "kitchen"]}}]
ROWS = {"gsm8k": GSM8K, "math500": MATH500, "aime24": AIME, "gpqa": GPQA, "commonsenseqa": CSQA}


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """Write rows (or raw text) as one of the miniature's sets and return its task."""
    monkeypatch.setattr(paths, "PROBLEMS", tmp_path / "data" / "problems")
    paths.PROBLEMS.mkdir(parents=True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name, content):
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (paths.PROBLEMS / f"{name}.jsonl").write_text(text)
        return tasks.get(name)

    return write


@pytest.fixture
def hub(monkeypatch):
    """Answer `load_dataset` with rows, or raise the given error; returns the calls made."""
    base._hub_rows.cache_clear()

    def answer(result):
        calls = []

        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            if isinstance(result, Exception):
                raise result
            return datasets.Dataset.from_list(result)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    yield answer
    base._hub_rows.cache_clear()


def failure(call) -> AsuError:
    with pytest.raises(AsuError) as caught:
        call()
    return caught.value


def test_unknown_task_lists_all_names():
    error = failure(lambda: tasks.get("gsm9k"))
    assert "gsm9k" in error.problem and all(name in error.remedy for name in tasks.NAMES)


def test_miniature_problems(mini):
    problems = mini("mini-easy", MINI).problems()
    assert problems[1] == tasks.Problem("e-1", MINI[1]["prompt"], "5", 2, 2.5, "mini-easy")
    assert [problem.id for problem in tasks.get("mini-easy").problems(2)] == ["e-0", "e-1"]


def test_a_rewritten_set_is_read_again(mini):
    assert len(mini("mini-easy", MINI).problems()) == 3
    assert len(mini("mini-easy", MINI[:1]).problems()) == 1


@pytest.mark.parametrize("limit", [0, -1, 4])
def test_limit_outside_the_set(mini, limit):
    error = failure(lambda: mini("mini-easy", MINI).problems(limit))
    assert f"{limit} problems" in error.problem and "1 to 3" in error.remedy


def changed(**fields):
    return [MINI[0], {**MINI[1], **fields}]


@pytest.mark.parametrize(("content", "words"), [
    ("", "empty"),
    ('{"id": "e-0", "prompt"', "JSON"),
    ([{key: value for key, value in row.items() if key != "expected"} for row in MINI], "row 1 has no expected"),
    (changed(prompt=None), "row 2 has no prompt"),
    (changed(prompt="  "), "row 2 has an empty prompt"),
    (changed(expected=""), "row 2 has an empty prompt or answer"),
    (changed(id="e-0"), "share one id"),
    ([{**MINI[0], "level": "easy"}], "row 1 cannot be read"),
])
def test_bad_local_sets(mini, content, words):
    error = failure(lambda: mini("mini-easy", content).problems())
    assert words in error.problem and error.remedy


def test_missing_local_set_says_how_to_restore_it(mini):
    error = failure(lambda: tasks.get("mini-hard").problems())
    assert "mini-hard" in error.problem and "git checkout -- data/problems/mini-hard.jsonl" in error.remedy


def test_a_cache_without_room_is_named(mini, hub):
    task = mini("mini-easy", MINI)
    hub(OSError(28, "No space left on device"))
    error = failure(task.problems)
    assert "No space left" in error.problem and "HF_HOME" in error.remedy


def test_facts_are_graded_by_letter_and_by_words(mini):
    task = mini("mini-facts", FACTS)
    problem = task.problems()[0]
    assert base.options(problem.prompt) == {"A": "Red", "B": "Dark blue", "C": "Green", "D": "Grey"}
    texts = {"B": True, "dark blue": True, "A": False, "who knows": None}
    assert {text: task.grade(problem, text).correct for text in texts} == texts


def test_digest_follows_what_is_sent_and_expected(mini):
    digest = mini("mini-easy", MINI).digest()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert mini("mini-easy", MINI).digest() == digest
    assert tasks.get("mini-easy").digest(2) != digest
    for fields in ({"prompt": "Ann has 9 cups and loses 3. How many cups now?"}, {"expected": "6"}, {"id": "e-9"}):
        assert mini("mini-easy", [MINI[0], {**MINI[1], **fields}, MINI[2]]).digest() != digest
    assert mini("mini-easy", [{**row, "difficulty": 1} for row in MINI]).digest() == digest


@pytest.mark.parametrize(("name", "expected", "level", "difficulty"), [
    ("gsm8k", "1200", 1, 1), ("math500", "x=5", 3, 3), ("aime24", "25", 4, 10), ("commonsenseqa", "E", 1, None),
])
def test_hub_rows(hub, name, expected, level, difficulty):
    calls = hub(ROWS[name])
    task = tasks.get(name)
    problem, = task.problems()
    assert (problem.expected, problem.level, problem.task) == (expected, level, name)
    assert math.isnan(problem.difficulty) if difficulty is None else problem.difficulty == difficulty
    row = ROWS[name][0]
    assert problem.prompt.startswith(row.get("problem") or row["question"].strip())
    assert task.grade(problem, f"Thus \\boxed{{{expected}}}.").correct is True
    (args, kwargs), = calls
    assert args == (task.source.id, task.source.config) and re.fullmatch("[0-9a-f]{40}", kwargs["revision"])


def test_mathematics_prompt_asks_for_a_box(hub):
    hub(MATH500)
    assert tasks.get("math500").problems()[0].prompt == (
        "Solve $x+1=\\{6\\}$.\n\nPlease reason step by step, and put your final answer within \\boxed{}.")


def test_gpqa_order_is_seeded_stable_and_readable_from_the_prompt(hub, monkeypatch):
    hub(GPQA)
    task = tasks.get("gpqa")
    problems = task.problems()
    assert problems == task.problems()
    for problem, row in zip(problems, GPQA, strict=True):
        shown = list(base.options(problem.prompt).values())
        assert shown == [" ".join(row[gpqa.OPTIONS[option]].split()) for option in gpqa.order(row["Record ID"])]
        assert shown["ABCD".index(problem.expected)] == "The muon"
        assert task.grade(problem, f"**Answer: {problem.expected}**").correct is True
        assert task.grade(problem, "the muon").correct is True
    assert {problem.expected for problem in problems} == set("ABCD")
    # Recorded once; another order would make old runs incomparable with new ones.
    assert [gpqa.order(f"rec{n}") for n in range(3)] == ORDERS
    digest = task.digest()
    monkeypatch.setattr(gpqa, "ORDER_SEED", 1)
    assert task.digest() != digest


ORDERS = [[2, 0, 1, 3], [1, 2, 0, 3], [0, 2, 1, 3]]


@pytest.mark.parametrize(("name", "fields", "words"), [
    ("gsm8k", {"answer": "1200"}, "no #### mark"),
    ("math500", {"answer": None}, "row 1 has no answer"),
    ("aime24", {"url": "https://example.org/"}, "problem's number"),
    ("aime24", {"answer": "many"}, "row 1 cannot be read"),
    ("commonsenseqa", {"choices": {"label": ["1", "2"], "text": ["sea", "sky"]}}, "labelled"),
])
def test_hub_rows_of_another_form(hub, name, fields, words):
    hub([{**ROWS[name][0], **fields}])
    assert words in failure(lambda: tasks.get(name).problems()).problem


def test_empty_hub_set(hub):
    hub([])
    assert "empty" in failure(lambda: tasks.get("gsm8k").problems()).problem


@pytest.mark.parametrize("reason", [
    ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)"),
    ValueError("Couldn't find cache for openai/gsm8k for config 'main'"),
    DatasetGenerationError("An error occurred while generating the dataset"),
])
def test_no_hub_access_says_what_to_run_where(hub, reason):
    hub(reason)
    error = failure(lambda: tasks.get("gsm8k").problems())
    assert "openai/gsm8k" in error.problem
    assert "load_dataset('openai/gsm8k', 'main', split='test', revision='" in error.remedy
    assert "HF_HUB_OFFLINE=1" in error.remedy


def test_gated_set_without_token(hub):
    hub(DatasetNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub. You must be authenticated."))
    error = failure(lambda: tasks.get("gpqa").problems())
    assert "gated" in error.problem and "terms" in error.remedy and "HF_TOKEN" in error.remedy


def test_a_revision_that_is_gone_is_not_called_gated(hub):
    hub(DatasetNotFoundError("Revision 'e53f' doesn't exist for dataset 'openai/gsm8k' on the Hub."))
    error = failure(lambda: tasks.get("gsm8k").problems())
    assert "not found" in error.problem and "revision" in error.remedy


@pytest.mark.parametrize(("text", "reason", "error", "expected"), [
    ("7", "stop", None, ("correct", "7")),
    ("8", "stop", None, ("wrong", "8")),
    ("7", "length", None, ("cut off", "7")),
    ("", "length", None, ("cut off", None)),
    ("I wonder", "stop", None, ("unparsed", None)),
    ("", "stop", None, ("unparsed", None)),
    ("7", "stop", "the stream was cut", ("failed", None)),
    ("7", "stop", "", ("failed", None)),
    ("7", "length", "HTTP 500", ("failed", None)),
    ("7", None, None, ("failed", None)),
    ("7", "abort", None, ("failed", None)),
    ("<script>alert(7)</script>", "stop", None, ("unparsed", None)),
])
def test_each_request_has_one_outcome(mini, text, reason, error, expected):
    task = mini("mini-easy", MINI)
    outcome = tasks.outcome(task, task.problems()[0], text, reason, error)
    assert outcome == expected and outcome[0] in tasks.OUTCOMES


def test_every_task_says_what_it_stands_for():
    for name in tasks.NAMES:
        task = tasks.get(name)
        assert task.name == name and task.title and task.version >= 1
        assert task.kind in ("mathematics", "knowledge")
        assert task.stands_for in ("GSM8K", "MATH-500", "AIME 2024", "GPQA-diamond", "CommonsenseQA")
