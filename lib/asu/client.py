"""One streaming request → its times and exact token counts; nothing derived.

The client speaks HTTP/1.1 itself, on asyncio's buffered protocol: a socket read costs one stamp and one append, and
everything else (chunked coding, server-sent events, JSON) happens later, a little in each turn of the event loop.
General HTTP clients wake a task per chunk, which at 1,000 streams delays the very stamps that are the measurement.
"""

import asyncio
import errno
import gc
import math
import resource
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import urlsplit

import numpy as np
import orjson

from asu.errors import AsuError

NAN = math.nan
READ_BUFFER = 1 << 18  # bytes one socket read can take; one buffer serves all connections
BATCH = 1 << 15  # undecoded bytes a stream may hold before it queues up to be decoded
SLICE = 64  # reads of one stream decoded at a time, about 0.25 ms
SLICE_S = 0.0005  # decoding in one turn of the event loop, between two rounds of reads
BUSY_S = 0.001  # a turn that read for longer decodes nothing: the next reads are already waiting
MOST_UNDECODED = 1 << 28  # bytes over all streams; beyond that, decoding comes before reading
MOST_FILES = 1 << 16  # connections one client could have: as many as a machine has ports
SPARE_FILES = 64  # files kept for all else a run opens: without one, a health check fails and the engine seems dead
KEEP_S = 2.0  # a used connection idle for longer is replaced: servers close idle ones (uvicorn after 5 s)
LAG_EVERY_S = 0.01
EXCERPT = 300  # characters of an error body that are kept

REASONING, ANSWER = 1, 2  # which text an event carried, as a bit mask


class Clock:
    """Monotonic seconds since `t0`, the start of the run; by default, now."""

    def __init__(self, t0: float | None = None):
        self.t0 = monotonic() if t0 is None else t0

    def now(self) -> float:
        return monotonic() - self.t0


@dataclass(frozen=True)
class Call:
    """What one request asks for. `chat_options` are chat template switches."""

    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    ignore_eos: bool = False
    min_tokens: int | None = None
    chat_options: dict | None = None
    logprobs: bool = False


@dataclass
class Reply:
    """What came of a request: times on the run's clock [s] (NaN: never happened), counts [tokens], texts.

    `output_tokens` is the engine's own usage, `event_tokens` the sum over the stream's events; they are kept apart
    so that a gap shows. A failed request keeps what it got, with `error` = "<kind>: <detail>", the kind one of
    http <status>, timeout, cut, malformed, refused (no connection), engine (error event), invalid (never sent).
    """

    due_s: float
    sent_s: float = NAN
    first_s: float = NAN
    visible_s: float = NAN
    last_s: float = NAN
    end_s: float = NAN
    prompt_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    answer_tokens: int = 0
    event_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    thinking_text: str = ""
    answer_text: str = ""
    server_ttft_s: float = NAN  # scheduled → first token, without the queue, where the engine tells
    server_queue_s: float = NAN
    events: list[tuple[float, int, int]] = field(default_factory=list)  # (t_s, thinking_tokens, answer_tokens)
    logprobs: list[float] = field(default_factory=list)  # per event, summed over its tokens; empty: not asked for


def engine_is_dead(error: str | None) -> bool:
    """Whether no later request can succeed either: LMDeploy answers 503 for ever once its loop has died."""
    return error is not None and error.startswith(("http 503:", "refused:"))


class Fault(Exception):
    """A reply that cannot be taken further; the text is the reply's `error`."""


# One stream event: (time [s], tokens, which texts it carried, how many tokens run up to the end-of-think id, else 0).
# A plain tuple: an answer has thousands, and every microsecond per event is a stall for the other streams.
Mark = tuple[float, int, int, int]


def attribute(marks: list[Mark], reasoning_tokens: int | None) -> list[tuple[int, int]]:
    """(thinking, answer) tokens of each event; the marks <think> and </think> count as thinking.

    With the end-of-think id seen, exact: thinking up to and including it. Without, by the text fields: all before the
    first answer text is thinking if any of it was, all after it is answer. The event of that first answer text, if it
    has several tokens, may hold thinking too, unless an event without text (the mark) came just before. Then its share
    is what the usage's `reasoning_tokens` leave over, and the mark; where the engine does not say, all but one token
    if the event brought thinking text as well, else one, the mark.
    """
    ended = next((i for i, (_, _, _, split) in enumerate(marks) if split), None)
    visible = next((i for i, (_, _, texts, _) in enumerate(marks) if texts & ANSWER), len(marks))
    if ended is not None:
        turn, share = ended, marks[ended][3]
    elif not any(texts & REASONING for _, _, texts, _ in marks[:visible + 1]):
        turn, share = -1, 0
    elif visible == len(marks):
        turn, share = visible, 0
    else:
        _, tokens, texts, _ = marks[visible]
        _, last_tokens, last_texts, _ = marks[visible - 1] if visible else (0.0, 0, 0, 0)
        both = bool(texts & REASONING or last_texts and not last_tokens)  # LMDeploy counts on the last of several
        turn, share = visible, 0
        if tokens > 1 and (both or last_texts):
            before = sum(tokens for _, tokens, _, _ in marks[:visible])
            wanted = reasoning_tokens + 1 - before if reasoning_tokens else tokens - 1 if both else 1
            share = min(max(wanted, int(both)), tokens - 1)
    split = [(tokens, 0) for _, tokens, _, _ in marks[:max(turn, 0)]]
    if 0 <= turn < len(marks):
        split.append((share, marks[turn][1] - share))
    return split + [(0, tokens) for _, tokens, _, _ in marks[turn + 1:]]


class Decoder:
    """Socket reads of one HTTP response → marks, texts and usage. `feed` raises Fault on what it cannot read."""

    def __init__(self, think_end_id: int | None = None):
        self.think_end_id = think_end_id
        self.status = 0
        self.chunked = self.keep_alive = self.body = self.complete = self.done = False
        self.cumulative = False  # tokens are counted by usage: the last event tells of a token without text (SGLang)
        self.marks: list[Mark] = []
        self.logprobs: list[float] = []  # one per mark
        self.thinking: list[str] = []
        self.answer: list[str] = []
        self.usage: dict = {}
        self.metrics: dict = {}
        self.finish_reason: str | None = None
        self.tokens = 0
        self._rest = b""  # bytes that wait for the rest of a header or a chunk size
        self._line = b""  # the unfinished line of the event stream
        self._left: int | None = 0  # bytes still to come in this chunk or response; None: until closed
        self._problem = bytearray()  # body of an error response

    def feed(self, t: float, data: bytes) -> None:
        """Take the bytes of one socket read, stamped `t` [s]."""
        if not self.status:
            data = self._head(self._rest + data)
        body = self._dechunk(data) if self.chunked else self._plain(data)
        if self.status == 200:
            self._lines(t, body)
        elif self.status:
            self._problem += body
            if self.complete or len(self._problem) > 4 * EXCERPT:
                raise Fault(f"http {self.status}: {excerpt(bytes(self._problem))}")

    def closed(self) -> None:
        """The connection is gone: complete if the body was to end so, else a Fault that says where it was cut."""
        if self.complete or (self.status == 200 and self._left is None):
            self.complete = True
            return
        if self.status and self.status != 200:
            raise Fault(f"http {self.status}: {excerpt(bytes(self._problem))}")
        where = "in the middle of an event" if self._line or self._left else "between events"
        raise Fault(f"cut: the connection closed {where}, after {self.tokens} tokens")

    def check(self) -> None:
        """Fault unless the finished stream holds all that a whole answer has."""
        if not self.done:
            where = "in the middle of an event" if self._line else "without [DONE]"
            raise Fault(f"cut: the stream ended {where}, after {self.tokens} tokens")
        if not isinstance(self.usage.get("completion_tokens"), int):
            raise Fault("malformed: the stream ended without the engine's token usage")

    def _head(self, data: bytes) -> bytes:
        head, blank, body = data.partition(b"\r\n\r\n")
        if not blank:
            self._rest = data
            return b""
        self._rest = b""
        status, *lines = head.split(b"\r\n")
        try:
            self.status = int(status.split(b" ", 2)[1])
            headers = {name: value.strip() for name, _, value in (line.lower().partition(b":") for line in lines)}
            self.chunked = headers.get(b"transfer-encoding") == b"chunked"
            length = headers.get(b"content-length")
            self._left = 0 if self.chunked else None if length is None else int(length)
        except (IndexError, ValueError):
            raise Fault(f"malformed: not an HTTP response: {excerpt(data)}") from None
        self.keep_alive = status.startswith(b"HTTP/1.1") and headers.get(b"connection") != b"close"
        self.complete = not self.chunked and self._left == 0
        return body

    def _plain(self, data: bytes) -> bytes:
        self.body |= bool(data)
        if self._left is not None and self.status:
            self._left -= len(data)
            self.complete = self._left <= 0
        return data

    def _dechunk(self, data: bytes) -> bytes:
        if self._rest:
            data, self._rest = self._rest + data, b""
        pieces, at = [], 0
        while at < len(data):
            if not self._left:
                end = data.find(b"\r\n", at)
                try:
                    size = int(data[at:end].partition(b";")[0], 16) if end >= 0 else None
                except ValueError:
                    raise Fault(f"malformed: not a chunk size: {excerpt(data[at:end])}") from None
                if not size:  # half a size, or the last chunk, which an empty line follows
                    self.complete = size == 0 and data.find(b"\r\n\r\n", end) >= 0
                    self._rest = data[at:]
                    break
                self._left, self.body, at = size + 2, True, end + 2  # a chunk ends in a line end of its own
            piece = data[at:at + self._left]
            pieces.append(piece[:max(self._left - 2, 0)])
            at += len(piece)
            self._left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _lines(self, t: float, body: bytes) -> None:
        *lines, self._line = (self._line + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    self.done = True
                else:
                    self._event(t, payload)

    def _event(self, t: float, payload: bytes) -> None:
        try:
            event = orjson.loads(payload)
            if event.get("error") or event.get("object") == "error":
                raise Fault(f"engine: {excerpt(payload)}")
            usage = event.get("usage")
            if usage:
                self.usage = usage
            if not event["choices"]:
                self.metrics = event.get("metrics") or {}
                if self.cumulative and usage and usage["completion_tokens"] > self.tokens:
                    self._mark(t, usage["completion_tokens"] - self.tokens, 0, 0, None)
                return
            choice = event["choices"][0]
            self._choice(t, choice, choice["delta"], usage)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Fault(f"malformed: not a completion event: {excerpt(payload)}") from None

    def _choice(self, t: float, choice: dict, delta: dict, usage: dict | None) -> None:
        thought = delta.get("reasoning") or delta.get("reasoning_content")
        said = delta.get("content")
        ids = choice.get("token_ids") or choice.get("output_ids")
        tokens = len(ids) if ids else max(usage["completion_tokens"] - self.tokens, 0) if usage else 0
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        texts = 0
        if thought:
            self.thinking.append("" + thought)  # TypeError unless it is text
            texts = REASONING
        if said:
            self.answer.append("" + said)
            texts |= ANSWER
        if not tokens and not texts:
            return  # the role event
        self.cumulative |= bool(tokens and not ids)
        split = ids.index(self.think_end_id) + 1 if ids and self.think_end_id in ids else 0
        self._mark(t, tokens, texts, split, choice.get("logprobs"))

    def _mark(self, t: float, tokens: int, texts: int, split: int, told: dict | None) -> None:
        self.tokens += tokens
        self.marks.append((t, tokens, texts, split))
        self.logprobs.append(sum([token["logprob"] for token in told["content"]]) if told else NAN)

    def fill(self, reply: Reply, t0: float) -> None:
        """Write what was decoded into `reply`, times relative to `t0`."""
        marks, usage = self.marks, self.usage
        shares = attribute(marks, (usage.get("completion_tokens_details") or {}).get("reasoning_tokens"))
        # An engine that never says which event held how many tokens still has a first and a last text.
        timed = [t for t, tokens, _, _ in marks if tokens] or [t for t, _, _, _ in marks]
        if timed:
            reply.first_s, reply.last_s = timed[0] - t0, timed[-1] - t0
        reply.visible_s = next((t - t0 for t, _, texts, _ in marks if texts & ANSWER), NAN)
        reply.events = [(mark[0] - t0, thinking, answer)
                        for mark, (thinking, answer) in zip(marks, shares, strict=True) if mark[1]]
        told = [logprob for mark, logprob in zip(marks, self.logprobs, strict=True) if mark[1]]
        reply.logprobs = [] if np.isnan(told).all() else told
        reply.thinking_tokens = sum([thinking for thinking, _ in shares])
        reply.answer_tokens = self.tokens - reply.thinking_tokens
        reply.event_tokens = self.tokens
        reply.prompt_tokens = usage.get("prompt_tokens", 0)
        reply.output_tokens = usage.get("completion_tokens", self.tokens)  # a cut stream never tells
        reply.finish_reason = self.finish_reason
        reply.thinking_text, reply.answer_text = "".join(self.thinking), "".join(self.answer)
        reply.server_ttft_s = seconds(self.metrics.get("time_to_first_token_ms"))
        reply.server_queue_s = seconds(self.metrics.get("queue_time_ms"))


def seconds(milliseconds: float | None) -> float:
    """Seconds; NaN for a missing value."""
    return NAN if milliseconds is None else milliseconds / 1000


def excerpt(data: bytes) -> str:
    """The start of `data` as one printable line."""
    text = " ".join(data.decode(errors="replace").split())
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"


class Backlog:
    """Streams with bytes to decode. Those that begin together end together, and decoding them all at once would stall
    everyone's reads: a turn of the event loop decodes for a moment only, and only if it is not busy reading."""

    def __init__(self):
        self.waiting: deque[Connection] = deque()
        self.undecoded = 0  # bytes over all streams
        self.worked = 0.0  # when the last turn's work ended

    def add(self, connection: "Connection") -> None:
        """Queue a connection that is not in the queue."""
        connection.queued = True
        self.waiting.append(connection)
        if len(self.waiting) == 1:
            asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        now = monotonic()
        until = now + SLICE_S if now - self.worked < BUSY_S else 0.0
        while self.waiting and (monotonic() < until or self.undecoded > MOST_UNDECODED):
            connection = self.waiting[0]
            connection.decode(SLICE)
            if not connection.reads:
                connection.queued = False
                self.waiting.popleft()
        self.worked = monotonic()
        if self.waiting:
            asyncio.get_running_loop().call_soon(self._work)


class Connection(asyncio.BufferedProtocol):
    """One TCP connection that carries one exchange at a time."""

    def __init__(self, buffer: memoryview, backlog: Backlog):
        self.buffer = buffer  # shared: each read is copied out before the next one starts
        self.backlog = backlog
        self.queued = False
        self.transport: asyncio.Transport | None = None
        self.decoder: Decoder | None = None
        self.finished: asyncio.Future | None = None
        self.idle_since = math.inf  # never used: nothing counts its idle time
        self.end = NAN
        self.seen = NAN
        self.reads: list[tuple[float, bytes]] = []
        self.pending = 0

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, count):
        self.seen = now = monotonic()
        data = bytes(self.buffer[:count])
        self.reads.append((now, data))
        self.pending += count
        self.backlog.undecoded += count
        decoder = self.decoder
        lazy = decoder is not None and decoder.chunked and decoder.body
        if not lazy:
            self.decode()
        # A chunked body ends in an empty line; a read shorter than that end may be the last part of one.
        elif (count < 5 or self.pending > BATCH or data.endswith(b"\r\n\r\n")) and not self.queued:
            self.backlog.add(self)

    def decode(self, most: int | None = None):
        """Decode the oldest `most` reads kept; ends the exchange when they complete it or cannot be read."""
        reads = self.reads[:most]
        del self.reads[:most]
        size = sum([len(data) for _, data in reads])
        self.pending -= size
        self.backlog.undecoded -= size
        if self.decoder is None:
            if reads:
                self.transport.abort()  # bytes nobody asked for
            return
        try:
            for t, data in reads:
                self.decoder.feed(t, data)
            if self.decoder.complete:
                self.finish(None)
        except Fault as fault:
            self.finish(str(fault))

    def connection_lost(self, exc):
        if self.finished is not None and not self.finished.done():
            self.seen = monotonic()
            self.decode()
            try:
                self.decoder.closed()
                self.finish(None)
            except Fault as fault:
                self.finish(str(fault))

    def finish(self, error: str | None) -> None:
        if not self.finished.done():
            self.end = self.seen
            self.finished.set_result(error)

    async def exchange(self, request: bytes, decoder: Decoder, timeout_s: float, idle_timeout_s: float) -> str | None:
        """Write `request`, feed the response to `decoder`; None, or the error that ended it."""
        loop = asyncio.get_running_loop()
        self.decoder, self.finished, self.end = decoder, loop.create_future(), NAN
        deadline = monotonic() + timeout_s

        def watch():
            nonlocal timer
            now = monotonic()
            silent_until = self.seen + idle_timeout_s if decoder.body else math.inf  # queueing is not silence
            if now < min(deadline, silent_until):
                timer = loop.call_at(loop.time() + min(deadline, silent_until, now + idle_timeout_s) - now, watch)
                return
            self.seen = now
            self.decode()
            self.finish(f"timeout: no whole answer within {timeout_s:g} s" if now >= deadline
                        else f"timeout: the stream was silent for {idle_timeout_s:g} s")

        timer = loop.call_later(min(timeout_s, idle_timeout_s), watch)
        self.transport.write(request)
        try:
            return await self.finished
        finally:
            timer.cancel()
            self.decoder = self.finished = None
            self.idle_since = monotonic()


class Client:
    """Sends streaming chat completions over connections that are open before the run starts.

    `concurrency`: connections opened on entry; more are opened when needed. `timeout_s`: for a whole request, queueing
    included. `idle_timeout_s`: longest silence within a stream that has begun. `extras`: engine-specific body fields,
    None for one the engine must not get.
    `think_end_id`: id of the token that ends the thinking, for exact counts in events of several tokens.

    Tokens are counted by the ids in the events, or by cumulative usage where an engine sends that instead. Both are
    exact; ids are what is asked for, because a vLLM with a reasoning parser recounts the whole output for each
    cumulative usage, which makes long answers slow.
    """

    def __init__(self, base_url: str, key: str, model: str, *, timeout_s: float, idle_timeout_s: float,
                 concurrency: int, extras: dict | None = None, think_end_id: int | None = None):
        url = urlsplit(base_url.removesuffix("/").removesuffix("/v1"))
        if url.scheme not in ("http", "https") or not url.hostname:
            raise AsuError(f"{base_url!r} is not the address of an engine", "give one like http://127.0.0.1:8000")
        self.host, self.secure = url.hostname, url.scheme == "https"
        self.port = url.port or (443 if self.secure else 80)
        self.model, self.extras, self.think_end_id = model, extras or {}, think_end_id
        self.timeout_s, self.idle_timeout_s, self.concurrency = timeout_s, idle_timeout_s, concurrency
        self._head = (f"POST {url.path}/v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
                      f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
                      "Accept: text/event-stream\r\nContent-Length: ").encode()
        self._buffer, self._backlog = memoryview(bytearray(READ_BUFFER)), Backlog()
        self._idle: list[Connection] = []
        self._lags = array("d")
        self._sampler: asyncio.Task | None = None

    @property
    def loop_lag_s(self) -> np.ndarray:
        """How late the event loop ran a timer, sampled every 10 ms [s]; shape (samples,)."""
        return np.array(self._lags)

    async def __aenter__(self) -> "Client":
        self._most_files = allow_open_files(self.concurrency + 256)
        try:
            for start in range(0, self.concurrency, 128):  # fewer at once than a server's accept queue holds
                count = min(128, self.concurrency - start)
                self._idle += await asyncio.gather(*(self._connect() for _ in range(count)))
        except OSError as error:
            self._close()
            raise AsuError(f"no engine answers at {self.host}:{self.port} ({error})",
                           "start the server and wait until it is healthy before opening a client") from None
        self._sampler = asyncio.create_task(self._sample_lag())
        return self

    async def __aexit__(self, *exc) -> None:
        self._sampler.cancel()
        self._close()
        await asyncio.sleep(0)  # lets the transports run their closing callbacks

    async def send(self, call: Call, due_s: float, clock: Clock) -> Reply:
        """Send `call` now and read its stream to the end; a failure is in the reply's `error`.

        AsuError only where this process may open no further connection, which is no fault of the engine.
        """
        reply = Reply(due_s)
        if not call.prompt.strip():
            reply.error = "invalid: empty prompt, not sent"
            return reply
        body = orjson.dumps(self._body(call))
        request = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        try:
            async with asyncio.timeout(self.timeout_s):
                connection = await self._take()
        except OSError as error:  # TimeoutError is one
            reply.sent_s = reply.end_s = clock.now()
            reply.error = f"refused: no connection to {self.host}:{self.port}: {error or 'timed out'}"
            return reply
        decoder, keep = Decoder(self.think_end_id), False
        try:
            reply.sent_s = clock.now()
            reply.error = await connection.exchange(request, decoder, self.timeout_s, self.idle_timeout_s)
            keep = reply.error is None and decoder.keep_alive
            if reply.error is None:
                decoder.check()
        except Fault as fault:
            reply.error = str(fault)
        finally:
            if keep:
                self._idle.append(connection)
            else:
                connection.transport.abort()  # also when cancelled: the engine stops generating for nobody
        decoder.fill(reply, clock.t0)
        reply.end_s = connection.end - clock.t0
        return reply

    def _body(self, call: Call) -> dict:
        body = {"model": self.model, "messages": [{"role": "user", "content": call.prompt}], "stream": True,
                "stream_options": {"include_usage": True}, "return_token_ids": True, "max_tokens": call.max_tokens,
                "temperature": call.temperature, "top_p": call.top_p, "top_k": 0, "seed": call.seed}
        optional = {"ignore_eos": call.ignore_eos or None, "min_tokens": call.min_tokens,
                    "chat_template_kwargs": call.chat_options, "logprobs": call.logprobs or None}
        return {name: value for name, value in (body | optional | self.extras).items() if value is not None}

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._buffer, self._backlog), self.host, self.port, ssl=self.secure or None)
        return connection

    async def _take(self) -> Connection:
        oldest = monotonic() - KEEP_S
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing() and connection.idle_since > oldest:
                return connection
            connection.transport.abort()
        try:
            connection = await self._connect()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise self._too_many() from None
            raise
        # The lowest free number is given first: a high one says that those below are in use.
        if connection.transport.get_extra_info("socket").fileno() > self._most_files - SPARE_FILES:
            connection.transport.abort()
            raise self._too_many()
        return connection

    def _too_many(self) -> AsuError:
        return AsuError(f"more requests are in flight than this session may open files ({self._most_files})",
                        "raise the limit with `ulimit -n` and run the same command again, requests already finished "
                        "are kept; or lower the rate of the load")

    def _close(self) -> None:
        while self._idle:
            self._idle.pop().transport.abort()

    async def _sample_lag(self) -> None:
        while True:
            due = monotonic() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._lags.append(max(monotonic() - due, 0.0))


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection meanwhile: a full pass over a large heap stalls every stream at once."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def allow_open_files(count: int) -> float:
    """Raise the process's soft limit of open files as far as it goes, and return it; AsuError if less than `count`.

    In an open loop nobody knows beforehand how many requests will be in flight.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    if hard != resource.RLIM_INFINITY and hard < count:
        raise AsuError(f"{count} open files are needed, this session may have {hard}",
                       f"raise the limit with `ulimit -n {count}`, or lower the concurrency of the load")
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    limit = max(soft, count, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit
