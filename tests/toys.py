"""A task, specs and servers small enough to make whole runs in a test."""

from pathlib import Path

from asu import specs, tasks
from fake_engine import FakeServer

PROBLEMS = [tasks.Problem(id=f"p{i}", prompt=f"What is {i} plus 1?", expected=str(i + 1), level=1 + i % 5,
                          difficulty=float(i), task="toy") for i in range(200)]
INPUTS = {"engine": "vllm", "engine_version": "0", "weights": "w", "problems": "p", "lengths": None,
          "machine": {"cpu": "c", "cores": 2, "gpus": []}}
THINKING, ANSWER = 4, 2  # tokens of every reply, with the end-of-think mark and the end of sequence


class ToyTask:
    """Adding one: an answer is right when it is the expected number."""

    name = title = stands_for = "toy"
    kind = "mathematics"

    def problems(self, limit):
        return PROBLEMS[:limit]

    def digest(self, limit):
        return f"toy-{limit}"

    def grade(self, problem, answer_text):
        said = answer_text.strip()
        return tasks.Grade(said == problem.expected if said else None, said or None)


def reply(prompt):
    """(thinking, answer) of the fake engine."""
    return "hm hm hm", str(int(prompt.split()[2]) + 1) if prompt.startswith("What is") else "x"


def server(log_path, **changes):
    """A fake server whose log holds its key, as a careless engine's would."""
    Path(log_path).write_text("started with --api-key secret-key\n")
    return FakeServer(log_path, script=reply, key="secret-key", **changes)


def make_spec(**changes):
    """A small run of the toy task."""
    data = {"model": "mini-4m-think", "task": "toy", "problems": 8, "sampling": {"budget": 64},
            "load": {"kind": "closed", "concurrency": 4}} | changes
    return specs.parse(data, "test")
