// Clock: where the store takes the time from. Tests inject their own.
#pragma once

#include <functional>

#include "absl/time/time.h"

namespace vivarium::statestore {

// Thread-safe; `absl::Now` in the product.
using Clock = std::function<absl::Time()>;

}  // namespace vivarium::statestore
