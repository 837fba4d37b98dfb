"""The miniature's four families of generated problems, each with difficulty, a worked solution and one right answer.

Each family stands where one of the paper's data sets stands: easy (GSM8K) are worded sums, medium (MATH-500, five
levels) nested arithmetic, hard (AIME) a search by trial whose length grows with the answer, facts (GPQA) four-way
questions about invented countries, some of them rarely seen in training. A problem's worked solution is what the
thinking twin is taught to write before its answer; the direct twin is taught the answer alone.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

from asu import paths

LEVELS = (1, 2, 3, 4, 5)
PER_LEVEL = 60  # problems of one level in each published set
TEST_SEED = 20260

# Training text covers these grades of a family. The published sets take five grades as their levels, some of them
# harder than any in training: more operations, larger moduli.
GRADES = {"mini-easy": range(1, 9), "mini-medium": range(1, 9), "mini-hard": range(1, 8), "mini-facts": range(1, 6)}
PUBLISHED = {"mini-easy": (2, 3, 6, 7, 8), "mini-medium": (2, 4, 5, 9, 10), "mini-hard": (3, 5, 7, 8, 9),
             "mini-facts": (1, 2, 3, 4, 5)}


@dataclass(frozen=True)
class Item:
    """One generated problem with its worked solution."""

    prompt: str
    work: str
    answer: str  # as the models are taught to write it
    expected: str  # as it is graded
    grade: int
    difficulty: float


# Easy: worded sums. Difficulty = arithmetic operations.

NAMES = "Tom Ann Ben Eva Max Ida Leo Mia Sam Zoe Kim Jon Amy Dan Lea Tim".split()
THINGS = "apples books coins eggs cards pens shells stamps nuts seeds balls kites".split()
GAINS = ("{} buys {} more.", "{} finds {}.", "{} wins {}.")
LOSSES = ("{} gives away {}.", "{} loses {}.", "{} sells {}.")

# grade -> (largest start, plain clauses, clauses "k boxes of b": largest k and b)
EASY = {1: (99, 1, ()), 2: (99, 2, ()), 3: (99, 2, ((9, 99),)), 4: (999, 3, ((9, 99),)), 5: (99, 2, ((19, 49),)),
        6: (999, 2, ((9, 99), (9, 99))), 7: (999, 2, ((29, 99),)), 8: (999, 2, ((49, 99), (49, 99)))}


def easy(rng: random.Random, grade: int) -> Item:
    """A worded sum: start with some things, gain and lose some, ask for the total."""
    largest, plain, boxes = EASY[grade]
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    total = rng.randint(10, largest)
    text, work, operations = [f"{name} has {total} {thing}."], [], 0
    clauses = [None] * plain + list(boxes)
    rng.shuffle(clauses)
    for box in clauses:
        if box:
            k, b = rng.randint(2, box[0]), rng.randint(10, box[1])
            text.append(f"{name} gets {k} boxes of {b}.")
            work += [f"{k}*{b}={k * b}", f"{total}+{k * b}={total + k * b}"]
            total += k * b
            operations += 2
        elif total > 12 and rng.random() < 0.5:
            b = rng.randint(2, min(total - 1, largest))
            text.append(rng.choice(LOSSES).format(name, b))
            work.append(f"{total}-{b}={total - b}")
            total -= b
            operations += 1
        else:
            b = rng.randint(2, largest)
            text.append(rng.choice(GAINS).format(name, b))
            work.append(f"{total}+{b}={total + b}")
            total += b
            operations += 1
    return Item(" ".join(text) + f" How many {thing} now?", " ".join(work), str(total), str(total), grade,
                operations)


# Medium: nested arithmetic. Difficulty = arithmetic operations.

# grade -> (operations, largest leaf, most digits of a product's operands, longer first)
MEDIUM = {1: (2, 30, (2, 1)), 2: (4, 99, (2, 1)), 3: (6, 99, (2, 1)), 4: (8, 99, (2, 1)), 5: (10, 99, (2, 1)),
          6: (6, 199, (3, 1)), 7: (10, 199, (3, 1)), 8: (6, 99, (2, 2)), 9: (12, 99, (2, 1)), 10: (14, 99, (2, 1))}


def medium(rng: random.Random, grade: int) -> Item:
    """Nested sums, differences and products of whole numbers, every value from 0 to 99,999."""
    operations, largest, digits = MEDIUM[grade]
    tree, value = _tree(rng, operations, largest, digits)
    steps, text = [], _show(tree)
    while isinstance(tree, tuple):
        tree = _reduce(tree)
        steps.append(_show(tree))
    return Item(f"Compute {text}.", "\n".join(steps), str(value), str(value), grade, operations)


def _tree(rng, operations, largest, digits):
    """(tree, value); a tree is a number or (left, operator, right)."""
    if not operations:
        leaf = rng.randint(1, largest)
        return leaf, leaf
    left_operations = rng.randint(0, operations - 1)
    left, a = _tree(rng, left_operations, largest, digits)
    right, b = _tree(rng, operations - 1 - left_operations, largest, digits)
    shorter, longer = sorted((len(str(a)), len(str(b))))
    if longer <= digits[0] and shorter <= digits[1] and rng.random() < 0.6:
        return (left, "*", right), a * b
    if a >= b and rng.random() < 0.6:
        return (left, "-", right), a - b
    if a + b > 99_999:
        return ((left, "-", right), a - b) if a >= b else ((right, "-", left), b - a)
    return (left, "+", right), a + b


def _show(tree, top=True) -> str:
    if not isinstance(tree, tuple):
        return str(tree)
    text = f"{_show(tree[0], False)}{tree[1]}{_show(tree[2], False)}"
    return text if top else f"({text})"


def _reduce(tree):
    """The tree with its leftmost innermost operation carried out."""
    left, operator, right = tree
    if isinstance(left, tuple):
        return (_reduce(left), operator, right)
    if isinstance(right, tuple):
        return (left, operator, _reduce(right))
    return left + right if operator == "+" else left - right if operator == "-" else left * right


# Hard: search by trial. Difficulty = trials needed, which is the answer.

# grade -> (smallest and largest modulus, fewest and most trials)
HARD = {1: ((20, 50), (5, 15)), 2: ((40, 99), (12, 39)), 3: ((80, 150), (30, 79)), 4: ((120, 200), (60, 119)),
        5: ((160, 300), (100, 159)), 6: ((220, 400), (140, 219)), 7: ((300, 500), (220, 299)),
        8: ((501, 520), (220, 259)), 9: ((501, 520), (260, 289))}


def hard(rng: random.Random, grade: int) -> Item:
    """Least x with a x mod m = b, found by trying 1, 2, 3 ...; after a slip the goal is rarely met."""
    (smallest, largest), (fewest, most) = HARD[grade]
    while True:
        m, wanted = rng.randint(smallest, largest), rng.randint(fewest, most)
        a = rng.randint(2, min(m - 1, 99))
        trials = [a * x % m for x in range(1, wanted + 1)]
        if trials.index(trials[-1]) == wanted - 1:
            return Item(f"Find the least x>0 with {a}*x mod {m} = {trials[-1]}.",
                        " ".join(f"{x}:{r}" for x, r in enumerate(trials, 1)), str(wanted), str(wanted), grade, wanted)


# Facts: four-way questions. Difficulty = log2 of the fact's rank by how often training text states it.

RELATIONS = ("capital", "colour", "emblem", "river")
SUBJECTS = 3000
VALUES = 64  # possible values of one relation
LETTERS = "ABCD"
COMMON = 50  # a fact of rank r is stated with a frequency in proportion to 1 / (r + COMMON)


@dataclass(frozen=True)
class Knowledge:
    """facts[r] = (subject, relation, value), most often stated first; values[relation] = all values it can take."""

    facts: tuple[tuple[str, str, str], ...]
    values: dict[str, tuple[str, ...]]
    frequency: tuple[float, ...]  # cumulative


@cache
def knowledge() -> Knowledge:
    """The miniature's world, the same for every model."""
    rng = random.Random("asu/knowledge")
    used = set()

    def word(syllables, ending=""):
        while True:
            text = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(syllables)) + ending
            if text not in used:
                used.add(text)
                return text.capitalize()

    values = {relation: tuple(word(2, rng.choice("nrslt")) for _ in range(VALUES)) for relation in RELATIONS}
    subjects = [word(3) for _ in range(SUBJECTS)]
    facts = [(s, relation, rng.choice(values[relation])) for s in subjects for relation in RELATIONS]
    rng.shuffle(facts)
    total, frequency = 0.0, []
    for rank in range(len(facts)):
        total += 1 / (rank + COMMON)
        frequency.append(total)
    return Knowledge(tuple(facts), values, tuple(frequency))


def statement(fact: tuple[str, str, str]) -> str:
    """The fact as a sentence of training text."""
    subject, relation, value = fact
    return f"The {relation} of {subject} is {value}."


def question(rng: random.Random, rank: int) -> Item:
    """A four-way question about the fact of that rank."""
    world = knowledge()
    subject, relation, value = fact = world.facts[rank]
    options = rng.sample([v for v in world.values[relation] if v != value], 3)
    options.insert(rng.randrange(4), value)
    letter = LETTERS[options.index(value)]
    listed = " ".join(f"{k}) {v}" for k, v in zip(LETTERS, options, strict=True))
    grade = rank * len(GRADES["mini-facts"]) // len(world.facts) + 1
    return Item(f"What is the {relation} of {subject}? {listed}", statement(fact), f"{value} ({letter})", letter, grade,
                float((rank + 1).bit_length()))


def facts(rng: random.Random, grade: int) -> Item:
    """A question about a fact of the grade's fifth of all facts; grade 5 holds the rarest."""
    fifth = len(knowledge().facts) // len(GRADES["mini-facts"])
    return question(rng, rng.randrange((grade - 1) * fifth, grade * fifth))


FAMILIES: dict[str, Callable[[random.Random, int], Item]] = {
    "mini-easy": easy, "mini-medium": medium, "mini-hard": hard, "mini-facts": facts}


def pool(family: str, grade: int) -> list[Item]:
    """The problems of one grade that training text leaves out; no two alike."""
    rng, items = random.Random(f"asu/test/{TEST_SEED}/{family}/{grade}"), {}
    while len(items) < PER_LEVEL:
        item = FAMILIES[family](rng, grade)
        items[item.prompt] = item
    return list(items.values())


def test_set(family: str) -> list[tuple[int, Item]]:
    """The published (level, problem) pairs of a family: levels in turn, so that the first n are balanced."""
    pools = [pool(family, grade) for grade in PUBLISHED[family]]
    return [(level, item) for row in zip(*pools, strict=True) for level, item in zip(LEVELS, row, strict=True)]


@cache
def test_prompts() -> frozenset[str]:
    """Every prompt that training text leaves out; published grades beyond GRADES cannot occur in it anyway."""
    return frozenset(item.prompt for family in GRADES for grade in GRADES[family] for item in pool(family, grade))


# Share of training documents by family.
MIXTURE = {"mini-easy": 0.20, "mini-medium": 0.25, "mini-hard": 0.13, "mini-facts": 0.20, "statement": 0.22}


def training_documents(seed: str, banned: frozenset[str]) -> Iterator[tuple[str, Item | str]]:
    """Endless (family, Item), or ("statement", sentence); none whose prompt is banned."""
    rng, world = random.Random(f"asu/train/{seed}"), knowledge()
    kinds, weights, ranks = list(MIXTURE), list(MIXTURE.values()), range(len(world.facts))
    for _ in count():
        kind = rng.choices(kinds, weights)[0]
        if kind == "statement":
            yield kind, statement(world.facts[rng.choices(ranks, cum_weights=world.frequency)[0]])
            continue
        if kind == "mini-facts":
            item = question(rng, rng.choices(ranks, cum_weights=world.frequency)[0])
        else:
            item = FAMILIES[kind](rng, rng.choice(GRADES[kind]))
        if item.prompt not in banned:
            yield kind, item


def write(folder: Path = paths.PROBLEMS) -> None:
    """Write the four published sets as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        rows = [{"id": f"{family}-{i:03d}", "prompt": item.prompt, "expected": item.expected, "level": level,
                 "difficulty": item.difficulty} for i, (level, item) in enumerate(test_set(family))]
        (folder / f"{family}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
