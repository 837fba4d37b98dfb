"""Where a decode step's time goes: bytes moved and arithmetic done, against what this machine was measured to do.

A step makes one token for each request in flight. It reads every weight once and the KV cache of each request, and
multiplies; no engine can be faster than the slower of the two at the machine's measured rates. What is measured beyond
that bound is the engine's own: scheduling, launching kernels, unpacking quantised weights.

Run as `python roofline.py CORES` with an engine's interpreter it measures the rates and prints them as JSON.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BITS = {"bf16": 16, "fp8": 8, "w8a8": 8, "w4a16": 4, "awq": 4, "bnb4": 4, "modelopt_fp8": 8}
KV_BYTES = {"bf16": 2.0, "int4": 0.5}  # a value of the KV cache; every other format has one byte
WORKING_SETS = (1 << 21, 1 << 23, 1 << 25, 1 << 29)  # bytes moved over and over: from within a cache to beyond it
MATRIX = 1024  # rows and columns of the matrices multiplied on a CPU; eight times that on a GPU
REPEATS, LEAST_S = 5, 0.05


@dataclass(frozen=True)
class Ceilings:
    """What a machine was measured to do: `bandwidth` [B/s] by working set [B], `matrix` in bf16 [FLOP/s]."""

    machine: str
    cores: int
    bandwidth: dict[int, float]
    matrix: float

    def bandwidth_at(self, size: float) -> float:
        """Bandwidth of the smallest working set that is not smaller than `size` [B]: small models live in caches."""
        fitting = [known for known in sorted(self.bandwidth) if known >= size]
        return self.bandwidth[fitting[0] if fitting else max(self.bandwidth)]


def ceilings(machine: Mapping, folder: Path, python: str, measure: bool = True) -> Ceilings | None:
    """The measured ceilings of `machine` (as `runs.machine` tells it), kept in `folder`; made on first use.

    None where they were never measured and `measure` is False: a roofline of another machine would be invented.
    AsuError if they cannot be measured.
    """
    from asu.errors import AsuError

    name = " + ".join(machine["gpus"]) or machine["cpu"]
    kept = folder / f"ceilings-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{machine['cores']}.json"
    if not kept.is_file():
        if not measure:
            return None
        cores = max(machine["cores"] - 1, 1)  # vLLM leaves one to its API server
        done = subprocess.run([python, "-P", __file__, str(cores)], capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise AsuError(f"the machine's rates could not be measured:\n{done.stderr[-2000:]}",
                           f"{python} must have torch; see the lines above")
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"machine": name, **json.loads(done.stdout)}, indent=1) + "\n")
    known = json.loads(kept.read_text())
    return Ceilings(**known | {"bandwidth": {int(size): rate for size, rate in known["bandwidth"].items()}})


def of(study) -> Ceilings | None:
    """Ceilings of the machine that made a study's runs, kept beside them; None for records of another machine."""
    from asu import engines, runs

    spec, folder = next(iter(study.folders().items()))
    machine = runs.read(folder).env["inputs"]["machine"]
    here = machine == runs.machine()
    return ceilings(machine, study.store.root / "machines", engines.get(spec.engine).python, measure=here)


def configs(study) -> dict[str, dict]:
    """{model: config.json} of a study's models, bf16; one that only the hub has is left out."""
    from asu import models
    from asu.engines import base

    named = {spec.model: models.get(spec.model) for spec in study.specs}
    found = {name: model.shape or base.config(str(model.folder)) for name, model in named.items()}
    return {name: config for name, config in found.items() if config}


def sizes(study):
    """Bytes of weights by model and scheme: model, weights, stored_bytes, of_bf16 (over those of bf16).

    Of checkpoints on this machine their tensors' bytes; of others (random weights) `weight_bytes`.
    """
    import pandas as pd

    from asu import models, quantise

    known, rows = configs(study), []
    for name, weights in dict.fromkeys((spec.model, spec.options.weights) for spec in study.specs):
        model = models.get(name)
        folder = model.folder if weights == "bf16" else quantise.folder(model, weights)
        size = stored_bytes(folder) if folder.is_dir() else 0
        if not size and name in known:
            size = weight_bytes(known[name], weights)
        rows.append({"model": name, "weights": weights, "stored_bytes": size or float("nan")})
    made = pd.DataFrame(rows)
    return made.assign(of_bf16=made.stored_bytes / made.model.map(
        made[made.weights == "bf16"].set_index("model").stored_bytes))


def weight_bytes(config: Mapping, weights: str = "bf16") -> float:
    """All weights [B]: what a step reads, and embeddings in bf16 that are not the output head's as well."""
    embeddings = 0 if config.get("tie_word_embeddings") else 2 * config["hidden_size"] * config["vocab_size"]
    return step(config, batch=1, context=0, weights=weights).weight_bytes + embeddings


@dataclass(frozen=True)
class Step:
    """What one decode step must move [B] and compute [FLOP]."""

    weight_bytes: float
    kv_bytes: float
    flops: float


def step(config: Mapping, *, batch: float, context: float, weights: str = "bf16", kv_cache: str = "bf16",
         group: int = 128) -> Step:
    """A decode step of `batch` requests holding `context` tokens each, from a model's config.json.

    Matrices of the layers have the scheme's bits and a bf16 scale per `group` weights under four bits; the output head
    stays in bf16 and norms are left out as nothing. Of the embeddings only the tokens' rows are read.
    """
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    inner = layers * (hidden * head * (2 * heads + 2 * kv_heads) + 3 * hidden * config["intermediate_size"])
    output = hidden * config["vocab_size"]
    scales = inner / group * 2 if BITS[weights] == 4 else 0
    return Step(
        weight_bytes=inner * BITS[weights] / 8 + scales + output * 2,
        kv_bytes=batch * context * 2 * layers * kv_heads * head * KV_BYTES.get(kv_cache, 1.0),
        flops=batch * (2 * (inner + output) + 4 * layers * heads * head * context))


@dataclass(frozen=True)
class Bound:
    """Least time of a step [s]: moving its bytes, computing, and the larger of both."""

    memory_s: float
    compute_s: float

    @property
    def s(self) -> float:
        return max(self.memory_s, self.compute_s)


def bound(work: Step, rates: Ceilings) -> Bound:
    """The least time that measured rates leave a step; arithmetic at the bf16 rate, whatever the weights."""
    moved = work.weight_bytes + work.kv_bytes
    return Bound(moved / rates.bandwidth_at(moved), work.flops / rates.matrix)


def stored_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's tensors, headers left out; 0 where there are none (random weights, hub ids)."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        total += sum(end - begin for begin, end in
                     (tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"))
    return total


def table(requests, rates: Ceilings | None, configs: Mapping[str, Mapping]):
    """Measured time per step against the bound, one row per model and weights.

    requests: runs of one closed load each, one per model, weights and task; configs: {model: config.json}.
    Columns: model, size, role, weights, in_flight (requests, mean), held (tokens a request holds, mean), memory_s,
    compute_s, bound_s, step_s (mean time between tokens), share = bound_s / step_s, beyond_s = step_s − bound_s,
    over_bf16_s = beyond_s less that of bf16: what quantising costs apart from the traffic it saves; NaN unmeasured.
    """
    import numpy as np
    import pandas as pd

    from asu import metrics

    rows = []
    for (model, size, role, weights), part in requests.groupby(["model", "size", "role", "weights"], sort=False):
        r = metrics.derive(part[part.error.isna() & (part.output_tokens > 1)])
        gaps = r.output_tokens - 1
        busy = float((r.last_s - r.first_s).sum())
        row = {"model": model, "size": size, "role": role, "weights": weights,
               "in_flight": float((r.last_s - r.sent_s).sum()) / metrics.window_s(part) if len(r) else np.nan,
               "held": float(((r.prompt_tokens + r.output_tokens / 2) * gaps).sum() / gaps.sum()) if len(r) else np.nan,
               "step_s": busy / float(gaps.sum()) if len(r) else np.nan}
        if rates is not None and model in configs:
            work = step(configs[model], batch=row["in_flight"], context=row["held"], weights=weights,
                        kv_cache=part.kv_cache.iloc[0])
            least = bound(work, rates)
            row |= {"memory_s": least.memory_s, "compute_s": least.compute_s, "bound_s": least.s}
        rows.append(row)
    columns = ["model", "size", "role", "weights", "in_flight", "held", "memory_s", "compute_s", "bound_s", "step_s"]
    made = pd.DataFrame(rows, columns=columns)
    made["share"], made["beyond_s"] = made.bound_s / made.step_s, made.step_s - made.bound_s
    plain = made[made.weights == "bf16"].set_index("model").beyond_s
    made["over_bf16_s"] = made.beyond_s - made.model.map(plain)
    return made


def predicted(requests, rates: Ceilings | None, configs: Mapping[str, Mapping], *, arm: str, off: str = "bf16",
              **options):
    """Where each number format should land by the bytes it saves, and where it did: a row per model and format.

    requests: as for `table`; arm: "weights" or "kv_cache". What is predicted hangs on the runs with `off` alone, over
    the sets that both were run on. Columns: model, size, role, `arm`, bytes (a step moves, over those with `off`),
    least (time of the bound over that with `off`: if a step were nothing but its bound), expected (time of a step over
    that with `off`, if what it takes beyond its bound stays as it is), then what was measured, time between tokens
    with over without: value, lo, hi, unit, n. options: those of `stats.bootstrap`. NaN without rates.
    """
    import numpy as np
    import pandas as pd

    from asu import metrics, stats
    from asu.contrast import over_problems

    rows = []
    labels = requests.loc[requests[arm] != off, ["model", "size", "role", arm]].drop_duplicates()
    for model, size, role, on in labels[labels.model.isin(list(configs))].itertuples(index=False):
        mine = requests[(requests.model == model) & requests[arm].isin([on, off])]
        both = mine[mine.groupby("task")[arm].transform("nunique") == 2]
        both = metrics.derive(both[both.error.isna() & (both.output_tokens > 1)]).reset_index(drop=True)
        if both.empty:
            continue
        plain = both[both[arm] == off]
        base, formats = table(plain, rates, configs).iloc[0], plain[["weights", "kv_cache"]].iloc[0].to_dict()
        works = [step(configs[model], batch=base.in_flight, context=base.held, **formats | {arm: name})
                 for name in (off, on)]
        moved = [work.weight_bytes + work.kv_bytes for work in works]
        least = [bound(work, rates).s if rates else np.nan for work in works]
        span, gaps = both.last_s - both.first_s, both.output_tokens - 1
        steps = [stats.on(there, stats.ratio_of_sums(span[there], gaps[there]))
                 for there in (both[arm] == on, both[arm] == off)]
        rows.append({"model": model, "size": size, "role": role, arm: on, "bytes": moved[1] / moved[0],
                     "least": least[1] / least[0], "expected": (base.step_s + least[1] - least[0]) / base.step_s}
                    | over_problems(both, stats.ratio(*steps), unit="×", **options).as_dict())
    return pd.DataFrame(rows, columns=["model", "size", "role", arm, "bytes", "least", "expected", "value", "lo", "hi",
                                       "unit", "n"])


def _measured(cores: int) -> dict:
    """Rates of this process's machine, pinned to `cores` cores, or of its GPU."""
    import torch

    gpu = torch.cuda.is_available()
    if not gpu:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
        torch.set_num_threads(cores)
    device, n = ("cuda", 8 * MATRIX) if gpu else ("cpu", MATRIX)

    def seconds(work) -> float:
        """Least time of a call over REPEATS rounds, each long enough for the clock."""
        work()
        calls, best = 1, float("inf")
        while True:
            times = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                for _ in range(calls):
                    work()
                if gpu:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            best = min(times)
            if best >= LEAST_S:
                return best / calls
            calls *= 4

    rates = {}
    for size in WORKING_SETS:
        count = size // 12  # three arrays of four bytes: a = b + s·c
        a, b, c = (torch.ones(count, device=device) for _ in range(3))
        rates[size] = 12 * count / seconds(lambda a=a, b=b, c=c: torch.add(b, c, alpha=3.0, out=a))
    left, right = (torch.ones(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return {"cores": 0 if gpu else cores, "bandwidth": rates,
            "matrix": 2 * n ** 3 / seconds(lambda: torch.mm(left, right))}




if __name__ == "__main__":
    print(json.dumps(_measured(int(sys.argv[1]))))
