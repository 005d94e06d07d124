"""Scores a checkpoint folder with transformers' own generate() and the folder's default settings.

    python evaluate.py ../models/demo --per 20 --out eval.json                  scores per task, on questions that were held out
    python evaluate.py ../models/demo --smoke ../tests/fixtures/smoke.json      prompt -> expected pairs, five seeds each
    python evaluate.py ../models/demo --ask "Tell me a story." --trace          every denoising step of one reply

right = the checked part of the answer is in the reply (exactly the call, for tools).  well formed = every sentence has the pattern of a taught one
(words of a kind exchanged); a story has one hero, few animals, one thing, and what was asked for; thoughts and calls are closed.
visible = steps per canvas in which the draft changed."""
import argparse
import json
import random
import re
import statistics
import sys
import time
from collections import defaultdict
import torch
from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion
import world

ap = argparse.ArgumentParser()
A = ap.add_argument
A("dir"), A("--per", type=int, default=16), A("--out"), A("--smoke"), A("--keep", help="write the pairs that were right with every seed here"), A("--seeds", type=int, default=5), A("--ask"), A("--system"), A("--plain", action="store_true"), A("--trace", action="store_true")
A("--tasks", default=""), A("--threads", type=int, default=1), A("--think", action="store_true"), A("--seed", type=int, default=12345), A("--limit_s", type=float, default=1e9)
a = ap.parse_args()
torch.set_num_threads(a.threads)
tok = AutoTokenizer.from_pretrained(a.dir)
model = DiffusionGemmaForBlockDiffusion.from_pretrained(a.dir, dtype=torch.float32).eval()
C = model.config.canvas_length
END = set(model.generation_config.eos_token_id)


def ids_of(messages, **kw):
    """Chat messages (through the folder's own template), or a plain string for a completion."""
    if isinstance(messages, str):
        return [2] + tok.encode(messages, add_special_tokens=False)
    x = tok.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **kw)
    return tok.encode(x, add_special_tokens=False)


def generate(rows, seed=0, **kw):
    """Rows of equal length -> [(text, denoising steps, canvases)]."""
    torch.manual_seed(seed)
    streamer = kw.pop("streamer", None) or Changes(len(rows))
    o = model.generate(torch.tensor(rows), streamer=streamer, **kw)
    res = []
    for row, tokens_per_step, changed in zip(o.sequences, o.tokens_per_forward, streamer.changed):
        new = row[len(rows[0]):].tolist()
        n = sum(x != 0 for x in new)
        cut = next((i for i, x in enumerate(new) if x in END), len(new))
        res.append((tok.decode(new[:cut], skip_special_tokens=False), n / float(tokens_per_step), -(-n // C), changed))
    return res


class Changes:
    """Streamer that counts, per row, the steps in which the draft differs from the one before."""

    def __init__(self, rows):
        self.changed, self.last = [0] * rows, None

    def put(self, value):
        self.last = None

    def put_draft(self, value):
        for i, row in enumerate(value.tolist()):
            self.changed[i] += self.last is None or row != self.last[i]
        self.last = value.tolist()

    def end(self):
        pass


def slots():
    kinds = dict(N=world.NAMES, C=world.CAPITAL, K=world.CAPITAL.values(), W=world.NOUNS, L=world.COLORS, J=world.ADJ, S=world.SPORTS, T=world.TOOLS, P=world.PLANETS)
    word = {w: k for k, l in kinds.items() for w in l}
    rx = re.compile(r"\b(" + "|".join(word) + r"|an|a|\d+)\b")
    return lambda s: rx.sub(lambda m: word.get(m[0], "a" if m[0][0] == "a" else "0"), s)


norm = slots()
sentences = lambda s: [norm(x.strip()) for x in re.split(r"\n|(?<=[.!?\"])\s+(?=[A-Z\"])", s) if x.strip()]


def patterns(n=40000):
    r, known = random.Random(99), set()
    for _ in range(n):
        known.update(sentences(world.sample(r)["messages"][-1][1]))
    return known


def well_formed(s, text, known):
    task = s["task"]
    if task == "call":
        return bool(re.fullmatch(r"<\|tool_call>call:\w+\{\w+:<\|\"\|>[^<>{}]+<\|\"\|>\}<tool_call\|>", text))
    if task.startswith("think_"):
        m = re.fullmatch(r"<\|channel>thought\n(.+)\n<channel\|>(.*)", text, re.S)
        if not m:
            return False
        task, text = task[6:], m[2]
    first = sentences(text)
    if task in ("plain_story", "go_on"):
        first = first[1:]                                        # starts inside a sentence
    if not all(x in known for x in first):
        return False
    if task == "story":
        has = lambda l: {w for w in l if re.search(rf"\b{w}\b", text)}
        want = [w for w in world.ANIMALS + world.THINGS if re.search(rf"\b{w}\b", s["messages"][-2][1].lower())]
        return len(has(world.NAMES)) == 1 and len(has(world.ANIMALS)) <= 3 and len(has(world.THINGS)) <= 1 and all(w in text for w in want)
    return True


def questions():
    """--per held-out questions per task; thoughts count as one task per kind of answer."""
    r, quota = random.Random(a.seed), defaultdict(list)
    only = a.tasks.split(",") if a.tasks else None
    for _ in range(400000):
        s = world.sample(r)
        t = s["task"]
        if only and t not in only or len(quota[t]) >= (a.per if not t.startswith("think_") else max(2, a.per // 4)):
            continue
        if world.held_out(s) or t in world.NOT_HELD_OUT:
            quota[t].append(s)
    return quota


def score():
    t0 = time.time()
    groups, known, rows, stat = defaultdict(list), patterns(), [], defaultdict(list)
    for l in questions().values():
        for s in l:
            x = tok.encode(world.prompt(s["messages"]), add_special_tokens=False)
            groups[len(x)].append((x, s))
    order = sorted(groups.items())
    random.Random(0).shuffle(order)
    for n, l in order:
        if time.time() - t0 > a.limit_s:
            break
        for i in range(0, len(l), 32):
            for (_, s), (text, steps, canvases, changed) in zip(l[i:i + 32], generate([x for x, _ in l[i:i + 32]])):
                ok, wf = world.right(s, text), well_formed(s, text, known)
                stat["think" if s["task"].startswith("think_") else s["task"]].append((ok, wf, steps / canvases, changed / canvases, canvases))
                rows.append(dict(task=s["task"], messages=s["messages"][:-1], reply=text, right=ok, well_formed=wf, steps=round(steps), canvases=canvases))
    mean = lambda l: round(sum(l) / len(l), 3) if l else None
    table = {}
    for t, l in sorted(stat.items()) + [("ALL", [x for l in stat.values() for x in l])]:
        table[t] = dict(n=len(l), right=mean([x[0] for x in l if x[0] is not None]), well_formed=mean([x[1] for x in l]), steps_per_canvas=mean([x[2] for x in l]),
                        median_steps=round(statistics.median(x[2] for x in l), 1), visible=mean([x[3] for x in l]), canvases=mean([x[4] for x in l]))
        print(f"{t:12}", table[t], flush=True)
    print("seconds", round(time.time() - t0))
    if a.out:
        wrong = [x for x in rows if x["right"] is False or not x["well_formed"]]
        json.dump(dict(settings="generation_config.json of the folder, f32 arithmetic, seed 0", scores=table, wrong=wrong), open(a.out, "w"), indent=0, ensure_ascii=False)
    return rows


def smoke():
    good, kept = 0, []
    pairs = json.load(open(a.smoke))
    for p in pairs:
        x = ids_of(p.get("prompt") or p["messages"], **{k: p[k] for k in ("tools", "enable_thinking") if k in p})
        out = [generate([x], seed=s)[0] for s in range(a.seeds)]
        hit = sum(all(e in t for e in p["expect"]) for t, _, _, _ in out)
        good += hit == a.seeds
        kept += [p] if hit == a.seeds else []
        print(f"{hit}/{a.seeds}", json.dumps(p.get("prompt") or p["messages"], ensure_ascii=False), "->", p["expect"], "steps", [round(s) for _, s, _, _ in out], "|", repr(out[0][0]), "" if hit == a.seeds else [t for t, _, _, _ in out if not all(e in t for e in p["expect"])], flush=True)
    print(good, "of", len(pairs), "pairs right with every seed")
    if a.keep:
        json.dump(kept, open(a.keep, "w"), indent=1, ensure_ascii=False)
    return good == len(pairs)


class Trace:
    """Streamer that prints every draft of the canvas."""
    n, changed = 0, [0]

    def put(self, value):
        pass

    def put_draft(self, value):
        self.n += 1
        print(f"{self.n:3d} | " + tok.decode(value[0].tolist(), skip_special_tokens=False).replace("<eos>", "·").replace("\n", "\\n"))

    def end(self):
        pass


if __name__ == "__main__":
    if a.ask:
        m = a.ask if a.plain else ([dict(role="system", content=a.system)] if a.system is not None else []) + [dict(role="user", content=a.ask)]
        print(generate([ids_of(m, **(dict(enable_thinking=True) if a.think else {}))], **(dict(streamer=Trace()) if a.trace else {}))[0])
    elif a.smoke:
        sys.exit(not smoke())
    else:
        score()
