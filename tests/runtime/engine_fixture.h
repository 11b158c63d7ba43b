// TestEngine: a threaded Engine over a FakeModel.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "tests/runtime/engine_harness.h"

namespace vivarium::engine {

struct TestEngine {
  explicit TestEngine(const EngineOptions& engine_options = {},
                      testing::FakeModel::Options model_options = {},
                      const Tokenizer* tokenizer = nullptr)
      : model(&backend, Fit(engine_options, model_options)) {
    auto created = Engine::Create(&model, tokenizer, FakeIdentity(), engine_options);
    EXPECT_TRUE(created.ok()) << created.status();
    engine = *std::move(created);
  }

  static testing::FakeModel::Options Fit(const EngineOptions& engine_options,
                                         testing::FakeModel::Options model_options) {
    model_options.max_batch_tokens = engine_options.max_num_batched_tokens;
    model_options.max_logit_rows = std::max(model_options.max_logit_rows, engine_options.max_slots);
    return model_options;
  }

  struct Submitted {
    StreamId id = 0;
    std::shared_ptr<Recorded> record = std::make_shared<Recorded>();
  };
  Submitted Submit(EngineRequest request) {
    Submitted submitted;
    const auto id =
        engine->Submit(std::move(request), std::make_unique<RecordingSink>(submitted.record));
    EXPECT_TRUE(id.ok()) << id.status();
    submitted.id = id.value_or(0);
    return submitted;
  }
  std::shared_ptr<Recorded> Run(EngineRequest request) {
    Submitted submitted = Submit(std::move(request));
    submitted.record->done.WaitForNotification();
    return submitted.record;
  }
  absl::Status Refusal(EngineRequest request) {
    const auto record = std::make_shared<Recorded>();
    const auto id = engine->Submit(std::move(request), std::make_unique<RecordingSink>(record));
    EXPECT_TRUE(record->sink_destroyed && record->num_finished == 0);
    return id.status();
  }

  testing::FakeBackend backend;
  testing::FakeModel model;
  std::unique_ptr<Engine> engine;
};

inline EngineRequest MakeRequest(std::vector<int32_t> prompt, uint32_t max_tokens) {
  EngineRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.stop.ignore_eos = true;
  return request;
}

inline std::vector<int32_t> Tokens(int count, int first = 1) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back(1 + (first * 31 + i * 17 + i * i) % 60);
  return ids;
}

// Sampling with everything on.
inline SamplingParams RichSampling(uint64_t seed) {
  return {.temperature = 0.9f,
          .top_k = 40,
          .top_p = 0.95f,
          .min_p = 0.01f,
          .repetition_penalty = 1.2f,
          .presence_penalty = 0.3f,
          .frequency_penalty = 0.1f,
          .seed = seed,
          .logit_bias = {{3, 0.5f}, {9, -0.5f}}};
}

}  // namespace vivarium::engine
