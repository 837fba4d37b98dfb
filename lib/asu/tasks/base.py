"""What a task is, and how its problems come from a local file or from the hub."""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from asu import paths
from asu.errors import AsuError
from asu.tasks.grading import Grade, choice

NO_LEVEL = 1  # the level of every problem of a set without levels
NO_DIFFICULTY = float("nan")
MATHEMATICS_TEMPLATE = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
CHOICE_TEMPLATE = ('{question}\n\n{options}\n\nPlease reason step by step, and end with a line "Answer: X", '
                   "where X is the letter of the one correct option.")


@dataclass(frozen=True)
class Problem:
    """One question as it is sent. `difficulty` is the task's own measure (NaN: it has none); see each task's file."""

    id: str
    prompt: str
    expected: str
    level: int
    difficulty: float
    task: str


@dataclass(frozen=True)
class Local:
    """A problem set shipped in data/problems: one JSON object a line."""

    name: str
    columns: tuple[str, ...]

    @property
    def path(self) -> Path:
        return paths.PROBLEMS / f"{self.name}.jsonl"

    def rows(self) -> list[dict]:
        """All rows; AsuError when the file is missing, empty or not JSON lines."""
        restore = f"restore it with `git checkout -- {self.path.relative_to(paths.PROBLEMS.parents[1])}`"
        if not self.path.is_file():
            raise AsuError(f"{self.name}: there is no problem set at {self.path}", restore)
        state = self.path.stat()
        if state.st_size == 0:
            raise AsuError(f"{self.name}: the problem set {self.path} is empty", restore)
        return _local_rows(self.path, state.st_mtime_ns, state.st_size, restore)


@dataclass(frozen=True)
class Hub:
    """A problem set on the hub, at one revision (a commit, so that nobody's later edit changes a run)."""

    id: str
    config: str | None
    split: str
    revision: str
    columns: tuple[str, ...]
    gated: bool = False

    def rows(self) -> list[dict]:
        """All rows; AsuError when the hub is out of reach, refuses, or no longer has this revision."""
        return _hub_rows(self)

    @property
    def fetch(self) -> str:
        """The command that puts the set into the hub cache."""
        call = f"load_dataset({self.id!r}, {self.config!r}, split={self.split!r}, revision={self.revision!r})"
        return f'python -c "from datasets import load_dataset; {call}"'


@dataclass(frozen=True)
class Task:
    """A problem set, its prompt and its grader.

    `read(row, template, index)` gives id, prompt, expected, level, difficulty; `judge(problem, text)` the grade.
    Raise `version` whenever `template`, `read` or `judge` changes: runs keep their verdicts, and a new version is a
    new digest.
    """

    name: str
    title: str  # as printed
    stands_for: str  # the paper's set that it is compared with
    kind: str  # "mathematics" or "knowledge"
    source: Local | Hub
    template: str
    version: int
    read: Callable[[dict, str, int], dict]
    judge: Callable[[Problem, str], Grade]

    def problems(self, limit: int | None = None) -> list[Problem]:
        """The first `limit` problems (None: all); AsuError when they cannot be had, or there are fewer."""
        rows = self.source.rows()
        if not rows:
            raise AsuError(f"{self.name}: the problem set is empty", "choose another task, or restore its problems")
        if limit is not None and not 0 < limit <= len(rows):
            raise AsuError(f"{self.name}: {limit} problems asked for, but the set has {len(rows)}",
                           f"ask for 1 to {len(rows)} problems, or leave `problems` out to take all")
        problems = [self._problem(row, index) for index, row in enumerate(rows[:limit])]
        if len({problem.id for problem in problems}) < len(problems):
            raise AsuError(f"{self.name}: two problems share one id", "give each problem of the set its own id")
        return problems

    def grade(self, problem: Problem, answer_text: str) -> Grade:
        """The verdict on the visible text of an answer; thinking text is not graded."""
        return self.judge(problem, answer_text)

    def digest(self, limit: int | None = None) -> str:
        """SHA-256 over the template's version and over ids, prompts and expected answers, in order."""
        parts = [[problem.id, problem.prompt, problem.expected] for problem in self.problems(limit)]
        return hashlib.sha256(json.dumps([self.version, parts], ensure_ascii=False).encode()).hexdigest()

    def _problem(self, row: dict, index: int) -> Problem:
        missing = [column for column in self.source.columns if row.get(column) is None]
        if missing:
            raise AsuError(f"{self.name}: row {index + 1} has no {', '.join(missing)}",
                           f"the set needs the columns {', '.join(self.source.columns)}, filled in every row")
        try:
            problem = Problem(task=self.name, **self.read(row, self.template, index))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise AsuError(f"{self.name}: row {index + 1} cannot be read: {error}",
                           f"lib/asu/tasks shows what each column of {self.name} must hold") from error
        if not problem.prompt.strip() or not problem.expected:
            raise AsuError(f"{self.name}: row {index + 1} has an empty prompt or answer",
                           "fill it in or remove the row; engines may die of an empty prompt")
        return problem


def options(prompt: str) -> dict[str, str]:
    """Letter → text of the options "A) … B) …" that end a prompt, up to an empty line; {} where there are none."""
    body = prompt[max(prompt.rfind("A) "), 0):].split("\n\n")[0]
    parts = re.split(r"(?:^|\s)([A-H])\)\s", "\n" + body)
    found = dict(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))
    return found if "".join(found) == "ABCDEFGH"[:len(found)] else {}


def lettered(texts: list[str]) -> str:
    """Options as lines "A) …", in the given order."""
    return "\n".join(f"{letter}) {text}" for letter, text in zip("ABCDEFGH", texts, strict=False))


def judge_choice(problem: Problem, text: str) -> Grade:
    """Grade by letter, or by the words of an option."""
    return choice(problem.expected, text, options(problem.prompt))


@lru_cache(maxsize=16)
def _local_rows(path: Path, _mtime_ns: int, _size: int, restore: str) -> list[dict]:
    # datasets takes seconds to import, and a plan or a help page needs none of it.
    from datasets import disable_progress_bars, enable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it logs of a bad file is in the error
    try:
        return load_dataset("json", data_files=str(path), split="train").to_list()
    except (DatasetsError, ValueError) as error:
        reason = error.__cause__ or error
        raise AsuError(f"the problem set {path} cannot be read as JSON lines: {reason}", restore) from error
    except OSError as error:
        raise AsuError(f"the problem set {path} cannot be loaded: {error}",
                       "make room in, or write access to, the cache of the datasets library (HF_HOME)") from error
    finally:
        enable_progress_bars()


@lru_cache(maxsize=16)
def _hub_rows(source: Hub) -> list[dict]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    access = (f"accept its terms on the hub's page of {source.id}, then `hf auth login` or set HF_TOKEN"
              if source.gated else "check the id and the revision in lib/asu/tasks")
    try:
        return load_dataset(source.id, source.config, split=source.split, revision=source.revision).to_list()
    except DatasetNotFoundError as error:
        kind = "is gated and was refused to this machine's token" if source.gated else "was not found on the hub"
        raise AsuError(f"the data set {source.id} {kind}: {error}", access) from error
    except (DatasetsError, OSError, ValueError) as error:
        first = f"first {access}; " if source.gated else ""
        raise AsuError(
            f"the data set {source.id} is not in the cache and the hub cannot be reached: {error}",
            f"{first}where there is internet, run: {source.fetch} ; copy its hub cache (HF_HOME, by default "
            "~/.cache/huggingface) to this machine and set HF_HUB_OFFLINE=1") from error
