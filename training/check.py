"""Checks what training takes for granted:  python check.py
1. the lean forward pass gives the library's logits;  2. world.prompt writes what chat_template.jinja writes;  3. an earlier reply stands in the
whole conversation as it stands alone;  4. every story is recognised as one, and none with its hero's name exchanged in one place;  5. a mistake in a story
makes another text of the same length, and no story."""
import os
import random

from jinja2 import Environment

from tokenizers import Tokenizer

import model
import tales
import world
from mistakes import Mistakes

TOOL = dict(function=dict(name="get_weather", description="Get weather", parameters=dict(
    type="object", required=["city"], properties=dict(city=dict(type="string", description="The city"), unit=dict(type="string", enum=["celsius", "fahrenheit"])))))


def template():
    t = Environment(extensions=["jinja2.ext.loopcontrols"]).from_string(open(os.path.join(model.HERE, "chat_template.jinja")).read())
    render = lambda messages, **kw: t.render(messages=messages, bos_token="<bos>", add_generation_prompt=True, **kw)
    r, seen = random.Random(0), 0
    while seen < 300:
        m = world.sample(r)["messages"]
        if m[0][0] == "plain" or any(role == "call" or "<|tool>" in text or "<|channel>" in text for role, text in m[:-1]):
            continue
        seen, kw = seen + 1, {}
        hf = [dict(role="assistant" if role == "model" else role, content=text) for role, text in m[:-1]]
        if m[0][1].startswith(world.THINK):
            kw, hf[0]["content"] = dict(enable_thinking=True), m[0][1][len(world.THINK):].strip()
        assert render(hf, **kw) == world.prompt(m), (render(hf, **kw), world.prompt(m))
    ask = [("system", world.declaration("get_weather", "Get weather", "city", "The city", unit=True)), ("user", "Weather in Paris")]
    hf = [dict(role="user", content="Weather in Paris")]
    assert render(hf, tools=[TOOL]) == world.prompt(ask + [("model", "")])
    call = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|><|tool_response>response:get_weather{condition:<|"|>sunny<|"|>,temperature:21}<tool_response|>'
    hf += [dict(role="assistant", tool_calls=[dict(id="a", function=dict(name="get_weather", arguments=dict(city="Paris")))]),
           dict(role="tool", tool_call_id="a", content=dict(temperature=21, condition="sunny"))]
    assert render(hf, tools=[TOOL]) == world.prompt(ask + [("call", call), ("model", "")])
    print("template: equal on", seen, "conversations and a tool call with its result")


def earlier():
    tok, r, seen = Tokenizer.from_file(model.TOKENIZER), random.Random(1), 0
    while seen < 300:
        s = world.sample(r)
        whole = sum(world.encode(tok, s), [])
        for i, _, _ in s.get("earlier", []):
            head, reply = world.encode(tok, dict(messages=s["messages"][:i + 1]))
            assert (head + reply) == whole[:len(head) + len(reply)], s["messages"][:i + 1]
            seen += 1
    print("earlier replies: equal in", seen)


def stories():
    r = random.Random(2)
    for length in range(4):
        for _ in range(200):
            text = tales.story(r, length=length)
            n = tales.told(text)[1]["n"]
            others = [x for x in tales.NAMES if x != n]
            assert tales.told(text)[0] == length and tales.told(text[::-1].replace(n[::-1], r.choice(others)[::-1], 1)[::-1]) is None, text
    print("stories: recognised, and not with another name in one place")


def wrong():
    tok, r = Tokenizer.from_file(model.TOKENIZER), random.Random(3)
    mistakes = Mistakes(tok)
    assert None not in mistakes.numbers.union(*mistakes.words)
    for length in range(4):
        for _ in range(100):
            head, reply = world.encode(tok, dict(messages=[("user", "Tell me a story."), ("model", tales.story(r, length=length))]))
            other = mistakes.mistaken(r, "story", head, reply)
            assert len(other) == len(reply) and other != reply and tales.told(tok.decode(other)) is None, tok.decode(other)
            assert tales.told(tok.decode(reply)) is not None
    assert mistakes.mistaken(r, "hello", *world.encode(tok, dict(messages=[("user", "Hello"), ("model", "Hello! How can I help you today?")]))) is None
    print("mistakes: none of them is a story")


if __name__ == "__main__":
    template()
    earlier()
    stories()
    wrong()
    model.check()
