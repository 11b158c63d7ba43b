#!/usr/bin/env python3
"""A second client for the cross-check of `vivarium bench`: one user, one request after the other,
timed with nothing but grpcio. Prints one JSON object.

independent_client.py HOST:PORT PROTO_DIR WORK_DIR REQUESTS INPUT_TOKENS OUTPUT_TOKENS VOCAB
"""
import json
import random
import statistics
import subprocess
import sys
import time

server, proto_dir, work_dir = sys.argv[1:4]
num_requests, num_input, num_output, vocab = map(int, sys.argv[4:8])
protos = [f"vivarium/v1/{name}.proto" for name in ("generation", "states")]
subprocess.run(["protoc", f"-I{proto_dir}", f"--python_out={work_dir}", *protos], check=True)
sys.path.insert(0, work_dir)

import grpc  # noqa: E402
from vivarium.v1 import generation_pb2 as pb  # noqa: E402

generate = grpc.insecure_channel(server).unary_stream(
    "/vivarium.v1.Generation/Generate",
    request_serializer=pb.GenerateRequest.SerializeToString,
    response_deserializer=pb.GenerateResponse.FromString)

ttft, tpot, total = [], [], 0
draw = random.Random(5)
started = time.perf_counter()
for index in range(num_requests):
    request = pb.GenerateRequest(max_tokens=num_output)
    request.token_ids.ids.extend(draw.randrange(10, vocab) for _ in range(num_input))
    request.sampling.seed = index
    request.sampling.temperature = 1
    request.stops.ignore_eos = True
    sent = time.perf_counter()
    first = last = None
    tokens = 0
    for response in generate(request):
        if response.WhichOneof("event") == "delta" and response.delta.token_ids:
            last = time.perf_counter()
            first = first or last
            tokens += len(response.delta.token_ids)
    ttft.append(first - sent)
    tpot.append((last - first) / (tokens - 1))
    total += tokens
seconds = time.perf_counter() - started
print(json.dumps({"ttft_p50_ms": statistics.median(ttft) * 1e3,
                  "tpot_p50_ms": statistics.median(tpot) * 1e3,
                  "output_tokens": total, "output_tok_s": total / seconds}))
