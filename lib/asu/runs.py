"""One spec → one complete run folder, or an error that says what to do; and back again as frames.

While a run goes on its folder holds `journal.jsonl`, a line per finished request, and `lock`.
A complete folder holds spec.json, four parquet files, env.json, server.log and, written last, DONE with their digests.

Resuming: requests in the journal are not sent again. The new session's times are moved so that they follow on from the
last recorded moment (the time nothing ran is cut out); `session` tells the parts of a run from each other, and
env.json holds each session's wall clock. In open loops the arrival pattern goes on at the first request not yet done.
"""

import asyncio
import concurrent.futures
import functools
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from asu import digests, engines, load, models, paths, quantise, shapes, tasks
from asu.client import Call, Client, Clock, engine_is_dead, quiet_collector
from asu.engines import base
from asu.errors import AsuError
from asu.journal import Journal, locked, space, write
from asu.monitor import Monitor
from asu.progress import Silent
from asu.records import Run, Store, finish, pretty, read, read_spec, redo, tables
from asu.specs import EngineOptions, RunSpec, digest
from asu.workload import PREFIX_VERSION, Request, fixed_length, lengths_path, requests

__all__ = ["Run", "Store", "execute", "inputs", "machine", "read", "requests"]

PROMPT_VERSION = "one user message, the problem's prompt as it is"
REQUEST_TIMEOUT_S = 7200.0
IDLE_TIMEOUT_S = 180.0  # longest silence of a stream that has begun; an engine under KV pressure may pause one
WARM_UP_TIMEOUT_S = 300.0
GAUGES_KEPT_EVERY_S = 30.0  # what a kill may lose of the gauges
HEALTH_EVERY_S = 30.0  # an engine that hangs before its first token leaves all requests waiting, none failing
MOST_CONNECTIONS = 256  # opened ahead in open loops; more are opened when needed

_TIMES = ("due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s")
_FROM_REPLY = ("sent_s", "first_s", "visible_s", "last_s", "end_s", "prompt_tokens", "output_tokens",
               "thinking_tokens", "answer_tokens", "finish_reason", "error", "thinking_text", "answer_text",
               "server_ttft_s", "server_queue_s")


# What a run's numbers depend on ---------------------------------------------------------------------------------------

def inputs(spec: RunSpec) -> dict:
    """All that can change a number and is not in the spec: versions, weights, problems, machine …"""
    recorded = spec.lengths and digests.of_file(lengths_path(spec.lengths))
    generated = spec.lengths and spec.options.random_weights
    draft = spec.options.speculation and spec.options.speculation.draft
    return {
        "engine": spec.engine,
        "engine_version": engines.get(spec.engine).version(),
        "weights": _weights_digest(spec.model, spec.options),
        "draft": draft and _weights_digest(draft, EngineOptions(random_weights=spec.options.random_weights)),
        "problems": None if generated else _problems_digest(spec.task, spec.problems),
        "prompt": PROMPT_VERSION,
        "lengths": recorded,
        "machine": machine(),
    } | ({"trace": digests.of_file(load.trace_path(spec.load.name))} if spec.load.kind == "trace" else {}) \
      | ({"prefix": PREFIX_VERSION} if spec.prefix else {})


@functools.cache
def machine() -> dict:
    """CPU model, cores this process may use, and the GPUs' names."""
    text = Path("/proc/cpuinfo").read_text()
    cpu = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {"cpu": cpu.group(1).strip() if cpu else platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "gpus": [gpu.name for gpu in base.gpus()]}


_problems_digest = functools.cache(lambda task, limit: tasks.get(task).digest(limit))


def _weights_digest(name: str, options: EngineOptions | None = None) -> str:
    """What the weights are: SHA-256 over a local folder's files, the hub's commit, or the shape of random ones."""
    model, options = models.get(name), options or EngineOptions()
    if options.random_weights:
        return shapes.digest(model, options.weights)
    source = base.source(model, options)
    if source == model.hub:
        return quantise.source_digest(model)
    return digests.of_weights(Path(source), name)


# Making a run ---------------------------------------------------------------------------------------------------------

def execute(spec: RunSpec, server, store: Store, inputs: dict, progress=None) -> Path:
    """Make the run of `spec` on a running server, or what is missing of it; returns its complete folder.

    Raises AsuError when the engine dies, the disk is full, another process has the folder, or all requests failed.
    Ctrl-C (KeyboardInterrupt) and kills keep what was finished.
    """
    folder = store.folder(spec, inputs)
    with space(folder, 1 << 20):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if not (folder / "DONE").exists():
                _make(spec, server, folder, inputs, progress or Silent())
    return folder


def _make(spec: RunSpec, server, folder: Path, inputs: dict, progress) -> None:
    wanted = requests(spec)
    stated = digest(spec, inputs)
    if (folder / "spec.json").exists() and read_spec(folder)[2] != stated:
        raise AsuError(f"{folder} belongs to another spec with the same first digits", redo(folder))
    write(folder / "spec.json", pretty({"digest": stated, "spec": spec.model_dump(mode="json"), "inputs": inputs}))
    journal = Journal(folder / "journal.jsonl", len(wanted))
    try:
        done = len(finished(journal.records))
        progress.run_started(spec.name, len(wanted), done)
        if done < len(wanted):
            _in_own_loop(Session(spec, server, wanted, journal, progress).serve)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{len(finished(journal.records))} of {len(wanted)} requests are kept in {folder}; "
                                "run the same command (or cell) again to go on with the next") from None
    finally:
        journal.close()
    rows = [record["row"] for record in journal.records if record["kind"] == "request"]
    if all(row["error"] for row in rows):
        (folder / "journal.jsonl").unlink()
        raise AsuError(f"all {len(rows)} requests of {spec.name} failed, the first with: {rows[0]['error']}",
                       "correct what the message names and run again; nothing of this run is kept")
    made = tables(spec, wanted, journal.records)
    env = _env(inputs, journal.records, made["requests"].to_pandas())
    log = server.log_path.read_text(errors="replace") if server.log_path.exists() else ""
    with space(folder, (folder / "journal.jsonl").stat().st_size):
        finish(folder, made, env, log.replace(server.key, "***"))
    (folder / "journal.jsonl").unlink()
    (folder / "lock").unlink()
    progress.run_finished()


def _in_own_loop(coroutine) -> None:
    """Run to the end in a thread with its own loop (a notebook's kernel already runs one); Ctrl-C cancels it."""
    handle = {}

    async def main():
        handle["loop"], handle["task"] = asyncio.get_running_loop(), asyncio.current_task()
        await coroutine()

    with concurrent.futures.ThreadPoolExecutor(1, "asu-run") as pool:
        future = pool.submit(asyncio.run, main())
        try:
            future.result()
        except KeyboardInterrupt:
            if "loop" in handle and not future.done():
                handle["loop"].call_soon_threadsafe(handle["task"].cancel)
            concurrent.futures.wait([future])
            raise


class Session:
    """One uninterrupted part of a run: sends what is not finished yet and keeps what comes back.

    Its times on the run's clock are its own clock's plus `shift_s`. `failure` ends it: a dead engine or a full disk.
    """

    def __init__(self, spec: RunSpec, server, wanted: list[Request], journal: Journal, progress):
        self.spec, self.server, self.wanted, self.journal, self.progress = spec, server, wanted, journal, progress
        self.finished = finished(journal.records)
        self.number = sum(record["kind"] == "session" for record in journal.records)
        due = load.due_times(spec.load, len(wanted), spec.seed) if self.number else None
        first = next(i for i, request in enumerate(wanted) if request.id not in self.finished)
        # An open loop goes on at the first arrival not served, so that the rest keeps its pattern.
        self.begin_s = 0.0 if due is None else float(due[first])
        self.shift_s = _last_moment(journal.records) - self.begin_s if self.number else 0.0
        self.gauges_kept = {"engine": 0, "host": 0}
        self.writes: list[asyncio.Future] = []
        self.writer = concurrent.futures.ThreadPoolExecutor(1, "asu-journal")  # fsync must not hold up the streams

    async def serve(self) -> None:
        """Send every request under the spec's load; each is in the journal soon after it ends."""
        spec, server = self.spec, self.server
        self.failure = asyncio.get_running_loop().create_future()
        self.client = Client(server.base_url, server.key, server.served_name, timeout_s=REQUEST_TIMEOUT_S,
                             idle_timeout_s=IDLE_TIMEOUT_S, concurrency=_connections(spec, len(self.wanted)),
                             extras=server.engine.request_fields, think_end_id=_think_end_id(spec))
        try:
            async with self.client:
                with quiet_collector():
                    await self._dispatch()
        finally:
            self.writer.shutdown(wait=True)
        await asyncio.gather(*self.writes, return_exceptions=True)  # their errors are in `failure`
        if self.failure.done():
            self.failure.result()

    async def _dispatch(self) -> None:
        where, self.clock = _where(self.server), Clock()
        self.clock.t0 -= self.begin_s
        self.monitor = Monitor(self.server, self.clock, gpus=self.spec.options.tensor_parallel)
        await asyncio.to_thread(self.monitor.read_engine, self.begin_s)  # what its counters start from
        # What was prepared till here delays no arrival; before any thread reads the clock, which must not go back.
        self.clock.t0 += self.clock.now() - self.begin_s
        with self.monitor:
            self._keep({"kind": "session", "session": self.number, "shift_s": self.shift_s, "started": _wall(),
                        **where})
            dispatching = asyncio.create_task(
                load.dispatch(self.spec.load, len(self.wanted), self.spec.seed, self._send, self.clock))
            beside = [asyncio.create_task(task) for task in (self._keep_gauges(), self._watch_health())]
            try:
                await asyncio.wait({dispatching, self.failure}, return_when=asyncio.FIRST_COMPLETED)
                if not self.failure.done():
                    await asyncio.to_thread(self.monitor.read_engine)  # counters since the last poll: hits, drafts
            finally:
                for task in (dispatching, *beside):
                    task.cancel()
                await asyncio.gather(dispatching, *beside, return_exceptions=True)
                self._keep(self._gauges())  # of a dead engine too: the requests it finished are kept
                if not self.failure.done():
                    self._keep({"kind": "end", "session": self.number, "ended": _wall(),
                                "loop_lag_ms": _lag(self.client.loop_lag_s), "failed_polls": self.monitor.failed_polls})
        if not self.failure.done():
            dispatching.result()

    async def _send(self, i: int, due_s: float, batch: int) -> None:
        request = self.wanted[i]
        if request.id in self.finished:
            return
        reply = await self.client.send(_call(self.spec, request), due_s, self.clock)
        death = reply.error and await _death(self.server, reply.error)
        if death:
            self._fail(death)
            raise asyncio.CancelledError
        self._keep({"kind": "request", **_row(request, reply, due_s, batch, self.number, self.shift_s)})
        self.progress.request_finished(reply.output_tokens)

    def _keep(self, record: dict) -> None:
        """Write a record without waiting for the disk."""
        write = asyncio.get_running_loop().run_in_executor(self.writer, self.journal.append, record)
        write.add_done_callback(lambda done: done.cancelled() or self._fail(done.exception()))
        self.writes.append(write)

    def _fail(self, error: BaseException | None) -> None:
        if error and not self.failure.done():
            self.failure.set_exception(error)

    async def _keep_gauges(self) -> None:
        while True:
            await asyncio.sleep(GAUGES_KEPT_EVERY_S)
            self._keep(self._gauges())

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            self._fail(await _death(self.server, None))

    def _gauges(self) -> dict:
        """Journal form of the samples since the last call."""
        record = {"kind": "gauges", "session": self.number}
        for name, frame in (("engine", self.monitor.engine_frame), ("host", self.monitor.host_frame)):
            new = frame(self.gauges_kept[name])
            self.gauges_kept[name] += len(new)
            record[name] = new.assign(t_s=new.t_s + self.shift_s).to_dict("list")
        return record


def finished(journal: list[dict]) -> set[str]:
    """Ids of the requests a journal holds."""
    return {record["row"]["request_id"] for record in journal if record["kind"] == "request"}


def warm_up(spec: RunSpec, server) -> None:
    """Short requests that nobody counts, as many as one step takes: engines load and compile on the first of a size.

    On GPUs vLLM compiles its sampling kernel when many requests first share a step, seconds that would be the first
    run's time to first token. AsuError if one fails.
    """
    sampling, at_once = spec.sampling, spec.options.max_requests

    async def send():
        async with Client(server.base_url, server.key, server.served_name, timeout_s=WARM_UP_TIMEOUT_S,
                          idle_timeout_s=IDLE_TIMEOUT_S, concurrency=at_once,
                          extras=server.engine.request_fields) as client:
            clock = Clock()
            calls = [Call("Ready?", 8, sampling.temperature, sampling.top_p, seed) for seed in range(at_once)]
            replies = await asyncio.gather(*(client.send(call, 0.0, clock) for call in calls))
        error = next((reply.error for reply in replies if reply.error), None)
        if error:
            raise await _death(server, error) or AsuError(
                f"the {spec.engine} server for {spec.model} started but cannot answer: {error}",
                "correct what the message names and run again")

    _in_own_loop(send)


def _connections(spec: RunSpec, count: int) -> int:
    """Connections to open ahead: as many as the load can have in flight."""
    most = {"batch": "size", "closed": "concurrency"}.get(spec.load.kind)
    return min(count, getattr(spec.load, most) if most else MOST_CONNECTIONS)


def _think_end_id(spec: RunSpec) -> int | None:
    """Id of the token that ends the thinking, from the local or cached tokenizer; None where it is not one token."""
    from huggingface_hub import try_to_load_from_cache

    model = models.get(spec.model)
    file = Path(base.source(model, spec.options)) / "tokenizer.json"
    if model.hub and not file.is_file():
        file = Path(try_to_load_from_cache(model.hub, "tokenizer.json", revision=model.revision) or file)
    if not model.thinks or not file.is_file():
        return None
    added = json.loads(file.read_text()).get("added_tokens", [])
    return next((token["id"] for token in added if token["content"] == model.end), None)


def _call(spec: RunSpec, request: Request) -> Call:
    fixed = fixed_length(spec)
    sampling = spec.sampling
    return Call(request.problem.prompt, request.max_tokens, sampling.temperature, sampling.top_p, request.seed,
                ignore_eos=fixed, min_tokens=request.max_tokens if fixed else None,
                chat_options=models.get(spec.model).chat_options, logprobs=sampling.logprobs)


def _row(request: Request, reply, due_s: float, batch: int, session: int, shift_s: float) -> dict:
    """Journal form of one finished request: its row and its events, on the run's clock."""
    problem = request.problem
    row = {"request_id": request.id, "problem_id": problem.id, "task": problem.task, "level": problem.level,
           "difficulty": problem.difficulty, "repeat": request.repeat, "batch": batch, "session": session,
           "seed": request.seed, "max_tokens": request.max_tokens, "due_s": due_s,
           **{name: getattr(reply, name) for name in _FROM_REPLY},
           "event_tokens": sum(thinking + answer for _, thinking, answer in reply.events), "expected": problem.expected}
    for name in _TIMES:
        row[name] = row[name] + shift_s
    return {"row": row, "events": [(t + shift_s, thinking, answer) for t, thinking, answer in reply.events],
            "logprobs": reply.logprobs}


def _last_moment(records: list[dict]) -> float:
    """The latest time on the run's clock that a journal tells of [s]."""
    moments = [0.0]
    for record in records:
        if record["kind"] == "request":
            moments.append(record["row"]["end_s"] or 0.0)
        elif record["kind"] == "gauges":
            moments += [max(record[name]["t_s"], default=0.0) for name in ("engine", "host")]
    return max(moments)


async def _death(server, error: str | None) -> AsuError | None:
    """Why the engine is dead, or None: a refused connection or a 503 means dead, even where its health says well."""
    try:
        await asyncio.to_thread(server.check_alive)
    except AsuError as death:
        return death
    if engine_is_dead(error):
        return AsuError(f"the engine no longer serves ({error}); the end of its log:\n{server.log_tail(20)}",
                        "run the same command again: requests already finished are kept; if it dies again, lower "
                        "max_requests or context")
    return None


def _lag(seconds: np.ndarray) -> dict:
    """Percentiles of how late the client's loop woke [ms]: its own slowness, reported beside every latency."""
    return {f"p{q}": float(np.percentile(seconds, q)) * 1e3 for q in (50, 99, 100)} if len(seconds) else {}


def _wall() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _where(server) -> dict:
    """What a session records about where it runs."""
    return {"server_start_s": server.start_s, "kv_pool_tokens": server.kv_pool_tokens, "git": git()}


def git() -> dict:
    """Revision of the checkout and whether it differs; nulls outside one."""
    def ask(*words):
        answer = subprocess.run(["git", "-C", paths.ROOT, *words], capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None

    try:
        revision, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        revision = changes = None
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def _env(inputs: dict, records: list[dict], frame: pd.DataFrame) -> dict:
    """What is told about the run beside its numbers; nothing here is needed to compute them."""
    sessions = [dict(record) for record in records if record["kind"] == "session"]
    for session in sessions:
        session.pop("kind")
        end = next((r for r in records if r["kind"] == "end" and r["session"] == session["session"]), {})
        session |= {"ended": end.get("ended"), "loop_lag_ms": end.get("loop_lag_ms", {}),
                    "failed_polls": end.get("failed_polls")}
    packages = ("asu", "aiohttp", "numpy", "pandas", "pyarrow", "torch", "transformers")
    return {
        "inputs": inputs, "kv_pool_tokens": sessions[-1]["kv_pool_tokens"], "sessions": sessions,
        "gap_tokens": int((frame.output_tokens - frame.event_tokens)[frame.error.isna()].sum()),
        "failed": int(frame.error.notna().sum()), "python": platform.python_version(), "system": platform.platform(),
        "memory_bytes": psutil.virtual_memory().total, "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
