#include "engine/runtime/state_convert.h"

#include <cmath>
#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace vivarium::engine {
namespace {

using kernels::DType;

std::string Describe(const StateLayout& layout) {
  return absl::StrCat("version ", layout.version, " with ", layout.parts.size(), " parts in ",
                      layout.slot_bytes, " bytes, ", std::string(StateDTypeName(layout)));
}

absl::Status Narrow(const StatePart& part, const std::byte* from, size_t num_elements,
                    std::byte* to) {
  for (size_t i = 0; i < num_elements; ++i) {
    float value;
    std::memcpy(&value, from + i * sizeof(value), sizeof(value));
    const uint16_t bits = kernels::F32ToBF16(value);
    if (std::isfinite(value) && !std::isfinite(kernels::BF16ToF32(bits))) {
      return absl::InvalidArgumentError(absl::StrCat("state part ", part.name, ", element ", i,
                                                     ": ", value, " is infinite in bf16"));
    }
    std::memcpy(to + i * sizeof(bits), &bits, sizeof(bits));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view StateDTypeName(const StateLayout& layout) {
  return layout.parts.empty() ? "none" : kernels::DTypeName(layout.parts.back().dtype);
}

absl::StatusOr<StateBuffer> ConvertState(const StateLayout& from, const StateBuffer& slot,
                                         const StateLayout& to) {
  if (!AreConvertible(from, to)) {
    return absl::FailedPreconditionError(
        absl::StrCat("the state has layout ", Describe(from), "; expected ", Describe(to)));
  }
  if (slot.size() != from.slot_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the state has ", slot.size(), " bytes, expected ", from.slot_bytes));
  }
  StateBuffer converted(to.slot_bytes);
  for (size_t i = 0; i < to.parts.size(); ++i) {
    const StatePart& source = from.parts[i];
    const StatePart& target = to.parts[i];
    const std::byte* const read = slot.data() + source.offset_bytes;
    std::byte* const write = converted.data() + target.offset_bytes;
    const size_t num_elements = target.size_bytes / kernels::DTypeBytes(target.dtype);
    if (source.dtype == target.dtype) {
      std::memcpy(write, read, target.size_bytes);
    } else if (target.dtype == DType::kF32) {
      kernels::ConvertToF32(read, source.dtype, num_elements, reinterpret_cast<float*>(write));
    } else if (absl::Status status = Narrow(target, read, num_elements, write); !status.ok()) {
      return status;
    }
  }
  return converted;
}

}  // namespace vivarium::engine
