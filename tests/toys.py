"""An engine that speaks the protocol without a model, a small task, and specs for them."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from asu import specs, tasks
from asu.errors import AsuError

PROBLEMS = [tasks.Problem(id=f"p{i}", prompt=f"What is {i} plus 1?", expected=str(i + 1), level=1 + i % 5,
                          difficulty=float(i), task="toy") for i in range(200)]


class ToyTask:
    """Adding one: answers are right when they hold the expected number."""

    name = title = stands_for = "toy"
    kind = "mathematics"

    def problems(self, limit):
        return PROBLEMS[:limit]

    def digest(self, limit):
        return f"toy-{limit}"


def outcome(task, problem, answer_text, finish_reason, error):
    """The outcomes of tasks.outcome for the toy task."""
    if error:
        return "failed", None
    if finish_reason == "length":
        return "cut off", None
    return ("correct" if answer_text == problem.expected else "wrong"), answer_text


class StubEngine:
    """What monitor and study ask of an engine adapter."""

    name = "vllm"

    def version(self):
        return "0"

    def check(self, options, model, source):
        pass

    def gauges(self, text):
        return {"kv_use": 0.5, "running": 1.0, "waiting": 0.0}


class StubServer:
    """Answers chat completions in this process: thinks for `thinking` tokens, then answers in one.

    `prompts` counts what was asked; after `dies_after` requests every connection is closed without an answer, as by a
    dead engine; `status` answers all with that code.
    """

    served_name, key, kv_pool_tokens, start_s, pid = "stub", "secret-key", 1024, 0.5, 1
    engine = StubEngine()

    def __init__(self, *_, log_path, delay_s=0.0, thinking=3, dies_after=None, status=200):
        self.log_path, self.delay_s, self.thinking = Path(log_path), delay_s, thinking
        self.dies_after, self.status = dies_after, status
        self.prompts: list[str] = []
        self.resets = 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                stub._answer(self)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self):
        self.log_path.write_text("started with secret-key\n")
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    @property
    def dead(self):
        return self.dies_after is not None and len(self.prompts) > self.dies_after

    def metrics(self):
        return ""

    def check_alive(self):
        if self.dead:
            raise AsuError("the stub died; end of its log: boom", "run again, finished requests are kept")

    def reset_prefix_cache(self):
        self.resets += 1

    def log_tail(self, n=30):
        return "boom"

    def _answer(self, http):
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.prompts.append(prompt)
        if self.dead or self.status != 200:
            http.close_connection = True
            if not self.dead:
                http.send_response(self.status)
                http.send_header("Content-Length", "2")
                http.end_headers()
                http.wfile.write(b"no")
            return
        time.sleep(self.delay_s)
        http.send_response(200)
        http.send_header("Content-Type", "text/event-stream")
        http.send_header("Connection", "close")
        http.end_headers()
        answer = str(int(prompt.split()[2]) + 1) if prompt.startswith("What is") else "x"
        deltas = [{"reasoning": "hm "}] * self.thinking + [{"content": answer}]
        for i, delta in enumerate(deltas):
            finish = "stop" if i == self.thinking else None
            self._event(http, choices=[{"index": 0, "delta": delta, "finish_reason": finish, "token_ids": [7]}])
        self._event(http, choices=[], usage={"prompt_tokens": 5, "completion_tokens": len(deltas)})
        http.wfile.write(b"data: [DONE]\n\n")
        http.close_connection = True

    def _event(self, http, **event):
        http.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def make_spec(**changes):
    """A small run of the toy task."""
    data = {"model": "mini-4m-think", "task": "toy", "problems": 8, "sampling": {"budget": 64},
            "load": {"kind": "closed", "concurrency": 4}} | changes
    return specs.parse(data, "test")


INPUTS = {"engine": "vllm", "engine_version": "0", "weights": "w", "problems": "p", "lengths": None,
          "machine": {"cpu": "c", "cores": 2, "gpus": []}}
