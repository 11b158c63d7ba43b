// A running server's care for its store: backups while it works, and a restore drill of each
// through the command line; disk space that comes back after deletions; a disk below its reserve.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "statestore/rocksdb_store.h"
#include "tests/e2e/grpc_client.h"
#include "tests/support/process.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_dir.h"

namespace vivarium {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;
using test::ProcessResult;
using test::ServerProcess;

constexpr char kTenant[] = "default";

v1::GenerateRequest Saving(int32_t token, const std::string& session = "") {
  v1::GenerateRequest request;
  for (int32_t id : {token, 5, 6}) request.mutable_token_ids()->add_ids(id);
  request.set_max_tokens(1);
  request.mutable_save()->set_at_end(true);
  request.set_session(session);
  return request;
}

ProcessResult Vivarium(std::vector<std::string> args) {
  args.insert(args.begin(), test::VivariumBinary());
  auto result = test::RunProcess(args, {});
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : ProcessResult();
}

Json VivariumJson(std::vector<std::string> args) {
  args.emplace_back("--json");
  const ProcessResult result = Vivarium(args);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return Json::parse(result.out, nullptr, /*allow_exceptions=*/false);
}

// States that clients were told of, by threads that go on until they are told to stop.
class Load {
 public:
  explicit Load(const std::string& address) {
    for (int t = 0; t < 2; ++t) {
      threads_.emplace_back([this, address, t] {
        GrpcClient client(address);
        for (int i = 0; !stops_; ++i) {
          const Generated made = client.Generate(Saving(10 + i % 200, absl::StrCat("load-", t)));
          ASSERT_TRUE(made.status.ok()) << made.status.error_message();
          absl::MutexLock lock(&mutex_);
          told_.push_back(made.finished->state().id());
        }
      });
    }
  }
  ~Load() { Stop(); }

  void Stop() {
    stops_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  std::vector<std::string> Told() {
    absl::MutexLock lock(&mutex_);
    return told_;
  }
  void Await(size_t num_states) {
    while (Told().size() < num_states) absl::SleepFor(absl::Milliseconds(5));
  }

 private:
  std::atomic<bool> stops_{false};
  absl::Mutex mutex_;
  std::vector<std::string> told_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

TEST(OnlineBackup, EveryOneOfASetComesBackWhole) {
  constexpr size_t kNumBackups = 3;
  const test::TempDir dir;
  auto server = ServerProcess::Start({.args = {"--threads", "1", "--backups", dir.File("b")}});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::vector<std::string> backup = {"admin", "backup", "daily", "--server",
                                           (*server)->address()};
  std::vector<std::vector<std::string>> told;  // before each backup
  std::string set;
  {
    Load load((*server)->address());
    for (size_t i = 0; i < kNumBackups; ++i) {
      load.Await((i + 1) * 12);
      told.push_back(load.Told());
      const Json made = VivariumJson(backup);
      EXPECT_EQ(made["backup_id"], i + 1);
      set = made["directory"];
    }
  }
  // Nothing new costs next to nothing; one new state about itself.
  const uint64_t state_bytes = GrpcClient((*server)->address()).Stats().slot_bytes();
  VivariumJson(backup);
  const Json same = VivariumJson(backup);
  EXPECT_LT(same["new_bytes"], state_bytes);
  EXPECT_GT(same["num_bytes"], 30 * state_bytes);
  ASSERT_TRUE(GrpcClient((*server)->address()).Generate(Saving(7)).status.ok());
  EXPECT_LT(VivariumJson(backup)["new_bytes"], 4 * state_bytes);
  EXPECT_THAT(Vivarium({"store", "backup", "--store", (*server)->store_dir(), "--to", set}).err,
              HasSubstr("vivarium admin backup"));
  server->reset();
  for (size_t i = 0; i < kNumBackups; ++i) {
    const std::string restored = dir.File(absl::StrCat("restored", i));
    const Json report = VivariumJson(
        {"store", "restore", "--from", set, "--id", absl::StrCat(i + 1), "--store", restored});
    EXPECT_GE(report["states"], told[i].size());
    EXPECT_EQ(report["num_damaged"], 0);
    EXPECT_EQ(report["num_inconsistent"], 0);
    auto store = statestore::OpenRocksDbStore(restored, {}, absl::Now, nullptr);
    ASSERT_TRUE(store.ok()) << store.status();
    for (const std::string& id : told[i]) {
      EXPECT_TRUE((*store)->Load(kTenant, id).ok()) << "backup " << i + 1 << " lacks " << id;
    }
  }
}

TEST(OnlineBackup, TwoAtOnceAnswerClearly) {
  const test::TempDir dir;
  auto server = ServerProcess::Start({.args = {"--threads", "1", "--backups", dir.File("b")}});
  ASSERT_TRUE(server.ok()) << server.status();
  GrpcClient client((*server)->address());
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(client.Generate(Saving(10 + i)).status.ok());
  std::vector<ProcessResult> results(3);
  std::vector<std::thread> threads;
  for (ProcessResult& result : results) {
    threads.emplace_back([&] {
      result = Vivarium({"admin", "backup", "daily", "--server", (*server)->address()});
    });
  }
  for (std::thread& thread : threads) thread.join();
  int num_made = 0;
  for (const ProcessResult& result : results) {
    num_made += result.exit_code == 0 ? 1 : 0;
    if (result.exit_code == 0) continue;
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, HasSubstr("another one is being made"));
    EXPECT_THAT(result.err, HasSubstr("BACKUP_RUNNING"));
  }
  EXPECT_GE(num_made, 1);
  const auto infos = statestore::ListBackups(dir.File("b") + "/daily");
  ASSERT_TRUE(infos.ok()) << infos.status();
  EXPECT_EQ(infos->size(), static_cast<size_t>(num_made));
}

TEST(Deletion, TheSweepGivesBackTheDiskOfHalfOfTheStates) {
  constexpr int kNumStates = 200;
  auto server = ServerProcess::Start({.args = {"--threads", "1", "--sweep-seconds", "1"}});
  ASSERT_TRUE(server.ok()) << server.status();
  GrpcClient client((*server)->address());
  std::vector<std::string> ids;
  for (int i = 0; i < kNumStates; ++i) {
    const Generated made = client.Generate(Saving(10 + i));
    ASSERT_TRUE(made.status.ok()) << made.status.error_message();
    ids.push_back(made.finished->state().id());
  }
  for (int i = 0; i < kNumStates; i += 2) {
    grpc::ClientContext context;
    v1::DeleteStateRequest request;
    request.set_id(ids[i]);
    google::protobuf::Empty empty;
    ASSERT_TRUE(client.states->DeleteState(&context, request, &empty).ok());
  }
  const absl::Time until = absl::Now() + absl::Minutes(1);
  v1::Stats stats;
  double ratio = 0;
  do {
    absl::SleepFor(absl::Milliseconds(200));
    stats = client.Stats();
    ratio = static_cast<double>(stats.store_disk_bytes()) /
            static_cast<double>(stats.store_live_bytes());
  } while (ratio >= 1.2 && absl::Now() < until);
  EXPECT_EQ(stats.num_states(), kNumStates / 2);
  EXPECT_LT(ratio, 1.2);
  EXPECT_GT(stats.store_live_bytes(), kNumStates / 2 * 200'000);
  for (int i = 1; i < kNumStates; i += 2) {
    grpc::ClientContext context;
    v1::VerifyStateRequest request;
    request.set_id(ids[i]);
    v1::VerifyStateResponse response;
    EXPECT_TRUE(client.states->VerifyState(&context, request, &response).ok()) << i;
  }
}

// More of a reserve than any disk has.
TEST(DiskReserve, AServerBelowItGeneratesAndSaysThatItCannotSave) {
  auto server = ServerProcess::Start(
      {.args = {"--threads", "1", "--disk-reserve-bytes", absl::StrCat(int64_t{1} << 60)}});
  ASSERT_TRUE(server.ok()) << server.status();
  GrpcClient client((*server)->address());
  const Generated refused = client.Generate(Saving(7));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_FALSE(refused.started.has_value());
  v1::GenerateRequest request = Saving(7);
  request.mutable_save()->set_at_end(false);
  const Generated generated = client.Generate(request);
  EXPECT_TRUE(generated.status.ok()) << generated.status.error_message();
  EXPECT_EQ(generated.token_ids.size(), 1u);
  EXPECT_TRUE(client.Stats().store_is_read_only());
  const auto health = grpc::health::v1::Health::NewStub(
      grpc::CreateChannel((*server)->address(), grpc::InsecureChannelCredentials()));
  const auto ask = [&](const std::string& name) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest check;
    check.set_service(name);
    grpc::health::v1::HealthCheckResponse response;
    EXPECT_TRUE(health->Check(&context, check, &response).ok());
    return response.status();
  };
  EXPECT_EQ(ask(""), grpc::health::v1::HealthCheckResponse::SERVING);
  EXPECT_EQ(ask("vivarium.saving"), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  EXPECT_THAT(Vivarium({"admin", "stats", "--server", (*server)->address()}).out,
              HasSubstr("nothing can be saved now"));
}

}  // namespace
}  // namespace vivarium
