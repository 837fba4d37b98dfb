"""MATH-500: competition mathematics; the answer is LaTeX. Level and difficulty: the set's own level, 1 to 5."""

from asu.tasks import grading
from asu.tasks.base import MATHEMATICS_TEMPLATE, Hub, Problem, Task


def _read(row: dict, template: str, index: int) -> dict:
    return dict(id=row["unique_id"].removesuffix(".json"), prompt=template.format(problem=row["problem"].strip()),
                expected=row["answer"].strip(), level=int(row["level"]), difficulty=float(row["level"]))


def _judge(problem: Problem, text: str) -> grading.Grade:
    return grading.mathematics(problem.expected, text)


SOURCE = Hub("HuggingFaceH4/MATH-500", None, "test", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
             ("unique_id", "problem", "answer", "level"))
TASK = Task("math500", "MATH-500", "MATH-500", "mathematics", SOURCE, MATHEMATICS_TEMPLATE, 1, _read, _judge)
