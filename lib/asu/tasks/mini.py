"""The miniature's four sets: generated problems that stand where the paper's four stand.

Difficulty is the generator's own count (operations, steps of the search). The prompt is the problem and nothing else,
for the miniature models were trained on it in that form; their visible answer is a number or a letter.
"""

from asu.tasks import grading
from asu.tasks.base import Local, Problem, Task, judge_choice

COLUMNS = ("id", "prompt", "expected", "level", "difficulty")


def _read(row: dict, template: str, index: int) -> dict:
    return dict(id=str(row["id"]), prompt=template.format(prompt=row["prompt"]), expected=str(row["expected"]),
                level=int(row["level"]), difficulty=float(row["difficulty"]))


def _integer(problem: Problem, text: str) -> grading.Grade:
    return grading.integer(problem.expected, text)


def _mini(name: str, stands_for: str, kind: str, judge, version: int = 1) -> Task:
    return Task(name, name, stands_for, kind, Local(name, COLUMNS), "{prompt}", version, _read, judge)


TASKS = [
    _mini("mini-easy", "GSM8K", "mathematics", _integer),
    _mini("mini-medium", "MATH-500", "mathematics", _integer),
    _mini("mini-hard", "AIME 2024", "mathematics", _integer),
    _mini("mini-facts", "GPQA-diamond", "knowledge", judge_choice, version=2),
]
