// The server's small parts, each by itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <limits>

#include "absl/synchronization/notification.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/errors.h"
#include "server/executor.h"
#include "server/outbox.h"
#include "server/replay.h"
#include "server/sampling.h"
#include "server/server_options.h"
#include "server/stream_saver.h"
#include "server/write_pump.h"

namespace vivarium::server {
namespace {

using testing::HasSubstr;

ServerOptions GoodOptions() {
  ServerOptions options;
  options.model_dir = "m";
  options.store_dir = "s";
  return options;
}

TEST(ServerOptionsTest, DefaultsWithModelAndStoreAreGood) {
  EXPECT_TRUE(ValidateServerOptions(GoodOptions()).ok());
  EXPECT_FALSE(ValidateServerOptions({}).ok());
}

TEST(ServerOptionsTest, OtherHostsNeedInsecure) {
  ServerOptions options = GoodOptions();
  for (const char* address : {"127.0.0.1:0", "127.3.2.1:1", "localhost:65535", "[::1]:5"}) {
    options.listen = address;
    EXPECT_TRUE(ValidateServerOptions(options).ok()) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "192.168.0.1:1", "example.org:1",
                              "127.evil.org:1", "[::ffff:10.0.0.1]:1"}) {
    options.listen = address;
    options.insecure = false;
    const absl::Status status = ValidateServerOptions(options);
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << address;
    EXPECT_THAT(std::string(status.message()), HasSubstr(address));
    EXPECT_THAT(std::string(status.message()), HasSubstr("--insecure"));
    options.insecure = true;
    EXPECT_TRUE(ValidateServerOptions(options).ok()) << address;
  }
  options = GoodOptions();
  options.metrics_listen = "0.0.0.0:9464";
  EXPECT_TRUE(absl::IsFailedPrecondition(ValidateServerOptions(options)));
  options.metrics_listen = "";
  EXPECT_TRUE(ValidateServerOptions(options).ok());
}

TEST(ServerOptionsTest, MalformedAddresses) {
  ServerOptions options = GoodOptions();
  options.insecure = true;
  for (const char* address :
       {"", ":", "x", "127.0.0.1", "127.0.0.1:", ":5", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:5x", "::1:5", "[::1:5", "[]:5", "a b:5", "unix:/tmp/x"}) {
    options.listen = address;
    EXPECT_TRUE(absl::IsInvalidArgument(ValidateServerOptions(options))) << address;
  }
}

TEST(ServerOptionsTest, ValuesAtAndPastTheirBounds) {
  const auto expect = [](bool is_good, const std::function<void(ServerOptions*)>& change) {
    ServerOptions options = GoodOptions();
    change(&options);
    EXPECT_EQ(ValidateServerOptions(options).ok(), is_good) << ValidateServerOptions(options);
  };
  expect(true, [](auto* o) { o->max_slots = 1; });
  expect(true, [](auto* o) { o->max_slots = engine::kAutoSlots; });
  expect(false, [](auto* o) { o->max_slots = 0; });
  expect(false, [](auto* o) { o->max_slots = engine::kAutoSlots - 1; });
  expect(false, [](auto* o) { o->max_slots = 257; });  // above max_live_streams
  expect(true, [](auto* o) { o->threads = 256; });
  expect(false, [](auto* o) { o->threads = 257; });
  expect(false, [](auto* o) { o->threads = -1; });
  expect(false, [](auto* o) { o->default_max_tokens = o->max_tokens + 1; });
  expect(false, [](auto* o) { o->drain_seconds = -1; });
  expect(true, [](auto* o) { o->drain_seconds = 0; });
  expect(false, [](auto* o) { o->default_ttl_seconds = -1; });
  expect(false, [](auto* o) { o->io_threads = 0; });
  expect(true, [](auto* o) { o->prefix_reuse = "off"; });
  expect(false, [](auto* o) { o->prefix_reuse = "yes"; });
  expect(true, [](auto* o) { o->prefix_max_states = 0; });
  expect(true, [](auto* o) { o->prefix_max_states = kMaxPrefixStates; });
  expect(false, [](auto* o) { o->prefix_max_states = kMaxPrefixStates + 1; });
  expect(true, [](auto* o) { o->prefix_ttl_seconds = 0; });
  expect(false, [](auto* o) { o->prefix_ttl_seconds = -1; });
  expect(false, [](auto* o) { o->weights = "int4"; });
  expect(true, [](auto* o) { o->state_dtype = "bf16"; });
  expect(false, [](auto* o) { o->state_dtype = "f16"; });
  expect(false, [](auto* o) { o->log_level = "loud"; });
  expect(false, [](auto* o) { o->device = ""; });
}

TEST(ErrorsTest, EveryErrorHasAnErrorInfo) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status wire = ToGrpcStatus(status, nullptr);
    EXPECT_EQ(wire.error_code(), code);
    google::rpc::Status details;
    ASSERT_TRUE(details.ParseFromString(wire.error_details()));
    EXPECT_EQ(details.code(), code);
    google::rpc::ErrorInfo info;
    ASSERT_EQ(details.details_size(), 1);
    ASSERT_TRUE(details.details(0).UnpackTo(&info));
    EXPECT_EQ(info.domain(), "vivarium");
    EXPECT_NE(info.reason(), "");
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus(), nullptr).ok());
}

TEST(ErrorsTest, ValuesAreCutAndMadeValid) {
  const absl::Status status = InvalidField("f", std::string(100000, '\xff'), "less");
  const grpc::Status wire = ToGrpcStatus(status, nullptr);
  EXPECT_LE(wire.error_message().size(), kMaxErrorMessageBytes);
  EXPECT_LE(wire.error_details().size(), size_t{6000});  // HTTP/2 headers are 8 KiB at most
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(wire.error_details()));
}

TEST(ErrorsTest, BusyTellsWhenToRetry) {
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(ToGrpcStatus(BusyError("x", 3), nullptr).error_details()));
  ASSERT_EQ(details.details_size(), 2);
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(details.details(1).UnpackTo(&retry));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
}

TEST(ExecutorTest, NewWorkIsBoundedAndAdmittedWorkGoesFirst) {
  absl::Notification started, go;
  std::string order;
  {
    Executor executor(1, 2);
    ASSERT_TRUE(executor.TryRun([&] {
      started.Notify();
      go.WaitForNotification();
    }));
    started.WaitForNotification();
    EXPECT_TRUE(executor.TryRun([&] { order += 'a'; }));
    EXPECT_TRUE(executor.TryRun([&] { order += 'b'; }));
    EXPECT_FALSE(executor.TryRun([&] { order += 'x'; }));
    executor.Continue([&] { order += 'c'; });
    go.Notify();
    executor.WaitUntilIdle();
    EXPECT_EQ(order, "cab");
    executor.Continue([&] { order += 'd'; });
  }
  EXPECT_EQ(order, "cabd");  // what is queued is run before the end
}

TEST(WritePumpTest, CallsEveryoneThatRang) {
  struct Counter final : Writable {
    explicit Counter(std::atomic<int>* count) : count(count) {}
    void WriteMore() override { ++*count; }
    std::atomic<int>* count;
  };
  std::atomic<int> count{0};
  {
    WritePump pump;
    for (int i = 0; i < 100; ++i) pump.Ring(std::make_shared<Counter>(&count));
  }
  EXPECT_EQ(count, 100);
}

TEST(SamplingTest, DoSampleFalseIsGreedy) {
  engine::GenerationDefaults defaults;
  defaults.temperature = 0.7f;
  defaults.top_k = 40;
  EXPECT_EQ(DefaultSampling(defaults).temperature, 0.7f);
  defaults.do_sample = false;
  EXPECT_EQ(DefaultSampling(defaults).temperature, 0.0f);
  EXPECT_EQ(DefaultSampling(defaults).top_k, 40);
  SamplingOverrides overrides;
  overrides.temperature = 0.5f;
  EXPECT_EQ(ResolveSampling(overrides, defaults, nullptr, 1).temperature, 0.5f);
}

TEST(OutboxTest, TokensMergeUpToTheBoundOfAMessage) {
  Outbox outbox;
  for (int i = 0; i < kMaxDeltaTokens + 1; ++i) outbox.AddToken({i, "x", {}, {}});
  outbox.AddText("tail");
  outbox.AddText("");
  ASSERT_EQ(outbox.messages().size(), 2u);
  EXPECT_EQ(outbox.messages()[0].delta().token_ids_size(), kMaxDeltaTokens);
  EXPECT_EQ(outbox.messages()[1].delta().text(), "xtail");
  v1::GenerateResponse saved;
  saved.mutable_saved();
  outbox.Add(saved);
  outbox.AddToken({1, "y", {}, {}});
  EXPECT_EQ(outbox.messages().size(), 4u);  // order is kept: no merging across it
  outbox.Take();
  EXPECT_EQ(outbox.Take().delta().text(), "xtail");
}

TEST(OutboxTest, LongTextsAndManyLogprobsBeginNewMessages) {
  Outbox outbox;
  for (int i = 0; i < 3; ++i) outbox.AddToken({i, std::string(kMaxDeltaTextBytes, 'x'), {}, {}});
  EXPECT_EQ(outbox.messages().size(), 3u);
  Outbox tops;
  const std::vector<engine::TokenLogprob> top(20, engine::TokenLogprob{1, -1.0f});
  for (int i = 0; i < 4000; ++i) tops.AddToken({i, "", engine::TokenLogprob{i, -1.0f}, top});
  for (const auto& message : tops.messages()) EXPECT_LT(message.ByteSizeLong(), 2u << 20);
}

TEST(ReplayTest, ComesBackAsItWas) {
  ResultRecorder recorder;
  v1::GenerateResponse started;
  started.mutable_started()->set_prefill_tokens(3);
  recorder.Add(started);
  recorder.AddToken({5, "five", engine::TokenLogprob{5, -1.0f}, {{6, -2.0f}}});
  recorder.AddText("!");
  v1::Finished finished;
  finished.set_reason(v1::STOP);
  const auto messages = DecodeResult(recorder.Encode(finished));
  ASSERT_TRUE(messages.ok()) << messages.status();
  ASSERT_EQ(messages->size(), 3u);
  EXPECT_TRUE((*messages)[0].started().replayed());
  EXPECT_EQ((*messages)[1].delta().text(), "five!");
  EXPECT_EQ((*messages)[1].delta().logprobs(0).top(0).token_id(), 6);
  EXPECT_EQ((*messages)[2].finished().reason(), v1::STOP);
}

TEST(ReplayTest, PastItsBoundTheDeltasAreLeftOut) {
  ResultRecorder recorder;
  v1::GenerateResponse started;
  started.mutable_started();
  recorder.Add(started);
  const std::string text(1 << 20, 'x');
  for (int i = 0; i < 20; ++i) recorder.AddToken({i, text, {}, {}});
  const std::string result = recorder.Encode({});
  EXPECT_LT(result.size(), 100u);
  EXPECT_EQ(DecodeResult(result)->size(), 2u);
}

TEST(ReplayTest, DamagedRecordsAreErrors) {
  ResultRecorder recorder;
  recorder.AddToken({5, "five", {}, {}});
  const std::string good = recorder.Encode({});
  EXPECT_FALSE(DecodeResult("").ok());
  for (size_t i = 0; i < good.size(); ++i) EXPECT_FALSE(DecodeResult(good.substr(0, i)).ok()) << i;
}

}  // namespace
}  // namespace vivarium::server
