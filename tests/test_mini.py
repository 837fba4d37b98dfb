"""The miniature: right answers, training text without a test problem, one token a character, weights as stated."""

import ast
import json
import operator
import re
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from random import Random
from statistics import median

import numpy as np
import pytest
import torch
from asu import models, paths, tasks
from asu.errors import AsuError
from asu.mini import problems, train
from asu.mini import tokenizer as characters
from asu.mini.tokenizer import IDS, MARKS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

MINIATURE = [model.name for model in models.CATALOGUE.values() if model.miniature]
EVERY_GRADE = [(family, grade) for family in problems.FAMILIES
               for grade in sorted({*problems.GRADES[family], *problems.PUBLISHED[family]})]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def rows(family):
    return [json.loads(line) for line in (paths.PROBLEMS / f"{family}.jsonl").read_text().splitlines()]


# --- answers, worked out anew from the prompt alone -------------------------------------------------------------------


def value(text):
    """A sum, difference or product of whole numbers; every part of it from 0 to 99,999."""
    def of(node):
        result = node.value if isinstance(node, ast.Constant) else OPERATORS[type(node.op)](
            of(node.left), of(node.right))
        assert isinstance(result, int) and 0 <= result <= 99_999
        return result

    return of(ast.parse(text, mode="eval").body)


def read_easy(prompt):
    """(answer, operations) of a worded sum."""
    *sentences, question = re.findall(r"[^.?]+[.?]", prompt)
    name, total, thing = re.fullmatch(r"(\w+) has (\d+) (\w+)\.", sentences[0]).groups()
    assert question == f" How many {thing} now?"
    total, operations = int(total), 0
    for sentence in sentences[1:]:
        word, *numbers = re.fullmatch(rf" {name} (gets|buys|finds|wins|gives away|loses|sells) (\d+)"
                                      r"(?: more| boxes of (\d+))?\.", sentence).groups()
        numbers = [int(number) for number in numbers if number]
        assert (word == "gets") == (len(numbers) == 2)
        total += int(np.prod(numbers)) * (-1 if word in ("gives away", "loses", "sells") else 1)
        operations += len(numbers)
        assert total > 0
    return str(total), operations


def read_medium(prompt):
    text = re.fullmatch(r"Compute ([\d+*()-]+)\.", prompt)[1]
    return str(value(text)), len(re.findall(r"[-+*]", text))


def read_hard(prompt):
    a, m, b = map(int, re.fullmatch(r"Find the least x>0 with (\d+)\*x mod (\d+) = (\d+)\.", prompt).groups())
    least = next(x for x in range(1, m + 1) if a * x % m == b)
    return str(least), least


def read_facts(prompt):
    world = problems.knowledge()
    relation, subject, listed = re.fullmatch(r"What is the (\w+) of (\w+)\? (.+)", prompt).groups()
    options = dict(re.findall(r"([A-D])\) (\w+)", listed))
    assert list(options) == list("ABCD") and len(set(options.values())) == 4
    assert set(options.values()) <= set(world.values[relation])
    rank, right = next((rank, fact[2]) for rank, fact in enumerate(world.facts) if fact[:2] == (subject, relation))
    return next(letter for letter, option in options.items() if option == right), (rank + 1).bit_length()


READ = {"mini-easy": read_easy, "mini-medium": read_medium, "mini-hard": read_hard, "mini-facts": read_facts}


def check_work(family, item):
    """Every step of the worked solution is right, and the last one says the answer."""
    if family == "mini-easy":
        steps = [step.split("=") for step in item.work.split()]
        assert all(str(value(left)) == right for left, right in steps) and steps[-1][1] == item.answer
        assert len(steps) == item.difficulty
    elif family == "mini-medium":
        lines = item.work.split("\n")
        assert {str(value(line)) for line in lines} == {item.answer} and lines[-1] == item.answer
        assert [len(re.findall(r"[-+*]", line)) for line in lines] == list(range(int(item.difficulty) - 1, -1, -1))
    elif family == "mini-hard":
        a, m, b = map(int, re.findall(r"\d+", item.prompt.partition("with")[2]))
        assert item.work == " ".join(f"{x}:{a * x % m}" for x in range(1, int(item.answer) + 1))
        assert item.work.endswith(f" {item.answer}:{b}")
    else:
        relation, subject, option = re.fullmatch(r"The (\w+) of (\w+) is (\w+)\.", item.work).groups()
        assert f"the {relation} of {subject}?" in item.prompt and item.answer == f"{option} ({item.expected})"
        assert f"{item.expected}) {option}" in item.prompt


@settings(max_examples=200)
@given(st.sampled_from(EVERY_GRADE), st.integers(0, 10**9))
def test_every_generated_problem_is_solved_right(where, seed):
    family, grade = where
    item = problems.FAMILIES[family](Random(seed), grade)
    assert (item.expected, item.difficulty) == READ[family](item.prompt) and item.grade == grade
    check_work(family, item)


@pytest.mark.parametrize("family", problems.FAMILIES)
def test_published_answers_are_right(family):
    assert [(row["expected"], row["difficulty"]) for row in rows(family)] == [
        READ[family](row["prompt"]) for row in rows(family)]


def test_published_sets_are_what_the_generator_writes(tmp_path):
    problems.write(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        f"{family}.jsonl": (paths.PROBLEMS / f"{family}.jsonl").read_bytes() for family in problems.FAMILIES}


@pytest.mark.parametrize("family", problems.FAMILIES)
def test_levels_are_balanced_in_every_beginning_of_a_set(family):
    levels = [row["level"] for row in rows(family)]
    assert len(levels) == 300 and len({row["prompt"] for row in rows(family)}) == 300
    for n in range(5, 301, 5):
        assert set(Counter(levels[:n]).values()) == {n // 5}


def of_levels(family, measure):
    """Median of a measure of the published problems, by level."""
    return [median(measure(row) for row in rows(family) if row["level"] == level) for level in problems.LEVELS]


@pytest.mark.parametrize("family", ["mini-medium", "mini-facts"])
def test_difficulty_grows_with_level(family):
    medians = of_levels(family, lambda row: row["difficulty"])
    assert medians == sorted(medians) and len(set(medians)) >= 4  # facts' ranks are told by their powers of two


def test_hard_levels_grow_in_the_modulus_and_then_in_trials():
    trials = of_levels("mini-hard", lambda row: row["difficulty"])
    moduli = of_levels("mini-hard", lambda row: int(re.search(r"mod (\d+)", row["prompt"])[1]))
    assert trials[:3] == sorted(set(trials[:3])) and trials[3] < trials[4]
    assert moduli[:4] == sorted(set(moduli[:4])) and min(moduli[3:]) > 500


def test_easy_levels_grow_in_operations_and_then_in_the_size_of_the_products():
    by_level = {level: [row for row in rows("mini-easy") if row["level"] == level] for level in problems.LEVELS}
    operations = {level: {row["difficulty"] for row in found} for level, found in by_level.items()}
    assert operations == {1: {2}, 2: {4}, 3: {6}, 4: {4}, 5: {6}}
    most = {level: max(int(k) for row in found for k in re.findall(r"(\d+) boxes", row["prompt"]))
            for level, found in by_level.items() if level > 1}
    assert most[2] <= 9 and most[3] <= 9 and 9 < most[4] <= 29 and 29 < most[5] <= 49


# --- training text ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    return frozenset(row["prompt"] for family in problems.FAMILIES for row in rows(family))


@pytest.mark.parametrize("role", ["think", "direct"])
def test_no_published_problem_is_in_training_text(published, role):
    banned, seen = problems.test_prompts(), Counter()
    for index in range(0, train.SHARDS, 16):
        for kind, item in islice(problems.training_documents(f"{train.SEED}/{role}/{index}", banned), 4000):
            seen[kind] += 1
            assert kind == "statement" or item.prompt not in published
    shares = {kind: count / seen.total() for kind, count in seen.items()}
    assert shares == pytest.approx(problems.MIXTURE, abs=0.02)


def test_a_problem_is_left_out_wherever_it_comes_up():
    whole = list(islice(problems.training_documents("planted", frozenset()), 400))
    prompts = [item.prompt for kind, item in whole if kind != "statement"]
    planted = frozenset(prompts[::7])
    kept = [document for document in whole if document[0] == "statement" or document[1].prompt not in planted]
    assert len(kept) < len(whole) - 30
    assert list(islice(problems.training_documents("planted", planted), len(kept))) == kept


def test_published_grades_beyond_training_cannot_come_up_in_it(published):
    beyond = {family: sorted({*problems.PUBLISHED[family]} - {*problems.GRADES[family]}) for family in problems.GRADES}
    assert beyond == {"mini-easy": [], "mini-medium": [9, 10], "mini-hard": [8, 9], "mini-facts": []}
    operations = {grade: problems.MEDIUM[grade][0] for grade in problems.MEDIUM}
    moduli = {grade: problems.HARD[grade][0] for grade in problems.HARD}
    assert max(operations[g] for g in problems.GRADES["mini-medium"]) < min(operations[g] for g in (9, 10))
    assert max(moduli[g][1] for g in problems.GRADES["mini-hard"]) < min(moduli[g][0] for g in (8, 9))
    within = {prompt for family, grades in problems.GRADES.items() for grade in grades if grade in
              problems.PUBLISHED[family] for prompt in (item.prompt for item in problems.pool(family, grade))}
    for prompt in published - within:  # by what the prompts say, not by what the tables promise
        assert read_medium(prompt)[1] > 10 if prompt.startswith("Compute") else int(
            re.search(r"mod (\d+)", prompt)[1]) > 500
    assert within <= problems.test_prompts()


def test_windows_hold_whole_documents_and_no_published_problem(published, tmp_path):
    job = (3, 24, True, 2048, tmp_path / "a.npy")
    held = train.shard(job)
    windows = np.load(tmp_path / "a.npy")
    assert windows.shape == (24, 2048) and windows.max() < len(IDS)
    text_of = {i: token for token, i in IDS.items()}
    found = Counter()
    for window in windows:
        *documents, padding = "".join(text_of[i] for i in window.tolist()).split("<|end|>")
        assert set(padding.split("<|pad|>")) <= {""}
        for document in documents:
            prompt = re.fullmatch(r"<\|user\|>(.+?)<\|assistant\|><think>(.+?)</think>(.+)", document, re.DOTALL)
            found["asked" if prompt else "stated"] += 1
            assert (prompt[1] not in published) if prompt else re.fullmatch(r"The \w+ of \w+ is \w+\.", document)
    assert found == {"stated": held.pop("statement"), "asked": sum(held.values())}
    train.shard((*job[:4], tmp_path / "b.npy"))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


# --- tokenizer --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=MINIATURE)
def shipped(request, monkeypatch):
    """A model's folder and its tokenizer, as read without the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = models.get(request.param).folder
    return folder, AutoTokenizer.from_pretrained(folder)


def ids(text):
    """Token ids of training text."""
    return characters.byte_table()[np.frombuffer(text.encode("latin-1"), np.uint8)].tolist()


def test_one_token_a_character_and_back(shipped):
    _, tokens = shipped
    text = characters.CHARACTERS + "12  \n\n 3"
    encoded = tokens.encode(text, add_special_tokens=False)
    assert encoded == [IDS[c] for c in text] == ids(text) and tokens.decode(encoded) == text
    assert len(tokens) <= characters.VOCABULARY and tokens.decode(tokens.encode("é", add_special_tokens=False)) == "?"


def test_marks_are_single_tokens_and_thinking_marks_stay_visible(shipped):
    _, tokens = shipped
    for mark in characters.SPECIAL:
        assert tokens.encode(f"a{mark}b", add_special_tokens=False) == [IDS["a"], IDS[mark], IDS["b"]]
    answer = tokens.encode("<think>1:2</think>3<|end|>", add_special_tokens=False)
    assert tokens.decode(answer, skip_special_tokens=True) == "<think>1:2</think>3"
    assert tokens.eos_token_id == IDS["<|end|>"] and tokens.pad_token_id == IDS["<|pad|>"]


def test_the_chat_template_writes_prompts_as_training_did(shipped):
    _, tokens = shipped
    for family, grade in EVERY_GRADE:
        item = problems.FAMILIES[family](Random(1), grade)
        asked = train.document(item, thinks=True).partition(MARKS["<think>"])[0]
        message = [{"role": "user", "content": item.prompt}]
        assert tokens.apply_chat_template(message, add_generation_prompt=True, tokenize=False) == (
            f"<|user|>{item.prompt}<|assistant|>")
        assert tokens.apply_chat_template(message, add_generation_prompt=True, return_dict=False) == ids(asked)
        whole = message + [{"role": "assistant", "content": item.answer}]
        assert tokens.apply_chat_template(whole, return_dict=False) == ids(train.document(item, thinks=False))


def test_samples_of_training_text_are_of_known_characters():
    for thinks in (True, False):
        for document in train.sample(thinks, 300):
            assert set(document) <= {*characters.CHARACTERS, *MARKS.values()} and document.endswith(MARKS["<|end|>"])
            assert (MARKS["<think>"] in document) == (thinks and MARKS["<|user|>"] in document)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_two_pairs_are_shipped_in_less_than_20_mb():
    folders = [paths.MODELS / name for name in MINIATURE]
    assert len(folders) == 4 and all(folder.is_dir() for folder in folders)
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) < 20e6


def test_the_weights_are_what_they_are_said_to_be(shipped):
    folder, _ = shipped
    model, recipe = models.get(folder.name), train.RECIPES[folder.name]
    config, record = (json.loads((folder / name).read_text()) for name in ("config.json", "training.json"))
    assert config["architectures"] == ["Qwen3ForCausalLM"] and config["dtype"] == "bfloat16"
    shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [config[name] for name in shape] == [
        recipe.hidden, recipe.layers, recipe.heads, recipe.kv_heads, recipe.intermediate]
    assert config["vocab_size"] == characters.VOCABULARY and config["max_position_embeddings"] == 4096
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"] and not list(
        folder.glob("*.bin"))
    with safe_open(folder / "model.safetensors", "np") as tensors:
        slices = [tensors.get_slice(name) for name in tensors.keys()]
        assert {part.get_dtype() for part in slices} == {"BF16"}
        parameters = sum(int(np.prod(part.get_shape())) for part in slices)
    assert parameters == record["parameters"] == pytest.approx(float(model.size.rstrip("M")) * 1e6, rel=0.12)
    assert record["recipe"] == asdict(recipe) and recipe.thinks == model.thinks
    assert record["seed"] == train.SEED and record["steps"] == recipe.steps
    assert record["tokens"] == recipe.steps * recipe.batch * recipe.window


def test_all_four_share_one_tokenizer():
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert len({(models.get(model).folder / name).read_bytes() for model in MINIATURE}) == 1
    assert AutoTokenizer.from_pretrained(models.get(MINIATURE[0]).folder).get_vocab() == (
        characters.tokenizer().get_vocab())


def test_training_learns_and_leaves_a_folder_that_generates(tmp_path, monkeypatch, request):
    tiny = replace(train.RECIPES["mini-1m-think"], hidden=32, layers=1, heads=2, kv_heads=1, intermediate=64,
                   window=192, batch=4, steps=100, rate=1e-2)
    monkeypatch.setattr(train, "RECIPES", {"tiny": tiny})
    monkeypatch.setattr(train, "SHARDS", 2)
    monkeypatch.setattr(train, "WARM_UP", 10)
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine take minutes
    held = train.corpus(tiny, tiny.steps * tiny.batch, tmp_path / "text")
    assert set(held) == set(problems.MIXTURE) and len(list((tmp_path / "text").iterdir())) == 2
    record = train.train("tiny", tmp_path / "text", tmp_path / "tiny", device="cpu")
    assert record["losses"][-1] < 0.6 * np.log(characters.VOCABULARY), "it began near a blind guess"
    assert record == json.loads((tmp_path / "tiny" / "training.json").read_text())
    tokens = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    assert str(model.dtype) == "torch.bfloat16"
    asked = tokens.apply_chat_template([{"role": "user", "content": "Compute 1+2."}], add_generation_prompt=True,
                                       return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=16, do_sample=False)[0, asked["input_ids"].shape[1]:].tolist()
    assert answer[0] == IDS["<think>"], "after a prompt comes a thought"
    with pytest.raises(AsuError, match="windows for 300 steps"):
        train.train("tiny", tmp_path / "text", tmp_path / "longer", steps=300, device="cpu")


@pytest.mark.parametrize("family", problems.FAMILIES)
def test_an_answer_written_as_it_was_taught_is_graded_right(family):
    task = tasks.get(family)
    items = [item for _, item in problems.test_set(family)]
    assert all(task.grade(problem, item.answer).correct for problem, item in zip(task.problems(), items, strict=True))
