"""Facts a user tells in a dialogue: kinds, values, wordings, and which values training never sees.

A value always stands after a space in the assistant's sentences, so that splitting a sentence
around it does not change its tokens.
"""

import dataclasses
import hashlib
from typing import Callable, NamedTuple

import vocabulary as words


class Fact(NamedTuple):
    kind: str
    key: str  # '' where a user has only one such fact
    value: str


@dataclasses.dataclass(frozen=True)
class FactKind:
    """Templates hold {k} for the key and {v} for the value."""

    keys: list
    draw_value: Callable  # random.Random -> str
    tell: list
    ask: list
    answer: list
    echo: list  # an acknowledgement that repeats the value


def _hash(text):
    return int(hashlib.md5(text.encode()).hexdigest()[:8], 16)


_COMPOSED = set(words.COMPOSED_NAMES)
_FIRST_NAMES = set(words.FIRST_NAMES)
_KINDS_NEVER_HELD_OUT = ('day', 'age')  # too few values


def is_reserved_name(name):
    """One composed or invented name in ten is never told in training."""
    return _hash('w' + name) % 10 == 0


def is_held_out_name(value):
    return value in _COMPOSED and is_reserved_name(value)


def is_held_out(kind, value):
    """True for what training never tells: reserved composed names, and one in ten pairs of kind and
    value (whose value is told under other kinds)."""
    if is_held_out_name(value):
        return True
    return kind not in _KINDS_NEVER_HELD_OUT and _hash(f'{kind}|{value}') % 10 == 0


def invented_name(rng):
    """A name of one to three random syllables; about a hundred million are possible."""
    syllables = []
    for _ in range(rng.choice([1, 2, 2, 2, 3])):
        consonants = rng.choice(words.CONSONANTS) if rng.random() < 0.85 else ''
        syllables.append(consonants + rng.choice(words.VOWELS))
    return (''.join(syllables) + rng.choice(words.NAME_ENDINGS)).capitalize()


def _altered_name(rng):
    """A known name with its end cut or something added: where a name ends must be copied too, not
    only how it starts."""
    name = rng.choice(words.FIRST_NAMES + words.COMPOSED_NAMES)
    if len(name) > 4 and rng.random() < 0.6:
        return name[:-rng.randint(1, 2)]
    return name + rng.choice(words.CONSONANTS) + rng.choice(words.VOWELS)


def _training_name(rng):
    """Names that training tells; more than a third come from sets too large to learn by heart."""
    while True:
        x = rng.random()
        if x < 0.27:
            return rng.choice(words.FIRST_NAMES)
        if x < 0.30:
            return rng.choice(words.CITIES)
        if x < 0.60:
            return rng.choice(words.COMPOSED_NAMES)
        name = _altered_name(rng) if x < 0.72 else invented_name(rng)
        if len(name) > 2 and not is_reserved_name(name):
            return name


def _mostly(values, others=words.MISCELLANY, probability=0.4):
    """Values of a closed list alone are learnt by heart, and one never told is then never answered:
    so a part comes from elsewhere, and only copying explains it."""
    return lambda rng: rng.choice(others) if rng.random() < probability else rng.choice(values)


def _number(rng):
    return str(rng.randint(2, 99)) if rng.random() < 0.6 else str(rng.randint(100, 999))


def _hiding_place(rng):
    adjective = rng.choice(words.ADJECTIVES if rng.random() < 0.4 else words.MISCELLANY)
    return f'{rng.choice(words.PREPOSITIONS)} the {adjective} {rng.choice(words.FURNITURE)}'


def _day(rng):
    if rng.random() < 0.6:
        return rng.choice(words.WEEKDAYS)
    return f'{rng.choice(words.MONTHS)} {rng.randint(1, 28)}'


_ECHO_NAME = ['What a nice name, {v}!', 'Nice! I will remember {v}.', 'Hello to {v}!']
_NOT_AFTER_AN = [word for word in words.MISCELLANY if word[0] not in 'aeiou']

FACT_KINDS = {
    'me': FactKind(
        keys=[''],
        draw_value=_training_name,
        tell=['My name is {v}.', 'I am called {v}.', 'Hi! My name is {v}.', 'You can call me {v}.',
              'Hello, I am {v}.', 'Hello! My name is {v}.', 'Please call me {v}.'],
        ask=['What is my name?', 'Do you remember my name?', 'What am I called?', 'Who am I?',
             'Can you tell me my name?', "What's my name?", 'Do you know my name?',
             'Tell me my name.', 'Do you still know my name?'],
        answer=['Your name is {v}.', 'You are {v}.', 'You are called {v}.'],
        echo=['Nice to meet you, {v}!', 'Hello, {v}!', 'Hi {v}, how are you?']),
    'pet': FactKind(
        keys=words.PETS,
        draw_value=_training_name,
        tell=['I have a {k} called {v}.', 'My {k} is called {v}.', "My {k}'s name is {v}.",
              'I got a new {k}. I named it {v}.', 'We have a {k}. Its name is {v}.',
              'I have a {k} named {v}.', 'The name of my {k} is {v}.'],
        ask=['What is my {k} called?', 'What is the name of my {k}?', "What is my {k}'s name?",
             'Do you know the name of my {k}?', 'Do you remember the name of my {k}?'],
        answer=['Your {k} is called {v}.', 'The name of your {k} is {v}.'],
        echo=_ECHO_NAME),
    'rel': FactKind(
        keys=words.RELATIVES,
        draw_value=_training_name,
        tell=['My {k} is called {v}.', "My {k}'s name is {v}.", 'I have a {k} named {v}.',
              'The name of my {k} is {v}.', 'My {k} is {v}.'],
        ask=['What is my {k} called?', 'What is the name of my {k}?', "What is my {k}'s name?",
             'Who is my {k}?', 'Do you remember the name of my {k}?'],
        answer=['Your {k} is called {v}.', 'The name of your {k} is {v}.'],
        echo=_ECHO_NAME),
    'city': FactKind(
        keys=[''],
        draw_value=lambda rng: (_training_name(rng)
                                if rng.random() < 0.5 else rng.choice(words.CITIES)),
        tell=['I live in {v}.', 'My home is in {v}.', 'We moved to {v}.', 'I come from {v}.'],
        ask=['Where do I live?', 'Which city do I live in?', 'What is my city?',
             'Where is my home?'],
        answer=['You live in {v}.', 'Your home is in {v}.'],
        echo=['Oh, {v} is a nice city.', 'I like {v}.']),
    'num': FactKind(
        keys=['lucky number', 'secret number', 'house number', 'room number', 'bus number'],
        draw_value=_number,
        tell=['My {k} is {v}.', 'Remember my {k}: {v}.', 'The {k} I have is {v}.'],
        ask=['What is my {k}?', 'Do you remember my {k}?', 'Tell me my {k}.'],
        answer=['Your {k} is {v}.'],
        echo=['Got it, {v}.', 'I will remember {v}.']),
    'age': FactKind(
        keys=[''],
        draw_value=lambda rng: str(rng.randint(3, 80)),
        tell=['I am {v} years old.', 'I turned {v} today.', 'My age is {v}.'],
        ask=['How old am I?', 'What is my age?', 'Do you know how old I am?'],
        answer=['You are {v} years old.', 'Your age is {v}.'],
        echo=['Oh, {v} is a good age.']),
    'job': FactKind(
        keys=[''],
        draw_value=_mostly(words.JOBS, _NOT_AFTER_AN),
        tell=['I want to be a {v} when I grow up.', 'One day I will be a {v}.'],
        ask=['What do I want to be?', 'What do I want to be when I grow up?'],
        answer=['You want to be a {v}.'],
        echo=['Being a {v} is great.']),
    'day': FactKind(
        keys=['birthday', 'party', 'picnic', 'trip', 'game'],
        draw_value=_day,
        tell=['My {k} is on {v}.', 'The {k} is on {v}.'],
        ask=['When is my {k}?', 'On which day is my {k}?', 'What day is the {k}?'],
        answer=['Your {k} is on {v}.'],
        echo=['I love {v}!', 'Okay, on {v}.']),
    'hid': FactKind(
        keys=words.THINGS,
        draw_value=_hiding_place,
        tell=['I hid the {k} {v}.', 'I put my {k} {v}.', 'The {k} is {v}.', 'I left the {k} {v}.'],
        ask=['Where is the {k}?', 'Where is my {k}?', 'Where did I put the {k}?',
             'Can you tell me where the {k} is?'],
        answer=['The {k} is {v}.', 'Your {k} is {v}.'],
        echo=['Okay, it is {v}.', 'A good place, {v}.']),
    'paint': FactKind(
        keys=['bike', 'car', 'house', 'room', 'coat', 'bag', 'kite', 'door'],
        draw_value=_mostly(words.COLORS),
        tell=['My {k} is {v}.', 'I have a new {k}. It is {v}.', 'The color of my {k} is {v}.'],
        ask=['What color is my {k}?', 'Which color does my {k} have?'],
        answer=['Your {k} is {v}.', 'The color of your {k} is {v}.'],
        echo=['Oh, {v} is a pretty color.']),
    'likes': FactKind(
        keys=words.RELATIVES,
        draw_value=_mostly(words.FOODS + words.GAMES),
        tell=['My {k} likes {v}.', 'My {k} loves {v}.'],
        ask=['What does my {k} like?', 'What does my {k} love?'],
        answer=['Your {k} likes {v}.', 'Your {k} loves {v}.'],
        echo=['I like {v} too!', 'Oh, {v} is great.']),
}  # yapf: disable

_FAVORITES = {
    'color': words.COLORS,
    'food': words.FOODS,
    'fruit': words.FRUITS,
    'animal': words.ANIMALS,
    'toy': words.TOYS,
    'game': words.GAMES,
    'season': words.SEASONS,
}
for _key, _values in _FAVORITES.items():
    FACT_KINDS[f'fav_{_key}'] = FactKind(
        keys=[_key],
        draw_value=_mostly(_values),
        tell=['My favorite {k} is {v}.', 'The {k} I like best is {v}.',
              'I love {v}. It is my favorite {k}.'],
        ask=['What is my favorite {k}?', 'Which {k} do I like best?',
             'Do you remember my favorite {k}?', 'Tell me my favorite {k}.'],
        answer=['Your favorite {k} is {v}.', 'You like {v} best.'],
        echo=['I like {v} too!', 'Oh, {v} is great.'])  # yapf: disable

NAME_KINDS = ('me', 'pet', 'rel')

# How often each kind is drawn.
_FREQUENCIES = {'me': 3, 'pet': 4, 'rel': 4, 'city': 2, 'num': 2, 'age': 1, 'job': 2, 'day': 3,
                'hid': 5, 'paint': 1, 'likes': 1}  # yapf: disable
_KINDS = list(FACT_KINDS)
_KIND_WEIGHTS = [_FREQUENCIES.get(kind, 1) for kind in _KINDS]


def allowed_in_training(kind, value):
    return not is_held_out(kind, value)


def draw_fact(rng, used, allowed=allowed_in_training, draw_value=None):
    """A fact with a new (kind, key) and a new value; both are added to `used`. `draw_value`
    replaces the kind's own."""
    while True:
        kind = rng.choices(_KINDS, _KIND_WEIGHTS)[0]
        spec = FACT_KINDS[kind]
        key = rng.choice(spec.keys)
        if (kind, key) in used:
            continue
        value = (draw_value or spec.draw_value)(rng)
        if value in used or not allowed(kind, value):
            continue
        used |= {(kind, key), value}
        return Fact(kind, key, value)
