// ServerProcess: a real `vivarium serve` on a port picked by the system, for end-to-end tests.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/support/process.h"
#include "tests/support/temp_dir.h"

namespace vivarium::test {

// The path of the program under test.
std::string VivariumBinary();
// The model that the source tree bundles.
std::string BundledModelDir();

struct ServerProcessOptions {
  std::string program{};                    // beside the test's; "" = VivariumBinary
  std::string model_dir{};                  // "" = the bundled model
  std::string store_dir{};                  // "" = a fresh one, removed with the ServerProcess
  std::vector<std::string> args{};          // further flags of `serve`, e.g. {"--max-slots", "1"}
  std::vector<std::string> env{};           // "NAME=value": on top of the test's own environment
  std::chrono::seconds start_timeout{120};  // sanitizer builds are slow
};

// Runs on the device under test (TestServerFlags), unless args name one.
// Runs while it lives; its store outlives KillHard and Terminate, so that Restart goes on with what
// was durable. The port changes with every start. Not thread-safe.
class ServerProcess {
 public:
  // Returns when the server has printed that it listens. The error carries the end of its log.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(const ServerProcessOptions& options);

  const std::string& address() const { return address_; }  // "127.0.0.1:PORT"
  const std::string& store_dir() const { return options_.store_dir; }
  pid_t pid() const { return process_->pid(); }

  // SIGKILL, and waits until it is gone.
  void KillHard();
  // SIGTERM; the exit code once the drain is over. DEADLINE_EXCEEDED when it doesn't end in time.
  absl::StatusOr<int> Terminate(std::chrono::seconds timeout = std::chrono::seconds(60));
  // SIGTERM without waiting.
  void RequestStop();
  absl::StatusOr<int> WaitForExit(std::chrono::seconds timeout);
  // Starts it again on the same store (kills it first if it runs), optionally with other flags.
  absl::Status Restart();
  absl::Status Restart(std::vector<std::string> args);

  // Everything that the servers so far wrote to standard error.
  std::string Log() const;
  // What came on standard output after the listening line; call when it is gone.
  std::string RestOfStdout() { return process_->ReadRest(); }

 private:
  explicit ServerProcess(ServerProcessOptions options) : options_(std::move(options)) {}
  absl::Status Launch();

  TempDir dir_;
  ServerProcessOptions options_;
  std::unique_ptr<BackgroundProcess> process_;
  std::string address_;
};

}  // namespace vivarium::test
