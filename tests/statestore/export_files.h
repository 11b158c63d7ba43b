// Whole export files, for tests: made, read, and signed again after a change.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "statestore/state_export.h"

namespace vivarium::statestore {

SavedState CopyOf(const SavedState& state);
std::string ExportFile(const SavedState& state);
absl::StatusOr<SavedState> ImportFile(const std::string& file, const ImportOptions& options = {});

// `file`, whose parts lie where an untouched one's would, with every checksum right again: chunks
// in the manifest, manifest, header, whole file.
std::string Resigned(std::string file);

// "" when it cannot be read.
std::string ReadFile(const std::string& path);

}  // namespace vivarium::statestore
