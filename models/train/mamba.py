"""A Mamba-1 language model with a hand-written backward pass, for training on a CPU.

Parameters are float32 in one flat tensor, so that processes can share it. Matrix products run in
bfloat16 (about twice as fast as float32 where the CPU has AVX512-BF16); all else is float32 in
fused_layer.c. gradient_check.py compares the loss and every gradient with torch's autograd.

Shapes: L steps, B sequences, R = L * B rows (time-major: row = t * B + b), d = d_model,
E = d_inner, N = d_state, K = dt_rank, V = vocab_size.
"""

import ctypes
import dataclasses
import math

import torch

NUM_TAPS = 4
NUM_STATES = 16
KEPT_EVERY = 32  # kChunk of fused_layer.c


@dataclasses.dataclass(frozen=True)
class Dims:
    """Sizes of a model; d_state and the convolution's width are fixed by fused_layer.c."""

    d_model: int = 256
    num_layers: int = 6
    vocab_size: int = 2048
    dt_rank: int = 16
    norm_eps: float = 1e-5

    @property
    def d_inner(self):
        return 2 * self.d_model


def layer_name(index, name):
    return f'backbone.layers.{index}.{name}'


def parameter_shapes(dims):
    """Hugging Face's MambaForCausalLM names -> shapes. The head is tied to the embedding."""
    d, inner = dims.d_model, dims.d_inner
    layer = {
        'norm.weight': (d,),
        'mixer.in_proj.weight': (2 * inner, d),
        'mixer.conv1d.weight': (inner, 1, NUM_TAPS),
        'mixer.conv1d.bias': (inner,),
        'mixer.x_proj.weight': (dims.dt_rank + 2 * NUM_STATES, inner),
        'mixer.dt_proj.weight': (inner, dims.dt_rank),
        'mixer.dt_proj.bias': (inner,),
        'mixer.A_log': (inner, NUM_STATES),
        'mixer.D': (inner,),
        'mixer.out_proj.weight': (d, inner),
    }
    shapes = {'backbone.embeddings.weight': (dims.vocab_size, d)}
    for index in range(dims.num_layers):
        shapes.update({layer_name(index, name): shape for name, shape in layer.items()})
    shapes['backbone.norm_f.weight'] = (d,)
    return shapes


def num_parameters(dims):
    return sum(math.prod(shape) for shape in parameter_shapes(dims).values())


def views(flat, dims):
    """Parameter name -> view into the flat tensor."""
    result, offset = {}, 0
    for name, shape in parameter_shapes(dims).items():
        size = math.prod(shape)
        result[name] = flat[offset:offset + size].view(shape)
        offset += size
    return result


def initialise(parameters, dims, seed):
    """The reference initialisation: uniform linears, out_proj scaled by 1/sqrt(layers),
    A = -(1..N), delta between 1e-3 and 1e-1 (log-uniform)."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in parameters.items():
        if name.endswith('embeddings.weight'):
            tensor.normal_(0, 0.02, generator=generator)
        elif 'norm' in name or name.endswith('mixer.D'):
            tensor.fill_(1)
        elif name.endswith('A_log'):
            tensor.copy_(torch.log(torch.arange(1, NUM_STATES + 1).float()).expand_as(tensor))
        elif name.endswith('dt_proj.bias'):
            log_low, log_high = math.log(1e-3), math.log(1e-1)
            uniform = torch.rand(tensor.shape, generator=generator)
            delta = torch.exp(uniform * (log_high - log_low) + log_low).clamp(min=1e-4)
            tensor.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
        elif name.endswith('dt_proj.weight'):
            bound = dims.dt_rank**-0.5
            tensor.uniform_(-bound, bound, generator=generator)
        elif 'conv1d' in name:
            tensor.uniform_(-0.5, 0.5, generator=generator)
        else:
            bound = tensor.shape[1]**-0.5
            if 'out_proj' in name:
                bound /= math.sqrt(dims.num_layers)
            tensor.uniform_(-bound, bound, generator=generator)


def decay_mask(dims):
    """Flat mask: 1 for matrices that get weight decay, 0 for all else."""
    parts = []
    for name, shape in parameter_shapes(dims).items():
        decays = len(shape) == 2 and 'A_log' not in name and 'embeddings' not in name
        parts.append(torch.full((math.prod(shape),), float(decays)))
    return torch.cat(parts)


def drop_masks(dims, probabilities):
    """Dropout masks that stay the same over time: one of (B, d) for the embedding and one for every
    layer's output, scaled to keep the mean. `probabilities` has one entry per sequence. None if
    nothing is dropped."""
    if not any(probabilities):
        return None
    keep = 1 - torch.tensor(probabilities)[:, None].expand(len(probabilities), dims.d_model)
    return [torch.bernoulli(keep) / keep for _ in range(dims.num_layers + 1)]


class FusedLayer:
    """The functions of libfused_layer.so on contiguous float32 tensors."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)

    def call(self, name, *arguments):
        """Integers pass as int, floats as float, tensors as pointers; (tensor, n) points n floats
        into the tensor."""
        self._library[name](*[self._convert(argument) for argument in arguments])

    @staticmethod
    def _convert(argument):
        if isinstance(argument, int):
            return ctypes.c_int(argument)
        if isinstance(argument, float):
            return ctypes.c_float(argument)
        tensor, offset = argument if isinstance(argument, tuple) else (argument, 0)
        assert tensor.is_contiguous()
        return ctypes.c_void_p(tensor.data_ptr() + 4 * offset)


class Mamba:
    """Forward and backward pass over a batch whose sequences all start from an empty state."""

    def __init__(self, dims, fused, matmul_dtype=torch.bfloat16):
        self._dims = dims
        self._fused = fused
        self._dtype = matmul_dtype

    def loss(self, parameters, tokens, targets, weights, gradients=None, scale=1.0, masks=None):
        """Cross-entropy (L, B) in nats, unweighted. tokens, targets: (L, B) int64; weights: (L, B).
        With `gradients` (name -> view) adds the gradient of scale * sum(weights * loss) to them."""
        dims = self._dims
        length, batch = tokens.shape
        ids = tokens.reshape(-1)
        embedding = parameters['backbone.embeddings.weight']
        x = self._drop(embedding[ids], masks, 0, batch)  # (R, d)
        saved = []
        for index in range(dims.num_layers):
            x, layer_saved = self._layer_forward(parameters, index, x, batch, masks)
            saved.append(layer_saved if gradients is not None else None)
        normed, rstd = self._norm(x, parameters['backbone.norm_f.weight'])
        embedding_half = embedding.to(self._dtype)
        logits = (normed @ embedding_half.t()).float()  # (R, V)
        loss = torch.empty(length, batch)
        self._fused.call('cross_entropy', length * batch, dims.vocab_size, logits,
                         targets.contiguous(), weights.contiguous(), float(scale), loss)
        if gradients is None:
            return loss
        grad_logits = logits.to(self._dtype)
        gradients['backbone.embeddings.weight'] += (grad_logits.t() @ normed).float()
        grad_x = torch.zeros_like(x)
        self._norm_backward(x, parameters['backbone.norm_f.weight'], rstd,
                            (grad_logits @ embedding_half).float(), grad_x,
                            gradients['backbone.norm_f.weight'])
        for index in reversed(range(dims.num_layers)):
            self._layer_backward(parameters, gradients, index, saved.pop(), grad_x, batch, masks)
        gradients['backbone.embeddings.weight'].index_add_(
            0, ids, self._drop(grad_x, masks, 0, batch))
        return loss

    @staticmethod
    def _drop(x, masks, index, batch):
        if masks is None:
            return x
        return (x.view(-1, batch, x.shape[1]) * masks[index]).view_as(x)

    def _norm(self, x, weight):
        """(normed in the matmul dtype, rstd (R))."""
        out, rstd = torch.empty_like(x), torch.empty(x.shape[0])
        self._fused.call('rms_norm_forward', *x.shape, x, weight, self._dims.norm_eps, out, rstd)
        return out.to(self._dtype), rstd

    def _norm_backward(self, x, weight, rstd, grad_out, grad_x, grad_weight):
        self._fused.call('rms_norm_backward', *x.shape, x, weight, rstd, grad_out, grad_x,
                         grad_weight)

    def _layer_forward(self, parameters, index, x, batch, masks):
        """x (R, d) -> (x plus the layer's output, what the backward pass needs)."""
        dims, call = self._dims, self._fused.call
        rows, inner, rank = x.shape[0], dims.d_inner, dims.dt_rank
        length = rows // batch
        get = lambda name: parameters[layer_name(index, name)]
        half = lambda name: get(name).to(self._dtype)

        normed, rstd = self._norm(x, get('norm.weight'))
        xz = (normed @ half('mixer.in_proj.weight').t()).float()  # (R, 2E)
        conv_weight = get('mixer.conv1d.weight')[:, 0].t().contiguous()  # (taps, E)
        u = torch.empty(rows, inner)
        call('conv_silu_forward', length, batch, inner, xz, conv_weight, get('mixer.conv1d.bias'),
             u)
        u_half = u.to(self._dtype)
        rank_bc = (u_half @ half('mixer.x_proj.weight').t()).float()  # (R, K + 2N): delta, B, C
        rank_half = rank_bc[:, :rank].contiguous().to(self._dtype)
        delta = (rank_half @ half('mixer.dt_proj.weight').t()).float()  # (R, E)
        call('softplus_forward', rows, inner, delta, get('mixer.dt_proj.bias'))
        a = -torch.exp(get('mixer.A_log')).t().contiguous()  # (N, E)
        y = torch.empty(rows, inner)
        kept = torch.empty(-(-length // KEPT_EVERY), batch, NUM_STATES, inner)
        call('scan_forward', length, batch, inner, u, delta, (rank_bc, rank), rank_bc.shape[1], a,
             get('mixer.D'), xz, y, kept)
        y_half = y.to(self._dtype)
        out = (y_half @ half('mixer.out_proj.weight').t()).float()
        saved = (x, normed, rstd, xz, conv_weight, u, u_half, rank_bc, rank_half, delta, a, kept,
                 y_half)
        return x + self._drop(out, masks, index + 1, batch), saved

    def _layer_backward(self, parameters, gradients, index, saved, grad_x, batch, masks):
        """Adds the layer's part to grad_x (R, d) and to its parameters' gradients."""
        (x, normed, rstd, xz, conv_weight, u, u_half, rank_bc, rank_half, delta, a, kept,
         y_half) = saved
        dims, call = self._dims, self._fused.call
        rows, inner, rank, width = x.shape[0], dims.d_inner, dims.dt_rank, rank_bc.shape[1]
        length = rows // batch
        get = lambda name: parameters[layer_name(index, name)]
        half = lambda name: get(name).to(self._dtype)
        grad = lambda name: gradients[layer_name(index, name)]

        grad_out = self._drop(grad_x, masks, index + 1, batch).to(self._dtype)
        grad('mixer.out_proj.weight').add_(grad_out.t() @ y_half)
        grad_y = (grad_out @ half('mixer.out_proj.weight')).float()
        grad_u, grad_delta = torch.empty(rows, inner), torch.empty(rows, inner)
        grad_rank_bc, grad_xz = torch.empty(rows, width), torch.empty(rows, 2 * inner)
        grad_a = torch.zeros(NUM_STATES, inner)
        call('scan_backward', length, batch, inner, u, delta, (rank_bc, rank), width, a,
             get('mixer.D'), xz, kept, grad_y, grad_u, grad_delta, (grad_rank_bc, rank), grad_xz,
             grad_a, grad('mixer.D'), grad('mixer.dt_proj.bias'))
        grad('mixer.A_log').add_((grad_a * a).t())  # A = -exp(A_log), so dA / dA_log = A
        grad_delta_half = grad_delta.to(self._dtype)
        grad('mixer.dt_proj.weight').add_(grad_delta_half.t() @ rank_half)
        grad_rank_bc[:, :rank] = grad_delta_half @ half('mixer.dt_proj.weight')
        grad_half = grad_rank_bc.to(self._dtype)
        grad('mixer.x_proj.weight').add_(grad_half.t() @ u_half)
        grad_u += grad_half @ half('mixer.x_proj.weight')
        grad_conv = torch.zeros(NUM_TAPS, inner)
        call('conv_silu_backward', length, batch, inner, xz, conv_weight,
             get('mixer.conv1d.bias'), grad_u, grad_xz, grad_conv, grad('mixer.conv1d.bias'))
        grad('mixer.conv1d.weight')[:, 0].add_(grad_conv.t())
        grad_half = grad_xz.to(self._dtype)
        grad('mixer.in_proj.weight').add_(grad_half.t() @ normed)
        self._norm_backward(x, get('norm.weight'), rstd,
                            (grad_half @ half('mixer.in_proj.weight')).float(), grad_x,
                            grad('norm.weight'))
