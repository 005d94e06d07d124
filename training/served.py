"""Scores a running server on held-out questions without calls or thoughts, so that quantized weights and faster products can be compared with the
checkpoint as it is.

    canvasd serve --model demo-q8_0.gguf --precision bytes &
    python served.py http://127.0.0.1:8000 --tokenizer ../models/demo/tokenizer.json --per 20 --out q8_0-bytes.json
    python served.py --compare exact.json q8_0-bytes.json

right = the checked part of the answer is in the reply, in letters of either case.  Every question has a seed of its own, the same in every run; --compare counts
the questions that only one of two runs got right, and the replies that are letter for letter the same."""
import argparse
import json
import random
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import world

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("server", nargs="?")
ap.add_argument("--tokenizer", default="../models/demo/tokenizer.json")
ap.add_argument("--per", type=int, default=20)
ap.add_argument("--seed", type=int, default=4711)
ap.add_argument("--at-once", type=int, default=16)
ap.add_argument("--max-tokens", type=int, default=512)
ap.add_argument("--out")
ap.add_argument("--compare", nargs=2)
a = ap.parse_args()


def questions():
    r, quota = random.Random(a.seed), defaultdict(list)
    for _ in range(400000):
        s = world.sample(r)
        task = s["task"]
        # Calls and thoughts go to channels of their own, which a completion does not show.
        if task == "call" or task.startswith("think_") or s["answer"] is None or len(quota[task]) >= a.per:
            continue
        if world.unseen(s) or task in world.NOT_HELD_OUT:
            quota[task].append(s)
    return [s for task in sorted(quota) for s in quota[task]]


def ask(tok, number, s):
    ids = tok.encode(world.prompt(s["messages"]), add_special_tokens=False).ids
    body = dict(model=a.model, prompt=ids, max_tokens=a.max_tokens, seed=number)
    request = urllib.request.Request(a.server + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    reply = json.load(urllib.request.urlopen(request, timeout=900))
    return reply["choices"][0]["text"]


def score():
    from tokenizers import Tokenizer

    a.model = json.load(urllib.request.urlopen(a.server + "/v1/models", timeout=60))["data"][0]["id"]
    tok, t0 = Tokenizer.from_file(a.tokenizer), time.time()
    asked = questions()
    with ThreadPoolExecutor(a.at_once) as pool:
        replies = list(pool.map(lambda x: ask(tok, *x), enumerate(asked)))
    rows = [dict(task=s["task"], right=bool(world.right(s, text)), reply=text) for s, text in zip(asked, replies)]
    by_task = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row["right"])
    scores = {task: round(sum(l) / len(l), 3) for task, l in by_task.items()}
    total = sum(row["right"] for row in rows)
    print(f"{total} of {len(rows)} right ({100 * total / len(rows):.1f} %) in {time.time() - t0:.0f} s")
    if a.out:
        json.dump(dict(seed=a.seed, per=a.per, right=total, questions=len(rows), scores=scores, rows=rows), open(a.out, "w"), ensure_ascii=False)


def compare():
    one, other = (json.load(open(path)) for path in a.compare)
    pairs = list(zip(one["rows"], other["rows"]))
    assert one["questions"] == other["questions"] and one["seed"] == other["seed"], "the two runs asked different questions"
    only = lambda x, y: sum(p[x]["right"] and not p[y]["right"] for p in pairs)
    same = sum(p[0]["reply"] == p[1]["reply"] for p in pairs)
    print(f"right {one['right']} and {other['right']} of {len(pairs)}; only the first {only(0, 1)}, only the second {only(1, 0)}; same replies {same}")


compare() if a.compare else score()
