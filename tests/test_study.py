"""Studies: axes to specs, each server started once, frames with the runs' labels, published records."""

import io
import shutil

import pandas as pd
import pytest
import toys as playthings
from asu import paths, runs, study
from asu.errors import AsuError
from asu.progress import Progress, Silent, clock_text
from asu.study import Study
from fake_engine import FakeAdapter

AXES = {"models": ["mini-4m-think", "mini-4m-direct"], "tasks": "toy", "budgets": [64, 128], "problems": 4,
        "loads": {"kind": "closed", "concurrency": 4}, "max_requests": 4}
WARMING = 4  # requests that warm a server up: as many as one step takes


class Servers:
    """Starts fake servers and remembers them."""

    def __init__(self):
        self.started = []

    def __call__(self, engine, model, options, *, log_path):
        self.started.append(playthings.server(log_path, model=model, options=options))
        return self.started[-1]

    @property
    def requests(self):
        """Requests beyond those that warm each server up."""
        return sum(len(server.fake.requests) - WARMING for server in self.started)


def test_axes_are_a_product_in_order():
    made = Study(**AXES, kv_pool_tokens=[8192, None])
    assert [(s.model, s.sampling.budget, s.options.kv_pool_tokens) for s in made.specs] == [
        (model, budget, pool) for model in AXES["models"] for budget in (64, 128) for pool in (8192, None)]


def test_singular_and_plural_mean_the_same():
    assert Study(model="mini-4m-think", task="toy", budget=64, context=1024).specs == Study(
        models=["mini-4m-think"], tasks=["toy"], budgets=[64], contexts=[1024]).specs


def test_values_by_task():
    made = Study(models="mini-4m-think", tasks=["a", "b"], problems={"a": 3, "b": 7}, repeats=2)
    assert {s.task: s.problems for s in made.specs} == {"a": 3, "b": 7}
    with pytest.raises(AsuError, match="problems names no value for task 'b'"):
        Study(models="mini-4m-think", tasks=["a", "b"], problems={"a": 3})


@pytest.mark.parametrize("asked, ranks", [({}, [1, 4]), ({"tensor_parallel": None}, [1, 4]),
                                          ({"tensor_parallel": 2}, [2, 2])])
def test_a_model_is_spread_over_as_many_gpus_as_its_entry_says_or_the_study(asked, ranks):
    study = Study(models=["r1-qwen-7b", "r1-llama-70b"], task="math500", random_weights=True, **asked)
    assert [spec.options.tensor_parallel for spec in study.specs] == ranks


def test_lengths_are_named_by_model_and_task():
    made = Study(models="r1-qwen-7b", tasks="gsm8k", lengths="{model}-{task}", random_weights=True)
    assert made.specs[0].lengths == "r1-qwen-7b-gsm8k"


@pytest.mark.parametrize(("axes", "problem", "remedy"), [
    ({"budgetts": [64]}, "no axis 'budgetts'", "did you mean 'budgets'"),
    ({"kv_pool_token": 1}, "no axis 'kv_pool_token'", "did you mean 'kv_pool_tokens'"),
    ({"budgets": []}, "empty list", "at least one"),
    ({"budget": 64, "budgets": [32]}, "given twice", "singular or the plural"),
    ({"budgets": "64"}, "sampling.budget", "specs.py"),
    ({"loads": {"kind": "gamma", "rate": -2.0, "cv": 1.0}}, "load.gamma.rate", "specs.py"),
    ({"budgets": 5000, "context": 4096}, "leaves no room", "specs.py"),
    ({"models": []}, "empty list", "at least one"),
])
def test_wrong_axes_are_named(axes, problem, remedy):
    with pytest.raises(AsuError) as error:
        Study(**({"models": "mini-4m-think", "tasks": "toy"} | axes))
    assert problem in error.value.problem and remedy in error.value.remedy


@pytest.mark.parametrize("missing", ["models", "tasks"])
def test_models_and_tasks_are_needed(missing):
    with pytest.raises(AsuError, match=f"needs {missing}"):
        Study(**{name: value for name, value in AXES.items() if name != missing})


@pytest.mark.parametrize(("axes", "problem"), [
    ({"models": "mini-5m"}, "unknown model 'mini-5m'"), ({"engines": "vlm"}, "unknown engine 'vlm'"),
    ({"tasks": "mini-eazy"}, "unknown task 'mini-eazy'")])
def test_unknown_names_stop_a_study_before_anything_starts(axes, problem, store):
    servers, valid = Servers(), {"models": "mini-4m-think", "tasks": "mini-easy", "problems": 2}
    with pytest.raises(AsuError, match=problem):
        Study(store=store, **(valid | axes)).run(server=servers)
    assert not servers.started


@pytest.mark.parametrize("text, problem", [("t_s\n1\n", "holds 1 arrivals"), ("t_s\n2\n1\n3\n", "not ascending")])
def test_a_bad_trace_stops_a_study_before_anything_starts(text, problem, toys, store, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "TRACES", tmp_path)
    (tmp_path / "bad.csv").write_text(text)
    servers = Servers()
    with pytest.raises(AsuError, match=problem):
        Study(**AXES | {"loads": {"kind": "trace", "name": "bad"}}, store=store).run(Silent(), server=servers)
    assert not servers.started


def test_union_keeps_order_and_drops_duplicates(store):
    a, b = Study(**AXES, store=store), Study(**AXES | {"budgets": [128, 256]}, store=store)
    assert (a + b).specs == a.specs + [s for s in b.specs if s.sampling.budget == 256] and len(a + a) == len(a)
    with pytest.raises(AsuError, match="cannot be joined"):
        a + Study(**AXES, store=runs.Store("/elsewhere"))


def test_runs_share_servers_and_are_made_once(toys, store):
    servers, made = Servers(), Study(**AXES, store=store)
    assert made.run(Silent(), server=servers) is made
    assert sorted(server.model.name for server in servers.started) == sorted(AXES["models"])
    assert servers.requests == 16 and made.plan().done.all() and made.estimate_s() == 0
    made.run(Silent(), server=servers)
    Study(**AXES | {"budgets": 64}, store=store).run(Silent(), server=servers)
    assert len(servers.started) == 2 and servers.requests == 16


def test_runs_made_again_enclose_all_other_runs_of_their_model_on_servers_of_their_own(store):
    plain = AXES | {"budgets": 64}
    study = Study(**plain | {"problems": 2}, weights="w8a8", store=store) + Study(**plain, trials=[0, 1], store=store)
    groups = [[(spec.model, spec.trial, spec.options.weights) for spec in group] for group in study.groups()]
    assert [group[0][1:] for group in groups] == [(0, "bf16"), (0, "w8a8"), (1, "bf16")] * 2  # w8a8 is the cheaper
    assert [group[0][0] for group in groups] == ["mini-4m-direct"] * 3 + ["mini-4m-think"] * 3


def test_the_cheapest_model_comes_first(store):
    groups = Study(**AXES, store=store).groups()
    assert [group[0].model for group in groups] == ["mini-4m-direct", "mini-4m-think"]
    assert all(len({spec.server_key for spec in group}) == 1 for group in groups)


@pytest.mark.parametrize(("caching", "resets"), [(True, 2), (False, 0)])
def test_the_prefix_cache_is_emptied_before_each_run(toys, store, caching, resets):
    servers = Servers()
    Study(**AXES | {"models": "mini-4m-think"}, prefix_caching=caching, store=store).run(Silent(), server=servers)
    assert [server.resets for server in servers.started] == [resets]


def test_an_engine_that_cannot_empty_its_cache_gets_a_server_for_each_run(toys, store, monkeypatch):
    monkeypatch.setattr(FakeAdapter, "reset_path", None)
    servers = Servers()
    Study(**AXES | {"models": "mini-4m-think"}, prefix_caching=True, store=store).run(Silent(), server=servers)
    Study(**AXES | {"models": "mini-4m-think"}, store=store).run(Silent(), server=servers)
    assert [server.resets for server in servers.started] == [0, 0, 0], "two with the cache on, one without for both"


def test_a_failing_run_keeps_the_ones_before(toys, store):
    servers, made = Servers(), Study(**AXES | {"models": "mini-4m-think"}, store=store)

    def dying(*args, **kwargs):
        server = servers(*args, **kwargs)
        server.fake.die_after = WARMING + 6
        return server

    with pytest.raises(AsuError, match="died"):
        made.run(Silent(), server=dying)
    assert made.plan().done.sum() == 1
    made.run(Silent(), server=servers)
    assert made.plan().done.all() and 2 <= len(servers.started[1].fake.requests) - WARMING <= 4


def test_a_server_that_cannot_answer_stops_the_study_at_once(toys, store):
    servers = Servers()

    def broken(*args, **kwargs):
        server = servers(*args, **kwargs)
        server.fake.fault = "http 400"
        return server

    with pytest.raises(AsuError, match="started but cannot answer: http 400"):
        Study(**AXES, store=store).run(Silent(), server=broken)
    assert [len(server.fake.requests) for server in servers.started] == [WARMING]


def test_another_executor_can_take_the_groups(toys, store):
    seen = []

    def backwards(groups, work):
        for group in reversed(groups):
            seen.append(group[0].model)
            yield from work(group)

    Study(**AXES, store=store).run(Silent(), server=Servers(), executor=backwards)
    assert seen == ["mini-4m-think", "mini-4m-direct"]


@pytest.fixture
def done(toys, store):
    return Study(**AXES, kv_pool_tokens=[8192, None], store=store).run(Silent(), server=Servers())


def test_frames_carry_the_runs_labels(done):
    requests = done.requests()
    assert list(requests.columns[:20]) == [
        "run", "engine", "model", "pair", "size", "role", "task", "load", "budget", "kv_pool_tokens", "weights",
        "kv_cache", "prefix_caching", "speculation", "max_requests", "trial", "prefix", "replay", "kv_pool_actual",
        "request_id"]
    assert len(requests) == 8 * 4 and requests.columns.is_unique and requests.index.is_unique
    assert requests.groupby("run").size().eq(4).all() and requests["run"].nunique() == 8
    assert set(requests.groupby("model").role.first().items()) == {("mini-4m-think", "RLLM"), ("mini-4m-direct", "LLM")}
    assert set(requests.kv_pool_tokens.dropna()) == {8192} and requests.kv_pool_tokens.isna().sum() == 16
    assert requests.kv_pool_actual.eq(4096).all() and requests.speculation.eq("none").all()
    assert requests.output_tokens.dtype == "int64" and requests.due_s.dtype == "float64"
    for frame in (done.events(), done.engine(), done.host()):
        assert set(requests.columns[:19]) <= set(frame.columns) and set(frame["run"]) <= set(requests["run"])
    assert done.events().groupby("run").size().eq(4 * (playthings.THINKING + playthings.ANSWER)).all()


def test_a_part_of_a_study_is_named_by_its_labels(done):
    part = done.where(kv_pool_tokens=8192, role="RLLM")
    assert [(s.model, s.options.kv_pool_tokens) for s in part.specs] == [("mini-4m-think", 8192)] * 2
    assert part.requests().run.nunique() == 2
    assert {s.options.kv_pool_tokens for s in done.where(kv_pool_tokens=None).specs} == {None}
    with pytest.raises(AsuError, match="no label 'pool'"):
        done.where(pool=8192)
    with pytest.raises(AsuError, match="no run has kv_pool_tokens 1"):
        done.where(kv_pool_tokens=1)


def test_provenance_tells_where_numbers_come_from(done):
    frame = done.provenance()
    assert len(frame) == 8 and frame.requests.eq(4).all() and frame.failed.eq(0).all() and frame.gap_tokens.eq(0).all()
    assert frame.engine.eq("vllm 0").all() and frame.machine.eq("c, 2 cores").all()


def test_folders_are_read_once(done, monkeypatch):
    done.requests()
    monkeypatch.setattr(runs, "read", lambda folder: pytest.fail("read again"))
    done.events()


def test_a_missing_run_names_the_command_and_the_time(toys, store):
    with pytest.raises(AsuError, match="no complete run in runs for vllm-mini-4m-think.* and 3 more") as error:
        Study(**AXES, store=store).requests()
    assert "python -m asu run" in error.value.remedy and "about 21 s" in error.value.remedy


def test_published_records_are_matched_by_spec_alone(done, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path / "published")
    shutil.copytree(done.store.root, tmp_path / "published" / "some-records")
    monkeypatch.setattr(runs, "inputs", lambda spec: pytest.fail("inputs are not asked for"))
    read = Study(**AXES, kv_pool_tokens=8192, records="some-records")
    servers = Servers()
    assert len(read.run(server=servers).requests()) == 16 and read.plan().done.all() and not servers.started
    monkeypatch.setenv("ASU_RECORDS", "some-records")
    assert Study(**AXES, kv_pool_tokens=8192).requests().equals(read.requests())
    with pytest.raises(AsuError, match="no complete run in records some-records") as error:
        Study(**AXES, kv_pool_tokens=1024).run(server=servers)
    assert "unset ASU_RECORDS" in error.value.remedy
    with pytest.raises(AsuError, match="no published records 'h100'") as error:
        Study(**AXES, records="h100")
    assert "some-records" in error.value.remedy


def test_a_plan_says_what_blocks_a_run(store):
    plan = Study(models="r1-qwen-7b", tasks="mini-easy", engines="vlm", problems=2, store=store).plan()
    assert plan.blocked[0] == "unknown engine 'vlm'" and not plan.done[0]
    plan = Study(models="mini-4m-think", tasks="mini-easy", problems=2, kv_pool_tokens=100, store=store).plan()
    assert "kv_pool_tokens 100" in plan.blocked[0]


def test_estimates_learn_from_like_runs(done):
    spec = Study(**AXES | {"problems": 40, "budgets": 64}).specs[0]
    history = [(spec, {"seconds": 10.0, "requests": 20}),
               (done.specs[-1], {"seconds": 500.0, "requests": 20})]
    assert study.estimate_s(spec, history) == pytest.approx(20.0)
    slow = spec.model_copy(update={"load": playthings.make_spec(load={"kind": "gamma", "rate": 0.5, "cv": 1.0}).load})
    assert study.estimate_s(slow, history) == pytest.approx(80.0), "arrivals set the least time"
    real = Study(model="qwen3-0.6b-think", task="gsm8k", problems=64, budget=2048).specs[0]
    assert study.estimate_s(real, history) == pytest.approx(64 * 1500 / 96), "not at a miniature's rate"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_counts_and_tells_the_time_left(toys, tmp_path, stream):
    made = Study(**AXES, store=runs.Store(tmp_path / str(stream.isatty())))
    progress = Progress(stream)
    made.run(progress, server=Servers())
    text = stream.getvalue()
    assert "4 runs to make on 2 servers, about 21 s" in text and "run 4/4" in text and "4/4 requests" in text
    assert "4 runs made" in text and "tok/s" in text and progress.left_s() == 0
    assert ("\r" in text) == stream.isatty()


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (360, "6 min"), (9000, "2.5 h")])
def test_times_as_people_read_them(seconds, text):
    assert clock_text(seconds) == text


def test_an_empty_study_has_no_frames(store):
    empty = Study.of([], store=store)
    assert len(empty) == 0 and empty.plan().empty and empty.run() is empty and empty.estimate_s() == 0
    with pytest.raises(AsuError, match="no runs"):
        empty.requests()
    assert isinstance(empty.plan(), pd.DataFrame)
