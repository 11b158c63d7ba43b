"""Plain text to train on: short stories and public-domain classics, folded to ASCII."""

import gzip
import re

NUM_VALIDATION_STORIES = 130  # the last ones of the file; never trained on
MIN_STORY_CHARS = 81
CLASSICS_PIECE_CHARS = 3000

_PUNCTUATION = {
    '\u2018': "'",
    '\u2019': "'",
    '\u201c': '"',
    '\u201d': '"',
    '\u2013': '-',
    '\u2014': '--',
    '\u2026': '...',
    '\u00a0': ' ',
}

# The names most frequent in the stories, with the number of stories they occur in.
_BOYS = {
    'Tim': 501, 'Tom': 425, 'Ben': 311, 'Sam': 209, 'Max': 174, 'Jack': 121, 'Timmy': 111,
    'John': 94, 'Bob': 77, 'Tommy': 42, 'Joe': 38, 'Billy': 28, 'Jimmy': 24, 'Andy': 15,
    'Jake': 15, 'Jim': 14, 'Leo': 11, 'Benny': 10, 'Bobby': 9, 'Henry': 9, 'Fred': 9, 'Peter': 9,
}  # yapf: disable
_GIRLS = {
    'Lily': 653, 'Sue': 166, 'Mia': 141, 'Anna': 126, 'Lucy': 123, 'Sara': 101, 'Jane': 55,
    'Sarah': 54, 'Sally': 53, 'Molly': 46, 'Lila': 42, 'Amy': 41, 'Daisy': 37, 'Mary': 27,
    'Jill': 27, 'Jen': 18, 'Emma': 17, 'Ella': 12, 'Jenny': 12, 'Bella': 10, 'Lisa': 10,
    'Polly': 9, 'Grace': 9, 'Lulu': 8,
}  # yapf: disable
_STORY_NAME = re.compile(r'\b(' + '|'.join([*_BOYS, *_GIRLS]) + r')\b')


def fold_to_ascii(text):
    table = {ord(character): plain for character, plain in _PUNCTUATION.items()}
    return text.translate(table).encode('ascii', 'ignore').decode()


def read_stories(path):
    """(training stories, validation stories) of a file with <|endoftext|> between stories."""
    with open(path, encoding='utf-8', errors='replace') as file:
        text = fold_to_ascii(file.read())
    stories = []
    for piece in text.split('<|endoftext|>'):
        story = re.sub(r'[ \t]+\n', '\n', piece).strip()
        if len(story) >= MIN_STORY_CHARS:
            stories.append(story)
    return stories[:-NUM_VALIDATION_STORIES], stories[-NUM_VALIDATION_STORIES:]


def read_classics(path):
    with gzip.open(path, 'rt', encoding='utf-8', errors='replace') as file:
        return fold_to_ascii(file.read())


def classics_piece(rng, text):
    """A random piece of about CLASSICS_PIECE_CHARS, cut at paragraphs."""
    start = text.find('\n\n', rng.randrange(len(text) - 2 * CLASSICS_PIECE_CHARS)) + 2
    end = text.find('\n\n', start + CLASSICS_PIECE_CHARS)
    return text[start:end].strip()


def swap_names(rng, story, probability=0.7):
    """The story with its frequent names exchanged for others of the same kind, drawn by frequency:
    the same plot is then not learnt by heart with its names."""
    if rng.random() > probability:
        return story
    exchanged = {}

    def exchange(match):
        name = match[1]
        if name not in exchanged:
            exchanged[name] = _other_name(rng, name, set(exchanged.values()))
        return exchanged[name]

    return _STORY_NAME.sub(exchange, story)


def _other_name(rng, name, taken):
    frequencies = _BOYS if name in _BOYS else _GIRLS
    free = {other: count for other, count in frequencies.items() if other not in taken}
    return rng.choices(list(free), list(free.values()))[0]


def shorten(story, num_chars):
    """The story cut at the last end of a sentence within num_chars."""
    if len(story) <= num_chars:
        return story.strip()
    ends = ('. ', '! ', '? ', '.\n', '!\n')
    cut = max(story.rfind(end, 0, num_chars) for end in ends)
    if cut > 20:
        return story[:cut + 1].strip()
    return story[:num_chars].rsplit(' ', 1)[0] + '.'
