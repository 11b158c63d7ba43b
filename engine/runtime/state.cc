#include "engine/runtime/state.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace vivarium::engine {
namespace {

constexpr uint64_t kAlignmentBytes = 64;
constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;
constexpr uint64_t kMinHugeBytes = 4 * kHugePageBytes;  // less than that the heap often has at hand

bool IsFloat(kernels::DType dtype) {
  return dtype == kernels::DType::kF32 || dtype == kernels::DType::kBF16;
}

}  // namespace

bool AreConvertible(const StateLayout& a, const StateLayout& b) {
  return a.version == b.version &&
         std::equal(a.parts.begin(), a.parts.end(), b.parts.begin(), b.parts.end(),
                    [](const StatePart& left, const StatePart& right) {
                      return left.name == right.name && left.shape == right.shape &&
                             IsFloat(left.dtype) && IsFloat(right.dtype);
                    });
}

StateBuffer::StateBuffer(uint64_t size_bytes) : StateBuffer(ForOverwrite(size_bytes)) {
  if (size_bytes > 0) std::memset(data_.get(), 0, size_bytes);
}

StateBuffer StateBuffer::ForOverwrite(uint64_t size_bytes) {
  StateBuffer buffer;
  if (size_bytes == 0) return buffer;
  const bool is_huge = size_bytes >= kMinHugeBytes;
  // aligned_alloc wants a multiple of the alignment.
  const uint64_t alignment_bytes = is_huge ? kHugePageBytes : kAlignmentBytes;
  const uint64_t rounded_bytes =
      (size_bytes + alignment_bytes - 1) / alignment_bytes * alignment_bytes;
  if (rounded_bytes < size_bytes) std::abort();
  buffer.data_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment_bytes, rounded_bytes)));
  if (buffer.data_ == nullptr) std::abort();
  // Most of what it costs to fill new memory is the kernel's work for each of its pages. A hint: it
  // may say no.
  if (is_huge) (void)madvise(buffer.data_.get(), rounded_bytes, MADV_HUGEPAGE);
  buffer.size_bytes_ = size_bytes;
  return buffer;
}

StateSnapshot CopySnapshot(const StateSnapshot& snapshot) {
  StateSnapshot copy;
  copy.identity = snapshot.identity;
  copy.layout = snapshot.layout;
  copy.slot = StateBuffer::ForOverwrite(snapshot.slot.size());
  if (copy.slot.size() > 0) {
    std::memcpy(copy.slot.data(), snapshot.slot.data(), snapshot.slot.size());
  }
  copy.position = snapshot.position;
  copy.pending_token = snapshot.pending_token;
  copy.sampling = snapshot.sampling;
  copy.recent_tokens = snapshot.recent_tokens;
  copy.text_tail = snapshot.text_tail;
  copy.transcript = snapshot.transcript;
  return copy;
}

}  // namespace vivarium::engine
