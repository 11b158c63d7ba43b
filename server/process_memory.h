// The process's memory, as the system counts it.
#pragma once

#include <cstdint>

namespace vivarium::server {

// Resident set; 0 where /proc has none.
uint64_t ResidentBytes();

}  // namespace vivarium::server
