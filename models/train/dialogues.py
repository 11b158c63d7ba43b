"""A generator of short dialogues, without end: facts are told, other talk follows, questions come.

A turn is a role and a list of segments, each with its weight in the loss.
"""

import re
from typing import NamedTuple

import corpora
import facts

PLAIN, ECHO, RECALL, FILLER = 1.0, 3.0, 5.0, 0.2
USER_WEIGHT = 0.3
CHARS_PER_TOKEN = 3.6


class Segment(NamedTuple):
    text: str
    weight: float = PLAIN


class Turn(NamedTuple):
    role: str
    segments: list


OK = ['Okay!', 'I see.', 'Thank you for telling me.', 'I will remember that.', 'That is nice.',
      'Good to know!', 'Great!', 'I will not forget it.']  # yapf: disable
UNKNOWN = ['I do not know. You did not tell me.', 'You did not tell me that yet.',
           'I do not know that yet.']  # yapf: disable
SMALL_TALK = [
    ('How are you?', 'I am fine, thank you!'),
    ('Hello!', 'Hello! How are you?'),
    ('Hi!', 'Hi! It is nice to see you.'),
    ('Good morning!', 'Good morning! What will you do today?'),
    ('Who are you?', 'I am a little snake who likes to talk and to tell stories.'),
    ('What can you do?', 'I can tell stories, and I remember what you tell me.'),
    ('What does a cow say?', 'A cow says moo!'),
    ('What does a cat say?', 'A cat says meow!'),
    ('Do you like cake?', 'Yes, I like cake a lot!'),
    ('What color is the sky?', 'The sky is blue.'),
    ('What color is grass?', 'Grass is green.'),
    ('How many legs does a dog have?', 'A dog has four legs.'),
    ('Can you sing?', 'La la la! I love to sing.'),
    ('What is the sun?', 'The sun is a big, warm star.'),
    ('I am happy today.', 'I am happy for you!'),
    ('I am sad today.', 'I am sorry. I hope you feel better soon.'),
    ('It is raining.', 'You can jump in the puddles!'),
    ('It is very hot today.', 'Drink some cold water!'),
    ('What do bees make?', 'Bees make honey.'),
    ('Where do fish live?', 'Fish live in the water.'),
    ('What do you do at night?', 'I look at the stars and the moon.'),
    ('Let us play!', 'Yes! I love to play with you.'),
    ('I went to the park.', 'That sounds like fun!'),
    ('Thank you!', 'You are welcome!'),
    ('You are nice.', 'Thank you! You are nice too.'),
    ('What does a duck say?', 'A duck says quack!'),
    ('What is ice?', 'Ice is very cold water.'),
    ('I am tired.', 'You can take a nap.'),
    ('I saw a rainbow.', 'Wow, it must be pretty!'),
    ('Good night!', 'Good night! Sleep well.'),
    ('Bye!', 'Bye! See you soon.'),
]
ASK_STORY = ['Tell me a story.', 'Can you tell me a story?', 'Please tell me a short story.',
             'I want to hear a story!', 'Tell me another story.',
             'Read me a story, please.']  # yapf: disable
ASK_STORY_ABOUT = ['Tell me a story about {who}.', 'Can you tell me a story about {who}?',
                   'I want to hear a story about {who}!']  # yapf: disable

_PROTAGONIST = re.compile(r'\b([a-z]+) (?:named|called) ([A-Z][a-z]+)\b')
_PROTAGONIST_WITHIN_CHARS = 200
_MIN_STORIES_OF_AN_ANIMAL = 5


class StoryShelf:
    """Stories by what their protagonist is: 'girl', 'boy', 'dog' ..."""

    def __init__(self, stories):
        self.all = stories
        self._by_noun = {}
        for story in stories:
            match = _PROTAGONIST.search(story, 0, _PROTAGONIST_WITHIN_CHARS)
            if match:
                self._by_noun.setdefault(match[1], []).append((story, match[2]))

    def about(self, rng, fact):
        """A story whose protagonist bears the fact's value as a name; None if there is none."""
        nouns = ['girl', 'boy'] if fact.kind in ('me', 'rel') else [fact.key]
        candidates = [entry for noun in nouns for entry in self._by_noun.get(noun, [])]
        if len(candidates) < _MIN_STORIES_OF_AN_ANIMAL:
            return None
        story, name = rng.choice(candidates)
        if fact.value in story:
            return None
        return re.sub(rf'\b{name}\b', fact.value, story)


def segments(template, fact, weight):
    """The sentence split around its value, which bears `weight`."""
    before, value, after = template.partition(' {v}')
    before, after = before.format(k=fact.key), after.format(k=fact.key)
    parts = [Segment(before), Segment(' ' + fact.value, weight), Segment(after)]
    return [part for part in (parts if value else parts[:1]) if part.text]


def num_tokens_about(turns):
    """An estimate without tokenising: used to fill a budget."""
    chars = sum(len(segment.text) for turn in turns for segment in turn.segments)
    return chars / CHARS_PER_TOKEN + 2 * len(turns)


class DialogueWriter:
    """Dialogues of one random stream; `allowed(kind, value)` says which facts may be told."""

    def __init__(self, rng, shelf, allowed=facts.allowed_in_training, casual=0.12):
        self.rng = rng
        self._shelf = shelf
        self._allowed = allowed
        self._casual = casual

    # ---- single turns

    def user(self, text):
        """Sometimes without a capital and a full stop, as people type."""
        if self.rng.random() < self._casual:
            text = (text[0].lower() + text[1:]).rstrip('.?!')
        return Turn('user', [Segment(text)])

    def new_fact(self, used):
        return facts.draw_fact(self.rng, used, self._allowed)

    def tell(self, fact):
        template = self.rng.choice(facts.FACT_KINDS[fact.kind].tell)
        return self.user(template.format(k=fact.key, v=fact.value))

    def acknowledge(self, fact, echo_probability=0.4):
        if self.rng.random() < echo_probability:
            template = self.rng.choice(facts.FACT_KINDS[fact.kind].echo)
            return Turn('assistant', segments(template, fact, ECHO))
        return Turn('assistant', [Segment(self.rng.choice(OK))])

    def ask(self, fact):
        template = self.rng.choice(facts.FACT_KINDS[fact.kind].ask)
        return self.user(template.format(k=fact.key))

    def answer(self, fact):
        template = self.rng.choice(facts.FACT_KINDS[fact.kind].answer)
        return Turn('assistant', segments(template, fact, RECALL))

    # ---- exchanges

    def told(self, fact, echo_probability=0.4):
        return [self.tell(fact), self.acknowledge(fact, echo_probability)]

    def asked(self, fact):
        return [self.ask(fact), self.answer(fact)]

    def asked_unknown(self, used):
        """A question about something never told."""
        fact = self.new_fact(set(used))
        return [self.ask(fact), Turn('assistant', [Segment(self.rng.choice(UNKNOWN), 2 * PLAIN)])]

    def small_talk(self):
        question, answer = self.rng.choice(SMALL_TALK)
        return [self.user(question), Turn('assistant', [Segment(answer)])]

    def story(self, num_chars):
        text = corpora.swap_names(self.rng, self.rng.choice(self._shelf.all))
        weight = PLAIN if self.rng.random() < 0.3 else FILLER
        told = Segment(corpora.shorten(text, num_chars), weight)
        return [self.user(self.rng.choice(ASK_STORY)), Turn('assistant', [told])]

    def story_about(self, fact, num_chars):
        """A story about someone whose name was told; None if there is none to tell."""
        story = self._shelf.about(self.rng, fact)
        if story is None:
            return None
        story = corpora.shorten(story, num_chars)
        value = ' ' + fact.value
        before, *rest = story.split(value)
        if not rest:
            return None
        who = 'me' if fact.kind == 'me' else f'my {fact.key}'
        question = self.rng.choice(ASK_STORY_ABOUT).format(who=who)
        parts, weight = [Segment(before)], RECALL
        for text_after in rest:
            parts += [Segment(value, weight), Segment(text_after)]
            weight = ECHO
        return [self.user(question), Turn('assistant', [part for part in parts if part.text])]

    # ---- whole dialogues of about `budget` tokens

    def dense(self, budget):
        """Facts, questions and other talk in random order; answers refresh what they repeat."""
        rng, turns, used, known = self.rng, [], set(), []

        def add(new_turns, fact=None):
            if fact in known:
                known.remove(fact)
            if fact:
                known.append(fact)  # the oldest mention comes first
            turns.extend(new_turns)

        fact = self.new_fact(used)
        add(self.told(fact), fact)
        while (left := budget - num_tokens_about(turns)) > 22:
            x = rng.random()
            if x < 0.26 and len(known) < 6:
                fact = self.new_fact(used)
                add(self.told(fact), fact)
            elif x < 0.38:
                add(self.small_talk())
            elif x < 0.42:
                add(self.asked_unknown(used))
            elif x < 0.52 and left > 80:
                add(self.story(self._story_chars(left - 40)))
            elif x < 0.62 and left > 80:
                fact = rng.choice(known)
                if fact.kind in facts.NAME_KINDS:
                    add(self.story_about(fact, self._story_chars(left - 40)) or [], fact)
            elif x >= 0.62:
                fact = known[0] if rng.random() < 0.5 else rng.choice(known)
                add(self.asked(fact), fact)
        fact = rng.choice(known[:2])
        add(self.asked(fact), fact)
        return turns

    def distant(self, budget):
        """Facts first, then other talk, then questions far from the only mention of their value."""
        rng, used, turns = self.rng, set(), []
        count = min(rng.choice([1, 2, 3, 3, 4, 5, 6, 7]), int(budget / 60) + 1)
        if rng.random() < 0.2:
            turns += self.small_talk()
        told = [self.new_fact(used) for _ in range(count)]
        for fact in told:
            turns += self.told(fact, echo_probability=0.25)
            if rng.random() < 0.12:
                turns += self.small_talk()
        questions = []
        for fact in rng.sample(told, count):
            questions += self.asked(fact)
            if rng.random() < 0.06:
                questions += self.asked_unknown(used)
        others = []
        left = budget - num_tokens_about(turns + questions)
        while left > 12:
            new_turns = self._other_talk(used, others, left)
            left -= num_tokens_about(new_turns)
            turns += new_turns
        return turns + questions

    def _other_talk(self, used, others, left):
        x = self.rng.random()
        if x < 0.22:
            others.append(self.new_fact(used))
            return self.told(others[-1])
        if x < 0.42 and others:
            return self.asked(self.rng.choice(others))
        if x < 0.62 or left < 60:
            return self.small_talk()
        return self.story(self._story_chars(left))

    def _story_chars(self, left):
        return int(self.rng.uniform(30, max(31, min(300, left))) * CHARS_PER_TOKEN)


def text(turns):
    """The dialogue in the chat format, with the special tokens spelled out."""
    parts = []
    for turn in turns:
        content = ''.join(segment.text for segment in turn.segments)
        parts.append(f'<|{turn.role}|>{content}<|end|>')
    return ''.join(parts)


def encode(tokenizer, turns):
    """(token ids, loss weights) of a dialogue, with <|endoftext|> at the end."""
    ids, weights = [], []
    for turn in turns:
        is_user = turn.role == 'user'
        ids.append(tokenizer.vocab[f'<|{turn.role}|>'])
        weights.append(USER_WEIGHT)
        for segment in turn.segments:
            piece = tokenizer.encode(segment.text, special=False)
            ids += piece
            weights += [USER_WEIGHT if is_user else segment.weight] * len(piece)
        ids.append(tokenizer.vocab['<|end|>'])
        weights.append(USER_WEIGHT if is_user else PLAIN)
    return ids + [tokenizer.vocab['<|endoftext|>']], weights + [PLAIN]
