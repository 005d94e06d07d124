"""Connections as no client library makes them: slow, idle, too many, and refused while they still send."""

import contextlib
import json
import re
import socket
import time
import urllib.parse

import httpx

from conftest import BINARY

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def address(server):
    host, port = urllib.parse.urlparse(server.url).netloc.split(":")
    return host, int(port)


def connect(server, timeout=30):
    return socket.create_connection(address(server), timeout=timeout)


def read_all(connection):
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_head_that_does_not_arrive_ends_the_connection(start):
    server = start(environment={"CANVASD_HEADER_TIMEOUT_SECONDS": "1"})
    for begun in (b"", b"GET /health HTTP/1.1\r\nhost: x\r\n", GET + b"GET /hea"):
        with connect(server) as connection:
            connection.sendall(begun)
            answer = read_all(connection)
            assert answer.count(b"HTTP/1.1 200") == begun.count(GET)
    assert httpx.get(server.url + "/health").status_code == 200


def test_connections_beyond_the_limit_wait_for_a_place(start):
    server = start(environment={"CANVASD_MAX_CONNECTIONS": "2"})
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(2)]
        for connection in held:
            connection.sendall(GET)
            assert b"200 OK" in connection.recv(65536)
        third = stack.enter_context(connect(server))
        third.sendall(GET)
        third.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            raise AssertionError(f"answered beyond the limit: {third.recv(65536)}")
        held[0].close()
        third.settimeout(30)
        assert b"200 OK" in third.recv(65536)


def test_a_client_that_goes_on_sending_gets_its_refusal(server):
    """It is refused by the head alone; without care the server's closing would reset the connection under its hands."""
    piece = b" " * 65536
    for size, pause in ((1, 0.005), (20, 0), (20, 0.005), (200, 0)):
        for _ in range(10):
            with connect(server) as connection:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: {size * len(piece)}\r\n\r\n"
                connection.sendall(head.encode())
                for _ in range(size):
                    connection.sendall(piece)
                    time.sleep(pause)
                answer = read_all(connection)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 415") and b"connection: close" in head.lower()
            assert json.loads(body)["error"]["code"] == "unsupported_media_type"


def test_a_client_that_never_reads_or_never_sends_is_let_go(start):
    server = start(environment={"CANVASD_MAX_CONNECTIONS": "1"})
    refused = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 1000\r\n\r\n"
    with connect(server) as idle:
        idle.sendall(refused)
        # It keeps its place for some seconds, and then no longer, though it neither sends nor closes.
        assert httpx.get(server.url + "/health", timeout=30).status_code == 200
        assert read_all(idle).startswith(b"HTTP/1.1 415")


DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"


def test_clients_that_do_not_read_hold_no_place(start):
    server = start(environment={
        "CANVASD_MAX_CONNECTIONS": "4", "CANVASD_STALL_TIMEOUT_SECONDS": "2", "CANVASD_API_KEY": "k"})
    with contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(connect(server)) for _ in range(4)]
        for connection in deaf:
            # More than the system takes in on both sides.
            connection.sendall(DOCUMENT * 400)
        time.sleep(0.5)
        begun = time.monotonic()
        assert httpx.get(server.url + "/health", timeout=30).status_code == 200
        assert time.monotonic() - begun < 15


def test_a_client_that_reads_slowly_gets_everything(start):
    server = start(environment={"CANVASD_STALL_TIMEOUT_SECONDS": "2"})
    length = len(httpx.get(server.url + "/openapi.json").content)
    count = 2 * 1024 * 1024 // length
    with socket.socket() as connection:
        # Little is taken in ahead, so that the server has to wait for the reader.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        connection.settimeout(30)
        connection.connect(address(server))
        connection.sendall(DOCUMENT * (count - 1) + DOCUMENT.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        taken = []
        begun = time.monotonic()
        # For longer than the timeout, and so slowly that the server's system hardly ever calls the socket writable.
        while part := connection.recv(2048 if time.monotonic() - begun < 8 else 65536):
            taken.append(part)
            if time.monotonic() - begun < 8:
                time.sleep(0.1)
        answers = b"".join(taken)
    assert answers.count(b"HTTP/1.1 200") == count and len(answers) > count * length


def test_a_client_that_asks_late_is_not_stalled(start):
    server = start(environment={"CANVASD_STALL_TIMEOUT_SECONDS": "1"})
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(GET)
            assert b"200 OK" in connection.recv(65536)
            time.sleep(2)


def limited(limits):
    """The command of a server under such limits on open files."""
    return ["bash", "-c", f'ulimit {limits} && exec "$0" serve --port 0', BINARY]


def test_a_low_limit_on_open_files_is_raised(start):
    server = start(command=limited("-Sn 40"))
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            # Sooner than an idle one is let go.
            connection = stack.enter_context(connect(server, timeout=15))
            connection.sendall(GET)
            assert b"200 OK" in connection.recv(65536)


def test_too_few_files_mean_fewer_connections_and_few_lines(start):
    server = start(command=limited("-n 24"), environment={"CANVASD_HEADER_TIMEOUT_SECONDS": "4"})
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(connect(server))
        # Those that have no place wait until the idle ones are let go.
        assert httpx.get(server.url + "/health", timeout=30).status_code == 200
    assert server.stop() == 0
    warnings = [line for line in server.log if "WARN" in line]
    assert len(warnings) <= 3, "".join(warnings)
    assert re.search("max_connections = 1024 needs 1088 open files", warnings[0]) and "ulimit" in warnings[0]
