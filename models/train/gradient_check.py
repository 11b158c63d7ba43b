"""Compares mamba.py's loss and gradients with torch's autograd on a tiny model.

Usage: python3 gradient_check.py libfused_layer.so
Exits 1 if the worst relative error of a gradient exceeds 1e-3 in float32 or 3e-2 in bfloat16.
"""

import sys

import torch
import torch.nn.functional as F

import mamba

LENGTH, BATCH = 70, 3  # not a multiple of the scan's chunk


def reference_logits(parameters, dims, tokens, masks):
    """Step by step as in the paper: tokens (L, B) -> logits (L, B, V)."""
    rank, states = dims.dt_rank, mamba.NUM_STATES

    def norm(x, weight):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + dims.norm_eps) * weight

    x = parameters['backbone.embeddings.weight'][tokens] * masks[0]
    for index in range(dims.num_layers):
        get = lambda name: parameters[mamba.layer_name(index, name)]
        xz = norm(x, get('norm.weight')) @ get('mixer.in_proj.weight').t()
        u, z = xz.split(dims.d_inner, -1)
        padded = F.pad(u, (0, 0, 0, 0, 3, 0))
        weight = get('mixer.conv1d.weight')[:, 0]
        taps = [padded[k:k + len(tokens)] * weight[:, k] for k in range(mamba.NUM_TAPS)]
        u = F.silu(sum(taps) + get('mixer.conv1d.bias'))
        low_rank, b, c = (u @ get('mixer.x_proj.weight').t()).split([rank, states, states], -1)
        delta = F.softplus(low_rank @ get('mixer.dt_proj.weight').t() + get('mixer.dt_proj.bias'))
        a = -torch.exp(get('mixer.A_log'))
        state, outputs = torch.zeros(tokens.shape[1], dims.d_inner, states), []
        for t in range(len(tokens)):
            decay = torch.exp(delta[t].unsqueeze(-1) * a)
            state = decay * state + (delta[t] * u[t]).unsqueeze(-1) * b[t].unsqueeze(1)
            outputs.append((state * c[t].unsqueeze(1)).sum(-1))
        y = (torch.stack(outputs) + get('mixer.D') * u) * F.silu(z)
        x = x + (y @ get('mixer.out_proj.weight').t()) * masks[index + 1]
    x = norm(x, parameters['backbone.norm_f.weight'])
    return x @ parameters['backbone.embeddings.weight'].t()


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dims = mamba.Dims(d_model=32, num_layers=2, vocab_size=64)
    flat = torch.empty(mamba.num_parameters(dims))
    parameters = mamba.views(flat, dims)
    mamba.initialise(parameters, dims, seed=0)
    parameters['backbone.embeddings.weight'].normal_(0, 0.5)
    tokens = torch.randint(0, dims.vocab_size, (LENGTH, BATCH))
    targets = torch.randint(0, dims.vocab_size, (LENGTH, BATCH))
    weights = torch.rand(LENGTH, BATCH)
    masks = mamba.drop_masks(dims, [0.0, 0.2, 0.5])
    scale = 1 / (LENGTH * BATCH)

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    logits = reference_logits(leaves, dims, tokens, masks).reshape(-1, dims.vocab_size)
    losses = F.cross_entropy(logits, targets.reshape(-1), reduction='none')
    expected = (losses * weights.reshape(-1)).sum() * scale
    expected.backward()

    failed = False
    for dtype, bound in ((torch.float32, 1e-3), (torch.bfloat16, 3e-2)):
        flat_gradients = torch.zeros_like(flat)
        gradients = mamba.views(flat_gradients, dims)
        model = mamba.Mamba(dims, mamba.FusedLayer(sys.argv[1]), dtype)
        loss = model.loss(parameters, tokens, targets, weights, gradients, scale, masks)
        errors = {}
        for name, leaf in leaves.items():
            errors[name] = ((gradients[name] - leaf.grad).norm() / leaf.grad.norm()).item()
        worst = max(errors, key=errors.get)
        got = (loss * weights).sum().item() * scale
        print(f'{dtype}: loss {got:.6f}, reference {expected.item():.6f}; '
              f'worst relative gradient error {errors[worst]:.1e} ({worst})')
        failed |= errors[worst] > bound
    sys.exit(failed)


if __name__ == '__main__':
    main()
