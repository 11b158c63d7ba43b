#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/causal_conv1d.cuh"
#include "kernels/cuda/copy_queue.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_fault.h"
#include "kernels/cuda/gather.cuh"
#include "kernels/cuda/library_linear.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/rms_norm.cuh"
#include "kernels/cuda/sample_tokens.cuh"
#include "kernels/cuda/selective_scan.cuh"

namespace vivarium::kernels::cuda {
namespace {

constexpr char kNumericsName[] = "cuda-v1";

class CudaPackedMatrix final : public PackedMatrix {
 public:
  // scales: [rows] for int8, else null. plain: for LibraryLinear, or null. All are freed with the
  // matrix.
  CudaPackedMatrix(void* data, float* scales, void* plain, int64_t rows, int64_t cols, DType dtype,
                   size_t bytes)
      : data_(data),
        scales_(scales),
        plain_(plain),
        rows_(rows),
        cols_(cols),
        dtype_(dtype),
        bytes_(bytes) {}
  ~CudaPackedMatrix() override {
    cudaFree(data_);
    cudaFree(scales_);
    cudaFree(plain_);
  }
  CudaPackedMatrix(const CudaPackedMatrix&) = delete;
  CudaPackedMatrix& operator=(const CudaPackedMatrix&) = delete;

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  DType dtype() const override { return dtype_; }
  size_t bytes() const override { return bytes_; }
  const void* data() const { return data_; }
  const float* scales() const { return scales_; }
  const void* plain() const { return plain_; }

 private:
  void* data_;
  float* scales_;
  void* plain_;
  int64_t rows_, cols_;
  DType dtype_;
  size_t bytes_;
};

class CudaRecording final : public Recording {
 public:
  explicit CudaRecording(cudaGraphExec_t graph) : graph_(graph) {}
  ~CudaRecording() override { cudaGraphExecDestroy(graph_); }
  CudaRecording(const CudaRecording&) = delete;
  CudaRecording& operator=(const CudaRecording&) = delete;
  cudaGraphExec_t graph() const { return graph_; }

 private:
  cudaGraphExec_t graph_;
};

// W in packed elements, a piece of rows at a time: piece(first row, elements, their count).
// element(row, k) is W[row][k]; what pads rows and k is `zero`.
template <typename Element, typename At, typename Piece>
void PackPieces(int64_t rows, int64_t cols, Element zero, const At& element, const Piece& piece) {
  constexpr int64_t kMaxElements = 4 << 20;
  const int64_t tile_elements = LinearSteps(cols) * kStep * kRowTile;
  const int64_t piece_rows = std::max<int64_t>(kMaxElements / tile_elements, 1) * kRowTile;
  std::vector<Element> packed;
  for (int64_t first = 0; first < rows; first += piece_rows) {
    const int64_t count = std::min(piece_rows, rows - first);
    packed.assign((count + kRowTile - 1) / kRowTile * tile_elements, zero);
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t k = 0; k < cols; ++k) {
        packed[PackedIndex(row, k, cols)] = element(first + row, k);
      }
    }
    piece(first, packed);
  }
}

size_t PackedElements(int64_t rows, int64_t cols) {
  return (rows + kRowTile - 1) / kRowTile * kRowTile * LinearSteps(cols) * kStep;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(int ordinal, cudaStream_t stream, const DecodeDevice& decode_device)
      : ordinal_(ordinal),
        device_("cuda:" + std::to_string(ordinal)),
        stream_(stream),
        decode_device_(decode_device) {}
  ~CudaBackend() override {
    (void)cudaStreamQuery(stream_);  // as in WaitForCopy
    copies_ = nullptr;
    library_ = nullptr;
    cudaStreamDestroy(stream_);
  }
  // From now on products of many rows by bf16 weights are the library's.
  void UseLibrary(std::unique_ptr<CublasLt> library) {
    library_ = std::make_unique<LibraryLinear>(std::move(library));
  }
  void set_notice(std::string notice) { notice_ = std::move(notice); }
  bool PrepareCopies(cudaError_t* error) {
    copies_ = CopyQueue::Create(ordinal_, &fault_, error);
    return copies_ != nullptr;
  }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  std::string_view device() const override { return device_; }
  std::string_view isa() const override { return "cuda"; }
  int num_threads() const override { return 1; }
  std::string numerics_name() const override {
    return library_ ? std::string(kNumericsName) + "-cublaslt" : kNumericsName;
  }
  std::string notice() const override { return notice_; }
  void BindThread() override { Check(cudaSetDevice(ordinal_), "set device"); }
  std::string fault() const override { return fault_.is_set() ? fault_.text() : std::string(); }
  MemoryInfo Memory() const override {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    if (cudaSetDevice(ordinal_) != cudaSuccess ||
        cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess)
      return {};
    return {free_bytes, total_bytes};
  }

  void* Allocate(size_t bytes) override {
    void* pointer = nullptr;
    if (cudaMalloc(&pointer, bytes) != cudaSuccess) {
      cudaGetLastError();  // out of memory is an answer, not a fault: clear it
      return nullptr;
    }
    Zero(pointer, bytes);
    return pointer;
  }
  void Free(void* device_ptr) override {
    Synchronize();
    Check(cudaFree(device_ptr), "free");
  }
  void CopyToDevice(void* device_dst, const void* host_src, size_t bytes) override {
    Copy(device_dst, host_src, bytes, cudaMemcpyHostToDevice);
    Synchronize();  // the caller may reuse host_src
  }
  void CopyToHost(void* host_dst, const void* device_src, size_t bytes) override {
    Copy(host_dst, device_src, bytes, cudaMemcpyDeviceToHost);
    Synchronize();
  }
  void CopyOnDevice(void* device_dst, const void* device_src, size_t bytes) override {
    Copy(device_dst, device_src, bytes, cudaMemcpyDeviceToDevice);
  }
  void Zero(void* device_ptr, size_t bytes) override {
    Check(cudaMemsetAsync(device_ptr, 0, bytes, stream_), "zero");
  }
  void Synchronize() override {
    Check(cudaStreamSynchronize(stream_), "synchronize");
    Check(cudaGetLastError(), "kernel");
  }

  CopyTicket StartCopyToHost(void* host_dst, const void* device_src, size_t bytes) override {
    return copies_->Start(stream_, host_dst, device_src, bytes, cudaMemcpyDeviceToHost);
  }
  CopyTicket StartCopyToDevice(void* device_dst, const void* host_src, size_t bytes) override {
    return copies_->Start(stream_, device_dst, host_src, bytes, cudaMemcpyHostToDevice);
  }
  bool IsCopyDone(CopyTicket ticket) override { return copies_->IsDone(ticket); }
  void WaitForCopy(CopyTicket ticket) override {
    (void)cudaStreamQuery(stream_);  // sends off what the copy may wait for
    copies_->Wait(ticket);
  }
  bool copies_overlap() const override { return true; }

  void* AllocateHost(size_t bytes) override {
    void* pointer = nullptr;
    if (cudaMallocHost(&pointer, bytes) == cudaSuccess) return pointer;
    cudaGetLastError();  // an answer, as in Allocate
    return nullptr;
  }
  void FreeHost(void* host_ptr) override { Check(cudaFreeHost(host_ptr), "free host memory"); }
  void CopyToDeviceAsync(void* device_dst, const void* host_src, size_t bytes) override {
    Copy(device_dst, host_src, bytes, cudaMemcpyHostToDevice);
  }

  bool BeginRecording() override {
    return Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "record");
  }
  std::unique_ptr<Recording> EndRecording() override;
  void Replay(const Recording& recording) override {
    Check(cudaGraphLaunch(static_cast<const CudaRecording&>(recording).graph(), stream_), "replay");
  }

  std::unique_ptr<PackedMatrix> Pack(const void* w, DType from, int64_t rows, int64_t cols,
                                     DType to) override;
  std::unique_ptr<PackedMatrix> PackInt8(const int8_t* q, const float* row_scales, int64_t rows,
                                         int64_t cols) override;

  void EmbeddingGather(const EmbeddingGatherParams& params) override;
  void RmsNorm(const RmsNormParams& params) override {
    if (params.num_tokens > 0) LaunchRmsNorm(params, stream_);
  }
  void Linear(const LinearParams& params) override;
  void CausalConv1d(const CausalConv1dParams& params) override {
    if (params.num_segments > 0) LaunchCausalConv1d(params, stream_);
  }
  void SelectiveScan(const SelectiveScanParams& params) override {
    if (params.num_segments > 0) LaunchSelectiveScan(params, stream_);
  }
  void GatherRows(const GatherRowsParams& params) override {
    if (params.num_rows > 0) LaunchGatherRows(params, stream_);
  }
  void SampleTokens(const SampleTokensParams& params) override {
    if (params.num_rows > 0) LaunchSampleTokens(params, stream_);
  }
  bool MambaDecode(const MambaDecodeParams& params) override;
  bool NormLinear(const NormLinearParams& params) override;

 private:
  void Copy(void* destination, const void* source, size_t bytes, cudaMemcpyKind kind) {
    Check(cudaMemcpyAsync(destination, source, bytes, kind, stream_), "copy");
  }
  bool Check(cudaError_t error, const char* what) { return fault_.Check(error, what); }
  // w as LibraryLinear wants it; null when memory runs out.
  void* PackPlain(const void* w, DType from, int64_t rows, int64_t cols);

  const int ordinal_;
  const std::string device_;
  cudaStream_t stream_;
  const DecodeDevice decode_device_;
  std::unique_ptr<LibraryLinear> library_;  // null: the own kernels always
  std::string notice_;
  DeviceFault fault_;
  std::unique_ptr<CopyQueue> copies_;
};

std::unique_ptr<PackedMatrix> CudaBackend::Pack(const void* w, DType from, int64_t rows,
                                                int64_t cols, DType to) {
  const auto* source = static_cast<const unsigned char*>(w);
  const auto widen = [&](int64_t row, int64_t k) {
    float value = 0.0f;
    ConvertToF32(source + (row * cols + k) * DTypeBytes(from), from, 1, &value);
    return value;
  };
  const size_t bytes = to == DType::kBF16 ? PackedElements(rows, cols) * DTypeBytes(to)
                                          : rows * cols * sizeof(float);
  const bool has_plain = library_ && to == DType::kBF16;
  void* plain = has_plain ? PackPlain(w, from, rows, cols) : nullptr;
  if (has_plain && !plain) return nullptr;
  auto* data = static_cast<unsigned char*>(Allocate(bytes));
  if (!data) {
    Free(plain);
    return nullptr;
  }
  if (to == DType::kBF16) {
    PackPieces(
        rows, cols, uint16_t{0}, [&](int64_t row, int64_t k) { return F32ToBF16(widen(row, k)); },
        [&](int64_t first, const std::vector<uint16_t>& packed) {
          CopyToDevice(data + PackedElements(first, cols) * sizeof(uint16_t), packed.data(),
                       packed.size() * sizeof(uint16_t));
        });
  } else {
    std::vector<float> row_values(cols);
    for (int64_t row = 0; row < rows; ++row) {
      ConvertToF32(source + row * cols * DTypeBytes(from), from, cols, row_values.data());
      CopyToDevice(data + row * cols * sizeof(float), row_values.data(), cols * sizeof(float));
    }
  }
  const size_t plain_bytes = has_plain ? rows * LibraryPitch(cols) * sizeof(uint16_t) : 0;
  return std::make_unique<CudaPackedMatrix>(data, nullptr, plain, rows, cols, to,
                                            bytes + plain_bytes);
}

void* CudaBackend::PackPlain(const void* w, DType from, int64_t rows, int64_t cols) {
  if (!library_->Reserve(cols)) return nullptr;
  const int64_t pitch = LibraryPitch(cols);
  auto* plain = static_cast<uint16_t*>(Allocate(rows * pitch * sizeof(uint16_t)));
  if (!plain) return nullptr;
  constexpr int64_t kMaxElements = 4 << 20;
  const int64_t piece = std::max<int64_t>(kMaxElements / pitch, 1);
  std::vector<float> wide(cols);
  for (int64_t first = 0; first < rows; first += piece) {
    const int64_t count = std::min(piece, rows - first);
    std::vector<uint16_t> bits(count * pitch);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t begin = (first + row) * cols;
      ConvertToF32(static_cast<const unsigned char*>(w) + begin * DTypeBytes(from), from, cols,
                   wide.data());
      for (int64_t k = 0; k < cols; ++k) bits[row * pitch + k] = F32ToBF16(wide[k]);
    }
    CopyToDevice(plain + first * pitch, bits.data(), bits.size() * sizeof(uint16_t));
  }
  return plain;
}

std::unique_ptr<PackedMatrix> CudaBackend::PackInt8(const int8_t* q, const float* row_scales,
                                                    int64_t rows, int64_t cols) {
  const size_t data_bytes = PackedElements(rows, cols);
  const size_t scale_bytes = rows * sizeof(float);
  auto* data = static_cast<unsigned char*>(Allocate(data_bytes));
  auto* scales = static_cast<float*>(Allocate(scale_bytes));
  if (!data || !scales) {
    Free(data);
    Free(scales);
    return nullptr;
  }
  CopyToDevice(scales, row_scales, scale_bytes);
  PackPieces(
      rows, cols, static_cast<uint8_t>(kInt8Offset),
      [&](int64_t row, int64_t k) { return static_cast<uint8_t>(q[row * cols + k] + kInt8Offset); },
      [&](int64_t first, const std::vector<uint8_t>& packed) {
        CopyToDevice(data + PackedElements(first, cols), packed.data(), packed.size());
      });
  return std::make_unique<CudaPackedMatrix>(data, scales, nullptr, rows, cols, DType::kI8,
                                            data_bytes + scale_bytes);
}

void CudaBackend::EmbeddingGather(const EmbeddingGatherParams& params) {
  if (params.num_tokens == 0) return;
  const auto& table = static_cast<const CudaPackedMatrix&>(*params.table);
  LaunchEmbeddingGather({table.data(), table.scales(), params.token_ids, params.out, table.cols()},
                        table.dtype(), params.num_tokens, stream_);
}

std::unique_ptr<Recording> CudaBackend::EndRecording() {
  cudaGraph_t graph = nullptr;
  if (!Check(cudaStreamEndCapture(stream_, &graph), "end recording")) return nullptr;
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, graph);
  Check(cudaGraphDestroy(graph), "free graph");
  if (made == cudaErrorMemoryAllocation) cudaGetLastError();  // an answer, as in Allocate
  if (made == cudaErrorMemoryAllocation || !Check(made, "make recording")) return nullptr;
  return std::make_unique<CudaRecording>(executable);
}

void CudaBackend::Linear(const LinearParams& params) {
  if (params.num_tokens == 0) return;
  const auto& weight = static_cast<const CudaPackedMatrix&>(*params.weight);
  LinearArguments arguments = {params.x,      params.x_stride,   weight.data(),     params.bias,
                               params.out,    params.out_stride, params.num_tokens, weight.rows(),
                               weight.cols(), weight.scales()};
  if (weight.plain() && params.num_tokens >= kMinLibraryRows) {
    int64_t num_done = 0;
    if (library_->Run(arguments, weight.plain(), stream_, &num_done)) return;
    arguments.x += num_done * params.x_stride;
    arguments.out += num_done * params.out_stride;
    arguments.num_tokens -= num_done;
  }
  if (weight.dtype() == DType::kBF16) {
    LaunchLinear<PackedFragment>(arguments, stream_);
  } else if (weight.dtype() == DType::kI8) {
    LaunchLinear<PackedInt8Fragment>(arguments, stream_);
  } else {
    LaunchLinearF32(arguments, stream_);
  }
}

// Null data for weights that the fused kernels don't read.
DecodeWeight FusedWeight(const PackedMatrix* weight) {
  const auto& packed = static_cast<const CudaPackedMatrix&>(*weight);
  if (packed.dtype() == DType::kF32) return {};
  return {packed.data(), packed.scales()};
}

bool CudaBackend::MambaDecode(const MambaDecodeParams& params) {
  const DecodeWeights weights = {FusedWeight(params.in_proj), FusedWeight(params.x_proj),
                                 FusedWeight(params.dt_proj), FusedWeight(params.out_proj)};
  return weights.in_proj.data && weights.x_proj.data && weights.dt_proj.data &&
         !weights.dt_proj.scales && weights.out_proj.data &&
         LaunchMambaDecode(params, weights, decode_device_, stream_);
}

bool CudaBackend::NormLinear(const NormLinearParams& params) {
  const DecodeWeight weight = FusedWeight(params.weight);
  return weight.data && LaunchNormLinear(params, weight, decode_device_, stream_);
}

// Zeros for what the device does not say; a device that says nothing fails at its first op.
DecodeDevice QueryDevice(int ordinal) {
  const auto attribute = [ordinal](cudaDeviceAttr name) {
    int value = 0;
    return cudaDeviceGetAttribute(&value, name, ordinal) == cudaSuccess ? value : 0;
  };
  constexpr int kOverlapMajor = 9;  // sm_90
  return {attribute(cudaDevAttrMultiProcessorCount),
          static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)),
          static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)),
          attribute(cudaDevAttrComputeCapabilityMajor) >= kOverlapMajor};
}

std::string WhatIsMissing(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      return "there is no NVIDIA driver here, or one that is older than this program needs";
    case cudaErrorNoDevice:
      return "the NVIDIA driver finds no GPU";
    default:
      return cudaGetErrorString(error);
  }
}

}  // namespace

std::unique_ptr<Backend> CreateCudaBackend(int ordinal, const BackendOptions& options,
                                           std::string* error) {
  int num_devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&num_devices);
  const std::string device = "device cuda:" + std::to_string(ordinal);
  if (found != cudaSuccess) {
    *error = device + ": " + WhatIsMissing(found);
    return nullptr;
  }
  if (ordinal < 0 || ordinal >= num_devices) {
    *error = device + ": this machine has " + std::to_string(num_devices) + " CUDA devices";
    return nullptr;
  }
  cudaStream_t stream = nullptr;
  cudaError_t made = cudaSetDevice(ordinal);
  if (made == cudaSuccess) made = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (made != cudaSuccess) {
    *error = device + ": " + WhatIsMissing(made);
    return nullptr;
  }
  auto backend = std::make_unique<CudaBackend>(ordinal, stream, QueryDevice(ordinal));
  if (!options.deterministic) {
    std::string why;
    if (std::unique_ptr<CublasLt> library = CublasLt::Load(options.cublaslt, &why)) {
      backend->UseLibrary(std::move(library));
    } else {
      backend->set_notice("cuBLASLt: " + why + "; products are all by kernels of this program");
    }
  }
  if (backend->PrepareCopies(&made)) return backend;
  *error = device + ": " + cudaGetErrorString(made);
  return nullptr;
}

}  // namespace vivarium::kernels::cuda
