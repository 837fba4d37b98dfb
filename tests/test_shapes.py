"""Models of real shape without weights: their tokenizer is text throughout, their folder whole and made once."""

import json

import pytest
from asu import fill, models, paths, shapes
from asu.engines import base
from asu.errors import AsuError
from asu.specs import EngineOptions
from tokenizers import Tokenizer

SHAPED = models.get("r1-qwen-7b")
TINY = models.Model("tiny", "tiny", "0", True, shape=dict(
    architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, intermediate_size=64, vocab_size=512, max_position_embeddings=128, rope_theta=1e4,
    rms_norm_eps=1e-6, hidden_act="silu", tie_word_embeddings=False, torch_dtype="bfloat16"))


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    return tmp_path


def test_every_token_is_text_that_a_stream_can_carry(output):
    made = Tokenizer.from_file(str(shapes.folder(SHAPED) / "tokenizer.json"))
    assert made.get_vocab_size() == SHAPED.shape["vocab_size"] == 152064
    end = made.token_to_id(shapes.END)
    texts = made.decode_batch([[i] for i in range(152064) if i != end])
    assert all(texts) and not any("\ufffd" in text for text in texts)
    assert len(set(texts)) == len(texts)
    assert made.decode([end]) == ""


def test_a_prompt_of_n_words_is_n_tokens(output):
    made = Tokenizer.from_file(str(shapes.folder(SHAPED) / "tokenizer.json"))
    for first in range(len(shapes.WORDS)):
        words = [*shapes.WORDS[first:], *shapes.WORDS]
        encoded = made.encode(" ".join(words))
        assert len(encoded.ids) == len(words) and made.decode(encoded.ids) == " ".join(words)


def test_marks_of_thought_are_single_tokens_of_reasoning_models_alone(output):
    thinking = Tokenizer.from_file(str(shapes.folder(SHAPED) / "tokenizer.json"))
    plain = Tokenizer.from_file(str(shapes.folder(models.get("qwen2.5-math-7b")) / "tokenizer.json"))
    assert [len(thinking.encode(mark).ids) for mark in ("<think>", "</think>")] == [1, 1]
    assert thinking.decode(thinking.encode("</think>").ids, skip_special_tokens=True) == "</think>"
    assert plain.token_to_id("</think>") is None


def test_the_folder_is_whole_made_once_and_what_an_engine_is_given(output, monkeypatch):
    made = shapes.folder(SHAPED)
    config = json.loads((made / "config.json").read_text())
    assert SHAPED.shape.items() <= config.items()
    assert config["eos_token_id"] == Tokenizer.from_file(str(made / "tokenizer.json")).token_to_id(shapes.END)
    assert "add_generation_prompt" in json.loads((made / "tokenizer_config.json").read_text())["chat_template"]
    assert [folder.name for folder in made.parent.iterdir()] == [made.name], "nothing half made is left"
    monkeypatch.setattr(shapes, "_write", None)
    assert base.source(SHAPED, EngineOptions(random_weights=True)) == str(shapes.folder(SHAPED)) == str(made)
    base.check_weights(SHAPED, str(made), random_weights=True)


def test_the_digest_tells_shapes_and_tokenizers_apart():
    names = ("r1-qwen-7b", "qwen2.5-math-7b", "r1-qwen-14b")
    assert len({shapes.digest(models.get(name)) for name in names}) == 3
    assert all(shapes.digest(models.get(name)).startswith("random:") for name in names)


def test_a_model_without_a_shape_is_refused(output):
    with pytest.raises(AsuError, match="(?s)no shape for random weights of nothing.*r1-qwen-7b"):
        base.source(models.Model("nothing", "nothing", "0", True), EngineOptions(random_weights=True))


@pytest.mark.parametrize("scheme", ["bf16", "w8a8"])
def test_a_miniature_has_its_own_shape_and_tokenizer(output, scheme):
    mini = models.get("mini-4m-think")
    made = shapes.folder(mini, scheme)
    config, own = (json.loads((folder / "config.json").read_text()) for folder in (made, mini.folder))
    assert config == own | ({"quantization_config": shapes.quantization(scheme)} if scheme != "bf16" else {})
    assert not list(made.glob("*.safetensors"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (made / name).read_bytes() == (mini.folder / name).read_bytes()
    assert shapes.digest(mini) != shapes.digest(models.get("mini-4m-direct"))


def test_random_weights_in_files_load_and_repeat(output):
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    made = shapes.folder(TINY)
    drawn = []
    for _ in range(2):
        fill.main(made, shapes.SEED)
        assert (made / fill.MARK).exists() and not list(made.glob(".making-*"))
        drawn.append(safetensors.load_file(made / "model.safetensors"))
    assert all(torch.equal(tensor, drawn[1][name]) for name, tensor in drawn[0].items())
    assert drawn[0]["model.embed_tokens.weight"].shape == (512, 32)
    assert {tensor.dtype for tensor in drawn[0].values()} == {torch.bfloat16}
