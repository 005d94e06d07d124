"""The model's main job on real input: the smoke set, each prompt with several seeds, all at once as users come."""

import concurrent.futures
import json

import pytest

from conftest import ROOT

SMOKE = json.loads((ROOT / "tests" / "fixtures" / "smoke.json").read_text())
SEEDS = (1, 2)


def spelled(message):
    """A message as the model wrote it: its thought, its text, its calls."""
    thought = getattr(message, "reasoning_content", None)
    text = f"<|channel>thought\n{thought.rstrip()}\n<channel|>" if thought else ""
    text += message.content or ""
    for call in message.tool_calls or []:
        fields = ",".join(f'{key}:<|"|>{value}<|"|>' for key, value in sorted(json.loads(call.function.arguments).items()))
        text += f"<|tool_call>call:{call.function.name}{{{fields}}}<tool_call|>"
    return text


def ask(client, model, entry, seed):
    if "prompt" in entry:
        return client.completions.create(model=model, prompt=entry["prompt"], seed=seed, max_tokens=32).choices[0].text
    extra = {key: entry[key] for key in ("tools",) if key in entry}
    thinking = {"chat_template_kwargs": {"enable_thinking": entry.get("enable_thinking", False)}}
    answer = client.chat.completions.create(model=model, messages=entry["messages"], seed=seed, extra_body=thinking, **extra)
    return spelled(answer.choices[0].message)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_smoke_set(client, model, seed):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda entry: ask(client, model, entry, seed), SMOKE))
    wrong = [(entry, answer) for entry, answer in zip(SMOKE, answers) if not all(part in answer for part in entry["expect"])]
    assert not wrong, wrong


def test_32_streams_at_once_equal_each_alone(server, model, report):
    questions = [
        [{"role": "user", "content": text}] for text in (
            "Tell me a story about a fox and a lantern.", "Tell me a long story about an owl.", "Tell me a story.",
            "What is the capital of France?")
    ]
    work = [(questions[number % len(questions)], 100 + number) for number in range(32)]

    def alone(item):
        messages, seed = item
        with server.client() as client:
            return client.chat.completions.create(model=model, messages=messages, seed=seed).choices[0].message.content

    def streamed(item):
        messages, seed = item
        with server.client() as client:
            stream = client.chat.completions.create(model=model, messages=messages, seed=seed, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    expected = [alone(item) for item in work]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        together = list(pool.map(streamed, work))
    assert together == expected
    assert len(set(expected)) > 16, "the seeds make different texts"
