"""Problem sets with their prompts and graders, and the five outcomes of a request."""

from asu.errors import AsuError
from asu.tasks import aime24, commonsenseqa, gpqa, gsm8k, math500, mini
from asu.tasks.base import Problem, Task
from asu.tasks.grading import Grade

__all__ = ["NAMES", "OUTCOMES", "Grade", "Problem", "Task", "get", "outcome"]

_TASKS = {task.name: task for task in
          [*mini.TASKS, gsm8k.TASK, math500.TASK, aime24.TASK, gpqa.TASK, commonsenseqa.TASK]}
NAMES = tuple(_TASKS)
OUTCOMES = ("correct", "wrong", "cut off", "unparsed", "failed")


def get(name: str) -> Task:
    """The task called `name`, or an error that lists the names there are."""
    if name not in _TASKS:
        raise AsuError(f"unknown task {name!r}",
                       f"use one of: {', '.join(NAMES)}; a new task is one file in lib/asu/tasks")
    return _TASKS[name]


def outcome(task: Task, problem: Problem, answer_text: str, finish_reason: str | None,
            error: str | None) -> tuple[str, str | None]:
    """(one of OUTCOMES, the answer extracted or None). Each request is in exactly one bucket, the first that applies:

    failed: an error, or the engine gave no reason for ending, or one other than "stop" and "length";
    cut off: the token budget ended it, even if the text so far states the right answer, for it might have gone on to
    another one (what it states is still extracted);
    unparsed: no answer is stated; then correct or wrong.
    """
    if error is not None or finish_reason not in ("stop", "length"):
        return "failed", None
    grade = task.grade(problem, answer_text)
    if finish_reason == "length":
        return "cut off", grade.extracted
    if grade.correct is None:
        return "unparsed", None
    return ("correct" if grade.correct else "wrong"), grade.extracted
