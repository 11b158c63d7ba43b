// HostMemory: how much memory this process may take.
#pragma once

#include <string>

#include "kernels/backend.h"

namespace vivarium::kernels {

// free_bytes: MemAvailable, or what is left below the limit of a control group (version 2) that the
// process is in, whichever is least; a group's page cache counts as free. total_bytes: MemTotal, or
// the lowest of these limits. Zeros when the system does not say.
MemoryInfo HostMemory();

// The same from files elsewhere: `proc` stands in for /proc, `cgroup` for /sys/fs/cgroup.
MemoryInfo ReadHostMemory(const std::string& proc, const std::string& cgroup);

}  // namespace vivarium::kernels
