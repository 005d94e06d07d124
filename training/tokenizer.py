"""Makes the tokenizer, Gemma-shaped: ' ' becomes '▁', BPE with byte fallback, special tokens first.  Merges are learned inside words only, so
that nearly every word of the closed world is one token.  Each number from 0 to 198 (the range of the sums) is one token.

    python tokenizer.py tokenizer.json
"""
import argparse
import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import world

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>",
           "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|image>", "<|image|>", "<image|>"]
VOCABULARY = 3072
LARGEST = 198


def texts(count, seed=7):
    r = random.Random(seed)
    world.GENERIC_TOKENS = True
    for _ in range(count):
        messages = world.sample(r)["messages"]
        for role, text in messages:
            yield role + "\n"
            yield text
        yield from [messages[-1][1]] * 8                         # words of replies count more than words of questions
    world.GENERIC_TOKENS = False


def number_merges():
    """Two digits join first, then three; a number that begins a longer row of digits stays whole."""
    two = [(str(n // 10), str(n % 10)) for n in range(10, 100)]
    three = [(str(n)[:2], str(n)[2]) for n in range(100, LARGEST + 1)] + [(str(n)[0], str(n)[1:]) for n in range(100, LARGEST + 1)]
    return two + [m for m in three if len(m[1]) == 1 or m[1][0] != "0"]


def build():
    model = lambda **kw: models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True, **kw)
    t = Tokenizer(model())
    t.normalizer = normalizers.Replace(" ", "▁")
    t.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[A-Za-z]+|▁|[^A-Za-z▁]"), "isolated")      # only while merges are learned
    numbers = [str(n) for n in range(10, LARGEST + 1)]
    size = VOCABULARY - 256 - len(SPECIAL) - len(numbers)
    strip = Regex("|".join(s.replace("|", r"\|") for s in SPECIAL))
    t.normalizer = normalizers.Sequence([normalizers.Replace(strip, "\n"), t.normalizer])         # markers are tokens of their own, not text
    t.train_from_iterator(texts(60000), trainers.BpeTrainer(
        vocab_size=size, special_tokens=[], show_progress=False, initial_alphabet=[chr(i) for i in range(33, 127)] + ["▁", "\n", "\t"]))
    learned = json.loads(t.to_str())["model"]
    words = [w for w, _ in sorted(learned["vocab"].items(), key=lambda x: x[1])]
    order = SPECIAL + [f"<0x{i:02X}>" for i in range(256)] + words + numbers
    t = Tokenizer(model(vocab={w: i for i, w in enumerate(order)}, merges=number_merges() + [tuple(m) for m in learned["merges"]]))
    t.normalizer = normalizers.Replace(" ", "▁")
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    return t


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("out", help="file for the tokenizer")
    out, t = ap.parse_args().out, build()
    assert all(len(t.encode(str(n), add_special_tokens=False).ids) == 1 for n in range(LARGEST + 1))
    t.save(out)
    print("vocabulary", t.get_vocab_size())
