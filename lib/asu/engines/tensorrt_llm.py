"""TensorRT-LLM's `trtllm-serve` with its PyTorch backend, on NVIDIA GPUs. Flags and names as of 1.3, from its source.

It knows no key: like every server here it listens on 127.0.0.1 only, but there anyone may send it requests. Its streams
carry no token ids but cumulative usage, so tokens are counted by that. Without an address that empties its cache of
prefixes, runs that use one need a fresh server each.
"""

import hashlib
import json
import re
from pathlib import Path

from asu import paths
from asu.engines import base
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions

BLOCK_TOKENS = 32
STEP_TOKENS = 8192  # prompt tokens in one step, its default; a prompt must fit, so at least one context

WEIGHTS = ("bf16", "modelopt_fp8")
KV_CACHE = {"bf16": "auto", "fp8_e4m3": "fp8"}


class TensorRTLLM(base.Engine):
    """TensorRT-LLM's OpenAI server."""

    name = "tensorrt_llm"
    packages = ("tensorrt-llm", "tensorrt_llm")
    install = "on a machine with an NVIDIA GPU and NVIDIA's package index: python3 -m venv .venv-tensorrt_llm && " \
              ".venv-tensorrt_llm/bin/pip install tensorrt-llm"
    metrics_path = "/prometheus/metrics"  # its /metrics is a list of steps in JSON
    gauge_names = {
        "kv_use": "trtllm_kv_cache_utilization",
        "running": "trtllm_num_requests_running",
        "waiting": "trtllm_num_requests_waiting",
        "prefix_queries": "trtllm_prompt_tokens_total",
        "prefix_hits": "trtllm_prompt_cached_tokens_total",
        "spec_drafted": "trtllm_spec_decode_num_draft_tokens_total",
        "spec_accepted": "trtllm_spec_decode_num_accepted_tokens_total",
    }
    # It refuses fields it does not know.
    request_fields = {"stream_options": base.CUMULATIVE_USAGE, "return_token_ids": None}

    def check(self, options: EngineOptions, model: Model, source: str) -> None:
        base.need_gpu("TensorRT-LLM")
        self.installed()
        base.check_weights(model, source, options.random_weights)
        base.check_context(model, source, options.context)
        if options.weights not in WEIGHTS:
            raise base.refuse("TensorRT-LLM", "weights", options.weights, WEIGHTS)
        base.check_checkpoint("TensorRT-LLM", model, source, options.weights, ())
        base.check_capability("TensorRT-LLM", options.weights)
        if options.kv_cache not in KV_CACHE:
            raise base.refuse("TensorRT-LLM", "kv_cache", options.kv_cache, KV_CACHE)
        if options.kv_cache == "bf16" and _kv_scales(source):
            raise base.refuse("TensorRT-LLM", "kv_cache", "bf16", ["fp8_e4m3"],
                              "it takes FP8 from a checkpoint that brings scales for it")
        base.check_ranks(options.tensor_parallel)
        base.check_draft("TensorRT-LLM", options, model, source)
        pool = options.kv_pool_tokens
        if pool is not None and (pool % BLOCK_TOKENS or pool < options.context):
            least = -(-options.context // BLOCK_TOKENS) * BLOCK_TOKENS
            raise AsuError(f"TensorRT-LLM cannot make a KV pool of {pool} tokens",
                           f"use a multiple of {BLOCK_TOKENS}, at least {least}, which holds one context")

    def prepare(self, options: EngineOptions, source: str) -> None:
        """Most options have no flag: they are read from a file."""
        file = _file(options)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_settings(options), indent=1) + "\n")

    def command(self, model: Model, source: str, options: EngineOptions, host: str, port: int,
                served_name: str) -> list[str]:
        flags = [
            "serve", source, "--backend", "pytorch", "--host", host, "--port", str(port), "--log_level", "info",
            "--max_seq_len", str(options.context), "--max_batch_size", str(options.max_requests),
            "--max_num_tokens", str(max(STEP_TOKENS, options.context)),
            "--tensor_parallel_size", str(options.tensor_parallel), "--config", str(_file(options)),
        ]
        if not Path(source).is_dir():
            flags += ["--revision", model.revision]
        if model.thinks:
            flags += ["--reasoning_parser", "deepseek-r1"]
        return [self.python, "-m", "tensorrt_llm.commands.serve", *flags]

    def environment(self, options: EngineOptions, source: str, key: str) -> dict[str, str]:
        variables = {"PYTHONUNBUFFERED": "1", "TRTLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if Path(source).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        return variables

    def kv_pool_tokens(self, log_text: str, metrics_text: str) -> int | None:
        found = re.findall(r"max tokens in paged KV cache \((\d+)\)", log_text)
        if found:
            return int(found[-1])
        told = base.samples(metrics_text, {"blocks": "trtllm_kv_cache_max_blocks",
                                           "each": "trtllm_kv_cache_tokens_per_block"})
        return int(told["blocks"] * told["each"]) if len(told) == 2 else None


def _settings(options: EngineOptions) -> dict:
    """What the options mean in trtllm-serve's own file of settings; JSON is YAML."""
    cache = {"enable_block_reuse": options.prefix_caching, "tokens_per_block": BLOCK_TOKENS,
             "dtype": KV_CACHE[options.kv_cache]}
    if options.kv_pool_tokens is not None:
        cache["max_tokens"] = options.kv_pool_tokens
    if options.memory_share is not None:
        cache["free_gpu_memory_fraction"] = options.memory_share
    settings = {"dtype": "bfloat16", "kv_cache_config": cache,
                "return_perf_metrics": True, "enable_iter_perf_stats": True}  # both, or there are no gauges
    if options.random_weights:
        settings["load_format"] = "dummy"
    asked = options.speculation
    if asked is not None:
        settings["speculative_config"] = {"max_draft_len": asked.tokens} | (
            {"decoding_type": "NGram", "max_matching_ngram_size": asked.tokens} if asked.method == "ngram"
            else {"decoding_type": "Draft_Target", "speculative_model": base.draft(options)[1]})
    return settings


def _file(options: EngineOptions) -> Path:
    """Where the settings lie: one file for each content, so that servers side by side never share a changed one."""
    name = hashlib.sha256(json.dumps(_settings(options), sort_keys=True).encode()).hexdigest()[:16]
    return paths.OUTPUT / "engines" / f"trtllm-{name}.yaml"


def _kv_scales(source: str) -> bool:
    """Whether a local checkpoint was quantised with FP8 scales for its KV cache."""
    file = Path(source) / "hf_quant_config.json"
    return file.is_file() and bool(json.loads(file.read_text())["quantization"].get("kv_cache_quant_algo"))
