"""Trains the tokenizer on the stories and on generated dialogues.

Usage: python3 make_tokenizer.py --stories STORIES.txt --out DIR [--vocab-size 2048]
Writes DIR/tokenizer.json and DIR/tokenizer_config.json; takes seconds.
"""

import argparse
import json
import os
import random

import bpe
import corpora
import dialogues
import vocabulary

NUM_STORIES = 3500
NUM_DIALOGUES = 2500
DIALOGUE_TOKENS = 150
NAME_REPEATS = 120  # first names count as frequent words, so that most are one or two tokens


def training_texts(stories, seed):
    writer = dialogues.DialogueWriter(random.Random(seed),
                                      dialogues.StoryShelf(['Once upon a time.']))
    texts = list(stories[:NUM_STORIES])
    for _ in range(NUM_DIALOGUES):
        for turn in writer.dense(DIALOGUE_TOKENS):
            texts.append(''.join(segment.text for segment in turn.segments))
    texts += [' ' + name for name in vocabulary.FIRST_NAMES for _ in range(NAME_REPEATS)]
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stories', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--vocab-size', type=int, default=2048)
    parser.add_argument('--seed', type=int, default=7)
    args = parser.parse_args()

    training, validation = corpora.read_stories(args.stories)
    tokenizer = bpe.Tokenizer(*bpe.train(training_texts(training, args.seed), args.vocab_size))
    os.makedirs(args.out, exist_ok=True)
    contents = {
        'tokenizer.json': tokenizer.tokenizer_json(),
        'tokenizer_config.json': bpe.tokenizer_config(),
    }
    for name, content in contents.items():
        with open(os.path.join(args.out, name), 'w', encoding='utf-8') as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
    num_bytes = sum(len(story.encode()) for story in validation)
    num_tokens = sum(len(tokenizer.encode(story)) for story in validation)
    print(f'{len(tokenizer.vocab)} tokens, {num_bytes / num_tokens:.2f} bytes per token')


if __name__ == '__main__':
    main()
