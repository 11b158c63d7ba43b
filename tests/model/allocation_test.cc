// A step allocates nothing: this program counts every use of operator new.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "tests/support/mamba_files.h"
#include "tests/support/model_harness.h"
#include "tests/support/temp_dir.h"

namespace {

std::atomic<uint64_t> num_allocations{0};

void* Count(size_t bytes) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return Count(bytes); }
void* operator new[](size_t bytes) { return Count(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace vivarium {
namespace {

TEST(AllocationTest, AStepAllocatesNothing) {
  for (const bool is_falcon : {false, true}) {
    test::MambaSpec spec;
    spec.is_falcon = is_falcon;
    const test::TempDir directory;
    WriteMambaModel(spec, directory.path());
    test::HarnessOptions options;
    options.num_threads = 2;
    auto harness = test::ModelHarness::Load(directory.path(), options);
    ASSERT_TRUE(harness.ok()) << harness.status();
    const std::vector<int32_t> ids(40, 3);
    const kernels::Segment segments[] = {
        {0, 1, 0, 0}, {1, 30, 1, 1}, {31, 9, kernels::kPadSlot, 2}};
    const std::vector<int32_t> rows{0, 30, 39};
    engine::Model& model = (*harness)->model();
    const uint64_t before = num_allocations.load();
    ASSERT_GT(before, 0u);
    for (int i = 0; i < 3; ++i) model.Forward({ids, segments, rows}, (*harness)->slots());
    EXPECT_EQ(num_allocations.load(), before);
  }
}

}  // namespace
}  // namespace vivarium
