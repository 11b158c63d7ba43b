"""A Mamba-1 read from its written directory, computed token by token in float32 with numpy.

Shares no code with the training's forward pass: it checks what was written.
Shapes: B sequences, V vocab_size, E intermediate_size, N state_size, K time_step_rank.
"""

import json
import os

import numpy as np

import safetensors_file


def _silu(x):
    return x / (1 + np.exp(-x))


class NumpyMamba:

    def __init__(self, directory):
        with open(os.path.join(directory, 'config.json')) as file:
            self._config = json.load(file)
        tensors = safetensors_file.read(os.path.join(directory, 'model.safetensors'))
        self._embedding = tensors['backbone.embeddings.weight']
        self._final_norm = tensors['backbone.norm_f.weight']
        self._layers = []
        for index in range(self._config['num_hidden_layers']):
            prefix = f'backbone.layers.{index}.'
            layer = {
                name[len(prefix):]: tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            layer['A'] = -np.exp(layer['mixer.A_log'])
            layer['taps'] = layer['mixer.conv1d.weight'][:, 0].T  # (taps, E)
            self._layers.append(layer)

    def empty_state(self, batch):
        """Per layer (the last inputs of the convolution (B, taps - 1, E), the state (B, E, N))."""
        inner, states = self._config['intermediate_size'], self._config['state_size']
        taps = self._config['conv_kernel']
        return [(np.zeros((batch, taps - 1, inner), 'f4'), np.zeros((batch, inner, states), 'f4'))
                for _ in self._layers]

    def step(self, tokens, state):
        """tokens (B) -> logits (B, V); the list `state` is updated."""
        x = self._embedding[tokens]
        for index, layer in enumerate(self._layers):
            out, state[index] = self._mixer(layer, self._norm(x, layer['norm.weight']),
                                            state[index])
            x = x + out
        return self._norm(x, self._final_norm) @ self._embedding.T

    def _norm(self, x, weight):
        mean_square = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(mean_square + self._config['layer_norm_epsilon']) * weight

    def _mixer(self, layer, x, layer_state):
        inner, rank = self._config['intermediate_size'], self._config['time_step_rank']
        states = self._config['state_size']
        inputs, h = layer_state
        xz = x @ layer['mixer.in_proj.weight'].T
        window = np.concatenate([inputs, xz[:, None, :inner]], axis=1)
        u = _silu((window * layer['taps']).sum(1) + layer['mixer.conv1d.bias'])
        projected = u @ layer['mixer.x_proj.weight'].T
        low_rank, b, c = np.split(projected, [rank, rank + states], axis=1)
        raw = low_rank @ layer['mixer.dt_proj.weight'].T + layer['mixer.dt_proj.bias']
        delta = np.logaddexp(0, raw).astype('f4')
        h = np.exp(delta[:, :, None] * layer['A']) * h + (delta * u)[:, :, None] * b[:, None, :]
        y = (h @ c[:, :, None])[:, :, 0] + layer['mixer.D'] * u
        out = (y * _silu(xz[:, inner:])) @ layer['mixer.out_proj.weight'].T
        return out, (window[:, 1:], h)

    def score(self, rows):
        """Nats of every row (token ids) after its first token, each from an empty state."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        state, live = self.empty_state(len(rows)), len(rows)
        nats = np.zeros(len(rows))
        for t in range(len(rows[order[0]]) - 1):
            while len(rows[order[live - 1]]) <= t + 1:
                live -= 1
            state = [(inputs[:live], h[:live]) for inputs, h in state]
            logits = self.step(np.array([rows[k][t] for k in order[:live]]), state)
            targets = [rows[k][t + 1] for k in order[:live]]
            highest = logits.max(1)
            total = np.log(np.exp(logits - highest[:, None]).sum(1)) + highest
            nats[order[:live]] += total - logits[np.arange(live), targets]
        return nats

    def generate(self, prompts, max_new_tokens, stop_ids, pick=lambda logits: logits.argmax(-1)):
        """The ids each prompt continues with, up to a stop id or max_new_tokens. All prompts are
        fed side by side, token by token."""
        state = self.empty_state(len(prompts))
        outputs = [[] for _ in prompts]
        done = [False] * len(prompts)
        current = [prompt[0] for prompt in prompts]
        for t in range(max(map(len, prompts)) + max_new_tokens):
            picked = pick(self.step(np.array(current), state))
            for k, prompt in enumerate(prompts):
                if t + 1 < len(prompt):
                    current[k] = prompt[t + 1]
                    continue
                current[k] = int(picked[k])
                done[k] = done[k] or current[k] in stop_ids or len(outputs[k]) >= max_new_tokens
                if not done[k]:
                    outputs[k].append(current[k])
            if all(done):
                break
        return outputs
