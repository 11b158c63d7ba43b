#include "statestore/rocksdb_key_scrub.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "statestore/record_codec.h"
#include "statestore/state_id.h"

namespace vivarium::statestore {
namespace {

constexpr size_t kKeysPerBatch = 256;
constexpr size_t kBytesPerBatch = 1 << 20;

std::string Shown(std::string_view key) {
  return absl::CHexEscape(absl::string_view(key.data(), key.size()));
}

// "a/b" -> a, b; nothing without a '/'.
std::optional<std::pair<std::string_view, std::string_view>> Halves(std::string_view rest) {
  const size_t slash = rest.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  return std::pair(rest.substr(0, slash), rest.substr(slash + 1));
}

bool HasLabelKey(const StateManifest& manifest, std::string_view key) {
  return std::any_of(manifest.labels.begin(), manifest.labels.end(), [&](const auto& label) {
    return LabelPrefix(manifest.tenant, label.first, label.second) + manifest.id == key;
  });
}

}  // namespace

void KeyScrub::Found(std::string_view key, const std::string& what) {
  events_.on_found(absl::DataLossError(absl::StrCat("key \"", Shown(key), "\": ", what)));
}

absl::Status KeyScrub::Run() {
  std::string begin;
  while (true) {
    std::vector<std::pair<std::string, std::string>> batch;
    size_t num_bytes = 0;
    {
      // A new iterator each time: one that lived through the whole pass would keep every old file.
      RocksDbRange range(database_->db(), begin, "\xff", snapshot_.get());
      for (range.iterator().SeekToFirst();
           range.iterator().Valid() && batch.size() < kKeysPerBatch && num_bytes < kBytesPerBatch;
           range.iterator().Next()) {
        batch.emplace_back(range.key(), range.value());
        num_bytes += range.key().size() + range.value().size();
      }
      if (absl::Status status = range.status(); !status.ok()) return status;
    }
    if (batch.empty()) break;
    for (const auto& [key, value] : batch) {
      if (absl::Status status = Check(key, value); !status.ok()) return status;
    }
    begin = batch.back().first + '\0';
    absl::Status status = events_.on_progress(num_bytes, batch.size());
    if (!status.ok()) return status;
  }
  CheckCounters();
  return absl::OkStatus();
}

absl::Status KeyScrub::Check(std::string_view key, std::string_view value) {
  if (key == kFormatKey) return absl::OkStatus();
  const size_t end = key.find('/', 2);
  if (key.size() < 3 || key[1] != '/' || end == std::string_view::npos) {
    Found(key, "is of no known form");
    return absl::OkStatus();
  }
  const std::string tenant(KeyTenant(key));
  const std::string_view rest = key.substr(end + 1);
  switch (static_cast<KeyKind>(key[0])) {
    case KeyKind::kManifest:
      return CheckManifest(key, tenant, value);
    case KeyKind::kChild:
      return CheckChild(key, tenant, rest);
    case KeyKind::kMadeIn:
      return CheckMadeIn(key, tenant, rest);
    case KeyKind::kLabel:
      return CheckLabel(key, tenant, rest);
    case KeyKind::kExpiry:
      return CheckExpiry(key, tenant);
    case KeyKind::kPrefix:
      return CheckPrefix(key, tenant);
    case KeyKind::kSession:
      return CheckSession(key, tenant, value);
    case KeyKind::kHeadOf:
      return CheckHeadOf(key, tenant, rest);
    case KeyKind::kRequest:
      return CheckRequest(key, tenant, rest, value);
    case KeyKind::kRequestExpiry:
      return CheckRequestExpiry(key, tenant);
    case KeyKind::kIntent:  // of commits at work, or of orphans: the sweep's business
    case KeyKind::kGarbage:
      return absl::OkStatus();
    case KeyKind::kCounters: {
      Counters counters;
      if (DecodeCounters(value, &counters)) {
        recounts_[tenant].stored = counters;
      } else {
        Found(key, "malformed counters");
        recounts_[tenant].is_whole = false;
      }
      return absl::OkStatus();
    }
  }
  Found(key, "is of no known kind");
  return absl::OkStatus();
}

absl::Status KeyScrub::CheckManifest(std::string_view key, const std::string& tenant,
                                     std::string_view value) {
  Recount& recount = recounts_[tenant];
  const absl::StatusOr<StoredManifest> stored =
      DecodeManifest(value, ManifestPart::kWithoutTranscript);
  if (!stored.ok() || Key(KeyKind::kManifest, tenant, stored->manifest.id) != key) {
    recount.is_whole = false;  // a damaged state, and reported as one
    return absl::OkStatus();
  }
  const StateManifest& manifest = stored->manifest;
  ++recount.counters.num_manifests;
  if (!manifest.bytes_dropped) {
    ++recount.counters.num_states;
    recount.counters.live_bytes += static_cast<int64_t>(manifest.stored_bytes);
  }
  // The sweep would take its chunks for orphans.
  absl::Status status = Expect(key, Key(KeyKind::kIntent, tenant, manifest.id), /*is_there=*/false);
  if (status.ok() && !manifest.parent_id.empty()) {
    status = Expect(key, Key(KeyKind::kChild, tenant, manifest.parent_id, manifest.id));
  }
  if (status.ok() && !manifest.session.empty()) {
    status = Expect(key, Key(KeyKind::kMadeIn, tenant, manifest.session, manifest.id));
  }
  for (const auto& [name, label] : manifest.labels) {
    if (status.ok()) status = Expect(key, LabelPrefix(tenant, name, label) + manifest.id);
  }
  if (status.ok() && !manifest.bytes_dropped && manifest.expires != absl::InfiniteFuture()) {
    status = Expect(key, ExpiryKey(KeyKind::kExpiry, tenant, manifest.expires, manifest.id));
  }
  if (status.ok() && !manifest.bytes_dropped && manifest.prefix_hash.has_value()) {
    status = Expect(key, PrefixKey(tenant, *manifest.prefix_hash & prefix_hash_mask_, manifest.id));
  }
  return status;
}

absl::Status KeyScrub::CheckChild(std::string_view key, const std::string& tenant,
                                  std::string_view rest) {
  const auto halves = Halves(rest);
  return ExpectState(key, tenant, halves ? halves->second : rest, [&](const StateManifest& child) {
    return halves && child.parent_id == halves->first;
  });
}

absl::Status KeyScrub::CheckMadeIn(std::string_view key, const std::string& tenant,
                                   std::string_view rest) {
  const auto halves = Halves(rest);
  return ExpectState(key, tenant, halves ? halves->second : rest, [&](const StateManifest& state) {
    return halves && state.session == halves->first;
  });
}

absl::Status KeyScrub::CheckLabel(std::string_view key, const std::string& tenant,
                                  std::string_view rest) {
  const std::string_view id = rest.substr(rest.size() - std::min(rest.size(), kStateIdChars));
  return ExpectState(key, tenant, id,
                     [&](const StateManifest& state) { return HasLabelKey(state, key); });
}

absl::Status KeyScrub::CheckExpiry(std::string_view key, const std::string& tenant) {
  if (key.size() < ExpiryKey(KeyKind::kExpiry, tenant, absl::UnixEpoch(), "").size()) {
    Found(key, "is of no known form");
    return absl::OkStatus();
  }
  return ExpectState(key, tenant, ExpiringId(key, tenant), [&](const StateManifest& state) {
    return !state.bytes_dropped &&
           ExpiryKey(KeyKind::kExpiry, tenant, state.expires, state.id) == key;
  });
}

bool KeyScrub::HasPrefixKey(const StateManifest& manifest, std::string_view key) const {
  return !manifest.bytes_dropped && manifest.prefix_hash.has_value() &&
         PrefixKey(manifest.tenant, *manifest.prefix_hash & prefix_hash_mask_, manifest.id) == key;
}

absl::Status KeyScrub::CheckPrefix(std::string_view key, const std::string& tenant) {
  const size_t prefix_bytes = PrefixKey(tenant, 0, "").size();
  if (key.size() < prefix_bytes) {
    Found(key, "is of no known form");
    return absl::OkStatus();
  }
  return ExpectState(key, tenant, key.substr(prefix_bytes),
                     [&](const StateManifest& state) { return HasPrefixKey(state, key); });
}

absl::Status KeyScrub::CheckSession(std::string_view key, const std::string& tenant,
                                    std::string_view value) {
  ++recounts_[tenant].counters.num_sessions;
  const absl::StatusOr<Session> session = DecodeSession(value);
  if (!session.ok()) {
    Found(key, std::string(session.status().message()));
    return absl::OkStatus();
  }
  if (Key(KeyKind::kSession, session->tenant, session->name) != key) {
    Found(key, absl::StrCat("under it lies the session ", session->name));
    return absl::OkStatus();
  }
  if (session->recent_heads.empty() || session->recent_heads[0] != session->head) {
    Found(key, absl::StrCat("its head ", session->head, " is not the newest of its heads"));
  }
  for (const StateId& id : session->recent_heads) {
    absl::Status status = ExpectState(
        key, tenant, id, [](const StateManifest& state) { return !state.bytes_dropped; });
    if (status.ok()) status = Expect(key, Key(KeyKind::kHeadOf, tenant, id, session->name));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status KeyScrub::CheckHeadOf(std::string_view key, const std::string& tenant,
                                   std::string_view rest) {
  const auto halves = Halves(rest);
  if (!halves) {
    Found(key, "is of no known form");
    return absl::OkStatus();
  }
  absl::StatusOr<std::optional<std::string>> value =
      database_->Get(Key(KeyKind::kSession, tenant, halves->second), snapshot_.get());
  if (!value.ok()) return value.status();
  if (!value->has_value()) {
    Found(key, absl::StrCat("session ", std::string(halves->second), " does not exist"));
    return absl::OkStatus();
  }
  const absl::StatusOr<Session> session = DecodeSession(**value);
  if (!session.ok()) return absl::OkStatus();  // found under its own key
  const auto& heads = session->recent_heads;
  if (std::find(heads.begin(), heads.end(), halves->first) == heads.end()) {
    Found(key, absl::StrCat("session ", session->name, " has no such head"));
  }
  return absl::OkStatus();
}

absl::Status KeyScrub::CheckRequest(std::string_view key, const std::string& tenant,
                                    std::string_view rest, std::string_view value) {
  const absl::StatusOr<RequestRecord> request = DecodeRequest(tenant, std::string(rest), value);
  if (!request.ok()) {
    Found(key, std::string(request.status().message()));
    return absl::OkStatus();
  }
  return Expect(key, ExpiryKey(KeyKind::kRequestExpiry, tenant, request->expires, rest));
}

absl::Status KeyScrub::CheckRequestExpiry(std::string_view key, const std::string& tenant) {
  if (key.size() < ExpiryKey(KeyKind::kRequestExpiry, tenant, absl::UnixEpoch(), "").size()) {
    Found(key, "is of no known form");
    return absl::OkStatus();
  }
  return Expect(key, Key(KeyKind::kRequest, tenant, ExpiringId(key, tenant)));
}

void KeyScrub::CheckCounters() {
  for (const auto& [tenant, recount] : recounts_) {
    if (!recount.is_whole) continue;
    const Counters& counted = recount.counters;
    const Counters stored = recount.stored.value_or(Counters());
    if (stored == counted) continue;
    const auto shown = [](const Counters& c) {
      return absl::StrCat(c.num_states, " states, ", c.num_manifests, " manifests, ",
                          c.num_sessions, " sessions, ", c.live_bytes, " bytes");
    };
    Found(KeyPrefix(KeyKind::kCounters, tenant),
          absl::StrCat("counters say ", shown(stored), "; counted are ", shown(counted)));
  }
}

absl::Status KeyScrub::Expect(std::string_view key, const std::string& expected_key,
                              bool is_there) {
  absl::StatusOr<std::optional<std::string>> value = database_->Get(expected_key, snapshot_.get());
  if (!value.ok()) return value.status();
  if (value->has_value() != is_there) {
    Found(key, absl::StrCat(is_there ? "there is no key \"" : "there is a key \"",
                            Shown(expected_key), "\""));
  }
  return absl::OkStatus();
}

absl::Status KeyScrub::ExpectState(std::string_view key, const std::string& tenant,
                                   std::string_view id,
                                   const std::function<bool(const StateManifest&)>& names) {
  absl::StatusOr<std::optional<std::string>> value =
      database_->Get(Key(KeyKind::kManifest, tenant, id), snapshot_.get());
  if (!value.ok()) return value.status();
  if (!value->has_value()) {
    Found(key, absl::StrCat("state ", Shown(id), " does not exist"));
    return absl::OkStatus();
  }
  const absl::StatusOr<StoredManifest> stored =
      DecodeManifest(**value, ManifestPart::kWithoutTranscript);
  if (!stored.ok() || names(stored->manifest)) return absl::OkStatus();
  Found(key, absl::StrCat("state ", Shown(id), " is not what it says"));
  return absl::OkStatus();
}

}  // namespace vivarium::statestore
