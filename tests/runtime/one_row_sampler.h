// Samples a row at a time: TokenSampler on the CPU backend, given logits in host memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/device_memory.h"
#include "engine/runtime/token_sampler.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace vivarium::engine {

class OneRowSampler {
 public:
  struct Request {
    std::span<const float> logits;
    const SamplingParams& params;
    std::span<const TranscriptToken> recent;
    std::span<const int32_t> banned_ids;
    uint64_t position;
    int32_t num_top_logprobs = -1;
  };

  explicit OneRowSampler(int64_t num_ids) {
    std::string error;
    backend_ = kernels::Backend::Create("cpu", {.num_threads = 1, .isa = ""}, &error);
    EXPECT_NE(backend_, nullptr) << error;
    logits_ = DeviceMemory(backend_.get(), static_cast<size_t>(num_ids) * sizeof(float));
    auto sampler = TokenSampler::Create(backend_.get(), num_ids, num_ids, 1);
    EXPECT_TRUE(sampler.ok()) << sampler.status();
    sampler_ = *std::move(sampler);
  }

  absl::StatusOr<int32_t> Sample(const Request& request) {
    Send(request.logits);
    sampler_->AddSample({.params = request.params,
                         .recent = request.recent,
                         .banned_ids = request.banned_ids,
                         .position = request.position,
                         .num_top_logprobs = request.num_top_logprobs});
    sampler_->Run();
    return sampler_->Token(0);
  }
  absl::StatusOr<float> Score(std::span<const float> logits, int32_t token_id, uint64_t position) {
    Send(logits);
    sampler_->AddScore(token_id, position);
    sampler_->Run();
    if (auto token = sampler_->Token(0); !token.ok()) return token.status();
    return sampler_->Logprob(0);
  }
  const TokenSampler& last() const { return *sampler_; }

 private:
  void Send(std::span<const float> logits) {
    EXPECT_EQ(static_cast<int64_t>(logits.size()), sampler_->num_ids());
    backend_->CopyToDevice(logits_.data(), logits.data(), logits.size_bytes());
    sampler_->Begin(logits_.f32());
  }

  std::unique_ptr<kernels::Backend> backend_;
  DeviceMemory logits_;
  std::unique_ptr<TokenSampler> sampler_;
};

}  // namespace vivarium::engine
