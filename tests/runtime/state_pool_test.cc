#include "engine/runtime/state_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <set>

#include "tests/support/fake_backend.h"

namespace vivarium::engine {
namespace {

using ::vivarium::testing::FakeBackend;

constexpr uint64_t kSlotBytes = 192;

std::unique_ptr<StatePool> MakePool(FakeBackend* backend, int32_t num_slots) {
  auto pool = StatePool::Create(backend, kSlotBytes, num_slots);
  EXPECT_TRUE(pool.ok()) << pool.status();
  return std::move(*pool);
}

StateBuffer Filled(int value) {
  StateBuffer buffer(kSlotBytes);
  std::memset(buffer.data(), value, buffer.size());
  return buffer;
}

TEST(StatePool, IsOneAllocationForLife) {
  FakeBackend backend;
  {
    const auto pool = MakePool(&backend, 5);
    EXPECT_EQ(pool->pool_bytes(), 5 * kSlotBytes);
    for (int i = 0; i < 5; ++i) pool->Acquire();
    EXPECT_EQ(backend.num_allocations, 1);
  }
  EXPECT_EQ(backend.num_frees, 1);
}

TEST(StatePool, HandsOutEverySlotOnce) {
  FakeBackend backend;
  const auto pool = MakePool(&backend, 4);
  std::set<int32_t> slots;
  for (int i = 0; i < 4; ++i) slots.insert(pool->Acquire());
  EXPECT_THAT(slots, ::testing::ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(pool->num_free(), 0);
  pool->Release(2);
  EXPECT_EQ(pool->num_free(), 1);
  EXPECT_EQ(pool->num_used(), 3);
  EXPECT_EQ(pool->Acquire(), 2);
}

TEST(StatePool, LoadSaveAndZeroTouchOneSlotOnly) {
  FakeBackend backend;
  const auto pool = MakePool(&backend, 3);
  for (int32_t i = 0; i < 3; ++i) {
    const int32_t slot = pool->Acquire();
    ASSERT_EQ(slot, i);
    backend.WaitForCopy(pool->StartLoad(slot, Filled(slot + 1).data()));
  }
  const auto byte_of = [&](int32_t slot) {
    StateBuffer out(kSlotBytes);
    backend.WaitForCopy(pool->StartSave(slot, out.data()));
    for (size_t i = 1; i < out.size(); ++i) EXPECT_EQ(out.data()[i], out.data()[0]);
    return static_cast<int>(out.data()[0]);
  };
  pool->Zero(1);
  EXPECT_EQ(byte_of(0), 1);
  EXPECT_EQ(byte_of(1), 0);
  EXPECT_EQ(byte_of(2), 3);
  pool->CopySlot(1, 2);
  EXPECT_EQ(byte_of(1), 3);
  EXPECT_EQ(byte_of(2), 3);
  EXPECT_EQ(static_cast<int>(pool->slots()[2 * kSlotBytes]), 3) << "slots lie one after the other";
}

TEST(StatePool, RefusesWhatDoesNotFit) {
  FakeBackend backend;
  backend.max_allocation_bytes = 10 * kSlotBytes;
  EXPECT_TRUE(StatePool::Create(&backend, kSlotBytes, 10).ok());
  const auto status = StatePool::Create(&backend, kSlotBytes, 11).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("11 slots * 192 bytes = 2112"));
  // The product of these overflows 64 bits.
  EXPECT_EQ(StatePool::Create(&backend, uint64_t{1} << 62, 8).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(StatePool::Create(&backend, kSlotBytes, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(StatePool::Create(&backend, 100, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(StatePoolDeathTest, MisuseAborts) {
  FakeBackend backend;
  const auto pool = MakePool(&backend, 1);
  EXPECT_DEATH(pool->Release(0), "not in use");
  EXPECT_DEATH(pool->Zero(1), "not in use");
  const int32_t slot = pool->Acquire();
  EXPECT_DEATH(pool->Acquire(), "no free slot");
  EXPECT_DEATH(pool->CopySlot(slot, 1), "not in use");
  pool->Release(slot);
  EXPECT_DEATH(pool->Release(slot), "not in use");
}

}  // namespace
}  // namespace vivarium::engine
