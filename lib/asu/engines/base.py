"""What every engine adapter provides: neutral words to flags, refusals before the start, gauges under neutral names."""

import functools
import importlib.metadata
import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pynvml
from prometheus_client.parser import text_string_to_metric_families

from asu import models, paths, quantise, shapes
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions, Sampling

CUMULATIVE_USAGE = {"include_usage": True, "continuous_usage_stats": True}  # for engines whose events bring no ids
ADA = (8, 9)  # the first capability with FP8 matrix units


@dataclass(frozen=True)
class Gpu:
    """One visible NVIDIA GPU; `capability` as (major, minor): Ada is (8, 9), Hopper (9, 0)."""

    name: str
    capability: tuple[int, int]


def visible_gpus() -> list:
    """NVML handles of the GPUs CUDA_VISIBLE_DEVICES leaves, by number or id; empty without an NVIDIA driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        pynvml.nvmlInit()
        if visible is None:
            return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        names = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
        return [pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit()
                else pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]
    except pynvml.NVMLError:
        return []


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES does not hide; empty without an NVIDIA driver."""
    return tuple(Gpu(pynvml.nvmlDeviceGetName(handle), tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)))
                 for handle in visible_gpus())


class Engine(ABC):
    """One serving engine. Adapters hold no state; `asu.engines.server.Server` runs what they describe."""

    name: str
    packages: tuple[str, ...]  # distributions that provide the engine, the first one installed counts
    install: str  # remedy when none is installed
    gauge_names: dict[str, str]  # neutral name -> sample name on the page at `metrics_path`
    metrics_path: str = "/metrics"  # where the engine tells its gauges, Prometheus text
    request_fields: dict = {}  # body fields of a request where this engine wants others; None: none of that name

    @abstractmethod
    def check(self, options: EngineOptions, model: Model, source: str) -> None:
        """Raise AsuError if this engine on this machine cannot do what `options` ask, naming what it can."""

    def check_sampling(self, options: EngineOptions, sampling: Sampling) -> None:  # noqa: B027
        """Raise AsuError if this engine on this machine draws tokens wrongly with these options."""

    @abstractmethod
    def command(self, model: Model, source: str, options: EngineOptions, host: str, port: int,
                served_name: str) -> list[str]:
        """Command line of the server; the key goes through `environment`, where other users cannot read it."""

    @abstractmethod
    def environment(self, options: EngineOptions, source: str, key: str) -> dict[str, str]:
        """Variables the server needs on top of this process's own."""

    @abstractmethod
    def kv_pool_tokens(self, log_text: str, metrics_text: str) -> int | None:
        """Size of the KV pool [tokens] as the engine reports it; None where it does not tell."""

    def prepare(self, options: EngineOptions, source: str) -> None:  # noqa: B027
        """Make what the server needs to find in `source` and that may take long; nothing for most engines."""

    @property
    def warm_module(self) -> str | None:
        """Module that imports the engine once and serves from forks of itself; None: each start is a fresh process."""
        return None

    @property
    def reset_path(self) -> str | None:
        """Path that empties the prefix cache on POST; None where the engine has none."""
        return None

    @property
    def python(self) -> str:
        """Interpreter with the engine: ASU_PYTHON_<ENGINE>, else .venv-<engine> in the project, else this one."""
        named = os.environ.get(f"ASU_PYTHON_{self.name.upper()}")
        own = paths.ROOT / f".venv-{self.name}" / "bin" / "python"
        if named:
            if not os.access(named, os.X_OK):
                raise AsuError(f"ASU_PYTHON_{self.name.upper()} names {named}, which is not an executable",
                               f"set it to the Python that has {self.name}, or unset it")
            return named
        return str(own) if own.exists() else sys.executable

    def installed(self) -> tuple[str, str]:
        """(distribution, version) of the engine in its interpreter; AsuError with the way to install it if absent."""
        found = _installed(self.python, self.packages)
        if found is None:
            raise AsuError(f"{self.name} is not installed for {self.python}", self.install)
        return found

    def version(self) -> str:
        """Installed version."""
        return self.installed()[1]

    def gauges(self, text: str) -> dict[str, float]:
        """Neutral names to values from Prometheus text, summed over labels; a gauge not exported is left out."""
        return samples(text, self.gauge_names)


@functools.cache
def _installed(python: str, packages: tuple[str, ...]) -> tuple[str, str] | None:
    if python == sys.executable:
        return _first_distribution(packages)
    script = "import sys, importlib.metadata as m\n" \
             "for p in sys.argv[1:]:\n" \
             "    try: print(p, m.version(p)); break\n" \
             "    except m.PackageNotFoundError: pass\n"
    try:
        result = subprocess.run([python, "-c", script, *packages], capture_output=True, text=True, timeout=60,
                                check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise AsuError(f"{python} does not run: {error}", "repair or remove that environment") from error
    words = result.stdout.split()
    return (words[0], words[1]) if words else None


def _first_distribution(packages: tuple[str, ...]) -> tuple[str, str] | None:
    for package in packages:
        try:
            return package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def samples(text: str, names: dict[str, str]) -> dict[str, float]:
    """{key: sum of the samples called names[key]} for those present in Prometheus `text`."""
    keys = {sample: key for key, sample in names.items()}
    # A vLLM page has 600 lines of which a handful matter; parsing all of them 5 times a second would load the client.
    wanted = [line for line in text.splitlines() if line.startswith(tuple(keys))]
    found: dict[str, float] = {}
    for family in text_string_to_metric_families("\n".join(wanted) + "\n"):
        for sample in family.samples:
            if sample.name in keys:
                found[keys[sample.name]] = found.get(keys[sample.name], 0.0) + sample.value
    return found


def samples_by(text: str, name: str, label: str) -> dict[str, float]:
    """{value of `label`: sum of the samples called `name` with it} in Prometheus `text`."""
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    found: dict[str, float] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            value = sample.labels.get(label, "")
            found[value] = found.get(value, 0.0) + sample.value
    return found


def labels(text: str, name: str) -> dict[str, str]:
    """Labels of the first sample called `name` in Prometheus `text`; empty if there is none."""
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    for family in text_string_to_metric_families("\n".join(lines[:1]) + "\n"):
        for sample in family.samples:
            return dict(sample.labels)
    return {}


def source(model: Model, options: EngineOptions) -> str:
    """Where the weights come from: a folder of the model's shape, its local folder if it exists, else its hub id.

    A quantised checkpoint, where there is one, is checked against its record; where there is none the bf16 weights are
    the source, for an engine to quantise while loading or to refuse.
    """
    if options.random_weights:
        return str(shapes.folder(model, options.weights))
    if options.weights != "bf16":
        made = quantise.folder(model, options.weights)
        if made.is_dir():
            quantise.check(made, model, options.weights)
            return str(made)
    if model.hub is None or model.folder.is_dir():
        return str(model.folder)
    return model.hub


def draft(options: EngineOptions) -> tuple[Model, str]:
    """The draft model of a speculation and where its weights come from: as they are, whatever the target's format."""
    model = models.get(options.speculation.draft)
    return model, source(model, EngineOptions(random_weights=options.random_weights))


def config(source: str) -> dict:
    """config.json of a local weights folder; empty for a hub id, which only the engine can resolve."""
    file = Path(source) / "config.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def vocabulary(source: str) -> tuple[int | None, dict[int, str]]:
    """(ids the model scores, text by id) of a local folder; (None, {}) for a hub id, which only the engine reads."""
    file = Path(source) / "tokenizer.json"
    if not file.is_file():
        return None, {}
    held = json.loads(file.read_text())
    pieces = held["model"].get("vocab", {})  # a list of [piece, score] in unigram models
    texts = {i: piece[0] for i, piece in enumerate(pieces)} if isinstance(pieces, list) else \
        {i: text for text, i in pieces.items()}
    return config(source).get("vocab_size"), texts | {t["id"]: t["content"] for t in held.get("added_tokens", [])}


def check_vocabulary(model: Model, source: str, draft: Model, draft_source: str) -> None:
    """Raise AsuError unless both models mean the same token by each id; a model of the hub is left to the engine."""
    (size, texts), (draft_size, draft_texts) = vocabulary(source), vocabulary(draft_source)
    if size is None or draft_size is None:
        return
    why = f"{draft.name} has {draft_size} ids, {model.name} {size}" if size != draft_size else None
    parted = next((i for i in sorted(texts.keys() | draft_texts.keys()) if texts.get(i) != draft_texts.get(i)), None)
    if why is None and parted is not None:
        why = f"id {parted} is {draft_texts.get(parted)!r} in {draft.name} and {texts.get(parted)!r} in {model.name}"
    if why:
        raise AsuError(f"{draft.name} cannot draft for {model.name}, its vocabulary is another one: {why}",
                       "name a draft model with the same tokenizer, or use speculation method: ngram")


def check_draft(engine: str, options: EngineOptions, model: Model, source: str, by_lot: bool = False) -> None:
    """Raise AsuError unless the draft model, if one is asked for, is there and speaks the target's vocabulary.

    by_lot: whether the engine can accept drafts by lot, at a mean that is asked for.
    """
    if options.speculation is None or options.speculation.draft is None:
        return
    other, draft_source = draft(options)
    check_weights(other, draft_source, options.random_weights)
    check_vocabulary(model, source, other, draft_source)
    if options.speculation.acceptance is not None and not by_lot:
        raise AsuError(f"{engine} cannot accept drafts by lot, at a mean that is asked for",
                       "leave acceptance out, or use engine: vllm where a GPU is")


def check_weights(model: Model, source: str, random_weights: bool) -> None:
    """Raise AsuError unless `source` is a hub id or a folder with a config, a tokenizer and, if needed, weights."""
    folder = Path(source)
    if not folder.is_dir():
        if source == model.hub:
            return
        raise AsuError(f"{model.name}: no weights folder {folder}",
                       "train the miniature with `make miniature`, or check out data/models" if model.miniature
                       else "give the folder that holds config.json and *.safetensors")
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not random_weights and not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise AsuError(f"{model.name}: {folder} lacks {', '.join(missing)}",
                       "restore the missing files, or remove the folder to load the model from the hub" if model.hub
                       else "restore them: git checkout data/models, or make miniature")


def check_context(model: Model, source: str, context: int) -> None:
    """Raise AsuError if `context` [tokens] is more than the positions of a local model without rope scaling."""
    found = config(source)
    positions = found.get("max_position_embeddings")
    if positions is not None and not found.get("rope_scaling") and context > positions:
        raise AsuError(f"{model.name}: a context of {context} tokens is over the model's {positions}",
                       f"set context to at most {positions}, and the budget below it")


def need_gpu(engine: str) -> None:
    """Raise AsuError on a machine without an NVIDIA GPU."""
    if not gpus():
        raise AsuError(f"{engine} needs an NVIDIA GPU and there is none",
                       "use engine: vllm here, which also serves on the CPU")


def check_ranks(tensor_parallel: int) -> None:
    """Raise AsuError if there are fewer GPUs than `tensor_parallel`."""
    if tensor_parallel > len(gpus()):
        raise AsuError(f"tensor_parallel {tensor_parallel} on a machine with {len(gpus())} GPUs",
                       f"set tensor_parallel to at most {len(gpus())}")


def check_capability(engine: str, weights: str) -> None:
    """Raise AsuError for weights whose activations are FP8 too, on GPUs that cannot multiply it."""
    if weights == "modelopt_fp8" and any(gpu.capability < ADA for gpu in gpus()):
        raise refuse(f"{engine} on {gpus()[0].name}", "weights", weights, ["bf16"], "FP8 needs Ada, Hopper or later")


def quantised(source: str) -> bool:
    """Whether a local folder holds quantised weights; False for a hub id, which only the engine can look at."""
    return "quantization_config" in config(source) or (Path(source) / "hf_quant_config.json").is_file()


def check_checkpoint(engine: str, model: Model, source: str, weights: str, in_flight: Collection[str]) -> None:
    """Raise AsuError unless a local folder holds `weights`, or bf16 ones that are `in_flight`: quantised on loading."""
    if not Path(source).is_dir():
        return
    method = config(source).get("quantization_config", {}).get("quant_method")
    if not quantised(source):
        if weights != "bf16" and weights not in in_flight:
            raise AsuError(f"{model.name}: {source} holds bf16 weights, not {weights}",
                           f"{quantise.command(model, weights)} makes a checkpoint; while loading, {engine} here "
                           f"quantises to {', '.join(in_flight) or 'nothing'}")
    elif weights == "bf16" or (method == "modelopt") != (weights == "modelopt_fp8"):
        raise AsuError(f"{model.name}: the weights in {source} are quantised{f' by {method}' if method else ''}, "
                       f"options.weights says {weights}",
                       "set weights to the format of the checkpoint, or give the bf16 folder")


def refuse(engine: str, field: str, value: object, can: Collection[str], why: str = "") -> AsuError:
    """The error for an option this engine cannot do here; `can` lists the values it accepts."""
    return AsuError(f"{engine} cannot do {field}: {value}{' (' + why + ')' if why else ''}",
                    f"set {field} to one of: {', '.join(can)}")
