#include "tests/support/server_process.h"

#include <signal.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/support/test_environment.h"

namespace vivarium::test {
namespace {

constexpr char kListeningPrefix[] = "listening on ";
constexpr size_t kLogTailBytes = 2000;

}  // namespace

std::string VivariumBinary() { return (ProgramDir() / "vivarium").string(); }

std::string BundledModelDir() { return RootDir() + "/models/vivarium-stories"; }

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(
    const ServerProcessOptions& options) {
  std::unique_ptr<ServerProcess> server(new ServerProcess(options));
  if (server->options_.model_dir.empty()) server->options_.model_dir = BundledModelDir();
  if (server->options_.store_dir.empty()) server->options_.store_dir = server->dir_.File("store");
  if (absl::Status status = server->Launch(); !status.ok()) return status;
  return server;
}

absl::Status ServerProcess::Launch() {
  const std::string program =
      options_.program.empty() ? VivariumBinary() : (ProgramDir() / options_.program).string();
  std::vector<std::string> argv = {
      program,    "serve",           "--model",          options_.model_dir,
      "--listen", "127.0.0.1:0",     "--metrics-listen", "127.0.0.1:0",
      "--store",  options_.store_dir};
  const std::vector<std::string>& args = options_.args;
  if (std::find(args.begin(), args.end(), "--device") == args.end()) {
    const std::vector<std::string> device_flags = TestServerFlags();
    argv.insert(argv.end(), device_flags.begin(), device_flags.end());
  }
  argv.insert(argv.end(), options_.args.begin(), options_.args.end());
  auto process = BackgroundProcess::Start(argv, dir_.File("log"), options_.env);
  if (!process.ok()) return process.status();
  process_ = *std::move(process);
  const auto line = process_->ReadLine(options_.start_timeout);
  if (!line.ok() || line->rfind(kListeningPrefix, 0) != 0) {
    KillHard();
    std::string log = Log();
    if (log.size() > kLogTailBytes) log.erase(0, log.size() - kLogTailBytes);
    return absl::UnavailableError(absl::StrCat("the server did not start (",
                                               line.ok() ? *line : line.status().ToString(),
                                               "); its log ends: ", log));
  }
  address_ = line->substr(sizeof(kListeningPrefix) - 1);
  return absl::OkStatus();
}

void ServerProcess::KillHard() {
  process_->Signal(SIGKILL);
  (void)process_->Wait(std::chrono::seconds(60));
}

void ServerProcess::RequestStop() { process_->Signal(SIGTERM); }

absl::StatusOr<int> ServerProcess::WaitForExit(std::chrono::seconds timeout) {
  return process_->Wait(timeout);
}

absl::StatusOr<int> ServerProcess::Terminate(std::chrono::seconds timeout) {
  RequestStop();
  return WaitForExit(timeout);
}

absl::Status ServerProcess::Restart() {
  KillHard();
  return Launch();
}

absl::Status ServerProcess::Restart(std::vector<std::string> args) {
  options_.args = std::move(args);
  return Restart();
}

std::string ServerProcess::Log() const { return ReadFile(dir_.File("log")); }

}  // namespace vivarium::test
