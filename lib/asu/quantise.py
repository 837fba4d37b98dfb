"""Quantised checkpoints: made by llmcompressor or NVIDIA's Model Optimizer, and checked wherever they are loaded.

`make` runs in the main environment: it gathers the calibration texts, has `python quantise.py JOB` run under
.venv-llmcompressor's interpreter, and writes quantisation.json, which names the source, the recipe and every file made.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from asu import digests, paths
from asu.errors import AsuError
from asu.models import Model

RECORD = "quantisation.json"
PYTHON = paths.ROOT / ".venv-llmcompressor" / "bin" / "python"
INSTALL = "make .venv-llmcompressor with `python3 lib/install.py llmcompressor` (about 1 min, 1.5 GB)"
SEED = 0
DOCUMENTS, WINDOW = 256, 2048  # calibration texts, packed into windows of so many tokens
GROUPS = (128, 32)  # weights that share a scale, the largest that divides a model's matrices

# preset: llmcompressor's name for the number formats; all leave embeddings and the output head in bf16.
SCHEMES = {
    "w4a16": dict(preset="W4A16", method="GPTQ", calibrated=True,
                  what="4-bit whole-number weights with a scale per group, found by GPTQ; bf16 activations"),
    "w8a8": dict(preset="W8A8", method="rounding", calibrated=False,
                 what="INT8 weights with a scale per output; INT8 activations, scaled per token while serving"),
    "fp8": dict(preset="FP8_DYNAMIC", method="rounding", calibrated=False,
                what="E4M3 weights with a scale per output; E4M3 activations, scaled per token while serving"),
    "awq": dict(preset="W4A16_ASYM", method="AWQ", calibrated=True,
                what="4-bit weights with scale and offset per group, channels scaled by AWQ; bf16 activations"),
    "modelopt_fp8": dict(preset="FP8", method="Model Optimizer", calibrated=True,
                         what="E4M3 weights and activations with one scale per matrix, from calibration; scales for "
                              "keys and values in E4M3"),
}


def folder(model: Model, scheme: str) -> Path:
    """Where a quantised checkpoint is: beside the miniatures, or with the outputs for a model of the hub."""
    parent = paths.MODELS if model.hub is None else paths.OUTPUT / "models"
    return parent / f"{model.name}-{scheme}"


def command(model: Model, scheme: str) -> str:
    """The command that makes a checkpoint."""
    return f"make quantize MODEL={model.name} SCHEME={scheme}"


def source_digest(model: Model) -> str:
    """What the bf16 weights are: SHA-256 over a local folder's files, or the hub's commit."""
    if model.hub and not model.folder.is_dir():
        return f"{model.hub}@{digests.of_hub(model.hub, model.revision)}"
    return digests.of_weights(model.folder, model.name)


def check(made: Path, model: Model, scheme: str) -> None:
    """Raise AsuError unless every file in `made` is as recorded and comes from the bf16 weights that are here."""
    again = f"make it again: rm -r {made} && {command(model, scheme)}"
    try:
        record = json.loads((made / RECORD).read_text())
        files, scheme_made, source = record["files"], record["scheme"], record["source"]
    except (OSError, ValueError, KeyError) as error:
        raise AsuError(f"{made} has no readable {RECORD}, so nothing tells what its weights are", again) from error
    if scheme_made != scheme:
        raise AsuError(f"{made} holds {scheme_made} weights, not {scheme}", again)
    there = _files(made)
    wrong = [name for name in sorted(files | there) if files.get(name) != there.get(name)]
    if wrong:
        raise AsuError(f"{made}: digests do not match {RECORD}: {', '.join(wrong)}", again)
    if source != source_digest(model):
        raise AsuError(f"{made} was made from other bf16 weights than those of {model.name} here", again)


def _files(made: Path) -> dict[str, str]:
    """Digest of every file but the record itself that a number can depend on."""
    return {file.name: digests.of_file(file) for file in sorted(made.iterdir())
            if file.suffix in digests.WEIGHTS_SUFFIXES and file.name != RECORD}


def make(model: Model, scheme: str) -> Path:
    """Quantise the bf16 weights of `model`; returns the checkpoint's folder, as it is if it is there and right.

    Raises AsuError before any work where something is missing. AWQ takes 4 minutes for a miniature on two cores.
    """
    if scheme not in SCHEMES:
        raise AsuError(f"unknown quantisation scheme {scheme!r}", f"use one of: {', '.join(SCHEMES)}")
    made = folder(model, scheme)
    if made.is_dir():
        check(made, model, scheme)
        return made
    if not os.access(PYTHON, os.X_OK):
        raise AsuError(f"llmcompressor is not installed: there is no {PYTHON}", INSTALL)
    source = source_digest(model)
    made.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=made.parent, prefix=".quantising-"))
    try:
        texts = calibration(model) if SCHEMES[scheme]["calibrated"] else []
        told = _run(model, scheme, texts, scratch)
        (scratch / RECORD).write_text(json.dumps({
            "model": model.name, "scheme": scheme, **told, "source": source,
            "calibration": _told(model, texts) if texts else None, "files": _files(scratch)}, indent=1) + "\n")
        scratch.chmod(0o755)
        scratch.rename(made)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return made


def calibration(model: Model) -> list[str]:
    """Texts a model is calibrated on: a miniature's kind of training text, else problems the studies leave out.

    A miniature's are new documents of its training mixture with the work shown if it thinks; none holds a published
    problem. For a model of the hub they are the last problems of GSM8K, of which studies take the first.
    """
    if model.miniature:
        from asu.mini import problems, train
        from asu.mini.tokenizer import MARKS

        marks = {mark: text for text, mark in MARKS.items()}
        documents = problems.training_documents(f"calibration/{SEED}", problems.test_prompts())
        texts = (train.document(item, model.thinks) for _, item in islice(documents, DOCUMENTS))
        return ["".join(marks.get(letter, letter) for letter in text) for text in texts]
    from asu import tasks

    return [problem.prompt for problem in tasks.get("gsm8k").problems()[-DOCUMENTS:]]


def _told(model: Model, texts: list[str]) -> dict:
    """What the record says of the calibration texts."""
    what = ("new documents of the training mixture, none with a published problem" if model.miniature
            else "the last problems of GSM8K's test set, each as a user's message")
    return {"what": what, "texts": len(texts), "seed": SEED,
            "digest": hashlib.sha256("\0".join(texts).encode()).hexdigest()}


def _run(model: Model, scheme: str, texts: list[str], out: Path) -> dict:
    """Have llmcompressor's interpreter do it; what it tells of recipe and versions."""
    local = model.folder.is_dir()
    job = {"source": str(model.folder) if local else model.hub, "revision": None if local else model.revision,
           "scheme": SCHEMES[scheme], "texts": texts, "chat": not model.miniature, "out": str(out)}
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "job.json", Path(folder) / "told.json"
        asked.write_text(json.dumps(job))
        done = subprocess.run(
            [PYTHON, "-P", __file__, asked, told], capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(paths.ROOT / "lib"), "TOKENIZERS_PARALLELISM": "false"})
        if done.returncode:
            raise AsuError(f"llmcompressor failed on {model.name}:\n{done.stderr[-2000:]}",
                           "correct what the last lines name; a full disk and too little memory are usual causes")
        return json.loads(told.read_text())


def _work(job: dict) -> dict:
    """Quantise and save; runs under llmcompressor's interpreter, whose packages the main environment does not have."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(SEED)
    pinned = {"revision": job["revision"]} if job["revision"] else {}
    tokens = AutoTokenizer.from_pretrained(job["source"], **pinned)
    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype=torch.bfloat16, **pinned)
    apply = _model_optimizer if job["scheme"]["method"] == "Model Optimizer" else _llmcompressor
    told = apply(model, job["scheme"], _windows(job, tokens), job["out"])
    tokens.save_pretrained(job["out"])
    return told


def _llmcompressor(model, wanted: dict, windows, out: str) -> dict:
    """Quantise `model` by one of llmcompressor's recipes and save it in the compressed-tensors format."""
    import torch
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    scheme = preset_name_to_scheme(wanted["preset"], ["Linear"])
    if scheme.weights.group_size:
        sizes = {m.in_features for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
        scheme.weights.group_size = next(group for group in GROUPS if all(size % group == 0 for size in sizes))
    options = dict(config_groups={"group_0": scheme}, ignore=["lm_head"])
    recipe = {"GPTQ": lambda: [GPTQModifier(**options)], "rounding": lambda: [QuantizationModifier(**options)],
              "AWQ": lambda: _awq(options)}[wanted["method"]]()
    given = dict(dataset=windows, num_calibration_samples=len(windows), max_seq_length=WINDOW,
                 shuffle_calibration_samples=False) if windows else {}
    oneshot(model=model, recipe=recipe, **given)
    model.save_pretrained(out, save_compressed=True)
    return {"recipe": {"method": wanted["method"], "what": wanted["what"], "left": ["embeddings", "lm_head"],
                       "scheme": scheme.model_dump(mode="json", exclude_none=True)},
            "versions": _versions("llmcompressor", "compressed-tensors")}


def _model_optimizer(model, wanted: dict, windows, out: str) -> dict:
    """Calibrate FP8 weights, activations and KV cache by largest values and save in Model Optimizer's own format."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    config = mtq.FP8_DEFAULT_CFG | {"quant_cfg": mtq.FP8_DEFAULT_CFG["quant_cfg"] + mtq.FP8_KV_CFG["quant_cfg"]}

    def calibrate(quantised):
        for window in windows:
            quantised(torch.tensor([window["input_ids"]], device=model.device))

    with torch.no_grad():
        mtq.quantize(model.eval(), config, calibrate)
        export_hf_checkpoint(model, export_dir=out)
    return {"recipe": {"method": wanted["method"], "what": wanted["what"], "left": ["embeddings", "lm_head"],
                       "scheme": {"weights and activations": "FP8_DEFAULT_CFG", "keys and values": "FP8_KV_CFG"}},
            "versions": _versions("nvidia-modelopt")}


def _versions(*makers: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in (*makers, "torch", "transformers")}


def _awq(options: dict) -> list:
    import torch
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():  # it pins memory for copies to an accelerator, and fails where none is
        IntermediatesCache.pin_memory = lambda *_: None
    return [AWQModifier(), QuantizationModifier(**options)]


def _windows(job: dict, tokens):
    """The calibration texts one after the other, cut into full windows; a last part is kept where there is no full one.

    One forward pass a window instead of one a text: a miniature then takes seconds.
    """
    from datasets import Dataset

    if job["chat"]:
        each = [tokens.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True,
                                           return_dict=False) for text in job["texts"]]
    else:
        each = [tokens(text, add_special_tokens=False).input_ids for text in job["texts"]]
    ids = [token for text in each for token in text]
    cut = [ids[at:at + WINDOW] for at in range(0, max(len(ids) - WINDOW, 0) + 1, WINDOW)]
    return Dataset.from_dict({"input_ids": cut, "attention_mask": [[1] * len(row) for row in cut]}) if ids else None


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(_work(json.loads(Path(sys.argv[1]).read_text()))))
