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
import hashlib
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

from asu import engines, load, models, paths, tasks
from asu.client import Call, Client, Clock, engine_is_dead, quiet_collector
from asu.engines import base
from asu.errors import AsuError
from asu.journal import Journal, locked, space, write
from asu.monitor import Monitor
from asu.progress import Silent
from asu.records import ENGINE, HOST, Run, Store, finish, pretty, read, read_spec, redo, tables
from asu.specs import RunSpec, canonical, digest
from asu.workload import Request, lengths_path, requests

__all__ = ["Run", "Store", "execute", "inputs", "machine", "read", "requests"]

PROMPT_VERSION = "one user message, the problem's prompt as it is"
REQUEST_TIMEOUT_S = 7200.0
IDLE_TIMEOUT_S = 180.0  # longest silence of a stream that has begun; an engine under KV pressure may pause one
GAUGES_KEPT_EVERY_S = 30.0  # what a kill may lose of the gauges
MOST_CONNECTIONS = 256  # opened ahead in open loops; more are opened when needed

_TIMES = ("due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s")
_FROM_REPLY = ("sent_s", "first_s", "visible_s", "last_s", "end_s", "prompt_tokens", "output_tokens",
               "thinking_tokens", "answer_tokens", "finish_reason", "error", "thinking_text", "answer_text",
               "server_ttft_s", "server_queue_s")


# What a run's numbers depend on ---------------------------------------------------------------------------------------

def inputs(spec: RunSpec) -> dict:
    """All that can change a number and is not in the spec: versions, weights, problems, prompt, lengths, machine."""
    recorded = spec.lengths and _file_digest(lengths_path(spec.lengths))
    generated = spec.lengths and spec.options.random_weights
    draft = spec.options.speculation and spec.options.speculation.draft
    return {
        "engine": spec.engine,
        "engine_version": engines.get(spec.engine).version(),
        "weights": _weights_digest(spec.model, spec.options.random_weights),
        "draft": draft and (_weights_digest(draft, False) if draft in models.CATALOGUE else draft),
        "problems": None if generated else _problems_digest(spec.task, spec.problems),
        "prompt": PROMPT_VERSION,
        "lengths": recorded,
        "machine": machine(),
    }


@functools.cache
def machine() -> dict:
    """CPU model, cores this process may use, and the GPUs' names."""
    text = Path("/proc/cpuinfo").read_text()
    cpu = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {"cpu": cpu.group(1).strip() if cpu else platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "gpus": [gpu.name for gpu in base.gpus()]}


_problems_digest = functools.cache(lambda task, limit: tasks.get(task).digest(limit))


def _weights_digest(name: str, random: bool) -> str:
    """What the weights are: SHA-256 over a local folder's files, the hub's commit, or the shape of random ones."""
    model = models.get(name)
    if random and model.shape:
        return "random:" + hashlib.sha256(canonical(model.shape).encode()).hexdigest()
    if model.hub and not model.folder.is_dir():
        return f"{model.hub}@{_hub_commit(model.hub, model.revision)}"
    kept = {".safetensors", ".json", ".jinja", ".txt"}
    files = sorted(file for file in model.folder.rglob("*") if file.suffix in kept)
    if not any(file.suffix == ".safetensors" for file in files):
        raise AsuError(f"the weights of {name} are missing: no .safetensors file in {model.folder}",
                       "restore them (git checkout data/models), or train them: make miniature")
    lines = [f"{file.relative_to(model.folder)} {_file_digest(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.cache
def _hub_commit(hub: str, revision: str) -> str:
    """The commit a revision stands for: from the local cache, else asked of the hub."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(hub, "config.json", revision=revision)).parent.name
    except LocalEntryNotFoundError as error:
        raise AsuError(f"{hub} is not on this machine and the hub cannot be reached",
                       "connect once, or set HF_HOME to a cache that has the model, and run again") from error
    except HfHubHTTPError as error:
        raise AsuError(f"the hub refuses {hub} at revision {revision}: {error}",
                       "accept the model's conditions on its hub page and set HF_TOKEN, then run again") from error


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest_at(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _digest_at(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        finished = {record["row"]["request_id"] for record in journal.records if record["kind"] == "request"}
        progress.run_started(spec.name, len(wanted), len(finished))
        if len(finished) < len(wanted):
            _in_own_loop(lambda: _serve(spec, server, wanted, finished, journal, progress))
    except KeyboardInterrupt:
        kept = sum(record["kind"] == "request" for record in journal.records)
        raise KeyboardInterrupt(f"{kept} of {len(wanted)} requests are kept in {folder}; "
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


async def _serve(spec: RunSpec, server, wanted: list[Request], finished: set[str], journal: Journal, progress) -> None:
    """Send every request not finished yet under the spec's load; each is in the journal soon after it ends."""
    session = 1 + max((r["session"] for r in journal.records if r["kind"] == "session"), default=-1)
    due = load.due_times(spec.load, len(wanted), spec.seed)
    next_one = next(i for i, request in enumerate(wanted) if request.id not in finished)
    begin_s = 0.0 if due is None else float(due[next_one]) if session else 0.0
    shift_s = (_last_moment(journal.records) - begin_s) if session else 0.0
    clock = Clock()
    clock.t0 -= begin_s
    loop = asyncio.get_running_loop()
    failure = loop.create_future()
    writer = concurrent.futures.ThreadPoolExecutor(1, "asu-journal")  # fsync must not hold up the streams
    writes = []

    def keep(record: dict) -> None:
        write = loop.run_in_executor(writer, journal.append, record)
        write.add_done_callback(lambda w: w.cancelled() or not w.exception() or failure.done()
                                or failure.set_exception(w.exception()))
        writes.append(write)

    async def send(i: int, due_s: float, batch: int) -> None:
        request = wanted[i]
        if request.id in finished:
            return
        reply = await client.send(_call(spec, request), due_s, clock)
        if reply.error:
            death = await _death(server, reply.error)
            if death:
                failure.done() or failure.set_exception(death)
                raise asyncio.CancelledError
        keep({"kind": "request", **_row(request, reply, due_s, batch, session, shift_s)})
        progress.request_finished(reply.output_tokens)

    with Monitor(server, clock) as monitor:
        kept = {"engine": 0, "host": 0}

        def gauges() -> dict:
            record = {"kind": "gauges", "session": session}
            for name, columns in (("engine", ENGINE), ("host", HOST)):
                frame = getattr(monitor, f"{name}_frame")()[kept[name]:]
                kept[name] += len(frame)
                record[name] = {"t_s": (frame["t_s"] + shift_s).tolist()} | {
                    column: frame[column].astype(float).tolist() for column in columns if column in frame}
            return record

        async def keep_gauges() -> None:
            while True:
                await asyncio.sleep(GAUGES_KEPT_EVERY_S)
                keep(gauges())

        keep({"kind": "session", "session": session, "shift_s": shift_s, "started": _wall(), **_session(server)})
        beside = asyncio.create_task(keep_gauges())
        client = Client(server.base_url, server.key, server.served_name, timeout_s=REQUEST_TIMEOUT_S,
                        idle_timeout_s=IDLE_TIMEOUT_S, concurrency=_connections(spec, len(wanted)),
                        think_end_id=_think_end_id(models.get(spec.model)))
        try:
            with quiet_collector():
                async with client:
                    dispatching = asyncio.create_task(load.dispatch(spec.load, len(wanted), spec.seed, send, clock))
                    try:
                        await asyncio.wait({dispatching, failure}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        dispatching.cancel()
                        await asyncio.gather(dispatching, return_exceptions=True)
            if not failure.done():
                dispatching.result()
        finally:
            beside.cancel()
            if not failure.done():
                keep(gauges())
                keep({"kind": "end", "session": session, "ended": _wall(), "loop_lag_ms": _lag(client.loop_lag_s),
                      "failed_polls": monitor.failed_polls})
            writer.shutdown(wait=True)
        await asyncio.gather(*writes, return_exceptions=True)  # their errors are in `failure`
        if failure.done():
            failure.result()


def _connections(spec: RunSpec, count: int) -> int:
    """Connections to open ahead: as many as the load can have in flight."""
    most = {"batch": "size", "closed": "concurrency"}.get(spec.load.kind)
    return min(count, getattr(spec.load, most) if most else MOST_CONNECTIONS)


def _think_end_id(model: models.Model) -> int | None:
    """Id of the token that ends the thinking, from the tokenizer of local weights; None where it is not one token."""
    file = model.folder / "tokenizer.json"
    if not model.thinks or not file.is_file():
        return None
    added = json.loads(file.read_text()).get("added_tokens", [])
    return next((token["id"] for token in added if token["content"] == model.end), None)


def _call(spec: RunSpec, request: Request) -> Call:
    fixed = spec.lengths is not None
    sampling = spec.sampling
    return Call(request.problem.prompt, request.max_tokens, sampling.temperature, sampling.top_p, request.seed,
                ignore_eos=fixed, min_tokens=request.max_tokens if fixed else None,
                chat_options=models.get(spec.model).chat_options)


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
    return {"row": row, "events": [(t + shift_s, thinking, answer) for t, thinking, answer in reply.events]}


def _last_moment(records: list[dict]) -> float:
    """The latest time on the run's clock that a journal tells of [s]."""
    moments = [0.0]
    for record in records:
        if record["kind"] == "request":
            moments.append(record["row"]["end_s"] or 0.0)
        elif record["kind"] == "gauges":
            moments += [max(record[name]["t_s"], default=0.0) for name in ("engine", "host")]
    return max(moments)


async def _death(server, error: str) -> AsuError | None:
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


def _session(server) -> dict:
    """What a session records about where it runs."""
    return {"server_start_s": server.start_s, "kv_pool_tokens": server.kv_pool_tokens, "git": _git()}


def _git() -> dict:
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
