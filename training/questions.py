"""Writes held-out questions with what a right answer holds, for `canvasd bench --efforts`.

    python questions.py --per 10 --out ../tests/fixtures/held_out.json

Only tasks whose answers can be checked by a text they must hold, and that need neither tools nor thoughts."""
import argparse
import json
import random
from collections import defaultdict
import world

ap = argparse.ArgumentParser()
ap.add_argument("--per", type=int, default=10, help="questions per task")
ap.add_argument("--seed", type=int, default=2024)
ap.add_argument("--out", required=True)
a = ap.parse_args()
ROLE = dict(model="assistant", user="user", system="system")
r, tasks = random.Random(a.seed), defaultdict(list)
for _ in range(100000):
    s = world.sample(r)
    m, task = s["messages"], s["task"]
    plain = any(role not in ROLE for role, _ in m) or any("<|" in text for _, text in m)
    if plain or s["answer"] is None or task.startswith("think_") or len(tasks[task]) >= a.per or not world.unseen(s):
        continue
    any_of = [s["answer"]] if isinstance(s["answer"], str) else list(s["answer"])
    tasks[task].append(dict(task=task, messages=[dict(role=ROLE[role], content=text) for role, text in m[:-1]], any=any_of))
with open(a.out, "w") as f:
    rows = [json.dumps(q, ensure_ascii=False) for _, l in sorted(tasks.items()) for q in l]
    f.write("[\n" + ",\n".join(rows) + "\n]\n")
print({t: len(l) for t, l in sorted(tasks.items())})
