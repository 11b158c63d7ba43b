// A state resumed from a slot of the device, from host memory and from disk: the same tokens and
// log-probabilities, bit for bit, and the server says which it was.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/grpc_client.h"
#include "tests/support/server_process.h"

namespace vivarium {
namespace {

using ::vivarium::test::ServerProcess;

constexpr int kTokens = 16;

v1::GenerateRequest NewThread(const std::string& text) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.set_max_tokens(kTokens);
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.9f);
  sampling.set_seed(7);
  sampling.set_logprobs(0);
  request.mutable_stops()->set_ignore_eos(true);
  request.mutable_save()->set_at_end(true);
  return request;
}

v1::GenerateRequest Resume(const std::string& state_id) {
  v1::GenerateRequest request = NewThread(" and so");
  request.set_state_id(state_id);
  return request;
}

class Tiers : public ::testing::Test {
 protected:
  // One slot for streams, so that few others push a state out.
  void Start(std::vector<std::string> args = {}) {
    args.insert(args.end(), {"--max-slots", "1"});
    auto started = ServerProcess::Start({.args = args});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
    client_ = std::make_unique<GrpcClient>(server_->address());
  }
  void Restart() {
    server_->KillHard();
    ASSERT_TRUE(server_->Restart().ok());
    client_ = std::make_unique<GrpcClient>(server_->address());
  }
  Generated Run(const v1::GenerateRequest& request) {
    Generated result = client_->Generate(request);
    EXPECT_TRUE(result.status.ok()) << result.status.error_message();
    EXPECT_EQ(result.started->state_tier(), result.finished->usage().state_tier());
    return result;
  }
  std::string Save(const v1::GenerateRequest& request) {
    return Run(request).finished->state().id();
  }
  // Other threads take all slots.
  void PushOutOfSlots() {
    for (int i = 0; i < 4; ++i) Save(NewThread("Something else, number " + std::to_string(i)));
  }
  grpc::Status Delete(const std::string& state_id) {
    v1::DeleteStateRequest request;
    request.set_id(state_id);
    google::protobuf::Empty response;
    grpc::ClientContext context;
    return client_->states->DeleteState(&context, request, &response);
  }

  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<GrpcClient> client_;
};

void ExpectSameBits(const Generated& a, const Generated& b) {
  EXPECT_EQ(a.token_ids, b.token_ids);
  EXPECT_EQ(a.logprob_bits, b.logprob_bits);
  EXPECT_EQ(a.finished->state().position(), b.finished->state().position());
}

TEST_F(Tiers, EachGivesTheSameBits) {
  Start();
  const Generated first = Run(NewThread("Once upon a time"));
  EXPECT_EQ(first.started->state_tier(), v1::TIER_NONE);
  const std::string id = first.finished->state().id();

  const Generated device = Run(Resume(id));
  EXPECT_EQ(device.started->state_tier(), v1::TIER_DEVICE);
  EXPECT_NE(device.started->reuse_explanation().find("still on the device"), std::string::npos);
  const Generated device_again = Run(Resume(id));
  EXPECT_EQ(device_again.started->state_tier(), v1::TIER_DEVICE) << "a fork leaves it there";
  PushOutOfSlots();
  const Generated host = Run(Resume(id));
  EXPECT_EQ(host.started->state_tier(), v1::TIER_HOST);
  Restart();
  const Generated disk = Run(Resume(id));
  EXPECT_EQ(disk.started->state_tier(), v1::TIER_DISK);
  const Generated host_again = Run(Resume(id));
  EXPECT_EQ(host_again.started->state_tier(), v1::TIER_HOST) << "what was loaded is kept";
  for (const Generated* other : {&device_again, &host, &disk, &host_again}) {
    ExpectSameBits(*other, device);
    EXPECT_EQ(other->started->restored_tokens(), first.finished->state().position());
  }

  const v1::Stats stats = client_->Stats();
  ASSERT_EQ(stats.tiers_size(), 3);
  EXPECT_EQ(stats.tiers(0).tier(), v1::TIER_DEVICE);
  EXPECT_EQ(stats.tiers(0).hits(), 0u);
  EXPECT_EQ(stats.tiers(0).misses(), 2u);
  EXPECT_EQ(stats.tiers(1).hits(), 1u);
  EXPECT_EQ(stats.tiers(1).misses(), 1u);
  EXPECT_EQ(stats.tiers(2).hits(), 1u);
  EXPECT_EQ(stats.tiers(2).bytes(), stats.slot_bytes());
  EXPECT_GT(stats.hot_slots(), 0);
  EXPECT_GT(stats.state_cache_bytes(), 0u);
  EXPECT_LE(stats.state_cache_bytes(), stats.state_cache_limit_bytes());
}

TEST_F(Tiers, WithoutHostMemory) {
  Start({"--state-cache-bytes", "0"});
  const std::string id = Save(NewThread("Once upon a time"));
  const Generated device = Run(Resume(id));
  EXPECT_EQ(device.started->state_tier(), v1::TIER_DEVICE);
  PushOutOfSlots();
  const Generated disk = Run(Resume(id));
  EXPECT_EQ(disk.started->state_tier(), v1::TIER_DISK);
  ExpectSameBits(disk, device);
}

// Bytes that were rounded when they were stored are what every later resume gets.
TEST_F(Tiers, ARoundedStateIsRoundedInEveryTier) {
  Start();
  v1::GenerateRequest request = NewThread("Once upon a time");
  request.mutable_save()->set_codec("bf16");
  const std::string id = Save(request);
  const Generated host = Run(Resume(id));
  EXPECT_EQ(host.started->state_tier(), v1::TIER_HOST) << "what its slot has was not rounded";
  Restart();
  const Generated disk = Run(Resume(id));
  EXPECT_EQ(disk.started->state_tier(), v1::TIER_DISK);
  ExpectSameBits(host, disk);
}

TEST_F(Tiers, ASessionGoesOnFromItsSlot) {
  Start();
  std::vector<Generated> turns;
  for (int i = 0; i < 4; ++i) {
    v1::GenerateRequest request = NewThread("Turn " + std::to_string(i));
    request.set_session("chat");
    turns.push_back(Run(request));
    EXPECT_EQ(turns.back().started->state_tier(), i == 0 ? v1::TIER_NONE : v1::TIER_DEVICE);
  }
  EXPECT_EQ(client_->Stats().hot_slots(), 1) << "the head's; those before it gave theirs on";
}

TEST_F(Tiers, ADeletedStateIsInNoTier) {
  Start();
  const std::string hot = Save(NewThread("Once upon a time"));
  ASSERT_TRUE(Delete(hot).ok());
  EXPECT_EQ(client_->Generate(Resume(hot)).status.error_code(), grpc::StatusCode::NOT_FOUND);
  const std::string cached = Save(NewThread("Once upon a time"));
  PushOutOfSlots();
  ASSERT_TRUE(Delete(cached).ok());
  EXPECT_EQ(client_->Generate(Resume(cached)).status.error_code(), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace vivarium
