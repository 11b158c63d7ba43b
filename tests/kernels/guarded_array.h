// Arrays for kernel tests: NaN-filled, with guard zones that show writes out of bounds, and exactly
// sized on the heap so that AddressSanitizer shows reads.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace vivarium::kernels {

// `size` floats, each NaN until set, between two guard zones. Checks the zones when destroyed.
class GuardedArray {
 public:
  explicit GuardedArray(int64_t size) : size_(size) {
    storage_.assign(static_cast<size_t>(size) + 2 * kGuard,
                    std::numeric_limits<float>::quiet_NaN());
    for (int64_t i = 0; i < kGuard; ++i) {
      std::memcpy(&storage_[static_cast<size_t>(i)], &kPattern, sizeof(kPattern));
      std::memcpy(&storage_[static_cast<size_t>(kGuard + size_ + i)], &kPattern, sizeof(kPattern));
    }
  }
  GuardedArray(GuardedArray&&) = default;
  ~GuardedArray() { ExpectGuardsIntact(); }

  float* data() { return storage_.data() + kGuard; }
  const float* data() const { return storage_.data() + kGuard; }
  int64_t size() const { return size_; }
  float& operator[](int64_t i) { return data()[i]; }
  float operator[](int64_t i) const { return data()[i]; }

  void ExpectGuardsIntact() const {
    if (storage_.empty()) return;  // moved from
    for (int64_t i = 0; i < kGuard; ++i) {
      EXPECT_TRUE(IsGuard(i)) << "written " << kGuard - i << " before the array";
      EXPECT_TRUE(IsGuard(kGuard + size_ + i)) << "written " << i << " after the array";
    }
  }

 private:
  bool IsGuard(int64_t i) const {
    uint32_t bits;
    std::memcpy(&bits, &storage_[static_cast<size_t>(i)], sizeof(bits));
    return bits == kPattern;
  }
  static constexpr int64_t kGuard = 32;
  static constexpr uint32_t kPattern = 0x7fc0dead;  // a NaN that no arithmetic makes
  int64_t size_;
  std::vector<float> storage_;
};

// True when both arrays hold the same bits (NaN payloads included).
inline bool SameBits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

// Deterministic random values.
class RandomValues {
 public:
  explicit RandomValues(uint64_t seed) : engine_(seed) {}
  float Normal(float scale = 1.0f) { return scale * normal_(engine_); }
  float Uniform(float low, float high) { return low + (high - low) * uniform_(engine_); }
  int64_t Below(int64_t limit) { return static_cast<int64_t>(engine_() % limit); }
  void Fill(float* out, int64_t count, float scale = 1.0f) {
    for (int64_t i = 0; i < count; ++i) out[i] = Normal(scale);
  }
  // Fills [rows, cols] of a matrix with `stride`; what lies between rows stays as it is (NaN).
  void FillRows(float* out, int64_t rows, int64_t cols, int64_t stride, float scale = 1.0f) {
    for (int64_t r = 0; r < rows; ++r) Fill(out + r * stride, cols, scale);
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
  std::uniform_real_distribution<float> uniform_{0.0f, 1.0f};
};

}  // namespace vivarium::kernels
