#include "tests/support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/support/temp_dir.h"

extern char** environ;

namespace vivarium::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPollInterval{2};

// What a child needs, prepared before fork: between fork and exec only system calls are allowed.
struct Image {
  std::vector<char*> argv;
  std::vector<char*> envp;

  Image(const std::vector<std::string>& args, const std::vector<std::string>& env) {
    for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    for (char** entry = environ; *entry != nullptr; ++entry) {
      if (!IsOverridden(*entry, env)) envp.push_back(*entry);
    }
    for (const std::string& entry : env) envp.push_back(const_cast<char*>(entry.c_str()));
    envp.push_back(nullptr);
  }

  static bool IsOverridden(const char* entry, const std::vector<std::string>& env) {
    const size_t name_length = std::strcspn(entry, "=") + 1;
    for (const std::string& other : env) {
      if (other.compare(0, name_length, entry, name_length) == 0) return true;
    }
    return false;
  }
};

absl::StatusOr<pid_t> Spawn(const Image& image, int stdin_fd, int stdout_fd, int stderr_fd) {
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError(absl::StrCat("fork: ", strerror(errno)));
  if (pid > 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (dup2(stdin_fd, 0) < 0 || dup2(stdout_fd, 1) < 0 || dup2(stderr_fd, 2) < 0) _exit(127);
  execve(image.argv[0], image.argv.data(), image.envp.data());
  _exit(127);
}

absl::StatusOr<int> OpenFile(const std::string& path, int flags) {
  const int fd = open(path.c_str(), flags | O_CLOEXEC, 0600);
  if (fd < 0) return absl::InternalError(absl::StrCat("open ", path, ": ", strerror(errno)));
  return fd;
}

int ExitCode(int wait_status) {
  return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
}

}  // namespace

absl::StatusOr<ProcessResult> RunProcess(const std::vector<std::string>& argv,
                                         const ProcessOptions& options) {
  TempDir dir;
  WriteFile(dir.File("in"), options.stdin_text);
  const auto in = OpenFile(dir.File("in"), O_RDONLY);
  const auto out = OpenFile(dir.File("out"), O_WRONLY | O_CREAT);
  const auto err = OpenFile(dir.File("err"), O_WRONLY | O_CREAT);
  for (const auto* fd : {&in, &out, &err}) {
    if (!fd->ok()) return fd->status();
  }
  const absl::StatusOr<pid_t> pid = Spawn(Image(argv, options.env), *in, *out, *err);
  for (int fd : {*in, *out, *err}) close(fd);
  if (!pid.ok()) return pid.status();

  ProcessResult result;
  const auto deadline = Clock::now() + options.timeout;
  int status = 0;
  while (waitpid(*pid, &status, WNOHANG) == 0) {
    if (Clock::now() > deadline) {
      kill(*pid, SIGKILL);
      waitpid(*pid, &status, 0);
      status = -1;
      break;
    }
    std::this_thread::sleep_for(kPollInterval);
  }
  result.exit_code = status == -1 ? -1 : ExitCode(status);
  result.out = ReadFile(dir.File("out"));
  result.err = ReadFile(dir.File("err"));
  return result;
}

absl::StatusOr<std::unique_ptr<BackgroundProcess>> BackgroundProcess::Start(
    const std::vector<std::string>& argv, const std::string& stderr_file,
    const std::vector<std::string>& env) {
  const auto in = OpenFile("/dev/null", O_RDONLY);
  if (!in.ok()) return in.status();
  const auto err = OpenFile(stderr_file, O_WRONLY | O_CREAT | O_APPEND);
  if (!err.ok()) return err.status();
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) return absl::InternalError("pipe2 failed");
  const absl::StatusOr<pid_t> pid = Spawn(Image(argv, env), *in, out[1], *err);
  for (int fd : {*in, *err, out[1]}) close(fd);
  if (!pid.ok()) {
    close(out[0]);
    return pid.status();
  }
  return std::unique_ptr<BackgroundProcess>(new BackgroundProcess(*pid, out[0]));
}

BackgroundProcess::~BackgroundProcess() {
  if (!reaped_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(stdout_fd_);
}

absl::StatusOr<std::string> BackgroundProcess::ReadLine(std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (true) {
    const size_t end = buffered_.find('\n');
    if (end != std::string::npos) {
      std::string line = buffered_.substr(0, end);
      buffered_.erase(0, end + 1);
      return line;
    }
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd ready{stdout_fd_, POLLIN, 0};
    if (left <= 0 || poll(&ready, 1, static_cast<int>(left)) == 0) {
      return absl::DeadlineExceededError(absl::StrCat("no line within ", timeout.count(), " ms"));
    }
    char chunk[4096];
    const ssize_t size = read(stdout_fd_, chunk, sizeof(chunk));
    if (size <= 0) return absl::UnavailableError("standard output ended");
    buffered_.append(chunk, static_cast<size_t>(size));
  }
}

std::string BackgroundProcess::ReadRest() {
  char chunk[4096];
  ssize_t size;
  while ((size = read(stdout_fd_, chunk, sizeof(chunk))) > 0) {
    buffered_.append(chunk, static_cast<size_t>(size));
  }
  return std::exchange(buffered_, "");
}

void BackgroundProcess::Signal(int signal_number) {
  if (!reaped_) kill(pid_, signal_number);
}

absl::StatusOr<int> BackgroundProcess::Wait(std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (!reaped_) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      reaped_ = true;
      exit_code_ = ExitCode(status);
    } else if (Clock::now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("process ", pid_, " still runs after ", timeout.count(), " ms"));
    } else {
      std::this_thread::sleep_for(kPollInterval);
    }
  }
  return exit_code_;
}

}  // namespace vivarium::test
