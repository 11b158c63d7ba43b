#include "kernels/cpu/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>

namespace vivarium::kernels {
namespace {

constexpr uint64_t kKibibyte = 1024;

// The number after `key` at the start of a line.
std::optional<uint64_t> FindNumber(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    uint64_t value = 0;
    if (word == key && file >> value) return value;
    file.clear();
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

// A file that is one number; none for "max", which means no limit.
std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// The group of this process below the root of version 2, such as "/user.slice"; "" for none.
std::string GroupPath(const std::string& proc) {
  std::ifstream file(proc + "/self/cgroup");
  std::string line;
  constexpr char kVersion2[] = "0::";
  while (std::getline(file, line)) {
    if (line.rfind(kVersion2, 0) == 0) return line.substr(sizeof(kVersion2) - 1);
  }
  return "";
}

void ApplyLimit(const std::string& group, MemoryInfo* memory) {
  const auto limit = ReadNumber(group + "/memory.max");
  const auto used = ReadNumber(group + "/memory.current");
  if (!limit || !used) return;
  const uint64_t cached = FindNumber(group + "/memory.stat", "inactive_file").value_or(0);
  const uint64_t held = *used - std::min(*used, cached);
  memory->free_bytes = std::min(memory->free_bytes, *limit - std::min(*limit, held));
  memory->total_bytes = std::min(memory->total_bytes, *limit);
}

}  // namespace

MemoryInfo HostMemory() { return ReadHostMemory("/proc", "/sys/fs/cgroup"); }

MemoryInfo ReadHostMemory(const std::string& proc, const std::string& cgroup) {
  const auto available = FindNumber(proc + "/meminfo", "MemAvailable:");
  const auto total = FindNumber(proc + "/meminfo", "MemTotal:");
  if (!available || !total) return {};
  MemoryInfo memory{*available * kKibibyte, *total * kKibibyte};
  // A process may be below the limits of all groups around it.
  std::string path = GroupPath(proc);
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    ApplyLimit(cgroup + path, &memory);
    if (path.empty()) return memory;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

}  // namespace vivarium::kernels
