"""What keeps a run safe while it goes on: a journal that survives kills, a lock, whole files."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import orjson

from asu.errors import AsuError


def read_journal(path: Path) -> tuple[list[dict], int]:
    """Whole records of a journal and the bytes they fill; a torn last line is no record."""
    data = path.read_bytes() if path.exists() else b""
    records, size = [], 0
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            records.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            if size + len(line) == len(data):
                break
            raise AsuError(f"{path} is damaged in line {len(records) + 1}",
                           f"delete {path.parent} and run again") from error
        size += len(line)
    return records, size


class Journal:
    """Append-only record of a run while it goes on; `append` returns when the line is on disk."""

    def __init__(self, path: Path, expected: int):
        self.records, size = read_journal(path)
        self._path = path
        self._left = expected - sum(record["kind"] == "request" for record in self.records)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(size)

    def append(self, record: dict) -> None:
        """Write one line; AsuError when the disk is full. JSON has no NaN: it is written, and read back, as null."""
        line = orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
        written = os.fstat(self._file.fileno()).st_size
        # Requests to come take a mean line each, and the parquet files at most as much as the whole journal.
        mean = (written + len(line)) // (len(self.records) + 1)
        with space(self._path.parent, 2 * mean * max(1, self._left) + written):
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[self._file.write(rest):]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(written)  # a part of the line may be there
                raise
        self.records.append(record)
        self._left -= record["kind"] == "request"

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def space(folder: Path, need: int) -> Iterator[None]:
    """Turn a full disk into an error that names the folder and the bytes missing."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AsuError(f"the disk of {folder} is full: the run needs about {need:,} bytes more",
                       "free that much, or set ASU_OUTPUT to a larger disk, and run the same command again; "
                       "requests already finished are kept") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone; AsuError naming the process that has it. A killed holder lets go."""
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise AsuError(f"{folder} is being run by process {file.read().strip() or '(just starting)'}",
                           "wait for it to finish, or stop it, then run the same command again") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write(path: Path, data: bytes) -> None:
    """The whole file or none of it."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
