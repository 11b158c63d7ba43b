// RealEngine: an engine over a real model, on the device under test.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tests/runtime/engine_harness.h"
#include "tests/support/model_harness.h"
#include "tests/support/test_environment.h"

namespace vivarium::engine {

inline const std::string kGoldens = test::RootDir() + "/tests/data/goldens/";
inline const std::string kBundled = test::RootDir() + "/models/vivarium-stories";

// One engine over one model, made for one setting.
class RealEngine {
 public:
  RealEngine(const std::string& directory, const EngineOptions& options,
             const test::HarnessOptions& harness_options = {}) {
    test::HarnessOptions with_rows = harness_options;
    with_rows.max_batch_tokens = with_rows.max_logit_rows = options.max_num_batched_tokens;
    auto harness = test::ModelHarness::Load(directory, with_rows);
    EXPECT_TRUE(harness.ok()) << harness.status();
    harness_ = *std::move(harness);
    if (directory == kBundled) tokenizer_ = *Tokenizer::Load(directory);
    const Model& model = harness_->model();
    const ModelIdentity identity = {
        .fingerprint = std::string(model.fingerprint()),
        .tokenizer_hash = tokenizer_ == nullptr ? "" : tokenizer_->content_hash(),
        .numerics_id = std::string(model.numerics_id())};
    auto engine = Engine::Create(&harness_->model(), tokenizer_.get(), identity, options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  std::shared_ptr<Recorded> Submit(EngineRequest request) {
    auto record = std::make_shared<Recorded>();
    const auto id = engine_->Submit(std::move(request), std::make_unique<RecordingSink>(record));
    EXPECT_TRUE(id.ok()) << id.status();
    return record;
  }
  std::shared_ptr<Recorded> Run(EngineRequest request) {
    auto record = Submit(std::move(request));
    record->done.WaitForNotification();
    return record;
  }
  Engine& engine() { return *engine_; }
  const Tokenizer& tokenizer() { return *tokenizer_; }

 private:
  std::unique_ptr<test::ModelHarness> harness_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Engine> engine_;
};

inline EngineOptions Options(int32_t max_slots, int32_t chunk) {
  EngineOptions options;
  options.max_slots = max_slots;
  options.max_num_batched_tokens = 256;
  options.prefill_chunk_tokens = chunk;
  options.time_slice_tokens = 16;
  return options;
}

inline EngineRequest MakeRequest(std::vector<int32_t> prompt, uint32_t max_tokens, uint64_t seed) {
  EngineRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling = {.temperature = 0.8f,
                      .top_p = 0.95f,
                      .repetition_penalty = 1.1f,
                      .frequency_penalty = 0.1f,
                      .seed = seed};
  request.stop.ignore_eos = true;
  request.num_top_logprobs = 2;
  request.save.at_end = true;
  return request;
}

inline std::vector<int32_t> SomeTokens(int count, int first) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back(4 + (first * 37 + i * 29 + i * i) % 300);
  return ids;
}

}  // namespace vivarium::engine
