"""When requests are due, and the dispatcher that sends them then; knows nothing of HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from asu import paths
from asu.errors import AsuError
from asu.specs import Batch, Closed, Gamma, Load, Trace

SPIN_S = 0.001  # asyncio's timers are whole milliseconds: the last one before a due time is waited out turn by turn
CONSTANT_CV = 1e-6  # gaps that vary less are constant: their shape 1/cv² would leave the range of floats

Send = Callable[[int, float, int], Awaitable[None]]


class Clock(Protocol):
    """Seconds since the run's start."""

    def now(self) -> float: ...


def due_times(load: Load, n: int, seed: int) -> np.ndarray | None:
    """Absolute due times [s] of an open loop, ascending, shape (n,); None for batch and closed, which follow replies.

    The realised rate is what the draw gives, never rescaled to the nominal one.
    """
    match load:
        case Gamma(rate=rate, cv=cv) if cv < CONSTANT_CV:
            return np.arange(1, n + 1) / rate
        case Gamma(rate=rate, cv=cv):
            gaps = np.random.default_rng(seed).gamma(shape=cv**-2, scale=cv**2 / rate, size=n)
            return np.cumsum(gaps)
        case Trace():
            return trace_times(load, n)
    return None


def trace_path(name: str) -> Path:
    """File of a recorded trace, or an error that lists those there are."""
    names = sorted(file.stem for file in paths.TRACES.glob("*.csv"))
    if name not in names:
        raise AsuError(f"unknown trace {name!r}",
                       f"use one of: {', '.join(names) or 'none yet'}; or add data/traces/{name}.csv")
    return paths.TRACES / f"{name}.csv"


def trace_times(load: Trace, n: int) -> np.ndarray:
    """The first `n` recorded arrivals of a trace divided by its speed [s], shape (n,)."""
    path = trace_path(load.name)
    where, form = f"data/traces/{load.name}.csv", "record ascending arrival times in seconds from 0 in a column t_s"
    try:
        frame = pd.read_csv(path, comment="#")
        times = frame["t_s"].to_numpy(float)
    except (KeyError, ValueError) as error:  # ValueError: no numbers, or no rows at all
        raise AsuError(f"{where}: no readable column t_s ({error})", form) from None
    wrong = ("a time is missing" if not np.isfinite(times).all() else "a time is negative" if (times < 0).any()
             else "the times are not ascending" if (np.diff(times) < 0).any() else None)
    if wrong:
        raise AsuError(f"{where}: {wrong}", form)
    if len(times) < n:
        raise AsuError(f"{where} holds {len(times)} arrivals, the run has {n} requests",
                       "use a longer trace, or fewer problems or repeats")
    return times[:n] / load.speed


async def dispatch(load: Load, n: int, seed: int, send: Send, clock: Clock) -> None:
    """Await `send(i, due_s, batch)` for i in 0…n−1 when each is due; a first exception cancels the rest and is raised.

    batch: all of a batch are due when the last reply of the batch before has ended (batch = its index, else −1).
    closed: a request is due when its slot becomes free.
    """
    try:
        match load:
            case Batch(size=size):
                for batch, start in enumerate(range(0, n, size)):
                    due = clock.now()
                    async with asyncio.TaskGroup() as group:
                        for i in range(start, min(start + size, n)):
                            group.create_task(send(i, due, batch))
            case Closed(concurrency=concurrency):
                waiting = iter(range(n))
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, n)):
                        group.create_task(_slot(waiting, send, clock))
            case _:
                async with asyncio.TaskGroup() as group:
                    for i, due in enumerate(due_times(load, n, seed).tolist()):
                        await until(due, clock)
                        group.create_task(send(i, due, -1))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _slot(waiting: Iterator[int], send: Send, clock: Clock) -> None:
    for i in waiting:
        await send(i, clock.now(), -1)


async def until(due_s: float, clock: Clock) -> None:
    """Return at `due_s`, or at once if that is past."""
    while (left := due_s - clock.now()) > 0:
        await asyncio.sleep(max(left - SPIN_S, 0))
