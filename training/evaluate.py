"""Scores a checkpoint with its default settings on questions that were held out of training, and on continuations of known text.

    python evaluate.py ../models/demo --per 40 --out eval.json                          transformers' own generate()
    python evaluate.py ../models/demo --per 40 --server http://127.0.0.1:8000 --out eval.json   the same questions, asked over HTTP
    python evaluate.py ../models/demo --smoke ../tests/fixtures/smoke.json              prompt -> expected pairs, five seeds each (--server works here too)
    python evaluate.py ../models/demo --ask "Tell me a story." --trace                  every denoising step of one reply

--out adds its scores to the file, beside those of the other implementation.

exact = the reply is one of the taught replies, letter for letter; for stories, which are never twice the same: one that the grammar makes, whole and
consistent from the first word to the last (tales.told), of the length and about what was asked for.
well formed = every sentence has the pattern of a taught one (words of a kind exchanged); of stories: the grammar makes it; thoughts and calls are closed.
visible = steps per canvas in which the draft changed (transformers only).
dialogue = the last question after six to twelve other turns, whatever it is about (a very long story is counted as that); long_dialogue: after more."""
import argparse
import json
import os
import random
import re
import statistics
import sys
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import tales
import world

STORIES = {"story", "plain_story", "go_on"}            # no fixed set of replies
RAW = {"skip_special_tokens": False}


class Reply:
    def __init__(self, text, steps, canvases, changed=0):
        self.text, self.steps, self.canvases, self.changed = text, steps, canvases, changed


class Reference:
    """The library's generate(), f32."""
    name, settings = "transformers", "generation_config.json of the folder, f32"

    def __init__(self, folder, threads):
        import torch
        from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion
        torch.set_num_threads(threads)
        self.torch, self.tok = torch, AutoTokenizer.from_pretrained(folder)
        self.model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32).eval()
        self.end = set(self.model.generation_config.eos_token_id)

    def ids(self, pair):
        if "prompt" in pair:
            return [2] + self.tok.encode(pair["prompt"], add_special_tokens=False)
        options = {k: pair[k] for k in ("tools", "enable_thinking") if k in pair}
        text = self.tok.apply_chat_template([with_arguments(m) for m in pair["messages"]], add_generation_prompt=True, tokenize=False, **options)
        return self.tok.encode(text, add_special_tokens=False)

    def generate(self, rows, seed, streamer=None):
        """Rows of equal length."""
        self.torch.manual_seed(seed)
        streamer = streamer or Changes(len(rows))
        out, C = self.model.generate(self.torch.tensor(rows), streamer=streamer), self.model.config.canvas_length
        replies = []
        for row, per_step, changed in zip(out.sequences, out.tokens_per_forward, streamer.changed):
            new = row[len(rows[0]):].tolist()
            n = sum(x != 0 for x in new)
            cut = next((i for i, x in enumerate(new) if x in self.end), len(new))
            replies.append(Reply(self.tok.decode(new[:cut], **RAW), n / float(per_step), -(-n // C), changed))
        return replies

    def ask(self, pairs, seed=0, spread=False):
        groups, replies = defaultdict(list), [None] * len(pairs)
        for i, pair in enumerate(pairs):
            x = self.ids(pair)
            groups[len(x)].append((i, x))
        for group in groups.values():
            for at in range(0, len(group), 32):
                part = group[at:at + 32]
                for (i, _), reply in zip(part, self.generate([x for _, x in part], seed)):
                    replies[i] = reply
        return replies


class Changes:
    """Streamer that counts, per row, the steps in which the draft differs from the one before.  A row that has ended goes on with padding, which is
    not counted."""

    def __init__(self, rows):
        self.changed, self.canvas, self.last = [0] * rows, [0] * rows, None

    def put(self, value):
        for i, row in enumerate(value.tolist() if self.last else []):
            self.changed[i] += self.canvas[i] if any(row) else 0
        self.canvas, self.last = [0] * len(self.changed), None

    def put_draft(self, value):
        for i, row in enumerate(value.tolist()):
            self.canvas[i] += self.last is None or row != self.last[i]
        self.last = value.tolist()

    def end(self):
        pass


class Trace:
    """Streamer that prints every draft of the canvas."""

    def __init__(self, tok):
        self.tok, self.n, self.changed = tok, 0, [0]

    def put(self, value):
        pass

    def put_draft(self, value):
        self.n += 1
        print(f"{self.n:3d} | " + self.tok.decode(value[0].tolist(), **RAW).replace("<eos>", "·").replace("\n", "\\n"))

    def end(self):
        pass


def with_arguments(message):
    """A message for the chat template, which wants a call's arguments as an object."""
    calls = [c | dict(function=c["function"] | dict(arguments=json.loads(c["function"]["arguments"]))) for c in message.get("tool_calls", [])]
    return message | dict(tool_calls=calls) if calls else message


class Server:
    """A running canvasd; what it parses out of a reply is written back in the model's own syntax."""
    name, settings = "canvasd", "the server's defaults"

    def __init__(self, url):
        self.url = url

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def one(self, pair, seed):
        if "prompt" in pair:
            answer = self.post("/v1/completions", dict(prompt=pair["prompt"], seed=seed, max_tokens=512))
            text = answer["choices"][0]["text"]
        else:
            body = dict(messages=pair["messages"], seed=seed, max_tokens=512, chat_template_kwargs=dict(enable_thinking=pair.get("enable_thinking", False)))
            answer = self.post("/v1/chat/completions", body | ({"tools": pair["tools"]} if "tools" in pair else {}))
            message = answer["choices"][0]["message"]
            text = message["content"] or ""
            if message.get("reasoning_content"):
                text = f"<|channel>thought\n{message['reasoning_content'].rstrip()}\n<channel|>{text}"
            for call in message.get("tool_calls") or []:
                f = call["function"]
                fields = ",".join(f"{k}:{world.quoted(v)}" for k, v in sorted(json.loads(f["arguments"]).items()))
                text += f"<|tool_call>call:{f['name']}{{{fields}}}<tool_call|>"
        cost = answer["usage"]["diffusion"]
        return Reply(text, cost["steps"], cost["canvases"])

    def ask(self, pairs, seed=0, spread=False):
        """With `spread` every question has a seed of its own, as in a batch of transformers."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(self.one, pairs, [seed + i * spread for i in range(len(pairs))]))


def declared(text):
    """world.declaration() back to a tool in the API's form."""
    tools = []
    for name, about, properties in re.findall(r'<\|tool>declaration:(\w+)\{description:<\|"\|>(.*?)<\|"\|>,parameters:\{properties:\{(.*?)\},required', text):
        param, hint = re.match(r'(\w+):\{(?:description:<\|"\|>(.*?)<\|"\|>,)?type', properties).groups()
        fields = {param: dict(type="string") | (dict(description=hint) if hint else {})}
        if "unit:{" in properties:
            fields["unit"] = dict(type="string", enum=["celsius", "fahrenheit"])
        tools.append(dict(type="function", function=dict(name=name, description=about, parameters=dict(type="object", properties=fields, required=[param]))))
    return tools


def as_request(messages):
    """A conversation of world.sample() without its last message, in the API's form; None if the API cannot say it."""
    if messages[0][0] == "plain":
        return dict(prompt=messages[0][1])
    out, pair = [], {}
    for role, text in messages[:-1]:
        if role == "system":
            if text.startswith(world.THINK):
                pair["enable_thinking"], text = True, text[len(world.THINK):].lstrip("\n")
            tools = declared(text)
            if tools:
                pair["tools"] = tools
            text = text.split("<|tool>")[0].strip()
            if text or not pair:
                out.append(dict(role="system", content=text))
        elif role == "call":
            name, param, value, result = re.fullmatch(r'<\|tool_call>call:(\w+)\{(\w+):<\|"\|>(.*?)<\|"\|>\}<tool_call\|><\|tool_response>response:\w+\{(.*)\}<tool_response\|>', text).groups()
            plain = re.fullmatch(r'value:<\|"\|>(.*)<\|"\|>', result)
            if not plain:
                return None
            out.append(dict(role="assistant", content=None, tool_calls=[dict(id="call_1", type="function", function=dict(name=name, arguments=json.dumps({param: value})))]))
            out.append(dict(role="tool", tool_call_id="call_1", content=plain[1]))
        else:
            out.append(dict(role="assistant" if role == "model" else role, content=text))
    return dict(messages=out) | pair


def slots():
    kinds = dict(N=world.NAMES, C=world.CAPITAL, K=world.CAPITAL.values(), W=world.NOUNS, L=world.COLORS, J=world.ADJ, S=world.SPORTS, T=world.TOOLS, P=world.PLANETS)
    word = {w: k for k, l in kinds.items() for w in l}
    word |= {w.upper(): k for w, k in word.items() if k in "NCK"}
    rx = re.compile(r"\b(" + "|".join(word) + r"|an|a|\d+)\b")
    return lambda s: rx.sub(lambda m: word.get(m[0], "a" if m[0][0] == "a" else "0"), s)


norm = slots()
sentences = lambda s: [norm(x.strip()) for x in re.split(r"\n|(?<=[.!?\"])\s+(?=[A-Z\"])", s) if x.strip()]


def patterns(n=40000):
    r, known = random.Random(99), set()
    for _ in range(n):
        known.update(sentences(world.sample(r)["messages"][-1][1]))
    return known


def parts(s, text):
    """-> task, thought, reply; the thought is None if thinking was off, and the reply None if it was on and there is no closed thought."""
    if not s["task"].startswith("think_"):
        return s["task"], None, text
    m = re.fullmatch(r"(<\|channel>thought\n.+\n<channel\|>)(.*)", text, re.S)
    return s["task"][6:], m and m[1], m and m[2]


def taught(s):
    return s["messages"][-1][1].removesuffix("<|tool_response>")


def whole_story(s, text):
    """A continuation together with what it continues."""
    before = s["messages"][-3][1] + " " if s["task"] == "go_on" else s["messages"][0][1] if s["task"] == "plain_story" else ""
    return tales.told(before + text)


def well_formed(s, text, known):
    task, _, text = parts(s, text)
    if text is None:
        return False
    if task == "call":
        return bool(re.fullmatch(r"<\|tool_call>call:\w+\{\w+:<\|\"\|>[^<>{}]+<\|\"\|>\}<tool_call\|>", text))
    if task in STORIES:
        return whole_story(s, text) is not None
    return text == parts(s, taught(s))[2] or bool(text.strip()) and all(x in known for x in sentences(text))      # no sample of patterns has all


def exact(s, text, formed):
    task, thought, said = parts(s, text)
    _, right_thought, right = parts(s, taught(s))
    if not formed or thought != right_thought:
        return False
    if task == "story":                                          # what the question names is where it belongs
        (length, choices), (asked_length, asked) = tales.told(said), tales.told(right)
        named = re.findall(r"\w+", s["messages"][-2][1].lower())
        return length == asked_length and all(choices[k] == asked[k] for k in "aob" if asked[k] in named)
    if task == "go_on":
        return whole_story(s, said)[0] == whole_story(s, right)[0]
    return task == "plain_story" or said == right or isinstance(s["answer"], list) and said in s["answer"]


def kind(s):
    """The line of the table that a question belongs to."""
    if s["task"] == "story" and tales.told(s["messages"][-1][1])[0] == tales.VERY_LONG:
        return "very_long_story"
    turns = len(s.get("earlier", []))
    return "long_dialogue" if turns > 12 else "dialogue" if turns >= 6 else "think" if s["task"].startswith("think_") else s["task"]


def questions(a):
    """--per questions per task that the API can ask, five times as many sums (their bar is the highest); thoughts count as one task per kind
    of answer."""
    r, quota = random.Random(a.seed), defaultdict(list)
    only = a.tasks.split(",") if a.tasks else None
    for _ in range(500000):
        s = world.sample(r)
        line = kind(s)
        t, most = (s["task"], max(2, a.per // 8)) if line == "think" else (line, 5 * a.per if line in ("sum", "bigsum") else a.per)
        if only and line not in only or len(quota[t]) >= most:
            continue
        if (world.unseen(s) or s["task"] in world.NOT_HELD_OUT) and as_request(s["messages"]):
            quota[t].append(s)
    return [s for _, l in sorted(quota.items()) for s in l]


def score(model, a):
    t0, known, table, rows, stat = time.time(), patterns(), {}, [], defaultdict(list)
    asked = questions(a)
    if not asked:
        raise SystemExit(f"no question of {a.tasks} was held out: see the task names in eval.json")
    for s, x in zip(asked, model.ask([as_request(s["messages"]) for s in asked], a.seed, spread=True)):
        formed = well_formed(s, x.text, known)
        ok = exact(s, x.text, formed)
        stat[kind(s)].append((ok, world.right(s, x.text), formed, x))
        if not ok:
            rows.append(dict(task=kind(s), messages=s["messages"][:-1], reply=x.text, taught=s["messages"][-1][1]))
    mean = lambda l: round(sum(l) / len(l), 3) if l else None
    for t, l in sorted(stat.items()) + [("ALL", [x for l in stat.values() for x in l])]:
        per = [x.steps / x.canvases for *_, x in l]
        table[t] = dict(n=len(l), exact=mean([o for o, *_ in l]), right=mean([r for _, r, *_ in l if r is not None]), well_formed=mean([f for _, _, f, _ in l]),
                        median_steps=round(statistics.median(per), 1), mean_steps=mean(per), canvases=mean([x.canvases for *_, x in l]))
        if model.name == "transformers":
            table[t]["visible"] = mean([x.changed / x.canvases for *_, x in l])
        print(f"{t:12}", table[t], flush=True)
    print("seconds", round(time.time() - t0))
    if a.out:
        whole = json.load(open(a.out)) if os.path.exists(a.out) else {}
        whole[model.name] = dict(settings=f"{model.settings}, seed {a.seed}, --per {a.per}", scores=table, wrong=rows)
        json.dump(whole, open(a.out, "w"), indent=0, ensure_ascii=False)
    if a.show:
        for x in rows:
            print(x["task"], "|", " / ".join(t[-90:] for _, t in x["messages"]), "->", repr(x["reply"]), "| taught:", repr(x["taught"][:120]))


def smoke(model, a):
    pairs = json.load(open(a.smoke))
    runs = [model.ask(pairs, seed) for seed in range(1, a.seeds + 1)]
    kept = []
    for pair, out in zip(pairs, zip(*runs)):
        wrong = [x.text for x in out if not all(e in x.text for e in pair["expect"])]
        kept += [] if wrong else [pair]
        print(f"{a.seeds - len(wrong)}/{a.seeds}", json.dumps(pair.get("prompt") or pair["messages"][-1]["content"], ensure_ascii=False), "->", pair["expect"], "steps", [round(x.steps) for x in out], "|", repr(out[0].text), wrong or "", flush=True)
    print(len(kept), "of", len(pairs), "pairs right with every seed")
    if a.keep:
        json.dump(kept, open(a.keep, "w"), indent=1, ensure_ascii=False)
    return len(kept) == len(pairs)


def main():
    ap = argparse.ArgumentParser()
    A = ap.add_argument
    A("dir", help="checkpoint folder; not read with --server")
    A("--server", help="address of a running canvasd that serves this checkpoint")
    A("--per", type=int, default=16, help="questions per task")
    A("--tasks", default="", help="only these, separated by commas")
    A("--seed", type=int, default=12345)
    A("--out", help="file for the scores")
    A("--show", action="store_true", help="print what was wrong")
    A("--smoke", help="file of prompt -> expected pairs")
    A("--seeds", type=int, default=5)
    A("--keep", help="write the pairs that were right with every seed here")
    A("--ask"), A("--system"), A("--plain", action="store_true"), A("--think", action="store_true"), A("--trace", action="store_true")
    A("--threads", type=int, default=1)
    a = ap.parse_args()
    if a.trace and (a.server or not a.ask):
        ap.error("--trace shows the steps of an --ask, in transformers only")
    model = Server(a.server) if a.server else Reference(a.dir, a.threads)
    if a.ask:
        system = [dict(role="system", content=a.system)] if a.system is not None else []
        pair = dict(prompt=a.ask) if a.plain else dict(messages=system + [dict(role="user", content=a.ask)], enable_thinking=a.think)
        print((model.generate([model.ids(pair)], 0, Trace(model.tok)) if a.trace else model.ask([pair]))[0].text)
    elif a.smoke:
        sys.exit(not smoke(model, a))
    else:
        score(model, a)


if __name__ == "__main__":
    main()
