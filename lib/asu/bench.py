"""How exact the client's times are: `python -m asu.bench` against a mock engine that stamps each token it writes.

The mock is a separate process on the same host, so both read one monotonic clock: the error of a stamp is the
client's time of a token minus the time the mock handed it to the kernel.
"""

import asyncio
import contextlib
import multiprocessing
import os
import platform
import resource
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import numpy as np
import orjson
import pandas as pd

from asu.client import Call, Client, Clock, Reply, quiet_collector
from asu.load import dispatch
from asu.specs import Batch, Gamma, Load

TTFT_S = 0.2
GAP_S = 0.01
SLOT_S = 0.001  # the mock writes in slots
SLOTS = round(GAP_S / SLOT_S)  # streams are spread over those of a gap

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Scene:
    """One offered load: `requests` answers of `tokens` tokens each."""

    title: str
    load: Load
    requests: int
    tokens: int


SCENES = [
    Scene("1,000 streams × 100 tok/s", Batch(size=1000), 1000, 600),
    Scene("200 requests/s, Poisson", Gamma(rate=200.0, cv=1.0), 2000, 50),
]


def chunk(event: dict) -> bytes:
    """One event in chunked coding, as a server writes it."""
    data = b"data: " + orjson.dumps(event) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def completion(delta: dict, ids: list[int], finish: str | None = None) -> dict:
    """A chat completion event of vLLM's form."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": ids}
    return {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1700000000,
            "model": "mock", "choices": [choice]}


THOUGHT = chunk(completion({"reasoning": " token"}, [1234]))


class MockStream(asyncio.Protocol):
    """One connection of the mock; `start` is told (stream, request index, tokens) for each request."""

    def __init__(self, start: Callable[["MockStream", int, int], None]):
        self.start = start
        self.received = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        head, blank, body = self.received.partition(b"\r\n\r\n")
        if blank and len(body) >= int(head.rpartition(b"Content-Length: ")[2].partition(b"\r\n")[0]):
            self.received = b""
            asked = orjson.loads(body)
            self.transport.write(HEAD)
            self.start(self, int(asked["messages"][0]["content"]), asked["max_tokens"])


def last_chunks(tokens: int) -> bytes:
    """What follows the last but one token: the last one, the usage, the end."""
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    done = b"data: [DONE]\n\n"
    return (chunk(completion({"content": " token"}, [1234], "length")) + chunk({"choices": [], "usage": usage})
            + b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))


async def serve(pipe) -> None:
    """The mock engine: sends its port, serves until told to stop, then sends {request: write times [s]}."""
    loop = asyncio.get_running_loop()
    written: dict[int, array] = {}
    slots: dict[int, list] = {}

    def start(stream: MockStream, request: int, tokens: int) -> None:
        written[request] = array("d")
        slot = int((monotonic() + TTFT_S) / SLOT_S) + request % SLOTS
        slots.setdefault(slot, []).append((stream, written[request], tokens))

    async def write() -> None:
        now = int(monotonic() / SLOT_S)
        while True:
            for slot in range(now, now := int(monotonic() / SLOT_S)):
                for entry in slots.pop(slot, ()):
                    stream, times, tokens = entry
                    if stream.transport.is_closing():
                        continue
                    last = len(times) == tokens - 1
                    times.append(monotonic())
                    stream.transport.write(last_chunks(tokens) if last else THOUGHT)
                    if not last:
                        slots.setdefault(slot + SLOTS, []).append(entry)
            await asyncio.sleep(SLOT_S / 4)

    server = await loop.create_server(lambda: MockStream(start), "127.0.0.1", 0, backlog=2048)
    writer = asyncio.create_task(write())
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(pipe.recv)
    writer.cancel()
    server.close()
    pipe.send({request: np.array(times) for request, times in written.items()})


def mock(pipe) -> None:
    """Body of the mock's process."""
    with quiet_collector():
        asyncio.run(serve(pipe))


async def measure(scene: Scene, port: int) -> tuple[list[Reply], float, np.ndarray]:
    """Replies in request order, the run's t0 [s], and the event loop's lag [s]."""
    replies: list[Reply | None] = [None] * scene.requests
    async with Client(f"http://127.0.0.1:{port}", "key", "mock", timeout_s=300, idle_timeout_s=60,
                      concurrency=min(scene.requests, 1000)) as client:
        clock = Clock()

        async def send(i: int, due_s: float, batch: int) -> None:
            replies[i] = await client.send(Call(str(i), scene.tokens, 0.0, 1.0, 0), due_s, clock)

        await dispatch(scene.load, scene.requests, 0, send, clock)
        return replies, clock.t0, client.loop_lag_s


def row(scene: Scene) -> dict:
    """The table's row of one scene; times in ms."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=mock, args=(theirs,), daemon=True)
    process.start()
    try:
        port = ours.recv()
        busy = resource.getrusage(resource.RUSAGE_SELF)
        with quiet_collector():
            replies, t0, loop_lag = asyncio.run(measure(scene, port))
        used = resource.getrusage(resource.RUSAGE_SELF)
        ours.send("stop")
        written = ours.recv()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.join()
    failed = [reply.error for reply in replies if reply.error]
    whole = [i for i, reply in enumerate(replies) if not reply.error]
    stamped = [np.array([t for t, _, _ in replies[i].events]) + t0 for i in whole]
    true = [written[i] for i in whole]
    wall = max(reply.end_s for reply in replies) - min(reply.sent_s for reply in replies)
    cpu = used.ru_utime + used.ru_stime - busy.ru_utime - busy.ru_stime
    first = [a[0] - b[0] for a, b in zip(stamped, true, strict=True)]
    every = np.concatenate([a - b for a, b in zip(stamped, true, strict=True)])
    gaps = np.concatenate([np.diff(a) for a in stamped])
    true_gaps = np.concatenate([np.diff(b) for b in true])
    ttft = [replies[i].first_s - replies[i].sent_s - TTFT_S - i % SLOTS * SLOT_S for i in whole]
    lag = [reply.sent_s - reply.due_s for reply in replies]
    return {"scene": scene.title, "failed": len(failed), "tokens/s": sum(r.event_tokens for r in replies) / wall,
            "client CPU [cores]": cpu / wall,
            **_percentiles("TTFT − nominal", ttft), **_percentiles("TTFT error", first),
            **_percentiles("token error", every), **_percentiles("gap error", np.abs(gaps - true_gaps)),
            "gap p99": np.percentile(gaps, 99) * 1e3, "mock's gap p99": np.percentile(true_gaps, 99) * 1e3,
            "send lag p99": np.percentile(lag, 99) * 1e3, "loop lag p99": np.percentile(loop_lag, 99) * 1e3}


def _percentiles(name: str, values) -> dict[str, float]:
    return {f"{name} p{q}": float(np.percentile(values, q)) * 1e3 for q in (50, 99)}


def main() -> None:
    """Print the table, one column per scene."""
    table = pd.DataFrame([row(scene) for scene in SCENES]).set_index("scene").T
    print(f"client benchmark · {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"load average before {os.getloadavg()[0]:.1f} · times in ms, error = client's stamp − mock's write")
    print(table.map("{:,.2f}".format).to_string())


if __name__ == "__main__":
    main()
