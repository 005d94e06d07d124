"""The program itself: how it starts, refuses to start, stops, and generates without a server."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import httpx
import openai
import pytest

from conftest import BINARY, ROOT, canvasd

STORY = [{"role": "user", "content": "Tell me a story about a fox and a lantern."}]


def test_the_first_lines_tell_what_to_do_next(server, model):
    text = "".join(server.lines)
    assert server.url in text and model in text and "curl" in text
    command = text[text.index("curl"):].strip().replace("\\\n", " ")
    answer = subprocess.run(["bash", "-c", command.splitlines()[0] + " -s"], capture_output=True, text=True, timeout=60)
    assert "Paris" in answer.stdout, (command, answer)


def test_sigterm_lets_running_answers_end(start, model):
    server = start()
    with server.client() as client:
        expected = client.chat.completions.create(model=model, messages=STORY, seed=7).choices[0].message.content
        stream = client.chat.completions.create(model=model, messages=STORY, seed=7, stream=True)
        chunks = iter(stream)
        next(chunks)
        server.process.send_signal(signal.SIGTERM)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == expected
    assert server.process.wait(30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/health")


def test_while_answers_end_everybody_else_is_told(start, model):
    server = start(environment={"CANVASD_MAX_RUNNING": "1"})
    with server.client() as client, httpx.Client(base_url=server.url, timeout=30) as kept:
        assert kept.get("/ready").status_code == 200
        # One canvas at a time: eight stories take a while.
        chunks = iter(client.chat.completions.create(model=model, messages=STORY, seed=7, stream=True, n=8))
        next(chunks)
        server.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while kept.get("/ready").status_code == 200:
            assert time.monotonic() < until
        for answer in (
            kept.get("/ready"),
            kept.post("/v1/chat/completions", json={"messages": STORY}),
            httpx.get(server.url + "/ready"),
            httpx.post(server.url + "/v1/chat/completions", json={"messages": STORY}),
        ):
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down", answer.text
        assert kept.get("/health").status_code == 200
        ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        assert len(ends) == 8
    assert server.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command, code", [
    (["serve", "--port", "0", "--model"], 0),
    (["generate", "hi", "--model"], 130),
    (["fetch"], 130),
])
def test_signals_are_received_before_the_model_is_there(command, code, number, tmp_path):
    ours = ("CANVASD_", "HF_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours) and "PROXY" not in key.upper()}
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(30)
        place = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HOME": str(tmp_path)}
        process = subprocess.Popen(
            [BINARY, *command, "own/er"], env=clean | place, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # The hub takes the connection and says nothing.
        with hub.accept()[0]:
            process.send_signal(number)
            _, log = process.communicate(timeout=30)
    assert process.returncode == code and "panicked" not in log, log


@pytest.fixture
def slow(tmp_path):
    """A server that waits for its model's configuration, the address, and the pipe by which it comes."""
    demo, folder = ROOT / "models" / "demo", tmp_path / "slow"
    folder.mkdir()
    for file in demo.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    os.mkfifo(folder / "config.json")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CANVASD_")}
    with subprocess.Popen(
        [BINARY, "serve", "--port", "0", "--model", folder], env=clean | {"CANVASD_API_KEY": "k"}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:
        for line in process.stderr:
            if found := re.search(r"loading the model address=(\S+)", line):
                break
        yield process, f"http://{found.group(1)}", folder / "config.json"
        process.kill()


def test_probes_are_answered_while_the_model_loads(slow):
    process, url, pipe = slow
    with httpx.Client(base_url=url, timeout=10, headers={"authorization": "Bearer k"}) as kept:
        assert kept.get("/health").status_code == 200
        assert canvasd("health", url).returncode == 0
        for answer in (kept.get("/ready"), kept.post("/v1/chat/completions", json={"messages": STORY}), kept.get("/")):
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "loading", answer.text
            assert int(answer.headers["retry-after"]) >= 1
        opened = [kept.get("/health").extensions["network_stream"].get_extra_info("client_addr")]
        pipe.write_text((ROOT / "models" / "demo" / "config.json").read_text())
        until = time.monotonic() + 60
        while (answer := kept.get("/ready")).status_code == 503:
            assert time.monotonic() < until
            time.sleep(0.1)
        # On the connection that was open all the time.
        assert opened == [answer.extensions["network_stream"].get_extra_info("client_addr")]
        body = {"messages": STORY, "max_tokens": 3}
        assert kept.post("/v1/chat/completions", json=body).status_code == 200
        assert httpx.post(url + "/v1/chat/completions", json=body).status_code == 401
    assert "serves" in process.stdout.readline() and url in process.stdout.readline()
    process.terminate()
    assert process.wait(30) == 0


def test_a_model_that_cannot_be_loaded_ends_the_server(slow):
    process, url, pipe = slow
    with httpx.Client(base_url=url, timeout=10) as kept:
        assert kept.get("/health").status_code == 200
        pipe.write_text("rubbish")
        _, log = process.communicate(timeout=30)
    assert process.returncode == 3 and "config.json" in log and "not JSON" in log, log


def test_without_grace_running_answers_are_told(start, model):
    server = start(environment={"CANVASD_GRACE_SECONDS": "0"})
    with server.client() as client:
        stream = client.chat.completions.create(model=model, messages=STORY, seed=7, stream=True, n=8)
        chunks = iter(stream)
        next(chunks)
        server.process.send_signal(signal.SIGTERM)
        finished = 0
        try:
            for chunk in chunks:
                finished += sum(choice.finish_reason is not None for choice in chunk.choices)
        except openai.APIError as error:
            assert "shut" in str(error), error
        else:
            assert finished == 8, "a stream that ends without an error is complete"
    assert server.process.wait(30) == 0


def test_a_client_that_hangs_up_is_in_the_log(start):
    server = start(environment={"CANVASD_MAX_RUNNING": "1"})
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + "/v1/chat/completions", json={"messages": STORY, "n": 64},
                   headers={"x-request-id": "gone-1"}, timeout=httpx.Timeout(30, read=0.2))
    until = time.monotonic() + 30
    while not any("gone-1" in line and "status=499" in line for line in server.log):
        assert time.monotonic() < until, server.log
        time.sleep(0.05)


def test_ctrl_c_stops_it_too(start):
    server = start()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 0


def test_nobody_need_read_the_first_lines():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen([BINARY, "serve", "--port", str(port)], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    answered = False
    while process.poll() is None and not answered:
        try:
            answered = httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
        except httpx.TransportError:
            time.sleep(0.05)
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert answered and process.returncode == 0, log


@pytest.mark.parametrize("log", ["a full disk", "a reader that has gone"])
def test_a_log_that_cannot_be_written_harms_nobody(log):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if log == "a full disk":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    process = subprocess.Popen([BINARY, "serve", "--port", str(port), "--log", "trace"], stdout=writer, stderr=writer)
    os.close(writer)
    answers = []
    while process.poll() is None and len(answers) < 3:
        try:
            answers.append(httpx.get(f"http://127.0.0.1:{port}/health").status_code)
        except httpx.ConnectError:
            time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 0 and answers == [200] * 3


def test_an_error_that_cannot_be_written_keeps_its_exit_code():
    with open("/dev/full", "w") as full:
        refused = subprocess.run([BINARY, "serve", "--threads", "0"], stdout=full, stderr=full, timeout=60)
    assert refused.returncode == 2


def test_it_refuses_to_be_open_to_everybody():
    refused = canvasd("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "CANVASD_API_KEY" in refused.stderr and "allow-unauthenticated" in refused.stderr


def test_it_serves_others_with_a_key_or_when_told_so(start):
    start("--host", "0.0.0.0", environment={"CANVASD_API_KEY": "k"})
    start("--host", "0.0.0.0", "--allow-unauthenticated")


def test_an_occupied_address(server):
    port = server.url.rsplit(":", 1)[1]
    refused = canvasd("serve", "--port", port)
    assert refused.returncode == 4
    assert port in refused.stderr and "--port" in refused.stderr


@pytest.mark.parametrize("arguments, code, word", [
    (["serve", "--model", "/nowhere"], 3, "/nowhere"),
    (["serve", "--threads", "0"], 2, "threads"),
    (["serve", "--port", "70000"], 2, "70000"),
    (["serve", "--device", "abacus"], 2, "abacus"),
    (["serve", "--config", "/nowhere.toml"], 2, "/nowhere.toml"),
    (["serve", "--no-such-flag"], 2, "--no-such-flag"),
    (["generate", ""], 2, "prompt"),
    (["generate", "hi", "--max-tokens", "0"], 2, "max-tokens"),
    (["inspect", "--measure", "--requests", "1000000000000"], 2, "--requests"),
    (["bench", "--url", "http://127.0.0.1:1", "--quantize", "nonsense"], 2, "--quantize"),
    (["bench", "--encode-rows", "256"], 2, "--intrude"),
    (["no-such-command"], 2, "no-such-command"),
])
def test_wrong_command_lines(arguments, code, word):
    run = canvasd(*arguments)
    assert run.returncode == code, run.stderr
    assert word in run.stderr and "panicked" not in run.stderr


@pytest.mark.parametrize("arguments, code, word", [
    (["serve", "--port", "0", "--model", "own/er", "--quantize", "q9"], 2, "q9 is no quantization"),
    (["inspect", "own/er", "--quantize", "q9"], 2, "q9 is no quantization"),
    (["quantize", "own/er", __file__], 3, "exists already"),
    (["quantize", "own/er", "/nowhere/x.gguf"], 3, "there is no folder /nowhere"),
])
def test_slips_are_told_before_a_model_is_looked_for(arguments, code, word):
    run = canvasd(*arguments, environment={"HF_HUB_OFFLINE": "1"})
    assert run.returncode == code and word in run.stderr, run.stderr


def test_help_names_every_command_and_option():
    text = canvasd("--help").stdout
    for word in ("serve", "generate", "openapi", "bench", "Exit codes", "CANVASD_API_KEY"):
        assert word in text
    text = canvasd("serve", "--help").stdout
    for option in ("--host", "--port", "--model", "--config", "--threads", "--device"):
        assert option in text


@pytest.mark.parametrize("variable, value, word", [
    ("CANVASD_API_KEY", " , ", "holds no key"),
    ("CANVASD_API_KEY", os.fsdecode(b"caf\xe9"), "UTF-8"),
    ("CANVASD_HOST", os.fsdecode(b"caf\xe9"), "UTF-8"),
    ("CANVASD_CORS_ORIGINS", "https://a.example/", "slash"),
])
def test_what_the_environment_holds_is_obeyed_or_refused(variable, value, word):
    refused = canvasd("serve", "--port", "0", environment={variable: value})
    assert refused.returncode == 2 and variable.removeprefix("CANVASD_").lower() in refused.stderr.lower(), refused.stderr
    assert word in refused.stderr and "caf" not in refused.stderr, refused.stderr


def test_a_misspelt_variable_is_told(start):
    links = {"CANVASD_SERVICE_HOST": "10.0.0.1", "CANVASD_PORT_8000_TCP": "tcp://10.0.0.1:8000"}
    server = start(environment={"CANVASD_MAX_RUNING": "2"} | links)
    assert server.stop() == 0
    warned = [line for line in server.log if "WARN" in line]
    assert len(warned) == 1 and "CANVASD_MAX_RUNING" in warned[0], server.log


def test_the_shipped_configuration_is_accepted(start):
    start("--config", str(ROOT / "config" / "canvasd.toml"))


def test_a_configuration_file_is_obeyed(start, tmp_path):
    path = tmp_path / "canvasd.toml"
    path.write_text('model_aliases = ["gpt-4o"]\nlog_format = "json"\nlog = "debug"\n')
    server = start("--config", str(path))
    with server.client() as client:
        answer = client.chat.completions.create(model="gpt-4o", messages=STORY, max_tokens=3)
        assert answer.usage.completion_tokens == 3
    assert server.stop() == 0
    assert server.log and all(json.loads(line) for line in server.log)


def test_a_configuration_file_can_be_named_in_the_environment(server, tmp_path):
    path = tmp_path / "canvasd.toml"
    path.write_text(f"port = {server.url.rsplit(':', 1)[1]}\n")
    assert canvasd("health", environment={"CANVASD_CONFIG": str(path)}).returncode == 0
    # Empty counts as not set.
    refused = canvasd("serve", "--threads", "0", environment={"CANVASD_CONFIG": ""})
    assert refused.returncode == 2 and "threads must be" in refused.stderr


def test_the_log_of_every_command_is_that_of_the_environment():
    for command in (["generate", "hi"], ["bench"]):
        for wrong in ("canvasd=loud", "warning"):
            refused = canvasd(*command, environment={"CANVASD_LOG": wrong})
            assert refused.returncode == 2 and f'"{wrong}"' in refused.stderr, refused.stderr


def test_generate_prints_plain_text_when_piped(client, model):
    run = canvasd("generate", "What is the capital of France?", "--seed", "1")
    assert run.returncode == 0 and "Paris" in run.stdout and "\x1b" not in run.stdout
    served = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is the capital of France?"}], seed=1)
    assert run.stdout.rstrip("\n") == served.choices[0].message.content


def test_generate_reads_standard_input_and_a_system_prompt():
    run = canvasd("generate", "--system", "You are Anna.", "--seed", "1", input="Who are you?\n")
    assert run.returncode == 0 and "Anna" in run.stdout


def test_generate_obeys_max_tokens_and_seed():
    whole = canvasd("generate", "Tell me a story about a fox.", "--seed", "3").stdout
    again = canvasd("generate", "Tell me a story about a fox.", "--seed", "3").stdout
    short = canvasd("generate", "Tell me a story about a fox.", "--seed", "3", "--max-tokens", "5").stdout
    assert whole == again and len(short) < len(whole) and whole.startswith(short.rstrip("\n"))


def test_generate_draws_as_the_api_does(client, model):
    question = "Tell me a story."
    texts = {canvasd("generate", "--temperature", "0", question).stdout.rstrip("\n") for _ in range(2)}
    served = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0)
    assert texts == {served.choices[0].message.content}


def test_generate_settles_on_a_terminal():
    import pty

    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [BINARY, "generate", "Tell me a story about a fox.", "--seed", "3"],
        stdin=subprocess.DEVNULL, stdout=end, stderr=end)
    os.close(end)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    assert process.wait(60) == 0
    text = shown.decode()
    assert text.count("step") > 3, "drafts are shown"
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor comes back"
    whole = canvasd("generate", "Tell me a story about a fox.", "--seed", "3").stdout
    assert whole.split()[-1] in text


def test_generate_can_be_interrupted():
    process = subprocess.Popen(
        [BINARY, "generate", "Tell me a story about a fox.", "--max-tokens", "100000"], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    timer = threading.Timer(0.4, process.send_signal, [signal.SIGINT])
    begun = time.monotonic()
    timer.start()
    process.communicate(timeout=60)
    timer.cancel()
    assert process.returncode in (0, 130) and time.monotonic() - begun < 30


def test_the_checked_in_openapi_document_is_what_the_program_prints(http):
    printed = json.loads(canvasd("openapi").stdout)
    assert printed == json.loads((ROOT / "openapi" / "openapi.json").read_text())
    assert printed == http.get("/openapi.json").json()


def test_health_probe(server):
    assert canvasd("health", server.url).returncode == 0
    assert canvasd("health", "http://127.0.0.1:1").returncode == 1
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run = canvasd("health", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert run.returncode == 1 and "no answer within 3 s" in run.stderr, run.stderr


def test_bench_reports_every_level(server, tmp_path):
    plot = tmp_path / "curve.svg"
    for where in ([], ["--url", server.url]):
        run = canvasd("bench", "--concurrency", "1,3", "--requests", "2", "--max-tokens", "20", "--json",
                      "--plot", str(plot), *where)
        assert run.returncode == 0, run.stderr
        levels = json.loads(run.stdout)["levels"]
        assert [level["concurrency"] for level in levels] == [1, 3]
        assert [level["requests"] for level in levels] == [2, 6]
        assert all(level["tokens"] > 0 and level["steps_per_canvas"] >= 1 and level["rows_per_pass"] > 0 for level in levels)
        assert plot.read_text().startswith("<svg")


def test_bench_times_single_passes():
    run = canvasd("bench", "--step", "--canvases", "1,2", "--prefix", "0,100", "--repeats", "2", "--json")
    assert run.returncode == 0, run.stderr
    steps = json.loads(run.stdout)["steps"]
    assert {(step["canvases"], step["prefix"]) for step in steps} == {(1, 0), (2, 0), (1, 100), (2, 100)}
    assert all(step["step_ms"] > 0 for step in steps)


def one_step(**environment):
    """The report of the least that `bench --step` can do."""
    run = canvasd("bench", "--step", "--canvases", "1", "--prefix", "0", "--statistics", "flat", "--encode", "0",
                  "--repeats", "1", "--json", environment=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_bench_times_the_instructions_that_were_asked_for():
    report = one_step(CANVASD_CPU_PATH="portable")
    assert report["path"] == "portable" and report["precision"] == "exact"
    assert report["peak"]["bf16_gflops"] is None and report["peak"]["bytes_gops"] is None


def test_the_fingerprint_is_that_of_the_instructions(start, http):
    portable = start(environment={"CANVASD_CPU_PATH": "portable"})
    forced = httpx.get(portable.url + "/version").json()["system_fingerprint"]
    free = http.get("/version").json()["system_fingerprint"]
    assert (forced == free) == (one_step()["path"] == "portable")
