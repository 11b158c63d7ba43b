// `vivarium store verify|stats|compact|gc|backup|restore|backups`: a store's directory, while no
// server has it open.
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/paths.h"
#include "statestore/rocksdb_store.h"

namespace vivarium::cli {
namespace {

using statestore::ScrubReport;
using statestore::StateStore;
using statestore::StoreStats;

// A command on the store's directory --store.
class StoreCommand : public Command {
 public:
  int Run() final {
    if (directory_.empty()) directory_ = DefaultStoreDir();
    statestore::RocksDbOptions options;
    options.create_if_missing = false;
    options.disk_reserve_bytes = 0;  // to compact is to free
    auto store = statestore::OpenRocksDbStore(directory_, options, absl::Now, nullptr);
    if (!store.ok()) return Fail(store.status());
    return RunOn(**store);
  }

 protected:
  void DeclareStore(CLI::App* app) {
    app->add_option("--store", directory_, "The store; default: the user's data directory")
        ->type_name("DIR");
  }
  virtual int RunOn(StateStore& store) = 0;
  // The store can't be opened.
  virtual int Fail(const absl::Status& status) { return FailLocally(status); }

 private:
  std::string directory_;
};

// Reads everything; each damaged state is an error of its own.
int Verify(StateStore& store, bool json) {
  auto stats = store.Stats();
  if (!stats.ok()) return FailLocally(stats.status());
  absl::StatusOr<ScrubReport> report;
  {
    Progress progress("verifying", stats->live_bytes);
    uint64_t shown_bytes = 0;
    statestore::ScrubOptions options;
    options.on_progress = [&](const ScrubReport& so_far) {
      progress.Advance(so_far.num_bytes - shown_bytes);
      shown_bytes = so_far.num_bytes;
    };
    report = store.Scrub(options);
  }
  if (!report.ok()) return FailLocally(report.status());
  for (const absl::Status& damaged : report->damaged) (void)FailLocally(damaged);
  for (const absl::Status& found : report->inconsistent) (void)FailLocally(found);
  if (json) {
    const auto messages = [](const std::vector<absl::Status>& statuses) {
      Json array = Json::array();
      for (const absl::Status& status : statuses) {
        array.push_back(std::string(status.message()));
      }
      return array;
    };
    PrintJson({{"states", report->num_states},
               {"verified_bytes", report->num_bytes},
               {"num_damaged", report->num_damaged},
               {"damaged", messages(report->damaged)},
               {"keys", report->num_keys},
               {"num_inconsistent", report->num_inconsistent},
               {"inconsistent", messages(report->inconsistent)}});
  } else {
    PrintLine(absl::StrCat(
        FormatCount(report->num_states), " states, ", FormatBytes(report->num_bytes), " verified, ",
        FormatCount(report->num_damaged), " damaged; ", FormatCount(report->num_keys),
        " keys compared, ", FormatCount(report->num_inconsistent), " inconsistent"));
  }
  return report->is_sound() ? kExitOk : kExitLocalError;
}

class StoreVerifyCommand final : public StoreCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand(
        "verify", "Read every byte, check every checksum, and all that states are found by");
    DeclareStore(app);
    json_.Declare(app, "what was verified and what is damaged");
    return app;
  }

 private:
  int RunOn(StateStore& store) override { return Verify(store, json_.json); }

  JsonFlag json_;
};

class StoreStatsCommand final : public StoreCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("stats", "Count states, sessions and bytes");
    DeclareStore(app);
    json_.Declare(app, "the counts");
    return app;
  }

 private:
  int RunOn(StateStore& store) override {
    const absl::StatusOr<StoreStats> stats = store.Stats();
    if (!stats.ok()) return FailLocally(stats.status());
    if (json_.json) {
      PrintJson({{"states", stats->num_states},
                 {"manifests", stats->num_manifests},
                 {"sessions", stats->num_sessions},
                 {"live_bytes", stats->live_bytes},
                 {"disk_bytes", stats->disk_bytes}});
      return kExitOk;
    }
    PrintNow(absl::StrCat("states    ", FormatCount(stats->num_states), "\nmanifests ",
                          FormatCount(stats->num_manifests), "\nsessions  ",
                          FormatCount(stats->num_sessions), "\nlive      ",
                          FormatBytes(stats->live_bytes), "\ndisk      ",
                          FormatBytes(stats->disk_bytes), "\n"));
    return kExitOk;
  }

  JsonFlag json_;
};

// compact and gc: what shrinks the store.
class StoreShrinkCommand final : public StoreCommand {
 public:
  StoreShrinkCommand(const char* name, const char* what, bool sweeps)
      : name_(name), what_(what), sweeps_(sweeps) {}

  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand(name_, what_);
    DeclareStore(app);
    return app;
  }

 private:
  int RunOn(StateStore& store) override {
    const absl::StatusOr<StoreStats> before = store.Stats();
    if (!before.ok()) return FailLocally(before.status());
    absl::Status status = sweeps_ ? store.Sweep(absl::Now()) : absl::OkStatus();
    if (status.ok()) status = store.Compact();
    if (!status.ok()) return FailLocally(status);
    const absl::StatusOr<StoreStats> after = store.Stats();
    if (!after.ok()) return FailLocally(after.status());
    PrintLine(absl::StrCat(FormatCount(before->num_states - after->num_states),
                           " states dropped; disk ", FormatBytes(before->disk_bytes), " -> ",
                           FormatBytes(after->disk_bytes), ", live ",
                           FormatBytes(after->live_bytes)));
    return kExitOk;
  }

  const char* const name_;
  const char* const what_;
  const bool sweeps_;
};

class StoreBackupCommand final : public StoreCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand(
        "backup", "Add a backup to a set of backups, which shares what earlier ones have");
    DeclareStore(app);
    app->add_option("--to", backups_, "The set's directory; made as needed")
        ->type_name("DIR")
        ->required();
    return app;
  }

 private:
  int RunOn(StateStore& store) override {
    absl::StatusOr<statestore::BackupInfo> info;
    {
      Progress progress("backing up", 0);
      uint64_t shown_bytes = 0;
      info = store.AddBackup(backups_, [&](uint64_t copied_bytes) {
        progress.Advance(copied_bytes - shown_bytes);
        shown_bytes = copied_bytes;
      });
    }
    if (!info.ok()) return FailLocally(info.status());
    PrintLine(absl::StrCat("backup ", info->id, ", ", FormatBytes(info->num_bytes), ", ",
                           FormatBytes(info->new_bytes), " of it new, in ", backups_));
    return kExitOk;
  }

  int Fail(const absl::Status& status) override {
    if (!absl::IsFailedPrecondition(status)) return FailLocally(status);
    return FailLocally(absl::FailedPreconditionError(
        absl::StrCat(status.message(), "; of a running server's: vivarium admin backup")));
  }

  std::string backups_;
};

class StoreRestoreCommand final : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app =
        parent->add_subcommand("restore", "Make a store of a backup, and verify every state of it");
    app->add_option("--from", backups_, "The set of backups")->type_name("DIR")->required();
    app->add_option("--store", directory_, "The store to make, new or empty")
        ->type_name("DIR")
        ->required();
    app->add_option("--id", backup_id_, "Which backup; default: the latest")->type_name("N");
    json_.Declare(app, "what was verified and what is damaged");
    return app;
  }

  int Run() override {
    const absl::Status status = statestore::RestoreBackup(backups_, backup_id_, directory_);
    if (!status.ok()) return FailLocally(status);
    auto store = statestore::OpenRocksDbStore(directory_, {}, absl::Now, nullptr);
    if (!store.ok()) return FailLocally(store.status());
    return Verify(**store, json_.json);
  }

 private:
  std::string backups_, directory_;
  uint32_t backup_id_ = 0;
  JsonFlag json_;
};

class StoreBackupsCommand final : public Command {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("backups", "List a set of backups");
    app->add_option("DIR", backups_, "The set of backups")->required();
    return app;
  }

  int Run() override {
    const auto infos = statestore::ListBackups(backups_);
    if (!infos.ok()) return FailLocally(infos.status());
    Table table({{"ID", true}, {"MADE"}, {"SIZE", true}});
    for (const statestore::BackupInfo& info : *infos) {
      table.Add({absl::StrCat(info.id),
                 absl::FormatTime(absl::RFC3339_sec, info.made, absl::UTCTimeZone()),
                 FormatBytes(info.num_bytes)});
    }
    PrintNow(table.Render());
    return kExitOk;
  }

 private:
  std::string backups_;
};

}  // namespace

Commands MakeStoreCommands() {
  Commands commands;
  commands.push_back(std::make_unique<StoreVerifyCommand>());
  commands.push_back(std::make_unique<StoreStatsCommand>());
  commands.push_back(std::make_unique<StoreShrinkCommand>(
      "compact", "Give back the disk space of what was dropped", false));
  commands.push_back(std::make_unique<StoreShrinkCommand>(
      "gc", "Drop what expired and what unfinished saves left, then compact", true));
  commands.push_back(std::make_unique<StoreBackupCommand>());
  commands.push_back(std::make_unique<StoreBackupsCommand>());
  commands.push_back(std::make_unique<StoreRestoreCommand>());
  return commands;
}

}  // namespace vivarium::cli
