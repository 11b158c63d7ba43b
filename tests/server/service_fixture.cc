#include "tests/server/service_fixture.h"

#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>

#include "google/rpc/status.pb.h"

namespace vivarium::server {

void Answer::Add(const v1::GenerateResponse& message) {
  messages.push_back(message);
  if (message.has_started()) started = message.started();
  if (message.has_delta()) {
    text += message.delta().text();
    token_ids.insert(token_ids.end(), message.delta().token_ids().begin(),
                     message.delta().token_ids().end());
  }
  if (message.has_saved()) saved.push_back(message.saved().state());
  if (message.has_finished()) {
    is_finished = true;
    finished = message.finished();
  }
}

google::rpc::ErrorInfo ErrorInfoOf(const grpc::Status& status) {
  google::rpc::ErrorInfo info;
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& any : details.details()) {
      if (any.UnpackTo(&info)) break;
    }
  }
  return info;
}

ServiceTest::ServiceTest(const ServerOptions& options, statestore::StateStore* store)
    : log_(std::make_shared<spdlog::logger>("test",
                                            std::make_shared<spdlog::sinks::null_sink_mt>())),
      memory_([this] { return Now(); }, nullptr,
              statestore::MemoryOptions{
                  .quotas = {.each_tenant = {static_cast<uint64_t>(options.quota_states),
                                             static_cast<uint64_t>(options.quota_bytes)},
                             .by_tenant = {}}}),
      store_(store != nullptr ? store : &memory_),
      sessions_(&store_),
      ids_(absl::Now),
      admission_(AdmissionLimits(options)),
      pump_(std::make_unique<WritePump>()),
      executor_(std::make_unique<Executor>(2, 64)),
      engine_(std::make_unique<FakeEngine>(identity_, engine::EngineOptions())) {
  parts_.options = options;
  parts_.model.name = "fake";
  parts_.model.config.vocab_size = kFakeVocabSize;
  parts_.model.identity = identity_;
  parts_.model.layout = FakeEngine::Layout();
  parts_.model.generation_defaults.temperature = 0.75f;
  parts_.no_chat_reason = "the model has no tokenizer.json";
  parts_.engine = engine_.get();
  parts_.store = &store_;
  parts_.sessions = &sessions_;
  parts_.ids = &ids_;
  parts_.admission = &admission_;
  parts_.executor = executor_.get();
  parts_.pump = pump_.get();
  parts_.metrics = &metrics_;
  parts_.log = log_.get();
  parts_.drain = [this](absl::Time) { ++num_drains_; };
  parts_.started = absl::Now();
  auto port = GrpcPort::Open(&parts_, "127.0.0.1:0");
  EXPECT_TRUE(port.ok()) << port.status();
  port_ = *std::move(port);
  channel_ = grpc::CreateChannel(port_->address(), grpc::InsecureChannelCredentials());
  generation_ = v1::Generation::NewStub(channel_);
  states_ = v1::States::NewStub(channel_);
  sessions_stub_ = v1::Sessions::NewStub(channel_);
  models_ = v1::Models::NewStub(channel_);
  admin_ = v1::Admin::NewStub(channel_);
}

ServiceTest::~ServiceTest() {
  engine_->AllowAllTokens();
  port_->Close(absl::ZeroDuration());
  engine_ = nullptr;
  executor_ = nullptr;
  pump_ = nullptr;
  // However a test ended, nothing is left behind.
  EXPECT_EQ(parts_.num_open_streams, 0);
  EXPECT_EQ(sessions_.num_leases(), 0u);
}

Answer ServiceTest::Generate(const v1::GenerateRequest& request, absl::Duration deadline) {
  grpc::ClientContext context;
  if (deadline != absl::ZeroDuration()) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
  }
  Answer answer;
  const auto reader = generation_->Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) answer.Add(message);
  answer.status = reader->Finish();
  answer.error = ErrorInfoOf(answer.status);
  const auto& trailing = context.GetServerTrailingMetadata();
  const auto pushback = trailing.find("grpc-retry-pushback-ms");
  if (pushback != trailing.end()) {
    answer.pushback_ms = std::stoll(std::string(pushback->second.data(), pushback->second.size()));
  }
  return answer;
}

v1::GenerateRequest ServiceTest::Request(int max_tokens) {
  v1::GenerateRequest request;
  SetTokens(&request, {1, 2, 3});
  request.set_max_tokens(max_tokens);
  return request;
}

void ServiceTest::SetTokens(v1::GenerateRequest* request, const std::vector<int32_t>& ids) {
  request->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
}

absl::Time ServiceTest::Now() const {
  return absl::Now() + absl::Nanoseconds(clock_offset_ns_.load());
}

void ServiceTest::AdvanceClock(absl::Duration duration) {
  clock_offset_ns_ += absl::ToInt64Nanoseconds(duration);
}

}  // namespace vivarium::server
