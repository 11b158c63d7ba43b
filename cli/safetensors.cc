#include "cli/safetensors.h"

#include <cstring>
#include <string_view>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cli/output.h"
#include "kernels/dtype.h"
#include "statestore/slot_packing.h"

namespace vivarium::cli {
namespace {

constexpr size_t kAlignmentBytes = 8;

std::string TokenIds(const std::vector<engine::TranscriptToken>& tokens) {
  Json ids = Json::array();
  for (const engine::TranscriptToken& token : tokens) ids.push_back(token.id);
  return ids.dump();
}

// The format takes strings only: what is no string is JSON in one.
Json Metadata(const statestore::StateManifest& manifest) {
  const auto number = [](auto value) { return std::string(absl::StrCat(value)); };
  Json labels = Json::object();
  for (const auto& [key, value] : manifest.labels) labels[key] = value;
  return {
      {"format", "vivarium-state"},
      {"id", manifest.id},
      {"parent_id", manifest.parent_id},
      {"model_fingerprint", manifest.identity.fingerprint},
      {"tokenizer_hash", manifest.identity.tokenizer_hash},
      {"numerics_id", manifest.identity.numerics_id},
      {"layout_version", number(manifest.layout.version)},
      {"position", number(manifest.position)},
      {"pending_token", number(manifest.pending_token)},
      {"recent_token_ids", TokenIds(manifest.recent_tokens)},
      {"transcript_token_ids", TokenIds(manifest.transcript)},
      {"session", manifest.session},
      {"labels", labels.dump()},
      {"create_time", absl::FormatTime(absl::RFC3339_full, manifest.created, absl::UTCTimeZone())},
      {"max_absolute_error", number(manifest.loss.max_absolute_error)},
      {"max_relative_error", number(manifest.loss.max_relative_error)}};
}

}  // namespace

std::string SafetensorsHeader(const statestore::StateManifest& manifest) {
  Json header = {{"__metadata__", Metadata(manifest)}};
  uint64_t offset_bytes = 0;
  for (const engine::StatePart& part : manifest.layout.parts) {
    header[part.name] = {
        {"dtype", absl::AsciiStrToUpper(std::string(kernels::DTypeName(part.dtype)))},
        {"shape", part.shape},
        {"data_offsets", {offset_bytes, offset_bytes + part.size_bytes}}};
    offset_bytes += part.size_bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes, ' ');
  const uint64_t text_bytes = text.size();
  std::string bytes(sizeof(text_bytes), '\0');
  std::memcpy(bytes.data(), &text_bytes, sizeof(text_bytes));  // hosts are little-endian
  return bytes + text;
}

absl::Status WriteSafetensors(const statestore::SavedState& state, OutputFile* file,
                              uint64_t* num_bytes) {
  const std::string header = SafetensorsHeader(state.manifest);
  absl::Status status = file->Write(header);
  *num_bytes += header.size();
  for (const engine::StatePart& part : state.manifest.layout.parts) {
    if (!status.ok()) return status;
    status = file->Write(
        {reinterpret_cast<const char*>(state.slot.data()) + part.offset_bytes, part.size_bytes});
    *num_bytes += part.size_bytes;
  }
  return status;
}

}  // namespace vivarium::cli
