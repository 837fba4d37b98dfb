"""The requests of a run: problems in sending order, with their seeds and their most output tokens."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from asu import models, paths, shapes, tasks
from asu.errors import AsuError
from asu.specs import RunSpec

PREFIX_VERSION = 1  # of the recipe below; raise it when the words before the problems change
RECORDED = ["problem_id", "repeat", "output_tokens", "thinking_tokens", "prompt_tokens", "level", "difficulty"]
# Sets of which only means and spreads may be published: (mean output [tok], standard deviation of its logarithm, most
# output [tok], thinking share, mean prompt [tok], problems). Sources in data/lengths/README.md.
LAWS = {
    "r1-qwen-7b-gsm8k": (1601, 0.694, 32768, 0.842, 99, 100),
    "r1-qwen-7b-gpqa": (8625, 0.710, 32768, 0.923, 200, 100),
    "qwen2.5-math-7b-aime24": (1016, 0.434, 3072, 0.0, 109, 30),
}
TEMPLATE_TOKENS = 64  # the part that all requests share under `template`; common system prompts are about as long


@dataclass(frozen=True)
class Request:
    """One request to be made: a problem, which repeat of it, its sampling seed and its most output tokens."""

    problem: tasks.Problem
    repeat: int
    seed: int
    max_tokens: int
    thinking_tokens: int | None = None  # recorded, to be counted in place of what random weights say; None: as said

    @property
    def id(self) -> str:
        return f"{self.problem.id}#{self.repeat}"


def requests(spec: RunSpec) -> list[Request]:
    """All requests in the order they are sent: every problem once, then every problem again; the same in every run.

    Where they belong `together`, or share a prefix and shall meet in the cache, a problem's repeats follow each other.
    """
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
    order = [(problem, repeat) for repeat in range(spec.repeats) for problem in problems]
    if spec.together or (spec.prefix and spec.prefix.kind == "samples"):
        order = [(problem, repeat) for problem in problems for repeat in range(spec.repeats)]
    return [Request(_prefixed(spec, problem, repeat), repeat, spec.request_seed(problem.id, repeat),
                    _max_tokens(spec, lengths, problem.id, repeat), _thinking_tokens(spec, lengths, problem.id, repeat))
            for problem, repeat in order]


def fixed_length(spec: RunSpec) -> bool:
    """Whether every request makes exactly its `max_tokens`, whatever the model would do."""
    return spec.lengths is not None or spec.prefix is not None


def _prefixed(spec: RunSpec, problem: tasks.Problem, repeat: int) -> tasks.Problem:
    """The problem with what stands before it: exactly `prefix.tokens` tokens, fewer in a conversation's early turns."""
    if spec.prefix is None:
        return problem
    miniature = models.get(spec.model).miniature
    pieces = [_words(spec.request_seed(f"prefix/{owner}", 0), most, miniature)[:count]
              for owner, most, count in _sharing(spec, problem.id, repeat)]
    beginning = "".join(pieces) if miniature else " ".join(word for piece in pieces for word in piece)
    return replace(problem, prompt=f"{beginning}\n{problem.prompt}")


def _sharing(spec: RunSpec, problem_id: str, repeat: int) -> list[tuple[str, int, int]]:
    """(whose words, how many there are, how many are used) of a request's prefix, in order."""
    tokens, own = spec.prefix.tokens, f"{problem_id}/{repeat}"
    template = min(TEMPLATE_TOKENS, tokens)
    return {"unique": [(own, tokens, tokens)],
            "template": [("", template, template), (own, tokens, tokens - template)],
            "few_shot": [("", tokens, tokens)],
            "samples": [(problem_id, tokens, tokens)],
            "multi_turn": [(problem_id, tokens, tokens * (repeat + 1) // spec.repeats)]}[spec.prefix.kind]


def _words(seed: int, tokens: int, miniature: bool) -> str | list[str]:
    """`tokens` tokens of words: characters for the miniature, whose tokens they are, else words of one token each."""
    words = np.random.default_rng(seed).choice(shapes.WORDS, tokens).tolist()
    return (" ".join(words) + " ")[:tokens] if miniature else words


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


def record_lengths(requests: pd.DataFrame, folder: Path | None = None) -> list[Path]:
    """Write the output lengths of finished runs as data/lengths/<model>-<task>.csv, to be replayed; the files.

    requests: one run per model and task, of `Study.requests()`; nothing may have failed. Problems keep their order.
    """
    if requests.error.notna().any():
        raise AsuError(f"{requests.error.notna().sum()} requests failed: their lengths are not the model's",
                       "record runs in which every request finished")
    written = []
    for (model, task), part in requests.groupby(["model", "task"], sort=False):
        if part.run.nunique() > 1:
            raise AsuError(f"{part.run.nunique()} runs of {model} on {task}", "record one run of each: study.where(…)")
        written.append((folder or paths.LENGTHS) / f"{model}-{task}.csv")
        part[RECORDED].to_csv(written[-1], index=False)
    return written


def draw_lengths(folder: Path | None = None, seed: int = 0) -> list[Path]:
    """Write lengths of LAWS, drawn and not recorded, as data/lengths/<model>-<task>.csv; the files.

    The n problems take the n middle quantiles of a lognormal law, in an order drawn with `seed`, so that a few problems
    already have its mean and spread.
    """
    written = []
    for name, (mean, spread, most, share, prompt, count) in LAWS.items():
        quantiles = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]
        output = np.exp(np.log(mean) - spread**2 / 2 + spread * np.random.default_rng(seed).permutation(quantiles))
        output = np.minimum(output.round(), most).astype(int)
        frame = pd.DataFrame({"problem_id": [f"drawn-{i:02d}" for i in range(count)], "repeat": 0,
                              "output_tokens": output, "thinking_tokens": (output * share).round().astype(int),
                              "prompt_tokens": prompt, "level": None, "difficulty": None}, columns=RECORDED)
        written.append((folder or paths.LENGTHS) / f"{name}.csv")
        frame.to_csv(written[-1], index=False)
    return written


def _max_tokens(spec: RunSpec, lengths: dict | None, problem_id: str, repeat: int) -> int:
    if lengths is None or spec.prefix is not None:
        return spec.sampling.budget
    if (problem_id, repeat) not in lengths:
        raise AsuError(f"lengths {spec.lengths} have no row for problem {problem_id}, repeat {repeat}",
                       "lower `problems` or `repeats` to what was recorded, or record more")
    return max(1, min(int(lengths[problem_id, repeat]["output_tokens"]), spec.sampling.budget))


def _thinking_tokens(spec: RunSpec, lengths: dict | None, problem_id: str, repeat: int) -> int | None:
    """How many of a replayed request's tokens count as thinking, by the recording; None: as the model's stream says.

    A row without a number was cut off at the recording's own limit with no end of thinking in sight: all of it.
    """
    if lengths is None or spec.prefix is not None or not spec.options.random_weights:
        return None
    row = lengths[problem_id, repeat]
    return int(row["thinking_tokens"] or row["output_tokens"]) if "thinking_tokens" in row else None


def _generated_problems(spec: RunSpec, lengths: dict) -> list[tasks.Problem]:
    """Prompts without meaning of the recorded length in tokens, each different from its first words on."""
    ids = list(dict.fromkeys(problem_id for problem_id, _ in lengths))[: spec.problems]
    found, miniature = [], models.get(spec.model).miniature
    for problem_id in ids:
        row = lengths[next(key for key in lengths if key[0] == problem_id)]
        words = _words(spec.request_seed(problem_id, 0), int(row.get("prompt_tokens") or 200), miniature)
        found.append(tasks.Problem(
            id=problem_id, prompt=words if miniature else " ".join(words), expected="",
            level=int(row.get("level") or 0), difficulty=float(row.get("difficulty") or "nan"), task=spec.task))
    return found
