"""How many tokens a KV cache holds: bytes per token from the model's shape, and the pool an engine would make."""

import re

import pandas as pd

from asu import engines, models
from asu.engines import base
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions
from asu.study import Study

GIB = 2**30
# Bytes of one number; beside it those of the scales that belong to the numbers of one token in one head, K or V.
_NUMBER = {"bf16": 2.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "int8_per_token_head": 1.0, "int8": 1.0, "int4": 0.5}
_SCALES = {"int8_per_token_head": 4.0, "int8": 4.0, "int4": 4.0}  # a float32 in vLLM; scale and zero, bf16, in LMDeploy
_OVERRIDDEN = re.compile(r"Overriding num_gpu_blocks=(\d+) with num_gpu_blocks_override=(\d+)")


def bytes_per_token(shape: dict, kv_cache: str) -> float:
    """Bytes that one token takes in the KV cache of a model of this shape (fields of its config.json).

    As many numbers as layers · heads of K and V · their size, twice; with the scales the format keeps beside them.
    """
    if kv_cache not in _NUMBER:
        raise AsuError(f"the size of the KV format {kv_cache!r} is not known", f"use one of: {', '.join(_NUMBER)}")
    heads = shape["num_attention_heads"]
    size = shape.get("head_dim") or shape["hidden_size"] // heads
    per_head = size * _NUMBER[kv_cache] + _SCALES.get(kv_cache, 0.0)
    return 2.0 * shape["num_hidden_layers"] * shape.get("num_key_value_heads", heads) * per_head


def shape(model: Model) -> dict:
    """config.json of a model: of the catalogue, else of its local folder; AsuError where only the hub knows it."""
    found = model.shape or base.config(base.source(model, EngineOptions()))
    if not found:
        raise AsuError(f"the shape of {model.name} is not known here",
                       f"download it to {model.folder}, or add its shape to lib/asu/models.py")
    return found


def own_pool(log: str, pool_tokens: int | None, asked: int | None) -> int | None:
    """Tokens of the pool the engine would have made, from its log; `pool_tokens` where it was left to it (no `asked`).

    vLLM says how many blocks it had room for before it took the number asked for; None where an engine does not tell.
    """
    if asked is None:
        return pool_tokens
    told = _OVERRIDDEN.findall(log)
    return int(told[-1][0]) * (asked // int(told[-1][1])) if told else None


def table(study: Study) -> pd.DataFrame:
    """One row per model size and KV format: bytes per token, tokens per GiB, and the engine's own pool [tokens].

    The pool is what the engine would have made with the memory it had; missing where it does not tell.
    """
    rows = {}
    for spec, folder in study.folders().items():
        model, options = models.get(spec.model), spec.options
        log = (folder / "server.log").read_text() if (folder / "server.log").exists() else ""
        pool = engines.get(spec.engine).kv_pool_tokens(log, "") if options.kv_pool_tokens is None else None
        each = bytes_per_token(shape(model), options.kv_cache)
        rows.setdefault((model.size, options.kv_cache), {
            "size": model.size, "kv_cache": options.kv_cache, "bytes_per_token": each, "tokens_per_gib": GIB / each,
            "own_pool_tokens": own_pool(log, pool, options.kv_pool_tokens)})
    return pd.DataFrame(rows.values())
