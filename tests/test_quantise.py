"""Quantised checkpoints: refused unless every digest matches; made only where everything needed is there."""

import json
import shutil

import pytest
from asu import cli, digests, engines, models, paths, quantise, shapes
from asu.engines import base
from asu.errors import AsuError
from asu.mini import problems
from asu.specs import EngineOptions
from typer.testing import CliRunner

MINI = models.get("mini-1m-direct")
SHIPPED = [(model, scheme) for model in models.CATALOGUE.values() if model.miniature
           for scheme in ("w4a16", "w8a8", "fp8")]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A bf16 miniature and its FP8 checkpoint, in a folder that a test may spoil."""
    for name in (MINI.name, f"{MINI.name}-fp8"):
        shutil.copytree(paths.MODELS / name, tmp_path / name)
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    return tmp_path / f"{MINI.name}-fp8"


@pytest.mark.parametrize(("model", "scheme"), SHIPPED, ids=[f"{model.name}-{scheme}" for model, scheme in SHIPPED])
def test_shipped_checkpoints_are_as_recorded(model, scheme):
    assert base.source(model, EngineOptions(weights=scheme)) == str(quantise.folder(model, scheme))
    record = json.loads((quantise.folder(model, scheme) / quantise.RECORD).read_text())
    assert record["versions"].keys() >= {"llmcompressor", "torch"} and "model.safetensors" in record["files"]
    assert bool(record["calibration"]) == quantise.SCHEMES[scheme]["calibrated"]
    if record["calibration"]:
        assert record["calibration"] == quantise._told(model, quantise.calibration(model)), "it can be made again"


def test_all_shipped_checkpoints_together_are_small():
    files = [file for model, scheme in SHIPPED for file in quantise.folder(model, scheme).iterdir()]
    assert sum(file.stat().st_size for file in files) < 27e6


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda made: (made / "model.safetensors").write_bytes(b"other"), "digests do not match .*model.safetensors"),
    (lambda made: (made / "config.json").unlink(), "digests do not match .*config.json"),
    (lambda made: (made / "extra.json").write_text("{}"), "digests do not match .*extra.json"),
    (lambda made: (made / quantise.RECORD).unlink(), "no readable quantisation.json"),
    (lambda made: (made / quantise.RECORD).write_text("{"), "no readable quantisation.json"),
    (lambda made: (made.parent / MINI.name / "config.json").write_text("{}"), "other bf16 weights"),
], ids=["weights", "missing", "added", "no record", "broken record", "source"])
def test_a_checkpoint_that_does_not_match_is_refused(copied, spoil, message):
    assert base.source(MINI, EngineOptions(weights="fp8")) == str(copied)
    spoil(copied)
    with pytest.raises(AsuError, match=message) as refused:
        base.source(MINI, EngineOptions(weights="fp8"))
    assert "make quantize MODEL=mini-1m-direct SCHEME=fp8" in refused.value.remedy


def test_a_checkpoint_of_another_scheme_is_refused(copied):
    copied.rename(copied.with_name(f"{MINI.name}-w8a8"))
    with pytest.raises(AsuError, match="holds fp8 weights, not w8a8"):
        base.source(MINI, EngineOptions(weights="w8a8"))


def test_an_unknown_scheme_names_those_there_are():
    with pytest.raises(AsuError, match="(?s)unknown quantisation scheme 'nf4'.*w4a16, w8a8, fp8, awq"):
        quantise.make(MINI, "nf4")


def test_without_llmcompressor_the_error_is_the_command_that_installs_it(copied, monkeypatch):
    shutil.rmtree(copied)
    monkeypatch.setattr(quantise, "PYTHON", copied / "bin" / "python")
    with pytest.raises(AsuError, match="python3 lib/install.py llmcompressor"):
        quantise.make(MINI, "fp8")
    assert [folder.name for folder in copied.parent.iterdir()] == [MINI.name], "nothing half made is left"


def test_a_checkpoint_that_is_there_is_not_made_again(copied, monkeypatch):
    monkeypatch.setattr(quantise, "_run", None)
    assert quantise.make(MINI, "fp8") == copied


def test_a_failure_of_llmcompressor_is_told_with_its_last_lines(copied, monkeypatch, tmp_path):
    shutil.rmtree(copied)
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho 'out of memory' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(quantise, "PYTHON", failing)
    with pytest.raises(AsuError, match="llmcompressor failed on mini-1m-direct:\nout of memory"):
        quantise.make(MINI, "w8a8")
    assert not [folder for folder in tmp_path.iterdir() if "quantising" in folder.name]


def test_the_command_line_tells_errors_cleanly():
    result = CliRunner().invoke(cli.app, ["quantize", MINI.name, "nf4"])
    assert result.exit_code == 1 and "unknown quantisation scheme" in result.output


def test_calibration_holds_no_published_problem():
    texts = quantise.calibration(models.get("mini-4m-think"))
    assert len(texts) == quantise.DOCUMENTS and any("<think>" in text for text in texts)
    assert not {text.split("<|user|>")[-1].split("<|assistant|>")[0] for text in texts} & problems.test_prompts()
    assert not any("<think>" in text for text in quantise.calibration(MINI))


def test_what_the_cpu_cannot_serve_is_refused_with_what_it_can():
    if engines.get("vllm").device != "cpu":
        pytest.skip("the installed vLLM serves on a GPU")
    options = EngineOptions(weights="bnb4")
    with pytest.raises(AsuError, match="(?s)vLLM on the CPU cannot do weights: bnb4.*w4a16"):
        engines.get("vllm").check(options, MINI, base.source(MINI, options))


def test_bf16_weights_are_the_source_where_no_checkpoint_is(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    shutil.copytree(paths.DATA / "models" / MINI.name, tmp_path / MINI.name)
    options = EngineOptions(weights="w4a16")
    assert base.source(MINI, options) == str(tmp_path / MINI.name)
    with pytest.raises(AsuError, match="make quantize MODEL=mini-1m-direct SCHEME=w4a16"):
        engines.get("vllm").check(options, MINI, base.source(MINI, options))


@pytest.mark.parametrize("scheme", shapes.FORMATS)
def test_random_weights_say_how_they_are_quantised(scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    model = models.get("r1-qwen-7b")
    made = base.source(model, EngineOptions(weights=scheme, random_weights=True))
    config = base.config(made)["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and config["ignore"] == ["lm_head"]
    assert shapes.digest(model, scheme) != shapes.digest(model) == shapes.digest(model, "fp8")
    assert base.source(model, EngineOptions(weights="fp8", random_weights=True)) == str(shapes.folder(model))


def test_lmdeploy_has_no_quantised_random_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    monkeypatch.setattr(base, "gpus", lambda: (base.Gpu("H200", (9, 0)),))
    lmdeploy, model = engines.get("lmdeploy"), models.get("r1-qwen-7b")
    monkeypatch.setattr(type(lmdeploy), "installed", lambda self: ("lmdeploy", "0"))
    options = EngineOptions(weights="w4a16", random_weights=True)
    with pytest.raises(AsuError, match="LMDeploy with random weights cannot do weights: w4a16"):
        lmdeploy.check(options, model, base.source(model, options))


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8"])
def test_random_weights_are_quantised_like_real_ones(scheme):
    """The config made up for random weights says what llmcompressor's own says, as far as it goes."""
    real = base.config(str(quantise.folder(models.get("mini-4m-think"), scheme)))["quantization_config"]
    made = shapes.quantization(scheme)
    group, own = made.pop("config_groups")["group_0"], real.pop("config_groups")["group_0"]
    assert made.items() <= real.items()
    assert group["weights"].items() <= own["weights"].items() and group["targets"] == own["targets"]
    assert (group["input_activations"] or {}).items() <= (own["input_activations"] or {}).items()


def test_a_digest_of_weights_follows_names_and_contents(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a")
    first = digests.of_weights(tmp_path, "m")
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert digests.of_weights(tmp_path, "m") != first
