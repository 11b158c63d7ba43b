"""Training rows: token sequences of one length, mixed from dialogues, stories and classics."""

import dataclasses
from typing import NamedTuple

import corpora
import dialogues

DIALOGUE, STORY, CLASSIC = 'dialogue', 'story', 'classic'
MIN_DIALOGUE_TOKENS = 60  # a shorter rest of a row gets a story


class Row(NamedTuple):
    ids: list  # row_tokens + 1 ids: inputs and, shifted by one, targets
    weights: list  # the loss weight of each id
    source: str


@dataclasses.dataclass(frozen=True)
class Mixture:
    row_tokens: int = 768
    dialogue_share: float = 0.5
    classics_share: float = 0.25  # stories get the rest
    dense_share: float = 0.4  # of dialogues; the others are distant


class RowSource:
    """Rows of one random stream; each starts at the start of a document."""

    def __init__(self, rng, tokenizer, stories, classics, mixture):
        self._rng = rng
        self._tokenizer = tokenizer
        self._stories = stories
        self._classics = classics
        self._mixture = mixture
        self._writer = dialogues.DialogueWriter(rng, dialogues.StoryShelf(stories))

    def next(self):
        x, mixture = self._rng.random(), self._mixture
        if x < mixture.dialogue_share:
            return self._dialogue_row()
        if x < mixture.dialogue_share + mixture.classics_share:
            return self._text_row(CLASSIC, self._classic)
        return self._text_row(STORY, self._story)

    def _story(self):
        return corpora.swap_names(self._rng, self._rng.choice(self._stories))

    def _classic(self):
        return corpora.classics_piece(self._rng, self._classics)

    def _encode(self, text):
        return self._tokenizer.encode(text, special=False) + [0]

    def _text_row(self, source, draw_text):
        size, ids = self._mixture.row_tokens + 1, []
        while len(ids) < size:
            ids += self._encode(draw_text())
        return Row(ids[:size], [dialogues.PLAIN] * size, source)

    def _dialogue_row(self):
        size, ids, weights = self._mixture.row_tokens + 1, [], []
        while len(ids) < size:
            left = size - len(ids)
            if left < MIN_DIALOGUE_TOKENS:
                more = self._encode(self._story())
                more_weights = [dialogues.FILLER] * len(more)
            else:
                more, more_weights = dialogues.encode(self._tokenizer, self._dialogue(left))
            ids += more
            weights += more_weights
        return Row(ids[:size], weights[:size], DIALOGUE)

    def _dialogue(self, left):
        """Of any length that fits; where there is room, half of them use most of it."""
        longest = 0.92 * left  # the estimate of a dialogue's length is rough
        budget = self._rng.uniform(50, longest)
        if left >= 300 and self._rng.random() < 0.5:
            budget = self._rng.uniform(250, longest)
        if self._rng.random() < self._mixture.dense_share:
            return self._writer.dense(budget)
        return self._writer.distant(budget)
