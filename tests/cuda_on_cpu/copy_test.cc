// Copies beside the ops, and a device that fails, on the emulated device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/copy_queue.h"
#include "tests/cuda_on_cpu/cuda_on_cpu.h"

namespace vivarium::kernels {
namespace {

using cuda_on_cpu::StreamFault;
using ::testing::HasSubstr;

constexpr size_t kPiece = cuda::CopyQueue::kPieceBytes;

std::unique_ptr<Backend> MakeBackend() {
  std::string error;
  auto backend = Backend::Create("cuda:0", {.deterministic = true}, &error);
  EXPECT_NE(backend, nullptr) << error;
  return backend;
}

std::vector<unsigned char> RandomBytes(size_t size, uint32_t seed) {
  std::vector<unsigned char> bytes(size);
  std::mt19937 random(seed);
  for (size_t i = 0; i < size; i += 97) bytes[i] = static_cast<unsigned char>(random());
  return bytes;
}

// A kernel that may run late: fills `bytes` bytes at `destination`.
void FillLate(void* destination, int value, size_t bytes) {
  cuda_on_cpu::Launch(
      dim3(1), dim3(1), 0, [=] { std::memset(destination, value, bytes); },
      cuda_on_cpu::LaunchOrder::kDependent);
}

class Copies : public ::testing::Test {
 protected:
  ~Copies() override {
    cuda_on_cpu::InjectStreamFault(StreamFault::kNone);
    backend_ = nullptr;  // ends what a fault has left under way
    for (void* memory : memory_) cudaFree(memory);
  }

  void* Allocate(size_t size) { return memory_.emplace_back(backend_->Allocate(size)); }

  // To the device and back; whether all bytes arrived.
  bool RoundTrip(size_t size, uint32_t seed) {
    const std::vector<unsigned char> sent = RandomBytes(size, seed);
    std::vector<unsigned char> received(size, 0xa5);
    void* const memory = Allocate(size);
    const CopyTicket there = backend_->StartCopyToDevice(memory, sent.data(), size);
    backend_->WaitForCopy(there);
    EXPECT_TRUE(backend_->IsCopyDone(there));
    const CopyTicket back = backend_->StartCopyToHost(received.data(), memory, size);
    EXPECT_GT(back, there);
    backend_->WaitForCopy(back);
    return received == sent;
  }

  // Whether a copy that is started behind a late kernel has what the kernel wrote.
  bool SeesKernelBefore() {
    std::vector<unsigned char> received(1000, 0);
    void* const memory = Allocate(received.size());
    FillLate(memory, 7, received.size());
    const CopyTicket ticket = backend_->StartCopyToHost(received.data(), memory, received.size());
    // A copy that does not wait for the kernel gets its time.
    for (int i = 0; i < 20 && !backend_->IsCopyDone(ticket); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    backend_->WaitForCopy(ticket);
    return received == std::vector<unsigned char>(received.size(), 7);
  }

  std::unique_ptr<Backend> backend_ = MakeBackend();
  std::vector<void*> memory_;
};

TEST_F(Copies, EveryByteArrives) {
  EXPECT_TRUE(backend_->copies_overlap());
  for (const size_t size :
       {size_t{1}, size_t{64}, kPiece - 1, kPiece, kPiece + 1, 3 * kPiece + 5}) {
    for (uint32_t seed = 0; seed < 4; ++seed) EXPECT_TRUE(RoundTrip(size, seed)) << size;
  }
}

TEST_F(Copies, BeginAfterTheOpsBefore) {
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(SeesKernelBefore());
}

TEST_F(Copies, AreDoneInOrder) {
  std::vector<std::vector<unsigned char>> received(20, std::vector<unsigned char>(100));
  auto* const memory = static_cast<unsigned char*>(Allocate(2000));
  std::vector<CopyTicket> tickets;
  for (size_t i = 0; i < received.size(); ++i) {
    FillLate(memory + 100 * i, static_cast<int>(i), 100);
    tickets.push_back(backend_->StartCopyToHost(received[i].data(), memory + 100 * i, 100));
  }
  backend_->WaitForCopy(tickets.back());
  for (size_t i = 0; i < received.size(); ++i) {
    EXPECT_TRUE(backend_->IsCopyDone(tickets[i]));
    EXPECT_EQ(received[i], std::vector<unsigned char>(100, static_cast<unsigned char>(i)));
  }
}

TEST_F(Copies, AreEndedByTheBackend) {
  std::vector<unsigned char> received(100);
  void* const memory = Allocate(100);
  FillLate(memory, 3, 100);
  backend_->StartCopyToHost(received.data(), memory, 100);
  backend_ = nullptr;
  EXPECT_EQ(received, std::vector<unsigned char>(100, 3));
}

TEST_F(Copies, ADroppedStreamWaitShows) {
  cuda_on_cpu::InjectStreamFault(StreamFault::kSkipStreamWait);
  EXPECT_FALSE(SeesKernelBefore());
}

TEST_F(Copies, ADroppedEventWaitShows) {
  cuda_on_cpu::InjectStreamFault(StreamFault::kSkipEventSynchronize);
  bool shows = false;
  for (uint32_t seed = 0; seed < 20 && !shows; ++seed) shows = !RoundTrip(3 * kPiece, seed);
  EXPECT_TRUE(shows);
}

TEST(DeviceFault, IsKeptAndEndsEveryCopy) {
  auto backend = MakeBackend();
  std::vector<unsigned char> host(100);
  void* const memory = backend->Allocate(100);
  backend->Synchronize();
  EXPECT_EQ(backend->fault(), "");
  cuda_on_cpu::InjectFault({cuda_on_cpu::Fault::Kind::kFailLaunch, 0, 1});
  FillLate(memory, 1, 100);
  FillLate(memory, 2, 100);
  const CopyTicket ticket = backend->StartCopyToHost(host.data(), memory, 100);
  backend->Synchronize();
  EXPECT_THAT(backend->fault(), HasSubstr("the device failed in launch 1"));
  backend->WaitForCopy(ticket);
  EXPECT_TRUE(backend->IsCopyDone(ticket));
  // Whatever comes now, the first fault stays, and nothing hangs.
  const std::string first = backend->fault();
  backend->Zero(memory, 100);
  backend->CopyToHost(host.data(), memory, 100);
  backend->WaitForCopy(backend->StartCopyToDevice(memory, host.data(), 100));
  EXPECT_EQ(backend->fault(), first);
  backend->Free(memory);
  backend = nullptr;
  EXPECT_THAT(cuda_on_cpu::LastError(), HasSubstr("launch 1"));
  cuda_on_cpu::InjectFault({});
  EXPECT_EQ(MakeBackend()->fault(), "");
}

}  // namespace
}  // namespace vivarium::kernels
