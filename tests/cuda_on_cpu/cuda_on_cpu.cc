#include "tests/cuda_on_cpu/cuda_on_cpu.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <deque>
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
constexpr size_t kMaxQueuedLaunches = 32;

enum class Wait : uint8_t { kNone, kBlock, kWarp, kGrid };

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
  int num_grid_waits = 0;
  uint64_t exchange = 0;
  const void* gathered = nullptr;
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

struct Machine;

// One launch: runs its blocks one after the other, threads as fibers.
class Grid {
 public:
  Grid(Machine* machine, dim3 grid, dim3 block, size_t shared_bytes,
       std::function<void()> thread_body)
      : machine_(machine),
        grid_(grid),
        block_(block),
        shared_(shared_bytes + 15),
        body_(std::move(thread_body)) {}
  ~Grid();
  Grid(const Grid&) = delete;
  Grid& operator=(const Grid&) = delete;

  // Before what came before has run: one block, as far as it comes without waiting for that.
  void StartEarly();
  // Afterwards: everything that is left.
  void Finish();
  bool started() const { return started_; }
  std::vector<std::function<void()>> when_complete;

  // For the running thread.
  Fiber& fiber() { return fibers_[current_]; }
  std::vector<Fiber>& fibers() { return fibers_; }
  int current() const { return current_; }
  dim3 grid() const { return grid_; }
  dim3 block() const { return block_; }
  dim3 block_index() const { return block_index_; }
  unsigned char* shared() { return shared_.data(); }
  void Main();
  void Meet(Wait kind, Site site);
  void WaitForGrid();
  void Trigger() { triggered_ = true; }

 private:
  void PrepareFiber(int index);
  void BeginBlock(uint64_t index);
  // False when all that is left waits for what came before, or the block was given up.
  bool Advance();
  void SwitchTo(int index);
  void Yield();
  bool Release(int begin, int end, Wait kind);
  bool ReleaseMeetings();
  bool AnyWaitsForGrid() const;
  void ReportDeadlock();

  Machine* const machine_;
  const dim3 grid_, block_;
  dim3 block_index_;
  std::vector<unsigned char> shared_;
  const std::function<void()> body_;
  std::vector<Fiber> fibers_;
  std::vector<int> order_;
  int current_ = 0;
  int num_live_ = 0;
  uint64_t early_block_ = 0;
  bool started_ = false;
  bool released_ = false;  // what came before is complete
  bool triggered_ = false;
  void* main_stack_pointer_ = nullptr;
  StackBounds main_stack_;
};

Fault FaultOfEnvironment() {
  const char* const launch = std::getenv(kFailLaunchVariable);
  if (launch == nullptr) return {};
  return {Fault::Kind::kFailLaunch, 0, std::atoi(launch)};
}

// The device of one OS thread.
struct Machine {
  std::vector<std::vector<Fiber>> spare_fibers;
  std::deque<std::unique_ptr<Grid>> queue;  // launched, not complete; oldest first
  Grid* running = nullptr;
  Fault fault = FaultOfEnvironment();
  int num_launches = 0;  // complete ones since InjectFault
  std::string error;
  std::vector<LaunchCounts> counts;
  std::mt19937 random{20261124};
  std::vector<std::function<void()>>* recording = nullptr;

  bool Faulty(Fault::Kind kind, int index, const Grid* grid) const {
    return fault.kind == kind && fault.index == index &&
           (fault.launch < 0 || fault.launch == LaunchIndex(grid));
  }
  int LaunchIndex(const Grid* grid) const {
    const auto is_it = [grid](const auto& launched) { return launched.get() == grid; };
    return num_launches +
           static_cast<int>(std::find_if(queue.begin(), queue.end(), is_it) - queue.begin());
  }
  // A block of `grid` has let its dependents go.
  void StartDependent(const Grid* grid);
};

Machine& TheMachine() {
  static thread_local Machine machine;
  return machine;
}

void FiberMain() { TheMachine().running->Main(); }

Grid::~Grid() {
  if (fibers_.empty()) return;
  for (Fiber& fiber : fibers_) {
    if (!fiber.done)
      fiber.stack = nullptr;  // given up: frames, and their redzones, are still there
  }
  machine_->spare_fibers.push_back(std::move(fibers_));
}

void Grid::Main() {
  AfterSwitch(nullptr, &main_stack_);
  body_();
  fiber().done = true;
  Yield();
  __builtin_trap();  // a finished fiber is never resumed
}

void Grid::PrepareFiber(int index) {
  Fiber& fiber = fibers_[index];
  if (!fiber.stack) fiber.stack.reset(new std::byte[kStackBytes]);
  const auto i = static_cast<unsigned>(index);
  fiber.index = {i % block_.x, i / block_.x % block_.y, i / (block_.x * block_.y)};
  fiber.done = false;
  fiber.wait = Wait::kNone;
  fiber.num_barriers = fiber.num_async_waits = fiber.num_grid_waits = 0;
  fiber.open_group.clear();
  fiber.pending_groups.clear();
  // What switch_stack pops: six registers and the return address, below a fake caller's.
  std::byte* const end = fiber.stack.get() + kStackBytes;
  auto** stack = reinterpret_cast<void**>(end - reinterpret_cast<uintptr_t>(end) % 16);
  *--stack = nullptr;
  *--stack = reinterpret_cast<void*>(&FiberMain);
  for (int i_register = 0; i_register < 6; ++i_register) *--stack = nullptr;
  fiber.stack_pointer = stack;
}

void Grid::SwitchTo(int index) {
  current_ = index;
  machine_->running = this;
  void* fake_stack = nullptr;
  BeforeSwitch(&fake_stack, {fibers_[index].stack.get(), kStackBytes});
  cuda_on_cpu_switch_stack(&main_stack_pointer_, fibers_[index].stack_pointer);
  AfterSwitch(fake_stack, nullptr);
  machine_->running = nullptr;
}

void Grid::Yield() {
  Fiber& self = fiber();
  void* fake_stack = nullptr;
  BeforeSwitch(self.done ? nullptr : &fake_stack, main_stack_);
  cuda_on_cpu_switch_stack(&self.stack_pointer, main_stack_pointer_);
  AfterSwitch(fake_stack, &main_stack_);
}

void Grid::Meet(Wait kind, Site site) {
  fiber().wait = kind;
  fiber().site = site;
  Yield();
}

void Grid::WaitForGrid() {
  const int index = fiber().num_grid_waits++;
  if (released_ || machine_->Faulty(Fault::Kind::kSkipGridWait, index, this)) return;
  Meet(Wait::kGrid, {});
}

// Lets the threads [begin, end) go if they have all met at one site. At a block barrier, finished
// threads are not waited for; in a warp collective, every thread must be there.
bool Grid::Release(int begin, int end, Wait kind) {
  const Fiber* first = nullptr;
  for (int i = begin; i < end; ++i) {
    const Fiber& fiber = fibers_[i];
    if (fiber.done && kind == Wait::kBlock) continue;
    if (fiber.done || fiber.wait != kind) return false;
    if (!first) first = &fiber;
    if (!(fiber.site == first->site)) return false;
  }
  if (!first) return false;
  for (int i = begin; i < end; ++i) fibers_[i].wait = Wait::kNone;
  return true;
}

bool Grid::ReleaseMeetings() {
  const int num_threads = static_cast<int>(fibers_.size());
  bool released = Release(0, num_threads, Wait::kBlock);
  for (int begin = 0; begin < num_threads; begin += kWarpSize) {
    released |= Release(begin, std::min(begin + kWarpSize, num_threads), Wait::kWarp);
  }
  return released;
}

bool Grid::AnyWaitsForGrid() const {
  return std::any_of(fibers_.begin(), fibers_.end(),
                     [](const Fiber& fiber) { return fiber.wait == Wait::kGrid; });
}

void Grid::ReportDeadlock() {
  std::string& error = machine_->error;
  if (!error.empty()) return;
  error = "divergent collective in block (" + std::to_string(block_index_.x) + "," +
          std::to_string(block_index_.y) + "," + std::to_string(block_index_.z) + "):";
  for (size_t i = 0; i < fibers_.size() && error.size() < 500; ++i) {
    const Fiber& fiber = fibers_[i];
    error += " thread " + std::to_string(i) +
             (fiber.done ? std::string(" done;")
                         : (fiber.wait == Wait::kBlock ? " block barrier line " : " warp line ") +
                               std::to_string(fiber.site.line) + ";");
  }
}

void Grid::BeginBlock(uint64_t index) {
  block_index_ = {static_cast<unsigned>(index % grid_.x),
                  static_cast<unsigned>(index / grid_.x % grid_.y),
                  static_cast<unsigned>(index / grid_.x / grid_.y)};
  const int num_threads = static_cast<int>(block_.x * block_.y * block_.z);
  if (fibers_.empty() && !machine_->spare_fibers.empty()) {
    fibers_ = std::move(machine_->spare_fibers.back());
    machine_->spare_fibers.pop_back();
  }
  fibers_.resize(num_threads);
  order_.resize(num_threads);
  for (int i = 0; i < num_threads; ++i) {
    order_[i] = i;
    PrepareFiber(i);
  }
  std::shuffle(order_.begin(), order_.end(), machine_->random);
  std::fill(shared_.begin(), shared_.end(), kPoisonByte);
  num_live_ = num_threads;
}

bool Grid::Advance() {
  if (released_) {
    for (Fiber& fiber : fibers_) {
      if (fiber.wait == Wait::kGrid) fiber.wait = Wait::kNone;
    }
  }
  while (num_live_ > 0) {
    // Some warps fall behind the others, so that what only a barrier keeps apart does overlap.
    const uint32_t delayed_warps = static_cast<uint32_t>(machine_->random() & machine_->random());
    bool waits = false;
    for (const int i : order_) {
      if (fibers_[i].done || fibers_[i].wait != Wait::kNone) continue;
      if (delayed_warps >> (i / kWarpSize) & 1) {
        waits = true;
        continue;
      }
      SwitchTo(i);
      if (fibers_[i].done) --num_live_;
      if (triggered_) machine_->StartDependent(this);
    }
    if (num_live_ == 0 || ReleaseMeetings() || waits) continue;
    // Gives up the block's fibers where they are.
    if (!AnyWaitsForGrid() || released_) ReportDeadlock();
    return false;
  }
  return true;
}

void Grid::StartEarly() {
  if (machine_->fault.kind == Fault::Kind::kDropLastBlock) return;
  started_ = true;
  const uint64_t num_blocks = uint64_t{grid_.x} * grid_.y * grid_.z;
  early_block_ = machine_->random() % num_blocks;
  BeginBlock(early_block_);
  Advance();
}

void Grid::Finish() {
  released_ = true;
  uint64_t num_blocks = uint64_t{grid_.x} * grid_.y * grid_.z;
  if (started_) Advance();
  if (machine_->Faulty(Fault::Kind::kDropLastBlock, machine_->fault.index, this)) --num_blocks;
  const uint64_t skipped = started_ ? early_block_ : num_blocks;
  started_ = true;
  for (uint64_t i = 0; i < num_blocks && machine_->error.empty(); ++i) {
    if (i == skipped) continue;
    BeginBlock(i);
    Advance();
  }
  if (fibers_.empty()) return;
  const Fiber& first = fibers_.front();
  machine_->counts.push_back({first.num_barriers, first.num_async_waits, first.num_grid_waits});
}

void Machine::StartDependent(const Grid* grid) {
  for (size_t i = 0; i + 1 < queue.size(); ++i) {
    if (queue[i].get() == grid && !queue[i + 1]->started() && error.empty()) {
      queue[i + 1]->StartEarly();
    }
  }
}

void DoCopies(size_t max_groups_in_flight) {
  auto& groups = TheMachine().running->fiber().pending_groups;
  while (groups.size() > max_groups_in_flight) {
    for (const PendingCopy& copy : groups.front()) {
      std::memcpy(copy.destination, copy.source, copy.num_bytes);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace

void InjectFault(const Fault& fault) {
  Flush();
  TheMachine().fault = fault;
  TheMachine().num_launches = 0;
}

std::string PeekError() { return TheMachine().error; }

std::string LastError() {
  Flush();
  return std::exchange(TheMachine().error, "");
}

LaunchCounts LastLaunchCounts() {
  Flush();
  return TheMachine().counts.empty() ? LaunchCounts{} : TheMachine().counts.back();
}

std::vector<LaunchCounts> TakeLaunchCounts() {
  Flush();
  return std::exchange(TheMachine().counts, {});
}

void Flush() {
  Machine& machine = TheMachine();
  while (!machine.queue.empty()) {
    Grid& grid = *machine.queue.front();
    if (machine.Faulty(Fault::Kind::kFailLaunch, machine.fault.index, &grid)) {
      machine.error = "the device failed in launch " + std::to_string(machine.num_launches);
    }
    if (machine.error.empty()) grid.Finish();
    for (const std::function<void()>& call : grid.when_complete) call();
    machine.queue.pop_front();
    ++machine.num_launches;
  }
}

void WhenComplete(std::function<void()> call) {
  Machine& machine = TheMachine();
  if (machine.queue.empty()) return call();
  machine.queue.back()->when_complete.push_back(std::move(call));
}

void RecordInto(std::vector<std::function<void()>>* recording) {
  Flush();
  TheMachine().recording = recording;
}

void RunOrRecord(std::function<void()> call) {
  if (TheMachine().recording) {
    TheMachine().recording->push_back([call = std::move(call)] { RunOrRecord(call); });
  } else {
    Flush();
    call();
  }
}

void Launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> thread_body,
            LaunchOrder order) {
  Machine& machine = TheMachine();
  if (machine.recording) {
    machine.recording->push_back(
        [=, body = std::move(thread_body)] { Launch(grid, block, shared_bytes, body, order); });
    return;
  }
  const uint64_t num_threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t num_blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (num_threads == 0 || num_threads > kMaxThreadsPerBlock || num_blocks == 0 || grid.y > 65535 ||
      grid.z > 65535 || shared_bytes > kMaxSharedBytes) {
    machine.error = "invalid launch: " + std::to_string(num_blocks) + " blocks of " +
                    std::to_string(num_threads) + " threads, " + std::to_string(shared_bytes) +
                    " bytes of shared memory";
    return;
  }
  if (order == LaunchOrder::kSerial || machine.queue.size() >= kMaxQueuedLaunches) Flush();
  machine.queue.push_back(
      std::make_unique<Grid>(&machine, grid, block, shared_bytes, std::move(thread_body)));
  // What follows a serial launch may start when that has let it go, which it never does.
  if (order == LaunchOrder::kSerial) Flush();
}

dim3 ThreadIndex() { return TheMachine().running->fiber().index; }
dim3 BlockIndex() { return TheMachine().running->block_index(); }
dim3 BlockDimension() { return TheMachine().running->block(); }
dim3 GridDimension() { return TheMachine().running->grid(); }
int LaneIndex() { return TheMachine().running->current() % kWarpSize; }

unsigned char* SharedMemory() {
  unsigned char* const memory = TheMachine().running->shared();
  return memory + (16 - reinterpret_cast<uintptr_t>(memory) % 16) % 16;
}

void BlockBarrier(Site site) {
  Machine& machine = TheMachine();
  const int index = machine.running->fiber().num_barriers++;
  if (machine.fault.kind == Fault::Kind::kSkipBarrier && machine.fault.line == site.line) return;
  if (machine.Faulty(Fault::Kind::kSkipBarrier, index, machine.running)) return;
  machine.running->Meet(Wait::kBlock, site);
}

void WarpBarrier(Site site) { TheMachine().running->Meet(Wait::kWarp, site); }

uint64_t WarpExchange(uint64_t value, int source_lane, Site site) {
  Grid& grid = *TheMachine().running;
  grid.fiber().exchange = value;
  grid.Meet(Wait::kWarp, site);
  const int source = grid.current() / kWarpSize * kWarpSize + source_lane % kWarpSize;
  const uint64_t result = grid.fibers()[source].exchange;
  grid.Meet(Wait::kWarp, site);  // nobody overwrites what another still reads
  return result;
}

void WarpGather(const void* mine, size_t num_bytes, void* all, Site site) {
  Grid& grid = *TheMachine().running;
  grid.fiber().gathered = mine;
  grid.Meet(Wait::kWarp, site);
  const int first = grid.current() / kWarpSize * kWarpSize;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    std::memcpy(static_cast<std::byte*>(all) + lane * num_bytes,
                grid.fibers()[first + lane].gathered, num_bytes);
  }
  grid.Meet(Wait::kWarp, site);
}

void GridWait() { TheMachine().running->WaitForGrid(); }
void GridTrigger() { TheMachine().running->Trigger(); }

void AsyncCopy(void* shared_destination, const void* source, int copy_bytes) {
  Machine& machine = TheMachine();
  if (machine.random() % 2 == 0) std::memcpy(shared_destination, source, copy_bytes);
  machine.running->fiber().open_group.push_back({shared_destination, source, copy_bytes});
}

bool LosesAdd(int line) {
  const Fault& fault = TheMachine().fault;
  return fault.kind == Fault::Kind::kLoseAdd && fault.line == line;
}

void AsyncCommit() {
  Fiber& fiber = TheMachine().running->fiber();
  fiber.pending_groups.push_back(std::exchange(fiber.open_group, {}));
}

void AsyncWait(int max_groups_in_flight) {
  Machine& machine = TheMachine();
  const int index = machine.running->fiber().num_async_waits++;
  if (machine.Faulty(Fault::Kind::kSkipAsyncWait, index, machine.running)) return;
  DoCopies(static_cast<size_t>(max_groups_in_flight));
}

}  // namespace cuda_on_cpu
