#include "server/paging.h"

#include <algorithm>
#include <string>

#include "server/errors.h"
#include "statestore/state_store.h"

namespace vivarium::server {

absl::StatusOr<int> ParsePageSize(int32_t page_size) {
  if (page_size < 0) return InvalidField("page_size", std::to_string(page_size), "0 .. 1000");
  if (page_size == 0) return kDefaultPageSize;
  return std::min<int>(page_size, statestore::kMaxPageSize);
}

}  // namespace vivarium::server
