"""Chat and completions as the official Python client sees them."""

import asyncio
import time

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story about a fox and a lantern."}]


def text_of(stream):
    """The text of a chat stream, checking the shape that clients rely on."""
    text, roles, finishes, ids = "", 0, [], set()
    for chunk in stream:
        ids.add((chunk.id, chunk.created, chunk.object))
        for choice in chunk.choices:
            assert not finishes, "nothing follows the finish"
            roles += choice.delta.role is not None
            text += choice.delta.content or ""
            if choice.finish_reason:
                finishes.append(choice.finish_reason)
    assert roles == 1 and len(finishes) == 1 and len(ids) == 1
    return text, finishes[0]


def test_chat_answers_right(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, seed=1)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.model == model
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_has_the_same_text_as_a_plain_answer(client, model):
    for seed in (1, 2):
        plain = client.chat.completions.create(model=model, messages=STORY, seed=seed)
        stream = client.chat.completions.create(model=model, messages=STORY, seed=seed, stream=True)
        text, finish = text_of(stream)
        assert text == plain.choices[0].message.content
        assert finish == plain.choices[0].finish_reason


def test_usage_comes_with_a_stream_on_request_and_last(client, model):
    chunks = list(client.chat.completions.create(
        model=model, messages=QUESTION, seed=1, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    plain = client.chat.completions.create(model=model, messages=QUESTION, seed=1)
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_the_streaming_helper_of_the_sdk(client, model):
    with client.chat.completions.stream(model=model, messages=QUESTION, seed=1) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in events and "content.done" in events
    assert "Paris" in final.choices[0].message.content


def test_the_asynchronous_client(server, model):
    async def ask():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            plain = await client.chat.completions.create(model=model, messages=QUESTION, seed=1)
            stream = await client.chat.completions.create(model=model, messages=QUESTION, seed=1, stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
            return plain.choices[0].message.content, streamed

    plain, streamed = asyncio.run(ask())
    assert plain == streamed and "Paris" in plain


def test_the_raw_response_carries_a_request_id(client, model):
    raw = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, seed=1)
    assert raw.status_code == 200 and raw.headers["x-request-id"]
    assert "Paris" in raw.parse().choices[0].message.content


def test_a_dumped_answer_is_valid_history(client, model):
    first = client.chat.completions.create(model=model, messages=QUESTION, seed=1)
    history = [*QUESTION, first.choices[0].message.model_dump(), {"role": "user", "content": "And of Italy?"}]
    second = client.chat.completions.create(model=model, messages=history, seed=1)
    assert "Rome" in second.choices[0].message.content


def test_several_choices(client, model):
    answer = client.chat.completions.create(model=model, messages=STORY, seed=5, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert all(texts) and len(set(texts)) > 1, "choices of one request differ"
    again = client.chat.completions.create(model=model, messages=STORY, seed=5, n=3)
    assert [choice.message.content for choice in again.choices] == texts


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_tokens_is_exact(client, model, limit):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model=model, messages=STORY, seed=1, **{name: limit})
        assert answer.usage.completion_tokens == limit
        assert answer.choices[0].finish_reason == "length"


def test_stop_cuts_exactly(client, model):
    whole = client.chat.completions.create(model=model, messages=STORY, seed=1).choices[0].message.content
    for stop in (whole[20:26], whole[len(whole) // 2:len(whole) // 2 + 5]):
        cut = client.chat.completions.create(model=model, messages=STORY, seed=1, stop=stop)
        assert cut.choices[0].message.content == whole[:whole.index(stop)]
        assert cut.choices[0].finish_reason == "stop"
        stream = client.chat.completions.create(model=model, messages=STORY, seed=1, stop=[stop], stream=True)
        assert text_of(stream)[0] == whole[:whole.index(stop)]


def test_without_a_seed_two_stories_differ(client, model):
    texts = {client.chat.completions.create(model=model, messages=STORY).choices[0].message.content for _ in range(3)}
    assert len(texts) > 1


def test_progress_is_invisible_to_who_only_reads_the_text(client, model):
    # Five canvases and some thirty steps: of drafts that come faster than they are sent only the newest is kept, but never that few of so many.
    story = [{"role": "user", "content": "Tell me a very long story about a bee."}]
    for seed in range(4, 8):
        plain = client.chat.completions.create(model=model, messages=story, seed=seed).choices[0].message.content
        stream = client.chat.completions.create(
            model=model, messages=story, seed=seed, stream=True,
            extra_body={"stream_options": {"include_diffusion_progress": {"max_hz": 1000}}})
        text, drafts = "", []
        for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
            progress = (chunk.model_extra or {}).get("diffusion")
            if progress:
                drafts.append(progress)
        assert text == plain
        assert drafts and all(draft["v"] == 1 for draft in drafts)
        assert [draft["seq"] for draft in drafts] == sorted({draft["seq"] for draft in drafts})
        assert any(draft["phase"] == "denoise" and draft["text"] for draft in drafts)


def test_completions_in_all_four_forms(client, model, http):
    text = "The capital of France is"
    ids = http.post("/tokenize", json={"model": model, "prompt": text}).json()["tokens"]
    one = client.completions.create(model=model, prompt=text, seed=1, max_tokens=8)
    assert one.object == "text_completion" and "Paris" in one.choices[0].text
    by_ids = client.completions.create(model=model, prompt=ids, seed=1, max_tokens=8)
    assert by_ids.choices[0].text == one.choices[0].text
    for prompt in ([text, text], [ids, ids]):
        two = client.completions.create(model=model, prompt=prompt, seed=1, max_tokens=8)
        assert [choice.index for choice in two.choices] == [0, 1]
        assert all("Paris" in choice.text for choice in two.choices)
        assert two.usage.total_tokens == two.usage.prompt_tokens + two.usage.completion_tokens


def test_a_completion_stream(client, model):
    plain = client.completions.create(model=model, prompt="Once upon a time", seed=3, max_tokens=60)
    stream = client.completions.create(model=model, prompt="Once upon a time", seed=3, max_tokens=60, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain.choices[0].text
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason


def test_models(client, model):
    assert [entry.id for entry in client.models.list()] == [model]
    assert client.models.retrieve(model).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_first_text_is_measured(client, model, server, report):
    client.chat.completions.create(model=model, messages=QUESTION, seed=1)
    times = []
    for seed in range(5):
        begun = time.monotonic()
        stream = client.chat.completions.create(model=model, messages=STORY, seed=seed, stream=True)
        first = next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
        times.append(time.monotonic() - begun)
        assert first
        stream.close()
    report(f"start to listening {server.start_seconds:.2f} s; first text of a story {sorted(times)[2]:.2f} s (median of 5)")
