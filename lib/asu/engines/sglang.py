"""SGLang, on NVIDIA GPUs. Flags, request fields and metric names as of 0.5.16 to 0.5.23, from its source.

Its streams carry no token ids but cumulative usage, so tokens are counted by that. The prefix cache is a radix tree;
n-gram speculation drafts from a tree of all texts served so far, other requests' included, not from the prompt alone.
A request's seed fixes its tokens only with deterministic kernels, which this adapter does not ask for.
"""

import re
from pathlib import Path

from asu.engines import base
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions

WEIGHTS = ("bf16", "fp8", "w4a16", "w8a8", "awq", "modelopt_fp8")
IN_FLIGHT = {"fp8": "fp8"}  # weights SGLang quantises itself while loading a bf16 checkpoint
KV_CACHE = {"bf16": "auto", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
GAUGE_STEPS = 5  # decode steps between two updates of its gauges; its own 40 take over a second on a busy GPU

# The command line is readable by every user of the machine, and SGLang takes its key only there; so the key is added
# inside the process, from the environment.
WITH_KEY = "import os, runpy, sys; sys.argv += ['--api-key', os.environ.pop('ASU_SERVER_KEY')]; " \
           "runpy.run_module('sglang.launch_server', run_name='__main__', alter_sys=True)"


class SGLang(base.Engine):
    """SGLang's OpenAI server."""

    name = "sglang"
    packages = ("sglang",)
    install = "on a machine with an NVIDIA GPU: python3 -m venv .venv-sglang && " \
              ".venv-sglang/bin/pip install sglang==0.5.16"
    gauge_names = {
        "kv_use": "sglang:token_usage",
        "running": "sglang:num_running_reqs",
        "waiting": "sglang:num_queue_reqs",
        "preemptions": "sglang:num_retracted_requests_total",
        "prefix_queries": "sglang:prompt_tokens_total",
        "prefix_hits": "sglang:cached_tokens_total",
    }
    reset_path = "/flush_cache"
    # Here -1, not 0, means all tokens; token ids are refused in a stream.
    request_fields = {"stream_options": base.CUMULATIVE_USAGE, "return_token_ids": None, "top_k": -1}

    def check(self, options: EngineOptions, model: Model, source: str) -> None:
        base.need_gpu("SGLang")
        self.installed()
        base.check_weights(model, source, options.random_weights)
        base.check_context(model, source, options.context)
        if options.weights not in WEIGHTS:
            raise base.refuse("SGLang", "weights", options.weights, WEIGHTS)
        base.check_checkpoint("SGLang", model, source, options.weights, IN_FLIGHT)
        base.check_capability("SGLang", options.weights)
        if options.kv_cache not in KV_CACHE:
            raise base.refuse("SGLang", "kv_cache", options.kv_cache, KV_CACHE)
        base.check_ranks(options.tensor_parallel)
        base.check_draft("SGLang", options, model, source)
        pool = options.kv_pool_tokens
        if pool is not None and pool < options.context:
            raise AsuError(f"a KV pool of {pool} tokens cannot hold one context of {options.context}",
                           f"raise kv_pool_tokens to at least {options.context}, or lower context")

    def command(self, model: Model, source: str, options: EngineOptions, host: str, port: int,
                served_name: str) -> list[str]:
        flags = [
            "--model-path", source, "--served-model-name", served_name, "--host", host, "--port", str(port),
            "--dtype", "bfloat16", "--sampling-defaults", "openai", "--context-length", str(options.context),
            "--max-running-requests", str(options.max_requests), "--page-size", "1", "--stream-interval", "1",
            "--kv-cache-dtype", KV_CACHE[options.kv_cache], "--tp-size", str(options.tensor_parallel),
            "--enable-metrics", "--decode-log-interval", str(GAUGE_STEPS),
            "--log-level", "warning",  # at info it writes all its arguments to the log, the key among them
        ]
        if not Path(source).is_dir():
            flags += ["--revision", model.revision]
        if model.thinks:
            flags += ["--reasoning-parser", "deepseek-r1"]
        if not options.prefix_caching:
            flags += ["--disable-radix-cache"]
        if options.kv_pool_tokens is not None:
            flags += ["--max-total-tokens", str(options.kv_pool_tokens)]
        if options.memory_share is not None:
            flags += ["--mem-fraction-static", str(options.memory_share)]
        if options.weights in IN_FLIGHT and not base.quantised(source):
            flags += ["--quantization", IN_FLIGHT[options.weights]]
        if options.weights == "modelopt_fp8":
            flags += ["--quantization", "modelopt_fp8"]
        if options.random_weights:
            flags += ["--load-format", "dummy"]
        return [self.python, "-c", WITH_KEY, *flags, *_speculation(options)]

    def environment(self, options: EngineOptions, source: str, key: str) -> dict[str, str]:
        # Without the last, each look at the health of an idle server is a request of its own.
        variables = {"ASU_SERVER_KEY": key, "PYTHONUNBUFFERED": "1", "SGLANG_TIMEOUT_KEEP_ALIVE": "3600",
                     "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}
        if Path(source).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        return variables

    def kv_pool_tokens(self, log_text: str, metrics_text: str) -> int | None:
        told = base.samples(metrics_text, {"pool": "sglang:max_total_num_tokens"})
        return int(told["pool"]) if told.get("pool") else None

    def gauges(self, text: str) -> dict[str, float]:
        # With priorities it exports each queue's total under an empty label and its parts beside it.
        return super().gauges("\n".join(line for line in text.splitlines() if not PART.search(line)))


PART = re.compile(r'[{,]priority="[^"]')


def _speculation(options: EngineOptions) -> list[str]:
    """Flags that draft a chain of tokens; SGLang counts the token that is verified with them."""
    asked = options.speculation
    if asked is None:
        return []
    chain = ["--speculative-num-draft-tokens", str(asked.tokens + 1)]
    if asked.method == "ngram":
        return ["--speculative-algorithm", "NGRAM", "--speculative-ngram-max-bfs-breadth", "1", *chain]
    return ["--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", base.draft(options)[1],
            "--speculative-num-steps", str(asked.tokens), "--speculative-eagle-topk", "1", *chain]
