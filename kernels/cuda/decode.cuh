// MambaDecode: a decode step of one layer in four kernels, each launched so that it may start, and
// bring its first weights, while the one before it is still running (programmatic dependent
// launch).
//
//   DecodeIn       residual -> RMSNorm -> in_proj -> convolution -> x, z
//   DecodeProject  x -> x_proj -> r, B, C
//   DecodeStep     r, B, C -> norms -> dt_proj -> softplus, scan, gate -> y
//   DecodeProject  y -> out_proj -> residual
//
// NormLinear is the first of them without a convolution.
//
// DecodeIn lets the next kernel start only after its own wait; so when one of the others starts,
// whatever was launched before the step is complete, and it may read states and segments before its
// wait. The first kernel after another op waits for that op as a whole.
#pragma once

#include <algorithm>

#include "kernels/backend.h"
#include "kernels/cuda/decode_in.cuh"
#include "kernels/cuda/decode_project.cuh"
#include "kernels/cuda/decode_step.cuh"

namespace vivarium::kernels::cuda {

struct DecodeDevice {
  int num_multiprocessors;
  size_t shared_bytes_per_block;
  size_t shared_bytes_per_multiprocessor;
  bool overlaps_launches;  // sm_90 and later
};

// A matrix, packed (linear.cuh).
struct DecodeWeight {
  const void* data;
  const float* scales;  // [rows] of int8; null: bf16
};

struct DecodeWeights {
  DecodeWeight in_proj, x_proj, dt_proj, out_proj;  // dt_proj is bf16
};

// Blocks for a matrix of `rows`: all at once on the device, and no more than two on a
// multiprocessor, since each has enough in flight and must stage all activations for itself.
inline dim3 StreamGrid(const DecodeDevice& device, int64_t rows, size_t shared_bytes) {
  constexpr size_t kReservedBytes = 1024;  // of each block
  constexpr size_t kMaxBlocks = 2;
  const size_t blocks = std::clamp<size_t>(
      device.shared_bytes_per_multiprocessor / (shared_bytes + kReservedBytes), 1, kMaxBlocks);
  return dim3(
      static_cast<unsigned>(std::min((rows + kRowTile - 1) / kRowTile,
                                     static_cast<int64_t>(blocks) * device.num_multiprocessors)));
}

template <int kTokenTiles, int kWidth>
void LaunchDecodeIn(const DecodeInParams& in, const DecodeDevice& device, cudaStream_t stream) {
  const size_t shared_bytes = DecodeInShared<kTokenTiles>(in.num_rows, in.cols);
  const auto launch = [&](void (*kernel)(DecodeInParams)) {
    LaunchDependent(device.overlaps_launches, kernel, StreamGrid(device, in.rows, shared_bytes),
                    dim3(kDecodeThreads), shared_bytes, stream, in);
  };
  launch(in.scales ? DecodeInKernel<kTokenTiles, kWidth, PackedInt8Fragment>
                   : DecodeInKernel<kTokenTiles, kWidth, PackedFragment>);
}

template <int kTokenTiles>
class DecodeLaunches {
 public:
  DecodeLaunches(const MambaDecodeParams& params, const DecodeDevice& device)
      : params_(params),
        device_(device),
        num_rows_(static_cast<int>(params.num_rows)),
        in_shared_(DecodeInShared<kTokenTiles>(num_rows_, params.d_model)),
        project_shared_(DecodeProjectShared<kTokenTiles>(num_rows_, params.d_inner)),
        step_shared_(DecodeStepShared(num_rows_, params.dt_rank, params.d_state)) {}

  bool Fit() const {
    return std::max({in_shared_, project_shared_, step_shared_}) <= device_.shared_bytes_per_block;
  }
  void Launch(const DecodeWeights& weights, cudaStream_t stream) const;

 private:
  static int64_t RoundUp(int64_t count) {
    return (count + kChannelTile - 1) / kChannelTile * kChannelTile;
  }
  template <int kWidth = kMinDecodeConvWidth>
  void LaunchIn(const DecodeInParams& in, cudaStream_t stream) const;
  void LaunchProject(const DecodeProjectParams& project, cudaStream_t stream) const;
  template <typename State, int kStates = 1>
  void LaunchStep(const DecodeStepParams& step, cudaStream_t stream) const;

  const MambaDecodeParams& params_;
  const DecodeDevice& device_;
  const int num_rows_;
  const size_t in_shared_, project_shared_, step_shared_;
};

template <int kTokenTiles>
template <int kWidth>
void DecodeLaunches<kTokenTiles>::LaunchIn(const DecodeInParams& in, cudaStream_t stream) const {
  if (in.conv.width != kWidth) {
    if constexpr (kWidth < kMaxDecodeConvWidth) LaunchIn<kWidth + 1>(in, stream);
    return;
  }
  LaunchDecodeIn<kTokenTiles, kWidth>(in, device_, stream);
}

template <int kTokenTiles>
void DecodeLaunches<kTokenTiles>::LaunchProject(const DecodeProjectParams& project,
                                                cudaStream_t stream) const {
  const auto launch = [&](void (*kernel)(DecodeProjectParams)) {
    LaunchDependent(device_.overlaps_launches, kernel,
                    StreamGrid(device_, project.rows, project_shared_), dim3(kDecodeThreads),
                    project_shared_, stream, project);
  };
  launch(project.scales ? DecodeProjectKernel<kTokenTiles, PackedInt8Fragment>
                        : DecodeProjectKernel<kTokenTiles, PackedFragment>);
}

template <int kTokenTiles>
template <typename State, int kStates>
void DecodeLaunches<kTokenTiles>::LaunchStep(const DecodeStepParams& step,
                                             cudaStream_t stream) const {
  if (step.scan.d_state > kStates * kScanLanes) {
    if constexpr (kStates < kMaxDecodeStates) LaunchStep<State, kStates * 2>(step, stream);
    return;
  }
  LaunchDependent(device_.overlaps_launches, DecodeStepKernel<kStates, State>,
                  dim3(static_cast<unsigned>(RoundUp(step.scan.channels) / kChannelTile)),
                  dim3(kDecodeThreads), step_shared_, stream, step);
}

template <int kTokenTiles>
void DecodeLaunches<kTokenTiles>::Launch(const DecodeWeights& weights, cudaStream_t stream) const {
  const MambaDecodeParams& p = params_;
  const int64_t xz_stride = RoundUp(2 * p.d_inner);
  const int64_t projected_stride = RoundUp(p.dt_rank + 2 * p.d_state);
  const int64_t bf16_stride = RoundUp(p.d_inner);
  float* const xz = p.scratch;
  float* const projected = xz + p.num_rows * xz_stride;
  auto* const x_bf16 = reinterpret_cast<uint16_t*>(projected + p.num_rows * projected_stride);
  uint16_t* const y_bf16 = x_bf16 + p.num_rows * bf16_stride;

  DecodeInParams in{};
  in.residual = p.residual;
  in.norm_weight = p.norm_weight;
  in.norm_eps = p.norm_eps;
  in.weight = weights.in_proj.data;
  in.scales = weights.in_proj.scales;
  in.bias = p.in_proj_bias;
  in.conv.weight = p.conv_weight;
  in.conv.bias = p.conv_bias;
  in.conv.states = p.conv_states;
  in.conv.slot_stride = p.slot_stride;
  in.conv.out = xz;
  in.conv.out_stride = xz_stride;
  in.conv.segments = p.segments;
  in.conv.channels = p.d_inner;
  in.conv.width = p.d_conv;
  in.x_bf16 = x_bf16;
  in.x_bf16_stride = bf16_stride;
  in.rows = 2 * p.d_inner;
  in.cols = p.d_model;
  in.num_rows = num_rows_;
  LaunchIn(in, stream);

  LaunchProject({x_bf16, bf16_stride, weights.x_proj.data, weights.x_proj.scales, nullptr,
                 projected, projected_stride,
                 /*accumulates=*/false, p.dt_rank + 2 * p.d_state, p.d_inner, num_rows_},
                stream);

  DecodeStepParams step{};
  step.projected = projected;
  step.projected_stride = projected_stride;
  step.has_norms = p.has_norms;
  step.norm_eps = p.mixer_norm_eps;
  step.dt_weight = weights.dt_proj.data;
  step.dt_rank = p.dt_rank;
  step.scan.x = xz;
  step.scan.x_stride = xz_stride;
  step.scan.z = xz + p.d_inner;
  step.scan.z_stride = xz_stride;
  step.scan.a = p.a;
  step.scan.dt_bias = p.dt_bias;
  step.scan.d_skip = p.d_skip;
  step.scan.states = p.ssm_states;
  step.scan.state_dtype = p.state_dtype;
  step.scan.slot_stride = p.slot_stride * static_cast<int64_t>(sizeof(float)) /
                          static_cast<int64_t>(DTypeBytes(p.state_dtype));
  step.scan.segments = p.segments;
  step.scan.channels = p.d_inner;
  step.scan.d_state = p.d_state;
  step.y = y_bf16;
  step.y_stride = bf16_stride;
  step.num_rows = num_rows_;
  if (p.state_dtype == DType::kBF16) {
    LaunchStep<uint16_t>(step, stream);
  } else {
    LaunchStep<float>(step, stream);
  }

  LaunchProject({y_bf16, bf16_stride, weights.out_proj.data, weights.out_proj.scales,
                 p.out_proj_bias, p.residual, p.d_model,
                 /*accumulates=*/true, p.d_model, p.d_inner, num_rows_},
                stream);
}

// False, with nothing launched, for shapes that have no fused form on this device.
inline bool LaunchMambaDecode(const MambaDecodeParams& params, const DecodeWeights& weights,
                              const DecodeDevice& device, cudaStream_t stream) {
  if (params.num_rows > kMaxDecodeRows || params.d_model % 2 != 0 ||
      params.d_conv < kMinDecodeConvWidth || params.d_conv > kMaxDecodeConvWidth ||
      params.d_state > kMaxDecodeStates * kScanLanes) {
    return false;
  }
  const auto launch = [&](const auto& launches) {
    if (!launches.Fit()) return false;
    launches.Launch(weights, stream);
    return true;
  };
  return params.num_rows <= kTokenTile ? launch(DecodeLaunches<1>(params, device))
                                       : launch(DecodeLaunches<2>(params, device));
}

// As LaunchMambaDecode.
inline bool LaunchNormLinear(const NormLinearParams& params, const DecodeWeight& weight,
                             const DecodeDevice& device, cudaStream_t stream) {
  DecodeInParams in{};
  in.residual = params.x;
  in.norm_weight = params.norm_weight;
  in.norm_eps = params.norm_eps;
  in.weight = weight.data;
  in.scales = weight.scales;
  in.conv.out = params.out;
  in.conv.out_stride = params.out_stride;
  in.rows = params.weight->rows();
  in.cols = params.weight->cols();
  in.num_rows = static_cast<int>(params.num_rows);
  const bool few = params.num_rows <= kTokenTile;
  if (params.num_rows > kMaxDecodeRows || in.cols % 2 != 0 ||
      (few ? DecodeInShared<1>(in.num_rows, in.cols) : DecodeInShared<2>(in.num_rows, in.cols)) >
          device.shared_bytes_per_block) {
    return false;
  }
  if (few) {
    LaunchDecodeIn<1, kMinDecodeConvWidth>(in, device, stream);
  } else {
    LaunchDecodeIn<2, kMinDecodeConvWidth>(in, device, stream);
  }
  return true;
}

}  // namespace vivarium::kernels::cuda
