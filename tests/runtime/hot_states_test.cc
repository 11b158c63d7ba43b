// States of ended streams that stay in their slots: a resume takes them from there, and whoever
// needs the slot gets it.
#include "engine/runtime/hot_states.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "tests/runtime/engine_fixture.h"
#include "tests/support/late_copy_backend.h"

namespace vivarium::engine {
namespace {

TEST(HotStates, TheOldestUnleasedGoesFirst) {
  const auto states = std::make_shared<HotStates>();
  const HotId a = states->Add(0), b = states->Add(1), c = states->Add(2);
  states->Name(a, "a");
  states->Name(b, "b");
  states->Name(c, "c");
  EXPECT_FALSE(states->Lease("d"));
  {
    const HotLease lease = states->Lease("a");
    EXPECT_TRUE(lease);
    EXPECT_EQ(states->SlotOf(lease), 0);
    EXPECT_EQ(states->TakeOldest(), 1);
  }
  EXPECT_EQ(states->TakeOldest(), 2) << "a was used after c";
  EXPECT_EQ(states->num_slots(), 1);
  EXPECT_FALSE(states->Lease("b"));
  EXPECT_EQ(states->TakeOldest(), 0);
  EXPECT_EQ(states->TakeOldest(), -1);
}

TEST(HotStates, ANameMeansTheLastThatGotIt) {
  const auto states = std::make_shared<HotStates>();
  const HotId a = states->Add(0), b = states->Add(1);
  states->Name(a, "x");
  states->Name(b, "x");
  EXPECT_EQ(states->SlotOf(states->Lease("x")), 1);
  states->Name(b, "y");
  EXPECT_FALSE(states->Lease("x"));
  states->Name(99, "z");  // gone long ago
  EXPECT_FALSE(states->Lease("z"));
}

TEST(HotStates, ASlotIsTakenByTheOnlyLeaseOfItAlone) {
  const auto states = std::make_shared<HotStates>();
  states->Name(states->Add(7), "a");
  HotLease first = states->Lease("a");
  {
    const HotLease second = states->Lease("a");
    EXPECT_EQ(states->Take(&first), -1);
    EXPECT_TRUE(first);
  }
  EXPECT_EQ(states->Take(&first), 7);
  EXPECT_FALSE(first);
  EXPECT_FALSE(states->Lease("a"));
  EXPECT_EQ(states->num_slots(), 0);
}

TEST(HotStates, SpilledBytesLiveAsLongAsTheLeases) {
  const auto states = std::make_shared<HotStates>();
  const HotId a = states->Add(3);
  states->Name(a, "a");
  HotLease first = states->Lease("a"), second = states->Lease("a");
  StateBuffer host(64);
  std::memset(host.data(), 5, 64);
  states->Spill(a, std::move(host));
  EXPECT_EQ(states->spilled_bytes(), 64u);
  EXPECT_EQ(states->num_slots(), 0);
  EXPECT_EQ(states->Take(&first), -1);
  EXPECT_EQ(states->SlotOf(first), -1);
  EXPECT_EQ(states->Oldest().slot, -1);
  const StateBuffer copy = states->TakeSpilled(&first);
  const StateBuffer moved = states->TakeSpilled(&second);
  EXPECT_EQ(states->spilled_bytes(), 0u);
  ASSERT_EQ(copy.size(), 64u);
  ASSERT_EQ(moved.size(), 64u);
  EXPECT_EQ(std::memcmp(copy.data(), moved.data(), 64), 0);
  EXPECT_EQ(copy.data()[63], std::byte{5});
  EXPECT_FALSE(states->Lease("a"));
}

TEST(HotStates, NobodyKeepsWhatWasSpilledForALeaseThatIsGone) {
  const auto states = std::make_shared<HotStates>();
  const HotId a = states->Add(3);
  states->Spill(a, StateBuffer(64));  // the lease was given back meanwhile
  EXPECT_EQ(states->spilled_bytes(), 0u);
}

TEST(HotStates, LeasesMayOutliveEverything) {
  auto states = std::make_shared<HotStates>();
  const HotId a = states->Add(3);
  states->Name(a, "a");
  HotLease lease = states->Lease("a");
  EXPECT_THAT(states->Close(), ::testing::ElementsAre(3));
  EXPECT_FALSE(states->Lease("a"));
  EXPECT_EQ(states->num_slots(), 0);
  states = nullptr;
  lease = HotLease();
}

TEST(HotStates, ManyThreadsLease) {
  const auto states = std::make_shared<HotStates>();
  std::atomic<bool> stops = false;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; !stops; ++i) {
        const HotLease lease = states->Lease(std::to_string((i + t) % 4));
        const HotLease other = states->Lease(std::to_string(i % 4));
      }
    });
  }
  std::vector<int32_t> free = {0, 1, 2, 3};
  for (int i = 0; i < 2000; ++i) {  // the engine's thread
    if (free.empty()) {
      const int32_t slot = states->TakeOldest();
      if (slot >= 0) {
        free.push_back(slot);
      } else if (const HotStates::Placed oldest = states->Oldest(); oldest.slot >= 0) {
        states->Spill(oldest.id, StateBuffer(64));
        free.push_back(oldest.slot);
      }
      continue;
    }
    states->Name(states->Add(free.back()), std::to_string(i % 4));
    free.pop_back();
  }
  stops = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(states->num_slots() + static_cast<int>(free.size()), 4);
  EXPECT_EQ(states->spilled_bytes(), 0u);
}

// What a server does: a stream's end state is saved, and named.
struct HotEngine : TestEngine {
  using TestEngine::TestEngine;

  std::shared_ptr<Recorded> RunAndName(EngineRequest request, const std::string& name) {
    request.save.at_end = true;
    const auto record = Run(std::move(request));
    EXPECT_NE(record->finished->hot_id, 0u);
    engine->NameHot(record->finished->hot_id, name);
    return record;
  }
  // Goes on from the end of `from`: from its slot (expected to be hot), or from its bytes.
  EngineRequest Resume(const Recorded& from, const std::string& hot_name, uint64_t seed) {
    EngineRequest request = MakeRequest(Tokens(3, static_cast<int>(seed)), 12);
    request.sampling = RichSampling(seed);
    request.save.at_end = true;
    request.source = std::make_unique<StateSnapshot>(CopySnapshot(*from.finished->state));
    if (!hot_name.empty()) {
      request.hot = engine->LeaseHot(hot_name);
      EXPECT_TRUE(request.hot);
      request.source->slot = StateBuffer();
    }
    return request;
  }
};

void ExpectSame(const Recorded& a, const Recorded& b) {
  EXPECT_EQ(a.token_ids(), b.token_ids());
  const StateSnapshot& x = *a.finished->state;
  const StateSnapshot& y = *b.finished->state;
  EXPECT_EQ(x.position, y.position);
  EXPECT_EQ(x.transcript, y.transcript);
  EXPECT_EQ(std::memcmp(x.slot.data(), y.slot.data(), x.slot.size()), 0);
}

TEST(HotResume, IsTheSameAsFromBytes) {
  HotEngine test({.max_slots = 4});
  const auto trunk = test.RunAndName(MakeRequest(Tokens(20), 10), "trunk");
  const auto from_bytes = test.Run(test.Resume(*trunk, "", 5));
  for (const bool keeps : {true, true, false}) {
    EngineRequest request = test.Resume(*trunk, "trunk", 5);
    request.keeps_hot = keeps;
    const auto from_slot = test.Run(std::move(request));
    ExpectSame(*from_slot, *from_bytes);
    EXPECT_EQ(from_slot->finished->restored_tokens, trunk->finished->position);
  }
  EXPECT_FALSE(test.engine->LeaseHot("trunk")) << "the last one took the slot";
  EXPECT_EQ(test.engine->Stats().hot_resumes, 3u);
  EXPECT_EQ(test.engine->Stats().used_slots, 0);
}

TEST(HotResume, TheOnlySlotIsTakenOver) {
  HotEngine test({.max_slots = 1, .snapshot_slots = 0});
  const auto trunk = test.RunAndName(MakeRequest(Tokens(20), 10), "trunk");
  EXPECT_EQ(test.engine->Stats().hot_slots, 1);
  const auto from_slot = test.Run(test.Resume(*trunk, "trunk", 5));
  EXPECT_FALSE(test.engine->LeaseHot("trunk")) << "there was no other to copy it to";
  ExpectSame(*from_slot, *test.Run(test.Resume(*trunk, "", 5)));
}

TEST(HotResume, SnapshotsAtTheStartAndOnTheWay) {
  HotEngine test({.max_slots = 2, .prefill_chunk_tokens = 2});
  const auto trunk = test.RunAndName(MakeRequest(Tokens(20), 10), "trunk");
  const auto run = [&](const std::string& hot_name) {
    EngineRequest request = test.Resume(*trunk, hot_name, 5);
    request.prompt.clear();  // its end is where the stream starts
    request.save = {.at_end = true, .at_prompt_end = true, .every_tokens = 4};
    return test.Run(std::move(request));
  };
  const auto from_slot = run("trunk");
  const auto from_bytes = run("");
  ExpectSame(*from_slot, *from_bytes);
  ASSERT_EQ(from_slot->snapshots.size(), from_bytes->snapshots.size());
  EXPECT_EQ(from_slot->snapshots[0]->position, trunk->finished->position);
  for (size_t i = 0; i < from_slot->snapshots.size(); ++i) {
    const StateBuffer& x = from_slot->snapshots[i]->slot;
    EXPECT_EQ(std::memcmp(x.data(), from_bytes->snapshots[i]->slot.data(), x.size()), 0);
  }
}

TEST(HotResume, NobodyIsHeldUpByHotStatesNorByLeasesOfThem) {
  HotEngine test({.max_slots = 2, .snapshot_slots = 0});
  std::vector<std::shared_ptr<Recorded>> trunks;
  std::vector<EngineRequest> resumes;
  for (int i = 0; i < 2; ++i) {
    const std::string name = std::to_string(i);
    trunks.push_back(test.RunAndName(MakeRequest(Tokens(10 + i), 5), name));
  }
  for (int i = 0; i < 2; ++i) resumes.push_back(test.Resume(*trunks[i], std::to_string(i), 7 + i));
  EXPECT_EQ(test.engine->Stats().hot_slots, 2) << "no slot is free";
  // Both leased slots are needed: their states go to host memory, and the streams go on from there.
  std::vector<TestEngine::Submitted> others;
  for (int i = 0; i < 4; ++i) others.push_back(test.Submit(MakeRequest(Tokens(9, i), 20)));
  for (auto& other : others) other.record->done.WaitForNotification();
  EXPECT_EQ(test.engine->Stats().hot_spills, 2u);
  EXPECT_GT(test.engine->Stats().host_swap_bytes, 0u);
  for (int i = 0; i < 2; ++i) {
    ExpectSame(*test.Run(std::move(resumes[i])), *test.Run(test.Resume(*trunks[i], "", 7 + i)));
  }
  EXPECT_EQ(test.engine->Stats().host_swap_bytes, 0u);
}

TEST(HotResume, AStreamCancelledInTheQueueLeavesTheStateHot) {
  HotEngine test({.max_slots = 1, .max_live_streams = 1});
  const auto trunk = test.RunAndName(MakeRequest(Tokens(20), 10), "trunk");
  absl::Notification goes_on;
  test.model.on_forward = [&](const Batch&) { goes_on.WaitForNotification(); };
  const auto busy = test.Submit(MakeRequest(Tokens(5), 3));
  const auto queued = test.Submit(test.Resume(*trunk, "trunk", 5));
  test.engine->Cancel(queued.id);
  goes_on.Notify();
  queued.record->done.WaitForNotification();
  busy.record->done.WaitForNotification();
  test.model.on_forward = nullptr;
  EXPECT_FALSE(queued.record->started);
  ExpectSame(*test.Run(test.Resume(*trunk, "trunk", 5)), *test.Run(test.Resume(*trunk, "", 5)));
}

TEST(HotResume, ARequestSaysWhatItMeans) {
  HotEngine test;
  const auto trunk = test.RunAndName(MakeRequest(Tokens(20), 10), "trunk");
  EngineRequest request = test.Resume(*trunk, "trunk", 5);
  request.source->slot = StateBuffer(request.source->layout.slot_bytes);
  EXPECT_EQ(test.Refusal(std::move(request)).code(), absl::StatusCode::kInvalidArgument);
  request = test.Resume(*trunk, "trunk", 5);
  request.source->layout.version++;
  EXPECT_FALSE(test.Refusal(std::move(request)).ok());
  request = test.Resume(*trunk, "trunk", 5);
  request.source = nullptr;
  EXPECT_EQ(test.Refusal(std::move(request)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(test.engine->LeaseHot("trunk"));
}

// Only what was asked for at the end, and came to one, stays hot.
TEST(HotResume, NotEveryStreamLeavesOne) {
  HotEngine test;
  EXPECT_EQ(test.Run(MakeRequest(Tokens(5), 3))->finished->hot_id, 0u);
  EngineRequest broken = MakeRequest(Tokens(5), 3);
  broken.save.at_end = true;
  test.model.edit_logits = [](uint64_t, std::vector<float>* logits) { (*logits)[0] = NAN; };
  EXPECT_EQ(test.Run(std::move(broken))->finished->hot_id, 0u);
  EXPECT_EQ(test.engine->Stats().hot_slots, 0);
}

TEST(HotResume, AFaultOfTheDeviceEndsAllOfThem) {
  testing::LateCopyBackend backend(1);
  const EngineOptions options{.max_slots = 2};
  testing::FakeModel model(&backend, TestEngine::Fit(options, testing::FakeModel::Options()));
  auto engine = Engine::Create(&model, nullptr, FakeIdentity(), options);
  ASSERT_TRUE(engine.ok());
  const auto run = [&](EngineRequest request) {
    const auto record = std::make_shared<Recorded>();
    const auto id = (*engine)->Submit(std::move(request), std::make_unique<RecordingSink>(record));
    if (id.ok()) record->done.WaitForNotification();
    return record;
  };
  EngineRequest request = MakeRequest(Tokens(5), 3);
  request.save.at_end = true;
  const auto trunk = run(std::move(request));
  (*engine)->NameHot(trunk->finished->hot_id, "trunk");
  HotLease lease = (*engine)->LeaseHot("trunk");
  EXPECT_TRUE(lease);
  model.on_forward = [&](const Batch&) { backend.Fail("gone"); };
  EXPECT_EQ(run(MakeRequest(Tokens(5), 3))->finished->reason, FinishReason::kError);
  EXPECT_FALSE((*engine)->LeaseHot("trunk"));
  EXPECT_EQ((*engine)->Stats().hot_slots, 0);
  EXPECT_EQ((*engine)->Stats().used_slots, 0);
  *engine = nullptr;
}

}  // namespace
}  // namespace vivarium::engine
