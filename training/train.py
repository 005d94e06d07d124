"""Trains the demo model, on a CPU or one GPU.  The objective is that of DiffusionGemma's fine-tuning: uniform corruption at level
t ~ U(0, 1), plain cross-entropy on every position of the canvas (end marker and <eos> fill included), two-pass self-conditioning for a part of
the canvases.  A reply's canvases are trained each behind its clean predecessors.

    torchrun --nproc_per_node 2 train.py --minutes 260 --out ../models/demo     CPU, one process per core
    python train.py --device cuda --rows 512 --minutes 25 --out ../models/demo   one GPU

The run is resumable: --state names a folder that keeps weights, optimizer and progress; the same command goes on from there.  A further run begins with
the weights of a finished one (--weights); retrain.sh makes the runs that the shipped weights have behind them.

A share of the canvases is made noisy from a text with a mistake of the kind that the model itself makes (mistakes.py).

A short reply in a canvas of 64 is mostly fill.  Until the last part of the run short replies are therefore trained in shorter canvases (KINDS),
which costs a third; the last part uses the full canvas for all."""
import argparse
import datetime
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer

import model as demo
import tales
import tokenizer
import world
from mistakes import Mistakes
from tokenizer import LARGEST

ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
A = ap.add_argument
A("--out", required=True, help="folder for the checkpoint")
A("--state", default="state", help="folder for what a later run needs to go on")
A("--history", default="log.json", help="where the losses are written")
A("--minutes", type=float, default=260, help="wall time of the whole run, all its parts together")
A("--canvases", type=float, default=0, help="length of the whole run in canvases instead of minutes: for a machine that others use too")
A("--weights", help="folder of a finished checkpoint to begin with, in place of random weights")
A("--blend", type=float, default=1, help="share of this run's weights in those that are exported; the rest are those of --rest")
A("--rest", help="folder of a finished checkpoint [that of --weights]")
A("--part", type=float, default=1e9, help="stop after this many minutes; the schedule still follows the whole run")
A("--full", type=float, default=0.95, help="share of the run after which every canvas is full")
A("--rows", type=int, default=32, help="packed rows of 128 tokens per step; of longer rows as many fewer")
A("--lr", type=float, default=0.02, help="Muon, matrices")
A("--alr", type=float, default=3e-3, help="Adam, embedding and vectors")
A("--decay", type=float, default=0.5, help="last share of the run with falling learning rate")
A("--noise", type=float, default=0.35, help="share of canvases that start as pure noise")
A("--ema", type=float, default=0.998, help="memory of the averaged weights, which are the ones exported")
A("--device", default="cpu")
A("--threads", type=int, default=1, help="per process; operations this small lose more than they gain from a second thread")
A("--seed", type=int, default=0)
A("--eager", action="store_true", help="do not compile")
a = ap.parse_args()
a.rest = a.rest or a.weights
if a.blend != 1 and not a.rest:
    ap.error("--blend mixes with the weights of a finished checkpoint: name it with --weights or --rest")

torch.set_num_threads(a.threads)
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if WORLD > 1:
    dist.init_process_group("gloo", timeout=datetime.timedelta(hours=1))
torch._dynamo.config.recompile_limit = 64
dev, rng = a.device, random.Random(a.seed + 1 + 1000003 * RANK)
os.makedirs(a.state, exist_ok=True)
state_file, vocabulary = os.path.join(a.state, "state.pt"), os.path.join(a.state, "tokenizer.json")
if RANK == 0 and not os.path.exists(vocabulary):                 # a state keeps the tokenizer it was begun with, whatever the world has become
    shutil.copy(os.path.join(a.weights, "tokenizer.json"), vocabulary) if a.weights else tokenizer.build().save(vocabulary)
if WORLD > 1:
    dist.barrier()
tok = Tokenizer.from_file(vocabulary)
V, EOS, FULL = tok.get_vocab_size(), 1, 64
# canvas length, row length, canvases per row: what is left of a row is for prompts.  Attention costs the square of a row's length.
KINDS = [(16, 128, 4), (32, 128, 2), (FULL, 128, 1), (16, 384, 4), (32, 384, 2), (FULL, 384, 3), (32, 640, 8), (FULL, 768, 6), (FULL, 1280, 6), (FULL, 2048, 6)]
ROOM = [row - canvas * places for canvas, row, places in KINDS]
TURN, RECKONED, NUMBERS = tok.token_to_id("<|turn>"), {"sum", "bigsum", "sort", "compare"}, {tok.token_to_id(str(n)) for n in range(LARGEST + 1)}
HELPERS = {tok.token_to_id("▁" + w) for who in tales.HELPERS.values() for w in who}
TOLD, CAST = {"story", "go_on", "plain_story", "poem"}, {tok.token_to_id("▁" + w) for w in tales.NAMES + tales.ANIMALS + tales.PLACES + tales.THINGS} | HELPERS
PLAIN_FULL = 0.15                                                # share of short replies that get a full canvas all along
SELF_CONDITIONED = 4                                             # every fourth row
MISTAKEN, MISTAKES = 0.25, Mistakes(tok)                          # share of canvases that start from a text with a mistake, where one can be made
FAR, FARTHEST = 0.2, 7000                                        # share of conversations whose beginning is moved far away, and how far at most

if a.weights:
    model = demo.load(a.weights)
else:
    model = demo.make_model(demo.make_config(tok, canvas=FULL), a.seed)
    demo.circle_numbers(model.model.decoder.embed_tokens.weight, tok, LARGEST)
model = model.to(dev)
net = demo.Lean(model, compiled=not a.eager)
P = net.named
print("parameters", sum(p.numel() for p in P.values()), "vocabulary", V, flush=True)


class Muon:
    """Momentum and an orthogonalised update (Newton-Schulz) for matrices; Adam for embedding, router and vectors."""

    def __init__(self, named):
        muon = lambda n, p: p.dim() >= 2 and "embed" not in n and "router" not in n
        self.mat, self.vec = [p for n, p in named.items() if muon(n, p)], [p for n, p in named.items() if not muon(n, p)]
        self.mom, self.t = [torch.zeros_like(p) for p in self.mat], 0
        self.m1, self.m2 = [torch.zeros_like(p) for p in self.vec], [torch.zeros_like(p) for p in self.vec]

    def state(self):
        return dict(mom=self.mom, m1=self.m1, m2=self.m2, t=self.t)

    def load(self, s):
        self.mom, self.m1, self.m2, self.t = s["mom"], s["m1"], s["m2"], s["t"]

    @torch.no_grad()
    def step(self, lr, alr, wd=0.01):
        self.t += 1
        groups = {}                                              # matrices of one shape are orthogonalised in one batch
        for p, b in zip(self.mat, self.mom):
            b.mul_(0.95).add_(p.grad, alpha=0.05)
            groups.setdefault(tuple(p.shape[-2:]), []).append((p, (p.grad * 0.05 + b * 0.95).reshape(-1, *p.shape[-2:])))
        for shape, items in groups.items():
            X = torch.cat([u for _, u in items]).to(torch.bfloat16)
            tall = shape[0] > shape[1]
            X = X.mT if tall else X
            X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
            for _ in range(5):
                G = X @ X.mT
                X = 3.4445 * X + (-4.7750 * G + 2.0315 * G @ G) @ X
            X, o = X.mT if tall else X, 0
            for p, u in items:
                p.mul_(1 - lr * wd).add_(X[o:o + len(u)].reshape(p.shape).to(p.dtype), alpha=-lr * max(1, shape[0] / shape[1]) ** 0.5)
                o += len(u)
        for p, m1, m2 in zip(self.vec, self.m1, self.m2):
            m1.mul_(0.9).add_(p.grad, alpha=0.1), m2.mul_(0.98).addcmul_(p.grad, p.grad, value=0.02)
            p.sub_(alr * (m1 / (1 - 0.9 ** self.t)) / ((m2 / (1 - 0.98 ** self.t)).sqrt() + 1e-10))


def emphasis(s, reply):
    """Weights of the reply's tokens: the few that decide whether it is right count more."""
    weight = [1.0] * len(reply)
    if s["task"].removeprefix("think_") in RECKONED:
        at = [i for i, t in enumerate(reply) if t in NUMBERS]
        for i in at:
            weight[i] = 6.0 if "sort" in s["task"] else 3.0
        if "sum" in s["task"]:                                   # the reckoned ones, and the sign between them
            for i in range(at[-3], at[-1] + 1) if len(at) > 3 else at[-1:]:
                weight[i] = 8.0
    elif s["task"].removeprefix("think_") in ("count", "list"):
        weight = [2.0] * len(reply)
    elif s["task"].removeprefix("think_") in TOLD:               # who, what and where: all else follows from the voice
        weight = [6.0 if t in HELPERS else 3.0 if t in CAST else 1.0 for t in reply]        # who helps is learned last
    elif isinstance(s["answer"], str):
        text = s["messages"][-1][1]
        if s["task"] == "call":                                  # name, parameter and argument are copied from three places
            spans = [m.span() for m in re.finditer(r"(?<=call:)\w+|(?<=\{)\w+|(?<=:<\|\"\|>)[^<]+", text)]
        else:
            begin = text.find(s["answer"])
            spans = [(begin, begin + len(s["answer"]))] if begin >= 0 and len(s["answer"]) < 0.6 * len(text) else []
        for i, (x, y) in enumerate(tok.encode(text, add_special_tokens=False).offsets):
            if any(x < end and y > begin for begin, end in spans):
                weight[i] = 2.0
    return weight


def replies(s):
    """The model's whole replies of a conversation that may be trained: (prompt, reply, the same with a mistake or None, weights of the reply's tokens)."""
    for i, task, answer in s.get("earlier", []) + [(len(s["messages"]) - 1, s["task"], s["answer"])]:
        part = dict(task=task, messages=s["messages"][:i + 1], answer=answer)
        if not world.held_out(part):
            head, reply = world.encode(tok, part)
            yield head, reply, MISTAKES.mistaken(rng, part["task"], head, reply), emphasis(part, reply)


def conversation():
    """-> task, clean tokens of the prompt, their positions, [(start position, target, target with a mistake, weights)] of what is trained: all replies of
    the conversation, in blocks of a canvas, each behind its clean predecessors; length of the last reply."""
    while True:
        s = world.sample(rng)
        if world.held_out(s):
            continue
        blocks, clean = [], []
        for head, reply, wrong, weight in replies(s):
            cut = range(0, len(reply), FULL)
            clean = head + reply[:cut[-1]]                       # the last block is never context
            blocks += [(len(head) + i, reply[i:i + FULL], (wrong or reply)[i:i + FULL], weight[i:i + FULL]) for i in cut]
        if len(clean) <= ROOM[-1]:
            break
    at, turns = list(range(len(clean))), [i for i, t in enumerate(clean) if t == TURN and i > 1]
    if turns and rng.random() < FAR:                             # as if much more had been said: full attention learns distances that no row has
        farthest = min(FARTHEST, net.c.max_position_embeddings - len(clean) - FULL)
        cut, gap = rng.choice(turns), int(16 * (farthest / 16) ** rng.random())
        move = lambda p: p + gap * (p >= cut)
        at, blocks = [move(p) for p in at], [(move(p), *rest) for p, *rest in blocks]
    return s["task"], clean, at, blocks, len(reply)


class Packer:
    """First-fit packing of conversations into rows; one kind of row per batch."""

    def __init__(self):
        self.pools = [[] for _ in KINDS]

    @staticmethod
    def rows(kind):
        return max(1, a.rows * 128 // KINDS[kind][1])

    def ready(self):
        """The kind whose turn it is: the first with enough conversations waiting."""
        while True:
            for kind, (C, _, _) in enumerate(KINDS):
                if self.enough(kind) and (C == FULL or not full):
                    return kind
            self.more()

    def enough(self, kind):
        return sum(len(blocks) for *_, blocks in self.pools[kind]) >= 2 * self.rows(kind) * KINDS[kind][2]

    def more(self):
        task, clean, at, blocks, n = conversation()
        C = FULL if full or n > 31 or rng.random() < PLAIN_FULL else 16 if n <= 15 else 32       # at least one place of fill is left
        kind = next(i for i, (c, _, _) in enumerate(KINDS) if c >= C and len(clean) <= ROOM[i])  # the cheapest that has room
        C, _, K = KINDS[kind]
        blocks = [b for b in blocks if len(b[1]) < C or C == FULL]
        self.pools[kind].append((task, clean, at, sorted(rng.sample(blocks, min(K, len(blocks))), key=lambda b: b[0])))

    def batch(self, kind):
        while not self.enough(kind):
            self.more()
        C, L, K = KINDS[kind]
        R, T, pool = self.rows(kind), ROOM[kind], self.pools[kind]
        ids = torch.zeros(R, T, dtype=torch.long)
        pos, seg = torch.zeros_like(ids), torch.full_like(ids, -1)
        tgt, cseg, start = torch.full((R, K, C), EOS), torch.zeros(R, K, dtype=torch.long), torch.zeros(R, K, dtype=torch.long)
        wrong = tgt.clone()
        tasks, weight = [None] * (R * K), torch.ones(R, K, C)
        for r in range(R):
            n = k = i = 0
            while i < len(pool) and k < K:
                task, clean, at, blocks = pool[i]
                if n + len(clean) > T or k + len(blocks) > K:
                    i += 1
                    continue
                pool.pop(i)
                ids[r, n:n + len(clean)], pos[r, n:n + len(clean)] = torch.tensor(clean), torch.tensor(at)
                seg[r, n:n + len(clean)] = k
                for j, (p, b, m, q) in enumerate(blocks):
                    tgt[r, k + j, :len(b)], cseg[r, k + j], start[r, k + j] = torch.tensor(b), k, p
                    wrong[r, k + j, :len(b)], weight[r, k + j, :len(b)] = torch.tensor(m), torch.tensor(q)
                    tasks[r * K + k + j] = task
                n, k = n + len(clean), k + len(blocks)
            for j in range(k, K):                                # free places: the same replies under other noise cost no further prompt
                for x in (tgt, wrong, cseg, start, weight):
                    x[r, j] = x[r, j - k]
                tasks[r * K + j] = tasks[r * K + j - k]
        return tasks, weight.view(-1, C), wrong, ids, pos, seg, tgt, cseg, start


def corrupt(tgt, wrong):
    """Level and noisy text of each canvas: a share of its places is random, the others are those of the target, or of the target with a mistake."""
    t = torch.rand(*tgt.shape[:2], 1, device=dev) * 0.999 + 0.001
    t[torch.rand(*tgt.shape[:2], device=dev) < a.noise] = 1.0
    kept = torch.where(torch.rand(*tgt.shape[:2], 1, device=dev) < MISTAKEN, wrong, tgt)
    return t.flatten(), torch.where(torch.rand(tgt.shape, device=dev) < t, torch.randint(0, V, tgt.shape, device=dev), kept)


def loss_fn(ids, pos, seg, tgt, cseg, start, noisy, weight):
    w, h, C = net.weights(), max(1, tgt.shape[0] // SELF_CONDITIONED), tgt.shape[-1]
    with torch.no_grad():                                        # first pass, only for the rows that are self-conditioned
        sc, _ = net.forward({k: v.detach() for k, v in w.items()}, ids[:h], pos[:h], seg[:h], noisy[:h], cseg[:h], start[:h])
    z, route = net.forward(w, ids, pos, seg, noisy, cseg, start, sc)
    ce = F.cross_entropy(z.flatten(0, 1), tgt.flatten(), reduction="none").view(-1, C)
    balance = sum((s.mean((0, 1)) ** 2).sum() * s.shape[-1] for s in route) / len(route)
    return (ce * weight).mean() + 0.01 * balance, ce.mean(1).detach(), balance.detach()


opt, ema, step, seen, before, log = Muon(P), {n: p.detach().clone() for n, p in P.items()}, 0, 0, 0.0, []
rest = demo.Lean(demo.load(a.rest).to(dev), compiled=False).named if a.rest else None        # what --blend mixes with
begun = datetime.datetime.now(datetime.timezone.utc).isoformat(" ", "minutes")
if os.path.exists(state_file):
    s = torch.load(state_file, map_location=dev, weights_only=False)
    if {n: w.shape for n, w in s["weights"].items()} != {n: p.shape for n, p in P.items()}:
        raise SystemExit(f"{state_file} is of a model of another shape; give an empty folder as --state")
    with torch.no_grad():
        for n, p in P.items():
            p.copy_(s["weights"][n])
    opt.load(s["optimizer"])
    ema, step, seen, before, log, begun = s["ema"], s["step"], s["seen"], s["wall_s"], s["log"], s["begun"]
    rng.seed(a.seed + 1 + step + 1000003 * RANK)
    print("going on at step", step, "after", round(before), "s", flush=True)


torch.manual_seed(a.seed + step + 1000003 * RANK)                # noise differs between processes, first weights do not


def together(loss):
    """Gradients averaged over the processes."""
    loss.backward()
    if WORLD > 1:
        flat = torch.cat([p.grad.flatten() for p in P.values()])
        dist.all_reduce(flat)
        flat /= WORLD
        for p, g in zip(P.values(), flat.split([p.numel() for p in P.values()])):
            p.grad.copy_(g.view_as(p))


def provenance():
    """What the log says of a run besides its losses."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=demo.HERE, capture_output=True, text=True)
    if dev.startswith("cuda"):
        hardware = torch.cuda.get_device_name()
    else:
        models = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")] if os.path.exists("/proc/cpuinfo") else [platform.processor()]
        hardware = f"{WORLD} processes of {a.threads} threads on {os.cpu_count()} cores, {models[0]}"
    return dict(begun=begun, commit=git.stdout.strip() or "unknown", hardware=hardware)


def save():
    if RANK > 0:
        return
    wall = before + time.time() - t0
    now = {n: p.detach().clone() for n, p in P.items()}
    torch.save(dict(weights=now, ema=ema, optimizer=opt.state(), step=step, seen=seen, wall_s=wall, log=log, begun=begun), state_file + ".new")
    os.replace(state_file + ".new", state_file)
    with torch.no_grad():
        for n, p in P.items():
            p.copy_(torch.lerp(rest[n], ema[n], a.blend) if rest else ema[n])
        demo.export(model, tok, a.out)
        for n, p in P.items():
            p.copy_(now[n])
    with open(a.history, "w") as f:
        json.dump(provenance() | dict(args=vars(a), steps=step, canvases=seen, wall_s=round(wall), log=log), f, indent=0)


net.rope(torch.zeros(1, 1, dtype=torch.long, device=dev))
full, packer, asked = False, Packer(), []
for stopped in (signal.SIGTERM, signal.SIGINT):                  # a stopped run saves before it goes
    signal.signal(stopped, lambda *_: asked.append(True))
t0 = saved = time.time()
hist, per_task, busy = [], {}, time.process_time()
while True:
    wall = before + time.time() - t0
    prog = seen / a.canvases if a.canvases else wall / (a.minutes * 60)
    stop = prog >= 1 or time.time() - t0 > a.part * 60 or bool(asked)
    full = prog > a.full                                         # before the choice: no process may wait for a length nobody makes any more
    plan = torch.tensor([prog, stop, 0 if RANK or stop else packer.ready()], dtype=torch.float64)
    if WORLD > 1:
        dist.broadcast(plan, 0)                                  # all follow the first process' progress and choice of rows
    prog, stop, kind = plan[0].item(), bool(plan[1]), int(plan[2])
    if stop:
        break
    full = prog > a.full
    tasks, weight, wrong, *batch = packer.batch(kind)
    C = KINDS[kind][0]
    batch = [x.to(dev) for x in batch]
    t, noisy = corrupt(batch[3], wrong.to(dev))
    loss, ce, bal = loss_fn(*batch, noisy, weight.to(dev))
    together(loss)
    lr = min(1, (step + 1) / 60) * min(1.0, (1 - prog) / a.decay)          # warm-up, constant, linear decay
    torch.nn.utils.clip_grad_norm_(opt.vec, 1.0)
    opt.step(a.lr * lr, a.alr * lr)
    for p in P.values():
        p.grad = None
    with torch.no_grad():
        keep = min(a.ema, max(0, step - 30) / (step + 1))                  # short memory at first
        torch._foreach_lerp_(list(ema.values()), [p.detach() for p in P.values()], 1 - keep)
    seen, step = seen + len(tasks) * WORLD, step + 1
    ce, hi = (ce * C).cpu(), (t > 0.9).cpu()                       # nats per canvas: comparable between lengths
    hist.append((ce.mean().item(), ce[hi].mean().item(), bal.item()))
    for name, pure, nats in zip(tasks, hi.tolist(), ce.tolist()):
        if pure:
            per_task.setdefault(name, []).append(nats)
    if RANK == 0 and (step % 50 == 0 or step < 4):
        mean = [round(sum(x for x in col if x == x) / max(1, sum(x == x for x in col)), 3) for col in zip(*hist)]
        log.append(dict(step=step, wall_s=round(before + time.time() - t0), cpu_s=round(time.process_time() - busy), canvases=seen, nats=mean[0], nats_noise=mean[1], balance=mean[2], lr=round(lr, 3)))
        print(json.dumps(log[-1]), flush=True)
        print("   ", {n: round(sum(l[-60:]) / len(l[-60:]), 2) for n, l in sorted(per_task.items()) if not n.startswith("think_")}, flush=True)
        hist = []
    if time.time() - saved > 300:
        saved = time.time()
        save()
save()
if WORLD > 1:                                                    # nobody leaves while the first process still writes
    dist.barrier()
    dist.destroy_process_group()
RANK or print("done:", step, "steps,", seen, "canvases,", round(before + time.time() - t0), "s")
