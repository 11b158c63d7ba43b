// RocksDbStore::Scrub: a pass over every state's bytes, every key, every table file.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "statestore/rocksdb_key_scrub.h"
#include "statestore/rocksdb_store_impl.h"

namespace vivarium::statestore {
namespace {

bool SleepFor(absl::Duration duration) {
  absl::SleepFor(duration);
  return true;
}

bool IsDamage(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsUnimplemented(status);
}

}  // namespace

// The report so far, and the pace.
class RocksDbStore::ScrubPass {
 public:
  ScrubPass(const ScrubOptions& options, StoreEvents* events)
      : options_(options), events_(events), begin_(absl::Now()) {}

  ScrubReport& report() { return report_; }

  void FoundDamaged(const absl::Status& status) {
    ++report_.num_damaged;
    Found(status, &report_.damaged);
  }
  void FoundInconsistent(const absl::Status& status) {
    ++report_.num_inconsistent;
    Found(status, &report_.inconsistent);
  }

  // So much more was read: waits as long as the rate asks for. CANCELLED when told to stop.
  absl::Status Advance(uint64_t num_bytes) {
    num_read_bytes_ += num_bytes;
    if (options_.on_progress) options_.on_progress(report_);
    if (options_.bytes_per_second == 0) return absl::OkStatus();
    const absl::Duration ahead = absl::Seconds(static_cast<double>(num_read_bytes_) /
                                               static_cast<double>(options_.bytes_per_second)) -
                                 (absl::Now() - begin_);
    const auto& pause = options_.pause ? options_.pause : SleepFor;
    if (pause(std::max(ahead, absl::ZeroDuration()))) return absl::OkStatus();
    return absl::CancelledError("the scrubbing was stopped");
  }

 private:
  void Found(const absl::Status& status, std::vector<absl::Status>* list) {
    if (list->size() == kMaxReportedDamages) return;
    list->push_back(status);
    if (events_ != nullptr) events_->OnFault(status);
  }

  const ScrubOptions& options_;
  StoreEvents* const events_;
  const absl::Time begin_;
  ScrubReport report_;
  uint64_t num_read_bytes_ = 0;
};

absl::StatusOr<StateId> RocksDbStore::NextState(const std::string& tenant, const StateId& last) {
  const std::string prefix = KeyPrefix(KeyKind::kManifest, tenant);
  std::string begin = prefix + last;
  if (!last.empty()) begin.push_back('\0');
  // A new iterator each time: one that lived through the whole pass would keep every old file.
  RocksDbRange range(database_->db(), begin, PrefixEnd(prefix), nullptr);
  range.iterator().SeekToFirst();
  if (range.iterator().Valid()) return StateId(range.key().substr(prefix.size()));
  if (absl::Status status = range.status(); !status.ok()) return status;
  return StateId();
}

absl::StatusOr<ScrubReport> RocksDbStore::Scrub(const ScrubOptions& options) {
  ScrubPass pass(options, events_);
  // Where the database itself can't go on among its keys that is a find, and its files are looked
  // at all the same: they say where.
  for (const auto part : {&RocksDbStore::ScrubStates, &RocksDbStore::ScrubKeys}) {
    absl::Status status = (this->*part)(&pass);
    if (IsDamage(status)) {
      pass.FoundInconsistent(status);
    } else if (!status.ok()) {
      return status;
    }
  }
  if (absl::Status status = ScrubFiles(&pass); !status.ok()) return status;
  return std::move(pass.report());
}

absl::Status RocksDbStore::ScrubStates(ScrubPass* pass) {
  return ForEachTenant(KeyKind::kManifest, [&](const std::string& tenant) {
    for (StateId last;;) {
      absl::StatusOr<StateId> id = NextState(tenant, last);
      if (!id.ok()) return id.status();
      if (id->empty()) return absl::OkStatus();
      last = *id;
      absl::StatusOr<SavedState> state = LoadFrom(LoadTier::kDisk, tenant, *id);
      if (absl::IsNotFound(state.status())) continue;  // dropped, or expired
      if (!state.ok() && !IsDamage(state.status())) return state.status();
      ++pass->report().num_states;
      const uint64_t num_bytes = state.ok() ? state->manifest.stored_bytes : 0;
      pass->report().num_bytes += num_bytes;
      if (!state.ok()) pass->FoundDamaged(state.status());
      if (absl::Status status = pass->Advance(num_bytes); !status.ok()) return status;
    }
  });
}

absl::Status RocksDbStore::ScrubKeys(ScrubPass* pass) {
  KeyScrub::Events events;
  events.on_found = [&](const absl::Status& found) { pass->FoundInconsistent(found); };
  events.on_progress = [&](uint64_t num_bytes, uint64_t num_keys) {
    pass->report().num_keys += num_keys;
    return pass->Advance(num_bytes);
  };
  return KeyScrub(database_.get(), options_.prefix_hash_mask, std::move(events)).Run();
}

absl::Status RocksDbStore::ScrubFiles(ScrubPass* pass) {
  for (const auto& [name, num_bytes] : database_->TableFiles()) {
    absl::Status status = database_->VerifyTableFile(name);
    if (IsDamage(status)) {
      pass->FoundInconsistent(status);
    } else if (!status.ok()) {
      return status;
    }
    if (status = pass->Advance(num_bytes); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace vivarium::statestore
