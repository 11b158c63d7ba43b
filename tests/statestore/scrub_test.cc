// The scrubber on what our checksums don't cover: keys that name nothing, names that have no key,
// counters that count wrong, damaged table files. Each is injected below the store, and named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "statestore/record_codec.h"
#include "statestore/rocksdb_counters.h"
#include "statestore/rocksdb_keys.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// A store with something under every kind of key.
class ScrubKeys : public ::testing::Test {
 protected:
  ScrubKeys() {
    harness_.Save(1, "", "s");
    harness_.Save(2, SampleId(1), "s");
    SavedState expiring = SampleState(SampleId(3), 3);
    expiring.manifest.parent_id = SampleId(2);
    expiring.manifest.expires = expires_;
    Commit commit = CommitOf(expiring);
    commit.request = RequestRecord{"r1", "hash", "result", expires_};
    EXPECT_TRUE(harness_.store().Apply(commit).ok());
    harness_.Save(4, SampleId(2));
    EXPECT_TRUE(harness_.store().DeleteState(kTenant, SampleId(4)).ok());
    harness_.Save(5, "", "t");
    harness_.Save(6, SampleId(5));
    harness_.Save(7, SampleId(5), "t");
    EXPECT_TRUE(harness_.store().DeleteState(kTenant, SampleId(5)).ok());  // dropped, has children
  }

  ScrubReport Scrub() {
    absl::StatusOr<ScrubReport> report = harness_.store().Scrub({});
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *report : ScrubReport();
  }

  // What the scrubber says after `damage` was done to the closed store.
  std::vector<std::string> FoundAfter(const std::function<void(RawRocksDb&)>& damage) {
    harness_.Close();
    {
      RawRocksDb raw(harness_.directory());
      damage(raw);
    }
    harness_.Reopen();
    const int num_faults = harness_.events().num_faults;
    const ScrubReport report = Scrub();
    EXPECT_EQ(report.num_damaged, 0u);
    EXPECT_EQ(report.num_inconsistent, report.inconsistent.size());
    EXPECT_EQ(report.is_sound(), report.inconsistent.empty());
    EXPECT_EQ(harness_.events().num_faults - num_faults,
              static_cast<int>(report.inconsistent.size()));
    std::vector<std::string> found;
    for (const absl::Status& status : report.inconsistent) {
      EXPECT_TRUE(absl::IsDataLoss(status)) << status;
      found.emplace_back(status.message());
    }
    return found;
  }

  void ExpectFound(const std::function<void(RawRocksDb&)>& damage, const std::string& what) {
    EXPECT_THAT(FoundAfter(damage), ::testing::Contains(HasSubstr(what)));
  }

  const absl::Time expires_ = absl::FromUnixSeconds(1'800'000'000);
  StoreHarness harness_{StoreKind::kRocksDb};
};

TEST_F(ScrubKeys, ASoundStoreIsSound) {
  const ScrubReport report = Scrub();
  EXPECT_TRUE(report.is_sound());
  EXPECT_EQ(report.num_states, 5u);
  harness_.Close();
  const size_t num_keys = RawRocksDb(harness_.directory()).Keys("", false).size();
  EXPECT_EQ(report.num_keys, num_keys);
}

// Every key that follows from another, erased: the other one is named.
TEST_F(ScrubKeys, AMissingKeyIsFoundWhicheverItIs) {
  harness_.Close();
  std::vector<std::string> keys;
  {
    RawRocksDb raw(harness_.directory());
    for (const char* kind : {"c/", "n/", "l/", "e/", "h/", "x/"}) {
      for (const std::string& key : raw.Keys(kind, false)) keys.push_back(key);
    }
  }
  EXPECT_THAT(keys, SizeIs(::testing::Gt(12)));
  harness_.Reopen();
  for (const std::string& key : keys) {
    SCOPED_TRACE(key);
    const std::vector<std::string> found =
        FoundAfter([&](RawRocksDb& raw) { raw.Erase(key, false); });
    ASSERT_THAT(found, SizeIs(1));
    EXPECT_THAT(found[0], HasSubstr("there is no key"));
    EXPECT_THAT(FoundAfter([&](RawRocksDb& raw) { raw.Put(key, "", false); }), SizeIs(0));
  }
}

// A manifest that is gone: everything that names it says so.
TEST_F(ScrubKeys, AMissingManifestIsFoundByAllThatNamesIt) {
  const std::vector<std::string> found = FoundAfter(
      [](RawRocksDb& raw) { raw.Erase(Key(KeyKind::kManifest, kTenant, SampleId(2)), false); });
  // Its parent's child, made in its session, two labels, the session's heads; the counters.
  EXPECT_THAT(found, SizeIs(6));
  for (const std::string& line : found) {
    EXPECT_THAT(line, ::testing::AnyOf(HasSubstr(SampleId(2) + " does not exist"),
                                       HasSubstr("counters say")));
  }
}

TEST_F(ScrubKeys, DanglingKeysAreFound) {
  const auto put = [](const std::string& key) {
    return [key](RawRocksDb& raw) { raw.Put(key, "", false); };
  };
  ExpectFound(put(Key(KeyKind::kChild, kTenant, SampleId(1), SampleId(99))), "does not exist");
  ExpectFound(put(Key(KeyKind::kChild, kTenant, SampleId(3), SampleId(2))), "not what it says");
  ExpectFound(put(Key(KeyKind::kMadeIn, kTenant, "other", SampleId(2))), "not what it says");
  ExpectFound(put(LabelPrefix(kTenant, "no", "such") + SampleId(2)), "not what it says");
  ExpectFound(put(ExpiryKey(KeyKind::kExpiry, kTenant, expires_, SampleId(1))), "not what it says");
  ExpectFound(put(ExpiryKey(KeyKind::kExpiry, kTenant, expires_, SampleId(5))),
              "not what it says");  // its bytes are dropped
  ExpectFound(put(PrefixKey(kTenant, 7, SampleId(2))), "not what it says");
  ExpectFound(put(Key(KeyKind::kHeadOf, kTenant, SampleId(3), "s")), "has no such head");
  ExpectFound(put(Key(KeyKind::kHeadOf, kTenant, SampleId(3), "none")), "none does not exist");
  ExpectFound(put(ExpiryKey(KeyKind::kRequestExpiry, kTenant, expires_, "r2")), "there is no key");
  ExpectFound(put("q/default/what"), "no known kind");
  ExpectFound(put("mess"), "no known form");
}

TEST_F(ScrubKeys, WrongCountersAreFound) {
  const std::string key = KeyPrefix(KeyKind::kCounters, kTenant);
  ExpectFound(
      [&](RawRocksDb& raw) {
        Counters counters;
        ASSERT_TRUE(DecodeCounters(raw.Get(key, false), &counters));
        ++counters.live_bytes;
        raw.Put(key, EncodeCounters(counters), false);
      },
      "counters say 5 states");
  ExpectFound([&](RawRocksDb& raw) { raw.Erase(key, false); }, "counters say 0 states");
}

TEST_F(ScrubKeys, DamagedRecordsAreFound) {
  ExpectFound(
      [](RawRocksDb& raw) { raw.Put(Key(KeyKind::kSession, kTenant, "s"), "rotten", false); },
      "s/default/s");
  ExpectFound(
      [](RawRocksDb& raw) { raw.Put(Key(KeyKind::kRequest, kTenant, "r1"), "rotten", false); },
      "r/default/r1");
}

TEST_F(ScrubKeys, ASessionUnderAnothersNameIsFound) {
  ExpectFound(
      [](RawRocksDb& raw) {
        raw.Put(Key(KeyKind::kSession, kTenant, "t"),
                raw.Get(Key(KeyKind::kSession, kTenant, "s"), false), false);
      },
      "under it lies the session s");
}

TEST(ScrubFiles, ADamagedTableFileIsNamed) {
  StoreHarness harness(StoreKind::kRocksDb);
  for (uint64_t i = 1; i <= 50; ++i) harness.Save(i);
  harness.Close();  // flushes
  // In the middle of its blocks; what the index at its end leads to is read by nobody at opening.
  std::string damaged;
  for (const auto& entry : fs::directory_iterator(harness.directory())) {
    if (entry.path().extension() != ".sst") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(entry.file_size() / 4));
    const char byte = static_cast<char>(file.peek() ^ 1);
    file.seekp(static_cast<std::streamoff>(entry.file_size() / 4));
    file.put(byte);
    damaged = entry.path().filename().string();
  }
  ASSERT_FALSE(damaged.empty());
  harness.Reopen();
  const absl::StatusOr<ScrubReport> report = harness.store().Scrub({});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->is_sound());
  std::vector<std::string> found;
  for (const absl::Status& status : report->inconsistent) {
    found.emplace_back(status.message());
  }
  EXPECT_THAT(found, ::testing::Contains(HasSubstr(damaged)));
}

TEST(ScrubPace, KeysAndFilesKeepToTheRateToo) {
  StoreHarness harness(StoreKind::kRocksDb);
  for (uint64_t i = 1; i <= 5; ++i) harness.Save(i);
  harness.Reopen();
  absl::Duration asked = absl::ZeroDuration();
  ScrubOptions options;
  options.bytes_per_second = 1000;
  uint64_t num_keys = 0;
  options.pause = [&](absl::Duration duration) {
    asked = duration;
    return true;
  };
  options.on_progress = [&](const ScrubReport& report) { num_keys = report.num_keys; };
  ASSERT_TRUE(harness.store().Scrub(options).ok());
  EXPECT_GT(num_keys, 5u);
  EXPECT_GT(asked, absl::Seconds(5 * 1312 / 1000 + 2));
  // Stopped among the keys.
  options.pause = [&](absl::Duration) { return num_keys == 0; };
  num_keys = 0;
  EXPECT_TRUE(absl::IsCancelled(harness.store().Scrub(options).status()));
}

// A damaged state among a session's heads: what is left after its deletion agrees.
TEST(ScrubAfter, TheDeletionOfADamagedHead) {
  StoreHarness harness(StoreKind::kRocksDb);
  for (uint64_t i = 1; i <= 3; ++i) harness.Save(i, i == 1 ? "" : SampleId(i - 1), "s");
  harness.Close();
  {
    RawRocksDb raw(harness.directory());
    raw.Put(Key(KeyKind::kManifest, kTenant, SampleId(2)), "rotten", false);
  }
  harness.Reopen();
  EXPECT_EQ(harness.store().Scrub({})->num_damaged, 1u);
  ASSERT_TRUE(harness.store().DeleteState(kTenant, SampleId(2)).ok());
  const absl::StatusOr<ScrubReport> report = harness.store().Scrub({});
  EXPECT_TRUE(report->is_sound()) << report->inconsistent[0];
  EXPECT_THAT(harness.store().GetSession(kTenant, "s")->recent_heads,
              ::testing::ElementsAre(SampleId(3), SampleId(1)));
}

}  // namespace
}  // namespace vivarium::statestore
