#include "engine/model/step_inputs.h"

#include <algorithm>
#include <utility>

#include "engine/model/model.h"

namespace vivarium::engine {

using kernels::Segment;

StepInputs::StepInputs(kernels::Backend* backend, int32_t max_tokens, int32_t max_rows)
    : backend_(backend),
      device_(backend, Bytes(max_tokens, max_rows)),
      host_(static_cast<std::byte*>(backend->AllocateHost(device_.bytes()))) {}

StepInputs::StepInputs(StepInputs&& other) noexcept { *this = std::move(other); }

StepInputs& StepInputs::operator=(StepInputs&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(device_, other.device_);
  std::swap(host_, other.host_);
  std::swap(token_ids_offset_, other.token_ids_offset_);
  std::swap(logit_rows_offset_, other.logit_rows_offset_);
  return *this;
}

StepInputs::~StepInputs() {
  if (host_ != nullptr) backend_->FreeHost(host_);
}

size_t StepInputs::Bytes(int32_t max_tokens, int32_t max_rows) {
  const auto tokens = static_cast<size_t>(max_tokens);
  return tokens * (sizeof(Segment) + sizeof(int32_t)) +
         static_cast<size_t>(max_rows) * sizeof(int32_t);
}

size_t StepInputs::Arrange(size_t num_segments, size_t num_tokens, size_t num_rows) {
  token_ids_offset_ = num_segments * sizeof(Segment);
  logit_rows_offset_ = token_ids_offset_ + num_tokens * sizeof(int32_t);
  return logit_rows_offset_ + num_rows * sizeof(int32_t);
}

void StepInputs::Send(const Batch& batch) {
  const size_t bytes =
      Arrange(batch.segments.size(), batch.token_ids.size(), batch.logit_rows.size());
  std::copy(batch.segments.begin(), batch.segments.end(), HostAt<Segment>(0));
  std::copy(batch.token_ids.begin(), batch.token_ids.end(), HostAt<int32_t>(token_ids_offset_));
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), HostAt<int32_t>(logit_rows_offset_));
  backend_->CopyToDeviceAsync(device_.data(), host_, bytes);
}

void StepInputs::SendPadded(const Batch& batch, int64_t num_rows) {
  const auto rows = static_cast<size_t>(num_rows);
  const size_t bytes = ArrangePadded(num_rows);
  auto* const segments = HostAt<Segment>(0);
  auto* const token_ids = HostAt<int32_t>(token_ids_offset_);
  auto* const logit_rows = HostAt<int32_t>(logit_rows_offset_);
  for (size_t i = 0; i < rows; ++i) {
    const bool is_pad = i >= batch.segments.size();
    const auto row = static_cast<int32_t>(i);
    segments[i] =
        is_pad ? Segment{row, 1, kernels::kPadSlot, kernels::kPadSlot} : batch.segments[i];
    token_ids[i] = is_pad ? 0 : batch.token_ids[i];
    logit_rows[i] = row;
  }
  backend_->CopyToDeviceAsync(device_.data(), host_, bytes);
}

const Segment* StepInputs::segments() const { return static_cast<const Segment*>(device_.data()); }

const int32_t* StepInputs::token_ids() const {
  return reinterpret_cast<const int32_t*>(static_cast<const std::byte*>(device_.data()) +
                                          token_ids_offset_);
}

const int32_t* StepInputs::logit_rows() const {
  return reinterpret_cast<const int32_t*>(static_cast<const std::byte*>(device_.data()) +
                                          logit_rows_offset_);
}

}  // namespace vivarium::engine
