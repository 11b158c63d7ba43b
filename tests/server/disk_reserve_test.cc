// A disk that runs full below a server, and has space again: calls that save are refused before the
// first token, everything else goes on, and nobody has to do anything for it to be over.
#include <string>

#include "statestore/rocksdb_store.h"
#include "tests/server/service_fixture.h"
#include "tests/statestore/faulty_file_system.h"
#include "tests/statestore/state_samples.h"

namespace vivarium::server {
namespace {

constexpr uint64_t kReserveBytes = 1'000'000;

// Before the fixture's services, which it must outlive.
struct StoreOnADisk {
  StoreOnADisk() {
    statestore::RocksDbOptions options;
    options.env = disk.env.get();
    options.disk_reserve_bytes = kReserveBytes;
    disk.system->SetFreeBytes(2 * kReserveBytes);
    auto opened = statestore::OpenRocksDbStore(directory.Sub("store"), options, absl::Now, nullptr);
    EXPECT_TRUE(opened.ok()) << opened.status();
    store = *std::move(opened);
  }
  statestore::FaultyEnv disk;
  statestore::TemporaryDirectory directory;
  std::unique_ptr<statestore::StateStore> store;
};

class DiskReserve : protected StoreOnADisk, public ServiceTest {
 protected:
  DiskReserve() : ServiceTest(ServerOptions(), StoreOnADisk::store.get()) {}

  static v1::GenerateRequest Saving() {
    v1::GenerateRequest request = Request();
    request.mutable_save()->set_at_end(true);
    return request;
  }
  bool IsReadOnly() {
    grpc::ClientContext context;
    v1::Stats stats;
    EXPECT_TRUE(admin_->GetStats(&context, {}, &stats).ok());
    return stats.store_is_read_only();
  }
};

TEST_F(DiskReserve, SavingIsRefusedBeforeTheFirstTokenUntilThereIsSpace) {
  const Answer before = Generate(Saving());
  ASSERT_TRUE(before.status.ok()) << before.status.error_message();
  EXPECT_FALSE(IsReadOnly());

  disk.system->SetFreeBytes(kReserveBytes - 1);
  engine_->AllowTokens(0);  // a token that was asked for now would never come
  for (const bool at_end : {true, false}) {
    v1::GenerateRequest request = Saving();
    request.mutable_save()->set_at_end(at_end);
    request.mutable_save()->set_at_prompt_end(!at_end);
    const Answer refused = Generate(request);
    EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(refused.error.reason(), "DISK_FULL");
    EXPECT_NE(refused.status.error_message().find("999999 bytes free"), std::string::npos);
    EXPECT_TRUE(refused.messages.empty());
  }
  EXPECT_TRUE(IsReadOnly());
  {
    grpc::ClientContext context;
    v1::State state;
    const auto writer = states_->ImportState(&context, &state);
    v1::ImportStateRequest message;
    message.mutable_metadata();
    EXPECT_TRUE(writer->Write(message));
    EXPECT_EQ(ErrorInfoOf(writer->Finish()).reason(), "DISK_FULL");
  }
  engine_->AllowAllTokens();
  // What saves nothing goes on, from what is saved already.
  v1::GenerateRequest request = Request();
  request.set_state_id(before.finished.state().id());
  const Answer going_on = Generate(request);
  EXPECT_TRUE(going_on.status.ok()) << going_on.status.error_message();
  EXPECT_EQ(going_on.token_ids.size(), 4u);
  EXPECT_GT(going_on.started.restored_tokens(), 0u);

  disk.system->SetFreeBytes(2 * kReserveBytes);
  const Answer after = Generate(Saving());
  EXPECT_TRUE(after.status.ok()) << after.status.error_message();
  EXPECT_TRUE(after.finished.has_state());
  EXPECT_FALSE(IsReadOnly());
}

TEST_F(DiskReserve, ADiskThatFillsUpDuringAStreamIsItsErrorAndNoOneElses) {
  engine_->AllowTokens(0);
  Answer answer;
  std::thread stream([&] { answer = Generate(Saving()); });
  engine_->AwaitLiveStreams(1);
  disk.system->SetFreeBytes(0);
  engine_->AllowAllTokens();
  stream.join();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(answer.token_ids.size(), 4u);
  EXPECT_EQ(store_.GetQuota(DefaultTenant()).reserved, statestore::Quota());
  EXPECT_TRUE(Generate(Request()).status.ok());
  disk.system->SetFreeBytes(2 * kReserveBytes);
  EXPECT_TRUE(Generate(Saving()).status.ok());
}

}  // namespace
}  // namespace vivarium::server
