#include "tests/support/npy.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "tests/support/temp_dir.h"

namespace vivarium::test {
namespace {

constexpr size_t kPrefixBytes = 10;  // magic, version, u16 header length

void Expect(bool condition, const std::string& path, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s: expected %s\n", path.c_str(), what);
  std::abort();
}

}  // namespace

NpyArray ReadNpy(const std::string& path) {
  const std::string file = ReadFile(path);
  Expect(
      file.size() >= kPrefixBytes && file.compare(0, 8, std::string("\x93NUMPY\x01\x00", 8)) == 0,
      path, "npy version 1.0");
  const size_t header_bytes =
      static_cast<unsigned char>(file[8]) + 256u * static_cast<unsigned char>(file[9]);
  Expect(file.size() >= kPrefixBytes + header_bytes, path, "a whole header");
  const std::string header = file.substr(kPrefixBytes, header_bytes);
  Expect(header.find("'<f4'") != std::string::npos &&
             header.find("'fortran_order': False") != std::string::npos,
         path, "little-endian float32 in C order");
  constexpr char kShape[] = "'shape': (";
  const size_t begin = header.find(kShape);
  const size_t end = header.find(')', begin);
  Expect(begin != std::string::npos && end != std::string::npos, path, "a shape");
  const size_t first = begin + sizeof(kShape) - 1;
  NpyArray array;
  size_t count = 1;
  std::istringstream extents(header.substr(first, end - first));
  for (std::string extent; std::getline(extents, extent, ',');) {
    if (extent.find_first_of("0123456789") == std::string::npos) continue;
    array.shape.push_back(std::stoll(extent));
    count *= static_cast<size_t>(array.shape.back());
  }
  Expect(file.size() == kPrefixBytes + header_bytes + count * sizeof(float), path,
         "as many bytes as the shape says");
  array.values.resize(count);
  if (count > 0) {
    std::memcpy(array.values.data(), file.data() + kPrefixBytes + header_bytes,
                count * sizeof(float));
  }
  return array;
}

void WriteNpy(const std::string& path, const NpyArray& array) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const int64_t extent : array.shape) header += std::to_string(extent) + ",";
  header += "), }";
  while ((kPrefixBytes + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string file("\x93NUMPY\x01\x00", 8);
  file += static_cast<char>(header.size() % 256);
  file += static_cast<char>(header.size() / 256);
  file += header;
  file.append(reinterpret_cast<const char*>(array.values.data()),
              array.values.size() * sizeof(float));
  WriteFile(path, file);
}

}  // namespace vivarium::test
