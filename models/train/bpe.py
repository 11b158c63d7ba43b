"""Byte-level BPE as in GPT-2 and Hugging Face's ByteLevel: trainer, encoder, decoder, file format.

The pre-tokenizer's regex is GPT-2's written for Python's `re`; the two agree on ASCII, to which all
training text is folded.
"""

import collections
import json
import re

SPECIAL_TOKENS = ['<|endoftext|>', '<|user|>', '<|assistant|>', '<|end|>']  # ids 0 to 3
_WORDS = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
_SPECIALS = re.compile('(' + '|'.join(map(re.escape, SPECIAL_TOKENS)) + ')')

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] }}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")


def _byte_characters():
    """byte -> the printable character that stands for it in the vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return table


_CHARACTER = _byte_characters()
_BYTE = {character: byte for byte, character in _CHARACTER.items()}


def _characters(word):
    return [_CHARACTER[byte] for byte in word.encode()]


def _merge(symbols, pair):
    """The symbols with every occurrence of the pair joined, from the left."""
    merged, k = [], 0
    while k < len(symbols):
        if tuple(symbols[k:k + 2]) == pair:
            merged.append(pair[0] + pair[1])
            k += 2
        else:
            merged.append(symbols[k])
            k += 1
    return merged


def train(texts, vocab_size):
    """(vocab: token -> id, merges) learnt from texts without special tokens."""
    counts = collections.Counter()
    for text in texts:
        counts.update(_WORDS.findall(text))
    words = [_characters(word) for word in counts]
    frequency = list(counts.values())
    pair_counts, words_with = collections.Counter(), collections.defaultdict(set)
    for index, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pair_counts[pair] += frequency[index]
            words_with[pair].add(index)
    tokens = SPECIAL_TOKENS + [_CHARACTER[byte] for byte in range(256)]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    merges = []
    while len(vocab) < vocab_size:
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))
        merges.append(best)
        vocab[best[0] + best[1]] = len(vocab)
        for index in list(words_with[best]):
            word = words[index]
            for pair in zip(word, word[1:]):
                pair_counts[pair] -= frequency[index]
            words[index] = _merge(word, best)
            for pair in zip(words[index], words[index][1:]):
                pair_counts[pair] += frequency[index]
                words_with[pair].add(index)
        del pair_counts[best], words_with[best]
    return vocab, merges


class Tokenizer:
    """Encodes and decodes with a vocabulary and its merges; words are cached."""

    def __init__(self, vocab, merges):
        self.vocab = vocab
        self._merges = merges
        self._rank = {tuple(pair): rank for rank, pair in enumerate(merges)}
        self._token = {token_id: token for token, token_id in vocab.items()}
        self._cache = {}

    @classmethod
    def load(cls, path):
        with open(path, encoding='utf-8') as file:
            model = json.load(file)['model']
        merges = [tuple(m.split(' ')) if isinstance(m, str) else tuple(m) for m in model['merges']]
        return cls(model['vocab'], merges)

    def encode(self, text, special=True):
        """Token ids; with special=False text that looks like a special token is plain text."""
        ids = []
        for part in _SPECIALS.split(text) if special else [text]:
            if special and part in SPECIAL_TOKENS:
                ids.append(self.vocab[part])
            else:
                for word in _WORDS.findall(part):
                    ids += self._encode_word(word)
        return ids

    def _encode_word(self, word):
        if word not in self._cache:
            symbols = _characters(word)
            while len(symbols) > 1:
                pairs = zip(symbols, symbols[1:])
                best = min(pairs, key=lambda pair: self._rank.get(pair, len(self._rank)))
                if best not in self._rank:
                    break
                symbols = _merge(symbols, best)
            self._cache[word] = [self.vocab[symbol] for symbol in symbols]
        return self._cache[word]

    def decode(self, ids):
        parts = []
        for token_id in ids:
            token = self._token[int(token_id)]
            special = token in SPECIAL_TOKENS
            parts.append(token.encode() if special else bytes(_BYTE[c] for c in token))
        return b''.join(parts).decode(errors='replace')

    def tokenizer_json(self):
        """The content of Hugging Face's tokenizer.json."""
        byte_level = {
            'type': 'ByteLevel',
            'add_prefix_space': False,
            'trim_offsets': True,
            'use_regex': True,
        }
        added = [{
            'id': self.vocab[token],
            'content': token,
            'single_word': False,
            'lstrip': False,
            'rstrip': False,
            'normalized': False,
            'special': True,
        } for token in SPECIAL_TOKENS]
        model = {
            'type': 'BPE',
            'dropout': None,
            'unk_token': None,
            'continuing_subword_prefix': None,
            'end_of_word_suffix': None,
            'fuse_unk': False,
            'byte_fallback': False,
            'ignore_merges': False,
            'vocab': self.vocab,
            'merges': [' '.join(pair) for pair in self._merges],
        }
        return {
            'version': '1.0',
            'truncation': None,
            'padding': None,
            'added_tokens': added,
            'normalizer': None,
            'pre_tokenizer': byte_level,
            'post_processor': None,
            'decoder': byte_level,
            'model': model,
        }


def tokenizer_config():
    """The content of tokenizer_config.json."""
    return {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'bos_token': None,
        'eos_token': '<|end|>',
        'pad_token': '<|endoftext|>',
        'unk_token': None,
        'add_bos_token': False,
        'add_prefix_space': False,
        'clean_up_tokenization_spaces': False,
        'model_max_length': 1000000,
        'chat_template': CHAT_TEMPLATE,
    }
