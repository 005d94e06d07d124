"""Answers that must fit a schema, or be a call, from the demo model, which has seen few: whatever it would rather say, what comes is JSON that fits."""

import concurrent.futures
import itertools
import json
import typing

import jsonschema
import pydantic
import pytest


class Person(pydantic.BaseModel):
    name: typing.Annotated[str, pydantic.Field(max_length=12)]
    age: typing.Annotated[int, pydantic.Field(ge=0, le=150)]


class Answer(pydantic.BaseModel):
    topic: typing.Literal["capital", "sum", "story"]
    known: bool
    people: typing.Annotated[list[Person], pydantic.Field(max_length=2)]


SCHEMAS = [
    Person.model_json_schema() | {"additionalProperties": False},
    Answer.model_json_schema() | {"additionalProperties": False},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 3, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"enum": ["yes", "no"]}]},
    {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
    {"type": "string", "format": "uuid"},
]
PROMPTS = ["Make JSON: name Anna, age 30.", "What is the capital of France?", "Tell me a story.", "What is 47 + 25?", "Hello", "asdf"]


def say(text):
    return [{"role": "user", "content": text}]


def form(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.parametrize("seed", [1, 2])
def test_every_answer_fits_its_schema(client, model, seed):
    def ask(pair):
        prompt, schema = pair
        answer = client.chat.completions.create(model=model, messages=say(prompt), seed=seed, response_format=form(schema), max_tokens=400)
        return answer.choices[0]

    pairs = list(itertools.product(PROMPTS, SCHEMAS))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for (prompt, schema), choice in zip(pairs, pool.map(ask, pairs)):
            assert choice.finish_reason == "stop", (prompt, schema, choice)
            jsonschema.validate(json.loads(choice.message.content), schema, format_checker=jsonschema.FormatChecker())


def test_what_the_model_can_say_is_not_spoiled(client, model):
    for seed in range(5):
        answer = client.chat.completions.parse(model=model, messages=say("Make JSON: name Anna, age 30."), seed=seed, response_format=Person)
        assert answer.choices[0].message.parsed == Person(name="Anna", age=30)
        free = client.chat.completions.create(model=model, messages=say("Make JSON: name Anna, age 30."), seed=seed)
        assert answer.choices[0].message.content == free.choices[0].message.content


def test_streams_and_progress(client, model):
    with client.chat.completions.stream(model=model, messages=say("Hello"), seed=1, response_format=Answer, max_tokens=400,
                                        extra_body={"diffusing": True}) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Answer)


def test_responses(client, model):
    answer = client.responses.parse(model=model, input="Make JSON: name Anna, age 30.", text_format=Person)
    assert answer.output_parsed == Person(name="Anna", age=30)


def test_a_thought_comes_before(client, model):
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    answer = client.chat.completions.create(model=model, messages=say("Make JSON: name Anna, age 30."), seed=1, extra_body=thinking,
                                            response_format=form(SCHEMAS[0]))
    assert answer.choices[0].message.reasoning_content.strip() == "The user wants JSON."
    assert json.loads(answer.choices[0].message.content) == {"name": "Anna", "age": 30}


def test_the_same_alone_and_in_company(client, model):
    ask = lambda seed: client.chat.completions.create(model=model, messages=say("Tell me a story."), seed=seed, response_format=form(SCHEMAS[1]), max_tokens=400)
    alone = ask(3).choices[0].message.content
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8)))[3].choices[0].message.content == alone


def tool(name, required, **properties):
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("set_light", ["on", "room"], room={"enum": ["kitchen", "hall"]}, on={"type": "boolean"}, level={"enum": [1, 2, 3]}),
    tool("get_weather", ["city"], city={"type": "string", "enum": ["Paris", "Rome", "Buenos Aires"]}),
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_light"}}])
def test_a_call_that_is_demanded_is_made(client, model, choice):
    declared = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}
    for prompt, seed in itertools.product([*PROMPTS, "What is the weather in Rome?"], [1, 2]):
        answer = client.chat.completions.create(
            model=model, messages=say(prompt), seed=seed, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=400
        )
        assert answer.choices[0].finish_reason == "tool_calls", (prompt, answer)
        (call,) = answer.choices[0].message.tool_calls
        jsonschema.validate(json.loads(call.function.arguments), declared[call.function.name])
        assert choice == "required" or call.function.name == "set_light"


def test_the_call_that_the_model_makes_anyway_is_not_spoiled(client, model):
    tools = [tool("get_weather", ["city"], city={"type": "string"})]
    for seed in range(5):
        ask = dict(model=model, messages=say("What is the weather in Paris?"), seed=seed, tools=tools)
        free = client.chat.completions.create(**ask)
        held = client.chat.completions.create(**ask, tool_choice="required")
        assert [call.function for call in held.choices[0].message.tool_calls] == [call.function for call in free.choices[0].message.tool_calls]
