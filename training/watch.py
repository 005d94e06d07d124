"""Watches a running canvasd as somebody at the other end does: how soon the first text comes, in how many steps the draft changes before their eyes, and
how long a conversation may grow before answers go wrong.

    python watch.py http://127.0.0.1:8000 --out eval.json

Questions are held out, every one has a seed of its own, one is asked at a time.  The figures go into eval.json under "watched", beside evaluate.py's.
A step is visible if its draft differs from the one before; a canvas's first draft is one."""
import argparse
import json
import os
import random
import statistics
import time
import urllib.request

import evaluate
import world

AHEAD = [200, 400, 800, 1600, 3200, 6400]              # tokens of conversation before the question, about
TOKENS_PER_LETTER, TOKENS_PER_TURN = 1 / 2.8, 8
CHECKED = [world.t_capital, world.t_word, world.t_fact, world.t_world, world.t_unit, world.t_json, world.t_copy, world.t_sort]


def held_out(r, tasks):
    """-> question, taught reply"""
    while True:
        task, q, reply, answer = world.asked(r, r.choice(tasks))
        if world.unseen(dict(task=task, messages=[("user", q), ("model", reply)], answer=answer)):
            return q, reply


def streamed(url, question, seed):
    """-> seconds to the first text, visible steps per canvas"""
    body = dict(messages=[dict(role="user", content=question)], seed=seed, max_tokens=512, stream=True, stream_options=dict(include_diffusion_progress=dict(max_hz=1000)))
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    begun, first, visible, last = time.perf_counter(), None, {}, {}
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if first is None and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - begun
            draft = event.get("diffusion", {})
            if draft.get("type") == "progress" and draft.get("text"):
                canvas = draft["canvas"]
                visible[canvas] = visible.get(canvas, 0) + (draft["text"] != last.get(canvas))
                last[canvas] = draft["text"]
    return first, [n for _, n in sorted(visible.items())]


def settling(url, a):
    """Short answers and stories: first text, and steps with visible change."""
    out = {}
    for name, tasks in (("short", CHECKED), ("story", [world.t_story])):
        r = random.Random(a.seed)
        seen = [streamed(url, held_out(r, tasks)[0], seed) for seed in range(a.per)]
        steps = [sum(canvases) for _, canvases in seen]
        out[name] = dict(n=len(seen), first_text_s=[round(f(first for first, _ in seen), 3) for f in (statistics.median, max)], visible_steps=statistics.median(steps),
                         visible_steps_first_canvas=statistics.median(canvases[0] if canvases else 0 for _, canvases in seen), at_least_4=sum(n >= 4 for n in steps))
        print(name, out[name], flush=True)
    return out


def far(server, a):
    """Questions at the end of conversations of growing length -> [prompt tokens on average, right, asked]"""
    out = []
    for target in AHEAD:
        r, used, right = random.Random(a.seed + target), [], 0
        for seed in range(a.per_length):
            messages, length = [], 0
            while length < target:
                _, q, reply, _ = world.asked(r, r.choices(world.FN, world.WEIGHT)[0])
                messages += [dict(role="user", content=q), dict(role="assistant", content=reply)]
                length += (len(q) + len(reply)) * TOKENS_PER_LETTER + TOKENS_PER_TURN
            q, taught = held_out(r, CHECKED)
            answer = server.post("/v1/chat/completions", dict(messages=messages + [dict(role="user", content=q)], seed=seed, max_tokens=128))
            used.append(answer["usage"]["prompt_tokens"])
            right += answer["choices"][0]["message"]["content"] == taught
        out.append([round(sum(used) / len(used)), right, a.per_length])
        print("about {} tokens before the answer: {} of {}".format(*out[-1]), flush=True)
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    A = ap.add_argument
    A("url", help="address of a running canvasd that serves the demo model")
    A("--per", type=int, default=40, help="short questions, and stories")
    A("--per-length", type=int, default=24, help="questions per length of conversation")
    A("--seed", type=int, default=12345)
    A("--out", help="file for the figures")
    a = ap.parse_args()
    watched = dict(settings=f"the server's defaults, seed {a.seed}, --per {a.per}", settling=settling(a.url, a), far=far(evaluate.Server(a.url), a))
    if a.out:
        whole = json.load(open(a.out)) if os.path.exists(a.out) else {}
        json.dump(whole | dict(watched=watched), open(a.out, "w"), indent=0, ensure_ascii=False)


if __name__ == "__main__":
    main()
