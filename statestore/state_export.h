// A state as one self-describing, checksummed file, in pieces: StateExporter makes it,
// StateImporter reads and verifies it. The format is specified in README.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "statestore/byte_codec.h"
#include "statestore/export_format.h"
#include "statestore/state_codec.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

// Not thread-safe. Memory: the state, and one piece.
class StateExporter {
 public:
  // Takes the state over, as Load gave it: a whole state that the store accepts. Reads every byte
  // once, for the checksums.
  explicit StateExporter(SavedState state);

  // The whole file's size.
  uint64_t file_bytes() const { return header_.file_bytes; }
  // The next 1 to kMaxExportPieceBytes bytes; "" = the file is complete.
  std::string NextPiece();

 private:
  // What of the file is in [offset_, ...) until the next border between its parts, appended to
  // `piece` as far as there is room.
  void AppendNext(std::string* piece);
  void Append(std::string_view source, uint64_t source_offset, std::string* piece);

  SavedState state_;
  ChunkTable chunks_;
  std::string front_;  // header and manifest
  ExportHeader header_;
  uint64_t offset_ = 0;  // of the file, so far handed out
  RunningChecksum checksum_;
};

struct ImportOptions {
  // A state of another layout, and not convertible to it (engine::AreConvertible), is refused with
  // FAILED_PRECONDITION, naming both sides, before memory
  // is taken for its slot; null = any layout.
  const engine::StateLayout* expected_layout = nullptr;
  uint64_t max_slot_bytes = uint64_t{4} << 30;  // INVALID_ARGUMENT beyond
};

// Push pieces of any size, then Finish. Nothing is given out before every byte is checked: exact
// sizes, every checksum, every field, no NaN nor infinity in the slot. Memory: the manifest, the
// slot and one chunk, each taken only once what announces it has been verified.
// Errors: INVALID_ARGUMENT (no export file, malformed, wrong sizes, trailing bytes), DATA_LOSS (a
// checksum failed, cut off), UNIMPLEMENTED (newer format: both versions), FAILED_PRECONDITION
// (another layout). After an error every further call answers the same error. Not thread-safe.
class StateImporter {
 public:
  // What `options` points at must outlive the importer.
  explicit StateImporter(const ImportOptions& options) : options_(options) {}

  absl::Status Push(std::string_view piece);
  // The state as it was exported: id, tenant, parent and times are the exporting store's.
  absl::StatusOr<SavedState> Finish();

 private:
  enum class Part { kPrologue, kHeader, kManifest, kChunk, kTrailer, kDone };

  // `buffer_` holds the whole current part: check it, take it over, go to the next.
  absl::Status TakePart();
  absl::Status TakeHeader();
  absl::Status TakeManifest();
  absl::Status TakeChunk();
  absl::Status TakeTrailer();
  void StartPart(Part part, uint64_t part_bytes);
  void StartChunkOrTrailer();
  absl::Status CheckManifest();

  const ImportOptions options_;
  absl::Status status_;
  Part part_ = Part::kPrologue;
  uint64_t part_bytes_ = kExportPrologueBytes;
  std::string buffer_;  // of the current part, so far
  ExportHeader header_;
  StoredManifest stored_;
  engine::StateBuffer slot_;
  uint64_t chunk_index_ = 0;
  RunningChecksum checksum_;
};

}  // namespace vivarium::statestore
