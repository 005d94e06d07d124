"""Stories and poems of the closed world: their grammar, and its inverse `told()`, which says whether a text is one of its stories.

A story has a hero with a name, a thing that was lost, a friend and, if it is long, helpers on the way.  There are two voices; the animals decide voice,
home, helpers and characters, so that a canvas with few open choices settles in few steps.  What is said in the first canvas (name, thing) or the second
(friend) is said again in each of the others, up to three hundred tokens later."""
import re

from facts import ADJ, ANIMALS, NAMES, PLACES, THINGS

SHORT, PLAIN, LONG, VERY_LONG = range(4)                        # 5, 10, 15 and 29 sentences: 1, 2, 3 and 5 canvases of 64 tokens
KINDS = ["short story", "story", "long story", "very long story"]
HELPERS = dict(c=["man", "woman"], d=["child", "spider"], e=["tree", "pirate"])       # nobody whom a story can be asked about

# n the hero's name, a the hero, o the thing, b the friend, c d e the helpers; p where the hero lives, q where the friend is; j k their characters.
# A name ending in "_" comes with its article.
OPENING = [
    ["Once upon a time, there was {j_} {a} named {n}.", "Every day {n} played near the {p}.", "One day the {a} found {o_} under a tree.", "\"Who lost this {o}?\" asked {n}."],
    ["Once upon a time, {j_} {a} named {n} lived near {p_}.", "{n} was {j}, but had no friends.", "One morning {n} saw {o_} in the grass.", "\"What a beautiful {o}!\" said the {a}."]]
ENDING = [
    ["So the {a} took the {o} and went to the {q}.", "There {n} met {k_} {b}.", "\"That is my {o}!\" said the {b}.", "{n} smiled and gave the {o} back.", "\"Thank you!\" said the {b}.",
     "From that day on, the {a} and the {b} were best friends."],
    ["The {a} carried the {o} to the {q}.", "{K_} {b} was waiting there.", "\"I lost my {o},\" said the {b}.", "The {a} gave the {o} to the {b}.", "The {b} laughed and sang a song.",
     "And so {n} and the {b} became friends."]]
HELPER = [
    ["But nobody answered.", "On the way, {n} met an old {c}.", "\"Do you know who lost this {o}?\" asked the {a}.", "\"Go to the {q},\" said the {c}.", "{n} thanked the old {c}."],
    ["It was very quiet.", "Then an old {c} came along.", "\"Is this your {o}?\" asked {n}.", "\"No, but try the {q},\" said the {c}.", "The {c} smiled and walked on."]]
MORE_HELPERS = [
    ["By the road {n} met a young {d}.", "\"Did you lose {o_}?\" asked {n}.", "\"No, I did not,\" said the {d}.", "\"Ask one of my friends.\"", "{n} thanked the young {d}.",
     "Then {n} met a tall {e}.", "\"I know whose {o} this is,\" said the {e}.", "\"My friend at the {q} is looking for it.\"", "The {a} was very glad."],
    ["Under a tree a young {d} was sleeping.", "\"Wake up! Is this your {o}?\" asked {n}.", "\"Not mine,\" said the {d}.", "\"Ask somebody else.\"", "Then the {d} slept again.",
     "On the hills a tall {e} was singing.", "\"Is this your {o}?\" asked {n} once more.", "\"No, but I know the way to the {q},\" said the {e}.", "The {a} was full of hope."]]
FEAST = [
    ["In the evening they made a big fire.", "The old {c} told a tale.", "The young {d} danced.", "The tall {e} played the drum.", "And {n} was the happiest {a} of all."],
    ["That night there was a feast.", "The old {c} brought bread.", "The young {d} brought flowers.", "The tall {e} sang to the moon.", "And {n} was never lonely again."]]


def sentences(voice, length):
    opening, ending = OPENING[voice], ENDING[voice]
    if length == SHORT:
        return [opening[0], opening[2], ending[1], ending[3], ending[5]]
    way = (HELPER[voice] if length >= LONG else []) + (MORE_HELPERS[voice] if length == VERY_LONG else [])
    return opening + way + ending + (FEAST[voice] if length == VERY_LONG else [])


an = lambda w: ("an " if w[0] in "aeiou" else "a ") + w


# What follows from an animal: there are ten characters, ten places and two of each helper.
character = lambda animal: ADJ[ANIMALS.index(animal) % 10]
ends = lambda hero: [PLACES[(ANIMALS.index(hero) + i) % 10] for i in (0, 3)]        # where the hero lives, and where the friend is
helpers = lambda hero: {who: two[ANIMALS.index(hero) >> i & 1] for i, (who, two) in enumerate(HELPERS.items(), 1)}


def kin(hero):
    """The friends of whom one is drawn if none is given: the eight animals behind the hero in a ring."""
    return [ANIMALS[(ANIMALS.index(hero) + i) % len(ANIMALS)] for i in range(1, 9)]


def fill(length, n, a, o, b):
    """The story with these choices; what follows from them is worked out here."""
    voice, j, k, (p, q) = ANIMALS.index(a) % 2, character(a), character(b), ends(a)
    words = helpers(a) | dict(n=n, a=a, o=o, b=b, p=p, q=q, j=j, k=k, o_=an(o), p_=an(p), j_=an(j), k_=an(k), K_=an(k)[0].upper() + an(k)[1:])
    return " ".join(sentences(voice, length)).format(**words)


def story(r, a=None, o=None, b=None, length=PLAIN):
    """Of length SHORT to VERY_LONG, about what is given; the rest is drawn."""
    a, o = a or r.choice(ANIMALS), o or r.choice(THINGS)
    return fill(length, r.choice(NAMES), a, o, b or r.choice(kin(a)))


def pattern(voice, length):
    """A regular expression for such a story, with its choices as groups."""
    words, seen = dict(n=NAMES, a=ANIMALS, o=THINGS, b=ANIMALS), set()

    def group(m):
        name = m[1]
        if name not in words:
            return r"[\w ]+?"
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{'|'.join(words[name])})"
    text = re.escape(" ".join(sentences(voice, length)))
    return re.compile(re.sub(r"\\\{(\w+)\\\}", group, text))


PATTERNS = [(length, pattern(voice, length)) for voice in (0, 1) for length in range(4)]


def told(text):
    """-> (length, the choices n, a, o, b by name) if the text is a story, whole and consistent from its first word to its last; else None.  Any friend will do
    who is not of the hero's own kind."""
    for length, shape in PATTERNS:
        m = shape.fullmatch(text)
        if m and m["b"] != m["a"] and fill(length, **m.groupdict()) == text:
            return length, m.groupdict()
    return None


SHORT_POEM, POEM, LONG_POEM = range(3)                          # 1, 2 and 8 stanzas: 1, 2 and 6 canvases
POEMS = ["short poem", "poem", "long poem"]
YEAR = [
    "The {a} wakes up and sees the sun,\nthe long white winter now is done.\nThe snow is gone, the river sings,\nand all the birds try out their wings.",
    "The {a} runs out to greet the spring\nand hears the little flowers sing.\nThe rain falls soft on grass and tree,\nand all the world is fresh and free.",
    "The {a} lies down where grass is high\nand counts the clouds up in the sky.\nThe days are long, the nights are warm,\nand no one fears the summer storm.",
    "The {a} goes down to find the beach\nand looks for shells within its reach.\nThe waves roll in, the waves roll out,\nand happy children run about.",
    "The {a} walks slowly down the lane\nand listens to the autumn rain.\nThe leaves are yellow, brown and red,\nand every field has gone to bed.",
    "The {a} looks up to see the moon\nand knows the cold is coming soon.\nThe apples wait in baskets now,\nand not a leaf is on the bough.",
    "The {a} looks out at fields of snow\nand feels the icy north wind blow.\nThe lake is glass, the hills are white,\nand stars are burning all the night.",
    "The {a} sits down beside the fire\nand sees the flames go high and higher.\nThe door is shut, the tea is hot,\nand all the cold is soon forgot."]
LAST = "And so the year goes round and round,\nand now the {a} sleeps safe and sound."


def poem(a, length=POEM):
    """Each animal begins at its own time of the year."""
    first = ANIMALS.index(a)
    stanzas = [YEAR[(first + i) % 8] for i in range([1, 2, 8][length])]
    return "\n\n".join(stanzas + [LAST] * (length > SHORT_POEM)).format(a=a)
