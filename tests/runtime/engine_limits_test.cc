// Every bound of a request and of the options, at the bound and one past it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/engine_fixture.h"

namespace vivarium::engine {
namespace {

using ::testing::HasSubstr;

EngineOptions SmallOptions() {
  EngineOptions options;
  options.max_tokens_limit = 20;
  options.max_prompt_tokens = 30;
  return options;
}

class EngineLimits : public ::testing::Test {
 protected:
  void ExpectServed(EngineRequest request) {
    const auto record = test_.Run(std::move(request));
    EXPECT_TRUE(record->finished->status.ok()) << record->finished->status;
  }
  void ExpectRefused(EngineRequest request, const std::string& what,
                     absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const absl::Status status = test_.Refusal(std::move(request));
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }
  // A request that goes on from a state at position 5.
  EngineRequest Resume() {
    EngineRequest first = MakeRequest(Tokens(3), 3);
    first.save.at_end = true;
    EngineRequest request = MakeRequest({}, 2);
    request.source = std::move(test_.Run(std::move(first))->finished->state);
    return request;
  }

  TestEngine test_{SmallOptions()};
};

TEST_F(EngineLimits, Prompt) {
  ExpectRefused(MakeRequest({}, 1), "prompt is empty");
  ExpectServed(MakeRequest({0, 60}, 1));
  ExpectRefused(MakeRequest({0, 61}, 1), "prompt[1] is 61");
  ExpectRefused(MakeRequest({-1}, 1), "prompt[0] is -1");
  ExpectServed(MakeRequest(Tokens(30), 1));
  ExpectRefused(MakeRequest(Tokens(31), 1), "prompt has 31 tokens, at most 30");
}

TEST_F(EngineLimits, Counts) {
  ExpectServed(MakeRequest(Tokens(3), 0));
  ExpectServed(MakeRequest(Tokens(3), 20));
  ExpectRefused(MakeRequest(Tokens(3), 21), "max_tokens is 21, at most 20");
  EngineRequest request = MakeRequest(Tokens(3), 5);
  request.min_tokens = 5;
  ExpectServed(CopyRequest(request));
  request.min_tokens = 6;
  ExpectRefused(std::move(request), "min_tokens is 6");
  for (const int32_t count : {-1, 0, kMaxTopLogprobs}) {
    request = MakeRequest(Tokens(3), 1);
    request.num_top_logprobs = count;
    ExpectServed(std::move(request));
  }
  for (const int32_t count : {-2, kMaxTopLogprobs + 1}) {
    request = MakeRequest(Tokens(3), 1);
    request.num_top_logprobs = count;
    ExpectRefused(std::move(request), "num_top_logprobs is ");
  }
}

TEST_F(EngineLimits, Scoring) {
  EngineRequest request = MakeRequest(Tokens(3), 1);
  request.score = true;
  ExpectRefused(std::move(request), "must be 0 when scoring");
  request = Resume();
  request.score = true;
  request.max_tokens = 0;
  ExpectRefused(std::move(request), "nothing to score");
}

TEST_F(EngineLimits, Stops) {
  EngineRequest request = MakeRequest(Tokens(3), 1);
  request.stop.stop_token_ids.assign(kMaxStopTokenIds, 60);
  ExpectServed(CopyRequest(request));
  request.stop.stop_token_ids.push_back(60);
  ExpectRefused(CopyRequest(request), "65 ids, at most 64");
  request.stop.stop_token_ids = {61};
  ExpectRefused(CopyRequest(request), "stop.stop_token_ids[0] is 61");
  request.stop.stop_token_ids = {-1};
  ExpectRefused(std::move(request), "stop.stop_token_ids[0] is -1");
  request = MakeRequest(Tokens(3), 1);
  request.stop.stop_strings = {"x"};
  ExpectRefused(std::move(request), "no tokenizer");
}

TEST_F(EngineLimits, Sampling) {
  EngineRequest request = MakeRequest(Tokens(3), 1);
  request.sampling.top_p = 0.0f;
  ExpectRefused(CopyRequest(request), "top_p is 0");
  request.sampling.top_p = 1.0f;
  request.sampling.logit_bias = {{60, 1.0f}};
  ExpectServed(CopyRequest(request));
  request.sampling.logit_bias = {{61, 1.0f}};
  ExpectRefused(std::move(request), "token id 61");
}

TEST_F(EngineLimits, SourceOfAnother) {
  const auto code = absl::StatusCode::kFailedPrecondition;
  ExpectServed(Resume());
  EngineRequest request = Resume();
  request.source->identity.fingerprint = "other-model";
  ExpectRefused(CopyRequest(request), "other-model", code);
  ExpectRefused(std::move(request), "fake-model", code);
  request = Resume();
  request.source->identity.tokenizer_hash = "other-tokenizer";
  ExpectRefused(std::move(request), "other-tokenizer", code);
  request = Resume();
  request.source->layout.version = 2;
  ExpectRefused(std::move(request), "layout version 2", code);
  request = Resume();
  request.source->layout.parts[0].shape[0] += 1;
  ExpectRefused(std::move(request), "layout", code);
  request = Resume();
  request.source->identity.numerics_id = "another backend is fine";
  ExpectServed(std::move(request));
}

TEST_F(EngineLimits, MalformedSource) {
  EngineRequest request = Resume();
  request.source->slot = StateBuffer(192);
  ExpectRefused(std::move(request), "192 bytes, expected 256");
  request = Resume();
  request.source->recent_tokens.pop_back();
  ExpectRefused(std::move(request), "5 tokens, expected 6");
  request = Resume();
  request.source->pending_token ^= 1;
  ExpectRefused(std::move(request), "pending token");
  for (const int32_t bad : {-1, 61}) {
    request = Resume();
    request.source->pending_token = request.source->recent_tokens.back().id = bad;
    ExpectRefused(std::move(request), "source.recent_tokens");
  }
  request = Resume();
  request.source->position = ~uint64_t{0};
  ExpectRefused(std::move(request), "source.position");
}

struct OptionCase {
  const char* name;
  std::function<void(EngineOptions&, int64_t)> set;
  int64_t low, high;
};

TEST(EngineOptions, EachAtItsBoundsAndOnePast) {
  const auto case_of = [](const char* name, auto EngineOptions::*member, int64_t low,
                          int64_t high) {
    return OptionCase{name,
                      [member](EngineOptions& options, int64_t value) {
                        using T = std::remove_reference_t<decltype(options.*member)>;
                        options.*member = static_cast<T>(value);
                      },
                      low, high};
  };
  // With max_slots 8 and a model of 512 rows and 64 rows of logits.
  for (const OptionCase& c :
       {case_of("max_slots", &EngineOptions::max_slots, 1, 64),
        case_of("snapshot_slots", &EngineOptions::snapshot_slots, 0, kMaxSnapshotSlots),
        case_of("max_live_streams", &EngineOptions::max_live_streams, 8, kMaxLiveStreams),
        case_of("max_queued_streams", &EngineOptions::max_queued_streams, 1, kMaxQueuedStreams),
        case_of("max_queued_tokens", &EngineOptions::max_queued_tokens, 1, kMaxQueuedTokens),
        case_of("max_num_batched_tokens", &EngineOptions::max_num_batched_tokens, 8, 512),
        case_of("prefill_chunk_tokens", &EngineOptions::prefill_chunk_tokens, 1, kMaxChunkTokens),
        case_of("prefill_tokens_beside_decode", &EngineOptions::prefill_tokens_beside_decode, 1,
                kMaxChunkTokens),
        case_of("time_slice_tokens", &EngineOptions::time_slice_tokens, 1, kMaxChunkTokens),
        case_of("max_prompt_tokens", &EngineOptions::max_prompt_tokens, 1, kMaxStreamTokens),
        case_of("max_tokens_limit", &EngineOptions::max_tokens_limit, 0, kMaxStreamTokens)}) {
    for (const int64_t value : {c.low - 1, c.low, c.high, c.high + 1}) {
      testing::FakeBackend backend;
      testing::FakeModel model(&backend, {.max_batch_tokens = 512, .max_logit_rows = 64});
      EngineOptions options;
      c.set(options, value);
      const auto engine = Engine::Create(&model, nullptr, FakeIdentity(), options);
      if (value == c.low || value == c.high) {
        EXPECT_TRUE(engine.ok()) << engine.status();
      } else {
        EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument)
            << c.name << " " << value;
        EXPECT_THAT(std::string(engine.status().message()), HasSubstr(c.name));
      }
    }
  }
}

TEST(EngineOptions, SlotsThatDontFitMemoryAreRefusedWithTheArithmetic) {
  testing::FakeBackend backend;
  backend.max_allocation_bytes = 9 * 256;
  testing::FakeModel model(&backend, {.max_batch_tokens = 512});
  const auto status = Engine::Create(&model, nullptr, FakeIdentity(), {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("10 slots * 256 bytes"));
}

}  // namespace
}  // namespace vivarium::engine
