#include "tests/statestore/state_samples.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"

namespace vivarium::statestore {
namespace {

using engine::StateLayout;
using engine::TranscriptToken;

std::vector<TranscriptToken> SampleTokens(std::mt19937_64& random, size_t num_tokens) {
  std::vector<TranscriptToken> tokens;
  for (size_t i = 0; i < num_tokens; ++i) {
    tokens.push_back({static_cast<int32_t>(random() % 50'000), random() % 2 == 0});
  }
  return tokens;
}

}  // namespace

TemporaryDirectory::TemporaryDirectory() {
  std::string path = (std::filesystem::temp_directory_path() / "vivarium_store_").string();
  path.append(6, 'X');  // mkdtemp fills them in
  if (mkdtemp(path.data()) == nullptr) std::abort();
  path_ = path;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

StateId SampleId(uint64_t number) {
  static constexpr char kAlphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";
  std::string ulid(26, '0');
  for (size_t i = ulid.size(); i-- > 0; number >>= 5) ulid[i] = kAlphabet[number & 31];
  return "st_" + ulid;
}

StateLayout SampleLayout(int num_layers) {
  StateLayout layout;
  uint64_t offset_bytes = 0;
  for (int layer = 0; layer < num_layers; ++layer) {
    layout.parts.push_back({absl::StrCat("layers.", layer, ".conv"),
                            kernels::DType::kF32,
                            {3, 5},
                            offset_bytes,
                            3 * 5 * 4});
    offset_bytes += 64;  // 60 and padding
    layout.parts.push_back({absl::StrCat("layers.", layer, ".ssm"),
                            kernels::DType::kF32,
                            {2, 4, 16},
                            offset_bytes,
                            2 * 4 * 16 * 4});
    offset_bytes += 512;
  }
  layout.slot_bytes = offset_bytes;
  return layout;
}

StateManifest SampleManifest(const StateId& id, uint64_t seed, int num_layers) {
  std::mt19937_64 random(seed);
  StateManifest manifest;
  manifest.id = id;
  manifest.tenant = kTenant;
  manifest.identity = {"fp-0123456789abcdef", "tok-fedcba", "cpu/avx2/f32/1"};
  manifest.layout = SampleLayout(num_layers);
  manifest.position = random() % 100'000;
  manifest.pending_token = static_cast<int32_t>(random() % 50'000);
  manifest.sampling.temperature = 0.7f;
  manifest.sampling.top_k = 40;
  manifest.sampling.seed = random();
  manifest.sampling.logit_bias = {{3, -1.5f}, {17, 2.25f}};
  manifest.recent_tokens = SampleTokens(random, random() % 20);
  manifest.text_tail = "\xe2\x82";
  manifest.transcript = SampleTokens(random, random() % 20);
  manifest.labels = {{"kind", absl::StrCat("k", seed % 3)}, {"n", absl::StrCat(seed)}};
  manifest.created = absl::FromUnixMillis(1'700'000'000'000 + static_cast<int64_t>(seed % 1000));
  return manifest;
}

engine::StateBuffer SampleSlot(const StateLayout& layout, uint64_t seed) {
  std::mt19937_64 random(seed);
  engine::StateBuffer slot(layout.slot_bytes);
  for (const engine::StatePart& part : layout.parts) {
    for (uint64_t offset = 0; offset < part.size_bytes; offset += 4) {
      const float value = static_cast<float>(static_cast<int64_t>(random() % 2001) - 1000) / 64;
      std::memcpy(slot.data() + part.offset_bytes + offset, &value, sizeof(value));
    }
  }
  return slot;
}

SavedState SampleState(const StateId& id, uint64_t seed, int num_layers) {
  SavedState state;
  state.manifest = SampleManifest(id, seed, num_layers);
  state.slot = SampleSlot(state.manifest.layout, seed);
  return state;
}

SavedState MixedSampleState(uint64_t number) {
  static constexpr int kLayers[] = {32, 16, kSampleLayers};
  return SampleState(SampleId(number), number, kLayers[number % 3]);
}

Commit CommitOf(const SavedState& state) {
  Commit commit;
  commit.tenant = state.manifest.tenant;
  commit.states.push_back({state.manifest, &state.slot});
  return commit;
}

StateFilter FilterOf(Labels labels, const std::string& session, const StateId& parent_id) {
  StateFilter filter;
  filter.labels = std::move(labels);
  filter.session = session;
  filter.parent_id = parent_id;
  return filter;
}

StateFilter WithDropped() {
  StateFilter filter;
  filter.include_dropped = true;
  return filter;
}

void ExpectSameManifest(const StateManifest& found, const StateManifest& expected) {
  EXPECT_EQ(found.id, expected.id);
  EXPECT_EQ(found.tenant, expected.tenant);
  EXPECT_EQ(found.parent_id, expected.parent_id);
  EXPECT_EQ(found.identity, expected.identity);
  EXPECT_EQ(found.layout, expected.layout);
  EXPECT_EQ(found.position, expected.position);
  EXPECT_EQ(found.pending_token, expected.pending_token);
  EXPECT_EQ(found.sampling, expected.sampling);
  EXPECT_EQ(found.recent_tokens, expected.recent_tokens);
  EXPECT_EQ(found.text_tail, expected.text_tail);
  EXPECT_EQ(found.transcript, expected.transcript);
  EXPECT_EQ(found.session, expected.session);
  EXPECT_EQ(found.labels, expected.labels);
  EXPECT_EQ(found.pinned, expected.pinned);
  EXPECT_EQ(found.created, expected.created);
  EXPECT_EQ(found.expires, expected.expires);
  EXPECT_EQ(found.bytes_dropped, expected.bytes_dropped);
  EXPECT_EQ(found.loss, expected.loss);
  EXPECT_EQ(found.inherited_loss, expected.inherited_loss);
  EXPECT_EQ(found.is_snapshot, expected.is_snapshot);
  EXPECT_EQ(found.snapshots, expected.snapshots);
  EXPECT_EQ(found.prefix_hash, expected.prefix_hash);
}

void ExpectSameState(const SavedState& found, const SavedState& expected) {
  ExpectSameManifest(found.manifest, expected.manifest);
  ASSERT_EQ(found.slot.size(), expected.slot.size());
  EXPECT_EQ(std::memcmp(found.slot.data(), expected.slot.data(), found.slot.size()), 0);
}

}  // namespace vivarium::statestore
