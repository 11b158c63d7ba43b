#include "engine/model/fingerprint.h"

#include <xxhash.h>

#include <map>
#include <memory>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/tensor_table.h"
#include "engine/model/weight_reader.h"

namespace vivarium::engine {
namespace {

struct FreeState {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

class Hasher {
 public:
  Hasher() : state_(XXH3_createState()) { XXH3_128bits_reset(state_.get()); }

  // Length first, so that no two sequences of texts run together to the same bytes.
  void AddText(std::string_view text) {
    AddNumber(text.size());
    XXH3_128bits_update(state_.get(), text.data(), text.size());
  }
  void AddNumber(uint64_t number) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(number >> (8 * i));
    XXH3_128bits_update(state_.get(), bytes, sizeof(bytes));
  }
  void AddBytes(std::span<const std::byte> bytes) {
    AddNumber(bytes.size());
    XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
  }
  std::string Hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    return absl::StrCat(absl::Hex(hash.high64, absl::kZeroPad16),
                        absl::Hex(hash.low64, absl::kZeroPad16));
  }

 private:
  std::unique_ptr<XXH3_state_t, FreeState> state_;
};

bool IsUsed(std::string_view canonical_name, const ModelConfig& config) {
  if (canonical_name.starts_with(kHeadName)) return !config.tie_embeddings;
  return canonical_name.starts_with(kEmbeddingName) || canonical_name == kFinalNormName ||
         canonical_name.starts_with("backbone.layers.");
}

}  // namespace

std::string ModelFingerprint(const Checkpoint& checkpoint, const ModelConfig& config) {
  Hasher hasher;
  hasher.AddText("vivarium model 1");
  for (const int64_t dimension :
       {config.padded_vocab_size, config.d_model, config.d_inner, config.d_state, config.d_conv,
        config.dt_rank, static_cast<int64_t>(config.layers.size())}) {
    hasher.AddNumber(static_cast<uint64_t>(dimension));
  }
  for (const LayerKind kind : config.layers) hasher.AddNumber(static_cast<uint64_t>(kind));
  hasher.AddNumber(config.tie_embeddings ? 1 : 0);
  hasher.AddText(absl::StrCat(config.norm_eps));
  hasher.AddText(config.mixer_norms ? absl::StrCat(config.mixer_norm_eps) : std::string("none"));

  std::map<std::string, const TensorView*> used;
  for (const auto& [name, view] : checkpoint.tensors()) {
    const bool is_embedding = FindTensor(checkpoint, kEmbeddingName) == &view;
    const std::string canonical_name = is_embedding ? std::string(kEmbeddingName) : name;
    if (IsUsed(canonical_name, config)) used[canonical_name] = &view;
  }
  hasher.AddNumber(used.size());
  for (const auto& [canonical_name, view] : used) {
    hasher.AddText(canonical_name);
    hasher.AddText(kernels::DTypeName(view->dtype));
    hasher.AddText(ShapeText(view->shape));
    hasher.AddBytes(view->data);
    checkpoint.Release(*view);
  }
  return hasher.Hex();
}

}  // namespace vivarium::engine
