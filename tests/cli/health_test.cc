// `vivarium health`, against real servers, and against ports where something else is, or nothing.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_dir.h"

namespace vivarium::test {
namespace {

using std::chrono::steady_clock;
using ::testing::HasSubstr;

ProcessResult Health(const std::string& address, std::vector<std::string> args = {},
                     const ProcessOptions& options = {}) {
  args.insert(args.begin(), {VivariumBinary(), "health", "--server", address});
  auto result = RunProcess(args, options);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : ProcessResult();
}

// A port of this machine that takes connections and never answers; or refuses them (not listening).
class SilentPort {
 public:
  explicit SilentPort(bool is_listening) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(bind(socket_, generic, length), 0);
    if (is_listening) {
      EXPECT_EQ(listen(socket_, 8), 0);
    }
    EXPECT_EQ(getsockname(socket_, generic, &length), 0);
    port_ = ntohs(address.sin_port);
  }
  ~SilentPort() { close(socket_); }
  SilentPort(const SilentPort&) = delete;
  SilentPort& operator=(const SilentPort&) = delete;

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  const int socket_;
  int port_ = 0;
};

TEST(HealthTest, ServingThenDrainingThenGone) {
  auto server = ServerProcess::Start({.args = {"--threads", "1", "--drain-seconds", "60"}});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->address();
  const ProcessResult serving = Health(address);
  EXPECT_EQ(serving.exit_code, 0) << serving.err;
  EXPECT_EQ(serving.out, "serving\n");
  // The address may come from the environment, as for every client.
  const auto by_environment =
      RunProcess({VivariumBinary(), "health"}, {.env = {"VIVARIUM_SERVER=" + address}});
  EXPECT_EQ(by_environment->exit_code, 0) << by_environment->err;

  // A stream that is still running keeps the drain going.
  TempDir dir;
  auto stream =
      BackgroundProcess::Start({VivariumBinary(), "generate", "Once", "--server", address,
                                "--max-tokens", "1000000", "--ignore-eos", "--save", "prompt"},
                               dir.File("generate.err"));
  ASSERT_TRUE(stream.ok()) << stream.status();
  for (int tries = 0; tries < 200; ++tries) {
    const auto states = RunProcess({VivariumBinary(), "states", "ls", "--server", address});
    if (states->out.find("st_") != std::string::npos) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  (*server)->RequestStop();
  ProcessResult draining;
  for (int tries = 0; tries < 200 && draining.exit_code != 1; ++tries) draining = Health(address);
  EXPECT_EQ(draining.exit_code, 1);
  EXPECT_EQ(draining.out, "");
  EXPECT_THAT(draining.err, HasSubstr(address + " takes no work: NOT_SERVING"));
  // Waiting does not help, and ends.
  EXPECT_EQ(Health(address, {"--wait", "0.3"}).exit_code, 1);

  (*stream)->Signal(SIGKILL);
  ASSERT_TRUE((*server)->WaitForExit(std::chrono::seconds(60)).ok());
  const ProcessResult gone = Health(address);
  EXPECT_EQ(gone.exit_code, 3);
  EXPECT_THAT(gone.err, HasSubstr("no server answers at " + address));
}

TEST(HealthTest, AServerThatNeverAnswersIsGivenUpInTime) {
  const SilentPort port(/*is_listening=*/true);
  const auto begin = steady_clock::now();
  const ProcessResult once = Health(port.address(), {"--timeout", "0.3"});
  EXPECT_EQ(once.exit_code, 3);
  EXPECT_THAT(once.err, HasSubstr("no answer from " + port.address()));
  const ProcessResult waited = Health(port.address(), {"--wait", "0.5"});
  EXPECT_EQ(waited.exit_code, 3);
  EXPECT_LT(steady_clock::now() - begin, std::chrono::seconds(30));
}

TEST(HealthTest, WaitFindsAServerThatStartsLater) {
  const SilentPort nobody(/*is_listening=*/false);
  // Refused at once without --wait; with it until the time is over.
  EXPECT_EQ(Health(nobody.address()).exit_code, 3);
  const auto begin = steady_clock::now();
  EXPECT_EQ(Health(nobody.address(), {"--wait", "0.7"}).exit_code, 3);
  EXPECT_GE(steady_clock::now() - begin, std::chrono::milliseconds(600));

  std::string address;
  {
    const SilentPort reserved(/*is_listening=*/false);
    address = reserved.address();
  }
  TempDir dir;
  auto waiting = BackgroundProcess::Start(
      {VivariumBinary(), "health", "--server", address, "--wait", "120"}, dir.File("health.err"));
  ASSERT_TRUE(waiting.ok()) << waiting.status();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  auto server = BackgroundProcess::Start(
      {VivariumBinary(), "serve", "--listen", address, "--metrics-listen", "", "--store",
       dir.File("store"), "--device", "cpu", "--threads", "1"},
      dir.File("server.err"));
  ASSERT_TRUE(server.ok()) << server.status();
  const auto line = (*waiting)->ReadLine(std::chrono::seconds(120));
  ASSERT_TRUE(line.ok()) << line.status() << ReadFile(dir.File("health.err"));
  EXPECT_EQ(*line, "serving");
  EXPECT_EQ(*(*waiting)->Wait(std::chrono::seconds(10)), 0);
}

TEST(HealthTest, BadFlagsAreNamed) {
  for (const std::vector<std::string>& args : {std::vector<std::string>{"--wait", "-1"},
                                               {"--wait", "86401"},
                                               {"--timeout", "0"},
                                               {"--wait", "soon"}}) {
    const ProcessResult result = Health("127.0.0.1:1", args);
    EXPECT_EQ(result.exit_code, 2) << args[0] << " " << args[1];
    EXPECT_THAT(result.err, HasSubstr(args[0]));
  }
}

}  // namespace
}  // namespace vivarium::test
