"""SGLang's adapter: command line, refusals, gauges, and its stream as the client reads it. No engine is started."""

import json
from itertools import pairwise

import pytest
from asu import engines, models
from asu.client import Call, Client, Decoder, Reply
from asu.engines import base
from asu.engines import sglang as module
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions, Speculation

SGLANG = engines.get("sglang")
THINKS = Model("toy-think", "toy", "4M", True)
DIRECT = Model("toy-direct", "toy", "4M", False)
HOPPER, AMPERE = base.Gpu("NVIDIA H200", (9, 0)), base.Gpu("NVIDIA A100", (8, 0))

# In the form of SGLang 0.5.16, cut to what matters and to what must not be mistaken for it.
METRICS = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="mini",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 48.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="mini",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 3.0
# TYPE sglang:num_grammar_queue_reqs gauge
sglang:num_grammar_queue_reqs{engine_type="unified",model_name="mini",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.0
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="mini",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.41
# TYPE sglang:num_retracted_reqs gauge
sglang:num_retracted_reqs{engine_type="unified",model_name="mini",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.0
# TYPE sglang:num_retracted_requests_total counter
sglang:num_retracted_requests_total{engine_type="unified",model_name="mini",pp_rank="0",tp_rank="0"} 7.0
# TYPE sglang:max_total_num_tokens gauge
sglang:max_total_num_tokens{engine_type="unified",model_name="mini",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 131072.0
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="mini"} 4200.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",model_name="mini"} 600.0
sglang:cached_tokens_total{cache_source="host",model_name="mini"} 40.0
"""

# One request of nine prompt tokens: three of thinking, the mark that ends it, two of answer, the end of the sequence.
# Marks and ends are not sent: their count comes with the next event that is, the last one's with the usage alone.
STREAM = """\
{"delta": {"role": "assistant", "content": "", "reasoning_content": null}, "finish_reason": null}
{"delta": {"role": null, "content": null, "reasoning_content": "12"}, "finish_reason": null} 1
{"delta": {"role": null, "content": null, "reasoning_content": "+"}, "finish_reason": null} 2
{"delta": {"role": null, "content": null, "reasoning_content": "30"}, "finish_reason": null} 3
{"delta": {"role": null, "content": "4", "reasoning_content": null}, "finish_reason": null} 5
{"delta": {"role": null, "content": "2", "reasoning_content": null}, "finish_reason": null} 6
{"delta": {"role": null, "content": null, "reasoning_content": null}, "finish_reason": "stop", "matched_stop": 3}
"""


def usage(tokens: int, thinking: int) -> dict:
    return {"prompt_tokens": 9, "total_tokens": 9 + tokens, "completion_tokens": tokens, "prompt_tokens_details": None,
            "reasoning_tokens": thinking, "completion_tokens_details": {"reasoning_tokens": thinking}}


def stream() -> list[bytes]:
    """STREAM as the socket brings it, an event a read, with the head before and the usage and the end after it."""
    common = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "mini"}
    reads = [b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"]
    for line in STREAM.splitlines():
        choice, _, count = line.rpartition("} ")
        tokens = int(count) if choice else 0
        choice = json.loads(choice + "}" if choice else line) | {"index": 0, "logprobs": None}
        event = common | {"choices": [choice], "usage": usage(tokens, min(tokens, 4)) if tokens else None}
        reads.append(b"data: " + json.dumps(event).encode() + b"\n\n")
    last = common | {"choices": [], "usage": usage(7, 4)}
    return [*reads, b"data: " + json.dumps(last).encode() + b"\n\n", b"data: [DONE]\n\n"]


@pytest.fixture
def on(monkeypatch):
    """Pretend that SGLang is installed and which GPUs there are."""
    def pretend(*gpus):
        monkeypatch.setattr(base, "gpus", lambda: tuple(gpus))
        monkeypatch.setattr(module.SGLang, "installed", lambda self: ("sglang", "0.5.16"))
    return pretend


@pytest.fixture
def folder(tmp_path):
    """A weights folder with all the files an engine looks for, empty."""
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def command(source, model=DIRECT, **options):
    return SGLANG.command(model, str(source), EngineOptions(**options), "127.0.0.1", 8000, "toy")


def check(source, **options):
    SGLANG.check(EngineOptions(**options), DIRECT, str(source))


def flag(argv, name):
    return argv[argv.index(name) + 1]


def quantise_by(folder, method):
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))


def test_command(on, folder):
    on(HOPPER)
    argv = command(folder, max_requests=16, context=2048, kv_pool_tokens=5000, memory_share=0.5)
    assert flag(argv, "--model-path") == str(folder) and flag(argv, "--host") == "127.0.0.1"
    assert flag(argv, "--max-running-requests") == "16" and flag(argv, "--context-length") == "2048"
    assert flag(argv, "--max-total-tokens") == "5000" and flag(argv, "--mem-fraction-static") == "0.5"
    assert flag(argv, "--kv-cache-dtype") == "auto" and "--disable-radix-cache" in argv and "--enable-metrics" in argv
    assert not {"--reasoning-parser", "--load-format", "--quantization", "--revision", "--api-key"} & set(argv)


def test_options_reach_their_flags(on, folder):
    on(HOPPER, HOPPER)
    argv = command(folder, THINKS, weights="fp8", kv_cache="fp8_e4m3", prefix_caching=True,
                   tensor_parallel=2, random_weights=True)
    assert flag(argv, "--reasoning-parser") == "deepseek-r1" and flag(argv, "--tp-size") == "2"
    assert flag(argv, "--quantization") == "fp8" and flag(argv, "--kv-cache-dtype") == "fp8_e4m3"
    assert flag(argv, "--load-format") == "dummy" and "--disable-radix-cache" not in argv


def test_speculation_drafts_a_chain(on, folder):
    on(HOPPER)
    ngram = command(folder, speculation=Speculation(method="ngram", tokens=4))
    assert flag(ngram, "--speculative-algorithm") == "NGRAM"
    assert flag(ngram, "--speculative-num-draft-tokens") == "5"  # four drafted and the one that is verified with them
    assert flag(ngram, "--speculative-ngram-max-bfs-breadth") == "1"
    draft = command(folder, speculation=Speculation(method="draft", tokens=3, draft="mini-1m-think"))
    assert flag(draft, "--speculative-algorithm") == "STANDALONE"
    assert flag(draft, "--speculative-draft-model-path") == str(models.get("mini-1m-think").folder)
    assert flag(draft, "--speculative-num-steps") == "3" and flag(draft, "--speculative-eagle-topk") == "1"


def test_a_quantised_checkpoint_needs_no_flag_but_modelopt_s(on, folder):
    on(HOPPER)
    quantise_by(folder, "compressed-tensors")
    check(folder, weights="fp8")
    assert "--quantization" not in command(folder, weights="fp8")
    quantise_by(folder, "modelopt")
    check(folder, weights="modelopt_fp8")
    assert flag(command(folder, weights="modelopt_fp8"), "--quantization") == "modelopt_fp8"


@pytest.mark.parametrize("options, message", [
    (dict(weights="bnb4"), "weights: bnb4.*bf16, fp8, w4a16"),
    (dict(weights="w4a16"), "holds bf16 weights, not w4a16"),
    (dict(kv_cache="int8"), "kv_cache: int8.*fp8_e5m2"),
    (dict(tensor_parallel=2), "1 GPUs.*at most 1"),
    (dict(kv_pool_tokens=2048, context=4096), "cannot hold one context.*at least 4096"),
])
def test_refuses(on, folder, options, message):
    on(HOPPER)
    with pytest.raises(AsuError, match="(?s)" + message):
        check(folder, **options)


def test_modelopt_needs_fp8_units(on, folder):
    on(AMPERE)
    quantise_by(folder, "modelopt")
    with pytest.raises(AsuError, match="(?s)A100.*modelopt_fp8.*Ada"):
        check(folder, weights="modelopt_fp8")


def test_needs_a_gpu_and_an_installation(on, folder, monkeypatch):
    on()
    with pytest.raises(AsuError, match="(?s)NVIDIA GPU.*vllm"):
        check(folder)
    monkeypatch.undo()
    monkeypatch.setattr(base, "gpus", lambda: (HOPPER,))
    monkeypatch.setattr(module.SGLang, "packages", ("no-such-distribution",))
    with pytest.raises(AsuError, match="(?s)sglang is not installed.*pip install sglang"):
        check(folder)


def test_the_key_stays_out_of_the_log_and_the_cache_can_be_emptied(folder):
    assert flag(command(folder), "--log-level") == "warning"  # at info the log begins with all arguments
    assert SGLANG.reset_path == "/flush_cache"


def test_gauges():
    assert SGLANG.gauges(METRICS) == {"kv_use": 0.41, "running": 48, "waiting": 3, "preemptions": 7,
                                      "prefix_queries": 4200, "prefix_hits": 640}
    assert SGLANG.gauges("") == {}


def test_gauges_by_priority_are_parts_not_more():
    total = 'sglang:num_running_reqs{model_name="mini",priority=""} 5.0\n'
    parts = "".join(f'sglang:num_running_reqs{{model_name="mini",priority="{p}"}} {n}\n' for p, n in [(0, 2), (1, 3)])
    assert SGLANG.gauges("# TYPE sglang:num_running_reqs gauge\n" + total + parts) == {"running": 5}


def test_kv_pool_size():
    assert SGLANG.kv_pool_tokens("", METRICS) == 131072
    assert SGLANG.kv_pool_tokens("", "") is None


def test_every_token_of_a_stream_is_counted_where_it_belongs():
    decoder, reply = Decoder(), Reply(0.0)
    for t, data in enumerate(stream()):
        decoder.feed(float(t), data)
    decoder.check()
    decoder.fill(reply, 0.0)
    assert (reply.thinking_text, reply.answer_text, reply.finish_reason) == ("12+30", "42", "stop")
    assert (reply.event_tokens, reply.output_tokens, reply.thinking_tokens, reply.answer_tokens) == (7, 7, 4, 3)
    assert (reply.first_s, reply.visible_s) == (2.0, 5.0)
    assert reply.events == [(2.0, 1, 0), (3.0, 1, 0), (4.0, 1, 0), (5.0, 1, 1), (6.0, 0, 1), (8.0, 0, 1)]
    assert all(a[0] < b[0] for a, b in pairwise(reply.events))


def test_a_request_asks_for_usage_and_never_for_ids():
    client = Client("http://127.0.0.1:1", "key", "toy", timeout_s=1, idle_timeout_s=1, concurrency=1,
                    extras=SGLANG.request_fields)
    body = client._body(Call("hi", 5, 0.6, 0.95, 7))
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "return_token_ids" not in body and body["top_k"] == -1 and body["seed"] == 7
