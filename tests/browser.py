"""Look at a page in headless chromium over its DevTools protocol: console, requests, pixels, and values of scripts."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--remote-debugging-port=0", "--remote-allow-origins=*"]
START_S, STEP_S = 60, 30


@dataclass
class Visit:
    """What a page did: console errors and uncaught exceptions, URLs it asked for, values of the asked expressions."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    values: dict = field(default_factory=dict)


def chromium() -> str:
    """Path of the browser; an error with the remedy where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        raise FileNotFoundError("no chromium: apt-get install -y chromium fonts-dejavu (make test does it)")
    return found


def visit(url: str, expressions: dict[str, str], *, width: int = 1280, height: int = 900, dark: bool = False,
          screenshot: Path | None = None) -> Visit:
    """Open `url` at a window size and colour scheme, evaluate JavaScript `expressions`, perhaps take a picture."""
    folder = tempfile.mkdtemp(prefix="chromium-")
    command = [chromium(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(Path(folder) / "DevToolsActivePort", process)
        return asyncio.run(_visit(port, url, expressions, width, height, dark, screenshot))
    finally:
        process.terminate()
        process.wait(STEP_S)
        shutil.rmtree(folder, ignore_errors=True)


def _port(file: Path, process: subprocess.Popen) -> int:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        if file.exists() and "\n" in file.read_text():
            return int(file.read_text().split()[0])
        time.sleep(0.1)
    raise TimeoutError(f"chromium did not start within {START_S} s (exit status {process.poll()})")


async def _visit(port, url, expressions, width, height, dark, screenshot) -> Visit:
    seen, answers, loaded = Visit(), {}, asyncio.Event()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as response:
            target = next(tab for tab in await response.json() if tab["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:

            async def read() -> None:
                async for message in socket:
                    data = json.loads(message.data)
                    if "id" in data:
                        answers[data["id"]].set_result(data)
                    else:
                        _note(data, seen, loaded)

            async def ask(method: str, **parameters) -> dict:
                number = len(answers)
                answers[number] = asyncio.get_running_loop().create_future()
                await socket.send_json({"id": number, "method": method, "params": parameters})
                answer = await asyncio.wait_for(answers[number], STEP_S)
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

            reader = asyncio.create_task(read())
            for domain in ("Page", "Runtime", "Network", "Log"):
                await ask(f"{domain}.enable")
            await ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                      mobile=width < 600)
            scheme = "dark" if dark else "light"
            await ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            await ask("Page.navigate", url=url)
            await asyncio.wait_for(loaded.wait(), STEP_S)
            for name, expression in expressions.items():
                result = await ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
                if "exceptionDetails" in result:
                    raise RuntimeError(f"{name}: {result['exceptionDetails']}")
                seen.values[name] = result["result"].get("value")
            if screenshot:
                picture = await ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
                screenshot.write_bytes(base64.b64decode(picture["data"]))
            reader.cancel()
    return seen


def _note(event: dict, seen: Visit, loaded: asyncio.Event) -> None:
    method, data = event["method"], event.get("params", {})
    if method == "Page.loadEventFired":
        loaded.set()
    elif method == "Network.requestWillBeSent":
        seen.requests.append(data["request"]["url"])
    elif method == "Runtime.exceptionThrown":
        seen.errors.append(data["exceptionDetails"]["text"])
    elif method == "Runtime.consoleAPICalled" and data["type"] in ("error", "warning", "assert"):
        seen.errors.append(str(data["args"]))
    elif method == "Log.entryAdded" and data["entry"]["level"] in ("error", "warning"):
        seen.errors.append(data["entry"]["text"])
