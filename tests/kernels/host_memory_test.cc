#include "kernels/cpu/host_memory.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace vivarium::kernels {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A /proc and a /sys/fs/cgroup of the test's own. The machine has 8 GiB, of which 5 are available.
class HostMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::temp_directory_path() /
            ("host_memory_test." + std::to_string(getpid()) + "." +
             ::testing::UnitTest::GetInstance()->current_test_info()->name());
    Write("proc/meminfo",
          "MemTotal:        8388608 kB\nMemFree:  1 kB\nMemAvailable:    5242880 kB\nBuffers: 7 "
          "kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = root_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  void Group(const std::string& name, const std::string& max, uint64_t used,
             uint64_t cached) const {
    Write("cgroup" + name + "/memory.max", max + "\n");
    Write("cgroup" + name + "/memory.current", std::to_string(used) + "\n");
    Write("cgroup" + name + "/memory.stat",
          "anon 5\nfile 6\ninactive_file " + std::to_string(cached) + "\nslab 1\n");
  }
  MemoryInfo Read() const { return ReadHostMemory(root_ / "proc", root_ / "cgroup"); }

  std::filesystem::path root_;
};

TEST_F(HostMemoryTest, WithoutGroupsIsTheMachines) {
  EXPECT_EQ(Read().free_bytes, 5120 * kMiB);
  EXPECT_EQ(Read().total_bytes, 8192 * kMiB);
}

TEST_F(HostMemoryTest, TheTightestGroupCounts) {
  Write("proc/self/cgroup", "1:name=systemd:/x\n0::/outer/inner\n");
  Group("/outer/inner", "max", 100 * kMiB, 0);
  EXPECT_EQ(Read().free_bytes, 5120 * kMiB);
  Group("/outer", std::to_string(1024 * kMiB), 300 * kMiB, 50 * kMiB);
  EXPECT_EQ(Read().free_bytes, 774 * kMiB) << "page cache is free";
  EXPECT_EQ(Read().total_bytes, 1024 * kMiB);
  Group("/outer/inner", std::to_string(512 * kMiB), 100 * kMiB, 0);
  EXPECT_EQ(Read().free_bytes, 412 * kMiB);
  EXPECT_EQ(Read().total_bytes, 512 * kMiB);
}

TEST_F(HostMemoryTest, AContainersOwnRootCounts) {
  Write("proc/self/cgroup", "0::/\n");
  Group("", std::to_string(600 * kMiB), 700 * kMiB, 0);
  EXPECT_EQ(Read().free_bytes, 0) << "more in use than the limit";
  EXPECT_EQ(Read().total_bytes, 600 * kMiB);
}

TEST_F(HostMemoryTest, UnknownIsZero) {
  Write("proc/meminfo", "MemTotal: 8388608 kB\n");
  EXPECT_EQ(Read().free_bytes, 0);
  EXPECT_EQ(Read().total_bytes, 0);
}

TEST(HostMemory, OfThisMachine) {
  const MemoryInfo memory = HostMemory();
  EXPECT_GT(memory.free_bytes, 0);
  EXPECT_LE(memory.free_bytes, memory.total_bytes);
}

}  // namespace
}  // namespace vivarium::kernels
