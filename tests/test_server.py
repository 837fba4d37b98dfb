"""Server: faults and clean ends with tiny fake servers, and the real vLLM through the warm launcher."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request

import psutil
import pytest
from asu import engines
from asu.engines import server as server_module
from asu.engines.base import Engine
from asu.engines.server import Server
from asu.errors import AsuError
from asu.models import Model
from asu.specs import EngineOptions

MODEL = Model("toy", "toy", "0M", False)

# A child of its own that ignores SIGTERM stands for the engine's worker processes.
FAKE = '''
import http.server, os, signal, subprocess, sys, time
mode, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
print("worker", child.pid, flush=True)
if mode == "dies":
    sys.exit("no such architecture")
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "never":
    time.sleep(600)
if mode == "port-lost" and not os.path.exists(sys.argv[4]):
    open(sys.argv[4], "w").close()
    sys.exit("OSError: [Errno 98] Address already in use")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if os.path.exists(sys.argv[4] + ".hang"):
            time.sleep(600)
        sick = os.path.exists(sys.argv[4] + ".503")
        known = self.headers["Authorization"] == "Bearer " + os.environ["FAKE_KEY"]
        self.send_response(503 if sick else 200 if known else 401)
        self.end_headers()
        self.wfile.write(b"pool 4096")
    do_POST = do_GET
http.server.ThreadingHTTPServer((host, port), Handler).serve_forever()
'''


class Fake(Engine):
    """Runs FAKE in one of its modes; `flag` is the path of the files that change its behaviour."""

    name = "fake"
    packages = ()
    install = ""
    gauge_names = {}

    def __init__(self, tmp_path, mode="well"):
        self.mode = mode
        self.flag = tmp_path / "flag"
        self.script = tmp_path / "fake.py"
        self.script.write_text(FAKE)

    def check(self, options, model, source):
        pass

    def command(self, model, source, options, host, port, served_name):
        return [sys.executable, str(self.script), self.mode, host, str(port), str(self.flag)]

    def environment(self, options, source, key):
        return {"FAKE_KEY": key}

    def kv_pool_tokens(self, log_text, metrics_text):
        return int(metrics_text.split()[1])


def serve(engine, tmp_path, **kwargs):
    return Server(engine, MODEL, EngineOptions(), log_path=tmp_path / "log" / "server.log", **kwargs)


def worker(server):
    """Pid of the fake engine's own child."""
    return int(server.log_path.read_text().split("worker ")[1].split()[0])


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    """The fake's child ignores SIGTERM, so each stop would take the full grace time."""
    monkeypatch.setattr(server_module, "GRACE_S", 0.2)


def test_serves_then_leaves_nothing(tmp_path):
    with serve(Fake(tmp_path), tmp_path) as server:
        pids = server.pid, worker(server)
        assert server.kv_pool_tokens == 4096 and server.start_s > 0
        assert server.base_url.startswith("http://127.0.0.1:")
        server.check_alive()
        assert server.metrics() == "pool 4096"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(server.base_url + "/v1/models")
        port = server.port
    assert all(gone(pid) for pid in pids)
    server_module._check_port_free(port)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_group_is_gone_after_an_exception(tmp_path, error):
    with pytest.raises(error):
        with serve(Fake(tmp_path), tmp_path) as server:
            pids = server.pid, worker(server)
            raise error
    assert all(gone(pid) for pid in pids)


def test_dies_at_start(tmp_path):
    server = serve(Fake(tmp_path, "dies"), tmp_path)
    with pytest.raises(AsuError, match="(?s)died at start .exit code 1.*no such architecture"):
        server.__enter__()
    assert gone(worker(server))


def test_killed_at_start_points_to_memory(tmp_path):
    with pytest.raises(AsuError, match="(?s)SIGKILL.*out of memory"):
        serve(Fake(tmp_path, "killed"), tmp_path).__enter__()


def test_never_healthy(tmp_path):
    server = serve(Fake(tmp_path, "never"), tmp_path, start_timeout_s=1)
    with pytest.raises(AsuError, match="(?s)not healthy within 1 s.*worker"):
        server.__enter__()
    assert gone(worker(server))


def test_dies_in_the_middle(tmp_path):
    with serve(Fake(tmp_path), tmp_path) as server:
        os.kill(server.pid, signal.SIGSEGV)
        wait_until(lambda: server._exit_code() is not None)
        with pytest.raises(AsuError, match="(?s)died .signal SIGSEGV.*server.log"):
            server.check_alive()
        orphan = worker(server)
        assert not gone(orphan)
    assert gone(orphan)


def test_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "ANSWER_S", 0.5)
    engine = Fake(tmp_path)
    with serve(engine, tmp_path) as server:
        engine.flag.with_suffix(".hang").touch()
        with pytest.raises(AsuError, match="(?s)does not answer /health.*hangs"):
            server.check_alive()


def test_503_is_a_dead_engine(tmp_path):
    engine = Fake(tmp_path)
    with serve(engine, tmp_path) as server:
        engine.flag.with_suffix(".503").touch()
        with pytest.raises(AsuError, match="(?s)HTTP 503.*engine is dead"):
            server.check_alive()


def test_port_taken(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AsuError, match=f"port {port} .*in use"):
            serve(Fake(tmp_path), tmp_path, port=port).__enter__()


def test_a_port_lost_in_between_is_tried_anew(tmp_path):
    with serve(Fake(tmp_path, "port-lost"), tmp_path) as server:
        assert server.metrics() == "pool 4096"


def test_an_engine_that_cannot_is_never_started(tmp_path):
    engine = Fake(tmp_path)

    def refuse(*_):
        raise AsuError("cannot", "do otherwise")

    engine.check = refuse
    server = serve(engine, tmp_path)
    with pytest.raises(AsuError, match="cannot"):
        server.__enter__()
    assert not server.log_path.exists()


def test_the_key_is_in_no_log_and_no_command_line(tmp_path):
    with serve(Fake(tmp_path), tmp_path) as server:
        assert server.key not in server.log_path.read_text()
        assert not any(server.key in word for word in psutil.Process(server.pid).cmdline())


def test_reset_without_prefix_cache_is_nothing_and_with_one_needs_a_path(tmp_path):
    with serve(Fake(tmp_path), tmp_path) as server:
        server.reset_prefix_cache()
        server.options = EngineOptions(prefix_caching=True)
        with pytest.raises(AsuError, match="fresh server"):
            server.reset_prefix_cache()


def test_a_reply_left_unread_is_not_taken_for_the_next(tmp_path):
    with serve(Fake(tmp_path), tmp_path) as server:
        launcher = server._launcher
        launcher._channel.sendall(json.dumps({"poll": server.pid, "id": -1}).encode() + b"\n")
        child = worker(server)
    assert gone(child)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_group_dies_with_its_owner(tmp_path, how):
    """Whatever ends the process that holds the Server, kill -9 included, ends the engine and its children."""
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_server import Fake, serve
        with serve(Fake(Path({str(tmp_path)!r})), Path({str(tmp_path)!r})) as server:
            print(server.pid, flush=True)
            time.sleep(600)
    """)
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    leader = int(owner.stdout.readline())
    child = int((tmp_path / "log" / "server.log").read_text().split("worker ")[1].split()[0])
    assert not gone(leader) and not gone(child)
    owner.send_signal(how)
    owner.wait()
    wait_until(lambda: gone(leader) and gone(child))


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    """A folder with a 0.1 M-parameter Qwen3 of random weights and a tokenizer of characters."""
    import torch
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("miniature")
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *map(chr, range(32, 127)), "\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in ("<think>", "</think>")])
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}\n"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, head_dim=32, intermediate_size=128, max_position_embeddings=512,
                         tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def ask(server, path, body=None, key=None):
    """JSON answer of a running server."""
    request = urllib.request.Request(
        server.base_url + path, None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key or server.key}"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


@pytest.mark.engine
def test_real_vllm_twice_through_the_warm_launcher(tmp_path, miniature):
    vllm = engines.get("vllm")
    if vllm.device != "cpu":
        pytest.skip("the installed vLLM serves on a GPU")
    model = Model("toy-think", "toy", "0M", True)
    options = EngineOptions(kv_pool_tokens=1024, context=512, max_requests=8)
    keys = set()
    for round_ in range(2):
        log = tmp_path / f"{round_}.log"
        with Server(vllm, model, options, log_path=log, source=miniature, start_timeout_s=300) as server:
            keys.add(server.key)
            assert [entry["id"] for entry in ask(server, "/v1/models")["data"]] == ["toy-think"]
            assert server.kv_pool_tokens == 1024
            with pytest.raises(urllib.error.HTTPError, match="401"):
                ask(server, "/v1/models", key="wrong")
            body = {"model": "toy-think", "messages": [{"role": "user", "content": "2+2=?"}], "max_tokens": 16,
                    "seed": 1, "ignore_eos": True}
            answer = ask(server, "/v1/chat/completions", body)
            assert answer["usage"]["completion_tokens"] == 16
            assert answer["choices"][0]["message"]["reasoning"], "all text before </think> is thinking"
            gauges = vllm.gauges(server.metrics())
            assert gauges["running"] == 0 and gauges["preemptions"] == 0 and 0 <= gauges["kv_use"] <= 1
            group = [p for p in psutil.process_iter() if _group(p.pid) == server.pid]
            assert len(group) >= 3, "API server, engine core and worker"
            listening = [c.laddr for p in group for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
            assert (server.port in {port for _, port in listening})
            assert {ip for ip, _ in listening} <= {"127.0.0.1"}
            assert server.key not in log.read_text()
        assert all(gone(p.pid) for p in group)
    assert len(keys) == 2


def _group(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
