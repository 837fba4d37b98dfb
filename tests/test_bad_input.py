"""Bad input through the command line: one clear message with its remedy, exit code 1, no traceback, nothing started."""

# Which test holds each case (here: this file, on the command line).
#
# misspelt or ill-typed parameter   test_cli misspelt_and_ill_typed_parameters, test_study wrong_axes, here
# unknown model, task, engine       test_study unknown_names_stop_a_study, test_specs, test_tasks, test_engines, here
# option the engine cannot do       test_engines vllm_on_the_cpu_refuses, lmdeploy_refuses, test_server
#                                   an_engine_that_cannot_is_never_started, here
# budget over the model's context   test_study wrong_axes; context over the model's: test_engines; both here
# empty problem set                 test_tasks bad_local_sets, empty_hub_set, test_runs empty_problems_and_prompts, here
# empty prompt                      test_client an_empty_prompt_is_never_sent, test_runs, test_tasks, here
# negative rate                     test_study wrong_axes, test_load impossible_rates, here
# rate 0; CV 0, CV negative         here; test_load no_variation_means_constant_gaps, impossible_rates
# trace unsorted, negative, missing  test_load a_bad_trace; unknown: here; trace at rate 0: test_traces no_trace_is_sent
# SLO never or always met, no SLO   test_traffic an_slo_never_or_always_met, an_slo_that_is_no_time, an_slo_for_no_share
# quantised checkpoint, bad digest  test_quantise a_checkpoint_that_does_not_match, a_checkpoint_of_another_scheme
# scheme the platform cannot run    test_quantise what_the_cpu_cannot_serve, here
# draft of another vocabulary       test_speculation a_draft_with_another_vocabulary; unknown: an_unknown_draft
# speculation an engine draws wrong test_speculation the_cpu_speculates_at_temperature_0_alone, here
# a prefix that cannot be           test_prefix_caching a_prefix_that_cannot_be
# port taken                        test_server port_taken, a_port_lost_in_between
# server dies at start              test_server dies_at_start, killed_at_start, never_healthy, here
# server dies in mid-run            test_runs a_dying_engine, 503, refused; test_server dies_in_the_middle, here
# server hangs                      test_server hangs, test_client a_hang_ends_in_a_timeout, here
# HTTP 4xx, 5xx                     test_client a_failure_keeps_its_reason, test_runs some_requests, all_requests
# stream cut inside an event        test_client a_failure_keeps_its_reason, a_stream_cut_anywhere, test_runs
# malformed JSON event              test_client a_failure_keeps_its_reason, an_event_of_another_shape, test_runs
# two processes on one run folder   test_runs two_processes_on_one_folder
# truncated parquet                 test_runs damage_is_found_and_never_read_as_whole, here through a study
# missing weights file              test_engines missing_weights_file, test_runs missing_weights, here
# no hub access                     test_tasks no_hub_access, test_runs a_model_out_of_reach
# gated data set without token      test_tasks gated_set_without_token; gated model: here
# disk full (a small tmpfs)         test_runs a_full_disk_stops_the_run, a_full_disk_while_finishing
# Ctrl-C                            test_cli ctrl_c_exits_130, test_runs ctrl_c_keeps_the_journal, test_server
# kill -9                           test_runs a_killed_run_sends_only_what_is_missing, test_server group_dies_with_owner
# HTML or script in model output    test_report model_text_is_never_markup and its browser tests, test_client
#                                   text_is_kept_as_it_is, test_grading html_is_text

import os
import subprocess
import sys

import pytest
import toys as playthings
from asu import digests, engines, paths, runs, study
from asu.errors import AsuError
from asu.progress import Silent
from asu.study import Study
from fake_engine import FakeAdapter
from test_cli import asu, cell, house, write_notebook, write_profile  # noqa: F401  (house is a fixture)
from toys import INPUTS, make_spec


def notebook(axes, parameters="PROBLEMS = 2  # how many\n"):
    """The house's first notebook with another study."""
    write_notebook("01_first", cell("from asu.study import Study\n"), cell(parameters, "parameters"),
                   cell(f"study = Study({axes})", "study"))
    write_profile({"01_first": None})


def starting(monkeypatch, server):
    """Let studies start `server` instead of an engine."""
    monkeypatch.setattr(Study.run, "__kwdefaults__", Study.run.__kwdefaults__ | {"server": server})


@pytest.fixture
def nothing_starts(monkeypatch):
    starting(monkeypatch, lambda *_, **__: pytest.fail("a server was started"))


def refused(result, problem, remedy):
    """Whether a command ended with one clean message."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output and result.output.count("\nerror: ") == 1
    assert problem in result.output and f"Remedy: {remedy}" in result.output.replace("\n", " ").replace("  ", " ")


GIVEN = 'models="mini-4m-think", tasks="mini-easy", problems=PROBLEMS'


@pytest.mark.parametrize(("axes", "problem", "remedy"), [
    (f"{GIVEN}, budgits=64", "no axis 'budgits'", "did you mean 'budgets'"),
    (f"{GIVEN}, temperature='0.6'", "sampling.temperature", "correct the named fields"),
    (f"{GIVEN}, temperature=float('nan')", "sampling.temperature", "correct the named fields"),
    (GIVEN.replace("think", "thinks"), "unknown model 'mini-4m-thinks'", "use one of: mini-4m-think"),
    (GIVEN.replace("mini-easy", "gsm9k"), "unknown task 'gsm9k'", ""),
    (f"{GIVEN}, engine='vlm'", "unknown engine 'vlm'", ""),
    (f"{GIVEN}, budget=4096", "leaves no room for a prompt in a context of 4096", "correct the named fields"),
    (f"{GIVEN}, context=8192", "over the model's 4096", "set context to at most 4096"),
    (f"{GIVEN}, kv_cache='int4'", "int4", ""),
    (f"{GIVEN}, load={{'kind': 'gamma', 'rate': -1.0, 'cv': 1.0}}", "load.gamma.rate", "correct the named fields"),
    (f"{GIVEN}, load={{'kind': 'gamma', 'rate': 0.0, 'cv': 1.0}}", "load.gamma.rate", "correct the named fields"),
    (f"{GIVEN}, load={{'kind': 'gamma', 'rate': 1.0, 'cv': -1.0}}", "load.gamma.cv", "correct the named fields"),
    (f"{GIVEN}, load={{'kind': 'trace', 'name': 'mars'}}", "unknown trace 'mars'", "use one of: azure-code"),
    (f"{GIVEN}, weights='awq'", "cannot do weights: awq", "set weights to one of: bf16"),
    (f"{GIVEN}, speculation={{'method': 'ngram', 'tokens': 4}}", "draws wrong tokens", "set temperature to 0"),
    (f"{GIVEN}, load={{'kind': 'poisson', 'rate': 1.0}}", "load", "correct the named fields"),
    (GIVEN.replace("PROBLEMS", "0"), "problems", "correct the named fields"),
    (GIVEN.replace("PROBLEMS", "999"), "999 problems asked for, but the set has 300", "ask for 1 to 300"),
])
def test_a_study_that_cannot_be_made_is_refused_before_anything_starts(
        house, nothing_starts, axes, problem, remedy):  # noqa: F811
    notebook(axes)
    refused(asu("run"), problem, remedy)
    assert not list(paths.RUNS.glob("*/journal.jsonl"))


@pytest.mark.parametrize(("content", "problem"), [
    ("", "is empty"), ('{"id": "a", "prompt": " ", "expected": "1", "level": 1, "difficulty": 1}\n', "empty prompt"),
    ('{"id": "a", "pro', "cannot be read as JSON lines")])
def test_a_bad_problem_set_is_refused(house, nothing_starts, monkeypatch, content, problem):  # noqa: F811
    monkeypatch.setattr(paths, "PROBLEMS", house / "data" / "problems")
    paths.PROBLEMS.mkdir(parents=True)
    (paths.PROBLEMS / "mini-easy.jsonl").write_text(content)
    runs._problems_digest.cache_clear()
    notebook('models="mini-4m-think", tasks="mini-easy"')
    refused(asu("run"), problem, "")
    runs._problems_digest.cache_clear()


def test_missing_weights_are_named_with_the_command_that_restores_them(
        house, nothing_starts, monkeypatch):  # noqa: F811
    monkeypatch.setattr(paths, "MODELS", house / "data" / "models")
    notebook(GIVEN)
    refused(asu("run"), "weights of mini-4m-think are missing", "restore them (git checkout data/models)")
    plan = asu("plan")
    assert plan.exit_code == 0 and "blocked" in plan.output


def test_a_server_that_dies_at_start_shows_the_end_of_its_log(house, toys, monkeypatch):  # noqa: F811
    class Dying:
        def __enter__(self):
            raise AsuError("vllm died at start (exit code 1); the end of its log:\n  no such architecture", "see above")

        def __exit__(self, *_):
            raise AssertionError("it was never entered")

    starting(monkeypatch, lambda *_, **__: Dying())
    notebook(GIVEN)
    refused(asu("run"), "no such architecture", "see above")


def test_a_server_that_dies_in_mid_run_loses_nothing_and_the_same_command_goes_on(
        house, toys, monkeypatch):  # noqa: F811
    notebook(GIVEN.replace("PROBLEMS", "8") + ", load={'kind': 'closed', 'concurrency': 1}, max_requests=1")
    starting(monkeypatch, lambda *_, log_path: playthings.server(log_path, die_after=4))  # one of them warms up
    refused(asu("run"), "the fake server died", "start it again")
    started = []
    starting(monkeypatch, lambda *_, log_path: started.append(playthings.server(log_path)) or started[-1])
    assert asu("run").exit_code == 0 and len(started[0].fake.requests) == 1 + 8 - 3


def test_an_engine_that_hangs_ends_the_run_and_what_was_finished_is_kept(toys, store, server, monkeypatch):
    monkeypatch.setattr(runs, "HEALTH_EVERY_S", 0.1)
    server.fake.fault, server.fake.fault_at = lambda index: "hang" if index >= 3 else None, 0

    def check_alive():
        if len(server.fake.requests) > 3:
            raise AsuError("the engine does not answer /health: it hangs", "run again")

    monkeypatch.setattr(server, "check_alive", check_alive)
    spec = make_spec(load={"kind": "closed", "concurrency": 1})
    with pytest.raises(AsuError, match="it hangs"):
        runs.execute(spec, server, store, INPUTS)
    server.fake.fault = None
    assert runs.read(runs.execute(spec, server, store, INPUTS)).requests.session.tolist() == [0] * 3 + [1] * 5


@pytest.mark.parametrize("name", ["requests.parquet", "events.parquet"])
def test_a_truncated_parquet_file_is_never_half_of_a_study(toys, store, name):
    made = Study(models="mini-4m-think", tasks="toy", problems=4, store=store)
    made.run(Silent(), server=lambda *_, log_path: playthings.server(log_path))
    folder, = made.folders().values()
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-100])
    study._read_at.cache_clear()
    with pytest.raises(AsuError, match=f"{name} is not the file that was written") as error:
        made.requests()
    assert f"delete {folder} and run again" in error.value.remedy


@pytest.mark.parametrize("text", ["{}", "[]", "null", "", '{"requests": 4}'])
def test_a_mark_of_completeness_that_says_nothing_is_none(toys, store, server, text):
    folder = runs.execute(make_spec(), server, store, INPUTS)
    (folder / "DONE").write_text(text)
    with pytest.raises(AsuError, match="holds no complete run"):
        runs.read(folder)


def test_a_trace_edited_after_a_run_is_another_run(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "TRACES", tmp_path)
    monkeypatch.setattr(engines, "get", lambda name: FakeAdapter())
    spec = make_spec(task="mini-easy", load={"kind": "trace", "name": "mine"})
    (tmp_path / "mine.csv").write_text("t_s\n0.1\n")
    first = runs.inputs(spec)
    (tmp_path / "mine.csv").write_text("t_s\n0.1\n0.2\n")
    assert runs.inputs(spec) != first and "trace" not in runs.inputs(make_spec(task="mini-easy"))
    with pytest.raises(AsuError, match="unknown trace 'mine2'"):
        runs.inputs(make_spec(task="mini-easy", load={"kind": "trace", "name": "mine2"}))


def test_a_gated_model_without_a_token_says_what_to_accept(monkeypatch):
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_, **__):
        request = httpx.Request("GET", "https://hub.invalid/x")
        raise GatedRepoError("401 Client Error", response=httpx.Response(401, request=request))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(AsuError, match="the hub refuses nobody/gated") as error:
        digests.of_hub("nobody/gated", "main")
    assert "HF_TOKEN" in error.value.remedy


def test_a_whole_process_ends_with_one_message(house):  # noqa: F811
    notebook(GIVEN.replace("mini-4m-think", "mini-5m"))
    result = subprocess.run([sys.executable, "-m", "asu", "run"], capture_output=True, text=True, timeout=120,
                            env=os.environ | {"ASU_ROOT": str(house), "ASU_OUTPUT": str(house)})
    assert result.returncode == 1 and not result.stdout.strip()
    assert result.stderr.strip().startswith("error: unknown model 'mini-5m'") and "Remedy: use one of" in result.stderr
    assert "Traceback" not in result.stderr
