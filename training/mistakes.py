"""Mistakes to learn from.  Words that are drawn in the same step may not go together: two that must differ are the same ("the cat and the cat were best
friends", "I like blue and blue", "55, 55, 62"), or a helper is not the one whom the hero meets in this world.  Random tokens hardly ever look like that,
so the plain objective never teaches to doubt it; a canvas that was made noisy from such a text does."""
import facts
import tales
from tokenizer import LARGEST

NEAR = 64                                                        # so far back a word is looked for


class Mistakes:
    def __init__(self, tok):
        tokens = lambda words: {tok.token_to_id("▁" + w) for w in words}
        self.animals = tokens(facts.ANIMALS)
        self.differ = [self.animals, tokens(facts.COLORS), {tok.token_to_id(str(n)) for n in range(LARGEST + 1)}]    # two of a kind are not the same
        self.follow = [tokens(words) for words in (facts.ADJ, facts.PLACES, *tales.HELPERS.values())]                 # what an animal decides

    def mistaken(self, r, head, reply):
        """The reply with one word exchanged for another of its kind, wherever it stands: for one of the reply or of the NEAR tokens before it, or, where an
        animal is spoken of, what follows from it for any other.  None if there is no other."""
        said, near = set(reply), set(reply) | set(head[-NEAR:])
        pairs = lambda kinds, others: [(right, wrong) for kind in kinds for right in sorted(kind & said) for wrong in sorted(kind & others) if right != wrong]
        choices = [c for c in (pairs(self.differ, near), pairs(self.follow, set.union(*self.follow)) if self.animals & near else []) if c]
        if not choices:
            return None
        right, wrong = r.choice(r.choice(choices))
        return [wrong if t == right else t for t in reply]
