"""The miniature's model card, its accuracy measured through the served engine (`python -m asu.mini.card`).

`--check` compares the same runs with what the weights must show, band by band. Numbers come from runs alone; a
missing one is an error that names the command.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from asu import paths, quantise, stats, tasks
from asu.errors import AsuError
from asu.metrics import derive
from asu.mini import problems, train
from asu.study import Study

MODELS = tuple(train.RECIPES)
TASKS = tuple(problems.FAMILIES)
PROBLEMS = {"mini-easy": 100, "mini-medium": 100, "mini-hard": 60, "mini-facts": 100}
BUDGET = 2048
LARGE, LARGE_PLAIN, SMALL, SMALL_PLAIN = "mini-4m-think", "mini-4m-direct", "mini-1m-think", "mini-1m-direct"

WHAT = {
    "mini-easy": "worded sums; difficulty is the number of arithmetic operations",
    "mini-medium": "nested sums, differences and products; difficulty is the number of operations",
    "mini-hard": "least x with a·x mod m = b by trial; difficulty is the number of trials, which is the answer",
    "mini-facts": "four-way questions on invented countries; difficulty is log2 of how rarely training states the fact",
}


def study() -> Study:
    """The runs the card reads: both pairs on all four sets, with room in the KV pool for every request."""
    return Study(models=list(MODELS), tasks=list(TASKS), loads={"kind": "closed", "concurrency": 32}, budgets=BUDGET,
                 temperature=0.6, kv_pool_tokens=131072, context=4096, max_requests=64, problems=PROBLEMS, seed=0)


# What was measured ----------------------------------------------------------------------------------------------------

def accuracy(requests: pd.DataFrame, by: Iterable[str] = ("model", "task")) -> pd.DataFrame:
    """One row per group: value, lo, hi (Wilson, 95 %), n. Failed requests have no verdict and do not count."""
    graded = derive(requests).dropna(subset="hit")
    return stats.by_group(graded, list(by), lambda part: stats.wilson(part.hit.sum(), len(part)))


def lengths(requests: pd.DataFrame) -> pd.DataFrame:
    """One row per model and task: percentiles of output tokens, median thinking tokens, share cut off, failed."""
    def of(part: pd.DataFrame) -> pd.Series:
        well = part[part.error.isna()]
        return pd.Series({
            **{f"p{q}": _percentile(well.output_tokens, q) for q in (50, 90, 99)},
            "thinking_p50": _percentile(well.thinking_tokens, 50), "cut_off": (well.outcome == "cut off").mean(),
            "failed": len(part) - len(well)})

    return pd.DataFrame([{"model": model, "task": task, **of(part)}
                         for (model, task), part in requests.groupby(["model", "task"], sort=False)])


def _percentile(tokens: pd.Series, q: float) -> float:
    """A length that occurred, so that half of the thinking is never longer than half of the output."""
    return float(np.percentile(tokens, q, method="inverted_cdf"))


# What the weights must show -------------------------------------------------------------------------------------------

def bands(requests: pd.DataFrame) -> pd.DataFrame:
    """One row per demand: what, measured, wanted (lo ≤ measured ≤ hi), passed."""
    right = accuracy(requests).set_index(["model", "task"])["value"].unstack()
    thinking = lengths(requests).set_index(["model", "task"]).thinking_p50
    tokens = requests[(requests.model == LARGE) & requests.error.isna()].output_tokens
    lead = right.loc[LARGE] - right.loc[LARGE_PLAIN]
    mean = right[list(TASKS)].mean(axis=1)
    inf = float("inf")
    rows = [
        ("accuracy of the thinking 4M on easy", right.loc[LARGE, "mini-easy"], 0.85, 0.97),
        ("accuracy of the thinking 4M on medium", right.loc[LARGE, "mini-medium"], 0.60, 0.90),
        ("accuracy of the thinking 4M on hard", right.loc[LARGE, "mini-hard"], 0.25, 0.70),
        ("lead of the thinking 4M on medium or hard, the larger", lead[["mini-medium", "mini-hard"]].max(), 0.30, 1.0),
        ("lead of the thinking 4M on facts, without its sign", abs(lead["mini-facts"]), 0.0, 0.08),
        ("median thinking tokens of the 4M, hard / easy",
         thinking[LARGE, "mini-hard"] / thinking[LARGE, "mini-easy"], 8.0, inf),
        ("output tokens of the thinking 4M over all sets, p99 / p50",
         _percentile(tokens, 99) / _percentile(tokens, 50), 3.0, inf),
        ("answers of the thinking 4M cut off by the budget",
         float((requests[requests.model == LARGE].outcome == "cut off").sum()), 1.0, inf),
        ("answers of all four that could not be graded, share",
         float((requests.outcome == "unparsed").mean()), 0.0, 0.05),
        ("mean accuracy over the sets, thinking 4M − 1M", mean[LARGE] - mean[SMALL], np.nextafter(0, 1), 1.0),
        ("mean accuracy over the sets, direct 4M − 1M", mean[LARGE_PLAIN] - mean[SMALL_PLAIN], np.nextafter(0, 1), 1.0),
    ]
    frame = pd.DataFrame(rows, columns=["what", "measured", "lo", "hi"])
    return frame.assign(passed=frame.measured.between(frame.lo, frame.hi))


def verdicts(frame: pd.DataFrame) -> str:
    """The bands as lines for a terminal."""
    def wanted(row) -> str:
        if np.isinf(row.hi):
            return f"≥ {row.lo:g}"
        return "> 0" if 0 < row.lo < 1e-9 else f"{row.lo:g} to {row.hi:g}"

    width = frame.what.str.len().max()
    return "\n".join(f"{'pass' if row.passed else 'FAIL'}  {row.what:<{width}}  {row.measured:8.3g}  "
                     f"wanted {wanted(row)}" for row in frame.itertuples())


# The card -------------------------------------------------------------------------------------------------------------

def records(folder: Path = paths.MODELS) -> dict[str, dict]:
    """training.json of each model, with the bytes of its weights; AsuError where one is missing."""
    found = {}
    for name in MODELS:
        try:
            found[name] = json.loads((folder / name / "training.json").read_text())
            found[name]["bytes"] = (folder / name / "model.safetensors").stat().st_size
        except OSError as error:
            raise AsuError(f"{error.filename} is missing", "git checkout data/models, or make miniature") from None
    return found


def card(requests: pd.DataFrame, provenance: pd.DataFrame, trained: dict[str, dict]) -> str:
    """The model card as Markdown."""
    engines, machines = ("; ".join(provenance[column].unique()) for column in ("engine", "machine"))
    asked = requests.groupby("task", sort=False).problem_id.nunique()
    return f"""# The miniature

Two pairs of small Qwen3-architecture models trained for this study. Of each pair one thinks (`<think>…</think>`, then
the answer) and its twin answers at once. They show the mechanisms of reasoning models in a serving engine in minutes on
a laptop; they know nothing but the four families of problems below, and are no stand-in for the paper's models.
This page is written by `python -m asu.mini.card` from the runs themselves.

## Data

Problems and their worked solutions are generated from a seed (lib/asu/mini/problems.py). No published problem occurs
in training text. Both twins of a size learn the same kinds of problem and the same sentences stating the facts; the
direct twin sees answers without the work.

The levels were chosen after training: accuracy was measured on more grades of difficulty than are published, and each
set took five of them so that the 4M thinking twin neither fails nor saturates. Its accuracies describe sets picked so.

{_data()}

Documents in the training text by family:

{_documents(trained)}

## Training

AdamW with a cosine schedule, weights in bfloat16, characters as tokens, context 4,096; one GPU trains all four side
by side (`make miniature`). Seed {", ".join(sorted({str(record["seed"]) for record in trained.values()}))}.

{_training(trained)}

## Measured accuracy

Through {engines} on {machines}, temperature 0.6, top-p 0.95, budget {BUDGET:,} tokens, 32 requests in flight,
{", ".join(f"{n} problems of {task}" for task, n in asked.items())}. In percent, with 95 % Wilson intervals.

{_accuracy(requests, models_first=True)}

By level:

{_accuracy(requests, models_first=False)}

## Length of the answers

Percentiles of output tokens, thinking included; share of answers cut off by the budget.

{_lengths(requests)}

## Quantised checkpoints

Made of the bf16 weights above by `make quantize`; embeddings and output head stay in bf16. Recipe, versions and digests
are in each folder's quantisation.json.

{_quantised(paths.MODELS)}

## Use and limits

Load with transformers or vLLM from a model's folder. Prompts must have the form of the published problems, one question
a conversation; anything else gives noise. Answers were never checked for anything but being right. The licence is MIT,
as the repository's.
"""


def table(head: list[str], rows: Iterable[Iterable]) -> str:
    """A Markdown table, numbers right."""
    lines = [[str(cell) for cell in row] for row in rows]
    marks = ["---:" if lines and all(line[i][:1].isdigit() for line in lines) else "---" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, marks, *lines])


def _data() -> str:
    def span(family: str) -> str:
        numbers = [item.difficulty for _, item in problems.test_set(family)]
        return f"{min(numbers):g} to {max(numbers):g}"

    return table(["set", "stands for", "problems", "difficulty", "what"],
                 [(task, tasks.get(task).stands_for, len(problems.test_set(task)), span(task), WHAT[task])
                  for task in TASKS])


def _documents(trained: dict[str, dict]) -> str:
    return table(["family", *("thinking" if thinks else "direct" for thinks in (True, False))],
                 [(family, *(f"{trained[name]['documents'].get(family, 0):,}" for name in (LARGE, LARGE_PLAIN)))
                  for family in problems.MIXTURE])


def _training(trained: dict[str, dict]) -> str:
    return table(
        ["model", "parameters", "file [MB]", "layers", "hidden", "steps", "tokens [M]", "time [s]", "machine", "torch"],
        [(name, f"{record['parameters']:,}", f"{record['bytes'] / 1e6:.1f}", record["recipe"]["layers"],
          record["recipe"]["hidden"], f"{record['steps']:,}", f"{record['tokens'] / 1e6:.0f}", record["seconds"],
          record["machine"], record["torch"]) for name, record in trained.items()])


def _accuracy(requests: pd.DataFrame, *, models_first: bool) -> str:
    """Models by tasks, or models and tasks by levels."""
    def show(row) -> str:
        return f"{row.value:.0%} [{row.lo * 100:.0f}, {row.hi * 100:.0f}]".replace("%", "")

    by = ["model", "task"] if models_first else ["model", "task", "level"]
    found = {tuple(getattr(row, name) for name in by): show(row) for row in accuracy(requests, by).itertuples()}
    if models_first:
        return table(["model", *TASKS], [(name, *(found[name, task] for task in TASKS)) for name in MODELS])
    return table(["model", "set", *(f"level {level}" for level in problems.LEVELS)],
                 [(name, task, *(found[name, task, level] for level in problems.LEVELS))
                  for name in MODELS for task in TASKS])


def _lengths(requests: pd.DataFrame) -> str:
    return table(["model", "set", "p50", "p90", "p99", "thinking p50", "cut off", "failed"],
                 [(row.model, row.task, f"{row.p50:.0f}", f"{row.p90:.0f}", f"{row.p99:.0f}", f"{row.thinking_p50:.0f}",
                   f"{row.cut_off:.1%}", f"{row.failed:.0f}") for row in lengths(requests).itertuples()])


def _quantised(folder: Path) -> str:
    """The checkpoints in `folder` that a quantisation.json describes."""
    rows = []
    for record in sorted(folder.glob(f"*/{quantise.RECORD}")):
        told, weights = json.loads(record.read_text()), record.with_name("model.safetensors")
        rows.append((record.parent.name, told["scheme"], told["recipe"]["method"],
                     f"{weights.stat().st_size / 1e6:.1f}"))
    return table(["folder", "scheme", "method", "file [MB]"], rows)


def main(words: list[str] | None = None, made: Callable[[], Study] = study) -> int:
    """Write the card, or check the bands; exit code 1 if a run is missing or a band is not met."""
    parser = argparse.ArgumentParser(prog="python -m asu.mini.card", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what the weights must show; write nothing")
    options = parser.parse_args(words)
    try:
        runs = made()
        requests = runs.requests()
        if options.check:
            frame = bands(requests)
            print(verdicts(frame))
            return 0 if frame.passed.all() else 1
        target = paths.MODELS / "README.md"
        target.write_text(card(requests, runs.provenance(), records(paths.MODELS)))
    except AsuError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
