#include "tests/support/fake_model.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <set>

namespace vivarium::testing {
namespace {

uint64_t Mix(uint64_t x) {  // the finalizer of SplitMix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

void Check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "FakeModel: %s\n", what);
  std::abort();
}

}  // namespace

FakeModel::FakeModel(kernels::Backend* backend, const Options& options)
    : backend_(backend), options_(options) {
  config_.architecture = "Fake";
  config_.vocab_size = options.vocab_size;
  config_.padded_vocab_size = options.padded_vocab_size;
  config_.eos_token_ids = options.eos_token_ids;
  layout_.slot_bytes = options.slot_bytes;
  layout_.parts = {{.name = "layers.0.ssm",
                    .dtype = kernels::DType::kF32,
                    .shape = {1, static_cast<int64_t>(options.slot_bytes) / 64, 16},
                    .offset_bytes = 0,
                    .size_bytes = options.slot_bytes}};
  logits_.resize(options.max_logit_rows * options.padded_vocab_size);
}

void FakeModel::CheckBatch(const engine::Batch& batch) const {
  Check(!batch.token_ids.empty(), "an empty batch");
  Check(static_cast<int64_t>(batch.token_ids.size()) <= options_.max_batch_tokens,
        "more rows than max_batch_tokens");
  Check(static_cast<int64_t>(batch.logit_rows.size()) <= options_.max_logit_rows,
        "more logit rows than max_logit_rows");
  for (const int32_t id : batch.token_ids) {
    Check(id >= 0 && id < options_.vocab_size, "a token id that is not usable");
  }
  int32_t next_row = 0;
  std::set<int32_t> slots;
  std::map<int32_t, size_t> readers;  // slot -> the chain that reads it
  std::map<int32_t, size_t> writers;
  size_t chain = 0;
  for (const kernels::Segment& segment : batch.segments) {
    Check(segment.token_begin == next_row && segment.num_tokens >= 1, "segments leave a gap");
    next_row += segment.num_tokens;
    Check(segment.write_slot >= 0 && segment.write_slot < options_.max_slots, "no such slot");
    Check(slots.insert(segment.write_slot).second, "a slot is written twice");
    if (segment.read_slot == kernels::kPreviousSegment) {
      Check(segment.token_begin > 0, "the first segment goes on from none");
    } else {
      ++chain;
      if (segment.read_slot != kernels::kPadSlot) readers[segment.read_slot] = chain;
    }
    writers[segment.write_slot] = chain;
  }
  for (const auto& [slot, reader] : readers) {
    const auto writer = writers.find(slot);
    Check(writer == writers.end() || writer->second == reader, "a slot is read and overwritten");
  }
  Check(next_row == static_cast<int32_t>(batch.token_ids.size()), "segments don't cover the rows");
  int32_t last = -1;
  for (const int32_t row : batch.logit_rows) {
    Check(row > last && row < next_row, "logit rows not increasing");
    last = row;
  }
}

FakeModel::Thread FakeModel::Read(const std::byte* slot) const {
  const uint64_t num_lanes = options_.slot_bytes / sizeof(uint64_t);
  std::vector<uint64_t> lanes(num_lanes);
  std::memcpy(lanes.data(), slot, options_.slot_bytes);
  const Thread thread{.hash = lanes[0], .num_tokens = lanes[1]};
  std::vector<std::byte> expected(options_.slot_bytes);
  Write(thread, expected.data());
  Check(std::memcmp(expected.data(), slot, options_.slot_bytes) == 0, "a torn state");
  return thread;
}

void FakeModel::Write(const Thread& thread, std::byte* slot) const {
  const uint64_t num_lanes = options_.slot_bytes / sizeof(uint64_t);
  std::vector<uint64_t> lanes(num_lanes, 0);
  lanes[0] = thread.hash;
  lanes[1] = thread.num_tokens;
  for (uint64_t lane = 2; thread.num_tokens > 0 && lane < num_lanes; ++lane) {
    lanes[lane] = Mix(thread.hash + lane);
  }
  std::memcpy(slot, lanes.data(), options_.slot_bytes);
}

FakeModel::Thread FakeModel::Next(const Thread& thread, int32_t token) {
  return {.hash = Mix(thread.hash * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(token) + 1),
          .num_tokens = thread.num_tokens + 1};
}

void FakeModel::FillLogits(const Thread& thread, float* logits) const {
  std::vector<float> row(options_.padded_vocab_size);
  for (int64_t id = 0; id < options_.padded_vocab_size; ++id) {
    const uint64_t bits = Mix(thread.hash ^ Mix(static_cast<uint64_t>(id) + 77));
    row[id] = static_cast<float>(bits >> 40) * 0x1p-24f * 8.0f - 4.0f;
    // Padded rows are the most tempting ones.
    if (id >= options_.vocab_size) row[id] = 50.0f;
  }
  if (edit_logits) edit_logits(thread.num_tokens, &row);
  std::memcpy(logits, row.data(), row.size() * sizeof(float));
}

float* FakeModel::Forward(const engine::Batch& batch, std::byte* slots) {
  if (on_forward) on_forward(batch);
  CheckBatch(batch);
  ++num_forwards;
  num_rows += static_cast<int64_t>(batch.token_ids.size());
  std::fill(logits_.begin(), logits_.end(), std::numeric_limits<float>::quiet_NaN());
  size_t next_logits = 0;
  Thread thread;
  for (const kernels::Segment& segment : batch.segments) {
    if (segment.read_slot == kernels::kPadSlot) thread = {};
    if (segment.read_slot >= 0) {
      thread = Read(slots + segment.read_slot * options_.slot_bytes);
    }
    for (int32_t i = 0; i < segment.num_tokens; ++i) {
      const int32_t row = segment.token_begin + i;
      thread = Next(thread, batch.token_ids[row]);
      if (next_logits < batch.logit_rows.size() && batch.logit_rows[next_logits] == row) {
        FillLogits(thread, &logits_[next_logits++ * options_.padded_vocab_size]);
      }
    }
    Write(thread, slots + segment.write_slot * options_.slot_bytes);
  }
  return logits_.data();
}

std::vector<std::byte> FakeModel::StateAfter(const std::vector<int32_t>& tokens) const {
  Thread thread;
  for (const int32_t token : tokens) thread = Next(thread, token);
  std::vector<std::byte> slot(options_.slot_bytes);
  Write(thread, slot.data());
  return slot;
}

std::vector<float> FakeModel::LogitsAfter(const std::vector<int32_t>& tokens) const {
  Thread thread;
  for (const int32_t token : tokens) thread = Next(thread, token);
  std::vector<float> logits(options_.padded_vocab_size);
  FillLogits(thread, logits.data());
  return logits;
}

}  // namespace vivarium::testing
