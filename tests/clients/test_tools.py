"""Thoughts and tool calls as the clients see them, both ways. The model is the scripted one: what it says is known."""

import json

import litellm
import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from conftest import wait_for

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}}]
FLAT = [{"type": "function", "name": "weather", "description": "Tells the weather.", "parameters": SCHEMA, "strict": False}]
PARIS, ROME = {"city": "Paris"}, {"city": "Rome"}
# What a tool answers; the script goes on from it.
RESULT = "hello"


def say(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(parrot):
    with parrot.client() as client:
        yield client


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def test_a_call_its_result_and_the_answer(client, model):
    messages = say("call")
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    call = choice.message.tool_calls[0]
    assert call.function.name == "weather" and json.loads(call.function.arguments) == PARIS
    # As the object, and as it is dumped.
    for history in (choice.message, choice.message.model_dump()):
        result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
        second = client.chat.completions.create(model=model, messages=[*messages, history, result], tools=TOOLS)
        assert second.choices[0].message.content == "Hello there."
        assert second.choices[0].finish_reason == "stop"


def test_streamed_calls_through_the_helper(client, model):
    with client.chat.completions.stream(model=model, messages=say("both"), tools=TOOLS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [json.loads(event.arguments) for event in done] == [PARIS, ROME]
    calls = final.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [PARIS, ROME]
    assert len({call.id for call in calls}) == 2 and final.choices[0].finish_reason == "tool_calls"


def test_text_before_a_call_and_a_call_that_is_none(client, model):
    look = client.chat.completions.create(model=model, messages=say("look"), tools=TOOLS).choices[0]
    assert look.message.content == "A look.\n" and look.message.tool_calls
    broken = client.chat.completions.create(model=model, messages=say("broken"), tools=TOOLS).choices[0]
    assert "weather Paris" in broken.message.content and not broken.message.tool_calls
    assert broken.finish_reason == "stop"


def test_thoughts_stand_apart(client, model):
    answer = client.chat.completions.create(model=model, messages=say("think"), reasoning_effort="high")
    assert answer.choices[0].message.content == "It is a fox."
    assert answer.choices[0].message.reasoning_content == "The fox asks."
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    stream = client.chat.completions.create(model=model, messages=say("think"), stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == "It is a fox."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "The fox asks."


def test_an_error_in_the_middle_of_a_stream_is_raised(client, model):
    for create in (client.chat.completions.create, client.completions.create):
        asked = {"messages": say("crash")} if create == client.chat.completions.create else {"prompt": "crash", "max_tokens": 40}
        said = ""
        with pytest.raises(openai.APIError) as caught:
            for chunk in create(model=model, stream=True, **asked):
                choice = chunk.choices[0]
                said += choice.text if hasattr(choice, "text") else choice.delta.content or ""
        assert "one two" in said and caught.value.code == "model_failed"
    with pytest.raises(openai.APIError):
        for _ in client.responses.create(model=model, input="crash", stream=True):
            pass


def test_responses_with_functions(client, model):
    first = client.responses.create(model=model, input="look", tools=FLAT)
    assert first.output_text == "A look.\n"
    call = next(item for item in first.output if item.type == "function_call")
    assert call.name == "weather" and json.loads(call.arguments) == PARIS
    history = [*say("look"), *first.output, {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}]
    assert client.responses.create(model=model, input=history, tools=FLAT).output_text == "Hello there."
    with client.responses.stream(model=model, input="both", tools=FLAT) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_response()
    assert events.count("response.function_call_arguments.done") == 2
    assert [json.loads(item.arguments) for item in final.output] == [PARIS, ROME]


def test_text_after_a_call_goes_back_with_it(client, model):
    """Items as they came, in their order: the text stands between the call and its output."""
    first = client.responses.create(model=model, input="mixed", tools=FLAT)
    call, after = first.output[-2:]
    assert (call.type, after.type) == ("function_call", "message")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    history = [*say("mixed"), *first.output]
    assert client.responses.create(model=model, input=[*history, output], tools=FLAT).output_text == "Hello there."
    with pytest.raises(openai.BadRequestError, match=call.call_id):
        client.responses.create(model=model, input=history, tools=FLAT)


def chat(parrot, **options):
    return ChatOpenAI(base_url=parrot.url + "/v1", api_key="none", model="parrots/grey", max_retries=0, **options)


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_tools(parrot, responses):
    bound = chat(parrot, use_responses_api=responses).bind_tools(TOOLS)
    first = bound.invoke("both")
    assert [(call["name"], call["args"]) for call in first.tool_calls] == [("weather", PARIS), ("weather", ROME)]
    results = [ToolMessage(RESULT, tool_call_id=call["id"]) for call in first.tool_calls]
    assert bound.invoke([HumanMessage("both"), first, *results]).text == "Hello there."

    async def flow():
        whole = None
        async for chunk in bound.astream("both"):
            whole = chunk if whole is None else whole + chunk
        return whole

    for streamed in (sum_of(bound.stream("both")), wait_for(flow())):
        assert [call["args"] for call in streamed.tool_calls] == [PARIS, ROME]


def sum_of(chunks):
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


def test_litellm_tools(parrot):
    options = dict(model="openai/parrots/grey", api_base=parrot.url + "/v1", api_key="none", num_retries=0, tools=TOOLS)
    first = litellm.completion(messages=say("both"), **options).choices[0]
    assert first.finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in first.message.tool_calls] == [PARIS, ROME]
    results = [{"role": "tool", "tool_call_id": call.id, "content": RESULT} for call in first.message.tool_calls]
    second = litellm.completion(messages=[*say("both"), first.message.model_dump(), *results], **options)
    assert second.choices[0].message.content == "Hello there."
    chunks = list(litellm.completion(messages=say("both"), stream=True, **options))
    whole = litellm.stream_chunk_builder(chunks, messages=say("both"))
    assert [json.loads(call.function.arguments) for call in whole.choices[0].message.tool_calls] == [PARIS, ROME]
    thought = litellm.completion(messages=say("think"), **options).choices[0].message
    assert (thought.content, thought.reasoning_content) == ("It is a fox.", "The fox asks.")
