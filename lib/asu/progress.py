"""How far a study is and how long it still takes: one updating line in a terminal, else plain ones."""

import sys
import threading
import time

LINE_EVERY_S = {"terminal": 0.2, "log": 15.0}


def clock_text(seconds: float) -> str:
    """Seconds as people read them: 45 s, 6 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Silent:
    """Progress nobody watches; also the interface: what a study and its runs report."""

    def study_started(self, runs: list[float], servers: list[float]) -> None:
        """These runs are to be made, in this order, on so many servers: estimated durations and start times [s]."""

    def server_starting(self, name: str) -> None:
        """A server is being started."""

    def run_started(self, name: str, requests: int, done: int) -> None:
        """A run begins with `done` of its requests finished earlier."""

    def request_finished(self, tokens: int) -> None:
        """One more request is finished, with so many output tokens."""

    def run_finished(self) -> None:
        """The run is complete."""

    def study_finished(self) -> None:
        """Nothing is left to do."""


class Progress(Silent):
    """Prints `run 3/12 … 41/100 requests, 2,310 tok/s, 6 min left`; safe to call from the thread that serves."""

    def __init__(self, stream=None):
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._every = LINE_EVERY_S["terminal" if self._terminal else "log"]
        self._lock = threading.Lock()
        self._estimates: list[float] = []
        self._starts: list[float] = []
        self._run = self._requests = self._done = self._new = self._tokens = 0
        self._name, self._begin, self._printed = "", time.monotonic(), 0.0
        self._spent_s = self._foreseen_s = 0.0  # of the runs finished here: what they took, and what was estimated

    def study_started(self, runs: list[float], servers: list[float]) -> None:
        self._run, self._estimates, self._starts = 0, list(runs), list(servers)
        self._spent_s = self._foreseen_s = 0.0
        self._say(f"{len(runs)} runs to make on {len(servers)} servers, about {clock_text(sum(runs) + sum(servers))}")

    def server_starting(self, name: str) -> None:
        self._say(f"run {self._run + 1}/{len(self._estimates)}  starting {name}")
        self._starts = self._starts[1:]

    def run_started(self, name: str, requests: int, done: int) -> None:
        with self._lock:
            self._run += 1
            self._name, self._requests, self._done, self._new, self._tokens = name, requests, done, 0, 0
            self._begin = time.monotonic()
        self._say(self.text())

    def request_finished(self, tokens: int) -> None:
        with self._lock:
            self._done += 1
            self._new += 1
            self._tokens += tokens
            if time.monotonic() - self._printed >= self._every:
                self._print(self.text())

    def run_finished(self) -> None:
        with self._lock:
            # Later estimates are corrected by how far the finished ones were off, all together: runs differ.
            if self._new and self._run <= len(self._estimates):
                self._spent_s += time.monotonic() - self._begin
                self._foreseen_s += self._estimates[self._run - 1] * self._new / self._requests
        self._say(self.text())

    def study_finished(self) -> None:
        self._say(f"{len(self._estimates)} runs made")
        if self._terminal:
            self._stream.write("\n")

    def left_s(self) -> float:
        """Time left [s]: this run's from its own rate once known, the later ones' from their corrected estimates."""
        off = self._spent_s / self._foreseen_s if self._foreseen_s else 1.0
        later = sum(self._estimates[self._run:]) * off + sum(self._starts)
        current = self._estimates[self._run - 1] if 0 < self._run <= len(self._estimates) else 0.0
        if self._new:
            rate = self._new / max(1e-9, time.monotonic() - self._begin)
            return (self._requests - self._done) / rate + later
        return current * (1 - self._done / max(1, self._requests)) + later

    def text(self) -> str:
        """The state in one line."""
        rate = self._tokens / max(1e-9, time.monotonic() - self._begin)
        return (f"run {self._run}/{max(self._run, len(self._estimates))}  {self._name}  "
                f"{self._done}/{self._requests} requests, {rate:,.0f} tok/s, {clock_text(self.left_s())} left")

    def _say(self, text: str) -> None:
        with self._lock:
            self._print(text)

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        self._stream.write(f"\r\x1b[2K{text}" if self._terminal else f"{text}\n")
        self._stream.flush()
