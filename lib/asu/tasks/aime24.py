"""AIME 2024, both papers: the answer is a whole number from 0 to 999.

The papers order their 15 problems by difficulty: difficulty is the problem's number, level its fifth of the paper.
"""

import re

from asu.tasks import grading
from asu.tasks.base import MATHEMATICS_TEMPLATE, Hub, Problem, Task


def _read(row: dict, template: str, index: int) -> dict:
    place = re.search(r"AIME_(I+)_Problems/Problem_(\d+)$", row["url"])
    if not place:
        raise ValueError(f"the url does not end in the problem's number: {row['url']}")
    number = int(place[2])
    return dict(id=f"aime24-{place[1]}-{number:02d}", prompt=template.format(problem=row["problem"].strip()),
                expected=str(int(row["answer"])), level=(number + 2) // 3, difficulty=float(number))


def _judge(problem: Problem, text: str) -> grading.Grade:
    return grading.integer(problem.expected, text)


SOURCE = Hub("HuggingFaceH4/aime_2024", None, "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
             ("url", "problem", "answer"))
TASK = Task("aime24", "AIME 2024", "AIME 2024", "mathematics", SOURCE, MATHEMATICS_TEMPLATE, 1, _read, _judge)
