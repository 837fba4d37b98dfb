"""The laptop's serving path: Qwen3-0.6B's shape with random numbers on the real vLLM on the CPU."""

import pytest
from asu import paths, profiles
from asu.specs import Closed
from asu.study import Study


@pytest.mark.engine
@pytest.mark.timeout(240)
def test_the_laptop_profile_serves_its_models_shape(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    asked = profiles.study_of("03_adaptive_running_time", "laptop").specs
    spec = next(spec for spec in asked if spec.model == "qwen3-0.6b-think")
    options = spec.options.model_copy(update={"random_weights": True})
    # problems without the hub, and few tokens: it is the path that is tested
    sampling = spec.sampling.model_copy(update={"budget": 16})
    short = spec.model_copy(update={"options": options, "sampling": sampling, "task": "mini-easy", "problems": 4,
                                    "load": Closed(concurrency=4)})
    study = Study.of([short]).run()
    requests = study.requests()
    assert requests.error.isna().all() and (requests.output_tokens > 0).all() and requests.outcome.isna().all()
    assert requests.kv_pool_actual.eq(spec.options.kv_pool_tokens).all()
