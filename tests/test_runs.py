"""Runs: whole folders or none, resumed at the next request, and every fault with its remedy."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import toys as playthings
from asu import columns, digests, journal, paths, records, runs, tasks, workload
from asu.errors import AsuError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import ANSWER, INPUTS, THINKING, ToyTask, make_spec


def run_until(process, condition, seconds=30):
    """Wait for `condition`; fail if the process ends or the time is over first."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stderr and process.stderr.read()
        time.sleep(0.01)


def in_another_process(server, store, **changes):
    """Make the run in a child process, against the server of this one."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import toys
from asu import runs, tasks
tasks.get = lambda name: toys.ToyTask()
server = toys.server({str(server.log_path)!r})
server.fake.base_url = {server.base_url!r}
try:
    runs.execute(toys.make_spec(**{changes!r}), server, runs.Store({str(store.root)!r}), toys.INPUTS)
except KeyboardInterrupt as stop:
    sys.exit(f"interrupted: {{stop}}")
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def finished(folder):
    """Requests in a folder's journal."""
    lines, _ = journal.read_journal(folder / "journal.jsonl")
    return [line["row"]["request_id"] for line in lines if line["kind"] == "request"]


def test_a_complete_run_reads_back(toys, store, server):
    spec = make_spec(repeats=2)
    folder = runs.execute(spec, server, store, INPUTS)
    run = runs.read(folder)
    assert run.spec == spec and store.find(spec, INPUTS) == folder and store.find(spec) == folder
    assert list(run.requests.request_id) == [f"p{i}#{k}" for k in range(2) for i in range(8)]
    assert list(run.requests.columns) == records.REQUESTS.names
    assert (run.requests.outcome == "correct").all() and run.requests.error.isna().all()
    assert (run.requests.thinking_tokens == THINKING).all() and (run.requests.answer_tokens == ANSWER).all()
    assert (run.requests.event_tokens == run.requests.output_tokens).all()
    assert list(run.requests.seed[:8]) == [spec.request_seed(f"p{i}", 0) for i in range(8)]
    times = run.requests[["due_s", "sent_s", "first_s", "visible_s", "last_s", "end_s"]].to_numpy()
    assert (np.diff(times, axis=1) >= 0).all() and (times >= 0).all()
    assert list(run.events.columns) == ["request_id", "session", "t_s", "thinking_tokens", "answer_tokens",
                                        "logprob"]
    assert len(run.events) == 16 * (THINKING + ANSWER) and run.events.logprob.isna().all()
    firsts = run.events.groupby("request_id").t_s.min().loc[run.requests.request_id].to_numpy()
    assert np.abs(firsts - run.requests.first_s).max() <= 0.5e-4 + 1e-12
    assert list(run.events.request_id.drop_duplicates()) == list(run.requests.request_id)
    assert all(part.t_s.is_monotonic_increasing for _, part in run.events.groupby("request_id"))
    kept = pq.read_table(folder / "events.parquet").to_pandas()
    assert kept.t_100us.is_monotonic_increasing, "kept by time, which takes less than half the bytes"
    assert list(run.engine.columns) == ["session", "t_s", *columns.ENGINE_GAUGES]
    assert run.engine.kv_use.between(0, 1).all()
    assert run.engine.spec_drafted.isna().all(), "a gauge the engine does not export is missing, not zero"
    assert list(run.host.columns) == ["session", "t_s", *columns.HOST_GAUGES]
    assert run.env["gap_tokens"] == 0 and run.env["failed"] == 0 and run.env["inputs"] == INPUTS
    assert len(run.env["sessions"]) == 1 and set(run.env["sessions"][0]["loop_lag_ms"]) == {"p50", "p99", "p100"}
    assert sorted(file.name for file in folder.iterdir()) == sorted([
        "DONE", "env.json", "server.log", "spec.json", *(f"{name}.parquet" for name in records.PARQUET)])
    assert b"secret-key" not in b"".join(file.read_bytes() for file in folder.iterdir())


def test_log_probabilities_are_kept_where_asked(toys, store, server):
    spec = make_spec(sampling={"budget": 64, "logprobs": True})
    events = runs.read(runs.execute(spec, server, store, INPUTS)).events
    assert all(body["logprobs"] for body in server.fake.requests)
    first = events[events.request_id == "p0#0"]
    assert first.logprob.tolist() == [-i / 64 for i in (100, 101, 102, 7, 100, 2)]
    assert events.logprob.notna().all()


def test_a_complete_run_is_not_made_again(toys, store, server):
    runs.execute(make_spec(), server, store, INPUTS)
    runs.execute(make_spec(), server, store, INPUTS)
    assert len(server.fake.requests) == 8


@pytest.mark.parametrize("load", [
    {"kind": "batch", "size": 3}, {"kind": "closed", "concurrency": 2}, {"kind": "gamma", "rate": 200.0, "cv": 1.0}])
def test_every_load_completes_and_resumes(toys, store, server, load):
    spec = make_spec(load=load)
    folder = runs.execute(spec, server, store, INPUTS)
    whole = runs.read(folder).requests
    keep_first(folder, spec, store, server, load, count=5)
    resumed = runs.read(runs.execute(spec, server, store, INPUTS)).requests
    assert list(resumed.session) == [0] * 5 + [1] * 3 and list(resumed.request_id) == list(whole.request_id)
    assert list(resumed.batch) == list(whole.batch)
    assert resumed.due_s[5:].min() >= whole.end_s[:5].max() - 1e-9, "a new session follows on from the old one"
    if load["kind"] == "gamma":
        gaps = np.diff(resumed.due_s[5:])
        assert np.allclose(gaps, np.diff(whole.due_s[5:])), "the arrival pattern goes on where it stopped"


def keep_first(folder, spec, store, server, load, count):
    """Turn a complete folder back into one killed after its first `count` requests, and clear the server's count."""
    run = runs.read(folder)
    rows = run.requests.to_dict("records")[:count]
    shutil.rmtree(folder)
    folder.mkdir()
    log = journal.Journal(folder / "journal.jsonl", 8)
    log.append({"kind": "session", "session": 0, "shift_s": 0.0, "started": "2000-01-01T00:00:00+00:00",
                "server_start_s": 1.0, "kv_pool_tokens": None, "git": {"revision": None, "dirty": None}})
    for row in rows:
        row = {name: None if value != value else value for name, value in row.items()}
        log.append({"kind": "request", "row": row, "events": []})
    log.close()
    server.fake.requests.clear()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_journal_torn_at_any_byte_keeps_its_whole_lines(tmp_path, data):
    rows = st.dictionaries(st.text(), st.text() | st.integers(-9, 9) | st.floats(0, 1))
    written = data.draw(st.lists(st.builds(lambda row: {"kind": "request", "row": row}, rows), min_size=1, max_size=5))
    path = tmp_path / hashlib.sha256(repr(written).encode()).hexdigest()[:8]
    path.unlink(missing_ok=True)
    log = journal.Journal(path, len(written))
    for record in written:
        log.append(record)
    log.close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    again = journal.Journal(path, len(written))
    assert again.records == written[:whole[:cut].count(b"\n")]
    for record in written[len(again.records):]:
        again.append(record)
    again.close()
    assert path.read_bytes() == whole


def test_a_journal_damaged_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"kind":"request"}\n{"kin\n{"kind":"request"}\n')
    with pytest.raises(AsuError, match="damaged in line 2"):
        journal.read_journal(path)


@given(st.dictionaries(st.text(min_size=1), st.text()), st.dictionaries(st.text(min_size=1), st.text()),
       st.sampled_from([1, 8]), st.sampled_from([1, 8]))
def test_two_runs_never_share_a_folder(a, b, problems, others):
    store, one, two = runs.Store("/nowhere"), make_spec(problems=problems), make_spec(problems=others)
    assert (store.folder(one, a) == store.folder(two, b)) == ((one, a) == (two, b))


def test_a_folder_name_is_one_path_component():
    spec = make_spec(load={"kind": "trace", "name": "../../etc/pass wd\n"})
    assert runs.Store("/nowhere").folder(spec, {}).parent == Path("/nowhere")


def test_a_killed_run_sends_only_what_is_missing(toys, store, server):
    server.fake.ttft_s = 0.05
    spec = make_spec(problems=24)
    folder = store.folder(spec, INPUTS)
    with in_another_process(server, store, problems=24) as process:
        run_until(process, lambda: len(finished(folder)) >= 6)
        process.kill()
    kept = finished(folder)
    assert 6 <= len(kept) < 24 and not (folder / "DONE").exists() and store.find(spec, INPUTS) is None
    time.sleep(0.2)  # what the dead client left running at the server ends
    server.fake.requests.clear()
    requests = runs.read(runs.execute(spec, server, store, INPUTS)).requests
    assert len(server.fake.requests) == 24 - len(kept)
    assert set(requests.request_id[requests.session == 0]) == set(kept)
    assert requests.request_id.is_unique and len(requests) == 24


def test_ctrl_c_keeps_the_journal_and_says_how_to_go_on(toys, store, server):
    server.fake.ttft_s = 0.05
    folder = store.folder(make_spec(problems=100), INPUTS)
    with in_another_process(server, store, problems=100) as process:
        run_until(process, lambda: len(finished(folder)) >= 4)
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
        assert process.wait(20) == 1
    kept = len(finished(folder))
    assert f"interrupted: {kept} of 100 requests are kept in {folder}" in message and "again" in message
    assert 4 <= kept < 100 and not (folder / "DONE").exists()


def test_two_processes_on_one_folder(toys, store, server):
    server.fake.ttft_s = 0.1
    folder = store.folder(make_spec(problems=40), INPUTS)
    with in_another_process(server, store, problems=40) as process:
        run_until(process, lambda: len(finished(folder)) >= 1)
        with pytest.raises(AsuError, match=f"process {process.pid}") as error:
            runs.execute(make_spec(problems=40), server, store, INPUTS)
        assert "wait" in error.value.remedy
        process.kill()
    server.fake.ttft_s = 0.0
    assert len(runs.read(runs.execute(make_spec(problems=40), server, store, INPUTS)).requests) == 40


def test_a_dying_engine_aborts_and_its_victims_are_sent_again(toys, store, tmp_path):
    spec, folder = make_spec(), store.folder(make_spec(), INPUTS)
    with playthings.server(tmp_path / "a.log", die_after=5) as dying, pytest.raises(AsuError, match="died"):
        runs.execute(spec, dying, store, INPUTS)
    kept = finished(folder)
    assert len(kept) <= 5 and not (folder / "DONE").exists()
    kinds = {line["kind"] for line in journal.read_journal(folder / "journal.jsonl")[0]}
    assert "gauges" in kinds, "what was read of it stays"
    with playthings.server(tmp_path / "b.log") as alive:
        requests = runs.read(runs.execute(spec, alive, store, INPUTS)).requests
        assert len(alive.fake.requests) == 8 - len(kept)
    assert requests.error.isna().all(), "no request of the dead engine counts as a result"


def test_what_is_prepared_before_a_run_delays_no_arrival(toys, store, server, monkeypatch):
    where = runs._where
    monkeypatch.setattr(runs, "_where", lambda server: time.sleep(1.0) or where(server))
    load = {"kind": "gamma", "rate": 1000.0, "cv": 0.0}
    requests = runs.read(runs.execute(make_spec(load=load), server, store, INPUTS)).requests
    assert requests.due_s.min() < 0.1 and requests.sent_s.min() < 1.0


def test_counters_are_read_before_the_first_request(toys, store, server):
    complete = runs.read(runs.execute(make_spec(), server, store, INPUTS))
    assert complete.engine.t_s.iloc[0] == 0 and complete.engine.t_s.is_monotonic_increasing


def test_the_clock_does_not_go_back_under_a_slowly_starting_monitor(toys, store, server, monkeypatch):
    class Slow(runs.Monitor):
        def __enter__(self):
            time.sleep(0.3)
            super().__enter__()
            while len(self.engine_frame()) < 2:
                time.sleep(0.001)
            return self

    monkeypatch.setattr(runs, "Monitor", Slow)
    complete = runs.read(runs.execute(make_spec(), server, store, INPUTS))
    assert len(complete.engine) >= 3 and complete.engine.t_s.is_monotonic_increasing


def test_an_engine_that_answers_503_is_dead(toys, store, server):
    server.fake.fault = "http 503"
    with pytest.raises(AsuError, match="503") as error:
        runs.execute(make_spec(), server, store, INPUTS)
    assert "already finished are kept" in error.value.remedy


def test_a_refused_connection_means_a_dead_engine(toys, store, server):
    server.fake.base_url = "http://127.0.0.1:9"
    with pytest.raises(AsuError):
        runs.execute(make_spec(), server, store, INPUTS)
    assert finished(store.folder(make_spec(), INPUTS)) == []


def test_all_requests_failing_is_no_run(toys, store, server):
    server.fake.fault = "http 400"
    with pytest.raises(AsuError, match="all 8 requests .* failed, the first with: http 400"):
        runs.execute(make_spec(), server, store, INPUTS)
    server.fake.fault = None
    assert runs.read(runs.execute(make_spec(), server, store, INPUTS)).requests.error.isna().all()


@pytest.mark.parametrize(("fault", "kind"), [("http 400", "http 400"), ("cut", "cut"), ("malformed", "malformed")])
def test_some_requests_failing_are_counted(toys, store, server, fault, kind):
    server.fake.fault = lambda index: fault if index % 4 == 3 else None
    run = runs.read(runs.execute(make_spec(load={"kind": "closed", "concurrency": 1}), server, store, INPUTS))
    assert run.env["failed"] == 2 and (run.requests.outcome == "failed").sum() == 2
    assert run.requests.error.dropna().str.startswith(kind).all()


@pytest.fixture
def complete(toys, store, server):
    return runs.execute(make_spec(), server, store, INPUTS)


@pytest.mark.parametrize("name", [f"{name}.parquet" for name in records.PARQUET] + ["spec.json", "DONE", "env.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damage_is_found_and_never_read_as_whole(complete, name, damage):
    file = complete / name
    data = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    with pytest.raises(AsuError) as error:
        runs.read(complete)
    assert f"delete {complete} and run again" in error.value.remedy


def test_a_folder_of_another_spec_is_refused(complete):
    data = json.loads((complete / "spec.json").read_text())
    data["spec"]["seed"] = 99
    (complete / "spec.json").write_text(json.dumps(data))
    with pytest.raises(AsuError, match="does not belong to the spec"):
        runs.read(complete)


def test_a_parquet_file_rewritten_with_fewer_rows_is_refused(complete):
    frame = runs.pd.read_parquet(complete / "requests.parquet")
    frame[:3].to_parquet(complete / "requests.parquet")
    with pytest.raises(AsuError, match="cut short or changed"):
        runs.read(complete)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_the_run_and_keeps_what_was_whole(toys, server, small_disk, tmp_path):
    server.fake.script = lambda prompt: ("hm " * 400, "x")
    spec, store = make_spec(problems=60, sampling={"budget": 1024}), runs.Store(small_disk)
    with pytest.raises(AsuError, match="is full: the run needs about [0-9,]+ bytes more") as error:
        runs.execute(spec, server, store, INPUTS)
    folder = store.folder(spec, INPUTS)
    assert str(folder) in error.value.problem and not (folder / "DONE").exists()
    kept = finished(folder)
    assert 0 < len(kept) < 60
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    server.fake.requests.clear()
    assert len(runs.read(runs.execute(spec, server, store, INPUTS)).requests) == 60
    assert len(server.fake.requests) == 60 - len(kept)


def test_a_full_disk_while_finishing_keeps_the_journal(toys, store, server, monkeypatch):
    def full(path, data):
        if path.name == "events.parquet":
            raise OSError(errno.ENOSPC, "No space left on device")
        journal.write(path, data)

    with monkeypatch.context() as patch, pytest.raises(AsuError, match="is full"):
        patch.setattr(records, "write", full)
        runs.execute(make_spec(), server, store, INPUTS)
    assert store.find(make_spec()) is None
    assert len(runs.read(runs.execute(make_spec(), server, store, INPUTS)).requests) == 8
    assert len(server.fake.requests) == 8


def test_resuming_with_nothing_left_to_send_only_finishes(toys, store, server, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(runs, "finish", lambda *_: sys.exit("killed"))
        runs.execute(make_spec(), server, store, INPUTS)
    assert len(runs.read(runs.execute(make_spec(), server, store, INPUTS)).requests) == 8
    assert len(server.fake.requests) == 8


def test_a_run_inside_a_running_loop(toys, store, server):
    async def notebook_cell():
        return runs.execute(make_spec(), server, store, INPUTS)

    assert len(runs.read(runs.asyncio.run(notebook_cell())).requests) == 8


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LENGTHS", tmp_path)
    (tmp_path / "toy.csv").write_text("problem_id,repeat,prompt_tokens,output_tokens\na,0,12,40\nb,0,30,900\n")


def test_replay_asks_for_the_recorded_lengths(toys, recorded, store, server, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    spec = make_spec(model="r1-qwen-7b", lengths="toy", problems=None, options={"random_weights": True})
    wanted = runs.requests(spec)
    assert [(r.id, r.max_tokens, len(r.problem.prompt.split())) for r in wanted] == [("a#0", 40, 12), ("b#0", 64, 30)]
    call = runs._call(spec, wanted[0])
    assert call.ignore_eos and call.min_tokens == call.max_tokens == 40
    requests = runs.read(runs.execute(spec, server, store, INPUTS)).requests
    assert requests.outcome.isna().all() and requests.extracted.isna().all(), "random weights have no accuracy"


def test_lengths_that_are_missing(recorded):
    with pytest.raises(AsuError, match="use one of: toy"):
        workload.recorded_lengths("toys")
    with pytest.raises(AsuError, match="no row for problem a, repeat 1"):
        runs.requests(make_spec(lengths="toy", problems=None, repeats=2, options={"random_weights": True}))


def test_empty_problems_and_prompts_are_refused(toys, monkeypatch):
    monkeypatch.setattr(ToyTask, "problems", lambda self, limit: [])
    with pytest.raises(AsuError, match="no problems"):
        runs.requests(make_spec())
    monkeypatch.setattr(ToyTask, "problems", lambda self, limit: [tasks.Problem("e", " \n", "1", 1, 1.0, "toy")])
    with pytest.raises(AsuError, match="problem e of toy has an empty prompt"):
        runs.requests(make_spec())


def test_missing_weights_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    with pytest.raises(AsuError, match="weights of mini-4m-think are missing"):
        runs._weights_digest("mini-4m-think")


def test_a_model_out_of_reach_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AsuError, match="nobody/nothing is not on this machine and the hub cannot be reached"):
        digests.of_hub("nobody/nothing", "main")


def test_the_end_of_thinking_is_found_in_the_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    folder = tmp_path / "mini-4m-think"
    folder.mkdir()
    added = [{"id": 3, "content": "<think>"}, {"id": 4, "content": "</think>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    assert runs._think_end_id(make_spec(model="mini-4m-think")) == 4
    assert runs._think_end_id(make_spec(model="mini-4m-direct")) is None


def test_weights_digest_follows_every_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    folder = tmp_path / "mini-4m-think"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    first = runs._weights_digest("mini-4m-think")
    (folder / "tokenizer.json").write_text("{} ")
    assert runs._weights_digest("mini-4m-think") != first
    (folder / "tokenizer.json").write_text("{}")
    assert runs._weights_digest("mini-4m-think") == first
    (folder / "README.md").write_text("no number depends on this")
    assert runs._weights_digest("mini-4m-think") == first


def test_the_machine_names_its_processor():
    assert runs.machine()["cores"] == len(os.sched_getaffinity(0)) and runs.machine()["cpu"]
