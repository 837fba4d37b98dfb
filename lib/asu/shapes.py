"""Models of real shape without real weights: a config and a tokenizer, for runs whose lengths are replayed.

Serving cost hangs on shapes and lengths, not on what the weights say. The tokenizer is a byte-level one filled up to
the shape's vocabulary with made-up words, so that whatever is drawn is text a stream can carry. Miniatures keep their
own config and tokenizer.
"""

import hashlib
import itertools
import json
import os
import shutil
import string
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from asu import digests, paths
from asu.errors import AsuError
from asu.models import CATALOGUE, Model
from asu.specs import canonical

VERSION = 1  # of this recipe; raise it when the tokenizer or the random weights change
SEED = 0  # of the weights, where an engine needs them in files
# Frequent words that real vocabularies hold as single tokens; prompts made of n of them are n tokens long.
WORDS = tuple("time year people way day man thing woman life child world school state family student group "
              "country".split())
END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
CHAT = ("{% for m in messages %}{{ ('<|user|>' if m.role == 'user' else '<|assistant|>') + m.content }}"
        "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}")
SPACE, NEWLINE = "Ġ", "Ċ"  # how byte-level vocabularies write these two
# scheme -> (format of compressed-tensors, weights, activations).
_GROUPS, _CHANNEL = dict(strategy="group", group_size=128), dict(strategy="channel", symmetric=True)
FORMATS = {
    "w4a16": ("pack-quantized", dict(num_bits=4, type="int", symmetric=True, **_GROUPS), None),
    "w8a8": ("int-quantized", dict(num_bits=8, type="int", **_CHANNEL),
             dict(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)),
    "awq": ("pack-quantized", dict(num_bits=4, type="int", symmetric=False, **_GROUPS), None),
}
SCHEMES = (*FORMATS, "modelopt_fp8")  # others an engine makes of bf16 while loading


def digest(model: Model, scheme: str = "bf16") -> str:
    """What random weights of this model are: SHA-256 over its shape and over what makes its tokenizer and weights."""
    recipe = {"shape": _shape(model), "thinks": model.thinks, "version": VERSION, "seed": SEED}
    if model.shape is None:
        recipe["tokenizer"] = digests.of_file(model.folder / "tokenizer.json")
    if scheme in SCHEMES:
        recipe["quantization"] = quantization(scheme)
    return "random:" + hashlib.sha256(canonical(recipe).encode()).hexdigest()


def folder(model: Model, scheme: str = "bf16") -> Path:
    """Folder with config.json and tokenizer of the model's shape, made on first use; weights are not in it.

    Under one of SCHEMES the config says that the weights are so quantised, and an engine makes them up like that.
    """
    made = paths.RUNS / "shapes" / f"{model.name}-{digest(model, scheme).removeprefix('random:')[:8]}"
    if not made.is_dir():
        made.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=made.parent, prefix=".making-"))
        try:
            _write(model, scheme, scratch)
            os.rename(scratch, made)
        except OSError:
            if not made.is_dir():  # else another process was first
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return made


def tokenizer(vocabulary: int, marks: tuple[str, ...]) -> Tokenizer:
    """Byte-level BPE of exactly `vocabulary` tokens, each of visible text but for the end; `marks` are single tokens.

    Bytes that are no printable ASCII are left out, for alone they are no text; in a prompt they are passed over.
    """
    letters = [SPACE, NEWLINE, *(chr(code) for code in range(33, 127))]
    # Earlier merges come first, so the longer word does: else "woman" would fall apart at the "ma" of "man".
    words = sorted(WORDS, key=len, reverse=True)
    merges = list(dict.fromkeys(
        pair for prefix in (SPACE, "") for word in words for pair in _merges(prefix + word)))
    known = dict.fromkeys([*letters, *(left + right for left, right in merges)])
    added = [END, *marks]
    made_up = (SPACE + "".join(word) for word in itertools.product(string.ascii_lowercase, repeat=4))
    fill = itertools.islice((word for word in made_up if word not in known), vocabulary - len(added) - len(known))
    tokens = {token: i for i, token in enumerate(itertools.chain(known, fill))}
    inner = Tokenizer(models.BPE(tokens, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    inner.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    return inner


def quantization(scheme: str) -> dict:
    """quantization_config of a checkpoint as its tool writes it for one of SCHEMES: llmcompressor, Model Optimizer."""
    if scheme == "modelopt_fp8":
        eight_bit = {"dynamic": False, "num_bits": 8, "type": "float"}
        group = {"targets": ["Linear"], "weights": eight_bit, "input_activations": eight_bit}
        return {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "model.embed_tokens"],
                "kv_cache_scheme": eight_bit, "config_groups": {"group_0": group}}
    form, weights, activations = FORMATS[scheme]
    group = {"targets": ["Linear"], "weights": {"dynamic": False, **weights}, "input_activations": activations,
             "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
            "ignore": ["lm_head"], "kv_cache_scheme": None, "config_groups": {"group_0": group}}


def _merges(word: str) -> list[tuple[str, str]]:
    """The merges that build a word from left to right."""
    return [(word[:end], word[end]) for end in range(1, len(word))]


def _shape(model: Model) -> dict:
    if model.shape is None and (model.folder / "config.json").is_file():
        return json.loads((model.folder / "config.json").read_text())
    if model.shape is None:
        shaped = [name for name, other in CATALOGUE.items() if other.shape]
        raise AsuError(f"the catalogue has no shape for random weights of {model.name}",
                       f"use one of: {', '.join(shaped)}; or leave random_weights out")
    return model.shape


def _write(model: Model, scheme: str, where: Path) -> None:
    shape = _shape(model)
    quantised = {"quantization_config": quantization(scheme)} if scheme in SCHEMES else {}
    if model.shape is None:  # a miniature: its vocabulary is too small for the tokenizer below
        _json(where / "config.json", {**shape, **quantised})
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(model.folder / name, where)
        return
    made = tokenizer(shape["vocab_size"], (USER, ASSISTANT, *((model.start, model.end) if model.thinks else ())))
    end = made.token_to_id(END)
    made.save(str(where / "tokenizer.json"), pretty=False)
    _json(where / "config.json", {
        **shape, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "transformers_version": "5.0.0",
        **quantised})
    _json(where / "tokenizer_config.json", {
        "tokenizer_class": "TokenizersBackend", "backend": "tokenizers",
        "eos_token": END, "pad_token": END, "unk_token": END, "model_max_length": shape["max_position_embeddings"],
        "clean_up_tokenization_spaces": False, "chat_template": CHAT})


def _json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
