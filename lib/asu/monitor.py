"""Engine gauges, host load and GPU counters over time, on the client's clock; knows nothing of requests."""

import http.client
import threading
from collections.abc import Callable
from time import monotonic

import pandas as pd
import psutil
import pynvml

from asu.client import NAN, Clock
from asu.columns import ENGINE_GAUGES, HOST_GAUGES, SPECULATION
from asu.engines.base import visible_gpus
from asu.errors import AsuError

MEMBERS_EVERY = 10  # samples between two looks at which processes belong to the engine: that reads all of /proc
PATIENCE_S = 1.0  # how long an exit waits for a poll under way


class Monitor:
    """Samples a server every `interval_s` [s] between entry and exit, in threads with connections of their own.

    `server` has pid, metrics() -> Prometheus text, and engine.gauges(text) -> neutral names. A poll that fails is a row
    of NaN and counts in `failed_polls`; the engine's and the host's samples do not wait for each other. gpus: how many
    of the visible GPUs, the first ones, the server has; None: all.
    """

    def __init__(self, server, clock: Clock, interval_s: float = 0.2, gpus: int | None = None):
        self.server, self.clock, self.interval_s = server, clock, interval_s
        self.failed_polls = 0
        self._engine_rows: list[dict] = []
        self._host_rows: list[dict] = []
        self._host = Host(server.pid, gpus)
        self._writing = threading.Lock()  # rows stay in the order of their times, whichever thread brings them
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Monitor":
        for name, sample, rows in (("engine", self._poll, self._engine_rows),
                                   ("host", self._host.sample, self._host_rows)):
            thread = threading.Thread(target=self._repeat, args=(sample, rows), name=f"asu-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        until = monotonic() + PATIENCE_S
        for thread in self._threads:
            thread.join(max(until - monotonic(), 0))  # a hung engine may hold its poll; the thread dies with us

    def engine_frame(self, since: int = 0) -> pd.DataFrame:
        """Gauges from sample `since` on: t_s, kv_use [0..1], running, waiting, cumulative counters; missing is NaN."""
        rows = self._engine_rows[since:]
        spoken = [name for name in SPECULATION if any(name in row for row in rows)]
        return pd.DataFrame(rows, columns=["t_s", *ENGINE_GAUGES, *spoken], dtype=float)

    def read_engine(self, t_s: float | None = None) -> None:
        """One sample of the engine now, beside those at intervals; t_s: what time to give it, None: when it came."""
        row = self._poll()
        with self._writing:
            self._engine_rows.append({"t_s": self.clock.now() if t_s is None else t_s} | row)

    def host_frame(self, since: int = 0) -> pd.DataFrame:
        """Host samples from `since` on: the engine's processes' share of all cores and memory, its GPUs' counters."""
        return pd.DataFrame(self._host_rows[since:], columns=["t_s", *HOST_GAUGES], dtype=float)

    def _repeat(self, sample: Callable[[], dict], rows: list[dict]) -> None:
        due = monotonic()
        while not self._stop.is_set():
            row = sample()
            with self._writing:
                if not self._stop.is_set():
                    rows.append({"t_s": self.clock.now()} | row)
            # Late samples are skipped, not caught up on: two in a row would say the same.
            due = max(due + self.interval_s, monotonic())
            self._stop.wait(due - monotonic())

    def _poll(self) -> dict:
        try:
            return self.server.engine.gauges(self.server.metrics())
        except (OSError, http.client.HTTPException, ValueError, AsuError):
            self.failed_polls += 1
            return {}


class Host:
    """CPU and memory of a process and all its descendants, and the counters of the first `gpus` that they can see."""

    def __init__(self, pid: int, gpus: int | None = None):
        self.pid = pid
        self.cores = psutil.cpu_count() or 1
        self.members: dict[int, psutil.Process] = {}
        self.used: dict[int, float] = {}  # CPU seconds of each member at the last sample
        self.at = NAN
        self.samples = 0
        self.gpus = visible_gpus()[:gpus]

    def sample(self) -> dict:
        """One row without its time; cpu_share is the share of all cores since the last sample, first NaN."""
        if self.samples % MEMBERS_EVERY == 0:
            self._find_members()
        self.samples += 1
        used, memory, now = {}, 0, monotonic()
        for pid, process in self.members.items():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    used[pid] = times.user + times.system
                    memory += process.memory_info().rss
            except psutil.Error:
                continue  # it ended since
        both = used.keys() & self.used.keys()
        share = sum(used[pid] - self.used[pid] for pid in both) / (now - self.at) / self.cores if both else NAN
        self.used, self.at = used, now
        return {"cpu_share": share, "rss_bytes": memory if used else NAN} | gpu_row(self.gpus)

    def _find_members(self) -> None:
        try:
            root = psutil.Process(self.pid)
            found = [root, *root.children(recursive=True)]
        except psutil.Error:
            found = []
        self.members = {process.pid: self.members.get(process.pid, process) for process in found}


def gpu_row(handles: list) -> dict:
    """Mean utilisation [0..1] and summed memory [B], power [W] and energy since the driver started [J]; else NaN."""
    readings = {
        "gpu_util": lambda h: pynvml.nvmlDeviceGetUtilizationRates(h).gpu / 100 / len(handles),
        "gpu_memory_bytes": lambda h: pynvml.nvmlDeviceGetMemoryInfo(h).used,
        "gpu_power_w": lambda h: pynvml.nvmlDeviceGetPowerUsage(h) / 1e3,
        "gpu_energy_j": lambda h: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3,
    }
    row = dict.fromkeys(readings, NAN)
    for name, read in readings.items():
        try:
            if handles:
                row[name] = sum(read(handle) for handle in handles)
        except pynvml.NVMLError:
            continue  # cards before Volta have no energy counter
    return row
