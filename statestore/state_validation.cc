#include "statestore/state_validation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "statestore/state_id.h"

namespace vivarium::statestore {
namespace {

using engine::StateLayout;
using engine::StatePart;
using engine::TranscriptToken;

constexpr uint64_t kSlotAlignmentBytes = 64;
constexpr size_t kMaxEchoedBytes = 160;

// Text from outside, safe to print.
std::string Quote(std::string_view text) {
  std::string quoted =
      absl::StrCat("\"", absl::CHexEscape(std::string(text.substr(0, kMaxEchoedBytes))), "\"");
  if (text.size() > kMaxEchoedBytes) absl::StrAppend(&quoted, "... (", text.size(), " bytes)");
  return quoted;
}

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

bool IsLower(char c) { return c >= 'a' && c <= 'z'; }
bool IsUpper(char c) { return c >= 'A' && c <= 'Z'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// The length of the UTF-8 character at the start of `text`, 0 when malformed (overlong, surrogate,
// beyond U+10FFFF, cut off).
size_t Utf8CharBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) return 1;
  const size_t num_bytes = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
  if (byte(0) < 0xc2 || byte(0) > 0xf4 || text.size() < num_bytes) return 0;
  for (size_t i = 1; i < num_bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  if (byte(0) == 0xe0 && byte(1) < 0xa0) return 0;
  if (byte(0) == 0xed && byte(1) > 0x9f) return 0;
  if (byte(0) == 0xf0 && byte(1) < 0x90) return 0;
  if (byte(0) == 0xf4 && byte(1) > 0x8f) return 0;
  return num_bytes;
}

bool IsPlainUtf8(std::string_view text) {
  while (!text.empty()) {
    const size_t num_bytes = Utf8CharBytes(text);
    if (num_bytes == 0) return false;
    if (num_bytes == 1 && (static_cast<unsigned char>(text[0]) < 0x20 || text[0] == 0x7f)) {
      return false;
    }
    text.remove_prefix(num_bytes);
  }
  return true;
}

absl::Status ValidatePart(const StatePart& part, uint64_t min_offset_bytes, uint64_t slot_bytes) {
  const std::string name = absl::StrCat("layout part ", Quote(part.name));
  if (part.name.empty() || part.name.size() > kMaxPartNameBytes || !IsPlainUtf8(part.name)) {
    return Invalid(name, ": expected a name of 1 to ", kMaxPartNameBytes, " bytes of UTF-8");
  }
  const int dtype = static_cast<int>(part.dtype);
  if (dtype > static_cast<int>(kernels::DType::kF16)) {
    return Invalid(name, ": dtype ", dtype, ", expected 0 (f32), 1 (bf16) or 2 (f16)");
  }
  if (part.shape.empty() || part.shape.size() > kMaxPartDims) {
    return Invalid(name, ": ", part.shape.size(), " dimensions, expected 1 to ", kMaxPartDims);
  }
  uint64_t size_bytes = kernels::DTypeBytes(part.dtype);
  for (int64_t dim : part.shape) {
    if (dim < 1 || static_cast<uint64_t>(dim) > kMaxSlotBytes / size_bytes) {
      return Invalid(name, ": dimension ", dim, ", expected 1 or more, and at most ", kMaxSlotBytes,
                     " bytes in all");
    }
    size_bytes *= static_cast<uint64_t>(dim);
  }
  if (part.size_bytes != size_bytes) {
    return Invalid(name, ": ", part.size_bytes, " bytes, expected ", size_bytes,
                   " by shape and dtype");
  }
  if (part.offset_bytes % kSlotAlignmentBytes != 0 || part.offset_bytes < min_offset_bytes) {
    return Invalid(name, ": offset ", part.offset_bytes, ", expected a multiple of ",
                   kSlotAlignmentBytes, " from ", min_offset_bytes, " on");
  }
  if (part.offset_bytes > slot_bytes || part.size_bytes > slot_bytes - part.offset_bytes) {
    return Invalid(name, ": ends at ", part.offset_bytes, " + ", part.size_bytes,
                   ", expected at most the slot's ", slot_bytes, " bytes");
  }
  return absl::OkStatus();
}

absl::Status ValidateTokens(const std::vector<TranscriptToken>& tokens, size_t max_tokens,
                            const char* field) {
  if (tokens.size() > max_tokens) {
    return Invalid(field, ": ", tokens.size(), " tokens, expected at most ", max_tokens);
  }
  const auto negative = std::find_if(tokens.begin(), tokens.end(),
                                     [](const TranscriptToken& token) { return token.id < 0; });
  if (negative != tokens.end()) {
    return Invalid(field, "[", negative - tokens.begin(), "]: token id ", negative->id,
                   ", expected 0 or more");
  }
  return absl::OkStatus();
}

// Older snapshots come first, none of them after the state.
absl::Status ValidateSnapshotRefs(const StateManifest& manifest) {
  const std::vector<SnapshotRef>& snapshots = manifest.snapshots;
  if (snapshots.size() > kMaxSnapshotRefs) {
    return Invalid("snapshots: ", snapshots.size(), ", expected at most ", kMaxSnapshotRefs);
  }
  for (size_t i = 0; i < snapshots.size(); ++i) {
    if (absl::Status status = ValidateStateId(snapshots[i].id); !status.ok()) return status;
    const uint64_t next = i + 1 < snapshots.size() ? snapshots[i + 1].position : manifest.position;
    if (snapshots[i].position > next) {
      return Invalid("snapshots[", i, "]: position ", snapshots[i].position, ", expected at most ",
                     next);
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateSampling(const engine::SamplingParams& sampling) {
  const std::pair<const char*, float> fields[] = {
      {"temperature", sampling.temperature},
      {"top_p", sampling.top_p},
      {"min_p", sampling.min_p},
      {"repetition_penalty", sampling.repetition_penalty},
      {"presence_penalty", sampling.presence_penalty},
      {"frequency_penalty", sampling.frequency_penalty},
  };
  for (const auto& [name, value] : fields) {
    if (!std::isfinite(value)) {
      return Invalid("sampling.", name, ": ", value, ", expected a finite number");
    }
  }
  if (sampling.logit_bias.size() > static_cast<size_t>(engine::kMaxLogitBias)) {
    return Invalid("sampling.logit_bias: ", sampling.logit_bias.size(),
                   " entries, expected at most ", engine::kMaxLogitBias);
  }
  int64_t previous_id = -1;
  for (const auto& [id, bias] : sampling.logit_bias) {
    if (id <= previous_id || !std::isfinite(bias)) {
      return Invalid("sampling.logit_bias: id ", id, " with bias ", bias,
                     ", expected ascending ids from 0 and finite biases");
    }
    previous_id = id;
  }
  return absl::OkStatus();
}

absl::Status ValidateIdentity(const engine::ModelIdentity& identity) {
  const std::pair<const char*, const std::string*> fields[] = {
      {"fingerprint", &identity.fingerprint},
      {"tokenizer_hash", &identity.tokenizer_hash},
      {"numerics_id", &identity.numerics_id},
  };
  for (const auto& [name, value] : fields) {
    if (value->size() > kMaxIdentityBytes || !IsPlainUtf8(*value)) {
      return Invalid("identity.", name, ": ", Quote(*value), ", expected at most ",
                     kMaxIdentityBytes, " bytes of UTF-8");
    }
  }
  return absl::OkStatus();
}

template <typename T>
size_t CountNonFinite(std::string_view bytes, T exponent_mask) {
  size_t count = 0;
  for (size_t offset = 0; offset + sizeof(T) <= bytes.size(); offset += sizeof(T)) {
    T bits;
    std::memcpy(&bits, bytes.data() + offset, sizeof(T));
    count += (bits & exponent_mask) == exponent_mask ? 1 : 0;
  }
  return count;
}

size_t CountNonFinite(std::string_view bytes, kernels::DType dtype) {
  switch (dtype) {
    case kernels::DType::kF32:
      return CountNonFinite<uint32_t>(bytes, 0x7f800000u);
    case kernels::DType::kBF16:
      return CountNonFinite<uint16_t>(bytes, 0x7f80u);
    case kernels::DType::kF16:
      return CountNonFinite<uint16_t>(bytes, 0x7c00u);
    case kernels::DType::kI8:
      break;
  }
  return 0;
}

absl::Status ValidateNewState(const Commit& commit, const Commit::NewState& state) {
  const StateManifest& manifest = state.manifest;
  if (absl::Status status = ValidateManifest(manifest); !status.ok()) return status;
  if (manifest.tenant != commit.tenant) {
    return Invalid("state ", manifest.id, ": tenant ", Quote(manifest.tenant),
                   ", expected the commit's, ", Quote(commit.tenant));
  }
  if (manifest.bytes_dropped) {
    return Invalid("state ", manifest.id, ": bytes_dropped is set, expected a state with bytes");
  }
  if (state.slot == nullptr || state.slot->size() != manifest.layout.slot_bytes) {
    return Invalid("state ", manifest.id, ": slot of ",
                   state.slot == nullptr ? 0 : state.slot->size(), " bytes, expected ",
                   manifest.layout.slot_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateTenant(std::string_view tenant) {
  const bool valid = !tenant.empty() && tenant.size() <= kMaxTenantBytes &&
                     std::all_of(tenant.begin(), tenant.end(),
                                 [](char c) { return IsLower(c) || IsDigit(c) || c == '-'; });
  if (valid) return absl::OkStatus();
  return Invalid("tenant ", Quote(tenant), ": expected [a-z0-9-]{1,", kMaxTenantBytes, "}");
}

absl::Status ValidateSessionName(std::string_view name) {
  const bool valid =
      !name.empty() && name.size() <= kMaxSessionNameBytes &&
      std::all_of(name.begin(), name.end(), [](char c) {
        return IsLower(c) || IsUpper(c) || IsDigit(c) || c == '.' || c == '_' || c == '-';
      });
  if (valid) return absl::OkStatus();
  return Invalid("session name ", Quote(name), ": expected [A-Za-z0-9._-]{1,", kMaxSessionNameBytes,
                 "}");
}

absl::Status ValidateRequestId(std::string_view request_id) {
  if (!request_id.empty() && request_id.size() <= kMaxRequestIdBytes) return absl::OkStatus();
  return Invalid("request id ", Quote(request_id), ": expected 1 to ", kMaxRequestIdBytes,
                 " bytes");
}

absl::Status ValidateLabels(const Labels& labels) {
  if (labels.size() > kMaxLabels) {
    return Invalid(labels.size(), " labels, expected at most ", kMaxLabels);
  }
  for (const auto& [key, value] : labels) {
    if (key.empty() || key.size() > kMaxLabelBytes || !IsPlainUtf8(key)) {
      return Invalid("label key ", Quote(key), ": expected 1 to ", kMaxLabelBytes,
                     " bytes of UTF-8 without control characters");
    }
    if (value.size() > kMaxLabelBytes || !IsPlainUtf8(value)) {
      return Invalid("label ", Quote(key), ": value ", Quote(value), ", expected at most ",
                     kMaxLabelBytes, " bytes of UTF-8 without control characters");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidatePageSize(int page_size) {
  if (page_size >= 1 && page_size <= kMaxPageSize) return absl::OkStatus();
  return Invalid("page size ", page_size, ": expected 1 to ", kMaxPageSize);
}

absl::Status ValidateFilter(const StateFilter& filter) {
  if (absl::Status status = ValidateLabels(filter.labels); !status.ok()) return status;
  if (!filter.session.empty()) {
    if (absl::Status status = ValidateSessionName(filter.session); !status.ok()) return status;
  }
  return filter.parent_id.empty() ? absl::OkStatus() : ValidateStateId(filter.parent_id);
}

absl::Status ValidateLayout(const StateLayout& layout) {
  if (layout.version != StateLayout::kVersion) {
    const std::string message = absl::StrCat("layout version ", layout.version,
                                             ", this program knows ", StateLayout::kVersion);
    return layout.version > StateLayout::kVersion ? absl::UnimplementedError(message)
                                                  : absl::InvalidArgumentError(message);
  }
  if (layout.slot_bytes == 0 || layout.slot_bytes % kSlotAlignmentBytes != 0 ||
      layout.slot_bytes > kMaxSlotBytes) {
    return Invalid("slot of ", layout.slot_bytes, " bytes, expected a multiple of ",
                   kSlotAlignmentBytes, " from ", kSlotAlignmentBytes, " to ", kMaxSlotBytes);
  }
  if (layout.parts.empty() || layout.parts.size() > kMaxParts) {
    return Invalid("layout of ", layout.parts.size(), " parts, expected 1 to ", kMaxParts);
  }
  uint64_t end_bytes = 0;
  for (const StatePart& part : layout.parts) {
    if (absl::Status status = ValidatePart(part, end_bytes, layout.slot_bytes); !status.ok()) {
      return status;
    }
    end_bytes = part.offset_bytes + part.size_bytes;
  }
  return absl::OkStatus();
}

absl::Status ValidateManifest(const StateManifest& manifest) {
  if (absl::Status status = ValidateStateId(manifest.id); !status.ok()) return status;
  if (absl::Status status = ValidateTenant(manifest.tenant); !status.ok()) return status;
  if (!manifest.parent_id.empty()) {
    if (absl::Status status = ValidateStateId(manifest.parent_id); !status.ok()) return status;
    if (manifest.parent_id == manifest.id) return Invalid(manifest.id, " is its own parent");
  }
  if (!manifest.session.empty()) {
    if (absl::Status status = ValidateSessionName(manifest.session); !status.ok()) return status;
  }
  absl::Status status = ValidateLayout(manifest.layout);
  if (status.ok()) status = ValidateIdentity(manifest.identity);
  if (status.ok()) status = ValidateLabels(manifest.labels);
  if (status.ok()) status = ValidateSampling(manifest.sampling);
  if (status.ok()) status = ValidateSnapshotRefs(manifest);
  if (status.ok()) {
    status = ValidateTokens(manifest.recent_tokens, engine::kRecentTokenWindow, "recent_tokens");
  }
  if (status.ok()) {
    status = ValidateTokens(manifest.transcript, kMaxTranscriptTokens, "transcript");
  }
  if (!status.ok()) return status;
  if (manifest.position > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return Invalid("position ", manifest.position, ", expected less than 2^63");
  }
  if (manifest.pending_token < 0) {
    return Invalid("pending token ", manifest.pending_token, ", expected 0 or more");
  }
  if (manifest.text_tail.size() > kMaxTextTailBytes) {
    return Invalid("text tail of ", manifest.text_tail.size(), " bytes, expected at most ",
                   kMaxTextTailBytes);
  }
  if (manifest.created <= absl::UnixEpoch() || manifest.created == absl::InfiniteFuture()) {
    return Invalid("created at ", absl::FormatTime(manifest.created), ", expected a real time");
  }
  return absl::OkStatus();
}

absl::Status ValidateCommit(const Commit& commit) {
  if (absl::Status status = ValidateTenant(commit.tenant); !status.ok()) return status;
  if (commit.states.size() > kMaxCommitStates) {
    return Invalid("commit of ", commit.states.size(), " states, expected at most ",
                   kMaxCommitStates);
  }
  std::set<std::string> ids;
  size_t num_tokens = 0;
  for (const Commit::NewState& state : commit.states) {
    if (absl::Status status = ValidateNewState(commit, state); !status.ok()) return status;
    if (!ids.insert(state.manifest.id).second) {
      return Invalid("commit has state ", state.manifest.id, " twice");
    }
    num_tokens += state.manifest.transcript.size();
  }
  if (num_tokens > kMaxTranscriptTokens) {
    return Invalid("commit with ", num_tokens, " transcript tokens, expected at most ",
                   kMaxTranscriptTokens);
  }
  if (commit.thinned.size() > kMaxSnapshotRefs) {
    return Invalid("commit that thins ", commit.thinned.size(), " snapshots, expected at most ",
                   kMaxSnapshotRefs);
  }
  for (const StateId& id : commit.thinned) {
    if (absl::Status status = ValidateStateId(id); !status.ok()) return status;
    if (ids.contains(id)) return Invalid("commit thins its own state ", id);
  }
  if (commit.head_move.has_value()) {
    absl::Status status = ValidateSessionName(commit.head_move->session);
    if (status.ok()) status = ValidateStateId(commit.head_move->head);
    if (!status.ok()) return status;
  }
  if (!commit.request.has_value()) return absl::OkStatus();
  const RequestRecord& request = *commit.request;
  if (request.request_hash.size() > kMaxRequestHashBytes) {
    return Invalid("request hash of ", request.request_hash.size(), " bytes, expected at most ",
                   kMaxRequestHashBytes);
  }
  if (request.result.size() > kMaxRequestResultBytes) {
    return Invalid("request result of ", request.result.size(), " bytes, expected at most ",
                   kMaxRequestResultBytes);
  }
  return ValidateRequestId(request.request_id);
}

absl::Status ValidateSlot(const StateLayout& layout, const engine::StateBuffer& slot) {
  const std::string_view bytes(reinterpret_cast<const char*>(slot.data()), slot.size());
  const auto check_padding = [&](uint64_t begin, uint64_t end) -> absl::Status {
    const size_t found = bytes.substr(0, end).find_first_not_of('\0', begin);
    if (found == std::string_view::npos) return absl::OkStatus();
    return Invalid("slot byte ", found, " lies between the parts: ",
                   static_cast<int>(static_cast<unsigned char>(bytes[found])), ", expected 0");
  };
  uint64_t end_bytes = 0;
  for (const StatePart& part : layout.parts) {
    if (absl::Status status = check_padding(end_bytes, part.offset_bytes); !status.ok()) {
      return status;
    }
    const size_t num_bad =
        CountNonFinite(bytes.substr(part.offset_bytes, part.size_bytes), part.dtype);
    if (num_bad > 0) {
      return Invalid("layout part ", Quote(part.name), ": ", num_bad,
                     " values are NaN or infinite, expected finite numbers");
    }
    end_bytes = part.offset_bytes + part.size_bytes;
  }
  return check_padding(end_bytes, layout.slot_bytes);
}

}  // namespace vivarium::statestore
