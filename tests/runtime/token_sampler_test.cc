// TokenSampler: from requests to rows and edits, many rows at once, against the plain sampler.
#include "engine/runtime/token_sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/kernels/reference_sampler.h"
#include "tests/support/fake_backend.h"

namespace vivarium::engine {
namespace {

struct Row {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<TranscriptToken> recent;
  std::vector<int32_t> banned_ids;
  uint64_t position;
  int32_t num_top_logprobs;
  int32_t score_id;  // -1: sample
};

class RandomRows {
 public:
  explicit RandomRows(uint64_t seed) : random_(seed) {}
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  Row Next(int num_ids, int window) {
    Row row;
    std::normal_distribution<float> normal(0.0f, 2.0f);
    for (int i = 0; i < num_ids; ++i) row.logits.push_back(normal(random_));
    row.params.temperature = Pick(0, 2) == 0 ? 0.0f : 1.3f;
    row.params.top_k = Pick(0, 1) * Pick(1, num_ids);
    row.params.top_p = Pick(0, 1) == 0 ? 1.0f : 0.8f;
    row.params.seed = random_();
    if (Pick(0, 1) == 0) row.params.repetition_penalty = 1.4f;
    if (Pick(0, 1) == 0) row.params.presence_penalty = 0.7f;
    if (Pick(0, 1) == 0) row.params.frequency_penalty = 0.2f;
    for (int id = 0; id < num_ids && id < kMaxLogitBias; ++id) {
      if (Pick(0, 9) == 0) row.params.logit_bias.emplace_back(id, normal(random_));
    }
    for (int i = Pick(0, window); i > 0; --i) {  // foreign ids too
      row.recent.push_back({Pick(-1, num_ids), Pick(0, 1) == 0});
    }
    for (int i = Pick(0, 3); i > 0; --i) row.banned_ids.push_back(Pick(-1, num_ids));
    row.position = random_() % 100000;
    row.num_top_logprobs = Pick(-1, 3);
    row.score_id = Pick(0, 3) == 0 ? Pick(0, num_ids - 1) : -1;
    return row;
  }

 private:
  std::mt19937_64 random_;
};

int32_t Reference(const Row& row) {
  kernels::SampleRow plain{};
  plain.seed = row.params.seed;
  plain.position = row.position;
  plain.temperature = row.params.temperature;
  plain.top_k = row.params.top_k;
  plain.top_p = row.params.top_p;
  plain.min_p = row.params.min_p;
  plain.repetition_penalty = row.params.repetition_penalty;
  plain.presence_penalty = row.params.presence_penalty;
  plain.frequency_penalty = row.params.frequency_penalty;
  std::vector<kernels::RecentToken> recent;
  for (const auto& [id, is_output] : row.recent) recent.push_back({id, is_output});
  std::vector<int32_t> banned_ids;
  for (const int32_t id : row.banned_ids) {
    if (id >= 0 && id < static_cast<int64_t>(row.logits.size())) banned_ids.push_back(id);
  }
  kernels::ReferenceSampler sampler(static_cast<int64_t>(row.logits.size()));
  const auto token = sampler.Sample({row.logits, plain, row.params.logit_bias, recent, banned_ids});
  EXPECT_EQ(token.status, kernels::SampleStatus::kOk);
  return token.token_id;
}

// One step of these rows, all of num_ids usable ids of num_ids + 5.
void CheckStep(TokenSampler* sampler, const std::vector<Row>& rows, int num_ids) {
  const int stride = num_ids + 5;
  std::vector<float> logits(rows.size() * stride, 1e30f);  // padding is tempting
  for (size_t r = 0; r < rows.size(); ++r) {
    std::copy(rows[r].logits.begin(), rows[r].logits.end(), &logits[r * stride]);
  }
  sampler->Begin(logits.data());
  for (const Row& row : rows) {
    if (row.score_id >= 0) {
      sampler->AddScore(row.score_id, row.position);
    } else {
      sampler->AddSample(
          {row.params, row.recent, row.banned_ids, row.position, row.num_top_logprobs});
    }
  }
  sampler->Run();
  for (size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    const auto token = sampler->Token(r);
    ASSERT_TRUE(token.ok()) << token.status();
    EXPECT_EQ(*token, row.score_id >= 0 ? row.score_id : Reference(row)) << r;
    const kernels::ReferenceLogSoftmax softmax(row.logits);
    if (row.score_id >= 0 || row.num_top_logprobs >= 0) {
      EXPECT_EQ(sampler->Logprob(r), softmax(*token)) << r;
    }
    if (row.score_id >= 0 || row.num_top_logprobs <= 0) continue;
    const auto expected = softmax.Top(row.num_top_logprobs);
    const auto top = sampler->TopLogprobs(r);
    ASSERT_EQ(top.size(), expected.size());
    for (size_t i = 0; i < top.size(); ++i) {
      EXPECT_EQ(top[i].token_id, expected[i].token_id);
      EXPECT_EQ(top[i].logprob, expected[i].logprob);
    }
  }
}

TEST(TokenSampler, EachRowIsThePlainSamplers) {
  testing::FakeBackend backend;
  constexpr int kNumIds = 97, kMaxRows = 24;
  auto sampler = TokenSampler::Create(&backend, kNumIds, kNumIds + 5, kMaxRows);
  ASSERT_TRUE(sampler.ok());
  RandomRows random(1);
  for (int step = 0; step < 100; ++step) {
    std::vector<Row> rows;
    const int num_rows = step % 10 == 0 ? kMaxRows : random.Pick(0, kMaxRows);
    for (int i = 0; i < num_rows; ++i) rows.push_back(random.Next(kNumIds, 200));
    CheckStep(sampler->get(), rows, kNumIds);
    ASSERT_FALSE(::testing::Test::HasFailure()) << "step " << step;
  }
}

// More edits than there is room for at once, at the bounds of each kind: the op runs several times.
TEST(TokenSampler, RowsBeyondTheRoomForEdits) {
  testing::FakeBackend backend;
  constexpr int kNumIds = 5000, kMaxRows = 80;
  auto sampler = TokenSampler::Create(&backend, kNumIds, kNumIds + 5, kMaxRows);
  ASSERT_TRUE(sampler.ok());
  RandomRows random(2);
  std::vector<Row> rows;
  for (int i = 0; i < kMaxRows; ++i) {
    Row row = random.Next(kNumIds, 0);
    row.params.repetition_penalty = 1.3f;
    row.params.logit_bias.clear();
    for (int id = 0; id < kMaxLogitBias; ++id) row.params.logit_bias.emplace_back(id, 0.25f);
    for (int j = 0; j < kRecentTokenWindow; ++j) row.recent.push_back({2000 + j, j % 2 == 0});
    row.banned_ids.clear();
    for (int j = 0; j < 128; ++j) row.banned_ids.push_back(4000 + j);
    rows.push_back(std::move(row));
  }
  CheckStep(sampler->get(), rows, kNumIds);
}

TEST(TokenSampler, ABadRowLeavesTheOthersAlone) {
  testing::FakeBackend backend;
  constexpr int kNumIds = 50;
  auto sampler = TokenSampler::Create(&backend, kNumIds, kNumIds, 3);
  ASSERT_TRUE(sampler.ok());
  std::vector<float> logits(3 * kNumIds, 1.0f);
  logits[2 * kNumIds + 7] = 2.0f;
  logits[kNumIds + 9] = std::nanf("");
  const SamplingParams greedy{.temperature = 0.0f};
  (*sampler)->Begin(logits.data());
  for (uint64_t position = 10; position < 13; ++position) {
    (*sampler)->AddSample({greedy, {}, {}, position});
  }
  (*sampler)->Run();
  EXPECT_EQ(*(*sampler)->Token(0), 0);
  const absl::Status status = (*sampler)->Token(1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(status.message(), "the logit of token id 9 is nan at position 11, must be finite");
  EXPECT_EQ(*(*sampler)->Token(2), 7);
}

TEST(TokenSampler, NoMemoryIsAnError) {
  testing::FakeBackend backend;
  backend.max_allocation_bytes = 1000;
  const auto sampler = TokenSampler::Create(&backend, 50, 50, 3);
  EXPECT_EQ(sampler.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(sampler.status().message()), ::testing::HasSubstr("3 rows"));
}

}  // namespace
}  // namespace vivarium::engine
