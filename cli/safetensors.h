// A state as a .safetensors file, for Python: one tensor a layer part, the rest as metadata.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "cli/output_file.h"
#include "statestore/state_store.h"

namespace vivarium::cli {

// What the file begins with: the header's length (u64, little-endian) and the header, padded with
// spaces to a multiple of 8 bytes. The tensors follow without gaps, in the layout's order.
std::string SafetensorsHeader(const statestore::StateManifest& manifest);

// The whole file. Adds its size to `num_bytes`.
absl::Status WriteSafetensors(const statestore::SavedState& state, OutputFile* file,
                              uint64_t* num_bytes);

}  // namespace vivarium::cli
