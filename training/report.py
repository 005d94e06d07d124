"""Writes the scores of eval.json into the documents that show them, between their <!-- scores … --> marks:

    python report.py eval.json README.md ../models/demo/README.md ../README.md

`table` is every line of it, `groups` the same in few lines; `can` and `mostly` are what is above and below the bar: 95 % exact, of sums 98 % right;
`all` is the whole in a sentence, `steps` what an answer takes; `seen` and `far` are what watch.py measured."""
import json
import re
import sys

NAMES = dict(
    sum="sums and differences from 0 to 99, by tens and ones", bigsum="sums of two such numbers above 99", capital="capitals of 41 countries, both ways",
    word="opposites, plurals and past tenses", world="animal sounds, colours, days, months, kinds of things",
    unit="units: meters to centimeters, weeks to days and the like, up to nine (times: up to five)", sort="sorting three numbers below 100",
    copy="repeating and reversing two to four words", count="counting up to 12, and down from 10", pick="the first or last word of a list",
    compare="the larger or smaller of two numbers", json="small JSON from facts", call="a tool call, when `get_weather`, `get_time` or `calculator` is offered",
    result="the answer after the tool's result", think="a thought in the thinking channel before the answer to a question, when thinking is on",
    story="stories: short, plain and long (one to three canvases)", very_long_story="very long stories (five canvases), right from the first word to the last", plain_story="going on with a story without a chat template",
    go_on="going on with a story that was cut off", poem="poems about an animal: a stanza, two, or a whole year (one to six canvases)", list="short lists",
    fact="24 definitions and five reasons", chat="who it is, how it works, small talk", hello="greetings, also by name", name="remembering a name from an earlier turn",
    follow='"And of Italy?" after a capital', dialogue="any of these at the end of a conversation of six to twelve turns", long_dialogue="any of these at the end of a conversation of 13 to 30 turns",
    persona="a name from the system prompt", one_word='"Answer in one word." (capitals, colours)', shout='"Answer in capitals." (capitals, greetings)',
    pirate='"Talk like a pirate."', plain_fact='plain text: "The capital of France is", "Monday, Tuesday,"', unknown="saying that it does not know",
    hardsum="saying that a sum is too hard")
GROUPS = {
    "sums and differences to 99": ["sum"], "sums above 99": ["bigsum"], "capitals": ["capital", "follow"], "opposites, plurals, past tenses": ["word"], "units": ["unit"], "kinds, colours, days, definitions": ["world", "fact"],
    "sorting, comparing, counting": ["sort", "compare", "count"], "repeating, reversing, picking words": ["copy", "pick"], "lists": ["list"], "JSON from facts": ["json"], "tool calls and answers from results": ["call", "result"],
    "thinking before an answer": ["think"], "stories": ["story"], "very long stories": ["very_long_story"], "going on with a text": ["plain_story", "go_on", "plain_fact"], "poems": ["poem"],
    "system prompts": ["persona", "one_word", "shout", "pirate"], "greetings and itself": ["hello", "chat", "name"], "long conversations": ["dialogue", "long_dialogue"], "saying that it cannot": ["unknown", "hardsum"]}
BAR, SUMS = 0.95, 0.98
SUM_TASKS = ("sum", "bigsum")

whole = json.load(open(sys.argv[1]))
ours, theirs = whole["canvasd"]["scores"], whole["transformers"]["scores"]
percent = lambda x: f"{100 * x:.1f}".removesuffix(".0") + " %"
good = lambda task: ours[task]["right"] >= SUMS if task in SUM_TASKS else ours[task]["exact"] >= BAR


def line(task):
    x = ours[task]
    if task in SUM_TASKS:
        return f"* {NAMES[task]}: {percent(x['right'])} right ({x['n']} questions; {percent(x['exact'])} with every step of the working letter for letter)"
    return f"* {NAMES[task]}: {percent(x['exact'])}"


def table():
    yield "| task | canvasd: n | exact | well formed | median steps per canvas | transformers: n | exact | steps in which the draft changes |\n|---|---|---|---|---|---|---|---|"
    for task, x in ours.items():
        y = theirs.get(task)
        reference = f"{y['n']} | {percent(y['exact'])} | {y['visible']:.1f}" if y else "– | – | –"
        yield f"| {'all' if task == 'ALL' else task} | {x['n']} | {percent(x['exact'])} | {percent(x['well_formed'])} | {x['median_steps']:g} | {reference} |"


def groups():
    yield "| asked for | exact | of | asked for | exact | of |\n|---|---|---|---|---|---|"
    cells = []
    for name, members in GROUPS.items():
        n = sum(ours[t]["n"] for t in members)
        cells.append(f"{name} | {percent(sum(ours[t]['exact'] * ours[t]['n'] for t in members) / n)} | {n}")
    half = len(cells) // 2                                       # there is an even number of them
    for left, right in zip(cells[:half], cells[half:]):
        yield f"| {left} | {right} |"


def in_all():
    x, y = ours["ALL"], theirs["ALL"]
    return f"Of {x['n']:,} questions it answers {percent(x['exact'])} exactly as taught in canvasd, and of {y['n']:,} {percent(y['exact'])} in the reference implementation."


def steps():
    return f"Median steps per canvas: {ours['ALL']['median_steps']:g} over all, {ours['story']['median_steps']:g} for stories, whose draft changes in {theirs['story']['visible']:.1f} steps per canvas on average."


def seen():
    story, short = (whole["watched"]["settling"][kind] for kind in ("story", "short"))
    return (f"Of {story['n']} stories asked for over HTTP {story['at_least_4']} change visibly in at least four steps (median {story['visible_steps']:g}, in the first canvas {story['visible_steps_first_canvas']:g}). "
            f"The first text comes after {short['first_text_s'][0]:g} s for short answers and after {story['first_text_s'][0]:g} s for stories (medians; the slowest {short['first_text_s'][1]:g} and {story['first_text_s'][1]:g} s).")


def far():
    return "Questions answered rightly at the end of a conversation of about so many tokens: " + ", ".join(f"{tokens:,}: {right} of {n}" for tokens, right, n in whole["watched"]["far"]) + "."


tasks = [t for t in NAMES if t in ours]
assert set(ours) - {"ALL"} == set(tasks), "a task without a name"
assert sorted(sum(GROUPS.values(), [])) == sorted(tasks), "a task in no group, or in two"
text = dict(table="\n".join(table()), groups="\n".join(groups()), all=in_all(), steps=steps(), seen=seen(), far=far(), can="\n".join(line(t) for t in tasks if good(t)), mostly="\n".join(line(t) for t in tasks if not good(t)))
for path in sys.argv[2:]:
    document = open(path).read()
    document = re.sub(r"(<!-- scores (\w+) -->\n).*?(<!-- end -->)", lambda m: m[1] + text[m[2]] + "\n" + m[3], document, flags=re.S)
    open(path, "w").write(document)
print("can:", sum(map(good, tasks)), "of", len(tasks))
