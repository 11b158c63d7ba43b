// What the disk and the memory under a store can do at best, and how to make reads cold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace vivarium::bench {

// Each aborts with a message when the file can't be made, written or read.

// Writes `bytes` to the new file `path`, a MiB at a time, and syncs it: seconds.
double TimeRawWrite(const std::string& path, std::span<const std::byte> bytes);
// Reads the file at `path` into `bytes`, a MiB at a time: seconds.
double TimeRawRead(const std::string& path, std::span<std::byte> bytes);
// Copies `bytes` into memory that is new, as whoever returns a value must: seconds.
double TimeCopy(std::span<const std::byte> bytes);

// Syncs every file under `directory` and asks the system to forget its pages (posix_fadvise,
// DONTNEED). Returns how many pages of them are in memory yet, in bytes (mincore).
uint64_t DropPageCache(const std::string& directory);

}  // namespace vivarium::bench
