// Streams and events of cuda_on_cpu.h.
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "tests/cuda_on_cpu/cuda_on_cpu.h"

namespace {

// Of all OS threads: streams and events go from one to another.
struct Streams {
  std::mutex mutex;
  std::condition_variable event_done;
  std::mt19937 random{20261125};
  cuda_on_cpu::StreamFault fault = cuda_on_cpu::StreamFault::kNone;
  std::map<std::thread::id, int> num_streams;  // by the thread that made them
};

Streams& TheStreams() {
  static Streams streams;
  return streams;
}

bool IsInjected(cuda_on_cpu::StreamFault fault) {
  const std::lock_guard lock(TheStreams().mutex);
  return TheStreams().fault == fault;
}

}  // namespace

struct CudaEventOnCpu {
  uint64_t num_recorded = 0;
  uint64_t num_done = 0;
  cudaStream_t stream = nullptr;  // of copies, in which it was recorded last
};

struct CudaStreamOnCpu {
  const std::thread::id maker = std::this_thread::get_id();
  bool is_for_launches = false;
  std::deque<std::function<void()>> calls;  // not yet done; used by one OS thread at a time

  void DoNext() {
    const std::function<void()> call = std::move(calls.front());
    calls.pop_front();
    call();
  }
  // Now or later.
  void Put(std::function<void()> call) {
    calls.push_back(std::move(call));
    for (;;) {
      {
        const std::lock_guard lock(TheStreams().mutex);
        if (calls.empty() || TheStreams().random() % 2 == 0) return;
      }
      DoNext();
    }
  }
};

namespace {

void MarkDone(cudaEvent_t event, uint64_t record) {
  const std::lock_guard lock(TheStreams().mutex);
  event->num_done = std::max(event->num_done, record);
  TheStreams().event_done.notify_all();
}

void Await(cudaEvent_t event, uint64_t record) {
  std::unique_lock lock(TheStreams().mutex);
  TheStreams().event_done.wait(lock, [&] { return event->num_done >= record; });
}

bool IsDone(cudaEvent_t event) {
  const std::lock_guard lock(TheStreams().mutex);
  return event->num_done >= event->num_recorded;
}

// So is the null stream.
bool IsForLaunches(cudaStream_t stream) { return stream == nullptr || stream->is_for_launches; }

cudaError_t Status() {
  return cuda_on_cpu::PeekError().empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace

void cuda_on_cpu::InjectStreamFault(StreamFault fault) {
  const std::lock_guard lock(TheStreams().mutex);
  TheStreams().fault = fault;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CudaStreamOnCpu;
  const std::lock_guard lock(TheStreams().mutex);
  (*stream)->is_for_launches = TheStreams().num_streams[(*stream)->maker]++ == 0;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  {
    const std::lock_guard lock(TheStreams().mutex);
    --TheStreams().num_streams[stream->maker];
  }
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (cuda_on_cpu::IsCapturing()) return cudaErrorStreamCaptureUnsupported;
  if (IsForLaunches(stream)) cuda_on_cpu::Flush();
  while (stream != nullptr && !stream->calls.empty()) stream->DoNext();
  return Status();
}

// Time passes: a device would be done by and by.
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const auto copy = [=] { std::memcpy(destination, source, bytes); };
  if (IsForLaunches(stream)) {
    cuda_on_cpu::RunOrRecord(copy);
  } else {
    stream->Put(copy);
  }
  return Status();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CudaEventOnCpu;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  uint64_t record = 0;
  {
    const std::lock_guard lock(TheStreams().mutex);
    record = ++event->num_recorded;
    event->stream = IsForLaunches(stream) ? nullptr : stream;
  }
  const auto mark = [event, record] { MarkDone(event, record); };
  if (IsForLaunches(stream)) {
    cuda_on_cpu::WhenComplete(mark);
  } else {
    stream->Put(mark);
  }
  return Status();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (IsInjected(cuda_on_cpu::StreamFault::kSkipStreamWait)) return Status();
  uint64_t record = 0;
  {
    const std::lock_guard lock(TheStreams().mutex);
    record = event->num_recorded;
  }
  stream->Put([event, record] { Await(event, record); });
  return Status();
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (IsInjected(cuda_on_cpu::StreamFault::kSkipEventSynchronize)) return Status();
  if (event->stream != nullptr) {
    while (!IsDone(event)) event->stream->DoNext();
  }
  Await(event, event->num_recorded);
  return Status();
}
