#include "tests/kernels/staged_backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace vivarium::kernels {
namespace {

// Host memory that an op may touch; overlapping ones travel as one.
struct Extent {
  uintptr_t begin, end;
};

// The operands of one op, on their way to the device and back.
class Staging {
 public:
  explicit Staging(Backend* device) : device_(device) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    device_->Synchronize();
    for (const Buffer& buffer : buffers_) BringBack(buffer);
  }

  // Names an operand of `count` elements; null and empty ones are none.
  template <typename T>
  void Add(const T* host, int64_t count) {
    if (host == nullptr || count <= 0) return;
    const auto begin = reinterpret_cast<uintptr_t>(host);
    extents_.push_back({begin, begin + static_cast<size_t>(count) * sizeof(T)});
  }
  template <typename T>
  void AddRows(const T* host, int64_t rows, int64_t columns, int64_t stride) {
    if (rows > 0) Add(host, (rows - 1) * stride + columns);
  }
  // Slots 0 to the last one that a segment names.
  template <typename T>
  void AddSlots(const T* states, int64_t slot_stride, int64_t slot_elements,
                const Segment* segments, int64_t num_segments) {
    int64_t num_slots = 0;
    for (int64_t i = 0; i < num_segments; ++i) {
      num_slots =
          std::max<int64_t>(num_slots, std::max(segments[i].read_slot, segments[i].write_slot) + 1);
    }
    AddRows(states, num_slots, slot_elements, slot_stride);
  }
  // The same for states of `dtype`, f32 or bf16.
  void AddSlots(const void* states, DType dtype, int64_t slot_stride, int64_t slot_elements,
                const Segment* segments, int64_t num_segments) {
    if (dtype == DType::kBF16) {
      AddSlots(static_cast<const uint16_t*>(states), slot_stride, slot_elements, segments,
               num_segments);
    } else {
      AddSlots(static_cast<const float*>(states), slot_stride, slot_elements, segments,
               num_segments);
    }
  }

  // Call when all are named.
  void Send() {
    std::sort(extents_.begin(), extents_.end(),
              [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    for (const Extent& extent : extents_) {
      if (!buffers_.empty() && extent.begin <= buffers_.back().host.end) {
        Extent& last = buffers_.back().host;
        last.end = std::max(last.end, extent.end);
      } else {
        buffers_.push_back({extent, nullptr, nullptr});
      }
    }
    for (Buffer& buffer : buffers_) Send(&buffer);
  }

  // Where an operand that was named lies on the device; null for one that is none.
  template <typename T>
  T* At(T* host) const {
    const auto address = reinterpret_cast<uintptr_t>(host);
    for (const Buffer& buffer : buffers_) {
      if (address >= buffer.host.begin && address < buffer.host.end) {
        return reinterpret_cast<T*>(buffer.data + (address - buffer.host.begin));
      }
    }
    return nullptr;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr unsigned char kPattern = 0xA5;
  struct Buffer {
    Extent host;
    void* memory;         // guard, the extent, guard
    unsigned char* data;  // aligned as the host's memory is, to kGuard
    size_t bytes() const { return host.end - host.begin; }
    const void* source() const { return reinterpret_cast<const void*>(host.begin); }
    size_t before() const {
      return static_cast<size_t>(data - static_cast<unsigned char*>(memory));
    }
  };

  void Send(Buffer* buffer) {
    const size_t all = buffer->bytes() + 3 * kGuard;
    buffer->memory = device_->Allocate(all);
    ASSERT_NE(buffer->memory, nullptr);
    const std::vector<unsigned char> pattern(all, kPattern);
    device_->CopyToDevice(buffer->memory, pattern.data(), all);
    const auto start = reinterpret_cast<uintptr_t>(buffer->memory) + kGuard;
    const size_t shift = (buffer->host.begin - start) % kGuard;
    buffer->data = reinterpret_cast<unsigned char*>(start + shift);
    device_->CopyToDevice(buffer->data, buffer->source(), buffer->bytes());
  }
  void BringBack(const Buffer& buffer) {
    std::vector<unsigned char> all(buffer.bytes() + 3 * kGuard);
    device_->CopyToHost(all.data(), buffer.memory, all.size());
    const auto begin = all.begin() + static_cast<ptrdiff_t>(buffer.before());
    const auto end = begin + static_cast<ptrdiff_t>(buffer.bytes());
    const auto intact = [](unsigned char byte) { return byte == kPattern; };
    EXPECT_TRUE(std::all_of(all.begin(), begin, intact)) << "an op wrote before an operand";
    EXPECT_TRUE(std::all_of(end, all.end(), intact)) << "an op wrote after an operand";
    // Operands that only are read may lie in constant memory: what did not change stays untouched.
    if (std::memcmp(buffer.source(), &*begin, buffer.bytes()) != 0) {
      std::memcpy(reinterpret_cast<void*>(buffer.host.begin), &*begin, buffer.bytes());
    }
    device_->Free(buffer.memory);
  }

  Backend* const device_;
  std::vector<Extent> extents_;
  std::vector<Buffer> buffers_;
};

int64_t RowsOf(const Segment* segments, int64_t num_segments) {
  int64_t rows = 0;
  for (int64_t i = 0; i < num_segments; ++i) {
    rows = std::max<int64_t>(rows, segments[i].token_begin + segments[i].num_tokens);
  }
  return rows;
}

int64_t TiledFloats(int64_t channels, int64_t d_state) {
  return (channels + kChannelTile - 1) / kChannelTile * kChannelTile * d_state;
}

class StagedBackend final : public Backend {
 public:
  explicit StagedBackend(std::unique_ptr<Backend> device) : on_(std::move(device)) {}

  std::string_view device() const override { return on_->device(); }
  std::string_view isa() const override { return on_->isa(); }
  int num_threads() const override { return on_->num_threads(); }
  std::string numerics_name() const override { return on_->numerics_name(); }
  void* Allocate(size_t bytes) override { return on_->Allocate(bytes); }
  void Free(void* device_ptr) override { on_->Free(device_ptr); }
  void CopyToDevice(void* device_dst, const void* host_src, size_t bytes) override {
    on_->CopyToDevice(device_dst, host_src, bytes);
  }
  void CopyToHost(void* host_dst, const void* device_src, size_t bytes) override {
    on_->CopyToHost(host_dst, device_src, bytes);
  }
  void CopyOnDevice(void* device_dst, const void* device_src, size_t bytes) override {
    on_->CopyOnDevice(device_dst, device_src, bytes);
  }
  void Zero(void* device_ptr, size_t bytes) override { on_->Zero(device_ptr, bytes); }
  void Synchronize() override { on_->Synchronize(); }
  std::unique_ptr<PackedMatrix> Pack(const void* w, DType from, int64_t rows, int64_t cols,
                                     DType to) override {
    return on_->Pack(w, from, rows, cols, to);
  }
  std::unique_ptr<PackedMatrix> PackInt8(const int8_t* q, const float* row_scales, int64_t rows,
                                         int64_t cols) override {
    return on_->PackInt8(q, row_scales, rows, cols);
  }

  void EmbeddingGather(const EmbeddingGatherParams& params) override;
  void RmsNorm(const RmsNormParams& params) override;
  void Linear(const LinearParams& params) override;
  void CausalConv1d(const CausalConv1dParams& params) override;
  void SelectiveScan(const SelectiveScanParams& params) override;
  void GatherRows(const GatherRowsParams& params) override;
  void SampleTokens(const SampleTokensParams& params) override;
  bool MambaDecode(const MambaDecodeParams& params) override;
  bool NormLinear(const NormLinearParams& params) override;

 private:
  const std::unique_ptr<Backend> on_;
};

void StagedBackend::EmbeddingGather(const EmbeddingGatherParams& params) {
  EmbeddingGatherParams p = params;
  Staging staging(on_.get());
  staging.Add(p.token_ids, p.num_tokens);
  staging.Add(p.out, p.num_tokens * p.table->cols());
  staging.Send();
  p.token_ids = staging.At(p.token_ids);
  p.out = staging.At(p.out);
  on_->EmbeddingGather(p);
}

void StagedBackend::RmsNorm(const RmsNormParams& params) {
  RmsNormParams p = params;
  Staging staging(on_.get());
  staging.AddRows(p.x, p.num_tokens, p.channels, p.x_stride);
  staging.Add(p.residual, p.num_tokens * p.channels);
  staging.Add(p.weight, p.channels);
  staging.AddRows(p.out, p.num_tokens, p.channels, p.out_stride);
  staging.Send();
  p.x = staging.At(p.x);
  p.residual = staging.At(p.residual);
  p.weight = staging.At(p.weight);
  p.out = staging.At(p.out);
  on_->RmsNorm(p);
}

void StagedBackend::Linear(const LinearParams& params) {
  LinearParams p = params;
  Staging staging(on_.get());
  staging.AddRows(p.x, p.num_tokens, p.weight->cols(), p.x_stride);
  staging.Add(p.bias, p.weight->rows());
  staging.AddRows(p.out, p.num_tokens, p.weight->rows(), p.out_stride);
  staging.Send();
  p.x = staging.At(p.x);
  p.bias = staging.At(p.bias);
  p.out = staging.At(p.out);
  on_->Linear(p);
}

void StagedBackend::CausalConv1d(const CausalConv1dParams& params) {
  CausalConv1dParams p = params;
  Staging staging(on_.get());
  const int64_t rows = RowsOf(p.segments, p.num_segments);
  staging.AddRows(p.x, rows, p.channels, p.x_stride);
  staging.Add(p.weight, p.width * p.channels);
  staging.Add(p.bias, p.channels);
  staging.AddSlots(p.states, p.slot_stride, (p.width - 1) * p.channels, p.segments, p.num_segments);
  staging.AddRows(p.out, rows, p.channels, p.out_stride);
  staging.Add(p.segments, p.num_segments);
  staging.Send();
  p.x = staging.At(p.x);
  p.weight = staging.At(p.weight);
  p.bias = staging.At(p.bias);
  p.states = staging.At(p.states);
  p.out = staging.At(p.out);
  p.segments = staging.At(p.segments);
  on_->CausalConv1d(p);
}

void StagedBackend::SelectiveScan(const SelectiveScanParams& params) {
  SelectiveScanParams p = params;
  Staging staging(on_.get());
  const int64_t rows = RowsOf(p.segments, p.num_segments);
  const int64_t tiled = TiledFloats(p.channels, p.d_state);
  staging.AddRows(p.x, rows, p.channels, p.x_stride);
  staging.AddRows(p.z, rows, p.channels, p.z_stride);
  staging.AddRows(p.dt, rows, p.channels, p.dt_stride);
  staging.AddRows(p.b, rows, p.d_state, p.bc_stride);
  staging.AddRows(p.c, rows, p.d_state, p.bc_stride);
  staging.Add(p.a, tiled);
  staging.Add(p.dt_bias, p.channels);
  staging.Add(p.d_skip, p.channels);
  staging.AddSlots(p.states, p.state_dtype, p.slot_stride, tiled, p.segments, p.num_segments);
  staging.AddRows(p.y, rows, p.channels, p.y_stride);
  staging.Add(p.segments, p.num_segments);
  staging.Send();
  for (const float** operand : {&p.x, &p.z, &p.dt, &p.b, &p.c, &p.a, &p.dt_bias, &p.d_skip}) {
    *operand = staging.At(*operand);
  }
  p.states = staging.At(p.states);
  p.y = staging.At(p.y);
  p.segments = staging.At(p.segments);
  on_->SelectiveScan(p);
}

void StagedBackend::GatherRows(const GatherRowsParams& params) {
  GatherRowsParams p = params;
  Staging staging(on_.get());
  int64_t rows = 0;
  for (int64_t i = 0; i < p.num_rows; ++i) rows = std::max<int64_t>(rows, p.row_index[i] + 1);
  staging.Add(p.x, rows * p.channels);
  staging.Add(p.row_index, p.num_rows);
  staging.Add(p.out, p.num_rows * p.channels);
  staging.Send();
  p.x = staging.At(p.x);
  p.row_index = staging.At(p.row_index);
  p.out = staging.At(p.out);
  on_->GatherRows(p);
}

void StagedBackend::SampleTokens(const SampleTokensParams& params) {
  SampleTokensParams p = params;
  Staging staging(on_.get());
  int64_t num_logit_rows = 0, num_edits = 0;
  for (int64_t r = 0; r < p.num_rows; ++r) {
    num_logit_rows = std::max(num_logit_rows, p.rows[r].logit_row + 1);
    num_edits = std::max<int64_t>(num_edits, p.rows[r].edits_begin + p.rows[r].num_edits);
  }
  staging.AddRows(p.logits, num_logit_rows, p.num_ids, p.logits_stride);
  staging.Add(p.rows, p.num_rows);
  staging.Add(p.edits, num_edits);
  staging.Add(p.unedited, num_edits);
  staging.Add(p.tokens, p.num_rows);
  staging.Add(p.top, p.num_rows * kMaxTopLogprobs);
  staging.Send();
  p.logits = staging.At(p.logits);
  p.rows = staging.At(p.rows);
  p.edits = staging.At(p.edits);
  p.unedited = staging.At(p.unedited);
  p.tokens = staging.At(p.tokens);
  p.top = staging.At(p.top);
  on_->SampleTokens(p);
}

bool StagedBackend::MambaDecode(const MambaDecodeParams& params) {
  MambaDecodeParams p = params;
  Staging staging(on_.get());
  const int64_t tiled = TiledFloats(p.d_inner, p.d_state);
  staging.Add(p.residual, p.num_rows * p.d_model);
  staging.Add(p.norm_weight, p.d_model);
  staging.Add(p.in_proj_bias, 2 * p.d_inner);
  staging.Add(p.conv_weight, p.d_conv * p.d_inner);
  staging.Add(p.conv_bias, p.d_inner);
  staging.Add(p.a, tiled);
  staging.Add(p.dt_bias, p.d_inner);
  staging.Add(p.d_skip, p.d_inner);
  staging.Add(p.out_proj_bias, p.d_model);
  staging.AddSlots(p.conv_states, p.slot_stride, (p.d_conv - 1) * p.d_inner, p.segments,
                   p.num_rows);
  staging.AddSlots(p.ssm_states, p.state_dtype,
                   p.slot_stride * static_cast<int64_t>(sizeof(float) / DTypeBytes(p.state_dtype)),
                   tiled, p.segments, p.num_rows);
  staging.Add(p.scratch, p.num_rows * MambaDecodeScratchFloats(p.d_inner, p.dt_rank, p.d_state));
  staging.Add(p.segments, p.num_rows);
  staging.Send();
  for (const float** operand : {&p.norm_weight, &p.in_proj_bias, &p.conv_weight, &p.conv_bias, &p.a,
                                &p.dt_bias, &p.d_skip, &p.out_proj_bias}) {
    *operand = staging.At(*operand);
  }
  for (float** operand : {&p.residual, &p.conv_states, &p.scratch}) {
    *operand = staging.At(*operand);
  }
  p.ssm_states = staging.At(p.ssm_states);
  p.segments = staging.At(p.segments);
  return on_->MambaDecode(p);
}

bool StagedBackend::NormLinear(const NormLinearParams& params) {
  NormLinearParams p = params;
  Staging staging(on_.get());
  staging.Add(p.x, p.num_rows * p.weight->cols());
  staging.Add(p.norm_weight, p.weight->cols());
  staging.AddRows(p.out, p.num_rows, p.weight->rows(), p.out_stride);
  staging.Send();
  p.x = staging.At(p.x);
  p.norm_weight = staging.At(p.norm_weight);
  p.out = staging.At(p.out);
  return on_->NormLinear(p);
}

}  // namespace

std::unique_ptr<Backend> MakeStagedBackend(std::unique_ptr<Backend> device) {
  return std::make_unique<StagedBackend>(std::move(device));
}

}  // namespace vivarium::kernels
