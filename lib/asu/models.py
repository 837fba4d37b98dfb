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
    revision: str = "main"  # a commit, so that nobody's later upload changes a run
    miniature: bool = False
    shape: dict | None = None  # config.json fields, for random weights at real shapes
    chat_options: dict | None = None  # chat template switches, for hybrid models
    gated: bool = False
    gpus: int = 1  # over how many its weights are spread, where a study does not say
    lengths: str | None = None  # model whose recorded output lengths stand in for its own; None: its own are recorded
    positions: int | None = None  # of its own config, where they are fewer than its shape's [tok]

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


def _qwen3(hidden, layers, heads, intermediate, tied=False):
    return dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=hidden, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=8, head_dim=128, intermediate_size=intermediate,
                vocab_size=151936, max_position_embeddings=40960, rope_theta=1000000.0, rms_norm_eps=1e-6,
                hidden_act="silu", tie_word_embeddings=tied, torch_dtype="bfloat16")


def _hybrid(size: str, revision: str, shape: dict) -> list[Model]:
    """One set of weights twice: thinking, and not, by a switch in its chat template."""
    name, hub = f"qwen3-{size.lower()}", f"Qwen/Qwen3-{size}"
    return [Model(f"{name}-{kind}", name, size, thinks, hub, revision, shape=shape,
                  chat_options={"enable_thinking": thinks}) for kind, thinks in (("think", True), ("plain", False))]


_ALL = [
    Model("mini-4m-think", "mini-4m", "4M", True, miniature=True),
    Model("mini-4m-direct", "mini-4m", "4M", False, miniature=True),
    Model("mini-1m-think", "mini-1m", "1M", True, miniature=True),
    Model("mini-1m-direct", "mini-1m", "1M", False, miniature=True),
    Model("r1-qwen-7b", "7b", "7B", True, "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
          "916b56a44061fd5cd7d6a8fb632557ed4f724f60", shape=_7B),
    Model("qwen2.5-math-7b", "7b", "7B", False, "Qwen/Qwen2.5-Math-7B",
          "b101308fe89651ea5ce025f25317fea6fc07e96e", shape=_7B, positions=4096),
    Model("r1-qwen-14b", "14b", "14B", True, "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
          "1df8507178afcc1bef68cd8c393f61a886323761", shape=_14B, lengths="r1-qwen-32b"),
    Model("qwen2.5-14b", "14b", "14B", False, "Qwen/Qwen2.5-14B",
          "97e1e76335b7017d8f67c08a19d103c0504298c9", shape=_14B, lengths="qwen2.5-32b"),
    Model("r1-qwen-32b", "32b", "32B", True, "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
          "711ad2ea6aa40cfca18895e8aca02ab92df1a746", shape=_32B),
    Model("qwen2.5-32b", "32b", "32B", False, "Qwen/Qwen2.5-32B",
          "1818d35814b8319459f4bd55ed1ac8709630f003", shape=_32B),
    Model("r1-llama-70b", "70b", "70B", True, "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
          "b1c0b44b4369b597ad119a196caf79a9c40e141e", shape=_70B, gpus=4, lengths="r1-qwen-32b"),
    Model("llama-3.3-70b", "70b", "70B", False, "meta-llama/Llama-3.3-70B-Instruct",
          "6f6073b423013f6a7d4d9f39144961bfbfbc386b", shape=_70B, gpus=4, gated=True,
          lengths="qwen2.5-32b"),
    *_hybrid("0.6B", "c1899de289a04d12100db370d81485cdf75e47ca", _qwen3(1024, 28, 16, 3072, tied=True)),
    *_hybrid("8B", "b968826d9c46dd6066d109eabc6255188de91218", _qwen3(4096, 36, 32, 12288)),
    *_hybrid("14B", "40c069824f4251a91eefaf281ebe4c544efd3e18", _qwen3(5120, 40, 40, 17408)),
    *_hybrid("32B", "9216db5781bf21249d130ec9da846c4624c16137", _qwen3(5120, 64, 64, 25600)),
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
