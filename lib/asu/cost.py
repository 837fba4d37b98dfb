"""What runs of large models cost: GPU memory from their shapes, GPU-hours from the rates of published runs.

Decoding moves every weight and every request's KV cache once a step. A run that was not made is given the rate of the
one most like it (by engine, role, speculation, load, size and set, in this order), by the bytes a step of each moves;
so are several GPUs, each moving its part.
"""

import functools
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from asu import capacity, models, paths, roofline, workload
from asu.errors import AsuError
from asu.models import Model
from asu.records import Store, read_spec
from asu.specs import RunSpec
from asu.study import server_of

GPU_FROM_GIB = 4.0  # weights from which a model is planned for GPUs
PROBLEMS_UNKNOWN = 100  # of a set taken whole, whose size only the hub knows


@dataclass(frozen=True)
class Rate:
    """A published run at a real shape on GPUs: its spec, output tokens per second and per request, server start [s]."""

    spec: RunSpec
    tokens_per_s: float
    tokens: float
    start_s: float


@functools.cache
def measured() -> tuple[Rate, ...]:
    """Rates of all published runs of random weights at real shapes on GPUs, those for long prompts left out."""
    found = []
    for root in sorted(path for path in paths.PUBLISHED.glob("*") if path.is_dir()):
        store = Store(root)
        for (spec, done), folder in zip(store.history(), store.folders(), strict=True):
            real_shape = spec.options.random_weights and not models.get(spec.model).miniature
            if real_shape and not spec.prefix and read_spec(folder)[1]["machine"]["gpus"]:
                env = json.loads((folder / "env.json").read_text())
                found.append(Rate(spec, done["output_tokens"] / done["seconds"],
                                  done["output_tokens"] / done["requests"], env["sessions"][0]["server_start_s"]))
    return tuple(found)


def weight_gib(model: Model, weights: str = "bf16") -> float:
    """Memory of a model's weights from its shape [GiB]."""
    return roofline.weight_bytes(capacity.shape(model), weights) / capacity.GIB


def served(spec: RunSpec) -> list[Model]:
    """The models a run's server holds: its own, and the one that drafts for it."""
    drafting = spec.options.speculation and spec.options.speculation.draft
    return [models.get(name) for name in (spec.model, drafting) if name]


def kv_gib(spec: RunSpec) -> float:
    """Memory of a run's KV pool [GiB], every token held for each model served; NaN where the engine chooses it."""
    pool = spec.options.kv_pool_tokens
    each = [capacity.bytes_per_token(capacity.shape(model), spec.options.kv_cache) for model in served(spec)]
    return sum(each) * pool / capacity.GIB if pool else float("nan")


@functools.cache
def recorded(model: str, task: str) -> tuple[str, tuple[int, ...]]:
    """(file, output tokens per request) of the recorded lengths nearest to a model on a task.

    Those of the model on the task, else of another size in the same role on it, else of all recorded in that role.
    """
    files = {file.stem: max((m for m in models.CATALOGUE if file.stem.startswith(f"{m}-")), key=len, default=None)
             for file in sorted(paths.LENGTHS.glob("*.csv"))}
    asked = models.get(model)
    role = [stem for stem, of in files.items() if of and models.get(of).thinks == asked.thinks
            and models.get(of).miniature == asked.miniature]
    near = ([stem for stem in role if stem == f"{model}-{task}"]
            or [stem for stem in role if stem.startswith(f"{model}-{task}")][:1]
            or [stem for stem in role if stem.startswith(f"{files[stem]}-{task}")][:1] or role)
    if not near:
        raise AsuError(f"no lengths were recorded that could stand for {model} on {task}",
                       f"add a file to {paths.LENGTHS}")
    rows = [row for stem in near for row in workload.recorded_lengths(stem).values()]
    return near[0] if len(near) == 1 else "all of its role", tuple(int(row["output_tokens"]) for row in rows)


def _lengths(spec: RunSpec) -> list[int]:
    """Output tokens per request: those that the run replays, else those recorded nearest to it."""
    if spec.lengths is None:
        return list(recorded(spec.model, spec.task)[1])
    return [int(row["output_tokens"]) for row in workload.recorded_lengths(spec.lengths).values()]


def large(spec: RunSpec) -> bool:
    """Whether a run's model is one for GPUs."""
    model = models.get(spec.model)
    return model.shape is not None and weight_gib(model, spec.options.weights) >= GPU_FROM_GIB


def _in_flight(spec: RunSpec) -> int:
    """Requests at once, at most; of open loops as many as the engine takes."""
    named = {"batch": "size", "closed": "concurrency"}.get(spec.load.kind)
    return getattr(spec.load, named) if named else spec.options.max_requests


def _open(spec: RunSpec) -> bool:
    """Whether requests come by themselves, Gamma or recorded arrivals."""
    return spec.load.kind in ("gamma", "trace")


def _pressure(spec: RunSpec) -> float:
    """What makes two runs of one kind of load alike: nominal arrivals per second, else requests at once."""
    return getattr(spec.load, "rate", 1.0) if _open(spec) else _in_flight(spec)


def _step_bytes(spec: RunSpec, tokens: float) -> float:
    """Bytes that one decode step of a run moves, per request in flight, with requests half way through on average."""
    held, at_once = tokens / 2, _in_flight(spec)
    work = roofline.step(capacity.shape(models.get(spec.model)), batch=at_once, context=held,
                         weights=spec.options.weights, kv_cache=spec.options.kv_cache)
    return (work.weight_bytes + work.kv_bytes) / at_once


def seconds(spec: RunSpec) -> float:
    """How long a run should take on the published GPU [s]; AsuError where nothing like it was ever measured."""
    def distance(rate: Rate) -> tuple:
        other = rate.spec
        return (other.engine != spec.engine, models.get(other.model).thinks != models.get(spec.model).thinks,
                bool(other.options.speculation) != bool(spec.options.speculation),
                _open(other) != _open(spec), other.load.kind != spec.load.kind,
                models.get(other.model).size != models.get(spec.model).size, other.task != spec.task,
                other.options.speculation != spec.options.speculation,
                abs(np.log(_pressure(other) / _pressure(spec))) if _open(other) == _open(spec) else 0.0,
                other.options.weights != spec.options.weights, other.options.kv_cache != spec.options.kv_cache,
                -(other.options.kv_pool_tokens or 0), -other.sampling.budget)

    if not measured():
        raise AsuError(f"no published run of a large model in {paths.PUBLISHED}", "restore it: git checkout data/runs")
    near = min(measured(), key=distance)
    tokens = float(np.minimum(_lengths(spec), spec.sampling.budget).mean())
    share = _step_bytes(near.spec, near.tokens) / _step_bytes(spec, tokens)
    rate = near.tokens_per_s * share * spec.options.tensor_parallel / near.spec.options.tensor_parallel
    count = (spec.problems or PROBLEMS_UNKNOWN) * spec.repeats
    return max(count * tokens / rate, count / spec.load.rate if spec.load.kind == "gamma" else 0.0)


def table(specs: list[RunSpec]) -> pd.DataFrame:
    """One row per server of the models that need GPUs, ordered as given; empty where none does.

    Columns: model, engine, weights, kv_pool_tokens, runs, weights_gib, kv_gib, gib (both), gpus, gpu_hours (server
    starts included), assumed (tasks whose lengths were recorded on other models).
    """
    by_server: dict[tuple, list[RunSpec]] = {}
    for spec in specs:
        if large(spec):
            by_server.setdefault(server_of(spec), []).append(spec)
    rows = []
    for group in by_server.values():
        first, options = group[0], group[0].options
        weights, pool = sum(weight_gib(model, options.weights) for model in served(first)), kv_gib(first)
        start_s = float(np.mean([rate.start_s for rate in measured()]))
        hours = (start_s + sum(seconds(spec) for spec in group)) * options.tensor_parallel / 3600
        assumed = {spec.task for spec in group if not recorded(spec.model, spec.task)[0].startswith(f"{spec.model}-")}
        rows.append({"model": first.model, "engine": first.engine, "weights": options.weights,
                     "kv_pool_tokens": options.kv_pool_tokens, "runs": len(group), "weights_gib": weights,
                     "kv_gib": pool, "gib": weights + pool, "gpus": options.tensor_parallel, "gpu_hours": hours,
                     "assumed": ", ".join(sorted(assumed))})
    return pd.DataFrame(rows).astype({"kv_pool_tokens": "Int64"}) if rows else pd.DataFrame()
