"""Writes a checkpoint of train.py as a directory in Hugging Face's MambaForCausalLM layout.

Usage: python3 export.py CHECKPOINT TOKENIZER_DIR OUT_DIR [--average]
"""

import argparse
import json
import os
import shutil

import torch

import mamba
import safetensors_file

_FLOAT32_SUFFIXES = ('A_log', 'mixer.D', 'dt_proj.bias')  # small, and sensitive to rounding


def model_config(dims):
    """The content of config.json."""
    return {
        'architectures': ['MambaForCausalLM'],
        'model_type': 'mamba',
        'bos_token_id': 0,
        'eos_token_id': 3,
        'pad_token_id': 0,
        'vocab_size': dims.vocab_size,
        'hidden_size': dims.d_model,
        'intermediate_size': dims.d_inner,
        'num_hidden_layers': dims.num_layers,
        'state_size': mamba.NUM_STATES,
        'conv_kernel': mamba.NUM_TAPS,
        'expand': 2,
        'time_step_rank': dims.dt_rank,
        'hidden_act': 'silu',
        'use_bias': False,
        'use_conv_bias': True,
        'layer_norm_epsilon': dims.norm_eps,
        'rms_norm': True,
        'residual_in_fp32': True,
        'fused_add_norm': True,
        'rescale_prenorm_residual': True,
        'initializer_range': 0.02,
        'time_step_min': 0.001,
        'time_step_max': 0.1,
        'time_step_floor': 0.0001,
        'time_step_scale': 1.0,
        'time_step_init_scheme': 'random',
        'tie_word_embeddings': True,
        'use_cache': True,
        'torch_dtype': 'bfloat16',
    }


GENERATION_CONFIG = {
    'bos_token_id': 0,
    'eos_token_id': [3, 0],
    'pad_token_id': 0,
    'do_sample': True,
    'temperature': 0.7,
    'top_k': 40,
    'max_new_tokens': 300,
}


def export(flat, dims, tokenizer_dir, out_dir):
    """Writes weights (bfloat16; A_log, D and dt_proj.bias float32), configs and tokenizer."""
    os.makedirs(out_dir, exist_ok=True)
    tensors = {name: view.numpy() for name, view in mamba.views(flat, dims).items()}
    float32_names = [name for name in tensors if name.endswith(_FLOAT32_SUFFIXES)]
    safetensors_file.write(os.path.join(out_dir, 'model.safetensors'), tensors, float32_names)
    for name, content in (('config.json', model_config(dims)),
                          ('generation_config.json', GENERATION_CONFIG)):
        with open(os.path.join(out_dir, name), 'w') as file:
            json.dump(content, file, indent=1)
    for name in ('tokenizer.json', 'tokenizer_config.json'):
        shutil.copyfile(os.path.join(tokenizer_dir, name), os.path.join(out_dir, name))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint')
    parser.add_argument('tokenizer_dir')
    parser.add_argument('out_dir')
    parser.add_argument('--average', action='store_true', help='the moving average of the weights')
    args = parser.parse_args()
    checkpoint = torch.load(args.checkpoint)
    flat = checkpoint['average' if args.average else 'weights']
    export(flat, mamba.Dims(**checkpoint['dims']), args.tokenizer_dir, args.out_dir)
    print(f'{args.out_dir}: step {checkpoint["step"]}, {checkpoint["num_tokens"]} tokens')


if __name__ == '__main__':
    main()
