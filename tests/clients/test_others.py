"""LangChain, LiteLLM and curl against the real binary on the model inside it."""

import json
import subprocess

import litellm
import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI

from conftest import wait_for

QUESTION = "What is the capital of France?"
ASK = [{"role": "user", "content": QUESTION}]
STORY = "Tell me a story about a fox and a lantern."


@pytest.fixture(scope="module")
def expected(client, model):
    """The story with seed 3, as the official client has it."""
    told = client.chat.completions.create(model=model, messages=[{"role": "user", "content": STORY}], seed=3)
    return told.choices[0].message.content


@pytest.mark.parametrize("responses", [False, True])
def test_langchain(server, model, expected, responses):
    extra = {"extra_body": {"seed": 3}} if responses else {"seed": 3, "stream_usage": True}
    chat = ChatOpenAI(
        base_url=server.url + "/v1", api_key="none", model=model, max_retries=0, use_responses_api=responses, **extra)
    answer = chat.invoke([("system", "Answer in one sentence."), ("human", QUESTION)])
    assert "Paris" in answer.text
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    assert chat.invoke(STORY).text == expected
    pieces = list(chat.stream(STORY))
    assert "".join(piece.text for piece in pieces) == expected
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) > 0

    async def flow():
        whole = await chat.ainvoke(STORY)
        return whole.text, "".join([piece.text async for piece in chat.astream(STORY)])

    assert wait_for(flow()) == (expected, expected)
    assert all("Paris" in one.text for one in chat.batch([QUESTION, QUESTION]))


def test_langchain_fields(server, model):
    chat = ChatOpenAI(base_url=server.url + "/v1", api_key="none", model=model, max_retries=0, seed=3)
    story = chat.invoke(STORY).text
    word = story.split()[5]
    assert chat.invoke(STORY, stop=[word]).text == story[:story.index(word)]
    told = chat.bind(logprobs=True, top_logprobs=2, max_tokens=7).invoke(STORY)
    assert told.response_metadata["finish_reason"] == "length"
    entries = told.response_metadata["logprobs"]["content"]
    assert len(entries) == 7 and all(len(entry["top_logprobs"]) == 2 for entry in entries)
    two = ChatOpenAI(base_url=server.url + "/v1", api_key="none", model=model, max_retries=0, n=2)
    assert all(one.text for one in two.generate([[HumanMessage(STORY)]]).generations[0])
    with pytest.raises(openai.BadRequestError) as caught:
        chat.bind(temperature=7).invoke(STORY)
    assert caught.value.param == "temperature"
    plain = OpenAI(base_url=server.url + "/v1", api_key="none", model=model, max_retries=0, seed=3, max_tokens=20)
    assert "".join(plain.stream("Once upon a time")) == plain.invoke("Once upon a time") != ""


def test_litellm(server, model, expected):
    options = dict(model="openai/" + model, api_base=server.url + "/v1", api_key="none", num_retries=0)
    answer = litellm.completion(messages=ASK, seed=1, **options)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    story = dict(messages=[{"role": "user", "content": STORY}], seed=3, **options)
    assert litellm.completion(**story).choices[0].message.content == expected
    chunks = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **story))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage.completion_tokens > 0

    async def flow():
        whole = await litellm.acompletion(**story)
        stream = await litellm.acompletion(stream=True, **story)
        return whole.choices[0].message.content, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert wait_for(flow()) == (expected, expected)
    text = litellm.text_completion(prompt="The capital of France is", max_tokens=8, seed=1, **options | {
        "model": "text-completion-openai/" + model})
    assert "Paris" in text.choices[0].text
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=ASK, temperature=7, **options)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=ASK, **options | {"model": "openai/nobody"})


def curl(*arguments):
    run = subprocess.run(["curl", "-sS", "--max-time", "60", *arguments], capture_output=True, text=True, timeout=90)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_curl(server, model, expected):
    body = {"model": model, "messages": [{"role": "user", "content": STORY}], "seed": 3}
    url, kind = server.url + "/v1/chat/completions", ["-H", "content-type: application/json"]
    plain = json.loads(curl(url, *kind, "-d", json.dumps(body)))
    assert plain["choices"][0]["message"]["content"] == expected
    stream = curl("-N", url, *kind, "-d", json.dumps(body | {"stream": True}))
    assert stream.endswith("data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == expected
    # A refusal: its status, its headers and its envelope. Without -H, curl sends a form.
    head, _, refusal = curl("-i", url, "-d", "{}").replace("\r", "").partition("\n\n")
    assert head.startswith("HTTP/1.1 415") and "x-request-id: " in head
    assert json.loads(refusal)["error"]["code"] == "unsupported_media_type"
    status = curl("-o", "/dev/null", "-w", "%{http_code}", url, *kind, "-d", '{"messages": 1}')
    assert status == "400"
    for path in ("/health", "/ready", "/version", "/v1/models", "/v1/models/" + model, "/openapi.json"):
        assert isinstance(json.loads(curl("--fail", server.url + path)), dict)
    # A body that is sent in pieces, with the question whether to send it.
    pieces = json.loads(curl(url, *kind, "-H", "transfer-encoding: chunked", "-H", "expect: 100-continue", "-d", json.dumps(body)))
    assert pieces["choices"] == plain["choices"]
