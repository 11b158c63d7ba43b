// StateStore: durable, versioned, verified states; sessions that point at them; finished requests.
// Start here for the store. A state is to a conversation what a commit is to a repository:
// immutable, with a parent, addressed by id; a session is a branch name that points at one.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/runtime/state.h"
#include "statestore/quota.h"

namespace vivarium::statestore {

// "st_" + 26 characters of ULID in Crockford base32 (lower or upper case as StateId::New writes).
using StateId = std::string;

using Labels = std::map<std::string, std::string>;
inline constexpr size_t kMaxLabels = 32;
inline constexpr size_t kMaxLabelBytes = 128;        // each key and each value
inline constexpr size_t kMaxSessionNameBytes = 128;  // [A-Za-z0-9._-]{1,128}
inline constexpr size_t kMaxTenantBytes = 64;        // [a-z0-9-]{1,64}
inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr size_t kMaxRequestResultBytes = 16 << 20;
inline constexpr size_t kMaxRequestsPerTenant = 1 << 16;  // beyond it, the first to expire go
inline constexpr int kMaxPageSize = 1000;
inline constexpr size_t kDefaultHeadHistory = 8;  // heads that a session keeps from expiry

// How a state's bytes are stored (slot_packing.h). The numbers are part of the formats.
enum class StateCodec : uint8_t {
  kRaw = 0,   // bit for bit
  kZstd = 1,  // compressed; comes back bit for bit
  kBF16 = 2,  // SSM parts whose live dtype is f32 are rounded to bf16; the rest bit for bit
};

// By how much a state's numbers differ from those that were computed, because of how it was stored,
// here or where it was exported. Zeros: not at all.
struct StorageLoss {
  double max_absolute_error = 0;
  double max_relative_error = 0;  // of numbers that are not 0

  bool is_lossy() const { return max_absolute_error > 0; }
  bool operator==(const StorageLoss&) const = default;
};

// A snapshot on the way to a state, by id and position.
struct SnapshotRef {
  StateId id;
  uint64_t position = 0;

  bool operator==(const SnapshotRef&) const = default;
};
inline constexpr size_t kMaxSnapshotRefs = 256;

// Everything about a state but its slot's bytes. The stored manifest has the checksums besides.
struct StateManifest {
  StateId id;
  std::string tenant;
  // "" = none. A parent that the store doesn't know (any more) is accepted: history ends there.
  StateId parent_id;
  engine::ModelIdentity identity;
  engine::StateLayout layout;
  uint64_t position = 0;
  int32_t pending_token = 0;
  engine::SamplingParams sampling;
  std::vector<engine::TranscriptToken> recent_tokens;
  std::string text_tail;
  std::vector<engine::TranscriptToken> transcript;  // since the parent, see StateSnapshot
  std::string session;                              // the session it was made in, "" = none
  Labels labels;
  bool pinned = false;
  absl::Time created;
  absl::Time expires = absl::InfiniteFuture();
  uint64_t stored_bytes = 0;   // chunks, as stored
  bool bytes_dropped = false;  // deleted or expired, kept for its descendants' history
  StateCodec codec = StateCodec::kRaw;
  StorageLoss loss;  // what the caller knows of; the store adds what its codec loses
  // Of the states that it was computed from, the largest: its numbers follow from rounded ones.
  StorageLoss inherited_loss;
  // Made on the way, every so many tokens, and wanted by nobody in particular: thinning may drop
  // it. Whoever updates it makes it a state to keep.
  bool is_snapshot = false;
  // Ancestors that are snapshots of the same session, by position, as far as they had not been
  // thinned when this state was made. Not of dropped states.
  std::vector<SnapshotRef> snapshots;
  // Rolling hash of all `position` tokens consumed (prefix_hash.h), made by the store: prompts that
  // begin with them find the state by it. Absent: not all of them are known, or it is not reusable.
  std::optional<uint64_t> prefix_hash;

  // Its numbers are not those that an unrounded thread would have.
  bool is_lossy() const { return loss.is_lossy() || inherited_loss.is_lossy(); }
};

// Where a state's bytes came from.
enum class LoadTier : uint8_t {
  kDisk = 0,
  kHost = 1,  // memory of this process
};

struct SavedState {
  StateManifest manifest;
  engine::StateBuffer slot;
  LoadTier tier = LoadTier::kDisk;
};

struct Session {
  std::string tenant;
  std::string name;
  StateId head;
  std::vector<StateId>
      recent_heads;  // newest first, the head included; at most kDefaultHeadHistory
  std::string etag;  // changes with every move of the head
  absl::Time created;
  absl::Time updated;
};

// A finished request, for idempotent retries.
struct RequestRecord {
  std::string request_id;
  std::string request_hash;  // of the request's meaning: another one under the same id is refused
  std::string result;        // opaque to the store
  absl::Time expires;
};

// One atomic, durable change. States are written first (chunks), then everything else in one synced
// batch: after OK all of it survives power loss; after an error none of it is visible.
struct Commit {
  std::string tenant;
  struct NewState {
    StateManifest manifest;           // id, tenant and created filled in by the caller
    const engine::StateBuffer* slot;  // layout.slot_bytes bytes; borrowed during the call
    // False: FindPrefix never gives it, nor what descends from it. For bytes that the caller did
    // not compute from the tokens itself, such as an import's.
    bool is_reusable = true;
  };
  std::vector<NewState> states;
  struct HeadMove {
    std::string session;
    StateId head;  // of this commit, or one that Load would give; else NOT_FOUND
    // "" = must not exist yet, else ALREADY_EXISTS; "*" = whatever is there, or nothing; else must
    // equal the session's etag, else ABORTED (also where there is no such session).
    std::string expected_etag;
  };
  std::optional<HeadMove> head_move;
  // While the tenant has an unexpired record under its id: ALREADY_EXISTS where the hash is the
  // same, else INVALID_ARGUMENT.
  std::optional<RequestRecord> request;
  // Ancestors of `states` whose bytes go with this commit, if they are snapshots still. Those that
  // may not be dropped (pinned, some session's recent head, without descendants) are left as they
  // are; those that are gone don't matter. At most kMaxSnapshotRefs.
  std::vector<StateId> thinned;
  // Whose quota the states take first (quota.h), of this tenant; borrowed, null = none. What they
  // took is gone from it after OK; after an error it has what it had.
  StateReservation* reservation = nullptr;
};

struct StateFilter {
  Labels labels;        // all must match
  std::string session;  // "" = any
  StateId parent_id;    // "" = any
  bool include_dropped = false;
};

template <typename T>
struct Page {
  std::vector<T> items;
  std::string next_page_token;  // "" = this was the last
};

struct StateUpdate {
  std::optional<Labels> labels;  // replaces all labels
  std::optional<absl::Time> expires;
  std::optional<bool> pinned;
};

// A prompt that looks for a state that has consumed its first tokens.
struct PrefixQuery {
  engine::ModelIdentity identity;   // of who will go on from it
  std::span<const int32_t> tokens;  // the prompt; borrowed
  std::vector<StateId> skip;        // as if they were not there
};
inline constexpr size_t kMaxPrefixCandidates = 64;   // that one look-up looks at
inline constexpr size_t kMaxPrefixAncestors = 4096;  // of a state that it may be found with

struct PrefixMatch {
  // The longest state with `position` < tokens.size() whose consumed tokens are the first
  // `position` of the prompt, of the same fingerprint, tokenizer and numerics all the way back, and
  // never rounded; the newest of equals. "" = none.
  StateId id;
  uint64_t position = 0;
  // A longer one that has the tokens, but not, or not surely, bit for bit the numbers. "" = none.
  StateId inexact_id;
  uint64_t inexact_position = 0;
  std::string inexact_reason;    // for people
  std::vector<StateId> damaged;  // that were passed over; each is a fault (StoreEvents) as well
};

struct StoreStats {
  uint64_t num_states = 0;     // with bytes
  uint64_t num_manifests = 0;  // dropped ones included
  uint64_t num_sessions = 0;
  uint64_t live_bytes = 0;    // chunks of the states with bytes, as stored
  uint64_t disk_bytes = 0;    // what the store occupies on disk (0 for the in-memory store)
  bool is_read_only = false;  // nothing can be saved now: a fault, or too little free disk space
  // States kept in host memory (of stores that have a tier of it).
  uint64_t cache_bytes = 0;
  uint64_t cache_states = 0;
  uint64_t cache_limit_bytes = 0;
  uint64_t cache_evictions = 0;  // since the store was opened
};

// A pass over everything stored: every state's bytes, then what states are found by (manifests and
// the keys that name them, sessions, requests, counters), then the checksums of RocksDB's own
// files. In damaged and inconsistent: the first kMaxReportedDamages.
inline constexpr size_t kMaxReportedDamages = 1000;
struct ScrubReport {
  uint64_t num_states = 0;  // that were read, sound or not
  uint64_t num_bytes = 0;   // of the sound ones, as stored
  uint64_t num_damaged = 0;
  std::vector<absl::Status> damaged;  // each names its state
  uint64_t num_keys = 0;              // that were compared with what they name
  uint64_t num_inconsistent = 0;
  std::vector<absl::Status> inconsistent;  // each names a key, a counter or a file

  bool is_sound() const { return num_damaged == 0 && num_inconsistent == 0; }
};

struct ScrubOptions {
  uint64_t bytes_per_second = 0;  // 0 = no limit
  // Waits that long, for the limit's sake; false stops the pass (CANCELLED). Null: sleeps.
  std::function<bool(absl::Duration)> pause;
  // After each state, and now and then afterwards. Null: nobody looks.
  std::function<void(const ScrubReport& so_far)> on_progress;
};

// One of a set of backups (StateStore::AddBackup).
struct BackupInfo {
  uint32_t id = 0;  // ascending
  absl::Time made;
  uint64_t num_bytes = 0;  // what is shared with others included
  uint64_t new_bytes = 0;  // what the set grew by; known only when it is made
};

// Background faults and measurements, called from any thread; must not block nor call the store.
class StoreEvents {
 public:
  virtual ~StoreEvents() = default;
  virtual void OnCommit(absl::Duration /*latency*/, uint64_t /*bytes*/,
                        const absl::Status& /*status*/) {}
  virtual void OnLoad(absl::Duration /*latency*/, uint64_t /*bytes*/, LoadTier /*tier*/,
                      const absl::Status& /*status*/) {}
  virtual void OnFault(const absl::Status& /*status*/) {}
  virtual void OnSweep(uint64_t /*num_expired*/, uint64_t /*num_orphan_chunks*/) {}
};

// Thread-safe; calls block on disk. Errors, everywhere: INVALID_ARGUMENT (malformed id, name,
// label, page token: value and expected form), NOT_FOUND (unknown, expired, deleted, another
// tenant's), ABORTED (etag), ALREADY_EXISTS, DATA_LOSS (a checksum failed: nothing of it is
// returned), UNIMPLEMENTED (a newer format: found and supported version), RESOURCE_EXHAUSTED
// (disk, quota), UNAVAILABLE (the store stopped writing after a failed sync; until restart).
//
// A state expires at `expires` unless it is pinned or among some session's recent heads. From then
// on it behaves as a deleted one (NOT_FOUND; bytes_dropped in lists and histories); Sweep only
// takes its bytes back.
class StateStore {
 public:
  virtual ~StateStore() = default;

  // ALREADY_EXISTS besides for a state id that is taken.
  virtual absl::Status Apply(const Commit& commit) = 0;

  virtual absl::StatusOr<SavedState> Load(const std::string& tenant, const StateId& id) = 0;
  // Without transcript: a long one would be most of the work.
  virtual absl::StatusOr<StateManifest> GetManifest(const std::string& tenant,
                                                    const StateId& id) = 0;
  // Without transcripts. Newest id first; 1 to kMaxPageSize a page. A page may be shorter than
  // asked for and yet have a next one.
  virtual absl::StatusOr<Page<StateManifest>> ListStates(const std::string& tenant,
                                                         const StateFilter& filter, int page_size,
                                                         const std::string& page_token) = 0;
  virtual absl::StatusOr<StateManifest> UpdateState(const std::string& tenant, const StateId& id,
                                                    const StateUpdate& update) = 0;
  // Drops the bytes; the manifest stays (bytes_dropped) while it has descendants.
  // FAILED_PRECONDITION while it is pinned or some session's head: names it.
  virtual absl::Status DeleteState(const std::string& tenant, const StateId& id) = 0;
  // Reads every byte of the state and checks every checksum.
  virtual absl::Status VerifyState(const std::string& tenant, const StateId& id) = 0;
  // From `id` to its oldest ancestor, `id` first; dropped ones included. At most `limit`. With
  // transcripts.
  virtual absl::StatusOr<std::vector<StateManifest>> Ancestry(const std::string& tenant,
                                                              const StateId& id, size_t limit) = 0;

  // Compares the tokens themselves, whatever their hash says. States that are dropped, expired, or
  // of another tenant or model are never found; nor are those of whose tokens not all are known (an
  // ancestor's manifest is not there), those made before manifests had hashes, and those with more
  // than kMaxPrefixAncestors. More than kMaxPrefixCandidates states with hashes of the prompt are
  // not looked at.
  virtual absl::StatusOr<PrefixMatch> FindPrefix(const std::string& tenant,
                                                 const PrefixQuery& query) = 0;

  virtual absl::StatusOr<Session> GetSession(const std::string& tenant,
                                             const std::string& name) = 0;
  // By name.
  virtual absl::StatusOr<Page<Session>> ListSessions(const std::string& tenant, int page_size,
                                                     const std::string& page_token) = 0;
  // Deletes the name; its states live on until they expire. An etag of "" or "*" is not checked.
  virtual absl::Status DeleteSession(const std::string& tenant, const std::string& name,
                                     const std::string& expected_etag) = 0;

  virtual absl::StatusOr<RequestRecord> GetRequest(const std::string& tenant,
                                                   const std::string& request_id) = 0;

  // Keeps quota for `num_states` states of this layout and codec, at the most that they can take
  // as stored. RESOURCE_EXHAUSTED (QuotaExceededOf) where that is not there. Apply itself takes
  // quota for every state, so that no commits together can be beyond it. Never waits for the disk.
  virtual absl::StatusOr<StateReservation> Reserve(const std::string& tenant, uint64_t num_states,
                                                   const engine::StateLayout& layout,
                                                   StateCodec codec) = 0;
  virtual QuotaUsage GetQuota(const std::string& tenant) = 0;
  // Whether a commit of so many bytes would find the store writing, and space for it, now:
  // RESOURCE_EXHAUSTED, UNAVAILABLE.
  virtual absl::Status CheckWritable(uint64_t num_bytes) = 0;

  // Drops the bytes of expired states (never a head within its session's recent heads, nor a pinned
  // one), finished requests that expired, and orphan chunks.
  virtual absl::Status Sweep(absl::Time now) = 0;
  virtual absl::StatusOr<StoreStats> Stats() = 0;
  // Reads every byte of every state of every tenant and checks every checksum, then everything else
  // (ScrubReport). What is wrong is in the report and a fault (StoreEvents); other errors end the
  // pass.
  virtual absl::StatusOr<ScrubReport> Scrub(const ScrubOptions& options) = 0;
  // Takes back the disk space of what was dropped. Sweep does so too, once that is a tenth of what
  // lives.
  virtual absl::Status Compact() = 0;
  // A consistent, openable copy in the new directory `directory`.
  virtual absl::Status Backup(const std::string& directory) = 0;
  // One more backup in the set of backups `directory`, which is made as needed. What an earlier one
  // has already is shared. `on_progress` (may be null) hears now and then how much has been copied.
  // ABORTED while another one is being made. RestoreBackup (rocksdb_store.h) is the way back.
  virtual absl::StatusOr<BackupInfo> AddBackup(
      const std::string& directory,
      const std::function<void(uint64_t copied_bytes)>& on_progress) = 0;
};

}  // namespace vivarium::statestore
