"""What a number and a claim are, the registry of numbers, and their measurement.

Statements are paraphrases of the paper's. A claim is decided by a comparison made inside the measurement, against a
threshold set beforehand, never by closeness to the paper's absolute numbers. Every number a claim needs is defined
once, in this package's module of its notebook, by the function that makes it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps

import numpy as np
import pandas as pd

from asu import stats
from asu.errors import AsuError
from asu.stats import Estimate

NOTEBOOKS = {
    "01": "01_kv_cache_usage",
    "02": "02_stragglers",
    "03": "03_adaptive_running_time",
    "04": "04_domain_preference",
    "05": "05_token_budget_and_batch_size",
    "06": "06_weight_quantisation",
    "07": "07_kv_cache_quantisation",
    "08": "08_prefix_caching",
    "09": "09_speculative_decoding",
    "10": "10_real_world_workload",
    "11": "11_engine_against_engine",
    "12": "12_replay_error",
    "13": "13_test_time_scaling",
    "14": "14_measuring_honestly",
}

# thresholds: what counts as more than a little, chosen before measuring and the same for all claims of a kind
MATERIAL_RATIO = 1.5  # half as much again
MATERIAL_CORRELATION = 0.3  # Cohen's "medium"
MATERIAL_POINTS = 0.10  # accuracy
SMALL_POINTS = 0.03  # accuracy: the tolerance within which the paper calls it held

SILENT = "direction only, no number"  # what stands for the paper's number where it gives none


@dataclass(frozen=True)
class Number:
    """A number that a notebook records: what it means, which frames it is made from, and the function that makes it."""

    name: str
    meaning: str
    unit: str
    frames: tuple[str, ...]
    per_task: bool  # also recorded per task, as <name>_<task>
    whole: bool  # per task it takes the whole frames and `task`: the others' runs made again widen its interval too
    of: Callable[..., Estimate]


NUMBERS: dict[str, Number] = {}


def number(name: str, unit: str, *frames: str, per_task: bool = False, whole: bool = False):
    """Enter the decorated function of `frames` in NUMBERS; its docstring's first line is the meaning."""

    def enter(of: Callable[..., Estimate]) -> Callable[..., Estimate]:
        @wraps(of)
        def with_unit(*args, **options) -> Estimate:
            return replace(of(*args, **options), unit=unit)

        NUMBERS[name] = Number(name, of.__doc__.splitlines()[0], unit, frames, per_task, whole, with_unit)
        return with_unit

    return enter


def measure(notebook: str, *, n_boot: int = stats.DRAWS, **frames: pd.DataFrame) -> dict[str, Estimate]:
    """All recorded numbers of a notebook ("01" …) from its frames, ready to record and for `decide`.

    The frames are those that its numbers name; per-task numbers carry the task's name after an underscore.
    """
    wanted = [n for n in NUMBERS.values() if n.name.startswith(f"{notebook}.")]
    needed = {f for n in wanted for f in n.frames}
    if not wanted or needed != set(frames):
        raise AsuError(f"notebook {notebook!r} measures from the frames {sorted(needed)}, not {sorted(frames)}",
                       f"pass the frames named; notebooks: {', '.join(NOTEBOOKS)}")
    by_task = {name: dict(iter(frame.groupby("task", sort=False))) for name, frame in frames.items()
               if any(n.per_task and name in n.frames for n in wanted)}
    numbers = {}
    for n in wanted:
        numbers[n.name] = n.of(*(frames[f] for f in n.frames), n_boot=n_boot)
        for task in by_task[n.frames[0]] if n.per_task else ():
            numbers[f"{n.name}_{task}"] = (
                n.of(*(frames[f] for f in n.frames), task=task, n_boot=n_boot) if n.whole
                else n.of(*(by_task[f][task] for f in n.frames), n_boot=n_boot))
    return numbers


@dataclass(frozen=True)
class Range:
    """Where a number must lie for a claim to hold: lo < number < hi; two bounds are ±x, or 1/x and x."""

    lo: float = -np.inf
    hi: float = np.inf

    def __str__(self) -> str:
        if np.isinf(self.hi):
            return f"above {self.lo:.3g}"
        return f"below {self.hi:.3g}" if np.isinf(self.lo) else f"between {self.lo:.3g} and {self.hi:.3g}"

    @property
    def threshold(self) -> float:
        """The bound that decides; the upper one of two."""
        return self.lo if np.isinf(self.hi) else self.hi

    @property
    def direction(self) -> str:
        """Where the claim holds: ">" or "<" the threshold, or "within" ± (of a ratio: × or ÷) the threshold."""
        return ">" if np.isinf(self.hi) else ("<" if np.isinf(self.lo) else "within")

    def verdict(self, measured: Estimate) -> tuple[str, str]:
        """(verdict, reason): supported or not only where the whole interval says so."""
        if not measured.known:
            return "undecided", "the number could not be measured from these runs"
        if not measured.has_interval:
            return "undecided", f"{measured} has no interval: too little to resample"
        above = measured.lo > self.lo or np.isneginf(self.lo)
        below = measured.hi < self.hi or np.isposinf(self.hi)
        if above and below:
            return "supported", f"the whole interval lies {self}"
        if measured.hi <= self.lo or measured.lo >= self.hi:
            return "not supported", f"no part of the interval lies {self}"
        return "undecided", f"only a part of the interval lies {self}"


@dataclass(frozen=True)
class Claim:
    """One claim: `number` decides it by lying in `holds`; `compared` (or `number`) is set beside `paper_value`."""

    id: str
    statement: str
    number: str
    holds: Range
    paper: str  # the paper's numbers, for the table, with where they were read
    paper_value: float = np.nan
    compared: str | None = None

    @property
    def is_ratio(self) -> bool:
        """Whether what is set beside the paper's number is a ratio; all else differs by so much, not so many times."""
        return NUMBERS[self.compared or self.number].unit == "×"

    @property
    def notebook(self) -> str:
        return NOTEBOOKS[self.number.split(".")[0]]
