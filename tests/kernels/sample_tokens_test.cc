// SampleTokens: the tokens and log-probabilities of the plain reference, bit for bit, on every
// path.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/sampling_math.h"
#include "tests/kernels/guarded_array.h"
#include "tests/kernels/isa_fixture.h"
#include "tests/kernels/reference_sampler.h"

namespace vivarium::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One row: what the reference needs, owned.
struct Request {
  std::vector<float> logits;
  SampleRow row;
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<RecentToken> recent;
  std::vector<int32_t> banned_ids;
  ReferenceRequest reference() const { return {logits, row, bias, recent, banned_ids}; }
};

SampleRow PlainRow() {
  SampleRow row{};
  row.temperature = 1.0f;
  row.top_p = 1.0f;
  row.repetition_penalty = 1.0f;
  row.given_id = -1;
  row.num_top_logprobs = -1;
  return row;
}

// Draws requests that are meant to break things: ties, infinities, subnormals, extreme parameters.
class RandomRequests {
 public:
  explicit RandomRequests(uint64_t seed) : random_(seed) {}

  Request Next(int64_t num_ids) {
    Request request;
    request.logits = Logits(num_ids);
    request.row = PlainRow();
    SampleRow& row = request.row;
    row.seed = random_.Below(1 << 30);
    row.position = random_.Below(1 << 20);
    row.temperature = Pick({0.0f, 1.0f, 1.0f, 0.7f, 1.7f, 100.0f, 1e-3f, 1e-40f});
    row.top_p = Pick({1.0f, 1.0f, 0.95f, 0.999999f, 0.5f, 1e-6f, 1e-40f, 0.3f});
    row.min_p = Pick({0.0f, 0.0f, 0.05f, 1e-9f, 0.7f, 1.0f});
    if (random_.Below(2) == 0) {
      row.top_k = static_cast<int32_t>(1 + random_.Below(num_ids + 3));
      if (random_.Below(3) == 0) row.top_k = 0x7fffffff;
    }
    if (random_.Below(3) == 0) AddEdits(num_ids, &request);
    row.num_top_logprobs = static_cast<int32_t>(random_.Below(4) == 0 ? random_.Below(21) : -1);
    if (random_.Below(8) == 0) {
      row.given_id = static_cast<int32_t>(random_.Below(num_ids));
      row.num_top_logprobs = 0;
    }
    return request;
  }

  float Pick(std::initializer_list<float> values) {
    return values.begin()[random_.Below(static_cast<int64_t>(values.size()))];
  }

 private:
  std::vector<float> Logits(int64_t num_ids) {
    std::vector<float> logits(static_cast<size_t>(num_ids));
    const int64_t kind = random_.Below(10);
    const float spread = Pick({0.01f, 1.0f, 2.0f, 3.0f, 30.0f, 1e-30f, 1e30f});
    for (float& logit : logits) {
      logit = random_.Normal(spread);
      if (kind == 1) logit = std::round(random_.Normal(2.0f));  // ties, and -0
      if (kind == 2) logit = 3.25f;
      if (kind == 3) logit = random_.Normal(1.0f) * 1e-40f;
      if (kind == 4 && random_.Below(2) == 0) logit = -kInfinity;
      if (kind == 5) logit = random_.Below(20) == 0 ? random_.Normal(2.0f) : -1e30f;
      if (kind == 6) logit = 1.0f + static_cast<float>(random_.Below(3)) * 0x1p-23f;
      if (kind == 7) logit = random_.Below(2) == 0 ? 0.0f : -0.0f;
    }
    const int64_t at = random_.Below(num_ids);
    if (random_.Below(40) == 0) logits[at] = kInfinity;
    if (random_.Below(40) == 0) logits[at] = std::nanf("");
    if (random_.Below(40) == 0) std::fill(logits.begin(), logits.end(), -kInfinity);
    if (random_.Below(20) == 0) logits[at] = std::numeric_limits<float>::max();
    if (random_.Below(20) == 0) logits[at] = -std::numeric_limits<float>::max();
    return logits;
  }

  void AddEdits(int64_t num_ids, Request* request) {
    for (int64_t id = 0; id < num_ids; ++id) {
      if (random_.Below(30) != 0) continue;
      request->bias.emplace_back(static_cast<int32_t>(id), Pick({-100.0f, 100.0f, 0.0f, 1.5f}));
    }
    for (int64_t i = random_.Below(100); i > 0; --i) {
      request->recent.push_back(
          {static_cast<int32_t>(random_.Below(num_ids + 2) - 1), random_.Below(2) == 0});
    }
    request->row.repetition_penalty = Pick({1.0f, 1.3f, 0.5f, 1e-40f, 100.0f});
    request->row.presence_penalty = Pick({0.0f, 0.5f, -100.0f});
    request->row.frequency_penalty = Pick({0.0f, 0.25f, -0.5f, 100.0f});
    for (int64_t i = random_.Below(4); i > 0; --i) {
      request->banned_ids.push_back(static_cast<int32_t>(random_.Below(num_ids)));
    }
  }

  RandomValues random_;
};

struct Results {
  std::vector<SampledToken> tokens;
  std::vector<RankedToken> top;
};

// Runs the rows, all with equally many ids, in one op. Checks that the logits are as before.
Results RunOp(Backend* backend, std::span<const Request> requests) {
  const auto num_rows = static_cast<int64_t>(requests.size());
  const auto num_ids = static_cast<int64_t>(requests[0].logits.size());
  const int64_t stride = num_ids + 3;
  GuardedArray logits(num_rows * stride);  // NaN between the rows
  std::vector<SampleRow> rows;
  std::vector<LogitEdit> edits;
  for (int64_t r = 0; r < num_rows; ++r) {
    const Request& request = requests[static_cast<size_t>(r)];
    const int64_t logit_row = num_rows - 1 - r;
    std::copy(request.logits.begin(), request.logits.end(), logits.data() + logit_row * stride);
    SampleRow row = request.row;
    row.logit_row = logit_row;
    const std::vector<LogitEdit> own = EditsOf(request.reference());
    row.edits_begin = static_cast<int32_t>(edits.size());
    row.num_edits = row.given_id >= 0 ? 0 : static_cast<int32_t>(own.size());
    edits.insert(edits.end(), own.begin(), own.end());
    rows.push_back(row);
  }
  const std::vector<float> before(logits.data(), logits.data() + logits.size());
  std::vector<float> unedited(edits.size());
  Results results;
  results.tokens.assign(requests.size(), {-7, SampleStatus::kOk, -7.0f, -7.0f});
  results.top.assign(requests.size() * kMaxTopLogprobs, {-7, -7.0f});
  SampleTokensParams params{};
  params.logits = logits.data();
  params.logits_stride = stride;
  params.num_ids = num_ids;
  params.rows = rows.data();
  params.num_rows = num_rows;
  params.edits = edits.data();
  params.unedited = unedited.data();
  params.tokens = results.tokens.data();
  params.top = results.top.data();
  backend->SampleTokens(params);
  backend->Synchronize();
  EXPECT_TRUE(SameBits(before.data(), logits.data(), logits.size())) << "logits have changed";
  return results;
}

bool SameFloat(float a, float b) { return BitsOf(a) == BitsOf(b); }

// Compares row r of the results with the reference.
void ExpectAsReference(const Request& request, const Results& results, size_t r) {
  const SampledToken& found = results.tokens[r];
  Request plain = request;
  if (request.row.given_id >= 0) plain.bias = {}, plain.recent = {}, plain.banned_ids = {};
  ReferenceSampler sampler(static_cast<int64_t>(request.logits.size()));
  const SampledToken expected = sampler.Sample(plain.reference());
  ASSERT_EQ(found.status, expected.status);
  if (expected.status == SampleStatus::kBadLogit) {
    ASSERT_EQ(found.token_id, expected.token_id);
    ASSERT_TRUE(SameFloat(found.bad_logit, expected.bad_logit));
  }
  if (expected.status != SampleStatus::kOk) return;
  ASSERT_EQ(found.token_id, request.row.given_id >= 0 ? request.row.given_id : expected.token_id);
  std::vector<RankedToken> top;
  if (request.row.num_top_logprobs >= 0) {
    const ReferenceLogSoftmax softmax(request.logits);
    ASSERT_TRUE(SameFloat(found.logprob, softmax(found.token_id))) << found.logprob;
    top = softmax.Top(request.row.num_top_logprobs);
  }
  for (size_t i = 0; i < kMaxTopLogprobs; ++i) {
    const RankedToken& entry = results.top[r * kMaxTopLogprobs + i];
    ASSERT_EQ(entry.token_id, i < top.size() ? top[i].token_id : -7) << i;
    ASSERT_TRUE(SameFloat(entry.logprob, i < top.size() ? top[i].logprob : -7.0f)) << i;
  }
}

class SampleTokensTest : public IsaTest {};
VIVARIUM_FOR_EACH_ISA(SampleTokensTest);

TEST_P(SampleTokensTest, IsTheReferenceOnRandomRequests) {
  const auto backend = MakeBackend(2);
  RandomRequests random(1);
  const int num_rounds = kEmulated ? 2 : 60;
  for (int round = 0; round < num_rounds; ++round) {
    for (const int64_t num_ids : {1, 2, 15, 16, 17, 61, 64, 65, 257, 1000, 1025, 2500}) {
      std::vector<Request> requests;
      for (int i = 0; i < 7; ++i) requests.push_back(random.Next(num_ids));
      const Results results = RunOp(backend.get(), requests);
      for (size_t r = 0; r < requests.size(); ++r) {
        ExpectAsReference(requests[r], results, r);
        ASSERT_FALSE(HasFailure()) << "round " << round << " ids " << num_ids << " row " << r;
      }
    }
  }
}

// The size of a real vocabulary; filters that keep few and filters that keep almost all.
TEST_P(SampleTokensTest, IsTheReferenceOnALargeVocabulary) {
  const auto backend = MakeBackend(1);
  constexpr int64_t kNumIds = 50277;
  RandomValues random(2);
  std::vector<Request> requests;
  for (const float temperature : {0.0f, 0.6f, 1.0f, 5.0f}) {
    for (const float top_p : {1.0f, 0.99f, 0.5f}) {
      for (const int32_t top_k : {0, 1, 40, 30000}) {
        Request request;
        request.logits.resize(kNumIds);
        random.Fill(request.logits.data(), kNumIds, 2.0f);
        request.row = PlainRow();
        request.row.temperature = temperature;
        request.row.top_p = top_p;
        request.row.top_k = top_k;
        request.row.position = requests.size();
        request.row.num_top_logprobs = kMaxTopLogprobs;
        requests.push_back(std::move(request));
      }
    }
  }
  if (kEmulated) {
    std::vector<Request> few;
    for (size_t i = 0; i < requests.size(); i += 7) few.push_back(requests[i]);
    requests = std::move(few);
  }
  const Results results = RunOp(backend.get(), requests);
  for (size_t r = 0; r < requests.size(); ++r) {
    ExpectAsReference(requests[r], results, r);
    ASSERT_FALSE(HasFailure()) << r;
  }
}

TEST_P(SampleTokensTest, ARowDependsOnNothingBesideIt) {
  const auto alone = MakeBackend(1);
  const auto together = MakeBackend(3);
  RandomRequests random(3);
  std::vector<Request> requests;
  for (int i = 0; i < (kEmulated ? 12 : 100); ++i) requests.push_back(random.Next(613));
  const Results all = RunOp(together.get(), requests);
  for (size_t r = 0; r < requests.size(); ++r) {
    const Results one = RunOp(alone.get(), std::span(requests).subspan(r, 1));
    EXPECT_EQ(std::memcmp(&one.tokens[0], &all.tokens[r], sizeof(SampledToken)), 0) << r;
    EXPECT_EQ(std::memcmp(&one.top[0], &all.top[r * kMaxTopLogprobs],
                          kMaxTopLogprobs * sizeof(RankedToken)),
              0)
        << r;
  }
}

TEST_P(SampleTokensTest, PadRowsAreLeftAlone) {
  const auto backend = MakeBackend(1);
  std::vector<SampleRow> rows(3, PlainRow());
  for (SampleRow& row : rows) row.logit_row = -1;
  rows[1].logit_row = 0;
  std::vector<float> logits = {1.0f, 5.0f, 2.0f};
  std::vector<SampledToken> tokens(3, {-7, SampleStatus::kOk, 0.0f, 0.0f});
  rows[1].temperature = 0.0f;
  SampleTokensParams params{};
  params.logits = logits.data();
  params.logits_stride = 3;
  params.num_ids = 3;
  params.rows = rows.data();
  params.num_rows = 3;
  params.tokens = tokens.data();
  backend->SampleTokens(params);
  backend->Synchronize();
  EXPECT_EQ(tokens[0].token_id, -7);
  EXPECT_EQ(tokens[1].token_id, 1);
  EXPECT_EQ(tokens[2].token_id, -7);
  params.num_rows = 0;
  backend->SampleTokens(params);
}

// The most ids that there may be: sums of weights reach 2^63.
TEST_P(SampleTokensTest, TheLargestVocabulary) {
  if (kEmulated) GTEST_SKIP() << "minutes there";
  const auto backend = MakeBackend(1);
  std::vector<Request> requests(1);
  requests[0].logits.assign(kMaxSampledIds, 1.5f);
  requests[0].row = PlainRow();
  for (const float top_p : {1.0f, 0.75f, 1e-40f}) {
    requests[0].row.top_p = top_p;
    for (uint64_t position = 0; position < 3; ++position) {
      requests[0].row.position = position;
      ExpectAsReference(requests[0], RunOp(backend.get(), requests), 0);
    }
  }
}

}  // namespace
}  // namespace vivarium::kernels
