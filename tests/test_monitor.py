"""The monitor against a mock server: it samples on the client's clock, survives what fails, and never holds an exit."""

import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pynvml
import pytest
from asu import monitor as module
from asu.client import Clock
from asu.columns import ENGINE_GAUGES, HOST_GAUGES
from asu.monitor import Host, Monitor
from fake_engine import FakeServer


def wait_for(condition, limit_s=20.0):
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)


@pytest.fixture
def server():
    with FakeServer() as server:
        yield server


def test_gauges_and_host_are_sampled_on_the_clock(server):
    clock = Clock()
    with Monitor(server, clock, interval_s=0.01) as monitor:
        wait_for(lambda: len(monitor.engine_frame()) >= 5 and len(monitor.host_frame()) >= 5)
    engine, host = monitor.engine_frame(), monitor.host_frame()
    assert list(engine) == ["t_s", *ENGINE_GAUGES] and list(host) == ["t_s", *HOST_GAUGES]
    for frame in (engine, host):
        assert {str(kind) for kind in frame.dtypes} == {"float64"} and frame["t_s"].between(0, clock.now()).all()
        assert frame["t_s"].is_monotonic_increasing
    told = [name for name in ENGINE_GAUGES if not name.startswith("spec_")]
    assert (engine[told] == 0).all().all() and monitor.failed_polls == 0
    assert (host["rss_bytes"] > 1e6).all()
    assert np.isnan(host["cpu_share"][0]) and (host["cpu_share"][1:] >= 0).all()


def test_four_samples_a_second_are_the_default(server):
    assert 1 / Monitor(server, Clock()).interval_s >= 4


def test_a_failed_poll_is_a_missing_row_and_the_next_one_comes(server):
    with Monitor(server, Clock(), interval_s=0.01) as monitor:
        wait_for(lambda: len(monitor.engine_frame()))
        server.lost_metrics = True
        wait_for(lambda: monitor.failed_polls >= 2)
        server.lost_metrics = False
        failed = len(monitor.engine_frame()) + 1
        wait_for(lambda: len(monitor.engine_frame()) > failed)
    frame = monitor.engine_frame()
    assert frame["kv_use"].isna().sum() == frame["waiting"].isna().sum() == monitor.failed_polls
    assert frame["t_s"].notna().all() and frame["kv_use"].iloc[-1] == 0


@pytest.mark.parametrize("text", ["not prometheus at all", "", "fake:kv_use nothing"])
def test_a_page_of_another_form_is_missing_too(server, monkeypatch, text):
    monkeypatch.setattr(server, "metrics", lambda: text)
    with Monitor(server, Clock(), interval_s=0.01) as monitor:
        wait_for(lambda: len(monitor.engine_frame()) >= 2)
    assert monitor.engine_frame()["kv_use"].isna().all()


def test_speculation_gauges_appear_when_the_engine_has_them(server, monkeypatch):
    told = {"running": 2.0, "spec_drafted": 8.0, "spec_accepted": 3.0}
    monkeypatch.setattr(server.engine, "gauges", lambda text: told)
    with Monitor(server, Clock(), interval_s=0.01) as monitor:
        wait_for(lambda: len(monitor.engine_frame()))
    row = monitor.engine_frame().iloc[0]
    assert (row["running"], row["spec_drafted"], row["spec_accepted"]) == (2, 8, 3) and np.isnan(row["kv_use"])


def test_a_hung_engine_holds_neither_the_exit_nor_the_host(server, monkeypatch):
    release, polled = threading.Event(), threading.Event()

    def hang():
        polled.set()
        release.wait()
        return ""

    monkeypatch.setattr(server, "metrics", hang)
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    with Monitor(server, Clock(), interval_s=0.01) as monitor:
        assert polled.wait(20)
        wait_for(lambda: len(monitor.host_frame()) >= 3)
    assert monitor.engine_frame().empty and list(monitor.engine_frame()) == ["t_s", *ENGINE_GAUGES]
    release.set()
    monitor._threads[0].join(20)
    assert monitor.engine_frame().empty  # what came after the exit is not part of the run


def test_a_server_that_is_gone_is_missing_not_zero(server):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    row = Host(process.pid).sample()
    assert np.isnan(row["rss_bytes"]) and np.isnan(row["cpu_share"])


def test_children_of_the_server_count():
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", grandchild], stdin=subprocess.PIPE) as process:
        wait_for(lambda: len(psutil.Process(process.pid).children()) == 1)
        host = Host(process.pid)
        host.sample()
        assert len(host.members) == 2
        process.communicate(b"\n")


def test_no_gpu_is_missing_not_zero(monkeypatch):
    def absent():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert module.visible_gpus() == []
    assert np.isnan(list(module.gpu_row([]).values())).all()


class Nvml:
    """Two cards; the second has no energy counter."""

    gpu, used = 50, 1000

    @staticmethod
    def energy(handle):
        if handle == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 5000


def test_gpus_are_summed_and_a_card_that_does_not_tell_is_missing(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda handle: Nvml)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: Nvml)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda handle: 300_000)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", Nvml.energy)
    row = module.gpu_row([0, 1])
    assert (row["gpu_util"], row["gpu_memory_bytes"], row["gpu_power_w"]) == (0.5, 2000, 600)
    assert np.isnan(row["gpu_energy_j"]) and module.gpu_row([0])["gpu_energy_j"] == 5


@pytest.mark.parametrize("visible, expected", [(None, [0, 1, 2]), ("", []), ("-1", []), ("2", [2]), ("2, 0", [2, 0]),
                                               ("GPU-abc", ["GPU-abc"])])
def test_only_visible_gpus_are_watched(monkeypatch, visible, expected):
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda i: i)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda name: name)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert module.visible_gpus() == expected and Host(1, gpus=1).gpus == expected[:1]
