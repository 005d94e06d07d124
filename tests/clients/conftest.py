"""The real binary on the model inside it, asked over a real socket by clients that know nothing of this project."""

import asyncio
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

# LiteLLM looks its prices up on the net otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("CANVASD_BINARY", str(ROOT / "target" / "debug" / "canvasd"))


class Server:
    """A server process that prints where it listens: `canvasd serve` on a free port, or another command."""

    def __init__(self, *arguments, command=(BINARY, "serve", "--port", "0"), environment=None, timeout=30):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("CANVASD_")}
        clean |= environment or {}
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean,
        )
        self.lines, self.log = [], []
        self._listening = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.log), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._listening.wait(timeout)
        self.start_seconds = time.monotonic() - begun
        found = re.search(r"http://\S+?:\d+", "".join(self.lines))
        if not found:
            self.process.kill()
            raise RuntimeError(f"no address within {timeout} s: {self.lines} {self.log}")
        self.url = found.group(0)

    def _read(self, pipe, lines):
        for line in pipe:
            lines.append(line)
            if "http://" in line:
                self._listening.set()
        self._listening.set()

    def client(self, **options):
        return openai.OpenAI(**({"base_url": self.url + "/v1", "api_key": "none", "max_retries": 0, "timeout": 600} | options))

    def stop(self, patience=60):
        """Sends SIGTERM and gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for reader in self._readers:
            reader.join(5)
        return code


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    code = server.stop()
    assert code == 0, "".join(server.log)
    assert not any("panicked" in line for line in server.log), "".join(server.log)


@pytest.fixture(scope="session")
def parrot():
    """A server whose model follows a script: it thinks, calls tools and fails on cue (examples/parrot.rs)."""
    server = Server(command=[str(pathlib.Path(BINARY).parent / "examples" / "parrot")])
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def start():
    """Starts servers of a test's own; they are stopped after it."""
    servers = []

    def start(*arguments, **options):
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="session")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


@pytest.fixture(scope="session")
def report(request):
    """Collects figures that are printed at the end and never asserted."""
    figures = []
    yield figures.append
    request.config.figures = figures


def pytest_terminal_summary(terminalreporter, config):
    figures = getattr(config, "figures", [])
    if figures:
        terminalreporter.section("figures (measured, not asserted)")
        for figure in figures:
            terminalreporter.write_line(figure)


LOOP = asyncio.new_event_loop()


def wait_for(coroutine):
    """Runs it on the one loop of all tests: some clients keep connections for as long as the process lives."""
    return LOOP.run_until_complete(coroutine)


def canvasd(*arguments, **options):
    """Runs the program to its end."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CANVASD_")}
    environment = clean | options.pop("environment", {})
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    return subprocess.run(
        [BINARY, *arguments], capture_output=True, text=True, timeout=120, env=environment, **options
    )


if sys.version_info < (3, 10):
    pytest.exit("the client tests need Python 3.10 or newer", returncode=2)
