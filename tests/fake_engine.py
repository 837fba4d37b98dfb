"""A mock OpenAI server with known tokens and times, and a Server of the same shape as the real one around it.

`with FakeEngine(mode="vllm", thinking=5, answer=3) as fake:` serves on fake.base_url with fake.key in a thread;
fake.requests holds the bodies it was sent. `with FakeServer(...) as server:` is what runs and monitors take.
"""

import asyncio
import contextlib
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from asu.errors import AsuError

END_ID, EOS_ID, WORD_ID = 7, 2, 100
THINKING, ANSWER, MARK, EOS = "thinking", "answer", "mark", "eos"
CHUNKS = {"vllm": 1, "old": 1, "speculation": 3, "lmdeploy": 8}  # tokens that leave the engine together
GAUGES = {"kv_use": "fake:kv_use", "running": "fake:running", "waiting": "fake:waiting",
          "preemptions": "fake:preemptions_total", "prefix_queries": "fake:prefix_queries_total",
          "prefix_hits": "fake:prefix_hits_total"}


@dataclass
class FakeEngine:
    """One mock server.

    mode: vllm (ids per event), speculation (several tokens an event), lmdeploy (ids on the last of several events,
    usage only at the end), old (reasoning_content, no ids, cumulative usage when asked for).
    thinking, answer: words of each text, a token each; then one end-of-think mark (if any thinking) and one
    end-of-sequence. `script(prompt) -> (thinking text, answer text)` gives other texts. Where asked for, the
    log-probability of a token is −id/64.
    fault, or fault(request index): "http 400", "cut", "malformed", "hang", "error", "no done", "no usage", "close".
    die_after: the server is gone when one more request than this comes in.
    """

    mode: str = "vllm"
    thinking: int = 5
    answer: int = 3
    script: Callable[[str], tuple[str, str]] | None = None
    ttft_s: float = 0.0
    gap_s: float = 0.0
    fault: str | Callable[[int], str | None] | None = None
    fault_at: int = 2  # events before the fault
    die_after: int | None = None
    key: str = "secret"
    served_name: str = "fake-model"
    kv_pool_tokens: int = 4096
    requests: list[dict] = field(default_factory=list)
    written: list[list[float]] = field(default_factory=list)  # monotonic time of each event with tokens, per request
    most_running: int = 0
    alive: bool = False
    base_url: str = ""

    def __enter__(self) -> "FakeEngine":
        ready = threading.Event()
        self._running, self._tokens = 0, 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *exc) -> None:
        self.stop()
        self._thread.join(10)

    def stop(self) -> None:
        """Be gone at once, connections and all."""
        with contextlib.suppress(RuntimeError):  # its loop has ended before
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._check_key])
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/reset_prefix_cache", self._ok)
        app.router.add_get("/health", self._ok)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.alive = True
        ready.set()
        await self._stop.wait()
        self.alive = False
        for connection in list(runner.server.connections):
            if connection.transport:
                connection.transport.abort()
        await runner.cleanup()

    @web.middleware
    async def _check_key(self, request, handler):
        if request.path.startswith("/v1/") and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        return await handler(request)

    async def _ok(self, request):
        return web.Response()

    async def _models(self, request):
        return web.json_response({"object": "list", "data": [{"id": self.served_name, "object": "model"}]})

    async def _metrics(self, request):
        values = {"kv_use": min(self._tokens / self.kv_pool_tokens, 1.0), "running": self._running, "waiting": 0,
                  "preemptions": 0, "prefix_queries": 10 * len(self.requests), "prefix_hits": 0}
        return web.Response(text="".join(f"# TYPE {GAUGES[k]} gauge\n{GAUGES[k]} {v}\n" for k, v in values.items()))

    async def _complete(self, request):
        body = await request.json()
        index = len(self.requests)
        if self.die_after is not None and index >= self.die_after:
            self._stop.set()
            await asyncio.sleep(3600)
        self.requests.append(body)
        self.written.append([])
        fault = self.fault(index) if callable(self.fault) else self.fault
        if fault and fault.startswith("http"):
            return web.json_response({"error": {"message": "asked to fail <b>here</b>"}}, status=int(fault.split()[1]))
        self._running += 1
        self.most_running = max(self.most_running, self._running)
        try:
            return await self._stream(request, body, fault, self.written[-1])
        finally:
            self._running -= 1

    async def _stream(self, request, body: dict, fault: str | None, written: list[float]):
        began = time.monotonic()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if fault == "close":  # an HTTP/1.0 server: the end of the connection ends the body
            response.force_close()
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        events = self.events(body)
        for n, (count, event) in enumerate(events):
            if event["choices"] and "role" not in event["choices"][0]["delta"]:
                await _until(began + self.ttft_s + len(written) * self.gap_s)
            if fault and n == self.fault_at:
                data = {"cut": b'data: {"choices": [{"del', "malformed": b'data: {"choices": [}\n\n',
                        "error": b'data: {"error": {"message": "engine core died", "code": 500}}\n\n'}.get(fault)
                if fault == "hang":
                    await asyncio.sleep(3600)
                if data:
                    await response.write(data)
                    if fault == "cut":
                        request.transport.close()
                        return response
                    break
            if fault == "no usage" and not event["choices"]:
                continue
            if count:
                written.append(time.monotonic())
                self._tokens += count
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if fault != "no done":
            await response.write(b"data: [DONE]\n\n")
        self._tokens -= sum(count for count, _ in events)
        await response.write_eof()
        return response

    def tokens(self, body: dict) -> tuple[list[tuple[int, str, str]], str]:
        """[(id, kind, text)] of the answer to `body`, and its finish reason."""
        if self.script:
            thinking, answer = (text.split() for text in self.script(body["messages"][0]["content"]))
        else:
            thinking, answer = [f"t{i}" for i in range(self.thinking)], [f"a{i}" for i in range(self.answer)]
        found = [(WORD_ID + i, THINKING, word + " ") for i, word in enumerate(thinking)]
        found += [(END_ID, MARK, "")] if thinking else []
        found += [(WORD_ID + i, ANSWER, word + " ") for i, word in enumerate(answer)] + [(EOS_ID, EOS, "")]
        limit = body["max_tokens"]
        if body.get("ignore_eos"):
            found = found[:-1] + [(WORD_ID, ANSWER, "more ")] * max(limit - len(found) + 1, 0)
        return found[:limit], "stop" if len(found) <= limit and not body.get("ignore_eos") else "length"

    def events(self, body: dict) -> list[tuple[int, dict]]:
        """[(tokens written with it, event)] of the whole stream."""
        tokens, finish = self.tokens(body)
        options = body.get("stream_options") or {}
        ids_wanted = body.get("return_token_ids") and self.mode != "old"
        field_name = "reasoning" if self.mode in ("vllm", "speculation") else "reasoning_content"
        size, sent, withheld = CHUNKS[self.mode], 0, 0
        found = [] if self.mode == "lmdeploy" else [(0, _event({"role": "assistant", "content": ""}))]
        for start in range(0, len(tokens), size):
            group, last = tokens[start:start + size], start + size >= len(tokens)
            sent += len(group)
            thought = "".join(text for _, kind, text in group if kind == THINKING)
            said = "".join(text for _, kind, text in group if kind == ANSWER)
            if not (thought or said or ids_wanted or last):
                withheld += len(group)
                continue  # a mark alone is not sent
            delta = {field_name: thought} if thought else {}
            deltas = [delta | {"content": said}] if said and self.mode != "lmdeploy" else [delta]
            if said and self.mode == "lmdeploy":
                deltas = [delta, {"content": said}] if thought else [{"content": said}]
            for i, delta in enumerate(deltas):
                end = i == len(deltas) - 1
                event = _event(delta, finish if last and end else None)
                if ids_wanted and end:
                    event["choices"][0]["token_ids"] = [token for token, _, _ in group]
                if body.get("logprobs") and end:
                    event["choices"][0]["logprobs"] = {"content": [
                        {"token": text, "logprob": -token / 64} for token, _, text in group]}
                if options.get("continuous_usage_stats") and self.mode != "lmdeploy":
                    event["usage"] = {"prompt_tokens": 9, "completion_tokens": sent, "total_tokens": 9 + sent}
                found.append((len(group) + withheld if end else 0, event))
            withheld = 0
        if options.get("include_usage"):
            reasoning = sum(kind == THINKING for _, kind, _ in tokens)
            usage = {"prompt_tokens": 9, "completion_tokens": sent, "total_tokens": 9 + sent}
            if self.mode != "old":
                usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
            event = _event({}) | {"choices": [], "usage": usage}
            if self.mode == "vllm":
                event["metrics"] = {"time_to_first_token_ms": 12.0, "queue_time_ms": 0.0}
            found.append((0, event))
        return found


def _event(delta: dict, finish: str | None = None) -> dict:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "fake",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


async def _until(moment: float) -> None:
    if moment > time.monotonic():
        await asyncio.sleep(moment - time.monotonic())


class FakeAdapter:
    """The engine adapter of the mock."""

    name = "fake"
    reset_path = "/reset_prefix_cache"
    request_fields: dict = {}

    def version(self) -> str:
        return "1.0"

    def installed(self) -> tuple[str, str]:
        return "fake", "1.0"

    def check(self, options, model, source="") -> None:
        return None

    def check_sampling(self, options, sampling) -> None:
        return None

    def gauges(self, text: str) -> dict[str, float]:
        values = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
        return {name: float(values[sample]) for name, sample in GAUGES.items() if sample in values}


class FakeServer:
    """The attributes and methods of engines.server.Server around a FakeEngine; keywords are FakeEngine's."""

    def __init__(self, log_path: Path = Path("missing.log"), options=None, model=None, **engine):
        self.fake = FakeEngine(**engine)
        self.engine, self.options, self.model, self.log_path = FakeAdapter(), options, model, Path(log_path)
        self.key, self.served_name, self.kv_pool_tokens = self.fake.key, self.fake.served_name, self.fake.kv_pool_tokens
        self.pid, self.start_s, self.resets, self.lost_metrics = os.getpid(), 0.1, 0, False

    def __enter__(self) -> "FakeServer":
        self.fake.__enter__()
        return self

    def __exit__(self, *exc) -> None:
        self.fake.__exit__(*exc)

    @property
    def base_url(self) -> str:
        return self.fake.base_url

    def metrics(self) -> str:
        """/metrics over HTTP; AsuError when it does not answer (or `lost_metrics` says so)."""
        try:
            if self.lost_metrics:
                raise OSError("metrics lost")
            with urllib.request.urlopen(f"{self.base_url}/metrics", timeout=2) as response:
                return response.read().decode()
        except OSError as error:
            raise AsuError(f"the fake server does not answer ({error})", "start it") from error

    def check_alive(self) -> None:
        if not self.fake.alive:
            raise AsuError("the fake server died", "start it again")

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def log_tail(self, n: int = 30) -> str:
        return "log of the fake server"
