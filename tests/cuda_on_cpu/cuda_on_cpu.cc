#include "tests/cuda_on_cpu/cuda_on_cpu.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" void cuda_on_cpu_switch_stack(void** save_stack_pointer, void* load_stack_pointer);

namespace cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr unsigned char kPoisonByte = 0xff;  // NaN in every floating-point format

enum class Wait : uint8_t { kNone, kBlock, kWarp };

struct PendingCopy {
  void* destination;
  const void* source;
  int num_bytes;
};

// One CUDA thread.
struct Fiber {
  void* stack_pointer = nullptr;
  std::unique_ptr<std::byte[]> stack;
  dim3 index;
  bool done = false;
  Wait wait = Wait::kNone;
  Site site{};
  int num_barriers = 0;
  int num_async_waits = 0;
  uint64_t exchange = 0;
  std::vector<PendingCopy> open_group;                   // since the last commit
  std::vector<std::vector<PendingCopy>> pending_groups;  // oldest first
};

// A stack for the sanitizers: they follow switches between stacks when told.
struct StackBounds {
  const void* bottom = nullptr;
  size_t bytes = 0;
};

void BeforeSwitch([[maybe_unused]] void** fake_stack, [[maybe_unused]] StackBounds to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, to.bottom, to.bytes);
#endif
}

void AfterSwitch([[maybe_unused]] void* fake_stack, [[maybe_unused]] StackBounds* from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, from ? &from->bottom : nullptr,
                                  from ? &from->bytes : nullptr);
#endif
}

// Runs blocks, one after the other.
struct Machine {
  std::vector<Fiber> fibers;
  int current = 0;
  dim3 grid, block, block_index;
  std::vector<unsigned char> shared;
  const std::function<void()>* body = nullptr;
  Fault fault;
  std::string error;
  LaunchCounts counts;
  std::mt19937 random{20261124};
  void* main_stack_pointer = nullptr;
  StackBounds main_stack;

  Fiber& fiber() { return fibers[current]; }
  void PrepareFiber(int index);
  void RunBlock();
  void SwitchTo(int index);
  void Yield();
  void Meet(Wait kind, Site site);
  bool Release(int begin, int end, Wait kind);
  bool ReleaseMeetings();
  void ReportDeadlock();
  void DoCopies(size_t max_groups_in_flight);
};

Machine& TheMachine() {
  static thread_local Machine machine;
  return machine;
}

void FiberMain() {
  Machine& machine = TheMachine();
  AfterSwitch(nullptr, &machine.main_stack);
  (*machine.body)();
  machine.fiber().done = true;
  machine.Yield();
  __builtin_trap();  // a finished fiber is never resumed
}

void Machine::PrepareFiber(int index) {
  Fiber& fiber = fibers[index];
  if (!fiber.stack) fiber.stack.reset(new std::byte[kStackBytes]);
  const auto i = static_cast<unsigned>(index);
  fiber.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  fiber.done = false;
  fiber.wait = Wait::kNone;
  fiber.num_barriers = fiber.num_async_waits = 0;
  fiber.open_group.clear();
  fiber.pending_groups.clear();
  // What switch_stack pops: six registers and the return address, below a fake caller's.
  const auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStackBytes) & ~uintptr_t{15};
  auto** stack = reinterpret_cast<void**>(top);
  *--stack = nullptr;
  *--stack = reinterpret_cast<void*>(&FiberMain);
  for (int i_register = 0; i_register < 6; ++i_register) *--stack = nullptr;
  fiber.stack_pointer = stack;
}

void Machine::SwitchTo(int index) {
  current = index;
  void* fake_stack = nullptr;
  BeforeSwitch(&fake_stack, {fibers[index].stack.get(), kStackBytes});
  cuda_on_cpu_switch_stack(&main_stack_pointer, fibers[index].stack_pointer);
  AfterSwitch(fake_stack, nullptr);
}

void Machine::Yield() {
  Fiber& self = fiber();
  void* fake_stack = nullptr;
  BeforeSwitch(self.done ? nullptr : &fake_stack, main_stack);
  cuda_on_cpu_switch_stack(&self.stack_pointer, main_stack_pointer);
  AfterSwitch(fake_stack, &main_stack);
}

void Machine::Meet(Wait kind, Site site) {
  fiber().wait = kind;
  fiber().site = site;
  Yield();
}

// Lets the threads [begin, end) go if they have all met at one site. At a block barrier, finished
// threads are not waited for; in a warp collective, every thread must be there.
bool Machine::Release(int begin, int end, Wait kind) {
  const Fiber* first = nullptr;
  for (int i = begin; i < end; ++i) {
    const Fiber& fiber = fibers[i];
    if (fiber.done && kind == Wait::kBlock) continue;
    if (fiber.done || fiber.wait != kind) return false;
    if (!first) first = &fiber;
    if (!(fiber.site == first->site)) return false;
  }
  if (!first) return false;
  for (int i = begin; i < end; ++i) fibers[i].wait = Wait::kNone;
  return true;
}

bool Machine::ReleaseMeetings() {
  const int num_threads = static_cast<int>(fibers.size());
  bool released = Release(0, num_threads, Wait::kBlock);
  for (int begin = 0; begin < num_threads; begin += kWarpSize) {
    released |= Release(begin, std::min(begin + kWarpSize, num_threads), Wait::kWarp);
  }
  return released;
}

void Machine::ReportDeadlock() {
  if (!error.empty()) return;
  error = "divergent collective in block (" + std::to_string(block_index.x) + "," +
          std::to_string(block_index.y) + "," + std::to_string(block_index.z) + "):";
  for (size_t i = 0; i < fibers.size() && error.size() < 500; ++i) {
    const Fiber& fiber = fibers[i];
    error += " thread " + std::to_string(i) +
             (fiber.done ? std::string(" done;")
                         : (fiber.wait == Wait::kBlock ? " block barrier line " : " warp line ") +
                               std::to_string(fiber.site.line) + ";");
  }
}

void Machine::RunBlock() {
  const int num_threads = static_cast<int>(fibers.size());
  std::vector<int> order(num_threads);
  for (int i = 0; i < num_threads; ++i) {
    order[i] = i;
    PrepareFiber(i);
  }
  std::shuffle(order.begin(), order.end(), random);
  std::fill(shared.begin(), shared.end(), kPoisonByte);
  for (int num_live = num_threads; num_live > 0;) {
    // Some warps fall behind the others, so that what only a barrier keeps apart does overlap.
    const uint32_t delayed_warps = static_cast<uint32_t>(random() & random());
    bool waits = false;
    for (const int i : order) {
      if (fibers[i].done || fibers[i].wait != Wait::kNone) continue;
      if (delayed_warps >> (i / kWarpSize) & 1) {
        waits = true;
        continue;
      }
      SwitchTo(i);
      if (fibers[i].done) --num_live;
    }
    // Abandons the block's fibers where they are: their stacks are reused.
    if (num_live > 0 && !ReleaseMeetings() && !waits) return ReportDeadlock();
  }
  counts = {fibers[0].num_barriers, fibers[0].num_async_waits};
}

void Machine::DoCopies(size_t max_groups_in_flight) {
  auto& groups = fiber().pending_groups;
  while (groups.size() > max_groups_in_flight) {
    for (const PendingCopy& copy : groups.front()) {
      std::memcpy(copy.destination, copy.source, copy.num_bytes);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace

void InjectFault(const Fault& fault) { TheMachine().fault = fault; }

std::string LastError() { return std::exchange(TheMachine().error, ""); }

LaunchCounts LastLaunchCounts() { return TheMachine().counts; }

void Launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread_body) {
  Machine& machine = TheMachine();
  const uint64_t num_threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t num_blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (num_threads == 0 || num_threads > kMaxThreadsPerBlock || num_blocks == 0 || grid.y > 65535 ||
      grid.z > 65535 || shared_bytes > kMaxSharedBytes) {
    machine.error = "invalid launch: " + std::to_string(num_blocks) + " blocks of " +
                    std::to_string(num_threads) + " threads, " + std::to_string(shared_bytes) +
                    " bytes of shared memory";
    return;
  }
  machine.fibers.resize(num_threads);
  machine.grid = grid;
  machine.block = block;
  machine.shared.resize(shared_bytes + 15);
  machine.body = &thread_body;
  uint64_t num_run = num_blocks;
  if (machine.fault.kind == Fault::Kind::kDropLastBlock) --num_run;
  for (uint64_t i = 0; i < num_run; ++i) {
    machine.block_index = {static_cast<unsigned>(i % grid.x),
                           static_cast<unsigned>(i / grid.x % grid.y),
                           static_cast<unsigned>(i / grid.x / grid.y)};
    machine.RunBlock();
    if (!machine.error.empty()) return;
  }
}

dim3 ThreadIndex() { return TheMachine().fiber().index; }
dim3 BlockIndex() { return TheMachine().block_index; }
dim3 BlockDimension() { return TheMachine().block; }
dim3 GridDimension() { return TheMachine().grid; }
int LaneIndex() { return TheMachine().current % kWarpSize; }

unsigned char* SharedMemory() {
  const auto address = reinterpret_cast<uintptr_t>(TheMachine().shared.data());
  return reinterpret_cast<unsigned char*>((address + 15) & ~uintptr_t{15});
}

void BlockBarrier(Site site) {
  Machine& machine = TheMachine();
  const int index = machine.fiber().num_barriers++;
  if (machine.fault.kind == Fault::Kind::kSkipBarrier && machine.fault.index == index) return;
  machine.Meet(Wait::kBlock, site);
}

void WarpBarrier(Site site) { TheMachine().Meet(Wait::kWarp, site); }

uint64_t WarpExchange(uint64_t value, int source_lane, Site site) {
  Machine& machine = TheMachine();
  machine.fiber().exchange = value;
  machine.Meet(Wait::kWarp, site);
  const int source = machine.current / kWarpSize * kWarpSize + source_lane % kWarpSize;
  const uint64_t result = machine.fibers[source].exchange;
  machine.Meet(Wait::kWarp, site);  // nobody overwrites what another still reads
  return result;
}

void WarpGather(const void* mine, size_t num_bytes, void* all, Site site) {
  Machine& machine = TheMachine();
  machine.fiber().exchange = reinterpret_cast<uintptr_t>(mine);
  machine.Meet(Wait::kWarp, site);
  const int first = machine.current / kWarpSize * kWarpSize;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    std::memcpy(static_cast<std::byte*>(all) + lane * num_bytes,
                reinterpret_cast<const void*>(machine.fibers[first + lane].exchange), num_bytes);
  }
  machine.Meet(Wait::kWarp, site);
}

void AsyncCopy(void* shared_destination, const void* source, int copy_bytes) {
  Machine& machine = TheMachine();
  if (machine.random() % 2 == 0) std::memcpy(shared_destination, source, copy_bytes);
  machine.fiber().open_group.push_back({shared_destination, source, copy_bytes});
}

void AsyncCommit() {
  Fiber& fiber = TheMachine().fiber();
  fiber.pending_groups.push_back(std::exchange(fiber.open_group, {}));
}

void AsyncWait(int max_groups_in_flight) {
  Machine& machine = TheMachine();
  const int index = machine.fiber().num_async_waits++;
  if (machine.fault.kind == Fault::Kind::kSkipAsyncWait && machine.fault.index == index) return;
  machine.DoCopies(static_cast<size_t>(max_groups_in_flight));
}

}  // namespace cuda_on_cpu

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = std::aligned_alloc(256, (std::max<size_t>(bytes, 1) + 255) / 256 * 256);
  if (!*pointer) return cudaErrorMemoryAllocation;
  std::memset(*pointer, 0xff, bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(destination, source, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int byte, size_t bytes, cudaStream_t) {
  std::memset(pointer, byte, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

cudaError_t cudaGetLastError() {
  return cuda_on_cpu::TheMachine().error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  return cuda_on_cpu::TheMachine().error.c_str();
}
