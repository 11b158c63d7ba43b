// States of a given size, with numbers like a model's, for benchmarks of the store.
#pragma once

#include <cstdint>

#include "engine/runtime/state.h"
#include "statestore/state_store.h"

namespace vivarium::bench {

inline constexpr char kBenchTenant[] = "default";

// Layers of conv and ssm, f32, of about `num_bytes` together.
engine::StateLayout LayoutOfBytes(uint64_t num_bytes);

// Normally distributed numbers of many magnitudes.
engine::StateBuffer RandomSlot(const engine::StateLayout& layout, uint64_t seed);

// A root state of that layout, with a short transcript.
statestore::StateManifest BenchManifest(const statestore::StateId& id,
                                        const engine::StateLayout& layout,
                                        statestore::StateCodec codec);

}  // namespace vivarium::bench
