"""Connections as no client library makes them: slow, idle, too many, and refused while they still send."""

import contextlib
import json
import socket
import time
import urllib.parse

import httpx

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def connect(server, timeout=30):
    host, port = urllib.parse.urlparse(server.url).netloc.split(":")
    return socket.create_connection((host, int(port)), timeout=timeout)


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
