"""Reads and writes .safetensors: 8 bytes of header length, a JSON header, the tensors' bytes."""

import json
import struct

import numpy as np


def bfloat16_bits(array):
    """float32 -> uint16 with the bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(array, '<f4').view('<u4')
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype('<u2')


def write(path, tensors, float32_names):
    """tensors: name -> float32 array; stored as bfloat16 except those in float32_names."""
    header, blobs, offset = {'__metadata__': {'format': 'pt'}}, [], 0
    for name in sorted(tensors):
        keep = name in float32_names
        array = np.asarray(tensors[name], '<f4')
        blob = (array if keep else bfloat16_bits(array)).tobytes()
        header[name] = {
            'dtype': 'F32' if keep else 'BF16',
            'shape': list(array.shape),
            'data_offsets': [offset, offset + len(blob)],
        }
        offset += len(blob)
        blobs.append(blob)
    encoded = json.dumps(header, separators=(',', ':')).encode()
    encoded += b' ' * (-len(encoded) % 8)
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(encoded)))
        file.write(encoded)
        for blob in blobs:
            file.write(blob)


def read(path):
    """name -> float32 array, from F32 and BF16 tensors."""
    with open(path, 'rb') as file:
        raw = file.read()
    start = 8 + struct.unpack('<Q', raw[:8])[0]
    tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name == '__metadata__':
            continue
        begin, end = entry['data_offsets']
        blob = raw[start + begin:start + end]
        if entry['dtype'] == 'F32':
            array = np.frombuffer(blob, '<f4')
        elif entry['dtype'] == 'BF16':
            array = (np.frombuffer(blob, '<u2').astype('<u4') << 16).view('<f4')
        else:
            raise ValueError(f'{path}: tensor {name}: dtype {entry["dtype"]}, expected F32 or BF16')
        tensors[name] = np.ascontiguousarray(array.reshape(entry['shape']))
    return tensors
