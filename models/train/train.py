"""Trains the model, data-parallel over single-threaded processes.

Weights, their moving average, AdamW's moments and the gradients lie in shared memory; every process
computes its part of a step's rows, then updates its slice of the weights. The schedule goes by
steps. The checkpoint is written every few minutes and holds all that --resume needs.

Usage: see README.md.
"""

import os

for _variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ.setdefault(_variable, '1')

import argparse
import dataclasses
import math
import random
import time

import torch
import torch.multiprocessing as multiprocessing

import bpe
import corpora
import dialogues
import mamba
import rows
import safetensors_file

BETA1, BETA2, ADAM_EPS = 0.9, 0.95, 1e-8
MAX_GRADIENT_NORM = 1.0
AVERAGE_DECAY = 0.998
FINAL_RATE = 0.02  # of the peak learning rate
VALIDATION_TOKENS = 513  # longer stories are left out
VALIDATION_BATCH = 16


class SharedState:
    """All tensors that the processes share; every one is flat and as long as the weights."""

    TENSORS = ('weights', 'average', 'first_moment', 'second_moment')

    def __init__(self, dims, num_processes):
        size = mamba.num_parameters(dims)
        self.weights, self.average, self.first_moment, self.second_moment = (
            torch.zeros(size).share_memory_() for _ in self.TENSORS)
        self.gradients = torch.zeros(num_processes, size).share_memory_()
        self.squared_norms = torch.zeros(num_processes).share_memory_()
        self.barrier = multiprocessing.get_context('fork').Barrier(num_processes)

    def save(self, path, dims, step, num_tokens):
        content = {name: getattr(self, name).clone() for name in self.TENSORS}
        content.update(dims=dataclasses.asdict(dims), step=step, num_tokens=num_tokens)
        torch.save(content, path + '.partial')
        os.replace(path + '.partial', path)

    def load(self, path):
        """Returns (step, num_tokens)."""
        content = torch.load(path)
        for name in self.TENSORS:
            getattr(self, name).copy_(content[name])
        return content['step'], content['num_tokens']


def learning_rate(args, step):
    """Linear warm-up, constant, then linear down to FINAL_RATE of the peak."""
    if step < args.warmup_steps:
        return args.lr * (step + 1) / args.warmup_steps
    decay_steps = args.steps * args.decay_share
    left = min(1.0, (args.steps - step) / max(1.0, decay_steps))
    return args.lr * (FINAL_RATE + (1 - FINAL_RATE) * left)


def encode_validation(tokenizer, stories):
    """(ids with <|endoftext|> at both ends, bytes) of every story that is not too long."""
    encoded = []
    for story in stories:
        ids = [0, *tokenizer.encode(story, special=False), 0]
        if len(ids) <= VALIDATION_TOKENS:
            encoded.append((ids, len(story.encode())))
    return sorted(encoded, key=lambda entry: len(entry[0]))


def bits_per_byte(model, parameters, validation):
    nats = num_bytes = 0
    for start in range(0, len(validation), VALIDATION_BATCH):
        group = validation[start:start + VALIDATION_BATCH]
        length = len(group[-1][0])
        ids = torch.zeros(length, len(group), dtype=torch.int64)
        mask = torch.zeros(length - 1, len(group))
        for column, (story, story_bytes) in enumerate(group):
            ids[:len(story), column] = torch.tensor(story)
            mask[:len(story) - 1, column] = 1
            num_bytes += story_bytes
        loss = model.loss(parameters, ids[:-1], ids[1:], mask)
        nats += (loss * mask).sum().item()
    return nats / num_bytes / math.log(2)


class LossMeter:
    """Mean losses by kind of token, of one process."""

    def __init__(self):
        self._sums = {}

    def add(self, loss, weights, sources):
        """loss, weights: (L, B); sources: B names."""
        selections = {
            'echo': weights == dialogues.ECHO,
            'recall': weights == dialogues.RECALL,
        }
        for source in (rows.STORY, rows.CLASSIC):
            column = torch.tensor([name == source for name in sources])
            selections[source] = column.expand_as(loss)
        for name, selection in selections.items():
            total, count = self._sums.get(name, (0.0, 0))
            chosen = loss[selection]
            self._sums[name] = (total + chosen.sum().item(), count + chosen.numel())

    def report_and_reset(self):
        means = {name: total / max(1, count) for name, (total, count) in self._sums.items()}
        self._sums = {}
        return ' '.join(f'{name} {mean:.3f}' for name, mean in means.items())


class Worker:
    """One process: its rows, its gradients, its slice of the weights."""

    def __init__(self, args, rank, dims, shared):
        torch.set_num_threads(1)
        self._args, self._rank, self._dims, self._shared = args, rank, dims, shared
        self._model = mamba.Mamba(dims, mamba.FusedLayer(os.path.abspath(args.library)))
        self._parameters = mamba.views(shared.weights, dims)
        self._gradients = mamba.views(shared.gradients[rank], dims)
        size = shared.weights.numel()
        self._slice = slice(rank * size // args.processes, (rank + 1) * size // args.processes)
        self._decay = mamba.decay_mask(dims)[self._slice] * args.weight_decay
        tokenizer = bpe.Tokenizer.load(os.path.join(args.tokenizer, 'tokenizer.json'))
        training, validation = corpora.read_stories(args.stories)
        self._validation = encode_validation(tokenizer, validation)
        mixture = rows.Mixture(args.row_tokens, args.dialogue_share, args.classics_share)
        rng = random.Random(f'{args.seed} {rank}')
        self._rows = rows.RowSource(rng, tokenizer, training, corpora.read_classics(args.classics),
                                    mixture)
        torch.manual_seed(args.seed * args.processes + rank)

    def run(self, step, num_tokens):
        args, meter = self._args, LossMeter()
        start = last_log = last_save = time.monotonic()
        first_tokens = num_tokens
        while step < args.steps:
            loss, weights, sources = self._compute_gradients()
            norm = self._update(step)
            step += 1
            num_tokens += loss.numel() * args.processes
            if self._rank != 0:
                continue
            meter.add(loss, weights, sources)
            now = time.monotonic()
            if now - last_log >= args.log_seconds or step == args.steps:
                last_log = now
                rate = (num_tokens - first_tokens) / (now - start)
                print(f'step {step} {now - start:.0f}s tokens {num_tokens} tok/s {rate:.0f} '
                      f'lr {learning_rate(args, step):.2e} norm {norm:.2f} '
                      f'{meter.report_and_reset()}', flush=True)  # yapf: disable
            if now - last_save >= args.save_seconds or step == args.steps:
                last_save = now
                self._shared.save(args.out, self._dims, step, num_tokens)
                print(f'saved at step {step}; {self._validate()}', flush=True)

    def _compute_gradients(self):
        """One part of a step. Returns (loss (L, B), weights (L, B), the rows' sources)."""
        args = self._args
        batch = [self._rows.next() for _ in range(args.rows_per_process)]
        ids = torch.tensor([row.ids for row in batch]).t().contiguous()
        weights = torch.tensor([row.weights for row in batch]).t()[1:].contiguous()
        masks = mamba.drop_masks(
            self._dims, [args.dropout if row.source == rows.STORY else 0.0 for row in batch])
        self._shared.gradients[self._rank].zero_()
        scale = 1 / (args.processes * weights.sum().item())
        loss = self._model.loss(self._parameters, ids[:-1], ids[1:], weights, self._gradients,
                                scale, masks)
        return loss, weights, [row.source for row in batch]

    def _update(self, step):
        """AdamW on this process's slice, in step with the others. Returns the gradient's norm."""
        shared, own = self._shared, self._slice
        shared.barrier.wait()
        gradient = shared.gradients[:, own].sum(0)
        shared.squared_norms[self._rank] = gradient.pow(2).sum()
        shared.barrier.wait()
        norm = shared.squared_norms.sum().sqrt().item()
        gradient *= min(1.0, MAX_GRADIENT_NORM / (norm + 1e-6))
        rate = learning_rate(self._args, step)
        first, second = shared.first_moment[own], shared.second_moment[own]
        first.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        denominator = (second / (1 - BETA2**(step + 1))).sqrt_().add_(ADAM_EPS)
        weights = shared.weights[own]
        weights.sub_(rate * self._decay * weights)
        weights.addcdiv_(first, denominator, value=-rate / (1 - BETA1**(step + 1)))
        shared.average[own].lerp_(weights, 1 - min(AVERAGE_DECAY, (step + 1) / (step + 10)))
        shared.barrier.wait()
        return norm

    def _validate(self):
        average = mamba.views(self._shared.average, self._dims)
        plain = bits_per_byte(self._model, self._parameters, self._validation)
        averaged = bits_per_byte(self._model, average, self._validation)
        return f'validation {plain:.4f} bits/byte, averaged weights {averaged:.4f}'


def run_worker(args, rank, dims, shared, step, num_tokens):
    Worker(args, rank, dims, shared).run(step, num_tokens)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--library', default='./libfused_layer.so')
    parser.add_argument('--tokenizer', required=True, help='directory with tokenizer.json')
    parser.add_argument('--stories', required=True)
    parser.add_argument('--classics', required=True, help='gzipped text')
    parser.add_argument('--out', required=True, help='the checkpoint to write')
    start = parser.add_mutually_exclusive_group()
    start.add_argument('--resume', help='a checkpoint to go on from, with its step and moments')
    start.add_argument('--start-from', help='a model directory whose weights to start from')
    parser.add_argument('--steps', type=int, default=6000)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--rows-per-process', type=int, default=2)
    parser.add_argument('--row-tokens', type=int, default=768)
    parser.add_argument('--dialogue-share', type=float, default=0.5)
    parser.add_argument('--classics-share', type=float, default=0.25)
    parser.add_argument('--dropout', type=float, default=0.15, help='on rows of stories')
    parser.add_argument('--lr', type=float, default=1.2e-3)
    parser.add_argument('--warmup-steps', type=int, default=100)
    parser.add_argument('--decay-share', type=float, default=1.0, help='last part of the steps')
    parser.add_argument('--weight-decay', type=float, default=0.05)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--log-seconds', type=float, default=20)
    parser.add_argument('--save-seconds', type=float, default=180)
    return parser.parse_args()


def main():
    args = parse_arguments()
    tokenizer = bpe.Tokenizer.load(os.path.join(args.tokenizer, 'tokenizer.json'))
    dims = mamba.Dims(vocab_size=len(tokenizer.vocab))
    shared = SharedState(dims, args.processes)
    step = num_tokens = 0
    if args.resume:
        step, num_tokens = shared.load(args.resume)
    else:
        parameters = mamba.views(shared.weights, dims)
        mamba.initialise(parameters, dims, args.seed)
        if args.start_from:
            path = os.path.join(args.start_from, 'model.safetensors')
            for name, array in safetensors_file.read(path).items():
                parameters[name].copy_(torch.from_numpy(array.copy()))
        shared.average.copy_(shared.weights)
    print(f'{mamba.num_parameters(dims) / 1e6:.2f}M parameters; {vars(args)}', flush=True)
    context = multiprocessing.get_context('fork')
    processes = [
        context.Process(target=run_worker, args=(args, rank, dims, shared, step, num_tokens))
        for rank in range(args.processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == '__main__':
    main()
