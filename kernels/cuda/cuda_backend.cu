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
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/rms_norm.cuh"
#include "kernels/cuda/sample_tokens.cuh"
#include "kernels/cuda/selective_scan.cuh"

namespace vivarium::kernels::cuda {
namespace {

constexpr char kNumericsName[] = "cuda-v1";

class CudaPackedMatrix final : public PackedMatrix {
 public:
  CudaPackedMatrix(void* data, int64_t rows, int64_t cols, DType dtype, size_t bytes)
      : data_(data), rows_(rows), cols_(cols), dtype_(dtype), bytes_(bytes) {}
  ~CudaPackedMatrix() override { cudaFree(data_); }
  CudaPackedMatrix(const CudaPackedMatrix&) = delete;
  CudaPackedMatrix& operator=(const CudaPackedMatrix&) = delete;

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  DType dtype() const override { return dtype_; }
  size_t bytes() const override { return bytes_; }
  const void* data() const { return data_; }

 private:
  void* data_;
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

// The fragments of linear.cuh, in order.
std::vector<PackedFragment> PackFragments(const std::vector<float>& w, int64_t rows, int64_t cols) {
  const int64_t row_tiles = (rows + kRowTile - 1) / kRowTile;
  const int64_t steps = LinearSteps(cols);
  std::vector<PackedFragment> fragments(row_tiles * steps * kWarpSize);
  const auto pair_at = [&](int64_t row, int64_t k) -> uint32_t {
    if (row >= rows) return 0;
    const uint32_t low = k < cols ? F32ToBF16(w[row * cols + k]) : 0;
    const uint32_t high = k + 1 < cols ? F32ToBF16(w[row * cols + k + 1]) : 0;
    return low | high << 16;
  };
  for (int64_t tile = 0; tile < row_tiles; ++tile) {
    for (int64_t step = 0; step < steps; ++step) {
      for (int lane = 0; lane < kWarpSize; ++lane) {
        const int64_t row = tile * kRowTile + lane / 4;
        const int64_t k = step * kStep + lane % 4 * 2;
        fragments[(tile * steps + step) * kWarpSize + lane].a = {
            {pair_at(row, k), pair_at(row + 8, k), pair_at(row, k + 8), pair_at(row + 8, k + 8)}};
      }
    }
  }
  return fragments;
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
    cudaStreamDestroy(stream_);
  }
  bool PrepareCopies(cudaError_t* error) {
    copies_ = CopyQueue::Create(ordinal_, &fault_, error);
    return copies_ != nullptr;
  }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  std::string_view device() const override { return device_; }
  std::string_view isa() const override { return "cuda"; }
  int num_threads() const override { return 1; }
  std::string numerics_name() const override { return kNumericsName; }
  void BindThread() override { Check(cudaSetDevice(ordinal_), "set device"); }
  std::string fault() const override { return fault_.is_set() ? fault_.text() : std::string(); }
  MemoryInfo Memory() const override {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    if (cudaSetDevice(ordinal_) != cudaSuccess || cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess) return {};
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

  void EmbeddingGather(const EmbeddingGatherParams& params) override {
    if (params.num_tokens > 0) LaunchEmbeddingGather(params, stream_);
  }
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

  const int ordinal_;
  const std::string device_;
  cudaStream_t stream_;
  const DecodeDevice decode_device_;
  DeviceFault fault_;
  std::unique_ptr<CopyQueue> copies_;
};

std::unique_ptr<PackedMatrix> CudaBackend::Pack(const void* w, DType from, int64_t rows,
                                                int64_t cols, DType to) {
  std::vector<float> wide(rows * cols);
  ConvertToF32(w, from, wide.size(), wide.data());
  std::vector<PackedFragment> fragments;
  if (to == DType::kBF16) fragments = PackFragments(wide, rows, cols);
  const void* host = to == DType::kBF16 ? static_cast<const void*>(fragments.data()) : wide.data();
  const size_t bytes =
      to == DType::kBF16 ? fragments.size() * sizeof(PackedFragment) : wide.size() * sizeof(float);
  void* data = Allocate(bytes);
  if (!data) return nullptr;
  CopyToDevice(data, host, bytes);
  return std::make_unique<CudaPackedMatrix>(data, rows, cols, to, bytes);
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
  const LinearArguments arguments = {params.x,          params.x_stride, weight.data(),
                                     params.bias,       params.out,      params.out_stride,
                                     params.num_tokens, weight.rows(),   weight.cols()};
  if (weight.dtype() == DType::kBF16) {
    LaunchLinearBF16(arguments, stream_);
  } else {
    LaunchLinearF32(arguments, stream_);
  }
}

// Null data for weights that the fused kernels don't read.
DecodeWeight FusedWeight(const PackedMatrix* weight) {
  const auto& packed = static_cast<const CudaPackedMatrix&>(*weight);
  if (packed.dtype() != DType::kBF16) return {};
  return {packed.data(), nullptr};
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

std::unique_ptr<Backend> CreateCudaBackend(int ordinal, std::string* error) {
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
  if (backend->PrepareCopies(&made)) return backend;
  *error = device + ": " + cudaGetErrorString(made);
  return nullptr;
}

}  // namespace vivarium::kernels::cuda
