"""GPQA-diamond: graduate questions with four options, gated on the hub. No level, no difficulty of its own.

The set lists the right option first; here a seed and the record's id give each question its own fixed order, readable
from the prompt and from `order`.
"""

import hashlib

from asu.tasks.base import CHOICE_TEMPLATE, NO_DIFFICULTY, NO_LEVEL, Hub, Task, judge_choice, lettered

ORDER_SEED = 0
OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def order(record_id: str) -> list[int]:
    """Which of OPTIONS stands at A, B, C, D; by SHA-256, so that no library's version can change it."""
    return sorted(range(len(OPTIONS)),
                  key=lambda option: hashlib.sha256(f"{ORDER_SEED}/{record_id}/{option}".encode()).digest())


def _read(row: dict, template: str, index: int) -> dict:
    places = order(row["Record ID"])
    # One line per option: an empty line inside would read as the end of the list.
    texts = [" ".join(row[OPTIONS[option]].split()) for option in places]
    return dict(id=row["Record ID"], prompt=template.format(question=row["Question"].strip(), options=lettered(texts)),
                expected="ABCD"[places.index(0)], level=NO_LEVEL, difficulty=NO_DIFFICULTY)


SOURCE = Hub("Idavidrein/gpqa", "gpqa_diamond", "train", "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
             ("Record ID", "Question", *OPTIONS), gated=True)
TASK = Task("gpqa", "GPQA-diamond", "GPQA-diamond", "knowledge", SOURCE, CHOICE_TEMPLATE, 1, _read, judge_choice)
