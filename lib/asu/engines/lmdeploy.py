"""LMDeploy's PyTorch engine, on NVIDIA GPUs. Flags and metric names as of 0.18."""

import re
import subprocess
from pathlib import Path

from asu import fill, shapes
from asu.engines import base
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions

BLOCK_TOKENS = 64
LEAST_BLOCKS = 17

# Value of --model-format; the PyTorch engine reads the rest from the checkpoint's own quantization_config.
WEIGHTS = {"bf16": None, "fp8": "fp8", "awq": "awq", "w4a16": "compressed-tensors"}
KV_CACHE = {"bf16": "0", "int4": "4", "int8": "8", "fp8_e4m3": "16", "fp8_e5m2": "17"}

# The command line is readable by every user of the machine, and LMDeploy takes its key only there; so the key is
# added inside the process, from the environment.
WITH_KEY = "import os, runpy, sys; sys.argv += ['--api-keys', os.environ.pop('ASU_SERVER_KEY')]; " \
           "runpy.run_module('lmdeploy', run_name='__main__', alter_sys=True)"


class LMDeploy(base.Engine):
    """LMDeploy's OpenAI server."""

    name = "lmdeploy"
    packages = ("lmdeploy",)
    install = "on a machine with an NVIDIA GPU, install lib/locks/lmdeploy.txt into .venv-lmdeploy"
    gauge_names = {
        "kv_use": "lmdeploy:gpu_cache_usage_perc",
        "running": "lmdeploy:num_requests_running",
        "waiting": "lmdeploy:num_requests_waiting",
        "prefix_hits": "lmdeploy:cached_tokens_total",
        "spec_drafted": "lmdeploy:spec_decode_num_draft_tokens_total",
        "spec_accepted": "lmdeploy:spec_decode_num_accepted_tokens_total",
    }

    def check(self, options: EngineOptions, model: Model, source: str) -> None:
        base.need_gpu("LMDeploy")
        self.installed()
        base.check_weights(model, source, options.random_weights)
        base.check_context(model, source, options.context)
        if options.weights not in WEIGHTS:
            raise base.refuse("LMDeploy", "weights", options.weights, WEIGHTS)
        if options.random_weights and options.weights in shapes.SCHEMES:
            raise base.refuse("LMDeploy with random weights", "weights", options.weights, ["bf16"],
                              "it wants them in files, and quantised ones come from real weights alone")
        quantised = Path(source).is_dir() and "quantization_config" in base.config(source)
        if Path(source).is_dir() and quantised != (options.weights != "bf16"):
            raise AsuError(f"{model.name}: the weights in {source} are {'' if quantised else 'not '}quantised, "
                           f"options.weights says {options.weights}", "give the folder with that format")
        if options.kv_cache not in KV_CACHE:
            raise base.refuse("LMDeploy", "kv_cache", options.kv_cache, KV_CACHE)
        if options.speculation is not None:
            raise AsuError(f"LMDeploy cannot speculate with method {options.speculation.method}: "
                           "it has only trained draft heads (EAGLE, MTP)", "leave speculation out, or use engine: vllm")
        base.check_ranks(options.tensor_parallel)
        pool = options.kv_pool_tokens
        if pool is not None and (pool % BLOCK_TOKENS or pool < LEAST_BLOCKS * BLOCK_TOKENS):
            raise AsuError(f"LMDeploy cannot make a KV pool of {pool} tokens",
                           f"use a multiple of {BLOCK_TOKENS}, at least {LEAST_BLOCKS * BLOCK_TOKENS}")

    def prepare(self, options: EngineOptions, source: str) -> None:
        """LMDeploy has no dummy load format: random weights must lie in files, 15 GB and half a minute for a 7B."""
        if not options.random_weights or (Path(source) / fill.MARK).exists():
            return
        # -P keeps the script's own folder off the module path, where its neighbours would hide other modules.
        command = [self.python, "-P", fill.__file__, source, str(shapes.SEED)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise AsuError(f"random weights for {source} could not be made:\n{made.stderr[-2000:]}",
                           "free disk and GPU memory for weights of that size, or set ASU_OUTPUT to a larger disk")

    def command(self, model: Model, source: str, options: EngineOptions, host: str, port: int,
                served_name: str) -> list[str]:
        flags = [
            "serve", "api_server", source, "--backend", "pytorch", "--model-name", served_name,
            "--server-name", host, "--server-port", str(port), "--dtype", "bfloat16",
            "--generation-config", "lmdeploy", "--session-len", str(options.context),
            "--max-batch-size", str(options.max_requests), "--quant-policy", KV_CACHE[options.kv_cache],
            "--cache-block-seq-len", str(BLOCK_TOKENS), "--tp", str(options.tensor_parallel),
            "--log-level", "INFO", "--max-log-len", "0",  # the pool's size is told at INFO only; prompts stay out
            "--logprobs-mode", "raw_logprobs",  # else it refuses requests for them; made only for those that ask
        ]
        if not Path(source).is_dir():
            flags += ["--revision", model.revision]
        if model.thinks:
            flags += ["--reasoning-parser", "default"]
        if options.prefix_caching:
            flags += ["--enable-prefix-caching"]
        if options.kv_pool_tokens is not None:
            flags += ["--num-gpu-blocks", str(options.kv_pool_tokens // BLOCK_TOKENS)]
        if options.memory_share is not None:
            flags += ["--cache-max-entry-count", str(options.memory_share)]
        if WEIGHTS[options.weights]:
            flags += ["--model-format", WEIGHTS[options.weights]]
        return [self.python, "-c", WITH_KEY, *flags]

    def environment(self, options: EngineOptions, source: str, key: str) -> dict[str, str]:
        variables = {"ASU_SERVER_KEY": key, "PYTHONUNBUFFERED": "1"}
        if Path(source).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        return variables

    def kv_pool_tokens(self, log_text: str, metrics_text: str) -> int | None:
        found = re.findall(r"CacheConfig\([^)]*?num_gpu_blocks=(\d+)", log_text)
        return int(found[-1]) * BLOCK_TOKENS if found else None
