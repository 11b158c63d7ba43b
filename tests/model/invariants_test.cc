// Bits that must not depend on chunking, neighbours, slots or threads. No tolerance anywhere here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/support/mamba_files.h"
#include "tests/support/model_harness.h"
#include "tests/support/temp_dir.h"

namespace vivarium {
namespace {

using engine::Batch;
using engine::WeightFormat;
using kernels::DType;
using kernels::kPadSlot;
using kernels::kPreviousSegment;
using kernels::Segment;
using test::HarnessOptions;
using test::MambaSpec;
using test::ModelHarness;

constexpr int32_t kNumSlots = 8;

struct Case {
  std::string isa;
  WeightFormat weights;
  bool is_falcon;
  DType state_dtype = DType::kF32;
};

constexpr const char* kNames[] = {"Auto", "Bf16", "F32", "Int8"};

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  return info.param.isa + kNames[static_cast<size_t>(info.param.weights)] +
         (info.param.is_falcon ? "Falcon" : "Mamba") +
         (info.param.state_dtype == DType::kBF16 ? "Bf16States" : "");
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class InvariantsTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    // Above every tile and vector width, and a multiple of none.
    MambaSpec spec;
    spec.num_layers = 3;
    spec.d_model = 70;
    spec.d_inner = 150;
    spec.d_state = 16;
    spec.dt_rank = 5;
    spec.vocab_size = 131;
    spec.is_falcon = GetParam().is_falcon;
    WriteMambaModel(spec, directory_.path());
    harness_ = Load(1);
    if (harness_ == nullptr) GTEST_SKIP() << "no " << GetParam().isa << " on this processor";
    for (int32_t slot = 0; slot < kNumSlots; ++slot) PoisonSlot(slot);
    for (int i = 0; i < 67; ++i) tokens_.push_back(static_cast<int32_t>(random_() % 131));
  }

  std::unique_ptr<ModelHarness> Load(int num_threads) {
    HarnessOptions options;
    options.isa = GetParam().isa;
    options.weights = GetParam().weights;
    options.state_dtype = GetParam().state_dtype;
    options.num_threads = num_threads;
    options.num_slots = kNumSlots;
    auto harness = ModelHarness::Load(directory_.path(), options);
    return harness.ok() ? *std::move(harness) : nullptr;
  }

  // Slots that a batch does not name hold NaN: reading one shows.
  void PoisonSlot(int32_t slot) {
    const std::vector<float> nan(harness_->model().state_layout().slot_bytes / sizeof(float),
                                 std::numeric_limits<float>::quiet_NaN());
    harness_->WriteSlot(slot, std::as_bytes(std::span(nan)));
  }

  // Logits and slot of `tokens` alone, token by token: what everything else must equal.
  std::vector<float> Decode(std::span<const int32_t> tokens, int32_t slot) {
    harness_->ZeroSlot(slot);
    return harness_->Feed(tokens, slot, 1);
  }

  test::TempDir directory_;
  std::unique_ptr<ModelHarness> harness_;
  std::vector<int32_t> tokens_;
  std::mt19937 random_{7};
};

TEST_P(InvariantsTest, PrefillOfAnyChunkingIsDecoding) {
  const std::vector<float> expected = Decode(tokens_, 0);
  const std::vector<std::byte> state = harness_->ReadSlot(0);
  for (const float logit : expected) ASSERT_TRUE(std::isfinite(logit));
  for (const int32_t chunk : {2, 3, 5, 7, 16, 17, 33, 66, 67}) {
    harness_->ZeroSlot(1);
    EXPECT_TRUE(SameBits(harness_->Feed(tokens_, 1, chunk), expected)) << chunk;
    EXPECT_EQ(harness_->ReadSlot(1), state) << chunk;
  }
  for (int trial = 0; trial < 10; ++trial) {
    harness_->ZeroSlot(1);
    std::vector<float> logits;
    for (size_t begin = 0; begin < tokens_.size();) {
      const size_t size = std::min<size_t>(1 + random_() % 20, tokens_.size() - begin);
      const std::vector<float> part =
          harness_->Feed(std::span(tokens_).subspan(begin, size), 1, static_cast<int32_t>(size));
      logits.insert(logits.end(), part.begin(), part.end());
      begin += size;
    }
    EXPECT_TRUE(SameBits(logits, expected));
    EXPECT_TRUE(harness_->ReadSlot(1) == state);
  }
}

// A prefill that leaves states on its way is the same prefill, and each of them the state that a
// prefill up to there leaves.
TEST_P(InvariantsTest, StatesInsideAChunkAreStatesAtItsEnd) {
  const std::vector<float> expected = Decode(tokens_, 0);
  const auto num_tokens = static_cast<int32_t>(tokens_.size());
  std::vector<int32_t> rows(tokens_.size());
  std::iota(rows.begin(), rows.end(), 0);
  for (int trial = 0; trial < 6; ++trial) {
    std::vector<Segment> chain;
    for (int32_t begin = 0; begin < num_tokens;) {
      const auto size = std::min(static_cast<int32_t>(1 + random_() % 25), num_tokens - begin);
      const auto index = static_cast<int32_t>(chain.size());
      chain.push_back({begin, size, index == 0 ? kPadSlot : kPreviousSegment,
                       index + 1 < kNumSlots && random_() % 4 > 0 ? index + 1 : kPadSlot});
      begin += size;
    }
    for (int32_t slot = 0; slot < kNumSlots; ++slot) harness_->ZeroSlot(slot);  // their padding
    EXPECT_TRUE(SameBits(harness_->Run({tokens_, chain, rows}), expected));
    for (const Segment& segment : chain) {
      if (segment.write_slot == kPadSlot) continue;
      const int32_t end = segment.token_begin + segment.num_tokens;
      harness_->ZeroSlot(0);
      harness_->Feed(std::span(tokens_).first(static_cast<size_t>(end)), 0, end);
      EXPECT_EQ(harness_->ReadSlot(segment.write_slot), harness_->ReadSlot(0)) << "up to " << end;
    }
  }
}

TEST_P(InvariantsTest, NeighboursAndSlotsDoNotMatter) {
  const std::vector<float> expected = Decode(tokens_, 0);
  const std::vector<std::byte> state = harness_->ReadSlot(0);
  const size_t vocab = static_cast<size_t>(harness_->vocab());
  for (int trial = 0; trial < 12; ++trial) {
    // Our sequence goes through slot 5 in random pieces; the neighbours, in random number and order
    // around it, have slots and tokens of their own.
    harness_->ZeroSlot(5);
    size_t position = 0;
    while (position < tokens_.size()) {
      const size_t size = std::min<size_t>(1 + random_() % 30, tokens_.size() - position);
      std::vector<int32_t> ids;
      std::vector<Segment> segments;
      std::vector<int32_t> rows;
      const auto add_neighbour = [&](int32_t slot) {
        const int32_t length = 1 + static_cast<int32_t>(random_() % 9);
        segments.push_back({static_cast<int32_t>(ids.size()), length, kPadSlot, slot});
        for (int32_t i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>(random_() % 131));
      };
      for (size_t i = 0; i < random_() % 4; ++i) add_neighbour(static_cast<int32_t>(i));
      const int32_t begin = static_cast<int32_t>(ids.size());
      segments.push_back({begin, static_cast<int32_t>(size), 5, 5});
      for (size_t i = 0; i < size; ++i) {
        ids.push_back(tokens_[position + i]);
        rows.push_back(begin + static_cast<int32_t>(i));
      }
      if (random_() % 2 == 0) add_neighbour(7);
      const std::vector<float> logits = harness_->Run({ids, segments, rows});
      ASSERT_EQ(logits.size(), size * vocab);
      EXPECT_EQ(std::memcmp(logits.data(), expected.data() + position * vocab,
                            logits.size() * sizeof(float)),
                0)
          << trial;
      position += size;
    }
    EXPECT_TRUE(harness_->ReadSlot(5) == state);
  }
}

TEST_P(InvariantsTest, ThreadsDoNotMatter) {
  const std::vector<float> expected = Decode(tokens_, 0);
  const std::vector<std::byte> state = harness_->ReadSlot(0);
  for (const int num_threads : {2, 3, 8}) {
    harness_ = Load(num_threads);
    ASSERT_NE(harness_, nullptr);
    EXPECT_TRUE(SameBits(Decode(tokens_, 0), expected)) << num_threads;
    EXPECT_EQ(harness_->ReadSlot(0), state) << num_threads;
    harness_->ZeroSlot(1);
    EXPECT_TRUE(SameBits(harness_->Feed(tokens_, 1, 67), expected)) << num_threads;
    EXPECT_EQ(harness_->ReadSlot(1), state) << num_threads;
  }
}

TEST_P(InvariantsTest, ForksLeaveTheirOriginAlone) {
  Decode(std::span(tokens_).first(40), 0);
  const std::vector<std::byte> origin = harness_->ReadSlot(0);
  const std::vector<int32_t> rest(tokens_.begin() + 40, tokens_.end());
  const Segment fork{0, static_cast<int32_t>(rest.size()), 0, 3};
  const std::vector<int32_t> last_row{fork.num_tokens - 1};
  const std::vector<float> logits = harness_->Run({rest, {&fork, 1}, last_row});
  EXPECT_TRUE(harness_->ReadSlot(0) == origin);

  // Not kept: nothing at all is written.
  std::vector<std::vector<std::byte>> slots;
  for (int32_t slot = 0; slot < kNumSlots; ++slot) slots.push_back(harness_->ReadSlot(slot));
  const Segment unkept{0, fork.num_tokens, 0, kPadSlot};
  EXPECT_TRUE(SameBits(harness_->Run({rest, {&unkept, 1}, last_row}), logits));
  for (int32_t slot = 0; slot < kNumSlots; ++slot)
    EXPECT_TRUE(harness_->ReadSlot(slot) == slots[slot]);

  const std::vector<float> expected = Decode(tokens_, 6);
  EXPECT_TRUE(SameBits(logits, {expected.end() - harness_->vocab(), expected.end()}));
  // What slot 3 held before is gone, but for the padding, which no op writes.
  for (int64_t layer = 0; layer < 3; ++layer) {
    const engine::MambaLayerState forked = harness_->LayerState(3, layer);
    const engine::MambaLayerState straight = harness_->LayerState(6, layer);
    EXPECT_TRUE(SameBits(forked.conv_state, straight.conv_state));
    EXPECT_TRUE(SameBits(forked.ssm_state, straight.ssm_state));
  }
}

TEST_P(InvariantsTest, ChosenLogitRowsAreThoseOfAll) {
  const std::vector<float> all = Decode(tokens_, 0);
  const size_t vocab = static_cast<size_t>(harness_->vocab());
  const std::vector<int32_t> rows{0, 13, 14, 66};
  harness_->ZeroSlot(1);
  const Segment segment{0, static_cast<int32_t>(tokens_.size()), 1, 1};
  const std::vector<float> chosen = harness_->Run({tokens_, {&segment, 1}, rows});
  ASSERT_EQ(chosen.size(), rows.size() * vocab);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(std::memcmp(&chosen[i * vocab], &all[rows[i] * vocab], vocab * sizeof(float)), 0);
  }
  // Without logits the state is the same.
  harness_->ZeroSlot(2);
  const Segment silent{0, static_cast<int32_t>(tokens_.size()), 2, 2};
  harness_->Run({tokens_, {&silent, 1}, {}});
  EXPECT_TRUE(harness_->ReadSlot(2) == harness_->ReadSlot(0));
}

TEST_P(InvariantsTest, StatesSurviveTheDetourThroughHuggingFacesForm) {
  Decode(tokens_, 0);
  const std::vector<std::byte> slot = harness_->ReadSlot(0);
  std::vector<std::byte> rebuilt(slot.size());
  for (int64_t layer = 0; layer < 3; ++layer) {
    ASSERT_TRUE(engine::WriteLayerState(harness_->model().config(),
                                        harness_->model().state_layout(), layer,
                                        harness_->LayerState(0, layer), rebuilt)
                    .ok());
  }
  EXPECT_TRUE(rebuilt == slot);  // so padding and padded lanes are zero
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const std::string& isa : test::TestIsas()) {
    for (const WeightFormat weights :
         {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8}) {
      for (const bool is_falcon : {false, true}) cases.push_back({isa, weights, is_falcon});
    }
    cases.push_back({isa, WeightFormat::kBF16, false, DType::kBF16});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, InvariantsTest, testing::ValuesIn(Cases()), CaseName);

}  // namespace
}  // namespace vivarium
