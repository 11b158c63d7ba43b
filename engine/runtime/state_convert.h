// States of one layout as states of another: how a state whose SSM part is bf16 resumes where it is
// f32, and the reverse.
#pragma once

#include "absl/status/statusor.h"
#include "engine/runtime/state.h"

namespace vivarium::engine {

// The state in `slot`, of layout `from`, in layout `to`: bf16 widened (exact), f32 rounded to
// nearest even, all else copied, zeros between the parts. FAILED_PRECONDITION, naming both sides,
// unless AreConvertible; INVALID_ARGUMENT, naming the part, when `slot` doesn't have from's size or
// a finite value has no finite one in `to`.
absl::StatusOr<StateBuffer> ConvertState(const StateLayout& from, const StateBuffer& slot,
                                         const StateLayout& to);

// "f32", "bf16": what the SSM parts of a layout are; that of its last part.
std::string_view StateDTypeName(const StateLayout& layout);

}  // namespace vivarium::engine
