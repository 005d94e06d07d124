"""Mistakes to learn from.  Two words that are drawn in the same step may turn out the same where they must differ: "the cat and the cat were best
friends", "I like blue and blue", "55, 55, 62".  Random tokens hardly ever look like that, so the plain objective never teaches to doubt it; a canvas
that was made noisy from such a text does."""
import facts
from tokenizer import LARGEST

NEAR = 64                                                        # so far back a word is looked for


class Mistakes:
    def __init__(self, tok):
        self.words = [{tok.token_to_id("▁" + w) for w in words} for words in (facts.ANIMALS, facts.COLORS)]
        self.numbers = {tok.token_to_id(str(n)) for n in range(LARGEST + 1)}

    def mistaken(self, r, task, head, reply):
        """The reply with one of its animals or colors (of numbers to be sorted, one of these) exchanged, wherever it stands, for one that was named before it, in
        the reply or in the NEAR tokens before that: a friend for the hero, but no hero for a friend, since all else follows from the hero.  None if there is no
        such pair.  The numbers of sums are left alone: each is reckoned from those before it, which must be believed."""
        pairs = []
        for kind in self.words + [self.numbers] * task.endswith("sort"):
            named = list(dict.fromkeys(t for t in head[-NEAR:] + reply if t in kind))           # in the order in which they come
            pairs += [(right, wrong) for i, right in enumerate(named) for wrong in named[:i] if right in reply]
        if not pairs:
            return None
        right, wrong = r.choice(pairs)
        return [wrong if t == right else t for t in reply]
