"""Writes a set of dialogues whose last question asks for something told once, far back.

Usage: python3 recall_set.py --stories STORIES.txt --tokenizer DIR --out recall.jsonl
                             [--heldout-stories heldout.txt] [--profile]
One JSON object a line: messages (role, content; the last is the user's question), expected (the
value, which a right answer contains as a whole word), kind, key, group, distance_tokens (from the
value's only mention to the answer). --heldout-stories writes the validation stories themselves.
--profile writes a larger set, of distances from 30 to 1,600 tokens, instead of the fixed one.

Groups: what is asked for never occurs in training.
  held_out_name   reserved composed names (Gavinko) of the user, a pet, a relative
  invented_name   the same of names of random syllables (Smouteesk)
  held_out_pair   reserved pairs of kind and value, of words that occur elsewhere in training
"""

import argparse
import json
import os
import random

import bpe
import corpora
import dialogues
import facts
import vocabulary

MAX_STORY_TOKENS = 511  # of stories written by --heldout-stories; one more at either end fits a row
PAIR_KINDS = ('city', 'num', 'job', 'hid', 'fav_color', 'fav_food', 'fav_fruit', 'fav_animal',
              'fav_toy', 'fav_game')  # yapf: disable

# (group, least distance, greatest distance, dialogues)
PLAN = [
    ('held_out_name', 200, 250, 100),
    ('held_out_name', 400, 460, 30),
    ('invented_name', 200, 250, 40),
    ('held_out_pair', 200, 250, 50),
]
PROFILE = [(group, low, high, 50)
           for group in ('held_out_name', 'invented_name', 'held_out_pair')
           for low, high in ((30, 70), (100, 125), (200, 250), (400, 460), (800, 900),
                             (1600, 1700))]  # yapf: disable


def _reserved_invented_name(rng):
    while True:
        name = facts.invented_name(rng)
        if len(name) > 2 and facts.is_reserved_name(name):
            return name


def draw_target(rng, group, used):
    """The fact that will be asked for."""
    if group == 'held_out_pair':
        allowed = lambda kind, value: (kind in PAIR_KINDS and facts.is_held_out(kind, value) and
                                       not facts.is_held_out_name(value))
        return facts.draw_fact(rng, used, allowed)
    of_name_kind = lambda kind, value: kind in facts.NAME_KINDS
    if group == 'held_out_name':
        names = [name for name in vocabulary.COMPOSED_NAMES if facts.is_held_out_name(name)]
        return facts.draw_fact(rng, used, of_name_kind, lambda rng: rng.choice(names))
    return facts.draw_fact(rng, used, of_name_kind, _reserved_invented_name)


class RecallSetWriter:

    def __init__(self, rng, tokenizer, shelf):
        self._rng = rng
        self._tokenizer = tokenizer
        self._writer = dialogues.DialogueWriter(rng, shelf, casual=0)

    def case(self, group, low, high):
        """A dialogue whose distance lies in [low, high], as the object that is written."""
        while True:
            used = set()
            target = draw_target(self._rng, group, used)
            told = self._writer.told(target, echo_probability=0)
            question = self._writer.ask(target)
            after_value = told[0].segments[0].text.split(target.value)[-1] + '<|end|>'
            tail = self._count(after_value) + self._count_turns([told[1], question]) + 1
            middle = self._middle(used, low - tail, high - tail)
            if middle is None:
                continue
            turns = [*told, *middle, question]
            if sum(target.value in self._content(turn) for turn in turns) != 1:
                continue
            return {
                'messages': [{'role': turn.role, 'content': self._content(turn)} for turn in turns],
                'expected': target.value,
                'kind': target.kind,
                'key': target.key,
                'group': group,
                'distance_tokens': tail + self._count_turns(middle),
            }  # yapf: disable

    def _middle(self, used, low, high):
        """Other talk of low to high tokens; None if it came out longer."""
        turns, others, size = [], [], 0
        while size < low:
            more = self._other_talk(used, others, high - size)
            turns += more
            size += self._count_turns(more)
        return turns if size <= high else None

    def _other_talk(self, used, others, left):
        rng, writer = self._rng, self._writer
        x = rng.random()
        if x < 0.25 and left > 30:
            others.append(writer.new_fact(used))
            return writer.told(others[-1])
        if x < 0.45 and others and left > 30:
            return writer.asked(rng.choice(others))
        if x < 0.7 and left > 60:
            num_chars = rng.uniform(30, min(300, left - 15)) * dialogues.CHARS_PER_TOKEN
            return writer.story(int(num_chars))
        return writer.small_talk()

    def _count(self, text):
        return len(self._tokenizer.encode(text))

    def _count_turns(self, turns):
        return self._count(dialogues.text(turns))

    @staticmethod
    def _content(turn):
        return ''.join(segment.text for segment in turn.segments)


def write_heldout_stories(path, tokenizer, stories):
    """The validation stories that fit, each ended by <|endoftext|> on a line of its own."""
    with open(path, 'w') as file:
        for story in stories:
            if len(tokenizer.encode(story, special=False)) <= MAX_STORY_TOKENS:
                file.write(f'{story}\n<|endoftext|>\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stories', required=True)
    parser.add_argument('--tokenizer', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--heldout-stories')
    parser.add_argument('--profile', action='store_true')
    parser.add_argument('--seed', type=int, default=2026)
    args = parser.parse_args()
    tokenizer = bpe.Tokenizer.load(os.path.join(args.tokenizer, 'tokenizer.json'))
    _, validation = corpora.read_stories(args.stories)
    shelf = dialogues.StoryShelf(validation)
    with open(args.out, 'w') as file:
        for group, low, high, count in PROFILE if args.profile else PLAN:
            rng = random.Random(f'{args.seed} {group} {low}')
            writer = RecallSetWriter(rng, tokenizer, shelf)
            for _ in range(count):
                file.write(json.dumps(writer.case(group, low, high)) + '\n')
    if args.heldout_stories:
        write_heldout_stories(args.heldout_stories, tokenizer, validation)


if __name__ == '__main__':
    main()
