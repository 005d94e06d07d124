"""The OpenAPI document against the running program, request by request as schemathesis makes them up: no failure of the server,
no status and no content type that the document does not name, and no body that it does not describe."""

import os
import pathlib
import re
import subprocess
import sys

import httpx

HERE = pathlib.Path(__file__).resolve().parent
# Not "not_a_server_error": it knows no difference between a failure and a 503, which says that the time was over. The log knows,
# and an engine that had stopped, which would answer 503 to everything, would show in /health.
CHECKS = ["status_code_conformance", "content_type_conformance", "response_schema_conformance",
          "response_headers_conformance", "unsupported_method", "missing_required_header"]
EXAMPLES = os.environ.get("CANVASD_SCHEMA_EXAMPLES", "8")


def test_every_answer_is_as_the_document_says(start, report, tmp_path):
    # Whatever is accepted ends within a second: the text that there is, or a 503 deadline_exceeded, which the document names.
    server = start(environment={"CANVASD_REQUEST_TIMEOUT_SECONDS": "1", "CANVASD_DEFAULT_MAX_TOKENS": "8"})
    program = pathlib.Path(sys.executable).parent / "schemathesis"
    run = subprocess.run(
        [program, "run", server.url + "/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", EXAMPLES,
         "--generation-deterministic", "--phases", "examples,coverage,fuzzing", "--request-timeout", "20", "--no-color"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-12000:] + run.stderr[-2000:]
    made = re.search(r"(\d+) generated", run.stdout)
    report(f"schemathesis: {made.group(1) if made else 'all'} requests as the OpenAPI document says")
    health = httpx.get(server.url + "/health")
    assert health.status_code == 200, health.text
    assert server.stop() == 0 and not any("panicked" in line for line in server.log), "".join(server.log)
    answered = [line for line in server.log if "status=" in line]
    assert answered and not any(re.search(r"status=5(?!03)", line) for line in answered), "".join(answered)
