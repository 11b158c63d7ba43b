#include "tests/bench/raw_disk.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "engine/runtime/state.h"
#include "tests/bench/machine_peaks.h"

namespace vivarium::bench {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 20;

// A file descriptor that is closed at the end.
class File {
 public:
  File(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0600)) {
    Require(fd_ >= 0, "open", path);
  }
  ~File() { close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int fd() const { return fd_; }
  static void Require(bool ok, const char* what, const std::string& path) {
    if (ok) return;
    std::perror((std::string(what) + " " + path).c_str());
    std::abort();
  }

 private:
  const int fd_;
};

uint64_t ResidentBytes(int fd, size_t num_bytes) {
  if (num_bytes == 0) return 0;
  void* const mapped = mmap(nullptr, num_bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) return 0;
  const auto page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((num_bytes + page_bytes - 1) / page_bytes);
  uint64_t num_resident = 0;
  if (mincore(mapped, num_bytes, pages.data()) == 0) {
    num_resident = static_cast<uint64_t>(
        std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; }));
  }
  munmap(mapped, num_bytes);
  return num_resident * page_bytes;
}

}  // namespace

double TimeRawWrite(const std::string& path, std::span<const std::byte> bytes) {
  const double begin = WallSeconds();
  const File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  for (size_t offset = 0; offset < bytes.size(); offset += kPieceBytes) {
    const size_t num_bytes = std::min(kPieceBytes, bytes.size() - offset);
    const ssize_t written = write(file.fd(), bytes.data() + offset, num_bytes);
    File::Require(written == static_cast<ssize_t>(num_bytes), "write", path);
  }
  File::Require(fdatasync(file.fd()) == 0, "sync", path);
  return WallSeconds() - begin;
}

double TimeRawRead(const std::string& path, std::span<std::byte> bytes) {
  const double begin = WallSeconds();
  const File file(path, O_RDONLY);
  for (size_t offset = 0; offset < bytes.size(); offset += kPieceBytes) {
    const size_t num_bytes = std::min(kPieceBytes, bytes.size() - offset);
    const ssize_t num_read = read(file.fd(), bytes.data() + offset, num_bytes);
    File::Require(num_read == static_cast<ssize_t>(num_bytes), "read", path);
  }
  return WallSeconds() - begin;
}

double TimeCopy(std::span<const std::byte> bytes) {
  const double begin = WallSeconds();
  auto copy = engine::StateBuffer::ForOverwrite(bytes.size());
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  asm volatile("" : : "r"(copy.data()) : "memory");  // somebody may look at it
  return WallSeconds() - begin;
}

uint64_t DropPageCache(const std::string& directory) {
  uint64_t num_resident_bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    const File file(entry.path(), O_RDONLY);
    struct stat info {};
    File::Require(fstat(file.fd(), &info) == 0 && fsync(file.fd()) == 0, "sync", entry.path());
    (void)posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED);
    num_resident_bytes += ResidentBytes(file.fd(), static_cast<size_t>(info.st_size));
  }
  return num_resident_bytes;
}

}  // namespace vivarium::bench
