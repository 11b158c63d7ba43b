// Runs programs in tests: a command to its end (RunProcess), or one in the background
// (BackgroundProcess).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace vivarium::test {

struct ProcessOptions {
  std::string stdin_text{};           // what the program reads, then end of file
  std::vector<std::string> env{};     // "NAME=value": set on top of the test's own environment
  std::chrono::seconds timeout{120};  // then it is killed, and exit_code is -1
};

struct ProcessResult {
  int exit_code = -1;  // 128 + signal when it died of one
  std::string out;     // standard output
  std::string err;     // standard error
};

// `argv[0]` is a path. Standard output and error go through files in a temporary directory, so that
// no amount of output blocks.
absl::StatusOr<ProcessResult> RunProcess(const std::vector<std::string>& argv,
                                         const ProcessOptions& options = {});

// A child whose standard output is a pipe and whose standard error is appended to a file. It gets
// SIGKILL when the thread that started it ends, so that a crashed test leaves nothing behind.
// Not thread-safe.
class BackgroundProcess {
 public:
  static absl::StatusOr<std::unique_ptr<BackgroundProcess>> Start(
      const std::vector<std::string>& argv, const std::string& stderr_file,
      const std::vector<std::string>& env = {});
  ~BackgroundProcess();  // kills it, if it runs, and reaps it
  BackgroundProcess(const BackgroundProcess&) = delete;
  BackgroundProcess& operator=(const BackgroundProcess&) = delete;

  // The next line of standard output, without its end. DEADLINE_EXCEEDED when none came in time,
  // UNAVAILABLE when the output ended.
  absl::StatusOr<std::string> ReadLine(std::chrono::milliseconds timeout);
  // What is left of standard output; call after Wait.
  std::string ReadRest();

  void Signal(int signal_number);
  // The exit code (128 + signal when it died of one); DEADLINE_EXCEEDED when it still runs.
  absl::StatusOr<int> Wait(std::chrono::milliseconds timeout);
  pid_t pid() const { return pid_; }

 private:
  BackgroundProcess(pid_t pid, int stdout_fd) : pid_(pid), stdout_fd_(stdout_fd) {}

  pid_t pid_;
  int stdout_fd_;
  bool reaped_ = false;
  int exit_code_ = -1;
  std::string buffered_;
};

}  // namespace vivarium::test
