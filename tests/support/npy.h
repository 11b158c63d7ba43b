// NumPy's .npy format, version 1.0, little-endian float32 in C order only.
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vivarium::test {

struct NpyArray {
  std::vector<int64_t> shape;
  std::vector<float> values;  // product(shape) of them
};

// Abort with a message when the file is missing or of another kind.
NpyArray ReadNpy(const std::string& path);
void WriteNpy(const std::string& path, const NpyArray& array);

}  // namespace vivarium::test
