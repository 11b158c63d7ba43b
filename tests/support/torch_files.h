// Writes what torch.save writes of a state dict, and variations of it that no one should accept.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/mamba_files.h"

namespace vivarium::test {

struct ZipMember {
  std::string name;
  std::string data;
};
// Members stored uncompressed, each's data at a multiple of 64 bytes as torch pads it. CRCs are 0.
// With `zip64`, sizes and offsets stand in zip64 records, as in archives above 4 GiB.
std::string MakeZip(const std::vector<ZipMember>& members, bool zip64);

// A tensor as the pickle describes it.
struct PickleEntry {
  std::string name;
  std::string storage_type;  // "torch FloatStorage"
  std::string storage_key;
  int64_t storage_count;
  int64_t offset;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
};
std::vector<int64_t> ContiguousStrides(const std::vector<int64_t>& shape);

// Protocol 2, without memo: an OrderedDict of the entries, in order, and torch's `_metadata`.
std::string MakePickle(const std::vector<PickleEntry>& entries);
// Opcodes of single values, for pickles made by hand.
std::string PickleInt(int64_t value);
std::string PickleText(std::string_view text);
std::string PickleGlobal(std::string_view module, std::string_view name);

// The entries and members of `tensors`: one storage each, named "0", "1", ...
std::vector<PickleEntry> TorchEntries(const std::vector<RandomTensor>& tensors);
std::vector<ZipMember> TorchMembers(const std::vector<RandomTensor>& tensors, std::string pickle);
std::string MakeTorchFile(const std::vector<RandomTensor>& tensors);

}  // namespace vivarium::test
