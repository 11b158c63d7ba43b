// A model directory of mamba-130m's shape for benchmarks of real servers.
#pragma once

#include <string>

namespace vivarium::bench {

// Made below `parent`, with random bf16 weights; its path.
std::string WriteMamba130m(const std::string& parent);

}  // namespace vivarium::bench
