#include "tests/bench/bench_states.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace vivarium::bench {
namespace {

constexpr int64_t kConvRows = 3, kStateSize = 16;
constexpr uint64_t kBytesPerChannel = (kConvRows + kStateSize) * sizeof(float);
constexpr uint64_t kSmallBytes = 8'000'000;

}  // namespace

engine::StateLayout LayoutOfBytes(uint64_t num_bytes) {
  const uint64_t num_layers = num_bytes < kSmallBytes ? 24 : 64;
  const auto d_inner = static_cast<int64_t>(
      std::max<uint64_t>(num_bytes / num_layers / kBytesPerChannel / 16 * 16, 16));
  engine::StateLayout layout;
  const auto add = [&layout](std::string name, std::vector<int64_t> shape) {
    uint64_t size_bytes = sizeof(float);
    for (const int64_t extent : shape) size_bytes *= static_cast<uint64_t>(extent);
    layout.parts.push_back(
        {std::move(name), kernels::DType::kF32, std::move(shape), layout.slot_bytes, size_bytes});
    layout.slot_bytes += (size_bytes + 63) / 64 * 64;
  };
  for (uint64_t layer = 0; layer < num_layers; ++layer) {
    add(absl::StrCat("layers.", layer, ".conv"), {kConvRows, d_inner});
    add(absl::StrCat("layers.", layer, ".ssm"), {d_inner / 16, kStateSize, 16});
  }
  return layout;
}

engine::StateBuffer RandomSlot(const engine::StateLayout& layout, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  engine::StateBuffer slot(layout.slot_bytes);
  for (const engine::StatePart& part : layout.parts) {
    for (uint64_t offset = 0; offset < part.size_bytes; offset += sizeof(float)) {
      const float value = normal(random) * std::ldexp(1.0f, -static_cast<int>(random() % 12));
      std::memcpy(slot.data() + part.offset_bytes + offset, &value, sizeof(value));
    }
  }
  return slot;
}

statestore::StateManifest BenchManifest(const statestore::StateId& id,
                                        const engine::StateLayout& layout,
                                        statestore::StateCodec codec) {
  statestore::StateManifest manifest;
  manifest.id = id;
  manifest.tenant = kBenchTenant;
  manifest.identity = {"fp-0123456789abcdef", "tok-fedcba", "cpu"};
  manifest.layout = layout;
  for (int32_t i = 0; i < 100; ++i) manifest.transcript.push_back({i, i % 2 == 0});
  manifest.position = manifest.transcript.size() - 1;
  manifest.recent_tokens = manifest.transcript;
  manifest.pending_token = manifest.transcript.back().id;
  manifest.created = absl::Now();
  manifest.codec = codec;
  return manifest;
}

}  // namespace vivarium::bench
