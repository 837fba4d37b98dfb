"""The process between us and the servers: starts them, and leaves none behind, however we or they end.

Run as `python supervisor.py FD [MODULE]` with the standard library alone; FD is a socket to the owner. With MODULE,
`MODULE.preload()` is called once and each server is a fork that calls `MODULE.serve(argv)`; without, a fork and exec.
One JSON line per request and per reply, which repeats the request's "id":
    {"start": argv, "env": {...}, "log": path}  ->  {"pid": process group of the server}
    {"poll": pid}                               ->  {"code": exit code, or null while it runs}
    {"stop": pid, "grace_s": seconds}           ->  {"code": exit code} once the whole group is gone
When the owner's end closes, for whatever reason, kill -9 included, every server is stopped and the supervisor ends,
and with it the folder for temporary files that all of them share: killed engines leave their sockets there.
Linux only (prctl).
"""

import contextlib
import ctypes
import glob
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ORPHANED_GRACE_S = 3.0
POLL_S = 0.05
_libc = ctypes.CDLL(None, use_errno=True)


class Supervisor:
    """The servers of one owner, each the leader of its own process group."""

    def __init__(self, channel: socket.socket, module):
        self.channel = channel
        self.module = module
        self.codes: dict[int, int | None] = {}

    def run(self) -> None:
        """Answer requests until the owner is gone; then stop everything."""
        with self.channel.makefile("r") as requests:
            for line in requests:
                request = json.loads(line)
                if "start" in request:
                    reply = {"pid": self.start(request["start"], request["env"], request["log"])}
                elif "poll" in request:
                    reply = {"code": self.poll(request["poll"])}
                else:
                    reply = {"code": self.stop(request["stop"], request["grace_s"])}
                try:
                    self.channel.sendall(json.dumps(reply | {"id": request["id"]}).encode() + b"\n")
                except (BrokenPipeError, ConnectionResetError):
                    break
        for pid in list(self.codes):
            self.stop(pid, ORPHANED_GRACE_S)

    def start(self, argv: list[str], env: dict[str, str], log: str) -> int:
        """Fork a server into a group of its own, its output appended to `log`; its pid is the group."""
        pid = os.fork()
        if pid:
            with contextlib.suppress(PermissionError, ProcessLookupError):  # the child does the same; one comes first
                os.setpgid(pid, pid)
            self.codes[pid] = None
            return pid
        code = 1
        try:
            os.setpgid(0, 0)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.channel.close()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            null = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((null, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            env["TMPDIR"] = os.environ["TMPDIR"]
            if self.module is None:
                os.execvpe(argv[0], argv, env)
            os.environ.clear()
            os.environ.update(env)
            self.module.serve(argv)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # a forked copy must never run on into the supervisor's loop
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def poll(self, pid: int) -> int | None:
        """Exit code of a server, None while it runs; minus the signal that ended it."""
        self._reap(pid)
        return self.codes[pid]

    def stop(self, pid: int, grace_s: float) -> int | None:
        """SIGTERM to the leader, after `grace_s` SIGKILL to its group; then remove the shared memory they leave behind.

        vLLM leaves 400 MB of it whenever its engine core is killed, which its own shutdown does too.
        """
        shared = set().union(*map(_shared_memory, _members(pid))) - _shared_memory(os.getpid())
        if self.poll(pid) is None:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while self._reap(pid) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        while self._reap(pid):
            time.sleep(POLL_S)
        for path in shared:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return self.codes.pop(pid)

    def _reap(self, group: int) -> bool:
        """Collect the dead of `group`; True while any of it lives. Orphans count: we are their subreaper."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-group, os.WNOHANG)
                if pid == 0:
                    break
                if pid == group:
                    self.codes[group] = os.waitstatus_to_exitcode(status)
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True


def _members(group: int) -> list[int]:
    """Pids of the processes in `group`."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            if os.getpgid(int(name)) == group:
                found.append(int(name))
    return found


def _shared_memory(pid: int) -> set[str]:
    """Files in /dev/shm that a process has made or mapped."""
    try:
        with open(f"/proc/{pid}/maps") as maps:
            lines = [line.split(maxsplit=5) for line in maps]
    except OSError:  # it ended meanwhile
        return set()
    mapped = {line[5].strip() for line in lines if len(line) > 5 and line[5].startswith("/dev/shm/")}
    return mapped | set(glob.glob(f"/dev/shm/__KMP_REGISTERED_LIB_{pid}_*"))  # Intel's OpenMP keeps a mark per process


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's to handle
    os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="asu-")  # before an engine is imported, which may ask for it
    try:
        module = None
        if len(sys.argv) > 2:
            module = importlib.import_module(sys.argv[2])
            module.preload()
        Supervisor(channel, module).run()
    finally:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


if __name__ == "__main__":
    main()
