"""Serving engines: neutral options in, a running server out. A new engine is one file here and one entry below."""

from asu.engines.base import Engine
from asu.engines.lmdeploy import LMDeploy
from asu.engines.sglang import SGLang
from asu.engines.tensorrt_llm import TensorRTLLM
from asu.engines.vllm import VLLM
from asu.errors import AsuError

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (VLLM(), LMDeploy(), SGLang(), TensorRTLLM())}


def get(name: str) -> Engine:
    """The engine called `name`, or an error that lists the names there are."""
    if name not in ENGINES:
        raise AsuError(f"unknown engine {name!r}",
                       f"use one of: {', '.join(ENGINES)}; new engines go in lib/asu/engines")
    return ENGINES[name]
