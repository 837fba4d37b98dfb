"""The catalogue of models: what a name means, where its weights are, and which twin it is compared with."""

from dataclasses import dataclass
from pathlib import Path

from asu import paths
from asu.errors import AsuError


@dataclass(frozen=True)
class Model:
    """One model. `pair` joins a reasoning model (thinks=True) with the plain one it is compared with."""

    name: str
    pair: str
    size: str  # as printed: "4M", "7B"
    thinks: bool
    hub: str | None = None  # hub id; None: a folder in data/models
    revision: str = "main"
    miniature: bool = False
    shape: dict | None = None  # config.json fields, for random weights at real shapes
    chat_options: dict | None = None  # chat template switches, for hybrid models
    gated: bool = False

    @property
    def role(self) -> str:
        return "RLLM" if self.thinks else "LLM"

    @property
    def folder(self) -> Path:
        return paths.MODELS / self.name

    @property
    def start(self) -> str:
        """The mark that opens the thinking text."""
        return "<think>"

    @property
    def end(self) -> str:
        """The mark that closes the thinking text."""
        return "</think>"


def _qwen2(hidden, layers, heads, kv_heads, intermediate, vocabulary=152064):
    return dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=hidden, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=intermediate,
                vocab_size=vocabulary, max_position_embeddings=131072, rope_theta=1000000.0, rms_norm_eps=1e-6,
                hidden_act="silu", tie_word_embeddings=False, torch_dtype="bfloat16", use_sliding_window=False)


_7B = _qwen2(3584, 28, 28, 4, 18944)
_14B = _qwen2(5120, 48, 40, 8, 13824)
_32B = _qwen2(5120, 64, 40, 8, 27648)
_70B = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=8192, num_hidden_layers=80,
            num_attention_heads=64, num_key_value_heads=8, intermediate_size=28672, vocab_size=128256,
            max_position_embeddings=131072, rope_theta=500000.0, rms_norm_eps=1e-5, hidden_act="silu",
            tie_word_embeddings=False, torch_dtype="bfloat16")

_ALL = [
    Model("mini-4m-think", "mini-4m", "4M", True, miniature=True),
    Model("mini-4m-direct", "mini-4m", "4M", False, miniature=True),
    Model("mini-1m-think", "mini-1m", "1M", True, miniature=True),
    Model("mini-1m-direct", "mini-1m", "1M", False, miniature=True),
    Model("r1-qwen-7b", "7b", "7B", True, "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", shape=_7B),
    Model("qwen2.5-math-7b", "7b", "7B", False, "Qwen/Qwen2.5-Math-7B", shape=_7B),
    Model("r1-qwen-14b", "14b", "14B", True, "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", shape=_14B),
    Model("qwen2.5-14b", "14b", "14B", False, "Qwen/Qwen2.5-14B", shape=_14B),
    Model("r1-qwen-32b", "32b", "32B", True, "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", shape=_32B),
    Model("qwen2.5-32b", "32b", "32B", False, "Qwen/Qwen2.5-32B", shape=_32B),
    Model("r1-llama-70b", "70b", "70B", True, "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", shape=_70B),
    Model("llama-3.3-70b", "70b", "70B", False, "meta-llama/Llama-3.3-70B-Instruct", shape=_70B, gated=True),
    Model("qwen3-0.6b-think", "qwen3-0.6b", "0.6B", True, "Qwen/Qwen3-0.6B", chat_options={"enable_thinking": True}),
    Model("qwen3-0.6b-plain", "qwen3-0.6b", "0.6B", False, "Qwen/Qwen3-0.6B", chat_options={"enable_thinking": False}),
]
CATALOGUE = {model.name: model for model in _ALL}


def parameters(size: str) -> float:
    """Number of parameters from a size as printed: "4M", "0.6B"."""
    return float(size[:-1]) * {"M": 1e6, "B": 1e9}[size[-1]]


def get(name: str) -> Model:
    """The model called `name`, or an error that lists the names there are."""
    if name not in CATALOGUE:
        raise AsuError(f"unknown model {name!r}",
                       f"use one of: {', '.join(CATALOGUE)}; lib/asu/models.py adds new ones")
    return CATALOGUE[name]
