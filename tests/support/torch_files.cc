#include "tests/support/torch_files.h"

namespace vivarium::test {
namespace {

std::string Little(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i));
  return text;
}

std::string PickleInts(const std::vector<int64_t>& values) {
  std::string text = "(";
  for (const int64_t value : values) text += PickleInt(value);
  return text + "t";
}

const char* StorageType(kernels::DType dtype) {
  return dtype == kernels::DType::kF32    ? "torch FloatStorage"
         : dtype == kernels::DType::kBF16 ? "torch BFloat16Storage"
                                          : "torch HalfStorage";
}

}  // namespace

std::string MakeZip(const std::vector<ZipMember>& members, bool zip64) {
  constexpr uint64_t kAlignment = 64;
  std::string zip;
  std::string directory;
  for (const ZipMember& member : members) {
    const uint64_t local_offset = zip.size();
    const uint64_t size = member.data.size();
    const uint64_t unpadded = local_offset + 30 + member.name.size() + 4;
    const uint64_t padding = (kAlignment - unpadded % kAlignment) % kAlignment;
    zip += "PK\x03\x04" + std::string("\0\0\0\0\0\0\0\0\0\0", 10) + Little(0, 4) +
           Little(zip64 ? 0xFFFFFFFF : size, 4) + Little(zip64 ? 0xFFFFFFFF : size, 4) +
           Little(member.name.size(), 2) + Little(4 + padding, 2) + member.name + "FB" +
           Little(padding, 2) + std::string(padding, 'Z') + member.data;
    const std::string extra = zip64 ? Little(1, 2) + Little(24, 2) + Little(size, 8) +
                                          Little(size, 8) + Little(local_offset, 8)
                                    : std::string();
    directory += "PK\x01\x02" + std::string("\0\0\0\0\0\0\0\0\0\0\0\0", 12) + Little(0, 4) +
                 Little(zip64 ? 0xFFFFFFFF : size, 4) + Little(zip64 ? 0xFFFFFFFF : size, 4) +
                 Little(member.name.size(), 2) + Little(extra.size(), 2) +
                 std::string("\0\0\0\0\0\0\0\0\0\0", 10) +
                 Little(zip64 ? 0xFFFFFFFF : local_offset, 4) + member.name + extra;
  }
  const uint64_t directory_offset = zip.size();
  zip += directory;
  if (zip64) {
    const uint64_t record_offset = zip.size();
    zip += "PK\x06\x06" + Little(44, 8) + std::string(12, '\0') + Little(members.size(), 8) +
           Little(members.size(), 8) + Little(directory.size(), 8) + Little(directory_offset, 8);
    zip += "PK\x06\x07" + Little(0, 4) + Little(record_offset, 8) + Little(1, 4);
  }
  return zip + "PK\x05\x06" + Little(0, 4) + Little(zip64 ? 0xFFFF : members.size(), 2) +
         Little(zip64 ? 0xFFFF : members.size(), 2) +
         Little(zip64 ? 0xFFFFFFFF : directory.size(), 4) +
         Little(zip64 ? 0xFFFFFFFF : directory_offset, 4) + Little(0, 2);
}

std::string PickleInt(int64_t value) {
  if (value >= 0 && value < 256) return "K" + Little(static_cast<uint64_t>(value), 1);
  if (value >= 0 && value < 65536) return "M" + Little(static_cast<uint64_t>(value), 2);
  if (value >= INT32_MIN && value <= INT32_MAX) {
    return "J" + Little(static_cast<uint64_t>(value), 4);
  }
  return "\x8a\x08" + Little(static_cast<uint64_t>(value), 8);
}

std::string PickleText(std::string_view text) {
  return "X" + Little(text.size(), 4) + std::string(text);
}

std::string PickleGlobal(std::string_view module, std::string_view name) {
  return "c" + std::string(module) + "\n" + std::string(name) + "\n";
}

std::vector<int64_t> ContiguousStrides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i > 1; --i) strides[i - 2] = strides[i - 1] * shape[i - 1];
  return strides;
}

std::string MakePickle(const std::vector<PickleEntry>& entries) {
  const std::string ordered_dict = PickleGlobal("collections", "OrderedDict") + ")R";
  std::string pickle = "\x80\x02" + ordered_dict + "(";
  for (const PickleEntry& entry : entries) {
    const size_t space = entry.storage_type.find(' ');
    pickle +=
        PickleText(entry.name) + PickleGlobal("torch._utils", "_rebuild_tensor_v2") + "((" +
        PickleText("storage") +
        PickleGlobal(entry.storage_type.substr(0, space), entry.storage_type.substr(space + 1)) +
        PickleText(entry.storage_key) + PickleText("cpu") + PickleInt(entry.storage_count) + "tQ" +
        PickleInt(entry.offset) + PickleInts(entry.shape) + PickleInts(entry.strides) + "\x89" +
        ordered_dict + "tR";
  }
  return pickle + "u}" + PickleText("_metadata") + ordered_dict + "sb.";
}

std::vector<PickleEntry> TorchEntries(const std::vector<RandomTensor>& tensors) {
  std::vector<PickleEntry> entries;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const RandomTensor& tensor = tensors[i];
    entries.push_back({tensor.name, StorageType(tensor.dtype), std::to_string(i), tensor.Count(), 0,
                       tensor.shape, ContiguousStrides(tensor.shape)});
  }
  return entries;
}

std::vector<ZipMember> TorchMembers(const std::vector<RandomTensor>& tensors, std::string pickle) {
  std::vector<ZipMember> members = {{"archive/data.pkl", std::move(pickle)},
                                    {"archive/byteorder", "little"}};
  for (size_t i = 0; i < tensors.size(); ++i) {
    members.push_back(
        {"archive/data/" + std::to_string(i), EncodeValues(tensors[i].Values(), tensors[i].dtype)});
  }
  members.push_back({"archive/version", "3\n"});
  return members;
}

std::string MakeTorchFile(const std::vector<RandomTensor>& tensors) {
  return MakeZip(TorchMembers(tensors, MakePickle(TorchEntries(tensors))), false);
}

}  // namespace vivarium::test
