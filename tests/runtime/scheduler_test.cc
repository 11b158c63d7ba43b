#include "engine/runtime/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace vivarium::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr RunNeed kDecode = {.num_tokens = 1, .is_decode = true};

RunNeed Prefill(int64_t num_tokens, bool logits_every_row = false) {
  return {.num_tokens = num_tokens, .is_decode = false, .logits_every_row = logits_every_row};
}

SchedulerLimits SmallLimits() {
  return {.max_slots = 2,
          .max_live_streams = 4,
          .max_num_batched_tokens = 16,
          .max_logit_rows = 8,
          .prefill_chunk_tokens = 6,
          .prefill_tokens_beside_decode = 100,
          .time_slice_tokens = 4};
}

void Add(Scheduler& scheduler, StreamId id, int32_t priority = 0, RunNeed need = kDecode) {
  scheduler.Add(id, priority, absl::InfiniteFuture(), need);
}

std::map<StreamId, int32_t> Tokens(const StepPlan& plan) {
  std::map<StreamId, int32_t> tokens;
  for (const PlannedRun& run : plan.runs) tokens[run.id] = run.num_tokens;
  return tokens;
}

TEST(Scheduler, AdmitsInOrderUpToTheBounds) {
  Scheduler scheduler(SmallLimits());
  for (StreamId id = 1; id <= 6; ++id) Add(scheduler, id);
  const StepPlan plan = scheduler.Plan();
  EXPECT_THAT(plan.slot_in, ElementsAre(1, 2));
  EXPECT_EQ(scheduler.num_live(), 4) << "max_live_streams; one more waits";
  EXPECT_EQ(scheduler.num_waiting(), 2);
  EXPECT_EQ(scheduler.num_resident(), 2);
  scheduler.Remove(1);
  EXPECT_THAT(scheduler.Plan().slot_in, ElementsAre(3));
  EXPECT_EQ(scheduler.num_live(), 4);
  EXPECT_EQ(scheduler.num_waiting(), 1);
}

TEST(Scheduler, ALoadingStreamKeepsItsSlotAndRunsNothing) {
  Scheduler scheduler(SmallLimits());
  for (StreamId id = 1; id <= 3; ++id) Add(scheduler, id);
  EXPECT_THAT(scheduler.Plan().slot_in, ElementsAre(1, 2));
  scheduler.SetLoading(2, true);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Tokens(scheduler.Plan()), (std::map<StreamId, int32_t>{{1, 1}}));
  }
  // Stream 1 has had its time slice of 4 tokens; 2, which got its slot with it, has not begun.
  EXPECT_THAT(scheduler.Plan().swap_out, ElementsAre(1));
  EXPECT_TRUE(scheduler.HasSlot(2));
  scheduler.SetLoading(2, false);
  EXPECT_EQ(Tokens(scheduler.Plan()), (std::map<StreamId, int32_t>{{2, 1}, {3, 1}}));
  scheduler.SetLoading(2, true);
  scheduler.Remove(2);
  EXPECT_THAT(scheduler.Plan().slot_in, ElementsAre(1));
}

TEST(Scheduler, PrioritiesFirstThenFirstComeFirstServed) {
  Scheduler scheduler(SmallLimits());
  Add(scheduler, 1, -5);
  Add(scheduler, 2, 0);
  Add(scheduler, 3, 7);
  Add(scheduler, 4, 7);
  Add(scheduler, 5, std::numeric_limits<int32_t>::min());
  EXPECT_THAT(scheduler.Plan().slot_in, ElementsAre(3, 4));
  scheduler.Remove(3);
  scheduler.Remove(4);
  EXPECT_THAT(scheduler.Plan().slot_in, ElementsAre(2, 1));
  scheduler.Remove(1);
  EXPECT_THAT(scheduler.Plan().slot_in, ElementsAre(5));
}

TEST(Scheduler, ASlotIsKeptForATimeSliceAndThenGivesWay) {
  Scheduler scheduler(SmallLimits());
  for (StreamId id = 1; id <= 3; ++id) Add(scheduler, id);
  for (int step = 0; step < 4; ++step) EXPECT_THAT(scheduler.Plan().swap_out, IsEmpty());
  StepPlan plan = scheduler.Plan();
  EXPECT_THAT(plan.swap_out, ElementsAre(1)) << "the one that has had its slot the longest";
  EXPECT_THAT(plan.slot_in, ElementsAre(3));
  plan = scheduler.Plan();
  EXPECT_THAT(plan.swap_out, ElementsAre(2));
  EXPECT_THAT(plan.slot_in, ElementsAre(1));
}

TEST(Scheduler, WithRoomForAllNobodyIsSwapped) {
  Scheduler scheduler(SmallLimits());
  Add(scheduler, 1);
  Add(scheduler, 2);
  scheduler.Plan();
  for (int step = 0; step < 100; ++step) {
    const StepPlan plan = scheduler.Plan();
    EXPECT_THAT(plan.swap_out, IsEmpty());
    EXPECT_THAT(plan.slot_in, IsEmpty());
  }
}

TEST(Scheduler, AHigherPriorityNeverGivesWayToALower) {
  Scheduler scheduler(SmallLimits());
  Add(scheduler, 1, 1);
  Add(scheduler, 2, 1);
  scheduler.Plan();
  Add(scheduler, 3, 0);
  for (int step = 0; step < 50; ++step) EXPECT_FALSE(Tokens(scheduler.Plan()).contains(3));
  // But the lower gives way to the higher as soon as its slice is over.
  scheduler.Remove(1);
  EXPECT_THAT(scheduler.Plan().slot_in, ElementsAre(3));
  Add(scheduler, 4, 1);
  for (int step = 0; step < 4; ++step) scheduler.Plan();
  for (int step = 0; step < 50; ++step) {
    EXPECT_EQ(Tokens(scheduler.Plan()), (std::map<StreamId, int32_t>{{2, 1}, {4, 1}}));
  }
}

TEST(Scheduler, PrefillIsBoundedOnlyBesideDecodes) {
  for (const int32_t limit : {1, 2, 5}) {
    SCOPED_TRACE(limit);
    SchedulerLimits limits = SmallLimits();
    limits.max_slots = 3;
    limits.prefill_tokens_beside_decode = limit;
    Scheduler scheduler(limits);
    Add(scheduler, 1, 0, Prefill(100));
    Add(scheduler, 2, 0, Prefill(100));
    EXPECT_EQ(Tokens(scheduler.Plan()), (std::map<StreamId, int32_t>{{1, 6}, {2, 6}}))
        << "nobody decodes";
    Add(scheduler, 3);
    const int32_t first = std::max(limit - 1, 1);  // the other's one token is set aside
    EXPECT_EQ(Tokens(scheduler.Plan()), (std::map<StreamId, int32_t>{{1, first}, {2, 1}, {3, 1}}));
    scheduler.Remove(3);
    EXPECT_EQ(Tokens(scheduler.Plan()), (std::map<StreamId, int32_t>{{1, 6}, {2, 6}}));
  }
}

TEST(Scheduler, DecodesFirstAndPrefillSharesTheRestOfTheBudget) {
  SchedulerLimits limits = SmallLimits();
  limits.max_slots = 4;
  limits.max_num_batched_tokens = 10;
  Scheduler scheduler(limits);
  Add(scheduler, 1, 0, Prefill(100));
  Add(scheduler, 2);
  Add(scheduler, 3, 0, Prefill(100));
  Add(scheduler, 4, 0, Prefill(100));
  // 4 tokens are set aside; of the other 6, 5 make a whole chunk for the first and 1 is the next's.
  StepPlan plan = scheduler.Plan();
  EXPECT_EQ(plan.runs.front().id, 2u);
  EXPECT_EQ(Tokens(plan), (std::map<StreamId, int32_t>{{1, 6}, {2, 1}, {3, 2}, {4, 1}}));
  EXPECT_EQ(Tokens(scheduler.Plan()),
            (std::map<StreamId, int32_t>{{1, 1}, {2, 1}, {3, 6}, {4, 2}}));
  EXPECT_EQ(Tokens(scheduler.Plan()),
            (std::map<StreamId, int32_t>{{1, 2}, {2, 1}, {3, 1}, {4, 6}}));
  // The turn goes round: over many steps all three get the same.
  std::map<StreamId, int> sums;
  for (int step = 0; step < 300; ++step) {
    for (const auto& [id, tokens] : Tokens(scheduler.Plan())) sums[id] += tokens;
  }
  EXPECT_NEAR(sums[1], sums[3], 12);
  EXPECT_NEAR(sums[1], sums[4], 12);
}

TEST(Scheduler, RowsWithLogitsAreBounded) {
  SchedulerLimits limits = SmallLimits();
  limits.max_logit_rows = 3;
  Scheduler scheduler(limits);
  Add(scheduler, 1, 0, Prefill(100, /*logits_every_row=*/true));
  Add(scheduler, 2);
  EXPECT_EQ(Tokens(scheduler.Plan()), (std::map<StreamId, int32_t>{{1, 2}, {2, 1}}));
}

TEST(Scheduler, StopsWhereTheStreamMustStop) {
  Scheduler scheduler(SmallLimits());
  Add(scheduler, 1, 0, Prefill(3));
  Add(scheduler, 2, 0, Prefill(0));
  EXPECT_EQ(Tokens(scheduler.Plan()), (std::map<StreamId, int32_t>{{1, 3}, {2, 0}}));
}

TEST(Scheduler, ExpiredInTheQueueAndWithASlot) {
  Scheduler scheduler(SmallLimits());
  const auto at = [](int64_t s) { return absl::UnixEpoch() + absl::Seconds(s); };
  for (StreamId id = 1; id <= 6; ++id) scheduler.Add(id, 0, at(100 - id), kDecode);
  Add(scheduler, 7);
  scheduler.Plan();
  EXPECT_THAT(scheduler.Expired(at(93)), IsEmpty());
  EXPECT_THAT(scheduler.Expired(at(94)), ElementsAre(6)) << "at the very time";
  EXPECT_THAT(scheduler.Expired(at(200)), ElementsAre(6, 5, 4, 3, 2, 1));
  scheduler.Remove(6);
  scheduler.Remove(1);
  EXPECT_THAT(scheduler.Expired(absl::InfiniteFuture()), ElementsAre(5, 4, 3, 2));
}

// Equal streams that never end: each waits for a slot at most as long as it takes everybody before
// it to have a time slice, and all get the same share.
TEST(Scheduler, SharesSlotsFairlyWithinABound) {
  for (const auto& [num_slots, num_live] :
       std::vector<std::pair<int, int>>{{1, 2}, {1, 9}, {3, 4}, {4, 16}, {5, 23}, {8, 8}}) {
    SchedulerLimits limits = SmallLimits();
    limits.max_slots = num_slots;
    limits.max_live_streams = num_live;
    limits.max_num_batched_tokens = num_slots;
    limits.max_logit_rows = num_slots;
    Scheduler scheduler(limits);
    for (int id = 1; id <= num_live; ++id) Add(scheduler, id);
    const int rounds = (num_live + num_slots - 1) / num_slots;
    const int max_wait = rounds * limits.time_slice_tokens;
    std::map<StreamId, int> tokens, last_step;
    const int num_steps = 200 * rounds;
    for (int step = 0; step < num_steps; ++step) {
      for (const PlannedRun& run : scheduler.Plan().runs) {
        EXPECT_LE(step - last_step[run.id], max_wait) << num_slots << " " << num_live;
        last_step[run.id] = step;
        tokens[run.id] += run.num_tokens;
      }
    }
    for (const auto& [id, sum] : tokens) {
      EXPECT_NEAR(sum, num_steps * num_slots / num_live, 2 * limits.time_slice_tokens + 2);
    }
  }
}

// A random trace, checked after every plan against a model of who may be where.
class Trace {
 public:
  explicit Trace(uint64_t seed) : random_(seed), limits_(RandomLimits()), scheduler_(limits_) {}

  void Run() {
    for (int step = 0; step < 150 && !::testing::Test::HasFailure(); ++step) {
      const int num_new = Pick(0, 9) < 4 ? Pick(1, 3) : 0;
      for (int i = 0; i < num_new; ++i) {
        const StreamId id = next_id_++;
        streams_[id] = {.priority = Pick(-1, 1), .left = Pick(1, 30), .is_score = Pick(0, 4) == 0};
        scheduler_.Add(id, streams_[id].priority, absl::InfiniteFuture(), NeedOf(streams_[id]));
      }
      if (!streams_.empty() && Pick(0, 9) == 0) {
        auto it = std::next(streams_.begin(), Pick(0, static_cast<int>(streams_.size()) - 1));
        scheduler_.Remove(it->first);
        resident_.erase(it->first);
        streams_.erase(it);
      }
      CheckPlan(scheduler_.Plan());
    }
  }

 private:
  struct Stream {
    int32_t priority = 0;
    int64_t left = 0;  // of the prompt
    bool is_score = false;
    int64_t decoded = 0;
    int64_t slice = 0;
  };

  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  SchedulerLimits RandomLimits() {
    const int slots = Pick(1, 5);
    return {.max_slots = slots,
            .max_live_streams = slots + Pick(0, 6),
            .max_num_batched_tokens = slots + Pick(0, 20),
            .max_logit_rows = slots + Pick(0, 10),
            .prefill_chunk_tokens = Pick(1, 8),
            .prefill_tokens_beside_decode = Pick(1, 12),
            .time_slice_tokens = Pick(1, 9)};
  }

  static RunNeed NeedOf(const Stream& stream) {
    return stream.left > 0 ? Prefill(stream.left, stream.is_score) : kDecode;
  }

  void CheckPlan(const StepPlan& plan) {
    for (const StreamId id : plan.swap_out) {
      ASSERT_TRUE(resident_.erase(id)) << "swapped out without a slot";
      EXPECT_GE(streams_[id].slice, limits_.time_slice_tokens) << "before its slice was over";
    }
    for (const StreamId id : plan.slot_in) {
      ASSERT_TRUE(streams_.contains(id));
      ASSERT_TRUE(resident_.insert(id).second);
      streams_[id].slice = 0;
      EXPECT_EQ(std::count(plan.swap_out.begin(), plan.swap_out.end(), id), 0);
    }
    ASSERT_LE(static_cast<int>(resident_.size()), limits_.max_slots);
    EXPECT_LE(scheduler_.num_live(), limits_.max_live_streams);
    if (scheduler_.num_live() > scheduler_.num_resident()) {
      EXPECT_EQ(static_cast<int>(resident_.size()), limits_.max_slots) << "an idle slot";
    }
    std::set<StreamId> ran;
    int64_t num_tokens = 0, num_logit_rows = 0;
    int64_t num_decodes = 0, num_prefills = 0, num_prefill_tokens = 0;
    for (const PlannedRun& run : plan.runs) {
      ASSERT_TRUE(resident_.contains(run.id) && ran.insert(run.id).second);
      Stream& stream = streams_[run.id];
      const RunNeed need = NeedOf(stream);
      EXPECT_GE(run.num_tokens, 1);
      EXPECT_LE(run.num_tokens, std::min<int64_t>(need.num_tokens, limits_.prefill_chunk_tokens));
      num_tokens += run.num_tokens;
      num_logit_rows += need.logits_every_row ? run.num_tokens : 1;
      stream.slice += run.num_tokens;
      if (stream.left > 0) {
        ++num_prefills;
        num_prefill_tokens += run.num_tokens;
        stream.left -= run.num_tokens;
      } else {
        ++num_decodes;
        ++stream.decoded;
      }
    }
    EXPECT_EQ(ran, resident_) << "everyone with a slot runs";
    EXPECT_LE(num_tokens, limits_.max_num_batched_tokens);
    EXPECT_LE(num_logit_rows, limits_.max_logit_rows);
    if (num_decodes > 0) {
      EXPECT_LE(num_prefill_tokens,
                std::max<int64_t>(limits_.prefill_tokens_beside_decode, num_prefills));
    }
    for (const StreamId id : ran) {
      if (streams_[id].decoded > 12 || (streams_[id].is_score && streams_[id].left == 0)) {
        scheduler_.Remove(id);
        resident_.erase(id);
        streams_.erase(id);
      } else {
        scheduler_.SetNeed(id, NeedOf(streams_[id]));
      }
    }
  }

  std::mt19937_64 random_;
  SchedulerLimits limits_;
  Scheduler scheduler_;
  std::map<StreamId, Stream> streams_;
  std::set<StreamId> resident_;
  StreamId next_id_ = 1;
};

TEST(Scheduler, HoldsItsBoundsOnRandomTraces) {
  for (uint64_t seed = 0; seed < 1000 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Trace(seed).Run();
  }
}

}  // namespace
}  // namespace vivarium::engine
