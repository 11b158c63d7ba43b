// How many slots a device has room for: at the limit, and one past it.
#include "engine/runtime/slot_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "engine/runtime/engine_loop.h"
#include "engine/runtime/token_sampler.h"
#include "tests/runtime/engine_harness.h"
#include "tests/support/late_copy_backend.h"

namespace vivarium::engine {
namespace {

using ::testing::HasSubstr;
using ::vivarium::testing::FakeBackend;
using ::vivarium::testing::FakeModel;
using ::vivarium::testing::LateCopyBackend;

constexpr uint64_t kSlotBytes = 4096;
constexpr int32_t kRows = 300;
constexpr uint64_t kTotalBytes = uint64_t{1} << 40;  // the reserve is at its most

FakeModel::Options ModelOfRows(int32_t rows) {
  return {.max_batch_tokens = rows, .max_logit_rows = rows, .slot_bytes = kSlotBytes};
}

EngineOptions Options(int32_t max_slots) {
  return {.max_slots = max_slots, .snapshot_slots = 2, .max_num_batched_tokens = kRows};
}

// Exactly what so many slots, of all kinds, take.
kernels::MemoryInfo RoomFor(int32_t num_slots) {
  const uint64_t bytes = static_cast<uint64_t>(num_slots) * kSlotBytes;
  return {bytes + TokenSampler::DeviceBytes(kRows) + kMaxReserveBytes, kTotalBytes};
}

int32_t Chosen(const FakeModel& model, const EngineOptions& options) {
  const auto plan = PlanSlots(model, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? plan->max_slots : -1;
}

TEST(SlotPlan, ANumberFitsAtTheLimitAndNotOnePastIt) {
  FakeBackend backend;
  const FakeModel model(&backend, ModelOfRows(kRows));
  backend.memory = RoomFor(50 + 2);
  EXPECT_EQ(Chosen(model, Options(50)), 50);
  --backend.memory.free_bytes;
  const absl::Status status = PlanSlots(model, Options(50)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("50 slots + 2 for snapshots + 0 spare = 52 * 4096 bytes"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat(backend.memory.free_bytes, " free of ", kTotalBytes)));
  EXPECT_THAT(std::string(status.message()), HasSubstr("at most 49 slots fit"));
}

TEST(SlotPlan, TheEngineTakesNothingWhenTheyDoNotFit) {
  FakeBackend backend;
  FakeModel model(&backend, ModelOfRows(kRows));
  backend.memory = RoomFor(50 + 2);
  EXPECT_TRUE(Engine::Create(&model, nullptr, FakeIdentity(), Options(50)).ok());
  const int num_allocations = backend.num_allocations;
  EXPECT_GT(num_allocations, 0);
  --backend.memory.free_bytes;
  const auto engine = Engine::Create(&model, nullptr, FakeIdentity(), Options(50));
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(backend.num_allocations, num_allocations);
}

TEST(SlotPlan, AutoFillsTheMemory) {
  FakeBackend backend;
  const FakeModel model(&backend, ModelOfRows(kRows));
  for (const int32_t num_slots : {1, 2, 7, 100, 255}) {
    backend.memory = RoomFor(num_slots + 2);
    EXPECT_EQ(Chosen(model, Options(kAutoSlots)), num_slots);
    backend.memory.free_bytes += kSlotBytes - 1;
    EXPECT_EQ(Chosen(model, Options(kAutoSlots)), num_slots);
    backend.memory.free_bytes += 1;
    EXPECT_EQ(Chosen(model, Options(kAutoSlots)), num_slots + 1);
  }
  backend.memory = RoomFor(1 + 2);
  --backend.memory.free_bytes;
  EXPECT_THAT(std::string(PlanSlots(model, Options(kAutoSlots)).status().message()),
              HasSubstr("at most 0 slots fit"));
}

TEST(SlotPlan, AutoCountsTheSpareSlots) {
  LateCopyBackend backend(/*seed=*/1);
  const FakeModel model(&backend, ModelOfRows(kRows));
  for (int32_t num_slots = 1; num_slots <= 20; ++num_slots) {
    const int32_t spare = std::min(num_slots, kMaxSpareSlots);
    backend.memory = RoomFor(num_slots + 2 + spare);
    EXPECT_EQ(Chosen(model, Options(kAutoSlots)), num_slots);
  }
}

TEST(SlotPlan, AutoStaysWithinTheOptions) {
  FakeBackend backend;
  backend.memory = {kTotalBytes, kTotalBytes};
  const FakeModel model(&backend, ModelOfRows(kRows));
  EngineOptions options = Options(kAutoSlots);
  EXPECT_EQ(Chosen(model, options), 256);  // max_live_streams
  options.max_live_streams = kMaxLiveStreams;
  EXPECT_EQ(Chosen(model, options), kRows);
  options.max_num_batched_tokens = 100;
  EXPECT_EQ(Chosen(model, options), 100);
  const FakeModel few_logits(&backend, {.max_batch_tokens = kRows, .max_logit_rows = 30});
  EXPECT_EQ(Chosen(few_logits, options), 30);
  const FakeModel many(&backend,
                       {.max_batch_tokens = kMaxBatchRows, .max_logit_rows = kMaxBatchRows});
  options.max_num_batched_tokens = kMaxBatchRows;
  EXPECT_EQ(Chosen(many, options), kMaxSlots);
}

TEST(SlotPlan, OnTheCpuAutoIsModest) {
  FakeBackend backend;
  backend.device_name = "cpu";
  const FakeModel model(&backend, ModelOfRows(kRows));
  backend.memory = {kTotalBytes, kTotalBytes};
  EXPECT_EQ(Chosen(model, Options(kAutoSlots)), kMaxAutoHostSlots);
  EXPECT_EQ(Chosen(model, Options(200)), 200) << "a number is a number";
  // A quarter of what is free has room for 10, for not quite 10, and for none at all.
  constexpr uint64_t kTotal = 4096 * kSlotBytes;  // the reserve is a sixteenth
  const auto free_bytes = [](int32_t max_slots) {
    const uint64_t bytes = static_cast<uint64_t>(max_slots + 2) * kSlotBytes;
    return 4 * (bytes + TokenSampler::DeviceBytes(kRows));
  };
  backend.memory = {free_bytes(10), kTotal};
  ASSERT_GT(backend.memory.free_bytes, kTotal / kReserveShare);
  EXPECT_EQ(Chosen(model, Options(kAutoSlots)), 10);
  backend.memory.free_bytes -= 4;
  EXPECT_EQ(Chosen(model, Options(kAutoSlots)), 9);
  backend.memory = {RoomFor(3).free_bytes - kMaxReserveBytes + kTotal / kReserveShare, kTotal};
  EXPECT_EQ(Chosen(model, Options(kAutoSlots)), 1);
}

TEST(SlotPlan, UnknownMemoryIsNotRefused) {
  FakeBackend backend;
  const FakeModel model(&backend, ModelOfRows(kRows));
  EXPECT_EQ(Chosen(model, Options(kAutoSlots)), kAutoSlotsOfUnknownMemory);
  EXPECT_EQ(Chosen(model, Options(250)), 250);
}

TEST(SlotPlan, HugeStatesDoNotOverflow) {
  FakeBackend backend;
  backend.memory = {kTotalBytes, kTotalBytes};
  FakeModel::Options options = ModelOfRows(kRows);
  options.slot_bytes = uint64_t{1} << 62;
  const FakeModel huge(&backend, options);
  EXPECT_EQ(PlanSlots(huge, Options(200)).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(SlotPlan, AnEngineToldAutoSaysWhatItTook) {
  FakeBackend backend;
  FakeModel model(&backend, ModelOfRows(kRows));
  backend.memory = RoomFor(40 + 2);
  const auto engine = Engine::Create(&model, nullptr, FakeIdentity(), Options(kAutoSlots));
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->options().max_slots, 40);
  const EngineStats stats = (*engine)->Stats();
  EXPECT_EQ(stats.max_slots, 40);
  EXPECT_EQ(stats.pool_bytes, 42 * kSlotBytes);
  EXPECT_EQ(stats.device_free_bytes, backend.memory.free_bytes);
  EXPECT_EQ(stats.device_total_bytes, kTotalBytes);
}

}  // namespace
}  // namespace vivarium::engine
