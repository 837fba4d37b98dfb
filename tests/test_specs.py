"""Specs: what is refused, and a digest that tells any two apart."""

import pytest
from asu import models, specs
from asu.errors import AsuError
from hypothesis import given
from hypothesis import strategies as st

BASE = {"model": "mini-4m-think", "task": "mini-easy"}


@pytest.mark.parametrize(("change", "named"), [
    ({"modell": "x"}, "modell"),
    ({"problems": "40"}, "problems"),
    ({"problems": 0}, "problems"),
    ({"seed": 1.5}, "seed"),
    ({"options": {"kv_pool_token": 8192}}, "options.kv_pool_token"),
    ({"options": {"weights": "int3"}}, "options.weights"),
    ({"sampling": {"budget": 4096}}, "budget 4096 leaves no room for a prompt in a context of 4096"),
    ({"sampling": {"budget": 8192}, "options": {"context": 4096}}, "leaves no room"),
    ({"sampling": {"temperature": float("nan")}}, "sampling.temperature"),
    ({"load": {"kind": "gamma", "rate": -1.0, "cv": 1.0}}, "load.gamma.rate"),
    ({"load": {"kind": "gamma", "rate": 1.0, "cv": -0.1}}, "load.gamma.cv"),
    ({"load": {"kind": "batch", "size": 0}}, "load.batch.size"),
    ({"load": {"kind": "burst"}}, "load"),
    ({"options": {"speculation": {"method": "draft", "tokens": 4}}}, "names a draft model"),
])
def test_bad_fields_are_named(change, named):
    with pytest.raises(AsuError, match="specs.py") as error:
        specs.parse(BASE | change, "here")
    assert named in error.value.problem and error.value.problem.startswith("here: ")


def test_unknown_model_lists_the_known():
    with pytest.raises(AsuError, match="mini-4m-think"):
        models.get("mini-4m-thinks")


loads = st.one_of(
    st.builds(lambda size: {"kind": "batch", "size": size}, st.integers(1, 99)),
    st.builds(lambda n: {"kind": "closed", "concurrency": n}, st.integers(1, 99)),
    st.builds(lambda rate, cv: {"kind": "gamma", "rate": rate, "cv": cv}, st.floats(0.1, 9), st.floats(0, 3)))
options = st.fixed_dictionaries({}, optional={
    "weights": st.sampled_from(["bf16", "fp8", "w4a16"]), "kv_cache": st.sampled_from(["bf16", "fp8_e4m3"]),
    "kv_pool_tokens": st.none() | st.integers(1, 1 << 20), "max_requests": st.integers(1, 256),
    "prefix_caching": st.booleans()})
spec_data = st.fixed_dictionaries(
    {"model": st.sampled_from(sorted(models.CATALOGUE)), "task": st.sampled_from(["mini-easy", "mini-hard"])},
    optional={"engine": st.sampled_from(["vllm", "lmdeploy"]), "options": options, "load": loads,
              "problems": st.none() | st.integers(1, 99), "repeats": st.integers(1, 3), "seed": st.integers(0, 9),
              "sampling": st.fixed_dictionaries({}, optional={"budget": st.integers(1, 2048),
                                                              "top_p": st.floats(0.1, 1)}),
              "lengths": st.none() | st.text(min_size=1, max_size=5)})


@given(spec_data, spec_data)
def test_digests_differ_exactly_when_specs_do(a, b):
    a, b = specs.parse(a, "a"), specs.parse(b, "b")
    assert (specs.digest(a, {}) == specs.digest(b, {})) == (a == b)
    assert (a.server_key == b.server_key) == ((a.engine, a.model, a.options) == (b.engine, b.model, b.options))


@given(spec_data)
def test_digest_survives_json(data):
    spec = specs.parse(data, "a")
    again = specs.parse(specs.json.loads(specs.canonical(spec.model_dump(mode="json"))), "b")
    assert again == spec and specs.digest(again, {"x": 1}) == specs.digest(spec, {"x": 1})


@given(spec_data, st.text(), st.text(), st.integers(0, 5), st.integers(0, 5))
def test_request_seeds_depend_on_problem_and_repeat_alone(data, p, q, i, j):
    spec = specs.parse(data, "a")
    other = specs.parse(data | {"model": "mini-1m-think", "load": {"kind": "batch", "size": 3}}, "b")
    assert spec.request_seed(p, i) == other.request_seed(p, i)
    assert (spec.request_seed(p, i) == spec.request_seed(q, j)) == ((p, i) == (q, j))
    assert 0 <= spec.request_seed(p, i) < 2**31
