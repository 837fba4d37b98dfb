"""TensorRT-LLM's adapter: command line, settings, refusals, gauges, its stream as the client reads it. No engine."""

import json

import pytest
from asu import engines, paths
from asu.client import Decoder, Reply
from asu.engines import base
from asu.engines import tensorrt_llm as module
from asu.engines.server import Server
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions, Speculation

TRTLLM = engines.get("tensorrt_llm")
THINKS = Model("toy-think", "toy", "4M", True)
DIRECT = Model("toy-direct", "toy", "4M", False)
HOPPER, AMPERE = base.Gpu("NVIDIA H200", (9, 0)), base.Gpu("NVIDIA A100", (8, 0))

# In the form of TensorRT-LLM 1.3, cut to what matters and to what must not be mistaken for it.
METRICS = """\
# HELP trtllm_prompt_tokens_total Cumulative number of prompt (input) tokens processed.
# TYPE trtllm_prompt_tokens_total counter
trtllm_prompt_tokens_total{engine_type="undefined",model_name="undefined"} 4200.0
# TYPE trtllm_prompt_cached_tokens_total counter
trtllm_prompt_cached_tokens_total{engine_type="undefined",model_name="undefined"} 640.0
# TYPE trtllm_kv_cache_hit_rate gauge
trtllm_kv_cache_hit_rate{engine_type="undefined",model_name="undefined"} 0.15
# TYPE trtllm_kv_cache_utilization gauge
trtllm_kv_cache_utilization{engine_type="undefined",model_name="undefined"} 0.25
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{engine_type="undefined",model_name="undefined"} 12.0
# TYPE trtllm_num_requests_waiting gauge
trtllm_num_requests_waiting{engine_type="undefined",model_name="undefined"} 1.0
# TYPE trtllm_kv_cache_max_blocks gauge
trtllm_kv_cache_max_blocks{engine_type="undefined",model_name="undefined"} 4096.0
# TYPE trtllm_kv_cache_tokens_per_block gauge
trtllm_kv_cache_tokens_per_block{engine_type="undefined",model_name="undefined"} 32.0
# TYPE trtllm_spec_decode_num_draft_tokens_total counter
trtllm_spec_decode_num_draft_tokens_total{engine_type="undefined",model_name="undefined"} 80.0
# TYPE trtllm_spec_decode_num_accepted_tokens_total counter
trtllm_spec_decode_num_accepted_tokens_total{engine_type="undefined",model_name="undefined"} 50.0
"""

# Two thinking tokens, the mark that ends them, one of answer, the end of the sequence: an event a token, text or not.
DELTAS = [({"reasoning_content": "12"}, None), ({"reasoning_content": "+30"}, None), ({"content": ""}, None),
          ({"content": "42"}, None), ({"content": ""}, "stop")]


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Pretend that TensorRT-LLM is installed and which GPUs there are."""
    monkeypatch.setattr(paths, "OUTPUT", tmp_path / "output")

    def pretend(*gpus):
        monkeypatch.setattr(base, "gpus", lambda: tuple(gpus))
        monkeypatch.setattr(module.TensorRTLLM, "installed", lambda self: ("tensorrt-llm", "1.3.0"))
    return pretend


@pytest.fixture
def folder(tmp_path):
    """A weights folder with all the files an engine looks for, empty."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (weights / name).write_text("")
    (weights / "config.json").write_text("{}")
    return weights


def command(source, model=DIRECT, **options):
    return TRTLLM.command(model, str(source), EngineOptions(**options), "127.0.0.1", 8000, "toy")


def check(source, **options):
    TRTLLM.check(EngineOptions(**options), DIRECT, str(source))


def settings(source, **options):
    """The file of settings that the server is pointed to, as it lies there once prepared."""
    TRTLLM.prepare(EngineOptions(**options), str(source))
    with open(flag(command(source, **options), "--config")) as file:
        return json.load(file)


def flag(argv, name):
    return argv[argv.index(name) + 1]


def quantise_by_modelopt(folder, kv=None):
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "modelopt"}}))
    (folder / "hf_quant_config.json").write_text(json.dumps(
        {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": kv}}))


def test_command(on, folder):
    on(HOPPER, HOPPER)
    argv = command(folder, THINKS, max_requests=16, context=16384, tensor_parallel=2)
    assert argv[1:5] == ["-m", "tensorrt_llm.commands.serve", "serve", str(folder)]
    assert flag(argv, "--host") == "127.0.0.1" and flag(argv, "--tensor_parallel_size") == "2"
    assert flag(argv, "--max_batch_size") == "16" and flag(argv, "--max_seq_len") == "16384"
    assert flag(argv, "--max_num_tokens") == "16384" and flag(argv, "--reasoning_parser") == "deepseek-r1"
    assert flag(command(folder), "--max_num_tokens") == "8192" and "--reasoning_parser" not in command(folder)


def test_settings_file(on, folder):
    on(HOPPER)
    plain = settings(folder)
    assert plain["kv_cache_config"] == {"enable_block_reuse": False, "tokens_per_block": 32, "dtype": "auto"}
    assert plain["return_perf_metrics"] and plain["enable_iter_perf_stats"] and "load_format" not in plain
    full = settings(folder, kv_cache="fp8_e4m3", kv_pool_tokens=64000, memory_share=0.5, prefix_caching=True,
                    random_weights=True, speculation=Speculation(method="ngram", tokens=4))
    assert full["kv_cache_config"] == {"enable_block_reuse": True, "tokens_per_block": 32, "dtype": "fp8",
                                       "max_tokens": 64000, "free_gpu_memory_fraction": 0.5}
    assert full["load_format"] == "dummy"
    assert full["speculative_config"] == {"decoding_type": "NGram", "max_draft_len": 4, "max_matching_ngram_size": 4}


def test_other_options_get_another_file(on, folder):
    on(HOPPER)
    one, other = (flag(command(folder, prefix_caching=caching), "--config") for caching in (False, True))
    assert one != other and one == flag(command(folder), "--config")


@pytest.mark.parametrize("options, message", [
    (dict(weights="awq"), "weights: awq.*bf16, modelopt_fp8"),
    (dict(weights="modelopt_fp8"), "holds bf16 weights, not modelopt_fp8"),
    (dict(kv_cache="fp8_e5m2"), "kv_cache: fp8_e5m2.*bf16, fp8_e4m3"),
    (dict(tensor_parallel=2), "1 GPUs.*at most 1"),
    (dict(kv_pool_tokens=5000), "KV pool of 5000.*multiple of 32, at least 4096"),
    (dict(kv_pool_tokens=3200), "KV pool of 3200.*at least 4096"),
])
def test_refuses(on, folder, options, message):
    on(HOPPER)
    with pytest.raises(AsuError, match="(?s)" + message):
        check(folder, **options)


def test_modelopt_checkpoints(on, folder):
    on(HOPPER)
    quantise_by_modelopt(folder)
    check(folder, weights="modelopt_fp8")
    with pytest.raises(AsuError, match=r"(?s)quantised by modelopt.*says bf16"):
        check(folder)
    on(AMPERE)
    with pytest.raises(AsuError, match="(?s)A100.*modelopt_fp8.*Ada"):
        check(folder, weights="modelopt_fp8")


def test_a_checkpoint_with_scales_for_the_cache_decides_its_format(on, folder):
    on(HOPPER)
    quantise_by_modelopt(folder, kv="FP8")
    check(folder, weights="modelopt_fp8", kv_cache="fp8_e4m3")
    with pytest.raises(AsuError, match="(?s)kv_cache: bf16.*scales.*fp8_e4m3"):
        check(folder, weights="modelopt_fp8")


def test_needs_a_gpu_and_an_installation(folder, monkeypatch):
    monkeypatch.setattr(base, "gpus", lambda: ())
    with pytest.raises(AsuError, match="(?s)NVIDIA GPU.*vllm"):
        check(folder)
    monkeypatch.setattr(base, "gpus", lambda: (HOPPER,))
    monkeypatch.setattr(module.TensorRTLLM, "packages", ("no-such-distribution",))
    with pytest.raises(AsuError, match="(?s)tensorrt_llm is not installed.*pip install tensorrt-llm"):
        check(folder)


def test_gauges_are_read_from_a_page_of_their_own(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(Server, "_request", lambda self, method, path: asked.append(path) or METRICS)
    page = Server(TRTLLM, DIRECT, EngineOptions(), log_path=tmp_path / "log", source="x").metrics()
    assert asked == ["/prometheus/metrics"]
    assert TRTLLM.gauges(page) == {"kv_use": 0.25, "running": 12, "waiting": 1, "prefix_queries": 4200,
                                   "prefix_hits": 640, "spec_drafted": 80, "spec_accepted": 50}


def test_a_prefix_cache_wants_a_fresh_server(tmp_path):
    server = Server(TRTLLM, DIRECT, EngineOptions(prefix_caching=True), log_path=tmp_path / "log", source="x")
    with pytest.raises(AsuError, match="(?s)cannot empty its prefix cache.*fresh server"):
        server.reset_prefix_cache()


def test_kv_pool_size():
    log = "[TensorRT-LLM][INFO] Number of tokens per block: 32.\n" \
          "[TensorRT-LLM][INFO] [MemUsageChange] Allocated 0.05 GiB for max tokens in paged KV cache (2048).\n" \
          "[TensorRT-LLM][INFO] [MemUsageChange] Allocated 16.05 GiB for max tokens in paged KV cache (263008)\n"
    assert TRTLLM.kv_pool_tokens(log, METRICS) == 263008  # the first is the pool of its trial run
    assert TRTLLM.kv_pool_tokens("", METRICS) == 131072
    assert TRTLLM.kv_pool_tokens("", "") is None


def test_every_token_of_a_stream_is_counted_where_it_belongs():
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "toy"}
    deltas = [({"role": "assistant"}, None), *DELTAS]
    events = [common | {"choices": [{"index": 0, "delta": delta} | ({"finish_reason": end} if end else {})],
                        "usage": {"prompt_tokens": 9, "total_tokens": 9 + n, "completion_tokens": n}}
              for n, (delta, end) in enumerate(deltas)]
    events.append(common | {"choices": [], "usage": events[-1]["usage"]})
    decoder, reply = Decoder(), Reply(0.0)
    decoder.feed(0.0, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    for t, event in enumerate(events):
        decoder.feed(float(t), b"data: " + json.dumps(event).encode() + b" \n\n")  # the blank is theirs
    decoder.feed(9.0, b"data: [DONE]\n\n")
    decoder.check()
    decoder.fill(reply, 0.0)
    assert (reply.thinking_text, reply.answer_text, reply.finish_reason) == ("12+30", "42", "stop")
    assert (reply.event_tokens, reply.output_tokens, reply.thinking_tokens, reply.answer_tokens) == (5, 5, 3, 2)
    assert (reply.first_s, reply.visible_s, reply.last_s) == (1.0, 4.0, 5.0)


def test_a_request_asks_for_usage_and_never_for_ids():
    assert TRTLLM.request_fields == {"stream_options": {"include_usage": True, "continuous_usage_stats": True},
                                     "return_token_ids": None}
