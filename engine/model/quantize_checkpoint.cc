#include "engine/model/quantize_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/json_text.h"
#include "engine/checkpoint/malformed.h"
#include "engine/checkpoint/model_config.h"
#include "engine/model/fingerprint.h"
#include "engine/model/weight_reader.h"
#include "kernels/quantize.h"

namespace vivarium::engine {
namespace {

namespace fs = std::filesystem;
using kernels::DType;

constexpr size_t kMaxConfigBytes = 4 << 20;
constexpr int64_t kBlockElements = 2 << 20;  // quantised at a time
constexpr char kWeightFile[] = "model.safetensors";
constexpr char kConfigFile[] = "config.json";
constexpr char kQuantizationField[] = "quantization_config";
constexpr char kQuantization[] = R"({"quant_method": "vivarium-int8", "bits": 8, "scales": "row"})";

absl::Status WriteError(const std::string& path) {
  return absl::UnavailableError(
      absl::StrCat("cannot write ", path, ": ", absl::ErrnoToStatus(errno, "").message()));
}

// A tensor of the file to be written.
struct Planned {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  const TensorView* source;
  bool is_scale;        // of `source`'s rows
  uint64_t offset = 0;  // in the file

  bool is_quantized() const { return dtype == DType::kI8; }
  uint64_t bytes() const {
    uint64_t count = 1;
    for (const int64_t extent : shape) count *= static_cast<uint64_t>(extent);
    return count * kernels::DTypeBytes(dtype);
  }
};

bool IsProjection(std::string_view name, const ModelConfig& config) {
  if (name == kEmbeddingName) return config.tie_embeddings;
  if (name == kHeadName) return !config.tie_embeddings;
  return name.starts_with("backbone.layers.") &&
         (name.ends_with(".mixer.in_proj.weight") || name.ends_with(".mixer.out_proj.weight"));
}

// The largest elements first, so that every tensor lies at its natural alignment.
std::vector<Planned> PlanTensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::vector<Planned> plan;
  for (const auto& [name, view] : checkpoint.tensors()) {
    const bool is_embedding = FindTensor(checkpoint, kEmbeddingName) == &view;
    const std::string canonical_name = is_embedding ? std::string(kEmbeddingName) : name;
    if (IsProjection(canonical_name, config) && view.shape.size() == 2) {
      plan.push_back({canonical_name, DType::kI8, view.shape, &view, false});
      plan.push_back({canonical_name + kScaleSuffix, DType::kF32, {view.shape[0]}, &view, true});
    } else {
      plan.push_back({canonical_name, view.dtype, view.shape, &view, false});
    }
  }
  std::stable_sort(plan.begin(), plan.end(), [](const Planned& a, const Planned& b) {
    return kernels::DTypeBytes(a.dtype) > kernels::DTypeBytes(b.dtype);
  });
  return plan;
}

const char* FormatName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI8:
      return "I8";
  }
  return "";
}

// The file's length and header; sets the offsets of `plan`.
std::string MakeHeader(std::vector<Planned>* plan) {
  constexpr size_t kAlignment = 8;
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}, {"quantization", "vivarium-int8"}}}};
  uint64_t end = 0;
  for (Planned& tensor : *plan) {
    tensor.offset = end;
    end += tensor.bytes();
    header[tensor.name] = {{"dtype", FormatName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {tensor.offset, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  std::string length(sizeof(uint64_t), '\0');
  for (size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  }
  std::string whole = length + text;
  for (Planned& tensor : *plan) tensor.offset += whole.size();
  return whole;
}

// A file that is written at any offset.
class WeightFile {
 public:
  explicit WeightFile(std::string path)
      : path_(std::move(path)),
        fd_(open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)),
        open_error_(fd_ < 0 ? errno : 0) {}
  ~WeightFile() {
    if (fd_ >= 0) close(fd_);
  }
  WeightFile(const WeightFile&) = delete;
  WeightFile& operator=(const WeightFile&) = delete;

  absl::Status Write(const void* bytes, size_t size, uint64_t offset) {
    if (fd_ < 0) {
      errno = open_error_;
      return WriteError(path_);
    }
    const auto* next = static_cast<const char*>(bytes);
    while (size > 0) {
      const ssize_t written = pwrite(fd_, next, size, static_cast<off_t>(offset));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return WriteError(path_);
      next += written;
      size -= static_cast<size_t>(written);
      offset += static_cast<uint64_t>(written);
    }
    return absl::OkStatus();
  }
  absl::Status Sync() { return fsync(fd_) == 0 ? absl::OkStatus() : WriteError(path_); }

 private:
  const std::string path_;
  const int fd_;
  const int open_error_;
};

absl::Status WriteQuantized(const Planned& matrix, uint64_t scale_offset, WeightFile* file) {
  const int64_t rows = matrix.shape[0], cols = matrix.shape[1];
  const int64_t block = std::max<int64_t>(kBlockElements / std::max<int64_t>(cols, 1), 1);
  std::vector<int8_t> q(static_cast<size_t>(std::min(block, rows) * cols));
  std::vector<float> scales(static_cast<size_t>(std::min(block, rows)));
  const TensorView& source = *matrix.source;
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t count = std::min(block, rows - begin);
    kernels::QuantizeRows(
        source.data.data() + static_cast<size_t>(begin * cols) * kernels::DTypeBytes(source.dtype),
        source.dtype, count, cols, q.data(), scales.data());
    for (int64_t r = 0; r < count; ++r) {
      if (std::isfinite(scales[static_cast<size_t>(r)])) continue;
      return MalformedFile(source.file,
                           absl::StrCat("tensor ", Quoted(matrix.name), ", row ", begin + r),
                           source.file_offset, "finite values", "NaN or infinity");
    }
    absl::Status status = file->Write(q.data(), static_cast<size_t>(count * cols),
                                      matrix.offset + static_cast<uint64_t>(begin * cols));
    if (!status.ok()) return status;
    status = file->Write(scales.data(), static_cast<size_t>(count) * sizeof(float),
                         scale_offset + static_cast<uint64_t>(begin) * sizeof(float));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status WriteWeights(const Checkpoint& checkpoint, const std::vector<Planned>& plan,
                          const std::string& header, const std::string& path) {
  WeightFile file(path);
  absl::Status status = file.Write(header.data(), header.size(), 0);
  for (const Planned& tensor : plan) {
    if (!status.ok()) return status;
    if (tensor.is_scale) continue;  // written with its matrix
    if (tensor.is_quantized()) {
      const auto scale = std::find_if(plan.begin(), plan.end(), [&](const Planned& other) {
        return other.is_scale && other.source == tensor.source;
      });
      status = WriteQuantized(tensor, scale->offset, &file);
    } else {
      status = file.Write(tensor.source->data.data(), tensor.source->data.size(), tensor.offset);
    }
    checkpoint.Release(*tensor.source);
  }
  return status.ok() ? file.Sync() : status;
}

// The directory's other files; no error when it holds folders (they are left out).
absl::StatusOr<std::vector<fs::path>> SideFiles(const std::string& source) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator entry(source, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    const bool is_weights =
        name.ends_with(".safetensors") || name.ends_with(".bin") || name.ends_with(".index.json");
    std::error_code ignored;
    if (is_weights || name == kConfigFile || !fs::is_regular_file(entry->path(), ignored)) continue;
    const uint64_t bytes = fs::file_size(entry->path(), ignored);
    if (bytes > kMaxSideFileBytes || files.size() == kMaxSideFiles) {
      return absl::InvalidArgumentError(
          absl::StrCat(entry->path().string(), ": expected at most ", kMaxSideFiles,
                       " files beside the weights, of at most ", kMaxSideFileBytes,
                       " bytes each, found one of ", bytes));
    }
    files.push_back(entry->path());
  }
  if (error) return absl::UnavailableError(absl::StrCat(source, ": ", error.message()));
  return files;
}

// config.json's text with the field put first: what else it says stays as it is, byte for byte.
absl::StatusOr<std::string> QuantizedConfig(const std::string& path) {
  absl::StatusOr<nlohmann::json> config = ReadJsonObject(path, kMaxConfigBytes);
  if (!config.ok()) return config.status();
  if (const auto field = config->find(kQuantizationField); field != config->end()) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", kQuantizationField,
                                                      ": expected none (a model that is not "
                                                      "quantised), found ",
                                                      DescribeJson(*field)));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const size_t brace = text.find('{');
  text.insert(brace + 1, absl::StrCat("\n  \"", kQuantizationField, "\": ", kQuantization,
                                      config->empty() ? "" : ","));
  return text;
}

absl::Status CheckDestination(const std::string& destination, const std::string& part,
                              uint64_t needed_bytes) {
  std::error_code error;
  for (const std::string& path : {destination, part}) {
    if (fs::symlink_status(path, error).type() != fs::file_type::not_found) {
      return absl::AlreadyExistsError(
          absl::StrCat(path, ": expected a directory that does not exist yet"));
    }
  }
  const fs::path parent = fs::absolute(destination).parent_path();
  const fs::space_info space = fs::space(parent, error);
  if (error) return absl::NotFoundError(absl::StrCat(parent.string(), ": ", error.message()));
  if (space.available < needed_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        parent.string(), ": ", needed_bytes, " bytes are needed, ", space.available, " are free"));
  }
  return absl::OkStatus();
}

absl::Status WriteAll(const Checkpoint& checkpoint, const std::vector<Planned>& plan,
                      const std::string& header, const std::string& config,
                      const std::vector<fs::path>& side_files, const std::string& directory) {
  std::error_code error;
  if (!fs::create_directory(directory, error)) {
    return absl::UnavailableError(
        absl::StrCat("cannot make directory ", directory, ": ", error.message()));
  }
  for (const fs::path& file : side_files) {
    fs::copy_file(file, fs::path(directory) / file.filename(), error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("cannot copy ", file.string(), ": ", error.message()));
    }
  }
  WeightFile config_file(absl::StrCat(directory, "/", kConfigFile));
  if (absl::Status status = config_file.Write(config.data(), config.size(), 0); !status.ok()) {
    return status;
  }
  if (absl::Status status = config_file.Sync(); !status.ok()) return status;
  return WriteWeights(checkpoint, plan, header, absl::StrCat(directory, "/", kWeightFile));
}

// Of what was written, read as anyone will read it.
absl::StatusOr<std::string> ReadFingerprint(const std::string& directory) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<ModelConfig> config = LoadModelConfig(directory, **checkpoint);
  if (!config.ok()) return config.status();
  return ModelFingerprint(**checkpoint, *config);
}

}  // namespace

absl::StatusOr<QuantizedCheckpoint> QuantizeCheckpoint(const std::string& source,
                                                       const std::string& destination) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(source);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<ModelConfig> config = LoadModelConfig(source, **checkpoint);
  if (!config.ok()) return config.status();
  QuantizedCheckpoint result{};
  for (const auto& [name, view] : (*checkpoint)->tensors()) {
    if (view.dtype == DType::kI8) {
      return absl::FailedPreconditionError(
          absl::StrCat(view.file, ": tensor ", Quoted(name),
                       ": expected F32, BF16 or F16, found I8: quantised already"));
    }
    result.source_bytes += view.data.size();
  }
  absl::StatusOr<std::string> config_text = QuantizedConfig(absl::StrCat(source, "/", kConfigFile));
  if (!config_text.ok()) return config_text.status();
  absl::StatusOr<std::vector<fs::path>> side_files = SideFiles(source);
  if (!side_files.ok()) return side_files.status();

  std::vector<Planned> plan = PlanTensors(**checkpoint, *config);
  const std::string header = MakeHeader(&plan);
  for (const Planned& tensor : plan) {
    result.bytes += tensor.bytes();
    result.num_quantized += tensor.is_quantized() ? 1 : 0;
  }
  std::string path = destination;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::string part = path + ".part";
  absl::Status status =
      CheckDestination(path, part, result.bytes + header.size() + config_text->size());
  if (!status.ok()) return status;

  std::error_code error;
  status = WriteAll(**checkpoint, plan, header, *config_text, *side_files, part);
  if (status.ok()) {
    absl::StatusOr<std::string> fingerprint = ReadFingerprint(part);
    status = fingerprint.status();
    if (fingerprint.ok()) result.fingerprint = *std::move(fingerprint);
  }
  if (status.ok()) {
    fs::rename(part, path, error);
    if (error) {
      status = absl::UnavailableError(absl::StrCat("cannot make ", path, ": ", error.message()));
    }
  }
  if (!status.ok()) {
    fs::remove_all(part, error);
    return status;
  }
  return result;
}

}  // namespace vivarium::engine
