// Compares a kernel's output with a Reference, and records how near it came.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "gtest/gtest.h"
#include "tests/kernels/reference.h"

namespace vivarium::kernels {

// Expects |actual[r * stride + c] - value| <= tolerance * magnitude + tiny for all r < rows, c <
// cols of a reference [rows, cols], where tiny covers results that are subnormal. Reports the worst
// one.
inline void ExpectNear(const float* actual, int64_t stride, const Reference& reference,
                       int64_t rows, int64_t cols, double tolerance, const std::string& what) {
  constexpr double kTiny = 1e-37;
  double worst = 0.0;
  std::string where = "nowhere";
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const auto i = static_cast<size_t>(r * cols + c);
      const double found = actual[r * stride + c];
      const double error = std::abs(found - reference.value[i]);
      const double ratio = error / (tolerance * reference.magnitude[i] + kTiny);
      if (ratio <= worst) continue;  // false for NaN
      worst = ratio;
      where = "[" + std::to_string(r) + ", " + std::to_string(c) + "]: expected " +
              std::to_string(reference.value[i]) + ", found " + std::to_string(found);
      if (std::isnan(ratio)) break;
    }
    if (std::isnan(worst)) break;
  }
  EXPECT_LE(worst, 1.0) << what << " times the tolerance " << tolerance << " at " << where;
  if (std::getenv("VIVARIUM_PRINT_ERRORS") != nullptr) {
    std::printf("%s: %.3g of the tolerance\n", what.c_str(), worst);
  }
}

}  // namespace vivarium::kernels
