"""The client against engines of every protocol form and against everything that can go wrong."""

import asyncio
import errno
import math
import socket

import numpy as np
import pytest
from asu import client as module
from asu.bench import chunk, completion
from asu.client import ANSWER, REASONING, Call, Client, Clock, Decoder, Fault, Reply, attribute, engine_is_dead
from asu.errors import AsuError
from fake_engine import END_ID, FakeEngine
from hypothesis import given
from hypothesis import strategies as st

BOTH = REASONING | ANSWER
CUMULATIVE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def call(prompt="What is 2 + 2?", max_tokens=100, **more) -> Call:
    return Call(prompt, max_tokens, temperature=0.6, top_p=0.95, seed=1, **more)


def ask(fake: FakeEngine, *calls: Call, one_by_one=False, **options) -> list[Reply]:
    """Replies to `calls`, sent at once unless `one_by_one`."""
    options = {"timeout_s": 20, "idle_timeout_s": 10, "concurrency": len(calls) or 1, "key": fake.key} | options

    async def main():
        clock = Clock()
        async with Client(fake.base_url, options.pop("key"), fake.served_name, **options) as client:
            sends = [client.send(one, 0.0, clock) for one in calls or [call()]]
            return [await send for send in sends] if one_by_one else await asyncio.gather(*sends)

    return asyncio.run(main())


def check_whole(reply: Reply) -> None:
    """What holds for every answer that came whole."""
    assert reply.error is None
    assert reply.event_tokens == reply.output_tokens == reply.thinking_tokens + reply.answer_tokens
    assert [sum(column) for column in list(zip(*reply.events, strict=True))[1:]] == [
        reply.thinking_tokens, reply.answer_tokens]
    times = [t for t, _, _ in reply.events]
    assert times == sorted(times) and times[0] == reply.first_s and times[-1] == reply.last_s
    assert reply.due_s <= reply.sent_s <= reply.first_s <= reply.last_s <= reply.end_s


@pytest.mark.parametrize("mode, options", [
    ("vllm", {}), ("vllm", {"think_end_id": END_ID}), ("vllm", {"extras": CUMULATIVE | {"return_token_ids": False}}),
    ("speculation", {"think_end_id": END_ID}), ("speculation", {}), ("lmdeploy", {"think_end_id": END_ID}),
    ("lmdeploy", {}), ("old", {"extras": CUMULATIVE}),
    ("speculation", {"extras": CUMULATIVE | {"return_token_ids": False}})])
@pytest.mark.parametrize("thinking, answer", [(5, 3), (6, 4), (1, 1), (40, 9), (5, 0), (7, 1)])
def test_every_protocol_form_counts_exactly(mode, options, thinking, answer):
    with FakeEngine(mode=mode, thinking=thinking, answer=answer) as fake:
        reply, = ask(fake, **options)
    check_whole(reply)
    assert reply.output_tokens == thinking + answer + 2 and reply.prompt_tokens == 9
    # An answer without text leaves no sign of where the thinking ended, except the id.
    known = "think_end_id" in options or answer
    assert (reply.thinking_tokens, reply.answer_tokens) == ((thinking + 1, answer + 1) if known else
                                                            (thinking + 2, 0))
    assert reply.thinking_text.split() == [f"t{i}" for i in range(thinking)]
    assert reply.answer_text.split() == [f"a{i}" for i in range(answer)]
    assert reply.finish_reason == "stop"
    assert math.isnan(reply.visible_s) == (answer == 0)


@pytest.mark.parametrize("mode", ["vllm", "speculation", "lmdeploy"])
def test_a_plain_model_only_answers(mode):
    with FakeEngine(mode=mode, thinking=0, answer=9) as fake:
        reply, = ask(fake)
    check_whole(reply)
    assert (reply.thinking_tokens, reply.answer_tokens) == (0, 10) and reply.visible_s == reply.first_s


def test_an_answer_cut_in_its_thinking_was_never_visible():
    with FakeEngine(thinking=50) as fake:
        reply, = ask(fake, call(max_tokens=20))
    check_whole(reply)
    assert (reply.thinking_tokens, reply.answer_tokens, reply.finish_reason) == (20, 0, "length")
    assert math.isnan(reply.visible_s) and reply.answer_text == ""


def test_the_role_event_is_no_token():
    decoder = Decoder()
    decoder.feed(0.0, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    decoder.feed(1.0, chunk(completion({"role": "assistant", "content": ""}, [])))
    assert decoder.marks == []
    decoder.feed(2.0, chunk(completion({"reasoning": "so"}, [5])))
    assert decoder.marks == [(2.0, 1, REASONING, 0)]


def test_times_are_those_of_the_server():
    with FakeEngine(thinking=4, answer=3, ttft_s=0.05, gap_s=0.02) as fake:
        clock = Clock()

        async def main():
            async with Client(fake.base_url, fake.key, "m", timeout_s=9, idle_timeout_s=9, concurrency=1) as client:
                return await client.send(call(), clock.now(), clock)

        reply = asyncio.run(main())
        written = np.array(fake.written[0]) - clock.t0
    assert len(reply.events) == len(written) == 9
    assert (np.array([t for t, _, _ in reply.events]) >= written).all()  # no token is seen before it was written
    assert reply.events[0][0] < written[-1]  # nor held back until the end
    assert reply.first_s - reply.sent_s >= 0.05
    assert reply.visible_s == reply.events[5][0]


def test_what_the_server_measured_is_kept():
    with FakeEngine() as fake:
        reply, = ask(fake)
    assert (reply.server_ttft_s, reply.server_queue_s) == (0.012, 0.0)
    with FakeEngine(mode="lmdeploy") as fake:
        reply, = ask(fake)
    assert math.isnan(reply.server_ttft_s) and math.isnan(reply.server_queue_s)


def test_the_body_says_what_was_asked():
    with FakeEngine() as fake:
        ask(fake, call(ignore_eos=True, min_tokens=100, chat_options={"enable_thinking": False}),
            extras={"min_new_tokens": 3})
    body, = fake.requests
    assert body | {"model": "fake-model", "max_tokens": 100, "temperature": 0.6, "top_p": 0.95, "seed": 1,
                   "stream": True, "ignore_eos": True, "min_tokens": 100, "return_token_ids": True,
                   "chat_template_kwargs": {"enable_thinking": False}, "min_new_tokens": 3} == body
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [{"role": "user", "content": "What is 2 + 2?"}]


def test_what_was_not_asked_is_not_in_the_body():
    with FakeEngine() as fake:
        ask(fake)
    assert not {"ignore_eos", "min_tokens", "chat_template_kwargs", "logprobs"} & fake.requests[0].keys()


@pytest.mark.parametrize("mode", ["vllm", "speculation", "lmdeploy"])
def test_log_probabilities_are_summed_over_the_tokens_of_an_event(mode):
    with FakeEngine(mode=mode, thinking=5, answer=3) as fake:
        asked, = ask(fake, call(logprobs=True), think_end_id=END_ID)
        plain, = ask(fake, call(), think_end_id=END_ID)
    ids = [100, 101, 102, 103, 104, END_ID, 100, 101, 102, 2]
    size = {"vllm": 1, "speculation": 3, "lmdeploy": 8}[mode]
    assert fake.requests[0]["logprobs"] is True and plain.logprobs == []
    assert asked.logprobs == [-sum(ids[i:i + size]) / 64 for i in range(0, len(ids), size)]
    check_whole(asked)


def test_a_fixed_length_is_replayed():
    with FakeEngine() as fake:
        reply, = ask(fake, call(max_tokens=37, ignore_eos=True))
    check_whole(reply)
    assert (reply.output_tokens, reply.finish_reason) == (37, "length")


def test_text_is_kept_as_it_is():
    nasty = "<script>alert('x')</script>&amp; \\boxed{½} \r\ndata:[DONE] 思考"
    with FakeEngine(script=lambda prompt: (nasty, f"{prompt} {nasty}")) as fake:
        reply, = ask(fake, call("<b>2</b>"))
    check_whole(reply)
    assert reply.thinking_text.split() == nasty.split()
    assert reply.answer_text.split() == ["<b>2</b>", *nasty.split()]


def test_an_empty_prompt_is_never_sent():
    with FakeEngine() as fake:
        replies = ask(fake, call(""), call(" \n"), call("x"))
    assert [reply.error for reply in replies] == ["invalid: empty prompt, not sent"] * 2 + [None]
    assert len(fake.requests) == 1


@pytest.mark.parametrize("fault, error", [
    ("http 400", r'http 400: {"error": {"message": "asked to fail <b>here</b>"}}'),
    ("http 500", "http 500: "), ("http 503", "http 503: "),
    ("cut", "cut: the connection closed in the middle of an event, after 1 tokens"),
    ("malformed", 'malformed: not a completion event: {"choices": [}'),
    ("error", 'engine: {"error": {"message": "engine core died", "code": 500}}'),
    ("no done", r"cut: the stream ended without [DONE], after 10 tokens"),
    ("no usage", "malformed: the stream ended without the engine's token usage")])
def test_a_failure_keeps_its_reason_and_what_came_before(fault, error):
    with FakeEngine(fault=lambda i: fault if i == 0 else None) as fake:
        reply, second = ask(fake, call(), call(), one_by_one=True)
    assert reply.error.startswith(error)
    assert reply.end_s >= reply.sent_s and len(fake.requests) == 2  # once each: no retries
    got = {"cut": 1, "malformed": 1, "error": 1, "no done": 10, "no usage": 10}.get(fault, 0)
    assert reply.event_tokens == reply.output_tokens == got and len(reply.events) == got
    check_whole(second)


@pytest.mark.parametrize("limit, fault_at, error", [
    ({"timeout_s": 0.2}, 0, "timeout: no whole answer within 0.2 s"),
    ({"timeout_s": 0.2}, 3, "timeout: no whole answer within 0.2 s"),
    ({"idle_timeout_s": 0.2}, 3, "timeout: the stream was silent for 0.2 s")])
def test_a_hang_ends_in_a_timeout(limit, fault_at, error):
    with FakeEngine(fault="hang", fault_at=fault_at) as fake:
        reply, = ask(fake, **limit)
    assert reply.error == error
    assert reply.event_tokens == max(fault_at - 1, 0)


def test_waiting_in_the_queue_is_not_silence():
    with FakeEngine(ttft_s=0.5, mode="lmdeploy") as fake:
        reply, = ask(fake, idle_timeout_s=0.1)
    check_whole(reply)


def test_a_wrong_key_is_told():
    with FakeEngine() as fake:
        reply, = ask(fake, key="guess")
    assert reply.error == 'http 401: {"error": {"message": "wrong key"}}'


def test_a_server_that_dies_cuts_one_and_refuses_the_next():
    with FakeEngine(die_after=1) as fake:
        replies = ask(fake, call(), call(), call(), one_by_one=True, concurrency=1)
    check_whole(replies[0])
    assert replies[1].error == "cut: the connection closed between events, after 0 tokens"
    assert replies[2].error.startswith("refused: no connection to 127.0.0.1:")


def test_a_client_does_not_open_without_a_server():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def main():
        async with Client(f"http://127.0.0.1:{port}", "k", "m", timeout_s=1, idle_timeout_s=1, concurrency=2):
            raise AssertionError("opened")

    with pytest.raises(AsuError, match="no engine answers"):
        asyncio.run(main())


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(AsuError, match="not the address"):
        Client(address, "k", "m", timeout_s=1, idle_timeout_s=1, concurrency=1)


@pytest.mark.parametrize("error, dead", [("http 503: gone", True), ("refused: no connection", True), (None, False),
                                         ("http 500: 503", False), ("timeout: silent", False), ("cut: x", False)])
def test_a_dead_engine_is_recognised(error, dead):
    assert engine_is_dead(error) == dead


@pytest.mark.parametrize("left", [20, None])
def test_too_many_requests_for_the_files_one_may_open_are_no_fault_of_the_engine(monkeypatch, left):
    with FakeEngine(ttft_s=0.5) as fake, socket.socket() as newest:
        if left:
            monkeypatch.setattr(module, "allow_open_files", lambda count: newest.fileno() + left + module.SPARE_FILES)
        else:
            monkeypatch.setattr(Client, "_connect", _no_file_left)
        with pytest.raises(AsuError, match="more requests are in flight than this session may open files") as error:
            ask(fake, *(call() for _ in range(40)), concurrency=int(left is not None))
        assert "ulimit -n" in error.value.remedy


async def _no_file_left(client):
    raise OSError(errno.EMFILE, "Too many open files")


def test_an_http_1_0_body_ends_with_its_connection():
    with FakeEngine(fault="close") as fake:
        for reply in ask(fake, call(), call(), one_by_one=True):
            check_whole(reply)


def test_connections_are_used_again_unless_they_rested_too_long(monkeypatch):
    opened = []
    connect = Client._connect

    async def counted(self):
        opened.append(1)
        return await connect(self)

    monkeypatch.setattr(Client, "_connect", counted)
    with FakeEngine() as fake:
        ask(fake, call(), call(), call(), one_by_one=True, concurrency=1)
        assert len(opened) == 1
        monkeypatch.setattr(module, "KEEP_S", 0)
        ask(fake, call(), call(), call(), one_by_one=True, concurrency=1)
        assert len(opened) == 1 + 3


def test_a_cancelled_request_frees_the_engine():
    with FakeEngine(thinking=1000, gap_s=0.01) as fake:
        async def main():
            async with Client(fake.base_url, fake.key, "m", timeout_s=60, idle_timeout_s=60, concurrency=1) as client:
                sending = asyncio.create_task(client.send(call(max_tokens=2000), 0.0, Clock()))
                while not (fake.written and fake.written[0]):
                    await asyncio.sleep(0.01)
                sending.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sending
                while fake._running:  # the server notices that its client is gone
                    await asyncio.sleep(0.01)

        asyncio.run(main())


def test_many_streams_at_once_are_each_whole():
    with FakeEngine(thinking=30, answer=10, gap_s=0.001) as fake:
        replies = ask(fake, *(call(f"problem {i}") for i in range(100)), concurrency=20)
    assert len(replies) == 100
    for reply in replies:
        check_whole(reply)
    assert {reply.output_tokens for reply in replies} == {42}


@pytest.mark.parametrize("limits", [{"BATCH": 2000}, {"BATCH": 2000, "SLICE": 1, "SLICE_S": 0.0001},
                                    {"BATCH": 100, "MOST_UNDECODED": 0, "BUSY_S": 0.0}])
def test_long_streams_are_decoded_as_they_come(monkeypatch, limits):
    for name, value in limits.items():
        monkeypatch.setattr(module, name, value)
    with FakeEngine(thinking=500, answer=100) as fake:
        replies = ask(fake, *[call(max_tokens=1000)] * 8, concurrency=8)
    for reply in replies:
        check_whole(reply)
        assert reply.output_tokens == 602


def test_a_busy_loop_decodes_nothing_until_memory_is_short():
    class Stream:
        def __init__(self):
            self.reads, self.queued = [b"x"] * 4, False

        def decode(self, most):
            self.reads = []

    async def main():
        backlog, stream = module.Backlog(), Stream()
        backlog.worked = module.monotonic() - 1  # the turn before took a second
        backlog.add(stream)
        backlog._work()
        assert stream.reads and stream.queued
        backlog.worked, backlog.undecoded = module.monotonic() - 1, module.MOST_UNDECODED + 1
        backlog._work()
        assert not stream.reads and not stream.queued and not backlog.waiting

    asyncio.run(main())


def test_the_loop_lag_is_sampled():
    async def main(fake):
        async with Client(fake.base_url, fake.key, "m", timeout_s=9, idle_timeout_s=9, concurrency=1) as client:
            await asyncio.sleep(0.1)
            return client.loop_lag_s

    with FakeEngine() as fake:
        lags = asyncio.run(main(fake))
    assert len(lags) and (lags >= 0).all()


def test_the_collector_rests_and_comes_back():
    import gc
    with module.quiet_collector():
        assert not gc.isenabled() and gc.get_freeze_count()
    assert gc.isenabled() and not gc.get_freeze_count()


WHOLE = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
         + chunk(completion({"role": "assistant", "content": ""}, []))
         + b"d\r\n: keep-alive\n\r\n".replace(b"\n\r\n", b"\r\n")[:3] + b": keep-alive\n\r\n"
         + b"".join(chunk(completion({"reasoning": f"t{i}½"}, [i])) for i in range(10, 13))
         + chunk(completion({"reasoning": "t", "content": "a"}, [13, END_ID, 14], "stop"))
         + chunk({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 6}})
         + b"e;name=x\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def decode(data: bytes, cuts: list[int]) -> Decoder:
    decoder, edges = Decoder(END_ID), [0, *sorted(cuts), len(data)]
    for n, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        decoder.feed(float(n), data[start:end])
    return decoder


@given(st.lists(st.integers(0, len(WHOLE)), max_size=30))
def test_however_the_bytes_are_cut_the_reading_is_the_same(cuts):
    decoder = decode(WHOLE, cuts)
    decoder.check()
    reply = Reply(0.0)
    decoder.fill(reply, 0.0)
    assert decoder.complete and (reply.thinking_text, reply.answer_text) == ("t10½t11½t12½t", "a")
    assert (reply.thinking_tokens, reply.answer_tokens, reply.output_tokens) == (5, 1, 6)
    # The stamp of an event is that of the read that brought its last byte.
    edges = np.array([*sorted(cuts), len(WHOLE)])
    ends = [WHOLE.index(f"t{i}".encode()) for i in range(10, 13)]
    ends = [WHOLE.index(b"\n", end) for end in ends]
    assert [mark[0] for mark in decoder.marks[:3]] == [float(np.argmax(edges > end)) for end in ends]


@given(st.integers(0, len(WHOLE) - 1))
def test_a_stream_cut_anywhere_is_a_fault(length):
    with pytest.raises(Fault, match="cut: |malformed: "):
        decoder = decode(WHOLE[:length], [])
        decoder.closed()
        decoder.check()


@given(st.binary(max_size=300))
def test_bytes_that_are_no_stream_are_a_fault(noise):
    with pytest.raises(Fault):
        decoder = Decoder()
        decoder.feed(0.0, noise)
        decoder.feed(0.0, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + noise)
        decoder.closed()
        decoder.check()


@pytest.mark.parametrize("event", [b"[]", b"1", b"null", b'{"choices": 1}', b'{"choices": [{}]}', b"{}",
                                   b'{"choices": [{"delta": {"content": 3}}]}', b'{"choices": [{"delta": null}]}',
                                   b'{"choices": [{"delta": {}, "token_ids": 4}]}', b'"text"', b"\xff"])
def test_an_event_of_another_shape_is_malformed(event):
    decoder = Decoder()
    with pytest.raises(Fault, match="malformed: not a completion event"):
        decoder.feed(0.0, b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\ndata: " + event + b"\n\n")


# (events as (tokens, texts, tokens up to the end-of-think id), the usage's reasoning tokens) -> (thinking, answer) each
TABLE = {
    "one token an event": ([(1, 1, 0), (1, 1, 0), (1, 0, 0), (1, 2, 0), (1, 0, 0)], None,
                           [(1, 0), (1, 0), (1, 0), (0, 1), (0, 1)]),
    "the opening mark is thinking": ([(1, 0, 0), (1, 1, 0), (1, 0, 0), (2, 2, 0)], None,
                                     [(1, 0), (1, 0), (1, 0), (0, 2)]),
    "a withheld mark in the first answer event": ([(1, 1, 0), (2, 2, 0), (1, 2, 0)], None, [(1, 0), (1, 1), (0, 1)]),
    "both texts, split by the id": ([(3, 1, 0), (6, BOTH, 4), (2, 2, 0)], 99, [(3, 0), (4, 2), (0, 2)]),
    "both texts, split by the usage": ([(3, 1, 0), (6, BOTH, 0), (2, 2, 0)], 5, [(3, 0), (3, 3), (0, 2)]),
    "a usage that cannot be is bounded": ([(3, 1, 0), (6, BOTH, 0)], 50, [(3, 0), (5, 1)]),
    "no count of thinking, as vLLM says if the prompt opens it": ([(3, 1, 0), (6, BOTH, 0)], 0, [(3, 0), (5, 1)]),
    "ids on the last of two events": ([(8, 1, 0), (0, 1, 0), (8, 2, 0)], 11, [(8, 0), (0, 0), (4, 4)]),
    "the mark was in the event before": ([(6, 1, 0), (3, 2, 0)], 5, [(6, 0), (0, 3)]),
    "only thinking": ([(2, 1, 0), (1, 0, 0)], None, [(2, 0), (1, 0)]),
    "only answering": ([(1, 0, 0), (2, 2, 0), (1, 0, 0)], 0, [(0, 1), (0, 2), (0, 1)]),
    "only the end-of-sequence": ([(1, 0, 0)], None, [(0, 1)]),
    "no thought but its marks": ([(1, 0, 0), (1, 0, 1), (1, 2, 0)], None, [(1, 0), (1, 0), (0, 1)]),
    "nothing": ([], None, []),
}


@pytest.mark.parametrize("name", TABLE)
def test_tokens_are_attributed(name):
    marks, reasoning, expected = TABLE[name]
    assert attribute([(0.0, *mark) for mark in marks], reasoning) == expected


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=12), st.none() | st.integers(0, 40),
       st.none() | st.integers(0, 11))
def test_attribution_neither_loses_nor_invents_tokens(events, reasoning, ended):
    marks = [(0.0, tokens, texts, min(1, tokens) if i == ended else 0) for i, (tokens, texts) in enumerate(events)]
    shares = attribute(marks, reasoning)
    assert [sum(share) for share in shares] == [tokens for tokens, _ in events]
    assert all(share >= 0 for pair in shares for share in pair)


@pytest.mark.parametrize("soft, hard, becomes", [(1024, 4096, 4096), (1024, 1 << 20, 1 << 16), (1024, -1, 1 << 16),
                                                 (100_000, 200_000, 100_000), (-1, -1, None)])
def test_open_loops_get_as_many_connections_as_the_machine_has(monkeypatch, soft, hard, becomes):
    monkeypatch.setattr(module.resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(module.resource, "RLIM_INFINITY", -1)
    set_to = []
    monkeypatch.setattr(module.resource, "setrlimit", lambda kind, limits: set_to.append(limits))
    assert module.allow_open_files(512) == (becomes or math.inf)
    assert set_to == ([] if becomes is None else [(becomes, hard)])
    if hard == 4096:
        with pytest.raises(AsuError, match="ulimit -n 5000"):
            module.allow_open_files(5000)
