"""vLLM on the CPU, imported once: its server, engine core and worker are forks instead of three fresh interpreters.

A start of a 4 M-parameter model is 3 s of work after 45 s of imports, the same ones in three processes, because the CPU
platform forces `spawn`. It does so for OpenMP, whose settings are read when its first thread pool is made; here none is
made before the fork, and Intel's runtime reads them anew in each fork.
"""

import functools
import multiprocessing
import os
import re
import sys
import time

CORES = os.sched_getaffinity(0)
LOOK_EVERY_S = 1e-4  # a step takes 10 ms and more
MODULES = (
    "vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.api_server", "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core", "vllm.v1.engine.coordinator", "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker", "vllm.v1.attention.backends.cpu_attn", "vllm.model_executor.models.qwen3",
    "vllm.reasoning.deepseek_r1_reasoning_parser", "vllm.model_executor.model_loader.default_loader",
)


def preload() -> None:
    """Import all that a server needs; RuntimeError if that started threads, which do not survive a fork."""
    import importlib

    for name in MODULES:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"importing vLLM started {threads - 1} threads: it cannot be forked")


def serve(argv: list[str]) -> None:
    """Run vLLM's server with the arguments of `python -m vllm.entrypoints.openai.api_server ...` until it ends."""
    from vllm.entrypoints.launchers.api_server import entry

    _fork_everywhere()
    _wait_asleep()
    _bind()
    os.register_at_fork(after_in_child=_bind)
    sys.argv = argv[2:]
    entry.main()


def _fork_everywhere() -> None:
    """Replace vLLM's choice of start method wherever it was imported by name."""
    from vllm.utils import system_utils

    chosen = system_utils.get_mp_context

    def forked():
        return multiprocessing.get_context("fork")

    for module in list(filter(None, sys.modules.values())):
        # By __dict__: getattr would import what a lazy module has not yet.
        if module.__dict__.get("get_mp_context") is chosen:
            module.get_mp_context = forked


def _wait_asleep() -> None:
    """Let engine core and worker sleep between two looks at their queue, instead of yielding in a loop.

    On two cores the loops take what the API server and the client need, and where the kernel lets a thread that yields
    run ahead of all others (Linux 6.18), processes that wake up then wait for seconds: 8 s were seen.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = functools.partial(time.sleep, LOOK_EVERY_S)


def _bind() -> None:
    """Cores of a forked process. Intel's OpenMP would tie every fork to the first core, and no longer binds threads.

    vLLM names the worker's cores in KMP_AFFINITY while it starts the worker; all other processes may use any.
    """
    named = re.search(r"proclist=\[([\d,]+)\]", os.environ.get("KMP_AFFINITY", ""))
    os.sched_setaffinity(0, [int(core) for core in named[1].split(",")] if named else CORES)
