#include "statestore/state_id.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <thread>
#include <vector>

#include "tests/statestore/state_samples.h"

namespace vivarium::statestore {
namespace {

TEST(StateId, NewIdsAreCanonicalAndAscendWithinAMillisecond) {
  FakeClock clock;
  UlidGenerator generator(clock.AsClock());
  std::string previous;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = generator.NextStateId();
    EXPECT_TRUE(ValidateStateId(id).ok()) << id;
    EXPECT_LT(previous, id);
    EXPECT_EQ(StateIdTime(id), clock.Now());
    previous = id;
  }
}

TEST(StateId, AscendsWhenTheClockGoesBack) {
  FakeClock clock;
  UlidGenerator generator(clock.AsClock());
  const std::string first = generator.NextStateId();
  clock.Advance(-absl::Hours(1));
  const std::string second = generator.NextStateId();
  EXPECT_LT(first, second);
  clock.Advance(absl::Hours(2));
  EXPECT_LT(second, generator.NextStateId());
}

TEST(StateId, TwoGeneratorsDontMeet) {
  FakeClock clock;
  UlidGenerator one(clock.AsClock());
  UlidGenerator other(clock.AsClock());
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) {
    ids.insert(one.Next());
    ids.insert(other.Next());
  }
  EXPECT_EQ(ids.size(), 2000u);
}

TEST(StateId, UniqueAcrossThreads) {
  UlidGenerator generator([] { return absl::Now(); });
  constexpr int kThreads = 4;
  constexpr int kIds = 2000;
  std::vector<std::vector<std::string>> made(kThreads);
  std::vector<std::thread> threads;
  for (auto& ids : made) {
    threads.emplace_back([&generator, &ids] {
      for (int i = 0; i < kIds; ++i) ids.push_back(generator.NextStateId());
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<std::string> all;
  for (const auto& ids : made) {
    EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));
    all.insert(ids.begin(), ids.end());
  }
  EXPECT_EQ(all.size(), static_cast<size_t>(kThreads * kIds));
}

TEST(StateId, ParseAcceptsWhatPeopleType) {
  const std::string canonical = "st_01hf7yat00abcdefghjkmnpqr1";
  EXPECT_EQ(*ParseStateId(canonical), canonical);
  EXPECT_EQ(*ParseStateId("ST_01HF7YAT00ABCDEFGHJKMNPQR1"), canonical);
  EXPECT_EQ(*ParseStateId("st_OIhf7yatooabcdefghjkmnpqrL"), canonical);
}

TEST(StateId, RefusesEverythingElse) {
  const std::string good = SampleId(7);
  EXPECT_TRUE(ValidateStateId(good).ok());
  for (const std::string& bad :
       {std::string(), std::string("st_"), good + "0", good.substr(1), "xx_" + good.substr(3),
        "st_8" + good.substr(4), "st_u" + good.substr(4), good.substr(0, 28) + "\n",
        good.substr(0, 28) + std::string(1, '\0'), std::string("st_../../../../../../etc/pass")}) {
    const absl::Status status = ParseStateId(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(ValidateStateId(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  // Valid when typed, yet not the canonical form.
  EXPECT_FALSE(ValidateStateId("ST_" + good.substr(3)).ok());
}

}  // namespace
}  // namespace vivarium::statestore
