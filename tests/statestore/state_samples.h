// States, clocks and directories for the store's tests.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "statestore/clock.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

inline constexpr char kTenant[] = "default";

// A clock that stands still until it is moved. Thread-safe.
class FakeClock {
 public:
  absl::Time Now() const { return absl::FromUnixMillis(now_ms_.load()); }
  void Advance(absl::Duration duration) { now_ms_ += absl::ToInt64Milliseconds(duration); }
  // Must not outlive this.
  Clock AsClock() {
    return [this] { return Now(); };
  }

 private:
  std::atomic<int64_t> now_ms_{1'700'000'000'000};
};

// A new directory under the system's temporary one; removed with all that is in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string Sub(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// "st_..." number `number`: ids ascend with the number.
StateId SampleId(uint64_t number);

// Layers of conv [3, 5], with padding, and ssm [2, 4, 16]: 576 bytes each.
inline constexpr int kSampleLayers = 2;
engine::StateLayout SampleLayout(int num_layers = kSampleLayers);

// A manifest with every field set, different for every seed.
StateManifest SampleManifest(const StateId& id, uint64_t seed, int num_layers = kSampleLayers);

// Finite values in every part, zeros between; different for every seed.
engine::StateBuffer SampleSlot(const engine::StateLayout& layout, uint64_t seed);

// SampleManifest and SampleSlot together.
SavedState SampleState(const StateId& id, uint64_t seed, int num_layers = kSampleLayers);

// State number `number` of tests that write every kind: with these two options a third of them,
// 18,432 bytes, get a file of their own, a third, 9,216 bytes, have chunks that go to blob files,
// and the others, 1,152 bytes, one that doesn't.
inline constexpr uint64_t kMixedFileBytes = 12'000;
inline constexpr uint32_t kMixedChunkBytes = 4096;
SavedState MixedSampleState(uint64_t number);

// What a commit of that one state is; borrows it.
Commit CommitOf(const SavedState& state);

StateFilter FilterOf(Labels labels, const std::string& session = "", const StateId& parent_id = "");
// Everything, dropped ones included.
StateFilter WithDropped();

// Equal in every field, but stored_bytes, which the store fills in.
void ExpectSameManifest(const StateManifest& found, const StateManifest& expected);
void ExpectSameState(const SavedState& found, const SavedState& expected);

}  // namespace vivarium::statestore
