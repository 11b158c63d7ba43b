// CopyQueue: copies of states beside the ops, on a stream and a thread of their own.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_fault.h"

namespace vivarium::kernels::cuda {

// Host memory is pageable, so its bytes pass through two page-locked pieces in turn: while the
// device fills or empties one, the thread empties or fills the other. One copy at a time, in order.
// Start, IsDone and Wait: from one thread.
class CopyQueue {
 public:
  static constexpr size_t kPieceBytes = size_t{4} << 20;

  // `ordinal` is the current device, which the queue's thread makes its own too; `fault` must
  // outlive it. Null, with the error, when a resource can't be had.
  static std::unique_ptr<CopyQueue> Create(int ordinal, DeviceFault* fault, cudaError_t* error) {
    std::unique_ptr<CopyQueue> queue(new CopyQueue(ordinal, fault));
    *error = queue->Prepare();
    if (*error != cudaSuccess) return nullptr;
    queue->thread_ = std::thread([raw = queue.get()] { raw->Run(); });
    return queue;
  }

  // Ends the copies that were started.
  ~CopyQueue() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
    if (stream_) cudaStreamDestroy(stream_);
    for (cudaEvent_t event : spare_events_) cudaEventDestroy(event);
    for (Piece& piece : pieces_) {
      if (piece.event) cudaEventDestroy(piece.event);
      if (piece.bytes) cudaFreeHost(piece.bytes);
    }
  }
  CopyQueue(const CopyQueue&) = delete;
  CopyQueue& operator=(const CopyQueue&) = delete;

  // Begins when everything that is in `stream` now is complete.
  CopyTicket Start(cudaStream_t stream, void* destination, const void* source, size_t num_bytes,
                   cudaMemcpyKind kind) {
    cudaEvent_t ready = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (!spare_events_.empty()) {
        ready = spare_events_.back();
        spare_events_.pop_back();
      }
    }
    if (!ready) fault_->Check(MakeEvent(&ready), "make event");
    if (ready) fault_->Check(cudaEventRecord(ready, stream), "record event");
    const std::lock_guard lock(mutex_);
    jobs_.push_back({static_cast<std::byte*>(destination), static_cast<const std::byte*>(source),
                     num_bytes, kind, ready});
    changed_.notify_all();
    return ++num_started_;
  }

  bool IsDone(CopyTicket ticket) {
    const std::lock_guard lock(mutex_);
    return num_done_ >= ticket;
  }

  void Wait(CopyTicket ticket) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_done_ >= ticket; });
  }

 private:
  struct Job {
    std::byte* destination;
    const std::byte* source;
    size_t num_bytes;
    cudaMemcpyKind kind;
    cudaEvent_t ready;  // null after a fault
  };
  struct Piece {
    void* bytes = nullptr;
    cudaEvent_t event = nullptr;  // the device is done with it
  };

  CopyQueue(int ordinal, DeviceFault* fault) : ordinal_(ordinal), fault_(fault) {}

  static cudaError_t MakeEvent(cudaEvent_t* event) {
    return cudaEventCreateWithFlags(event, cudaEventDisableTiming | cudaEventBlockingSync);
  }

  cudaError_t Prepare() {
    cudaError_t error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
    for (Piece& piece : pieces_) {
      if (error == cudaSuccess) error = cudaMallocHost(&piece.bytes, kPieceBytes);
      if (error == cudaSuccess) error = MakeEvent(&piece.event);
    }
    return error;
  }

  void Run() {
    fault_->Check(cudaSetDevice(ordinal_), "set device");
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const Job job = jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      // A fault is known before the copy counts as done.
      if (Ok(job.ready ? cudaStreamWaitEvent(stream_, job.ready, 0) : cudaSuccess)) {
        job.kind == cudaMemcpyDeviceToHost ? CopyOut(job) : CopyIn(job);
      }
      // A copy that was given up in the middle must not go on when its memory is gone.
      if (fault_->is_set()) cudaStreamSynchronize(stream_);
      lock.lock();
      if (job.ready) spare_events_.push_back(job.ready);
      ++num_done_;
      changed_.notify_all();
    }
  }

  bool Ok(cudaError_t error) { return fault_->Check(error, "copy of a state"); }

  void CopyOut(const Job& job) {
    const size_t num_pieces = (job.num_bytes + kPieceBytes - 1) / kPieceBytes;
    for (size_t i = 0; i <= num_pieces; ++i) {
      if (i < num_pieces) {
        Piece& piece = pieces_[i % 2];
        if (!Ok(cudaMemcpyAsync(piece.bytes, job.source + i * kPieceBytes, BytesOf(job, i),
                                cudaMemcpyDeviceToHost, stream_)) ||
            !Ok(cudaEventRecord(piece.event, stream_))) {
          return;
        }
      }
      if (i == 0) continue;
      const Piece& before = pieces_[(i - 1) % 2];
      if (!Ok(cudaEventSynchronize(before.event))) return;
      std::memcpy(job.destination + (i - 1) * kPieceBytes, before.bytes, BytesOf(job, i - 1));
    }
  }

  void CopyIn(const Job& job) {
    const size_t num_pieces = (job.num_bytes + kPieceBytes - 1) / kPieceBytes;
    for (size_t i = 0; i < num_pieces; ++i) {
      Piece& piece = pieces_[i % 2];
      if (i >= 2 && !Ok(cudaEventSynchronize(piece.event))) return;
      std::memcpy(piece.bytes, job.source + i * kPieceBytes, BytesOf(job, i));
      if (!Ok(cudaMemcpyAsync(job.destination + i * kPieceBytes, piece.bytes, BytesOf(job, i),
                              cudaMemcpyHostToDevice, stream_)) ||
          !Ok(cudaEventRecord(piece.event, stream_))) {
        return;
      }
    }
    Ok(cudaStreamSynchronize(stream_));
  }

  static size_t BytesOf(const Job& job, size_t piece_index) {
    const size_t left = job.num_bytes - piece_index * kPieceBytes;
    return left < kPieceBytes ? left : kPieceBytes;
  }

  const int ordinal_;
  DeviceFault* const fault_;
  cudaStream_t stream_ = nullptr;
  std::array<Piece, 2> pieces_;  // the thread's
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::vector<cudaEvent_t> spare_events_;
  CopyTicket num_started_ = 0;
  CopyTicket num_done_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace vivarium::kernels::cuda
