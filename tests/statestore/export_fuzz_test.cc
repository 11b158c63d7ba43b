// Damaged export files, by the thousand, from fixed seeds: none crashes the importer, none gives a
// state that the file doesn't hold. VIVARIUM_FUZZ_ROUNDS sets how many of each kind.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <string_view>

#include "statestore/byte_codec.h"
#include "statestore/state_validation.h"
#include "tests/statestore/export_files.h"
#include "tests/statestore/state_samples.h"

namespace vivarium::statestore {
namespace {

int NumRounds() {
  const char* rounds = std::getenv("VIVARIUM_FUZZ_ROUNDS");
  return rounds != nullptr ? std::atoi(rounds) : 10'000;
}

bool IsRefusal(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsInvalidArgument(status) ||
         absl::IsUnimplemented(status);
}

void FlipBits(std::string& file, std::mt19937_64& random) {
  for (uint64_t n = 1 + random() % 4; n > 0; --n) {
    char& byte = file[random() % file.size()];
    byte = static_cast<char>(byte ^ (1 << random() % 8));
  }
}

// Bytes that parsers stumble over.
void PlantNumber(std::string& file, std::mt19937_64& random) {
  static constexpr uint64_t kNumbers[] = {0,          1,          0x7f,
                                          0xff,       0x7fffffff, 0x80000000,
                                          0xffffffff, 1ull << 32, 0x7fffffffffffffff,
                                          1ull << 63, ~0ull,      0x7f800000};
  const uint64_t number = kNumbers[random() % std::size(kNumbers)];
  const size_t num_bytes = size_t{1} << random() % 4;
  const size_t offset = random() % (file.size() - num_bytes);
  for (size_t i = 0; i < num_bytes; ++i) file[offset + i] = static_cast<char>(number >> (8 * i));
}

void SwapRanges(std::string& file, std::mt19937_64& random) {
  const size_t num_bytes = 1 + random() % std::min<size_t>(file.size() / 2, 128);
  const size_t one = random() % (file.size() - num_bytes);
  const size_t other = random() % (file.size() - num_bytes);
  if (one + num_bytes > other && other + num_bytes > one) return FlipBits(file, random);
  std::swap_ranges(file.begin() + one, file.begin() + one + num_bytes, file.begin() + other);
}

void ChangeLength(std::string& file, std::mt19937_64& random) {
  const size_t offset = random() % file.size();
  const size_t num_bytes = 1 + random() % 64;
  switch (random() % 3) {
    case 0:
      file.resize(offset);
      break;
    case 1:
      file.erase(offset, num_bytes);
      break;
    default:
      file.insert(offset, std::string(num_bytes, static_cast<char>(random())));
  }
}

std::string Mutated(std::string file, std::mt19937_64& random, bool keeps_length) {
  switch (random() % (keeps_length ? 3 : 4)) {
    case 0:
      FlipBits(file, random);
      break;
    case 1:
      PlantNumber(file, random);
      break;
    case 2:
      SwapRanges(file, random);
      break;
    default:
      ChangeLength(file, random);
  }
  return file;
}

TEST(ExportFuzz, EveryDamageIsFound) {
  std::mt19937_64 random(41);
  int num_changed = 0;
  for (int round = 0; round < NumRounds(); ++round) {
    const uint64_t seed = random() % 16;
    const std::string file = ExportFile(SampleState(SampleId(seed), seed));
    const std::string mutated = Mutated(file, random, /*keeps_length=*/false);
    if (mutated == file) continue;
    ++num_changed;
    const absl::Status status = ImportFile(mutated).status();
    ASSERT_TRUE(IsRefusal(status)) << "round " << round << ": " << status;
  }
  EXPECT_GT(num_changed, NumRounds() / 2);
}

// Whole chunks that change places, within a file or with one of another file of the same shape, the
// file's own last checksum made right again: the manifest's table still finds them.
TEST(ExportFuzz, SwappedChunksAreFound) {
  constexpr size_t kChunkBytes = 32 + (1 << 20);  // envelope and payload
  constexpr int kLayers = 4000;                   // 2.3 MB: two whole chunks and a part
  std::string files[2];
  for (uint64_t i = 0; i < 2; ++i) {
    SavedState state = SampleState(SampleId(1), 7, kLayers);
    state.slot = SampleSlot(state.manifest.layout, i);
    files[i] = ExportFile(state);
  }
  ASSERT_EQ(files[0].size(), files[1].size());
  uint64_t manifest_bytes = 0;
  std::memcpy(&manifest_bytes, files[0].data() + 24, sizeof(manifest_bytes));
  const auto chunk = [&](std::string& file, size_t i) {
    return file.begin() + static_cast<ptrdiff_t>(64 + manifest_bytes + i * kChunkBytes);
  };
  const auto expect_found = [](std::string file) {
    const uint64_t checksum = Checksum(std::string_view(file).substr(0, file.size() - 8));
    std::memcpy(file.data() + file.size() - 8, &checksum, sizeof(checksum));
    EXPECT_TRUE(absl::IsDataLoss(ImportFile(file).status())) << ImportFile(file).status();
  };
  EXPECT_TRUE(ImportFile(files[0]).ok());
  std::string within = files[0];
  std::swap_ranges(chunk(within, 0), chunk(within, 1), chunk(within, 1));
  expect_found(within);
  for (size_t i = 0; i < 2; ++i) {
    std::string mixed = files[0];
    std::copy(chunk(files[1], i), chunk(files[1], i + 1), chunk(mixed, i));
    expect_found(mixed);
  }
}

// With the checksums made right again the fields themselves must hold. What is taken is a valid
// state, and exactly the one in the file: written out again it gives the same bytes.
TEST(ExportFuzz, ResignedDamageIsRefusedOrMeansWhatItSays) {
  std::mt19937_64 random(42);
  int num_taken = 0;
  int num_refused = 0;
  for (int round = 0; round < NumRounds(); ++round) {
    const uint64_t seed = random() % 16;
    const std::string file = ExportFile(SampleState(SampleId(seed), seed));
    const std::string mutated = Resigned(Mutated(file, random, /*keeps_length=*/true));
    const absl::StatusOr<SavedState> found = ImportFile(mutated);
    if (!found.ok()) {
      ASSERT_TRUE(IsRefusal(found.status())) << "round " << round << ": " << found.status();
      ++num_refused;
      continue;
    }
    ++num_taken;
    ASSERT_TRUE(ValidateManifest(found->manifest).ok());
    ASSERT_TRUE(ValidateSlot(found->manifest.layout, found->slot).ok());
    ASSERT_EQ(ExportFile(*found), mutated) << "round " << round;
  }
  // Both sides of the parsers were reached.
  EXPECT_GT(num_taken, NumRounds() / 20);
  EXPECT_GT(num_refused, NumRounds() / 20);
}

}  // namespace
}  // namespace vivarium::statestore
