"""A serving engine as a context manager: up and healthy inside the block, its whole process group gone after it."""

import atexit
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from asu.engines import base, supervisor
from asu.engines.base import Engine
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions

HOST = "127.0.0.1"
POLL_S = 0.1
ANSWER_S = 10.0  # a healthy server answers /health within this, even under full load
GRACE_S = 8.0
PORT_ATTEMPTS = 3
PORT_TAKEN = ("Address already in use", "address already in use", "Errno 98")


class Launcher:
    """Our end of one supervisor process (see supervisor.py); shared by all servers that start the same way."""

    _shared: dict[tuple, "Launcher"] = {}

    def __init__(self, python: str, module: str | None, env: dict[str, str]):
        self._lock = threading.Lock()
        self._asked = 0
        self._errors = tempfile.TemporaryFile()
        self._channel, theirs = socket.socketpair()
        # -P keeps this folder off the module path, where its vllm.py would hide the real one.
        command = [python, "-P", supervisor.__file__, str(theirs.fileno()), *([module] if module else [])]
        # A warm supervisor imports the adapter package in the engine's interpreter, which must find it too.
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=self._errors, stderr=self._errors, env=os.environ | env | {"PYTHONPATH": path})
        self._replies = self._channel.makefile("r")
        atexit.register(self.close)

    @classmethod
    def shared(cls, engine: Engine, env: dict[str, str]) -> "Launcher":
        """The running launcher for `engine`, started if there is none; a warm one needs the engine's interpreter."""
        module = engine.warm_module
        python = engine.python if module else sys.executable
        key = (python, module, env.get("HF_HUB_OFFLINE") if module else None)  # this one is read when it imports
        if key not in cls._shared or cls._shared[key]._process.poll() is not None:
            cls._shared[key] = cls(python, module, env if module else {})
        return cls._shared[key]

    def ask(self, request: dict) -> dict:
        """One request, one reply; AsuError with what the supervisor wrote if it is gone."""
        with self._lock:
            self._asked += 1
            try:
                self._channel.sendall(json.dumps(request | {"id": self._asked}).encode() + b"\n")
                for line in self._replies:
                    reply = json.loads(line)
                    if reply["id"] == self._asked:  # an older one was left unread by a Ctrl-C
                        return reply
            except OSError:
                pass  # told below, with what the supervisor wrote
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace")[-3000:]
        raise AsuError(f"the process that starts the engine is gone\n{tail}",
                       "see its last lines above; `python -m asu doctor` says what this machine lacks")

    def close(self) -> None:
        """Stop every server it started, then the supervisor itself."""
        atexit.unregister(self.close)
        self._replies.close()
        self._channel.close()
        self._process.wait()
        self._errors.close()


class Server:
    """`with Server(engine, model, options, log_path=...) as server:` serves `model` on 127.0.0.1 with a random key.

    Inside the block base_url, key, served_name, pid, start_s and kv_pool_tokens (None where the engine does not tell)
    are set.
    `source` overrides where the weights are (a folder or hub id), `port` the free port chosen otherwise.
    """

    def __init__(self, engine: Engine, model: Model, options: EngineOptions, *, log_path: Path,
                 source: str | Path | None = None, port: int | None = None, start_timeout_s: float = 600):
        self.engine = engine
        self.model = model
        self.options = options
        self.log_path = Path(log_path)
        self.source = str(source or base.source(model, options))
        self.start_timeout_s = start_timeout_s
        self.served_name = model.name
        self.key = secrets.token_urlsafe(32)
        self.pid: int | None = None
        self.start_s: float | None = None
        self.kv_pool_tokens: int | None = None
        self._asked_port = port
        self._launcher: Launcher | None = None

    def __enter__(self) -> "Server":
        self.engine.check(self.options, self.model, self.source)
        self.engine.prepare(self.options, self.source)
        began = time.monotonic()
        try:
            for attempt in range(PORT_ATTEMPTS):
                self.port = self._asked_port if self._asked_port is not None else _free_port()
                _check_port_free(self.port)
                self._start()
                if self._wait_healthy(began, last=attempt == PORT_ATTEMPTS - 1):
                    break
            self.kv_pool_tokens = self.engine.kv_pool_tokens(self.log_path.read_text(errors="replace"), self.metrics())
        except BaseException:
            self._stop()
            raise
        self.start_s = time.monotonic() - began
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def metrics(self) -> str:
        """The engine's page of gauges, Prometheus text."""
        return self._request("GET", self.engine.metrics_path)

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache; nothing to do where it is off, AsuError where only a restart would do it."""
        if not self.options.prefix_caching:
            return
        if self.engine.reset_path is None:
            raise AsuError(f"{self.engine.name} cannot empty its prefix cache", "start a fresh server for each run")
        self._request("POST", self.engine.reset_path)

    def check_alive(self) -> None:
        """Raise AsuError with the end of the log if the server is dead, hung, or refuses to serve."""
        self._check_running("died")
        try:
            self._request("GET", "/health")
        except AsuError:
            self._check_running("died")
            raise

    def log_tail(self, n: int = 30) -> str:
        """Last `n` lines of the server's log."""
        if not self.log_path.is_file():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-n:])

    def _start(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.log_path.write_bytes(b"")
        env = self.engine.environment(self.options, self.source, self.key)
        self._launcher = Launcher.shared(self.engine, env)
        argv = self.engine.command(self.model, self.source, self.options, HOST, self.port, self.served_name)
        reply = self._launcher.ask({"start": argv, "env": os.environ | env, "log": str(self.log_path.resolve())})
        self.pid = reply["pid"]

    def _wait_healthy(self, began: float, last: bool) -> bool:
        """True once /health answers 200; False if the port was lost to another process and may be tried anew."""
        while True:
            if self._exit_code() is not None and not last and self._asked_port is None and self._lost_port():
                self._stop()
                return False
            self._check_running("died at start")
            if self._healthy():
                return True
            if time.monotonic() - began > self.start_timeout_s:
                raise self._error(f"was not healthy within {self.start_timeout_s:g} s",
                                  "read the end of its log above; a large model may need a longer start_timeout_s")
            time.sleep(POLL_S)

    def _healthy(self) -> bool:
        try:
            with self._open("GET", "/health", timeout=2.0):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def _lost_port(self) -> bool:
        return any(sign in self.log_tail(200) for sign in PORT_TAKEN)

    def _exit_code(self) -> int | None:
        return self._launcher.ask({"poll": self.pid})["code"]

    def _check_running(self, what: str) -> None:
        code = self._exit_code()
        if code is None:
            return
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        remedy = "correct the cause in its log above, then run again: finished requests are kept"
        if code == -signal.SIGKILL:
            remedy = "out of memory is the usual cause: lower kv_pool_tokens, context or max_requests"
        raise self._error(f"{what} ({how})", remedy)

    def _request(self, method: str, path: str) -> str:
        try:
            with self._open(method, path, timeout=ANSWER_S) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            raise self._error(f"answers {path} with HTTP {error.code}",
                              "its engine is dead; run again, finished requests are kept") from error
        except (OSError, urllib.error.URLError) as error:
            raise self._error(f"does not answer {path} ({getattr(error, 'reason', error)})",
                              "it hangs or is gone; run again, finished requests are kept") from error

    def _open(self, method: str, path: str, timeout: float):
        request = urllib.request.Request(
            self.base_url + path, method=method, headers={"Authorization": f"Bearer {self.key}"})
        return _DIRECT.open(request, timeout=timeout)

    def _error(self, what: str, remedy: str) -> AsuError:
        return AsuError(f"the {self.engine.name} server for {self.model.name} {what}{self._causes()}\n"
                        f"  end of {self.log_path}:\n{self.log_tail()}", remedy)

    def _causes(self) -> str:
        """First exceptions of the log, one line each: an engine's last lines are often only the echo of them."""
        if not self.log_path.is_file():
            return ""
        lines = [line for line in self.log_path.read_text(errors="replace").splitlines() if "WARNING" not in line]
        found = re.findall(r"\b(\w*(?:Error|Exception): .+)", "\n".join(lines))
        return "".join(f"\n  {cause}" for cause in list(dict.fromkeys(found))[:3])

    def _stop(self) -> None:
        if self.pid is None:
            return
        pid, self.pid = self.pid, None
        self._launcher.ask({"stop": pid, "grace_s": GRACE_S})


# The server is on this machine: a proxy named in the environment must not see its requests.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _check_port_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise AsuError(f"port {port} on {HOST} cannot be used: {error.strerror}",
                           "end what listens there, or leave the port out: a free one is then chosen") from error
