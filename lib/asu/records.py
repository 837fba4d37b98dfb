"""Complete run folders: their files and columns, how they are found, read back with validation, and finished."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from asu import paths, tasks
from asu.columns import ENGINE_GAUGES, HOST_GAUGES, SPECULATION
from asu.errors import AsuError
from asu.journal import write
from asu.specs import RunSpec, canonical, digest, parse
from asu.workload import Request, fixed_length

_INT, _FLOAT, _TEXT = pa.int32(), pa.float64(), pa.string()
REQUESTS = pa.schema([
    *((name, _TEXT) for name in ("request_id", "problem_id", "task")),
    ("level", _INT), ("difficulty", _FLOAT), ("repeat", _INT), ("batch", _INT), ("session", _INT), ("seed", _INT),
    ("max_tokens", _INT),
    *((name, _FLOAT) for name in ("due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s")),
    *((name, _INT) for name in ("prompt_tokens", "output_tokens", "thinking_tokens", "answer_tokens", "event_tokens")),
    *((name, _TEXT) for name in ("finish_reason", "error", "outcome", "thinking_text", "answer_text", "extracted",
                                 "expected")),
    ("server_ttft_s", _FLOAT), ("server_queue_s", _FLOAT),
])
# Event times are kept as whole tenths of a millisecond: exact enough for token gaps, and a third of the size.
EVENTS = pa.schema([("request_id", _TEXT), ("session", _INT), ("t_100us", _INT), ("thinking_tokens", _INT),
                    ("answer_tokens", _INT), ("logprob", _FLOAT)])
PARQUET = ("requests", "events", "engine", "host")


@dataclass(frozen=True)
class Run:
    """A complete run as read back; `asu.columns` says what each column of the frames means."""

    spec: RunSpec
    requests: pd.DataFrame
    events: pd.DataFrame
    engine: pd.DataFrame
    host: pd.DataFrame
    env: dict


class Store:
    """Run folders under one root; a folder's name is a function of all the run's inputs."""

    def __init__(self, root: Path | None = None):
        self.root = Path(root or paths.RUNS)

    def folder(self, spec: RunSpec, inputs: dict) -> Path:
        """Where the run of `spec` with these inputs is, or will be."""
        readable = re.sub(r"[^A-Za-z0-9.+-]+", "_", spec.name)[:100]
        return self.root / f"{digest(spec, inputs)[:8]}-{readable}"

    def find(self, spec: RunSpec, inputs: dict | None = None) -> Path | None:
        """The complete run of `spec`, or None; without inputs (published records) the spec alone decides."""
        if inputs is not None:
            folder = self.folder(spec, inputs)
            return folder if (folder / "DONE").exists() else None
        return self.complete().get(canonical(spec.model_dump(mode="json")))

    def complete(self) -> dict[str, Path]:
        """Folders of all complete runs by their spec in canonical form."""
        return {canonical(read_spec(done.parent)[0].model_dump(mode="json")): done.parent
                for done in sorted(self.root.glob("*/DONE"))}

    def folders(self) -> list[Path]:
        """Folders of all complete runs, in the order of `history`."""
        return [done.parent for done in sorted(self.root.glob("*/DONE"))]

    def history(self) -> list[tuple[RunSpec, dict]]:
        """Spec and summary (requests, output_tokens, seconds) of every complete run, for estimates."""
        return [(read_spec(done.parent)[0], _read_done(done.parent)) for done in sorted(self.root.glob("*/DONE"))]


def redo(folder: Path) -> str:
    """The remedy for a folder that cannot be trusted."""
    return f"delete {folder} and run again (restore it from the repository if it is a published record)"


def read_spec(folder: Path) -> tuple[RunSpec, dict, str]:
    """Spec, inputs and digest of a folder."""
    try:
        data = json.loads((folder / "spec.json").read_text())
        return parse(data["spec"], str(folder / "spec.json")), data["inputs"], data["digest"]
    except (OSError, ValueError, KeyError) as error:
        raise AsuError(f"{folder / 'spec.json'} cannot be read ({error})", redo(folder)) from error


def _read_done(folder: Path) -> dict:
    try:
        done = json.loads((folder / "DONE").read_text())
        return {name: done[name] for name in ("requests", "output_tokens", "seconds", "files")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AsuError(f"{folder} holds no complete run", redo(folder)) from error


def read(folder: Path) -> Run:
    """The run in `folder`; AsuError if anything is missing, cut short, changed since, or belongs to another spec."""
    return _load(Path(folder), _read_done(Path(folder)))


def _load(folder: Path, done: dict) -> Run:
    """The run in `folder` if it is what `done` says."""
    spec, run_inputs, stated = read_spec(folder)
    if digest(spec, run_inputs) != stated or not folder.name.startswith(stated[:8]):
        raise AsuError(f"{folder} does not belong to the spec it holds", redo(folder))
    frames = {}
    for name in PARQUET:
        file = f"{name}.parquet"
        frames[name] = _loaded(_table(folder / file, _verified(folder, file, done), _schema(name)))
    sent = frames["requests"].request_id
    if len(sent) != done["requests"] or not sent.is_unique:
        raise AsuError(f"{folder} does not hold the {done['requests']} requests that were made", redo(folder))
    frames["events"] = _by_request(frames["events"], sent)
    return Run(spec=spec, env=json.loads(_verified(folder, "env.json", done)), **frames)


def _verified(folder: Path, name: str, done: dict) -> bytes:
    """A file's bytes, if they are those the run was finished with."""
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise AsuError(f"{folder / name} cannot be read ({error.strerror})", redo(folder)) from error
    if hashlib.sha256(data).hexdigest() != done["files"].get(name):
        raise AsuError(f"{folder / name} is not the file that was written: cut short or changed", redo(folder))
    return data


def _table(path: Path, data: bytes, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise AsuError(f"{path} cannot be read ({error})", redo(path.parent)) from error
    if [name for name in table.schema.names if name not in SPECULATION] != schema.names:
        raise AsuError(f"{path} has the columns {table.schema.names}, not {schema.names}", redo(path.parent))
    return table


def _schema(name: str) -> pa.Schema:
    if name in ("requests", "events"):
        return REQUESTS if name == "requests" else EVENTS
    return pa.schema([("session", _INT), ("t_s", _FLOAT),
                      *((column, _FLOAT) for column in (ENGINE_GAUGES if name == "engine" else HOST_GAUGES))])


def _by_request(events: pd.DataFrame, sent: pd.Series) -> pd.DataFrame:
    """Events, kept by time, by request in sending order and then by time."""
    order = pd.Index(sent).get_indexer(events.request_id)
    return events.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)


def _loaded(table: pa.Table) -> pd.DataFrame:
    """Frame with 64-bit whole numbers, event times in seconds, and missing text as None-like (NaN)."""
    frame = table.to_pandas()
    if "t_100us" in frame:
        frame.insert(frame.columns.get_loc("t_100us"), "t_s", frame.pop("t_100us") / 1e4)
    return frame.astype({column: "int64" for column in frame.columns if frame[column].dtype == "int32"})


def tables(spec: RunSpec, wanted: list[Request], journal: list[dict]) -> dict[str, pa.Table]:
    """The four tables of a run from its journal, requests in sending order."""
    by_id = {record["row"]["request_id"]: record for record in journal if record["kind"] == "request"}
    if spec.lengths or spec.options.random_weights:
        by_id |= {request.id: _replayed(by_id[request.id], request, spec) for request in wanted}
    return {"requests": _requests_table(spec, wanted, by_id), "events": _events_table(wanted, by_id),
            "engine": _gauge_table("engine", journal), "host": _gauge_table("host", journal)}


def finish(folder: Path, made: dict[str, pa.Table], env: dict, log: str) -> None:
    """Write every file whole, read all back, and only then mark the folder DONE."""
    for name, table in made.items():
        write(folder / f"{name}.parquet", _packed(name, table))
    write(folder / "server.log", log.encode())
    write(folder / "env.json", pretty(env))
    requests = made["requests"].to_pandas()
    kept = [*(f"{name}.parquet" for name in PARQUET), "env.json"]
    done = {"requests": len(requests), "output_tokens": int(requests.output_tokens.sum()),
            "seconds": float(np.nanmax(requests.end_s) - np.nanmin(requests.due_s)),
            "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in kept}}
    _load(folder, done)
    write(folder / "DONE", pretty(done))


def _packed(name: str, table: pa.Table) -> bytes:
    """A table as parquet, small: files hold few rows, so that statistics and a second schema would weigh as much.

    Of the events, times grow slowly, so that differences take a fraction of the bytes, and the rest repeats itself;
    to the other tables, with a row per request or sample, dictionaries only add.
    """
    delta = {"t_100us": "DELTA_BINARY_PACKED"} if name == "events" else {}
    repeated = [column for column in table.schema.names if column not in delta] if name == "events" else False
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=19, column_encoding=delta,
                   use_dictionary=repeated, write_statistics=False, store_schema=False)
    return sink.getvalue().to_pybytes()


def _replayed(record: dict, request: Request, spec: RunSpec) -> dict:
    """A replayed request as kept: one to random weights without its text, which says nothing, and with the recorded
    thinking; real weights think as long as their stream says.

    Random weights end their thinking by chance or never; the cost of serving hangs on how many tokens there are, so
    that the first of them stand for those that were thinking when the lengths were recorded. A length below the budget
    is one at which the recorded answer ended, not one that cut it off.
    """
    row, thinking = record["row"] | {}, request.thinking_tokens
    if spec.options.random_weights:
        row |= {"thinking_text": "", "answer_text": ""}
    if request.max_tokens < spec.sampling.budget and row["finish_reason"] == "length":
        row["finish_reason"] = "stop"
    if thinking is None:
        return record | {"row": row}
    events, seen = [], 0
    for t, *tokens in record["events"]:
        counted = min(max(thinking - seen, 0), sum(tokens))
        seen += sum(tokens)
        events.append((t, counted, sum(tokens) - counted))
    row |= {"visible_s": next((t for t, _, answer in events if answer), None),
            "thinking_tokens": sum(counted for _, counted, _ in events),
            "answer_tokens": sum(answer for _, _, answer in events)}
    return record | {"row": row, "events": events}


def _requests_table(spec: RunSpec, wanted: list[Request], by_id: dict[str, dict]) -> pa.Table:
    """One row per request in sending order; graded unless the weights are random or the length was set from outside."""
    task = None if spec.options.random_weights or fixed_length(spec) else tasks.get(spec.task)
    rows = []
    for request in wanted:
        row = by_id[request.id]["row"]
        outcome, extracted = (None, None) if task is None else tasks.outcome(
            task, request.problem, row["answer_text"], row["finish_reason"], row["error"])
        rows.append(row | {"outcome": outcome, "extracted": extracted})
    return pa.Table.from_pylist(
        [{field.name: _value(row[field.name], field.type) for field in REQUESTS} for row in rows], schema=REQUESTS)


def _value(value, kind: pa.DataType):
    """A journal value as its column holds it: a float that JSON could not write is NaN again."""
    return float("nan") if value is None and kind == _FLOAT else value


def _events_table(wanted: list[Request], by_id: dict[str, dict]) -> pa.Table:
    """One row per stream event, by time: all requests' tokens of a step stand together, in less than half the bytes."""
    chosen = [by_id[request.id] for request in wanted]
    events = np.array([event for record in chosen for event in record["events"]], dtype=float).reshape(-1, 3)
    counts = [len(record["events"]) for record in chosen]
    told = [record.get("logprobs") or [None] * count for record, count in zip(chosen, counts, strict=True)]
    table = pa.table({
        "request_id": np.repeat([record["row"]["request_id"] for record in chosen], counts),
        "session": np.repeat([record["row"]["session"] for record in chosen], counts).astype("int32"),
        "t_100us": np.rint(events[:, 0] * 1e4).astype("int32"), "thinking_tokens": events[:, 1].astype("int32"),
        "answer_tokens": events[:, 2].astype("int32"),
        "logprob": [_value(logprob, _FLOAT) for one in told for logprob in one]}, schema=EVENTS)
    return table.take(np.argsort(table["t_100us"].to_numpy(), kind="stable"))


def _gauge_table(name: str, records: list[dict]) -> pa.Table:
    """Gauges of all sessions over time; what the engine did not tell is NaN."""
    gauges = [record for record in records if record["kind"] == "gauges"]
    told = [column for column in SPECULATION if any(column in record[name] for record in gauges)]
    schema = pa.schema([*_schema(name), *((column, _FLOAT) for column in told)])
    columns = {field.name: [] for field in schema}
    for record in gauges:
        size = len(record[name]["t_s"])
        columns["session"] += [record["session"]] * size
        for column in schema.names[1:]:
            columns[column] += [_value(value, _FLOAT) for value in record[name].get(column, [None] * size)]
    return pa.table(columns, schema=schema)


def pretty(value) -> bytes:
    """JSON for people to read."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
