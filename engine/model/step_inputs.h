// StepInputs: what a step's ops read besides weights and states (token ids, segments, rows that
// need logits), on the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/model/device_memory.h"
#include "kernels/backend.h"

namespace vivarium::engine {

struct Batch;

// Owns one block of device memory and its image on the host; a step's inputs lie in it one after
// the other and go up in one asynchronous copy. Not thread-safe. Must not outlive its Backend.
class StepInputs {
 public:
  StepInputs() = default;
  // Room for max_tokens ids, as many segments, and max_rows rows. is_allocated() is false when the
  // host or the device has no memory left.
  StepInputs(kernels::Backend* backend, int32_t max_tokens, int32_t max_rows);
  StepInputs(StepInputs&& other) noexcept;
  StepInputs& operator=(StepInputs&& other) noexcept;
  ~StepInputs();

  bool is_allocated() const { return host_ != nullptr && device_.data() != nullptr; }
  size_t bytes() const { return device_.bytes(); }
  static size_t Bytes(int32_t max_tokens, int32_t max_rows);

  // Begins to copy. The step before must be complete.
  void Send(const Batch& batch);
  // The same for a batch whose segments have one token each and whose rows all need logits, made up
  // to num_rows rows with rows of pad slots: where the inputs lie depends on num_rows alone.
  void SendPadded(const Batch& batch, int64_t num_rows);

  // Only says where SendPadded(..., num_rows) would put the inputs.
  void SetPadded(int64_t num_rows) { ArrangePadded(num_rows); }

  // On the device, of the last call of those above.
  const kernels::Segment* segments() const;
  const int32_t* token_ids() const;
  const int32_t* logit_rows() const;

 private:
  // Sets the offsets for so many of each; returns the bytes of all.
  size_t Arrange(size_t num_segments, size_t num_tokens, size_t num_rows);
  size_t ArrangePadded(int64_t num_rows) {
    const auto rows = static_cast<size_t>(num_rows);
    return Arrange(rows, rows, rows);
  }
  template <typename T>
  T* HostAt(size_t offset_bytes) {
    return reinterpret_cast<T*>(host_ + offset_bytes);
  }

  kernels::Backend* backend_ = nullptr;
  DeviceMemory device_;
  std::byte* host_ = nullptr;
  size_t token_ids_offset_ = 0;  // in bytes; segments come first
  size_t logit_rows_offset_ = 0;
};

}  // namespace vivarium::engine
