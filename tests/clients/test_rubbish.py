"""Bodies that nobody should send, over a real socket: refused or answered, never a failure, a hang or growth.

The same is done with 10,000 bodies inside tests/http/fuzz.rs; here a part of it meets the program as it runs, and its memory
is watched. CANVASD_FUZZ sets how many bodies.
"""

import collections
import json
import os
import pathlib
import random
import time

import httpx

BODIES = int(os.environ.get("CANVASD_FUZZ", "1000"))
# Growth that is no leak: allocators keep some of what a burst of large bodies needed.
MOST_GROWTH_MB = 64

SCALARS = [
    None, True, False, 0, 1, -1, 2, 15, 4096, 2**63 - 1, -2**63, 2**64 - 1, 2**64, 10**40, 0.5, -0.0, 1e-320, 1e308, "", "hello",
    "user", "assistant", "tool", "text", "auto", "none", "function", "json_object", "high", "\0", "a\0b", "\ufeff", "\ud800", "😀",
    "<|turn>", "<eos>", "999", "x" * 300, [], {}, [[]], [None], ["a", 1], [1, 2],
]
NAMES = ["type", "text", "role", "content", "name", "function", "id", "include_usage", "every", "effort", "parameters", "call_id", ""]
DAMAGE = [b"\\ud800", b"\0", b"\xff", b"\xef\xbb\xbf", b"1e999", b",,", b"\\u0000", b"nul", b"-", b"[" * 2000, b'{"a":' * 2000]


def value(luck, depth):
    kind = luck.randrange(10 if depth else 7)
    if kind < 7:
        return luck.choice(SCALARS)
    if kind == 7:
        return [value(luck, depth - 1) for _ in range(luck.randrange(4))]
    if kind == 8:
        return [{"role": "user", "content": value(luck, depth - 1)}]
    return {luck.choice(NAMES): value(luck, depth - 1) for _ in range(luck.randrange(4))}


def body(luck, good, fields):
    good = dict(good)
    for _ in range(luck.randrange(4)):
        good[luck.choice(fields)] = value(luck, 3)
    # What is accepted should end soon.
    for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if limit in fields and (luck.random() < 0.5 or (isinstance(good.get(limit), int) and good[limit] > 4)):
            good[limit] = 1
    data = json.dumps(good).encode()
    at = luck.randrange(len(data))
    damage = luck.randrange(9)
    if damage == 0:
        return data[:at]
    if damage == 1:
        return data[:at] + bytes([luck.randrange(256)]) + data[at + 1:]
    if damage == 2:
        return data[:at] + luck.choice(DAMAGE) + data[at:]
    if damage == 3:
        return luck.choice([b"\xef\xbb\xbf", b" \n", b"\0", b""]) + data
    return data


def memory(server):
    """Resident memory of the process in MB, where the system tells."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status")
    if not status.exists():
        return None
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def test_no_body_is_a_failure(start, model, report):
    server = start(environment={"CANVASD_REQUEST_TIMEOUT_SECONDS": "2"})
    luck = random.Random(20251125)
    counts, slowest = collections.Counter(), (0, "", b"")
    with httpx.Client(base_url=server.url, timeout=120) as http:
        schemas = http.get("/openapi.json").json()["components"]["schemas"]
        ask = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        targets = [
            ("/v1/chat/completions", ask, "ChatRequest"),
            ("/v1/completions", {"prompt": "hi", "max_tokens": 1}, "CompletionRequest"),
            ("/v1/responses", {"input": "hi", "max_output_tokens": 1}, "ResponsesRequest"),
            ("/tokenize", {"prompt": "hi"}, "TokenizeRequest"),
            ("/detokenize", {"tokens": [1, 2]}, "DetokenizeRequest"),
        ]
        before = None
        for number in range(BODIES):
            # A tenth of them warms the process up.
            before = memory(server) if number == BODIES // 10 else before
            path, good, schema = luck.choice(targets)
            content = body(luck, good, list(schemas[schema]["properties"]))
            begun = time.monotonic()
            answer = http.post(path, headers={"content-type": "application/json"}, content=content)
            slowest = max(slowest, (time.monotonic() - begun, path, content[:300]))
            counts[answer.status_code] += 1
            shown = f"body {number} to {path}: {content[:2000]!r}: {answer.status_code} {answer.text[:500]}"
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, shown
            if answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, shown
        after = memory(server)
        assert http.get("/health").status_code == 200
    growth = "memory is not told here" if after is None else f"memory {before:.0f} MB, then {after:.0f} MB"
    report(f"{BODIES} wrong bodies: {dict(sorted(counts.items()))}, slowest {slowest[0]:.2f} s, {growth}")
    print(slowest)
    assert counts[200] > BODIES / 50 and counts[400] > BODIES / 5, counts
    assert after is None or after - before < MOST_GROWTH_MB
    assert server.stop() == 0 and not any("panicked" in line for line in server.log), "".join(server.log)
