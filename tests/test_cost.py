"""What large models cost: memory from shapes, hours from published rates, and a plan that fetches nothing."""

import os
import re
import subprocess
import sys

import pytest
from asu import cost, models, paths, profiles
from asu.errors import AsuError
from asu.specs import Batch, Closed, EngineOptions, RunSpec, Sampling

SPEC = RunSpec(model="r1-qwen-7b", task="math500", problems=64, load=Closed(concurrency=32),
               options=EngineOptions(kv_pool_tokens=98304, context=10240), sampling=Sampling(budget=8192))
HUB = [model for model in models.CATALOGUE.values() if model.hub]


def like(spec=SPEC, **changes):
    options = {name: changes.pop(name) for name in list(changes) if name in EngineOptions.model_fields}
    return spec.model_copy(update=changes | {"options": spec.options.model_copy(update=options)})


def test_memory_is_weights_and_pool():
    # 7,615,616,512 parameters by the model's card; biases and norms, left out here, are under a thousandth
    assert cost.weight_gib(models.get("r1-qwen-7b")) == pytest.approx(7_615_616_512 * 2 / 2**30, rel=1e-3)
    assert cost.weight_gib(models.get("qwen3-0.6b-think")) == pytest.approx(596e6 * 2 / 2**30, rel=2e-3)
    assert cost.weight_gib(models.get("r1-llama-70b")) == pytest.approx(70.55e9 * 2 / 2**30, rel=2e-3)
    assert cost.kv_gib(SPEC) == 98304 * 2 * 28 * 4 * 128 * 2 / 2**30
    assert cost.kv_gib(like(kv_cache="fp8_e4m3")) == cost.kv_gib(SPEC) / 2
    quantised = cost.weight_gib(models.get("r1-qwen-7b"), "fp8")
    assert cost.weight_gib(models.get("r1-qwen-7b")) / 2 < quantised < cost.weight_gib(models.get("r1-qwen-7b"))


def test_a_measured_run_costs_what_it_took():
    assert not any(models.get(rate.spec.model).miniature for rate in cost.measured())
    for rate in cost.measured():
        took = rate.spec.problems * rate.spec.repeats * rate.tokens / rate.tokens_per_s
        if rate.spec.lengths:  # lengths of more problems than were run: the same up to what problems were drawn
            assert cost.seconds(rate.spec) == pytest.approx(took, rel=0.5)


def test_more_work_costs_more():
    assert cost.seconds(like(problems=128)) == pytest.approx(2 * cost.seconds(SPEC))
    assert cost.seconds(like(model="r1-qwen-32b")) > 2 * cost.seconds(SPEC)
    assert cost.seconds(like(model="qwen2.5-math-7b")) < cost.seconds(SPEC)
    assert cost.seconds(like(load=Batch(size=16))) > cost.seconds(SPEC)
    assert cost.seconds(like(tensor_parallel=4)) == pytest.approx(cost.seconds(SPEC) / 4)
    assert cost.seconds(like(weights="fp8")) < cost.seconds(SPEC)


def test_lengths_are_of_the_model_or_said_to_be_assumed():
    assert cost.recorded("r1-qwen-7b", "aime24")[0] == "r1-qwen-7b-aime24"
    assert cost.recorded("r1-llama-70b", "aime24")[0] in ("r1-qwen-7b-aime24", "r1-qwen-32b-aime24")
    assert cost.recorded("r1-qwen-7b", "commonsenseqa")[0] == "all of its role"
    assert min(cost.recorded("r1-qwen-7b", "commonsenseqa")[1]) > 100, "of miniatures, which say nothing of large ones"
    assert cost.recorded("mini-4m-think", "mini-hard")[0] == "mini-4m-think-mini-hard"
    frame = cost.table([SPEC, like(task="commonsenseqa"), like(model="mini-4m-think")])
    assert list(frame.assumed) == ["commonsenseqa"] and list(frame.runs) == [2]
    assert frame.gpu_hours[0] > (cost.seconds(SPEC) + cost.seconds(like(task="commonsenseqa"))) / 3600
    assert cost.table([like(model="mini-4m-think")]).empty


def test_nothing_measured_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(cost, "measured", lambda: ())
    with pytest.raises(AsuError, match="no published run"):
        cost.seconds(SPEC)


@pytest.mark.parametrize("model", HUB, ids=lambda model: model.name)
def test_every_hub_model_is_pinned_and_has_a_shape(model):
    assert re.fullmatch("[0-9a-f]{40}", model.revision), "a branch moves, a commit does not"
    assert model.shape, "no memory can be planned without its shape"
    twins = [other for other in HUB if other.pair == model.pair]
    assert {twin.thinks for twin in twins} == {True, False}
    if model.chat_options:
        assert len({(twin.hub, twin.revision) for twin in twins}) == 1, "a hybrid pair is one set of weights"


@pytest.mark.parametrize("profile", ["paper", "laptop"])
def test_the_profile_resolves_every_cell(profile):
    specs = {spec for name in profiles.load(profile).notebooks for spec in profiles.study_of(name, profile).specs}
    assert specs
    for spec in specs:
        assert models.get(spec.model).hub and not spec.options.random_weights and spec.lengths is None
        assert spec.sampling.budget < spec.options.context
        if profile == "paper":
            assert spec.problems <= {"aime24": 30}.get(spec.task, 100) or spec.load.kind == "gamma"
            assert spec.options.tensor_parallel == models.get(spec.model).gpus
    frame = cost.table(list(specs))
    if profile == "laptop":
        assert frame.empty
    else:
        assert (frame.gib / frame.gpus).max() < 0.92 * 140, "an H200 has 140 GiB, of which vLLM takes 0.92"
        assert (frame.gpu_hours > 0).all()


def test_the_plan_prints_memory_and_hours_and_fetches_nothing(tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "ASU_OUTPUT": str(tmp_path / "output"),
                                "COLUMNS": "150", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_COLOR": "1"}
    made = subprocess.run([sys.executable, "-m", "asu", "plan", "--profile", "paper"], cwd=paths.ROOT, text=True,
                          env=environment, capture_output=True, timeout=120)
    assert made.returncode == 0, made.stderr
    for wanted in ("GPU memory needed [GiB]", "GPUs", "estimated GPU-hours", "total", "r1-llama-70b", "qwen3-8b-plain"):
        assert wanted in made.stdout
    assert not (tmp_path / "hub").exists() and not (tmp_path / "output").exists()


def test_a_context_beyond_a_models_own_positions_is_asked_for(monkeypatch):
    from asu.engines.vllm import VLLM

    monkeypatch.setattr(VLLM, "installed", lambda self: ("vllm", "0.25.1"))
    model = models.get("qwen2.5-math-7b")
    command = VLLM().command(model, model.hub, EngineOptions(context=32768), "127.0.0.1", 1, model.name)
    assert command[command.index("--hf-overrides") + 1] == '{"max_position_embeddings": 32768}'
    assert command[command.index("--revision") + 1] == model.revision
    other = models.get("r1-qwen-7b")
    assert "--hf-overrides" not in VLLM().command(other, other.hub, EngineOptions(context=32768), "x", 1, "x")
