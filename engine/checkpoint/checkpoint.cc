#include "engine/checkpoint/checkpoint.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/json_text.h"
#include "engine/checkpoint/malformed.h"
#include "engine/checkpoint/mapped_file.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/checkpoint/tensor_table.h"
#include "engine/checkpoint/torch_file.h"

namespace vivarium::engine {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kTorchFile = "pytorch_model.bin";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = 32 << 20;
constexpr size_t kMaxShards = 4096;

class MappedCheckpoint final : public Checkpoint {
 public:
  // Adds the tensors of `table`, views into `file`. A name may occur once only.
  absl::Status Add(std::unique_ptr<MappedFile> file, TensorTable table) {
    paths_.push_back(file->path());
    files_.push_back(std::move(file));
    for (auto& [name, view] : table.tensors) {
      const auto [entry, is_new] = tensors_.emplace(name, std::move(view));
      if (!is_new) {
        return MalformedField(paths_.back(), absl::StrCat("tensor ", Quoted(name)),
                              "it in one file only", absl::StrCat("it in ", entry->second.file));
      }
    }
    skipped_.merge(table.skipped);
    return absl::OkStatus();
  }

  const TensorView* Find(std::string_view name) const override {
    const auto entry = tensors_.find(name);
    return entry == tensors_.end() ? nullptr : &entry->second;
  }
  const std::map<std::string, TensorView, std::less<>>& tensors() const override {
    return tensors_;
  }
  const std::map<std::string, std::string, std::less<>>& skipped() const override {
    return skipped_;
  }
  void Release(const TensorView& view) const override { MappedFile::Release(view.data); }
  const std::vector<std::string>& files() const override { return paths_; }

 private:
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::vector<std::string> paths_;
  std::map<std::string, TensorView, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> skipped_;
};

std::string Join(const std::string& directory, std::string_view name) {
  std::string path = directory;
  if (!path.empty() && path.back() != '/') path += '/';
  path += name;
  return path;
}

using Parse = absl::StatusOr<TensorTable> (*)(std::span<const std::byte>, const std::string&);

absl::Status AddFile(const std::string& path, Parse parse, MappedCheckpoint* checkpoint) {
  absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<TensorTable> table = parse((*file)->bytes(), path);
  if (!table.ok()) return table.status();
  return checkpoint->Add(*std::move(file), *std::move(table));
}

// tensor name -> shard's file name, of the index file.
using WeightMap = std::map<std::string, std::string, std::less<>>;

absl::StatusOr<WeightMap> ReadIndex(const std::string& path) {
  absl::StatusOr<nlohmann::json> index = ReadJsonObject(path, kMaxIndexBytes);
  if (!index.ok()) return index.status();
  const auto field = index->find("weight_map");
  if (field == index->end() || !field->is_object()) {
    return MalformedField(path, "weight_map", "an object",
                          field == index->end() ? "none" : DescribeJson(*field));
  }
  if (field->size() > kMaxTensorsPerFile) {
    return MalformedField(path, "weight_map",
                          absl::StrCat("at most ", kMaxTensorsPerFile, " names"),
                          absl::StrCat(field->size()));
  }
  WeightMap weight_map;
  for (const auto& [name, shard] : field->items()) {
    // A shard lies beside its index: no other file can be read by way of an index.
    const std::string* shard_name = shard.get_ptr<const std::string*>();
    if (shard_name == nullptr || shard_name->empty() ||
        shard_name->find('/') != std::string::npos || shard_name->find('\0') != std::string::npos ||
        *shard_name == "." || *shard_name == "..") {
      return MalformedField(path, absl::StrCat("weight_map entry ", Quoted(name)),
                            "the name of a file in the same directory", DescribeJson(shard));
    }
    weight_map.emplace(name, *shard_name);
  }
  return weight_map;
}

// Every tensor must lie in the shard that the index says, and the index must name every tensor.
absl::Status CheckIndex(const std::string& index_path, const std::string& directory,
                        const WeightMap& weight_map, const Checkpoint& checkpoint) {
  for (const auto& [name, shard] : weight_map) {
    const TensorView* view = checkpoint.Find(name);
    if (view == nullptr && checkpoint.skipped().count(name) > 0) continue;
    const std::string expected = Join(directory, shard);
    if (view == nullptr || view->file != expected) {
      return MalformedField(
          index_path, absl::StrCat("tensor ", Quoted(name)),
          absl::StrCat("it in ", Quoted(expected)),
          view == nullptr ? "it in no shard" : absl::StrCat("it in ", view->file));
    }
  }
  for (const auto& [name, view] : checkpoint.tensors()) {
    if (weight_map.count(name) == 0) {
      return MalformedField(view.file, absl::StrCat("tensor ", Quoted(name)),
                            absl::StrCat("it named in ", index_path), "no entry");
    }
  }
  return absl::OkStatus();
}

absl::Status AddShards(const std::string& directory, const std::string& index_path,
                       MappedCheckpoint* checkpoint) {
  absl::StatusOr<WeightMap> weight_map = ReadIndex(index_path);
  if (!weight_map.ok()) return weight_map.status();
  std::map<std::string, bool> shards;
  for (const auto& [name, shard] : *weight_map) shards[shard] = true;
  if (shards.empty() || shards.size() > kMaxShards) {
    return MalformedField(index_path, "weight_map", absl::StrCat("1 to ", kMaxShards, " shards"),
                          absl::StrCat(shards.size()));
  }
  for (const auto& [shard, unused] : shards) {
    absl::Status status = AddFile(Join(directory, shard), ParseSafetensors, checkpoint);
    if (absl::IsNotFound(status)) {
      return MalformedField(index_path, "weight_map", absl::StrCat("the shard ", Quoted(shard)),
                            "no such file");
    }
    if (!status.ok()) return status;
  }
  return CheckIndex(index_path, directory, *weight_map, *checkpoint);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  auto checkpoint = std::make_unique<MappedCheckpoint>();
  absl::Status status = AddFile(Join(directory, kSingleFile), ParseSafetensors, checkpoint.get());
  if (absl::IsNotFound(status)) {
    status = AddShards(directory, Join(directory, kIndexFile), checkpoint.get());
  }
  if (absl::IsNotFound(status)) {
    status = AddFile(Join(directory, kTorchFile), ParseTorchFile, checkpoint.get());
  }
  if (absl::IsNotFound(status)) {
    return absl::NotFoundError(absl::StrCat(directory, ": no weight file: expected ",
                                            std::string(kSingleFile), ", ", std::string(kIndexFile),
                                            " or ", std::string(kTorchFile)));
  }
  if (!status.ok()) return status;
  return checkpoint;
}

}  // namespace vivarium::engine
