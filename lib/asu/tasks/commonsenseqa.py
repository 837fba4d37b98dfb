"""CommonsenseQA, validation part: everyday questions with five options, in the set's own order.

No level, no difficulty of its own. Not in the paper; its reviewers asked for it as a second set of knowledge.
"""

from asu.tasks.base import CHOICE_TEMPLATE, NO_DIFFICULTY, NO_LEVEL, Hub, Task, judge_choice, lettered


def _read(row: dict, template: str, index: int) -> dict:
    choices = row["choices"]
    if list(choices["label"]) != list("ABCDE"):
        raise ValueError(f"the options are labelled {choices['label']}, not A to E")
    prompt = template.format(question=row["question"].strip(), options=lettered(choices["text"]))
    return dict(id=row["id"], prompt=prompt, expected=row["answerKey"], level=NO_LEVEL,
                difficulty=NO_DIFFICULTY)


SOURCE = Hub("tau/commonsense_qa", None, "validation", "94630fe30dad47192a8546eb75f094926d47e155",
             ("id", "question", "choices", "answerKey"))
TASK = Task("commonsenseqa", "CommonsenseQA", "CommonsenseQA", "knowledge", SOURCE, CHOICE_TEMPLATE, 1,
            _read, judge_choice)
