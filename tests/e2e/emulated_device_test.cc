// The whole server on the CUDA kernels, without a GPU: `vivarium_emulated` is the product on the
// device of tests/cuda_on_cpu. What a stream computes depends on its request alone; a thread moves
// to the CPU and back; a device that fails ends every stream with the place to go on from.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/e2e/grpc_client.h"
#include "tests/e2e/neighbours.h"
#include "tests/support/mamba_files.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_dir.h"

namespace vivarium {
namespace {

using ::testing::HasSubstr;
using ::vivarium::test::ServerProcess;
using ::vivarium::test::ServerProcessOptions;

constexpr int kHalf = 10;
constexpr int kPromptTokens = 40;
constexpr int kExitDeviceFault = 5;  // server/README.md

class EmulatedDeviceTest : public ::testing::Test {
 protected:
  EmulatedDeviceTest() {
    test::WriteMambaModel({.num_layers = 2,
                           .d_model = 32,
                           .d_inner = 64,
                           .d_state = 16,
                           .dt_rank = 4,
                           .vocab_size = 200,
                           .dtype = kernels::DType::kBF16},
                          model_.path());
  }
  ServerProcessOptions OnDevice(std::vector<std::string> args = {}) const {
    args.insert(args.end(), {"--device", "cuda:0"});
    return {.program = "vivarium_emulated", .model_dir = model_.path(), .args = std::move(args)};
  }
  // The product as it is.
  ServerProcessOptions OnCpu(const std::string& store_dir) const {
    return {.model_dir = model_.path(), .store_dir = store_dir, .args = {"--device", "cpu"}};
  }
  static std::unique_ptr<ServerProcess> Start(const ServerProcessOptions& options) {
    auto server = ServerProcess::Start(options);
    EXPECT_TRUE(server.ok()) << server.status();
    return server.ok() ? *std::move(server) : nullptr;
  }

 private:
  test::TempDir model_;
};

v1::GenerateRequest Request(int max_tokens) {
  v1::GenerateRequest request;
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_logprobs(0);
  request.mutable_stops()->set_ignore_eos(true);
  request.mutable_save()->set_at_end(true);
  return request;
}

v1::GenerateRequest FreshRequest(int max_tokens) {
  v1::GenerateRequest request = Request(max_tokens);
  for (int i = 0; i < kPromptTokens; ++i) request.mutable_token_ids()->add_ids(4 + i * i % 190);
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.9f);
  sampling.set_top_p(0.95f);
  sampling.set_repetition_penalty(1.1f);
  sampling.set_seed(20261124);
  return request;
}

// The rest of the sampling is inherited from the state.
v1::GenerateRequest ResumeRequest(const std::string& state_id, int max_tokens) {
  v1::GenerateRequest request = Request(max_tokens);
  request.set_state_id(state_id);
  return request;
}

Generated Generate(const ServerProcess& server, const v1::GenerateRequest& request) {
  Generated result = GrpcClient(server.address()).Generate(request);
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.token_ids.size(), static_cast<size_t>(request.max_tokens()));
  return result;
}

template <typename T>
std::vector<T> Joined(std::vector<T> first, const std::vector<T>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// 2k tokens in one go are k tokens, kill -9, restart, resume, k tokens, bit for bit, whatever the
// slots, the neighbours, and the way the prompt was cut.
TEST_F(EmulatedDeviceTest, TokensDependOnTheRequestAlone) {
  const auto alone = Start(OnDevice({"--max-slots", "1"}));
  ASSERT_TRUE(alone);
  const Generated whole = Generate(*alone, FreshRequest(2 * kHalf));
  ASSERT_TRUE(whole.finished);
  struct Shape {
    const char* max_slots;
    const char* prefill_chunk;
    int neighbours;
  };
  for (const Shape& shape : {Shape{"1", "7", 1}, Shape{"3", "1", 4}}) {
    SCOPED_TRACE(std::string("slots ") + shape.max_slots + ", chunk " + shape.prefill_chunk);
    const auto server = Start(OnDevice({"--max-slots", shape.max_slots, "--prefill-chunk",
                                        shape.prefill_chunk, "--time-slice-tokens", "5"}));
    ASSERT_TRUE(server);
    Generated first, second;
    {
      const Neighbours neighbours(server->address(), shape.neighbours);
      first = Generate(*server, FreshRequest(kHalf));
    }
    ASSERT_TRUE(first.finished);
    server->KillHard();
    ASSERT_TRUE(server->Restart().ok());
    {
      const Neighbours neighbours(server->address(), shape.neighbours);
      second = Generate(*server, ResumeRequest(first.finished->state().id(), kHalf));
    }
    ASSERT_TRUE(second.finished);
    EXPECT_EQ(second.started->restored_tokens(), first.finished->state().position());
    EXPECT_FALSE(second.started->numerics_changed());
    EXPECT_EQ(second.finished->usage().prefill_tokens(), 1u);
    EXPECT_EQ(Joined(first.token_ids, second.token_ids), whole.token_ids);
    EXPECT_EQ(Joined(first.logprob_bits, second.logprob_bits), whole.logprob_bits);
    EXPECT_EQ(second.finished->state().position(), whole.finished->state().position());
  }
}

TEST_F(EmulatedDeviceTest, AThreadMovesToTheCpuAndBack) {
  const auto device = Start(OnDevice());
  ASSERT_TRUE(device);
  const Generated first = Generate(*device, FreshRequest(kHalf));
  ASSERT_TRUE(first.finished);
  const Generated stayed = Generate(*device, ResumeRequest(first.finished->state().id(), 1));
  device->KillHard();

  const auto cpu = Start(OnCpu(device->store_dir()));
  ASSERT_TRUE(cpu);
  const Generated second = Generate(*cpu, ResumeRequest(first.finished->state().id(), kHalf));
  ASSERT_TRUE(second.started && second.finished && stayed.finished);
  EXPECT_TRUE(second.started->numerics_changed());
  EXPECT_EQ(second.started->restored_tokens(), first.finished->state().position());
  EXPECT_EQ(second.finished->usage().prefill_tokens(), 1u);
  // Rounding turns a sampled choice only beside a boundary.
  EXPECT_EQ(second.token_ids[0], stayed.token_ids[0]);
  cpu->KillHard();

  ASSERT_TRUE(device->Restart().ok());
  const Generated third = Generate(*device, ResumeRequest(second.finished->state().id(), kHalf));
  ASSERT_TRUE(third.finished);
  EXPECT_TRUE(third.started->numerics_changed());
  EXPECT_EQ(third.finished->usage().prefill_tokens(), 1u);
  EXPECT_EQ(third.finished->state().position(), first.finished->state().position() + 2 * kHalf);
}

// Health.Watch: the bytes of each HealthCheckResponse{status}, until the server goes.
class HealthWatch {
 public:
  explicit HealthWatch(const std::string& address)
      : stub_(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())) {
    call_ = stub_.PrepareCall(&context_, "/grpc.health.v1.Health/Watch", &queue_);
    call_->StartCall(nullptr);
    EXPECT_TRUE(Await());
    const grpc::Slice everything("", 0);
    call_->WriteLast(grpc::ByteBuffer(&everything, 1), grpc::WriteOptions(), nullptr);
    EXPECT_TRUE(Await());
  }
  // "" when there is no further one.
  std::string Next() {
    grpc::ByteBuffer response;
    call_->Read(&response, nullptr);
    grpc::Slice bytes;
    if (!Await() || !response.DumpToSingleSlice(&bytes).ok()) return "";
    return {reinterpret_cast<const char*>(bytes.begin()), bytes.size()};
  }
  ~HealthWatch() {
    context_.TryCancel();
    grpc::Status status;
    call_->Finish(&status, nullptr);
    (void)Await();
  }
  HealthWatch(const HealthWatch&) = delete;
  HealthWatch& operator=(const HealthWatch&) = delete;

 private:
  bool Await() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};
constexpr char kServing[] = "\x08\x01";
constexpr char kNotServing[] = "\x08\x02";

google::rpc::ErrorInfo ErrorInfoOf(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  for (const google::protobuf::Any& any : details.details()) {
    if (any.UnpackTo(&info)) return info;
  }
  ADD_FAILURE() << "no ErrorInfo";
  return info;
}

void ExpectDeviceFault(const Generated& result) {
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(result.status.error_message(), HasSubstr("the device failed in launch"));
  EXPECT_EQ(ErrorInfoOf(result.status).reason(), "DEVICE_FAULT");
  EXPECT_FALSE(result.finished);
}

// Every one of `states`, which were acknowledged, is there; those past the prompt go on as the
// undisturbed stream did.
void ExpectAllThere(const ServerProcess& server, const std::vector<v1::State>& states,
                    const std::vector<int32_t>& undisturbed) {
  const GrpcClient client(server.address());
  std::vector<v1::State> past_prompt;
  for (const v1::State& state : states) {
    grpc::ClientContext context;
    v1::GetStateRequest get;
    get.set_id(state.id());
    v1::State found;
    const grpc::Status status = client.states->GetState(&context, get, &found);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(found.position(), state.position());
    if (state.position() >= kPromptTokens) past_prompt.push_back(state);
  }
  ASSERT_FALSE(past_prompt.empty());
  for (const v1::State& state : {past_prompt.front(), past_prompt.back()}) {
    const Generated rest = Generate(server, ResumeRequest(state.id(), kHalf));
    ASSERT_TRUE(rest.started);
    EXPECT_EQ(rest.started->restored_tokens(), state.position());
    EXPECT_FALSE(rest.started->numerics_changed());
    // The outputs up to the pending one are known.
    const auto expected =
        undisturbed.begin() + static_cast<int64_t>(state.position() + 1 - kPromptTokens);
    EXPECT_EQ(rest.token_ids, std::vector<int32_t>(expected, expected + kHalf));
  }
}

TEST_F(EmulatedDeviceTest, AFailingDeviceEndsEveryStreamAndLosesNothingDurable) {
  constexpr int kManyTokens = 80;  // more than there will be
  const auto healthy = Start(OnDevice());
  ASSERT_TRUE(healthy);
  const Generated whole = Generate(*healthy, FreshRequest(kManyTokens));
  const Generated parent = Generate(*healthy, FreshRequest(kHalf));
  ASSERT_TRUE(parent.finished);
  const std::string parent_id = parent.finished->state().id();
  healthy->KillHard();

  ServerProcessOptions options = OnDevice({"--max-slots", "2", "--time-slice-tokens", "6"});
  options.store_dir = healthy->store_dir();
  options.env = {"CUDA_ON_CPU_FAIL_LAUNCH=600"};
  const auto failing = Start(options);
  ASSERT_TRUE(failing);
  HealthWatch health(failing->address());
  EXPECT_EQ(health.Next(), kServing);

  // Three streams over two slots: one saves on its way, one has a parent, one keeps nothing.
  std::vector<v1::GenerateRequest> requests(3, FreshRequest(kManyTokens));
  requests[0].mutable_save()->set_every_tokens(16);
  requests[1] = ResumeRequest(parent_id, kManyTokens);
  requests[2].clear_save();
  std::vector<Generated> results(requests.size());
  std::vector<std::thread> clients;
  for (size_t i = 0; i < requests.size(); ++i) {
    clients.emplace_back(
        [&, i] { results[i] = GrpcClient(failing->address()).Generate(requests[i]); });
  }
  for (std::thread& client : clients) client.join();
  for (const Generated& result : results) ExpectDeviceFault(result);
  EXPECT_EQ(health.Next(), kNotServing);
  const auto exit_code = failing->WaitForExit(std::chrono::seconds(60));
  ASSERT_TRUE(exit_code.ok()) << exit_code.status();
  EXPECT_EQ(*exit_code, kExitDeviceFault);
  EXPECT_THAT(failing->Log(), HasSubstr("the device failed in launch 600"));

  const auto last_state = [&](size_t i) {
    return ErrorInfoOf(results[i].status).metadata().at("last_state_id");
  };
  ASSERT_FALSE(results[0].saved.empty());
  EXPECT_EQ(last_state(0), results[0].saved.back().id());
  EXPECT_EQ(last_state(1), parent_id);
  EXPECT_EQ(last_state(2), "");

  ASSERT_TRUE(healthy->Restart().ok());
  ExpectAllThere(*healthy, results[0].saved, whole.token_ids);
}

}  // namespace
}  // namespace vivarium
