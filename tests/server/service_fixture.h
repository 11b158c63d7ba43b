// A gRPC server with every service over a FakeEngine and a MemoryStore, and clients of it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "server/admission.h"
#include "server/grpc_port.h"
#include "server/metrics.h"
#include "server/parts.h"
#include "statestore/memory_store.h"
#include "tests/server/fake_engine.h"
#include "vivarium/v1/generation.grpc.pb.h"
#include "vivarium/v1/server.grpc.pb.h"
#include "vivarium/v1/sessions.grpc.pb.h"
#include "vivarium/v1/states.grpc.pb.h"

namespace vivarium::server {

// A store whose commits a test can hold up or let fail.
class HookedStore final : public statestore::StateStore {
 public:
  using Hook = std::function<absl::Status(const statestore::Commit&)>;
  explicit HookedStore(statestore::StateStore* store) : store_(store) {}
  // Before each commit; an error is the commit's answer. Set while nothing runs.
  void SetHook(Hook hook) { hook_ = std::move(hook); }
  // Before each load, likewise.
  using LoadHook = std::function<absl::Status(const statestore::StateId&)>;
  void SetLoadHook(LoadHook hook) { load_hook_ = std::move(hook); }
  // Each look-up of a prefix answers this, unless it is OK.
  void FailPrefixes(absl::Status status) { prefix_failure_ = std::move(status); }
  // CheckWritable answers this, unless it is OK.
  void StopWriting(absl::Status status) { write_failure_ = std::move(status); }

  absl::Status Apply(const statestore::Commit& commit) override {
    absl::Status status = hook_ ? hook_(commit) : absl::OkStatus();
    return status.ok() ? store_->Apply(commit) : status;
  }
  absl::StatusOr<statestore::SavedState> Load(const std::string& tenant,
                                              const statestore::StateId& id) override {
    if (absl::Status status = load_hook_ ? load_hook_(id) : absl::OkStatus(); !status.ok()) {
      return status;
    }
    return store_->Load(tenant, id);
  }
  absl::StatusOr<statestore::StateManifest> GetManifest(const std::string& tenant,
                                                        const statestore::StateId& id) override {
    return store_->GetManifest(tenant, id);
  }
  absl::StatusOr<statestore::Page<statestore::StateManifest>> ListStates(
      const std::string& tenant, const statestore::StateFilter& filter, int page_size,
      const std::string& page_token) override {
    return store_->ListStates(tenant, filter, page_size, page_token);
  }
  absl::StatusOr<statestore::StateManifest> UpdateState(
      const std::string& tenant, const statestore::StateId& id,
      const statestore::StateUpdate& update) override {
    return store_->UpdateState(tenant, id, update);
  }
  absl::Status DeleteState(const std::string& tenant, const statestore::StateId& id) override {
    return store_->DeleteState(tenant, id);
  }
  absl::Status VerifyState(const std::string& tenant, const statestore::StateId& id) override {
    return store_->VerifyState(tenant, id);
  }
  absl::StatusOr<std::vector<statestore::StateManifest>> Ancestry(const std::string& tenant,
                                                                  const statestore::StateId& id,
                                                                  size_t limit) override {
    return store_->Ancestry(tenant, id, limit);
  }
  absl::StatusOr<statestore::PrefixMatch> FindPrefix(
      const std::string& tenant, const statestore::PrefixQuery& query) override {
    if (!prefix_failure_.ok()) return prefix_failure_;
    return store_->FindPrefix(tenant, query);
  }
  absl::StatusOr<statestore::Session> GetSession(const std::string& tenant,
                                                 const std::string& name) override {
    return store_->GetSession(tenant, name);
  }
  absl::StatusOr<statestore::Page<statestore::Session>> ListSessions(
      const std::string& tenant, int page_size, const std::string& page_token) override {
    return store_->ListSessions(tenant, page_size, page_token);
  }
  absl::Status DeleteSession(const std::string& tenant, const std::string& name,
                             const std::string& expected_etag) override {
    return store_->DeleteSession(tenant, name, expected_etag);
  }
  absl::StatusOr<statestore::RequestRecord> GetRequest(const std::string& tenant,
                                                       const std::string& request_id) override {
    return store_->GetRequest(tenant, request_id);
  }
  absl::Status Sweep(absl::Time now) override { return store_->Sweep(now); }
  absl::StatusOr<statestore::StoreStats> Stats() override { return store_->Stats(); }
  absl::StatusOr<statestore::ScrubReport> Scrub(const statestore::ScrubOptions& options) override {
    return store_->Scrub(options);
  }
  absl::Status Compact() override { return store_->Compact(); }
  absl::StatusOr<statestore::BackupInfo> AddBackup(
      const std::string& directory,
      const std::function<void(uint64_t copied_bytes)>& on_progress) override {
    return store_->AddBackup(directory, on_progress);
  }
  absl::StatusOr<statestore::StateReservation> Reserve(const std::string& tenant,
                                                       uint64_t num_states,
                                                       const engine::StateLayout& layout,
                                                       statestore::StateCodec codec) override {
    return store_->Reserve(tenant, num_states, layout, codec);
  }
  statestore::QuotaUsage GetQuota(const std::string& tenant) override {
    return store_->GetQuota(tenant);
  }
  absl::Status CheckWritable(uint64_t num_bytes) override {
    return write_failure_.ok() ? store_->CheckWritable(num_bytes) : write_failure_;
  }
  absl::Status Backup(const std::string& directory) override { return store_->Backup(directory); }

 private:
  statestore::StateStore* const store_;
  Hook hook_;
  LoadHook load_hook_;
  absl::Status prefix_failure_;
  absl::Status write_failure_;
};

// All that one Generate call said.
struct Answer {
  grpc::Status status;
  google::rpc::ErrorInfo error;  // of a status that is not OK
  int64_t pushback_ms = -1;      // grpc-retry-pushback-ms
  std::vector<v1::GenerateResponse> messages;
  v1::Started started;
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<v1::State> saved;
  bool is_finished = false;
  v1::Finished finished;

  void Add(const v1::GenerateResponse& message);
};

google::rpc::ErrorInfo ErrorInfoOf(const grpc::Status& status);

class ServiceTest : public testing::Test {
 protected:
  ServiceTest() : ServiceTest(ServerOptions()) {}
  // `store`: instead of one in memory; must outlive the fixture.
  explicit ServiceTest(const ServerOptions& options, statestore::StateStore* store = nullptr);
  ~ServiceTest() override;

  // The whole call. `deadline` of zero: none.
  Answer Generate(const v1::GenerateRequest& request,
                  absl::Duration deadline = absl::ZeroDuration());
  // [1, 2, 3], `max_tokens` tokens.
  static v1::GenerateRequest Request(int max_tokens = 4);
  static void SetTokens(v1::GenerateRequest* request, const std::vector<int32_t>& ids);
  absl::Time Now() const;
  void AdvanceClock(absl::Duration duration);

  engine::ModelIdentity identity_{"fingerprint", "", "fake-v1"};
  std::atomic<int64_t> clock_offset_ns_{0};
  Metrics metrics_;
  std::shared_ptr<spdlog::logger> log_;
  statestore::MemoryStore memory_;
  HookedStore store_;
  SessionManager sessions_;
  statestore::UlidGenerator ids_;
  Admission admission_;
  std::unique_ptr<WritePump> pump_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<FakeEngine> engine_;
  Parts parts_;
  std::unique_ptr<GrpcPort> port_;
  std::atomic<int> num_drains_{0};

  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::States::Stub> states_;
  std::unique_ptr<v1::Sessions::Stub> sessions_stub_;
  std::unique_ptr<v1::Models::Stub> models_;
  std::unique_ptr<v1::Admin::Stub> admin_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace vivarium::server
