// Philox4x32-10: a counter-based random generator (Salmon et al. 2011, "Parallel random numbers: as
// easy as 1, 2, 3"). A number depends on (key, counter) alone, so a stream's randomness depends on
// its seed and position and on nothing that happened before or beside it.
#pragma once

#include <array>
#include <cstdint>

namespace vivarium::engine {

// One block of four words: ten rounds over `counter` under `key`.
constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  constexpr int kNumRounds = 10;
  for (int round = 0; round < kNumRounds; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;  // the golden ratio
    key[1] += 0xBB67AE85;  // sqrt(3) - 1
  }
  return counter;
}

// The 64 random bits of the token at absolute index `position` of a thread with this seed.
constexpr uint64_t RandomBits(uint64_t seed, uint64_t position) {
  const std::array<uint32_t, 4> block =
      Philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return block[0] | (uint64_t{block[1]} << 32);
}

}  // namespace vivarium::engine
