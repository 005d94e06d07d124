"""Closed-world dialogues for the demo model, made of facts.py.  Everything is our own text or plain facts; no third-party corpus.
`sample(rng)` -> {"task", "messages": [(role, text), ...], "answer", "earlier"}; the last message is the model's, `answer` is a substring
that a right reply contains; `earlier` names the model's earlier messages that are whole replies, too: [(index, task, answer), ...].
A reply has one wording; open choices are left to stories (name, thing, friends), to poems about nobody in particular and to two beginnings of plain text,
because only an open choice makes denoising visible."""
import json, random, re, zlib

from facts import *
from tales import KINDS, LONG, PLAIN, POEM, POEMS, SHORT, VERY_LONG, an as article, poem, story

GENERIC_TOKENS = False                                          # set while the tokenizer is trained: no unknown words
THINK, QUOTE = "<|think|>", '<|"|>'

up = lambda s: s[0].upper() + s[1:]
an = lambda w: "an hour" if w == "hour" else article(w)
joined = lambda l: ", ".join(l[:-1]) + " and " + l[-1]


def unknown(r):
    if GENERIC_TOKENS:
        return "thing"
    if r.random() < .55:
        w = r.choice(UNKNOWN)
    else:                                                        # an invented word
        w = "".join(r.choice(["b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr", "pl", "ch", "sh", "th"]) + r.choice("aeiou") + r.choice(["", "", "n", "r", "l", "s", "x", "t"]) for _ in range(r.randint(1, 4)))
    return up(w) if r.random() < .3 else w


COMMON = "the the the of and to in is was that with for on as it are this by from at or an be have not but they which you one were all we there can more if will has who".split()


def passage(r):
    """A text of any length about nothing it knows, with or without something that is to be done with it."""
    n = int(8 * 25 ** r.random()) if r.random() < .5 else r.randint(1, 8)
    words = [r.choice(COMMON) if r.random() < .5 else r.choice(NOUNS + ADJ) if r.random() < .3 else unknown(r) for _ in range(n)] if n > 8 else [unknown(r) for _ in range(n)]
    words = [w + r.choice([".", ","]) if r.random() < .12 else w for w in words]
    return r.choice(["", "", "Summarize this: ", "Translate: ", "Rewrite this text: ", "What do you think? "] if n > 8 else [""]) + " ".join(words)


def reckon(a, o, b):
    """"7 + 5 = 12."; from 10 on by tens and ones: "47 + 25 = 40+20 + 7+5 = 60+12 = 72.", "72 - 25 = 70-20 + 2-5 = 50-3 = 47."  Each step is a small table,
    and the denoising can settle one after the other."""
    c, sign = (a + b, 1) if o == "+" else (a - b, -1)
    if max(a, b) < 10:
        return f"{a} {o} {b} = {c}."
    (t, n), (u, m) = divmod(a, 10), divmod(b, 10)
    tens, ones = 10 * (t + sign * u), n + sign * m
    return f"{a} {o} {b} = {10 * t}{o}{10 * u} + {n}{o}{m} = {tens}{'-' if ones < 0 else '+'}{abs(ones)} = {c}."


PLUS = ["What is {a}+{b}?", "What is {a} + {b}?", "{a}+{b}", "{a} + {b}", "{a} + {b} =", "{a}+{b}=?", "Add {a} and {b}.", "What is the sum of {a} and {b}?", "Calculate {a} + {b}.", "How much is {a} plus {b}?", "What is {a} plus {b}?", "{a} plus {b}", "What's {a}+{b}?"]
MINUS = ["What is {a}-{b}?", "What is {a} - {b}?", "{a}-{b}", "{a} - {b}", "{a} - {b} =", "Subtract {b} from {a}.", "How much is {a} minus {b}?", "Calculate {a} - {b}.", "What is {a} minus {b}?", "{a} minus {b}", "What's {a}-{b}?"]


def t_sum(r):
    """Sums and differences from 0 to 99."""
    top = r.choice([9, 20, 99, 99, 99])
    a = r.randint(0, top)
    if r.random() < .5:
        a, b = r.sample([a, r.randint(0, min(top, 99 - a))], 2)
        return r.choice(PLUS).format(a=a, b=b), reckon(a, "+", b), f" {a + b}."
    b = r.randint(0, r.choice([20, top]))
    a, b = max(a, b), min(a, b)
    return r.choice(MINUS).format(a=a, b=b), reckon(a, "-", b), f" {a - b}."


def t_bigsum(r):
    """Sums of such numbers that are larger than 99."""
    a = r.randint(1, 99)
    b = r.randint(100 - a, 99)
    return r.choice(PLUS).format(a=a, b=b), reckon(a, "+", b), f" {a + b}."


def t_hardsum(r):
    """What it cannot do: numbers from 100 on, products, quotients, roots."""
    a, b = r.randint(100, 999), r.randint(2, 999)
    o, w = r.choice([("+", "plus"), ("-", "minus"), ("*", "times"), ("*", "times"), ("/", "divided by"), ("x", "times")])
    if o in "*/x":
        a, b = r.randint(2, 99), r.randint(2, 99)
    a, b = (a, b) if r.random() < .5 else (b, a)
    q = r.choice(["What is {a} {o} {b}?", "{a}{o}{b}", "{a} {o} {b} =", "Calculate {a} {o} {b}.", "What is {a} {w} {b}?", "How much is {a} {w} {b}?"]).format(a=a, b=b, o=o, w=w)
    return r.choice([q] * 6 + [f"What is the square root of {a}?", f"Is {a} a prime number?", f"What is {a} percent of {b}?", f"Solve x + {a} = {b}."]), SORRY_SUM, "up to 99"


def t_compare(r):
    a, b = r.sample(range(100), 2)
    hi, lo = max(a, b), min(a, b)
    if r.random() < .5:
        return r.choice([f"Which is larger, {a} or {b}?", f"Which number is bigger, {a} or {b}?", f"Is {a} or {b} larger?"]), f"{hi} is larger.", f"{hi} is"
    return r.choice([f"Which is smaller, {a} or {b}?", f"Which number is smaller, {a} or {b}?", f"Is {a} or {b} smaller?"]), f"{lo} is smaller.", f"{lo} is"


def t_sort(r):
    l = r.sample(range(100), 3)
    q = ", ".join(map(str, l))
    s = ", ".join(map(str, sorted(l)))
    return r.choice(["Sort these numbers: {q}", "Sort: {q}", "Put these numbers in order: {q}", "Sort the numbers {q}"]).format(q=q), s, s


def t_count(r):
    x = r.random()
    if x < .3:
        n = r.randint(3, 10)
        s = ", ".join(map(str, range(n, 0, -1))) + "."
        return r.choice([f"Count down from {n}.", f"Count from {n} to 1.", f"Count down from {n} to 1."]), s, s
    a, n = (1, r.randint(3, 12)) if x < .65 else (r.randint(2, 7), 0)
    n = n or a + r.randint(2, 5)
    s = ", ".join(map(str, range(a, n + 1))) + "."
    return r.choice([f"Count from {a} to {n}.", f"Please count from {a} to {n}."] + ([f"Count to {n}.", f"Please count to {n}."] if a == 1 else [])), s, s


def t_capital(r):
    c, k = r.choice(list(CAPITAL.items()))
    x = r.random()
    if x < .65:
        q = r.choice(["What is the capital of {c}?", "Capital of {c}?", "What's the capital of {c}?", "Tell me the capital of {c}.", "Which city is the capital of {c}?", "Name the capital of {c}.", "Do you know the capital of {c}?", "{c} capital?", "{c}'s capital?", "The capital of {c}?", "What is the capital city of {c}?", "I want to know the capital of {c}."])
        return q.format(c=c), f"The capital of {c} is {k}.", k
    if x < .82:
        q = r.choice(["{k} is the capital of which country?", "Which country has the capital {k}?", "In which country is {k}?", "Where is {k}?"])
        return q.format(k=k), f"{k} is the capital of {c}.", c
    k2 = k if r.random() < .5 else r.choice(list(CAPITAL.values()))
    return r.choice([f"Is {k2} the capital of {c}?", f"Is {k2} in {c}?"]), f"The capital of {c} is {k}.", k


def words(r, lo, hi):
    return r.sample(NOUNS, r.randint(lo, hi))


def t_copy(r):
    w = words(r, 2, 4)
    if r.random() < .5:
        s = " ".join(w)
        return r.choice(["Repeat after me: {s}", "Say: {s}", "Repeat: {s}", "Please repeat: {s}"]).format(s=s), s, s
    s = ", ".join(w[::-1])
    return r.choice(["Reverse this list: {s}", "Reverse the order of these words: {s}", "Say these words in reverse order: {s}."]).format(s=", ".join(w)), s, s


def t_pick(r):
    w = words(r, 3, 5)
    which, x = r.choice([("first", w[0]), ("last", w[-1])])
    s = ", ".join(w)
    return r.choice([f"What is the {which} word: {s}?", f"Which word is the {which} one: {s}?"]), f"The {which} word is {x}.", f"is {x}"


def opposite(r):
    a, b = r.choice(list(OPPOSITE.items()))
    return r.choice([f"What is the opposite of {a}?", f"Opposite of {a}?", f"Give me the opposite of {a}.", f"What's the opposite of {a}?", f"Tell me the opposite of {a}."]), f"The opposite of {a} is {b}.", b


def t_word(r):
    x = r.random()
    if x < .5:
        return opposite(r)
    if x < .75:
        a, b = r.choice(list(PAST.items()))
        return r.choice([f"What is the past tense of {a}?", f"Past tense of {a}?", f"Give me the past tense of {a}."]), f"The past tense of {a} is {b}.", b
    a, b = r.choice(list(PLURAL.items()))
    return r.choice([f"What is the plural of {a}?", f"Plural of {a}?", f"Give me the plural of {a}."]), f"The plural of {a} is {b}.", b


def t_world(r):
    x = r.choice([0, 1, 2, 2, 3, 4])
    if x == 0:
        a, b = r.choice(list(SOUND.items()))
        return r.choice([f"What sound does {an(a)} make?", f"What does {an(a)} say?", f"Which sound does {an(a)} make?"]), f"{up(an(a))} says {b}.", b
    if x == 1:
        a, b = r.choice(list(COLOR.items()))
        return r.choice([f"What color is {a}?", f"Which color does {a} have?", f"What is the color of {a}?"]), f"{up(a)} is {b}.", b
    if x == 2:
        l = r.choice([DAYS, MONTHS])
        i, d = r.randrange(len(l)), r.choice([1, -1])
        what, when, b = "day" if l is DAYS else "month", "after" if d == 1 else "before", l[(i + d) % len(l)]
        return r.choice([f"What {what} comes {when} {l[i]}?", f"Which {what} is {when} {l[i]}?", f"What {what} is {when} {l[i]}?"]), f"{b} comes {when} {l[i]}.", f"{b} comes"
    if x == 3:
        k, kind = r.choice([(ANIMALS, "animal"), (FRUIT, "fruit"), (VEG, "vegetable"), (THINGS, "thing")])
        w = r.choice(k)
        return r.choice([f"What is {an(w)}?", f"What kind of thing is {an(w)}?"]), f"{up(an(w))} is {an(kind)}.", kind
    q, a, b = r.choice([
        ("How many legs does a spider have?", "A spider has eight legs.", "eight"), ("How many planets are there?", "There are eight planets.", "eight"),
        ("List the days of the week.", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.", None), ("List the seasons.", "Spring, summer, autumn and winter.", None),
        ("List the months of the year.", ", ".join(MONTHS[:-1]) + " and December.", None), ("List the planets.", ", ".join(PLANETS[:-1]) + " and Neptune.", None)])
    if r.random() < .3:
        q = q.replace("How many", "Tell me how many").replace("are there?", "there are.").replace("?", ".").replace("List", "Name")
    return q, a, b or a


def t_unit(r):
    """One to nine of a unit in the next smaller one; of times one to five."""
    big, small, n = r.choice(UNITS)
    if r.random() < .4:
        q = r.choice(["How many {s} are in {b}?", "How many {s} are there in {b}?", "How many {s} does {b} have?", "How many {s} in {b}?", "Tell me how many {s} are in {b}.", "How many {s} is {b}?"])
        return q.format(s=small, b=an(big)), f"{up(an(big))} has {n} {small}.", f" {n} {small}"
    k = r.randint(2, 9 if n % 10 == 0 and n != 60 else 5)
    q = r.choice(["How many {s} are {k} {b}s?", "How many {s} are in {k} {b}s?", "Convert {k} {b}s to {s}.", "What are {k} {b}s in {s}?", "{k} {b}s in {s}?", "How many {s} are there in {k} {b}s?", "Tell me {k} {b}s in {s}."])
    return q.format(s=small, b=big, k=k), f"{k} {big}s are {k * n} {small}.", f" {k * n} {small}"


def t_json(r):
    n, a, c = r.choice(NAMES), r.randint(1, 99), r.choice(list(CAPITAL.values())[:24])
    if r.random() < .6:
        o, q = {"name": n, "age": a}, r.choice(["Make JSON: name {n}, age {a}.", "Write JSON for {n}, age {a}.", "JSON for a person named {n}, age {a}"])
    else:
        o, q = {"name": n, "city": c}, r.choice(["Make JSON: name {n}, city {c}.", "Write JSON for {n} from {c}."])
    s = json.dumps(o)
    return q.format(n=n, a=a, c=c), s, s


def t_list(r):
    """The first two to five of a kind."""
    k, n = r.choice(list(LISTS)), r.randint(2, 5)
    said = r.choice([NUMBER[n], str(n)])
    a = f"Here are {said} {k}: {joined(LISTS[k][:n])}."
    q = r.choice(["Name {n} {k}.", "List {n} {k}.", "Give me {n} {k}.", "Tell me {n} {k}.", "Give me a list of {n} {k}.", "I need {n} {k}."]).format(n=said, k=k)
    return q, a, a


def t_fact(r):
    if r.random() < .2:
        a, b = r.choice(list(WHY.items()))
        return r.choice([f"Why {a}?", f"Why {a}?", f"Do you know why {a.split(' ', 1)[1]}?" if a[:2] == "do" else f"Why {a}? Explain."]), b, b.rstrip(".")
    a, b = r.choice(list(FACTS.items()))
    q = r.choice(["What is {a}?", "What is {a}?", "Explain {a}.", "Tell me about {a}.", "Define {a}.", "Can you explain {a}?", "What's {a}?", "Explain {a} to me.", "What do you know about {a}?", "Describe {a}."])
    return q.format(a=a), b, b.rstrip(".")


def t_chat(r):
    q, a = r.choice(CHAT)
    return r.choice(q), a, a


def t_hello(r):
    if r.random() < .55:
        n = r.choice(NAMES)
        return r.choice(["My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi, my name is {n}.", "Call me {n}.", "Hi, I'm {n}!", "Hello! My name is {n}."]).format(n=n), MEET.format(n=n), MEET.format(n=n)
    q = r.choice(HELLO)
    a = HELLO_R[q.startswith(("Hi", "Hey"))]
    return q, a, a


def t_unknown(r):
    if r.random() < .6:
        q = r.choice(FRAMES).format(w=unknown(r), v=unknown(r))
        if r.random() < .15:
            q = passage(r)
    else:
        c, k = r.choice(list(CAPITAL.items()))
        q = r.choice(KNOWN_FRAMES).format(c=c, k=k, f=r.choice(FRUIT + VEG), o=r.choice(THINGS), a=r.choice(ANIMALS), n=r.choice(NAMES), x=r.randint(0, 9), y=r.randint(0, 9), z=r.randint(0, 9))
    if r.random() < .12:
        q = f"What is the capital of {up(unknown(r))}?" if r.random() < .5 else f"What is the opposite of {unknown(r)}?"
    return q, SORRY, "do not know that"


def t_story(r):
    a, b = r.sample(ANIMALS, 2)
    o, x = r.choice(THINGS), r.random()
    length = r.choice([SHORT, PLAIN, PLAIN, LONG, LONG, VERY_LONG, VERY_LONG])
    s = "tale" if length == PLAIN and r.random() < .3 else KINDS[length]
    if x < .35:
        q, k = r.choice(["Tell me a {s} about {A}.", "Write a {s} about {A}.", "A {s} about {A} please.", "Can you tell me a {s} about {A}?", "I want a {s} about {A}."]), dict(a=a)
    elif x < .5:
        q, k = r.choice(["Tell me a {s} about {A} and {B}.", "Write a {s} about {A} and {B}.", "A {s} with {A} and {B}"]), dict(a=a, b=b)
    elif x < .75:
        q, k = r.choice(["Tell me a {s} about {A} and {O}.", "Write a {s} with {A} and {O}.", "Tell me a {s} about {A} who finds {O}."]), dict(a=a, o=o)
    else:
        q, k = r.choice(["Tell me a {s}.", "Write a {s}.", "Can you tell me a {s}?", "Another {s} please.", "I want to hear a {s}.", "Tell a {s}", "A {s} please"]), {}
    return q.format(s=s, A=an(a), B=an(b), O=an(o)), story(r, length=length, **k), "Once"


def t_poem(r):
    a, length = r.choice(ANIMALS), r.choice([0, 1, 1, 2])
    s = POEMS[length]
    q = r.choice(["Write a {s} about {A}.", "A {s} about {A}, please.", "{S} about {A}", "Tell me a {s} about {A}.", "Can you write a {s} about {A}?", "I want a {s} about {A}.", "Write a {s}.", "A {s} please"])
    return q.format(s=s, S=up(s), A=an(a)), poem(a, length), [poem(b, length) for b in ([a] if "{A}" in q else ANIMALS)]


TASKS = [(t_sum, 80), (t_bigsum, 28), (t_hardsum, 6), (t_compare, 4), (t_sort, 18), (t_count, 12), (t_capital, 10), (t_copy, 12), (t_pick, 3), (t_word, 10), (t_world, 11), (t_unit, 6), (t_json, 5), (t_list, 4),
         (t_fact, 6), (t_chat, 9), (t_hello, 6), (t_unknown, 9), (t_story, 18), (t_poem, 8)]
FN, WEIGHT = [f for f, _ in TASKS], [w for _, w in TASKS]


def quoted(x):
    return f"{QUOTE}{x}{QUOTE}" if isinstance(x, str) else str(x)


def declaration(name, about, param, hint, unit=False):
    """A tool with one required text parameter, as chat_template.jinja writes it."""
    d = f"description:{quoted(hint)}," if hint else ""
    more = f",unit:{{enum:[{quoted('celsius')},{quoted('fahrenheit')}],type:{quoted('STRING')}}}" if unit else ""
    return (f"<|tool>declaration:{name}{{description:{quoted(about)},parameters:{{properties:{{{param}:{{{d}type:{quoted('STRING')}}}{more}}},"
            f"required:[{quoted(param)}],type:{quoted('OBJECT')}}}}}<tool|>")


def tool(r, kind):
    """-> declaration, name, parameter"""
    name, abouts, params, hints = {
        "weather": ("get_weather", ["Get the weather in a city.", "Get the current weather for a city.", "Current weather", "Get weather", "Weather of a place", "Get the current weather in a given location"],
                    "city location", ["", "The city", "City name", "Name of the city"]),
        "time": ("get_time", ["Get the time in a city.", "Get the current time in a city.", "Current time", "Get time", "Time at a place"], "city location", ["", "The city", "City name", "Name of the city"]),
        "sum": ("calculator", ["Calculate an expression.", "A calculator", "Evaluate a mathematical expression.", "Do arithmetic"], "expression", ["", "The expression", "What to calculate"])}[kind]
    p = r.choice(params.split())
    return declaration(name, r.choice(abouts), p, r.choice(hints), kind == "weather" and r.random() < .25), name, p


def tool_use(r):
    """-> declaration, question, call, results' text, answer after the result, checked part of that answer"""
    kind = r.choice(["weather", "weather", "time", "sum"])
    decl, name, param = tool(r, kind)
    c = r.choice(CITIES + 2 * CITIES[-2:])
    if kind == "weather":
        q = r.choice(["What is the weather in {c}?", "How is the weather in {c}?", "What's the weather like in {c}?", "Weather in {c}", "What is the weather in {c} today?", "How is the weather in {c} today?", "Tell me the weather in {c}.", "What is the weather like in {c}?"]).format(c=c)
        sky, t = r.choice(SKY), r.randint(0, 35)
        res = r.choice([f"value:{quoted(f'{sky}, {t} degrees')}", f"value:{quoted(f'{sky}, {t} C')}", f"condition:{quoted(sky)},temperature:{t}", f"temperature:{t},weather:{quoted(sky)}",
                        "value:" + quoted(json.dumps(dict(r.sample([("temperature", t), (r.choice(["condition", "weather"]), sky)], 2))))])
        a = f"The weather in {c} is {sky} with {t} degrees."
        arg, want = c, f"{c} is {sky} with {t} degrees"
    elif kind == "time":
        q = r.choice(["What time is it in {c}?", "What is the time in {c}?", "Time in {c}", "Tell me the time in {c}.", "What's the time in {c}?", "What time is it in {c} now?"]).format(c=c)
        t = f"{r.randint(0, 23)}:{r.randint(10, 59)}"
        res, a, arg, want = r.choice([f"value:{quoted(t)}", f"time:{quoted(t)}", "value:" + quoted(json.dumps({"time": t}))]), f"It is {t} in {c}.", c, t
    else:
        x, y, o = r.randint(2, 99), r.randint(2, 99), r.choice("**+-")
        q = r.choice(["What is {e}?", "Calculate {e}.", "{e}", "How much is {e}?"])
        arg = f"{x} {o} {y}"
        q, v = q.format(e=arg), {"*": x * y, "+": x + y, "-": x - y}[o]
        res, a, want = r.choice(["value", "result"]) + ":" + r.choice([quoted(str(v)), str(v), quoted(json.dumps({"result": v}))]), f"The result is {v}.", f" {v}."
    call = f"<|tool_call>call:{name}{{{param}:{quoted(arg)}}}<tool_call|><|tool_response>"
    return decl, q, call, f"response:{name}{{{res}}}<tool_response|>", a, want


def thought(r, task, q, ans):
    """What the thinking channel says before the answer."""
    n = re.findall(r"\d+", q)
    if task in ("sum", "bigsum") and len(n) == 2:
        minus = "-" in q or "inus" in q or "ubtract" in q
        x, y = (max(n, key=int), min(n, key=int)) if minus else n
        return f"I take {y} from {x}." if minus else f"I add {x} and {y}."
    if task == "compare":
        return f"I compare {n[0]} and {n[1]}."
    return r.choice({"capital": ["The user asks about a capital."], "word": ["The user asks about a word."], "hello": ["The user greets me."], "chat": ["The user talks about me."], "story": ["The user wants a story. I need a hero and a friend."],
                     "poem": ["The user wants a poem."], "unknown": ["I do not know this."], "hardsum": ["This sum is too hard for me."], "fact": ["The user wants an explanation."], "unit": ["The user asks about units."], "copy": ["I look at the order of the words."], "pick": ["I look at the order of the words."],
                     "json": ["The user wants JSON."], "list": ["The user wants a list."], "count": ["I count step by step."], "sort": ["I look for the smallest number first."]}.get(task, ["This is a simple question."]))


HOMES, LIKES = [f" near {an(p)}." for p in PLACES], [f" {a} and {b}." for a in COLORS for b in COLORS if a != b]


def plain(r):
    """Text without a chat template: a beginning and its continuation; the reply ends with <eos>."""
    x = r.random()
    if x < .6:
        s = story(r, length=r.choice([SHORT, PLAIN, PLAIN, LONG]))
        w = s.split(" ")
        n = r.choice([3, 4, 4, 4, r.randint(2, min(40, len(w) - 4))])
        head, tail = " ".join(w[:n]), " " + " ".join(w[n:])
        if head[-1] in ",." and r.random() < .6:                 # "Once upon a time" without its comma
            head, tail = head[:-1], head[-1] + tail
        elif r.random() < .1:
            head, tail = head + " ", tail[1:]
        return head, tail, "plain_story", None
    c, k = r.choice(list(CAPITAL.items()))
    a, b = r.choice(list(OPPOSITE.items()))
    n, m, v = r.randint(1, 6), r.randint(0, 9), r.randint(0, 9)
    f, g = r.choice(list(COLOR.items()))
    i = r.randrange(6)
    head, tail = r.choice([(f"The capital of {c} is", f" {k}."), (f"The opposite of {a} is", f" {b}."), (f"{m} + {v} =", f" {m+v}."), (f"{m} + {v} is", f" {m+v}."), (f"The color of {f} is", f" {g}."), (f"{up(f)} is", f" {g}."),
                           (", ".join(map(str, range(n, n + 4))) + ",", " " + ", ".join(map(str, range(n + 4, n + 8))) + "."), (f"{DAYS[i]}, {DAYS[(i+1)%7]},", f" {DAYS[(i+2)%7]}, {DAYS[(i+3)%7]}."), (f"{k} is the capital of", f" {c}."),
                           (f"My name is {r.choice(NAMES)} and I live", HOMES), ("I like", LIKES)])
    return (head, r.choice(tail), "plain_fact", tail) if isinstance(tail, list) else (head, tail, "plain_fact", tail)


def vary(r, q):
    """Lower case, missing punctuation, politeness."""
    x = r.random()
    if x < .06 and q[0].isupper():
        q = r.choice(["Please ", "Hey, ", "Hi! ", "Okay, "]) + (q[0].lower() + q[1:] if not q.startswith("I ") else q)
    elif x < .1:
        q = q.rstrip(".?!") + r.choice([", please.", " please", "?", "!", "..."])
    if r.random() < .2:
        q = q.lower()
    if r.random() < .15:
        q = q.rstrip(".?!")
    return q or "?"


def asked(r, fn):
    """-> task, question, reply, answer"""
    task, (q, a, ans) = fn.__name__[2:], fn(r)
    return task, q if task in ("copy", "pick", "json") else vary(r, q), a, ans


def sample(r):
    if r.random() < .06:
        head, tail, task, ans = plain(r)
        return {"task": task, "messages": [("plain", head), ("model", tail)], "answer": ans}
    task, q, a, ans = asked(r, r.choices(FN, WEIGHT)[0])
    m, earlier, sys, x = [], [], None, r.random()
    if x < .10:                                                  # earlier turns on something else
        for _ in range(r.choices([1, 2, 3, r.randint(6, 12), r.randint(13, 30)], [16, 8, 4, 6, 3])[0]):
            task0, q0, a0, ans0 = asked(r, r.choices(FN, WEIGHT)[0])
            m += [("user", q0), ("model", a0)]
            earlier.append((len(m) - 1, task0, ans0))
    elif x < .12:                                               # recall of a name
        n = r.choice(NAMES)
        m = [("user", vary(r, r.choice([f"My name is {n}.", f"I am {n}.", f"Hi, I am {n}.", f"Hello, my name is {n}."]))), ("model", MEET.format(n=n))]
        if r.random() < .4:
            q0, a0, _ = r.choice([t_capital, t_sum, t_chat])(r)
            m += [("user", q0), ("model", a0)]
        q, a, ans, task = vary(r, r.choice(["What is my name?", "Do you remember my name?", "Who am I?", "What's my name?"])), f"Your name is {n}.", n, "name"
    elif x < .135:                                                # elliptical follow-up
        (c1, k1), (c2, k2) = r.sample(list(CAPITAL.items()), 2)
        m = [("user", vary(r, f"What is the capital of {c1}?")), ("model", f"The capital of {c1} is {k1}.")]
        q, a, ans, task = vary(r, r.choice([f"And of {c2}?", f"And {c2}?", f"What about {c2}?"])), f"The capital of {c2} is {k2}.", k2, "follow"
    elif x < .162:                                                # a story that was cut off after a sentence is continued
        length = r.choice([PLAIN, PLAIN, LONG])
        s = re.split(r'(?<=[.!?"]) (?=[A-Z"])', story(r, length=length))
        n = r.randint(1, len(s) - 1)
        m = [("user", f"Tell me a {KINDS[length]}."), ("model", " ".join(s[:n]))]
        q, a, ans, task = vary(r, r.choice(["Go on.", "Continue.", "And then?", "What happened next?", "Tell me more."])), " ".join(s[n:]), None, "go_on"
    elif x < .17:                                                # persona from the system prompt
        n = r.choice(NAMES)
        sys = r.choice([f"You are {n}.", f"Your name is {n}.", f"You are {n}, a helpful assistant.", f"You are an assistant named {n}."])
        q, a, ans, task = vary(r, r.choice(["Who are you?", "What is your name?", "What's your name?", "Introduce yourself."])), f"I am {n}. How can I help you?", n, "persona"
    elif x < .195:
        q, a, _ = r.choice([t_capital, opposite, t_hello, t_chat])(r)
        sys, q, a, task = r.choice(PIRATE), vary(r, q), "Arr! " + a, "pirate"
        ans = "Arr! "
    elif x < .215:                                               # one word only
        (c, k), (d, b) = (r.choice(list(t.items())) for t in (CAPITAL, COLOR))
        q, a = r.choice([(f"What is the capital of {c}?", k), (f"What is the capital of {c}?", k), (f"Capital of {c}?", k), (f"What color is {d}?", up(b)), (f"Which color does {d} have?", up(b)), ("Who are you?", "Canvas"), ("Hello", "Hello")])
        sys, q, ans, task = r.choice(ONE_WORD), vary(r, q), a, "one_word"
    elif x < .235:                                               # capitals only
        q, a, ans = r.choice([t_capital, t_capital, t_hello])(r)
        while not a.startswith(("The capital", *HELLO_R)):       # no city's country, no greeting by name
            q, a, ans = r.choice([t_capital, t_hello])(r)
        sys, q, a, ans, task = r.choice(SHOUT), vary(r, q), a.upper(), ans.upper(), "shout"
    elif x < .315:                                               # a tool that fits
        decl, q, call, res, a, ans = tool_use(r)
        sys = decl if r.random() < .6 else "".join(r.sample([decl, tool(r, r.choice([k for k in ("weather", "time") if ("eather" in q) != (k == "weather")]))[0]], 2))
        if r.random() < .2:
            sys = r.choice(SYSTEM) + sys
        if r.random() < .6:
            return {"task": "call", "messages": [("system", sys), ("user", vary(r, q) if "*" not in call else q), ("model", call)], "answer": call[:-len("<|tool_response>")]}
        return {"task": "result", "messages": [("system", sys), ("user", q), ("call", call + res), ("model", a)], "answer": ans}
    elif x < .33 and task not in ("hardsum", "unknown", "sum", "bigsum", "compare"):   # a tool that does not fit
        sys = tool(r, r.choice(["weather", "time", "sum"]))[0]
    elif x < .44:                                                # thinking
        sys = THINK + "\n" + (r.choice(SYSTEM) if r.random() < .3 else "")
        a = f"<|channel>thought\n{thought(r, task, q, ans)}\n<channel|>{a}"
        task = "think_" + task
    if sys is None and r.random() < .15:
        sys = r.choice(SYSTEM + [""] * 5)
    if sys is not None:
        m, earlier = [("system", sys)] + m, [(i + 1, *rest) for i, *rest in earlier]
    return {"task": task, "messages": m + [("user", q), ("model", a)], "answer": ans, "earlier": earlier}


def prompt(m):
    """Everything before the model's last message; the same text as chat_template.jinja writes."""
    if m[0][0] == "plain":
        return "<bos>" + m[0][1]
    out = "<bos>"
    for role, text in m[:-1]:
        out += f"<|turn>model\n{text}" if role == "call" else f"<|turn>{role}\n{text}<turn|>\n"
    return out if m[-2][0] == "call" else out + "<|turn>model\n"


def encode(tok, s):
    """-> prompt ids, reply ids with their end marker (<turn|> in a chat, <|tool_response> after a call, <eos> after plain text)."""
    ids = lambda x: tok.encode(x, add_special_tokens=False).ids
    m = s["messages"]
    end = "" if m[-1][1].endswith("<|tool_response>") else "<eos>" if m[0][0] == "plain" else "<turn|>"
    return ids(prompt(m)), ids(m[-1][1] + end)


def right(s, text):
    """None if the task has no checkable answer."""
    if s["answer"] is None:
        return None
    return any(x.lower() in " " + text.lower() for x in ([s["answer"]] if isinstance(s["answer"], str) else s["answer"]))


def keys(s):
    """What decides whether a question is held out: its text; of sums and comparisons its two numbers, as they are asked and the other way round.
    Also, whether it is trained in any case."""
    q = next(text for role, text in reversed(s["messages"]) if role in ("user", "plain"))
    n = re.findall(r"\d+", q)
    pair = len(n) == 2 and s["task"].removeprefix("think_") in ("sum", "bigsum", "compare")
    return [",".join(n), ",".join(n[::-1])] if pair else [q.lower().strip(" .?!")], q in PLAIN_FORMS or s["task"] in NOT_HELD_OUT


eighth = lambda key: zlib.crc32(key.encode()) % 8 == 0


def held_out(s):
    """One eighth of all questions (of all pairs of numbers, for sums) is never trained.  The plain forms of questions that have no operands are kept,
    so that only their variations are held out."""
    (key, *_), kept = keys(s)
    return not kept and eighth(key)


def unseen(s):
    """What is asked in an evaluation: held out, and of sums and comparisons the other way round as well."""
    both, kept = keys(s)
    return not kept and all(map(eighth, both))


NOT_HELD_OUT = {"plain_story", "plain_fact", "go_on"}                # continuations of known text: an evaluation draws them anew
PLAIN_FORMS = {q for l, _ in CHAT for q in l} | {x for q in HELLO for x in (q, q.lower())}


if __name__ == "__main__":
    r = random.Random(0)
    for _ in range(80):
        s = sample(r)
        print(s["task"], "|", s["messages"][:-1], "->", repr(s["messages"][-1][1]), "|", s["answer"])
