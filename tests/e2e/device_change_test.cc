// A thread that moves between backends, with real server processes: saved on the device under test
// (VIVARIUM_TEST_DEVICE), resumed on the CPU's portable path, and back. The bits differ from there
// on, which the server says; nothing is computed again.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/e2e/grpc_client.h"
#include "tests/support/server_process.h"

namespace vivarium {
namespace {

using ::vivarium::test::ServerProcess;

constexpr int kTokens = 30;
const std::vector<std::string> kF32 = {"--weights", "f32"};
const std::vector<std::string> kPortable = {"--weights", "f32",   "--device",
                                            "cpu",       "--isa", "portable"};

v1::GenerateRequest Request() {
  v1::GenerateRequest request;
  request.set_max_tokens(kTokens);
  request.mutable_sampling()->set_temperature(0.0f);
  request.mutable_stops()->set_ignore_eos(true);
  request.mutable_save()->set_at_end(true);
  return request;
}

// Resumes `before` on `server`; checks that no token of it was computed again.
Generated Resume(const ServerProcess& server, const Generated& before, bool numerics_changed) {
  v1::GenerateRequest request = Request();
  request.set_state_id(before.finished->state().id());
  Generated after = GrpcClient(server.address()).Generate(request);
  EXPECT_TRUE(after.status.ok()) << after.status.error_message();
  if (!after.status.ok()) return after;
  EXPECT_EQ(after.started->restored_tokens(), before.finished->state().position());
  EXPECT_EQ(after.started->numerics_changed(), numerics_changed);
  EXPECT_EQ(after.finished->usage().prefill_tokens(), 1u);
  EXPECT_EQ(after.token_ids.size(), static_cast<size_t>(kTokens));
  return after;
}

TEST(DeviceChange, AThreadMovesToTheCpuAndBack) {
  auto server = ServerProcess::Start({.args = kF32});
  ASSERT_TRUE(server.ok()) << server.status();
  v1::GenerateRequest request = Request();
  request.set_text("Once upon a time there was a little girl who lived near the forest.");
  const Generated first = GrpcClient((*server)->address()).Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  const Generated stayed = Resume(**server, first, false);

  ASSERT_TRUE((*server)->Restart(kPortable).ok());
  const Generated second = Resume(**server, first, true);
  ASSERT_TRUE(second.status.ok());
  // f32 rounding turns a greedy choice only on a tie.
  EXPECT_EQ(second.token_ids[0], stayed.token_ids[0]);

  ASSERT_TRUE((*server)->Restart(kF32).ok());
  const Generated third = Resume(**server, second, true);
  ASSERT_TRUE(third.status.ok());
  EXPECT_EQ(third.finished->state().position(), first.finished->state().position() + 2 * kTokens);
}

}  // namespace
}  // namespace vivarium
