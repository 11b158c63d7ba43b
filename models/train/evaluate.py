"""Measures a model from its written directory only: bits per byte, recall, samples.

Usage: python3 evaluate.py MODEL_DIR --stories HELDOUT.txt --recall RECALL.jsonl [--samples]
Every story and dialogue starts from an empty state; answers are greedy; a question counts as
answered when the answer contains the expected value as a whole word. Prints one JSON object.
"""

import os

for _variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ.setdefault(_variable, '1')

import argparse
import collections
import json
import math
import multiprocessing
import re

import numpy as np

import bpe
import numpy_mamba

END_OF_TEXT, END = 0, 3
MAX_ANSWER_TOKENS = 24
MAX_SAMPLE_TOKENS = 160
BATCH = 64
SAMPLE_PROMPTS = [
    '<|endoftext|>Once upon a time, there was a little girl named Lily.',
    '<|user|>Tell me a story.<|end|><|assistant|>',
    '<|user|>I have a dog called Biscuit.<|end|><|assistant|>Good to know!<|end|>'
    '<|user|>Tell me a story about my dog.<|end|><|assistant|>',
]


def read_stories(path):
    with open(path) as file:
        return [story.strip() for story in file.read().split('<|endoftext|>') if story.strip()]


def read_recall_set(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def render(messages):
    """The chat template of tokenizer_config.json, with the generation prompt."""
    parts = []
    for message in messages:
        role = 'assistant' if message['role'] == 'assistant' else 'user'
        parts.append(f'<|{role}|>{message["content"]}<|end|>')
    return ''.join(parts) + '<|assistant|>'


def is_right(answer, expected):
    return re.search(rf'(?<!\w){re.escape(expected)}(?!\w)', answer) is not None


def score_stories(directory, stories):
    """(nats, predicted tokens, bytes) over the stories."""
    tokenizer, model = load(directory)
    encoded = [tokenizer.encode(story, special=False) for story in stories]
    nats = model.score([[END_OF_TEXT, *ids, END_OF_TEXT] for ids in encoded])
    num_tokens = sum(len(ids) + 1 for ids in encoded)
    return float(nats.sum()), num_tokens, sum(len(story.encode()) for story in stories)


def answer_questions(directory, cases):
    tokenizer, model = load(directory)
    prompts = [tokenizer.encode(render(case['messages'])) for case in cases]
    outputs = model.generate(prompts, MAX_ANSWER_TOKENS, (END_OF_TEXT, END))
    return [tokenizer.decode(ids) for ids in outputs]


def load(directory):
    tokenizer = bpe.Tokenizer.load(os.path.join(directory, 'tokenizer.json'))
    return tokenizer, numpy_mamba.NumpyMamba(directory)


def batches(items):
    return [items[start:start + BATCH] for start in range(0, len(items), BATCH)]


def tally(cases, answers):
    """Accuracy by group and distance, by kind, and the wrong answers."""
    groups = collections.defaultdict(list)
    kinds = collections.defaultdict(list)
    wrong = []
    for case, answer in zip(cases, answers):
        right = is_right(answer, case['expected'])
        distance = case['distance_tokens'] // 100 * 100
        groups[f'{case["group"]} at {distance}+ tokens'].append(right)
        kinds[case['kind']].append(right)
        if not right:
            wrong.append(f'{case["kind"]} {case["key"]} = {case["expected"]} -> {answer}')
    ratio = lambda table: {name: f'{sum(hits)}/{len(hits)}' for name, hits in table.items()}
    return {'groups': ratio(groups), 'kinds': ratio(kinds), 'wrong_answers': wrong}


def sample(directory, temperature=0.7, top_k=40, seed=5):
    """Continuations of SAMPLE_PROMPTS."""
    tokenizer, model = load(directory)
    rng = np.random.default_rng(seed)

    def pick(logits):
        picked = []
        for row in logits / temperature:
            best = np.argsort(row)[-top_k:]
            weights = np.exp(row[best] - row[best].max())
            picked.append(rng.choice(best, p=weights / weights.sum()))
        return picked

    prompts = [tokenizer.encode(prompt) for prompt in SAMPLE_PROMPTS]
    outputs = model.generate(prompts, MAX_SAMPLE_TOKENS, (END_OF_TEXT, END), pick)
    return [prompt + tokenizer.decode(ids) for prompt, ids in zip(SAMPLE_PROMPTS, outputs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model')
    parser.add_argument('--stories')
    parser.add_argument('--recall')
    parser.add_argument('--samples', action='store_true')
    parser.add_argument('--processes', type=int, default=2)
    args = parser.parse_args()
    report = {}
    with multiprocessing.Pool(args.processes) as pool:
        if args.recall:
            cases = read_recall_set(args.recall)
            jobs = [(args.model, batch) for batch in batches(cases)]
            answers = sum(pool.starmap(answer_questions, jobs, chunksize=1), [])
            report['recall'] = tally(cases, answers)
        if args.stories:
            jobs = [(args.model, batch) for batch in batches(read_stories(args.stories))]
            results = pool.starmap(score_stories, jobs, chunksize=1)
            nats, num_tokens, num_bytes = (sum(column) for column in zip(*results))
            report['stories'] = {
                'bits_per_byte': nats / num_bytes / math.log(2),
                'nats_per_token': nats / num_tokens,
                'tokens': num_tokens,
                'bytes': num_bytes,
            }
    if args.samples:
        report['samples'] = sample(args.model)
    print(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
