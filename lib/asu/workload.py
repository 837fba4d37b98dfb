"""The requests of a run: problems in sending order, with their seeds and their most output tokens."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asu import paths, shapes, tasks
from asu.errors import AsuError
from asu.specs import RunSpec


@dataclass(frozen=True)
class Request:
    """One request to be made: a problem, which repeat of it, its sampling seed and its most output tokens."""

    problem: tasks.Problem
    repeat: int
    seed: int
    max_tokens: int

    @property
    def id(self) -> str:
        return f"{self.problem.id}#{self.repeat}"


def requests(spec: RunSpec) -> list[Request]:
    """All requests in the order they are sent: every problem once, then every problem again; the same in every run."""
    lengths = recorded_lengths(spec.lengths) if spec.lengths else None
    if lengths is not None and spec.options.random_weights:
        problems = _generated_problems(spec, lengths)
    else:
        problems = tasks.get(spec.task).problems(spec.problems)
    if not problems:
        raise AsuError(f"task {spec.task} has no problems", "restore its problem file, or choose another task")
    for problem in problems:
        if not problem.prompt.strip():
            raise AsuError(f"problem {problem.id} of {spec.task} has an empty prompt", "correct the problem file")
    return [Request(problem, repeat, spec.request_seed(problem.id, repeat),
                    _max_tokens(spec, lengths, problem.id, repeat))
            for repeat in range(spec.repeats) for problem in problems]


def recorded_lengths(name: str) -> dict[tuple[str, int], dict]:
    """Rows of data/lengths/<name>.csv by (problem_id, repeat): output_tokens, and prompt_tokens for replay."""
    path = lengths_path(name)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    needed = {"problem_id", "repeat", "output_tokens"}
    if not rows or not needed <= rows[0].keys():
        raise AsuError(f"{path} holds no recorded lengths", f"give it the columns {', '.join(sorted(needed))} and a "
                       "row per request; prompt_tokens, level and difficulty may follow")
    return {(row["problem_id"], int(row["repeat"])): row for row in rows}


def lengths_path(name: str) -> Path:
    path = paths.LENGTHS / f"{name}.csv"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in paths.LENGTHS.glob("*.csv"))) or "none there"
        raise AsuError(f"no recorded lengths {name!r} in {paths.LENGTHS}", f"use one of: {there}")
    return path


def _max_tokens(spec: RunSpec, lengths: dict | None, problem_id: str, repeat: int) -> int:
    if lengths is None:
        return spec.sampling.budget
    if (problem_id, repeat) not in lengths:
        raise AsuError(f"lengths {spec.lengths} have no row for problem {problem_id}, repeat {repeat}",
                       "lower `problems` or `repeats` to what was recorded, or record more")
    return max(1, min(int(lengths[problem_id, repeat]["output_tokens"]), spec.sampling.budget))


def _generated_problems(spec: RunSpec, lengths: dict) -> list[tasks.Problem]:
    """Prompts without meaning of the recorded length in tokens, each different from its first words on."""
    ids = list(dict.fromkeys(problem_id for problem_id, _ in lengths))[: spec.problems]
    found = []
    for problem_id in ids:
        row = lengths[next(key for key in lengths if key[0] == problem_id)]
        draw = np.random.default_rng(spec.request_seed(problem_id, 0))
        words = draw.choice(shapes.WORDS, int(row.get("prompt_tokens") or 200))
        found.append(tasks.Problem(
            id=problem_id, prompt=" ".join(words), expected="",
            level=int(row.get("level") or 0), difficulty=float(row.get("difficulty") or "nan"), task=spec.task))
    return found
