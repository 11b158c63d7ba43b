// `vivarium admin stats|backup`: a running server's figures, and backups of its store.
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/proto_json.h"
#include "cli/server_command.h"

namespace vivarium::cli {
namespace {

constexpr absl::Duration kProgressPeriod = absl::Milliseconds(500);

std::string OfLimit(const std::string& used, const std::string& limit, bool is_limited) {
  return is_limited ? absl::StrCat(used, " of ", limit) : used;
}

class AdminStatsCommand final : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("stats", "What the server did, holds and may hold");
    json_.Declare(app, "all figures");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    v1::Stats stats;
    const grpc::Status status =
        client.Do(client.admin(), &v1::Admin::Stub::GetStats, v1::GetStatsRequest(), &stats);
    if (!status.ok()) return client.Fail(status);
    if (json_.json) {
      PrintJson(ToJson(stats));
      return kExitOk;
    }
    std::string text = absl::StrCat(
        "streams   ", stats.live_streams(), " live, ", stats.queued_streams(), " queued\n",
        "tokens    ", FormatCount(stats.output_tokens()), " generated, ",
        FormatCount(stats.prefill_tokens()), " read, ", FormatCount(stats.restored_tokens()),
        " restored\n", "sessions  ", FormatCount(stats.num_sessions()), "\n");
    for (const v1::QuotaUsage& quota : stats.quotas()) {
      absl::StrAppend(&text, "states    ",
                      OfLimit(FormatCount(quota.used_states()), FormatCount(quota.max_states()),
                              quota.max_states() > 0),
                      ", ", FormatCount(quota.reserved_states()), " more reserved\n", "bytes     ",
                      OfLimit(FormatBytes(quota.used_bytes()), FormatBytes(quota.max_bytes()),
                              quota.max_bytes() > 0),
                      ", ", FormatBytes(quota.reserved_bytes()), " more reserved\n", "refusals  ",
                      FormatCount(quota.refusals()), " for want of quota\n");
    }
    absl::StrAppend(&text, "disk      ", FormatBytes(stats.store_disk_bytes()),
                    stats.store_is_read_only() ? "; nothing can be saved now\n" : "\n");
    PrintNow(text);
    return kExitOk;
  }

 private:
  JsonFlag json_;
};

// Asks the server now and then how far the backup is, until it is destroyed.
class BackupProgress {
 public:
  explicit BackupProgress(Client* client)
      : client_(client), progress_("backing up", 0), thread_([this] { Run(); }) {}
  ~BackupProgress() {
    {
      absl::MutexLock lock(&mutex_);
      is_over_ = true;
    }
    thread_.join();
  }

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_) {
    uint64_t shown_bytes = 0;
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        if (mutex_.AwaitWithTimeout(absl::Condition(&is_over_), kProgressPeriod)) return;
      }
      grpc::ClientContext context;
      v1::Stats stats;
      if (!client_->admin().GetStats(&context, {}, &stats).ok()) continue;
      if (stats.backup_copied_bytes() <= shown_bytes) continue;
      progress_.Advance(stats.backup_copied_bytes() - shown_bytes);
      shown_bytes = stats.backup_copied_bytes();
    }
  }

  Client* const client_;
  Progress progress_;
  absl::Mutex mutex_;
  bool is_over_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

constexpr char kBackupFooter[] =
    "The server goes on serving and saving. A backup is whole as of one moment, and shares files\n"
    "with those of its set before it. `vivarium store backups` lists a set, `vivarium store "
    "restore`\n"
    "makes a store of one and verifies every state.\n"
    "\n"
    "Examples:\n"
    "  vivarium serve --backups /backup/vivarium &\n"
    "  vivarium admin backup daily\n"
    "  vivarium admin backup before-upgrade --copy";

class AdminBackupCommand final : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand(
        "backup", "Back up the store of a running server, below its --backups directory");
    app->add_option("NAME", name_, "The set of backups, made as needed")->required();
    app->add_flag("--copy", is_copy_, "Instead: a new directory NAME that opens as a store");
    json_.Declare(app, "where it is and what it takes");
    connection_.Declare(app);
    app->footer(kBackupFooter);
    return app;
  }

  int RunWith(Client& client) override {
    v1::BackupRequest request;
    if (is_copy_) {
      request.set_name(name_);
    } else {
      request.set_set(name_);
    }
    v1::BackupResponse response;
    grpc::Status status;
    {
      const BackupProgress progress(&client);
      status = client.Do(client.admin(), &v1::Admin::Stub::Backup, request, &response);
    }
    if (!status.ok()) return client.Fail(status);
    if (json_.json) {
      PrintJson(ToJson(response));
    } else if (is_copy_) {
      PrintLine(absl::StrCat("a copy of the store, in ", response.directory()));
    } else {
      PrintLine(absl::StrCat(
          "backup ", response.backup_id(), ", ", FormatBytes(response.num_bytes()), ", ",
          FormatBytes(response.new_bytes()), " of it new, in ", response.directory()));
    }
    return kExitOk;
  }

 private:
  std::string name_;
  bool is_copy_ = false;
  JsonFlag json_;
};

}  // namespace

Commands MakeAdminCommands() {
  Commands commands;
  commands.push_back(std::make_unique<AdminStatsCommand>());
  commands.push_back(std::make_unique<AdminBackupCommand>());
  return commands;
}

}  // namespace vivarium::cli
