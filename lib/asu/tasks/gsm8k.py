"""GSM8K: school arithmetic in words; the answer is a whole number. Difficulty: calculations in the reference solution.

A text without a marked answer is graded by its last number, as is customary for this set: plain models end in prose.
"""

from asu.tasks import grading
from asu.tasks.base import MATHEMATICS_TEMPLATE, NO_LEVEL, Hub, Problem, Task


def _read(row: dict, template: str, index: int) -> dict:
    solution, mark, expected = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("the answer has no #### mark")
    return dict(id=f"gsm8k-{index:04d}", prompt=template.format(problem=row["question"].strip()),
                expected=expected.strip().replace(",", ""), level=NO_LEVEL, difficulty=float(solution.count("<<")))


def _judge(problem: Problem, text: str) -> grading.Grade:
    return grading.integer(problem.expected, text, last_number=True)


SOURCE = Hub("openai/gsm8k", "main", "test", "e53f048856ff4f594e959d75785d2c2d37b678ee", ("question", "answer"))
TASK = Task("gsm8k", "GSM8K", "GSM8K", "mathematics", SOURCE, MATHEMATICS_TEMPLATE, 1, _read, _judge)
