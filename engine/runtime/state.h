// The recurrent state as a value: where each layer's part lies in a slot (StateLayout), and a state
// with everything that a resume needs (StateSnapshot).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/runtime/sampling_params.h"
#include "kernels/dtype.h"

namespace vivarium::engine {

// One layer's part of a slot, e.g. "layers.3.ssm".
struct StatePart {
  std::string name;            // "layers.<i>.conv" or "layers.<i>.ssm"
  kernels::DType dtype;        // conv kF32; ssm kF32 or kBF16
  std::vector<int64_t> shape;  // conv [d_conv-1, d_inner]; ssm [ceil(d_inner/16), d_state, 16]
  uint64_t offset_bytes;       // from the slot's start, multiple of 64
  uint64_t size_bytes;         // product(shape) * DTypeBytes(dtype), without padding

  bool operator==(const StatePart&) const = default;
};

// Where each layer's part lies in a slot: one contiguous span per slot, parts in layer order, conv
// before ssm, padding between parts zero. The same for every backend and for the store.
struct StateLayout {
  static constexpr uint32_t kVersion = 1;
  uint32_t version = kVersion;
  uint64_t slot_bytes = 0;  // multiple of 64
  std::vector<StatePart> parts;

  bool operator==(const StateLayout&) const = default;
};

// Whether two layouts have the same parts but for their dtypes, each f32 or bf16: then a state of
// one becomes a state of the other by conversion (engine/runtime/state_convert.h).
bool AreConvertible(const StateLayout& a, const StateLayout& b);

// A token of a thread and where it came from.
struct TranscriptToken {
  int32_t id;
  bool is_output;  // sampled by the server; else given by the client

  bool operator==(const TranscriptToken&) const = default;
};

// What a state belongs to. States resume only where fingerprint and tokenizer_hash agree.
struct ModelIdentity {
  std::string fingerprint;     // Model::fingerprint()
  std::string tokenizer_hash;  // Tokenizer::content_hash(), "" without a tokenizer
  std::string numerics_id;     // backend, instruction-set path, weight dtype, kernel version

  bool operator==(const ModelIdentity&) const = default;
};

// A slot's bytes on the host, 64-byte aligned. Move-only.
class StateBuffer {
 public:
  StateBuffer() = default;
  // Zeroed. Aborts when the host has no memory left.
  explicit StateBuffer(uint64_t size_bytes);
  // Of any content, for whoever writes every byte: saves a pass over the memory.
  static StateBuffer ForOverwrite(uint64_t size_bytes);

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  uint64_t size() const { return size_bytes_; }
  std::span<const std::byte> span() const { return {data_.get(), size_bytes_}; }
  std::span<std::byte> span() { return {data_.get(), size_bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  uint64_t size_bytes_ = 0;
};

// A state: immutable once made, self-contained, move-only. Feeding `pending_token` to a model whose
// slot holds `slot`, at position `position`, gives the logits of the next token: the same bits as
// without the detour through the snapshot, within one numerics id.
struct StateSnapshot {
  ModelIdentity identity;
  StateLayout layout;
  StateBuffer slot;           // layout.slot_bytes bytes
  uint64_t position = 0;      // tokens consumed
  int32_t pending_token = 0;  // the thread's last token, not yet consumed
  SamplingParams sampling;    // in force when the state was made
  // The last min(position + 1, kRecentTokenWindow) tokens of the thread, oldest first, the pending
  // one included.
  std::vector<TranscriptToken> recent_tokens;
  std::string text_tail;  // incomplete UTF-8 of the last output token (at most 3 bytes)
  // Tokens of the thread from the parent's pending token (exclusive) to this pending token
  // (inclusive): parent position + transcript.size() == position; without a parent,
  // transcript.size() == position + 1.
  std::vector<TranscriptToken> transcript;
};

// A deep copy: costs slot.size() bytes of copying.
StateSnapshot CopySnapshot(const StateSnapshot& snapshot);

}  // namespace vivarium::engine
