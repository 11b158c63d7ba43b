#include "cli/bench/load_client.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "cli/generation_call.h"
#include "vivarium/v1/generation.grpc.pb.h"
#include "vivarium/v1/server.grpc.pb.h"
#include "vivarium/v1/sessions.grpc.pb.h"

namespace vivarium::cli::bench {
namespace {

constexpr int kConnectSeconds = 5;
constexpr int kUnarySeconds = 60;

std::chrono::system_clock::time_point After(double seconds) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(
             std::chrono::duration<double>(seconds));
}

std::shared_ptr<grpc::Channel> NewChannel(const std::string& server) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // Else channels to one address would share one connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
}

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + static_cast<double>(duration.nanos()) / 1e9;
}

v1::GenerateRequest RequestOf(const CallSpec& spec, double ttl_seconds) {
  v1::GenerateRequest request;
  if (!spec.state_id.empty()) request.set_state_id(spec.state_id);
  request.set_session(spec.session);
  if (!spec.token_ids.empty()) {
    request.mutable_token_ids()->mutable_ids()->Add(spec.token_ids.begin(), spec.token_ids.end());
  } else if (!spec.text.empty()) {
    request.set_text(spec.text);
  }
  request.set_max_tokens(spec.max_tokens);
  request.mutable_sampling()->set_seed(spec.seed);
  request.mutable_sampling()->set_temperature(spec.temperature);
  request.mutable_stops()->set_ignore_eos(spec.ignore_eos);
  if (spec.save_at_end || spec.save_every_tokens > 0) {
    request.mutable_save()->set_at_end(spec.save_at_end);
    request.mutable_save()->set_every_tokens(spec.save_every_tokens);
    request.mutable_ttl()->set_seconds(static_cast<int64_t>(ttl_seconds));
  }
  return request;
}

absl::Status ToAbsl(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace

struct LoadClient::Connections {
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  std::vector<std::unique_ptr<v1::Generation::Stub>> stubs;
  absl::Mutex mutex;
  std::unordered_set<grpc::ClientContext*> live ABSL_GUARDED_BY(mutex);
};

// One call, from Start to OnDone, where it deletes itself. gRPC runs its callbacks one at a time.
class LoadClient::GenerateReactor : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  GenerateReactor(LoadClient* client, CallSpec spec, uint64_t index, Clock::time_point run_start,
                  Clock::time_point scheduled, std::function<void(CallResult)> done)
      : client_(client), run_start_(run_start), done_(std::move(done)) {
    request_ = RequestOf(spec, client->options_.ttl_seconds);
    CallRecord& record = result_.record;
    record.index = index;
    record.scenario = spec.scenario;
    record.scheduled_s = SecondsBetween(run_start, scheduled);
    record.is_slow_reader = spec.read_delay_seconds > 0;
    record.input_tokens = static_cast<uint32_t>(spec.token_ids.size());
    spec.token_ids = {};
    spec.text = {};
    result_.spec = std::move(spec);
  }

  void StartOn(v1::Generation::Stub* stub) {
    if (client_->options_.call_timeout_seconds > 0) {
      context_.set_deadline(After(client_->options_.call_timeout_seconds));
    }
    {
      absl::MutexLock lock(&client_->connections_->mutex);
      client_->connections_->live.insert(&context_);
    }
    if (result_.spec.own_connection) {
      own_channel_ = NewChannel(client_->options_.server);
      own_stub_ = v1::Generation::NewStub(own_channel_);
      stub = own_stub_.get();
    }
    result_.record.sent_s = Now();
    stub->async()->Generate(&context_, &request_, this);
    AddHold();  // until the last read: a slow reader's pause leaves no operation outstanding
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      RemoveHold();
      return;
    }
    Take();
    const double delay = result_.spec.read_delay_seconds;
    if (delay > 0) {
      alarm_.Set(After(delay), [this](bool) { StartRead(&response_); });
    } else {
      StartRead(&response_);
    }
  }

  void OnDone(const grpc::Status& status) override {
    CallRecord& record = result_.record;
    record.end_s = Now();
    record.code = status.error_code();
    record.error = status.error_message();
    if (status.ok() && !record.is_finished) {
      record.code = static_cast<int>(grpc::StatusCode::UNAVAILABLE);
      record.error = "the stream ended before it was finished";
    }
    // A call that was to be cut but ended by itself first is an ordinary one.
    record.was_cut = record.was_cut && record.code == static_cast<int>(grpc::StatusCode::CANCELLED);
    {
      absl::MutexLock lock(&client_->connections_->mutex);
      client_->connections_->live.erase(&context_);
    }
    const auto done = std::move(done_);
    CallResult result = std::move(result_);
    delete this;
    done(std::move(result));
  }

 private:
  double Now() const { return SecondsBetween(run_start_, Clock::now()); }

  void Take() {
    CallRecord& record = result_.record;
    switch (response_.event_case()) {
      case v1::GenerateResponse::kStarted:
        record.restored_tokens = response_.started().restored_tokens();
        record.state_tier = TierName(response_.started().state_tier());
        record.prefill_tokens = response_.started().prefill_tokens();
        record.server_queue_s = Seconds(response_.started().queue_time());
        if (record.input_tokens == 0) {
          record.input_tokens = static_cast<uint32_t>(record.prefill_tokens);
        }
        break;
      case v1::GenerateResponse::kDelta:
        TakeTokens(static_cast<uint32_t>(response_.delta().token_ids_size()));
        break;
      case v1::GenerateResponse::kSaved:
        result_.saved.emplace_back(response_.saved().state().position(),
                                   response_.saved().state().id());
        break;
      case v1::GenerateResponse::kFinished:
        record.is_finished = true;
        result_.state_id = response_.finished().state().id();
        break;
      case v1::GenerateResponse::EVENT_NOT_SET:
        break;  // an event of a newer server
    }
  }

  void TakeTokens(uint32_t num_tokens) {
    if (num_tokens == 0) return;
    CallRecord& record = result_.record;
    const double now = Now();
    if (record.num_deltas == 0) {
      record.first_token_s = now;
    } else {
      record.max_gap_s = std::max(record.max_gap_s, now - record.last_token_s);
    }
    record.last_token_s = now;
    record.output_tokens += num_tokens;
    ++record.num_deltas;
    result_.arrivals.push_back({now, num_tokens});
    client_->tokens_received_ += num_tokens;
    const int32_t cut = result_.spec.cancel_after_tokens;
    if (cut > 0 && record.output_tokens >= static_cast<uint32_t>(cut) && !record.was_cut) {
      record.was_cut = true;
      context_.TryCancel();
    }
  }

  LoadClient* const client_;
  const Clock::time_point run_start_;
  std::function<void(CallResult)> done_;
  std::shared_ptr<grpc::Channel> own_channel_;
  std::unique_ptr<v1::Generation::Stub> own_stub_;
  grpc::ClientContext context_;
  grpc::Alarm alarm_;
  v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  CallResult result_;
};

absl::StatusOr<std::unique_ptr<LoadClient>> LoadClient::Connect(const LoadClientOptions& options) {
  auto connections = std::make_unique<Connections>();
  for (int i = 0; i < options.num_connections; ++i) {
    connections->channels.push_back(NewChannel(options.server));
    connections->channels.back()->GetState(/*try_to_connect=*/true);
    connections->stubs.push_back(v1::Generation::NewStub(connections->channels.back()));
  }
  const auto deadline = After(kConnectSeconds);
  for (size_t i = 0; i < connections->channels.size(); ++i) {
    while (true) {
      const auto state = connections->channels[i]->GetState(/*try_to_connect=*/true);
      if (state == GRPC_CHANNEL_READY) break;
      if (state == GRPC_CHANNEL_TRANSIENT_FAILURE ||
          !connections->channels[i]->WaitForStateChange(state, deadline)) {
        return absl::UnavailableError(absl::StrCat(
            "no server answers at ", options.server, " (connection ", i + 1, " of ",
            options.num_connections,
            "): start one with `vivarium serve`, or name another with --server HOST:PORT"));
      }
    }
  }
  return std::unique_ptr<LoadClient>(new LoadClient(options, std::move(connections)));
}

LoadClient::LoadClient(const LoadClientOptions& options, std::unique_ptr<Connections> connections)
    : options_(options), connections_(std::move(connections)) {}

LoadClient::~LoadClient() = default;

absl::StatusOr<ServerFacts> LoadClient::GetServerFacts() {
  ServerFacts facts;
  {
    grpc::ClientContext context;
    context.set_deadline(After(kUnarySeconds));
    v1::Model model;
    const auto stub = v1::Models::NewStub(connections_->channels[0]);
    const grpc::Status status = stub->GetModel(&context, v1::GetModelRequest(), &model);
    if (!status.ok()) return ToAbsl(status);
    facts.name = model.name();
    facts.fingerprint = model.fingerprint();
    facts.numerics_id = model.numerics_id();
    facts.vocab_size = model.vocab_size();
    facts.max_prompt_tokens = model.max_prompt_tokens();
    facts.max_tokens = model.max_tokens();
    facts.max_slots = model.max_slots();
    facts.max_live_streams = model.max_live_streams();
    facts.special_ids.assign(model.eos_token_ids().begin(), model.eos_token_ids().end());
    if (model.has_bos_token_id()) facts.special_ids.push_back(model.bos_token_id());
  }
  grpc::ClientContext context;
  context.set_deadline(After(kUnarySeconds));
  v1::Stats stats;
  const auto stub = v1::Admin::NewStub(connections_->channels[0]);
  // Only for the report: a server may keep it from us.
  if (stub->GetStats(&context, v1::GetStatsRequest(), &stats).ok()) {
    facts.version = stats.version();
    facts.device = stats.device();
    facts.isa = stats.isa();
  }
  return facts;
}

void LoadClient::Start(CallSpec spec, uint64_t index, Clock::time_point run_start,
                       Clock::time_point scheduled, std::function<void(CallResult)> done) {
  auto* reactor =
      new GenerateReactor(this, std::move(spec), index, run_start, scheduled, std::move(done));
  reactor->StartOn(connections_->stubs[next_connection_++ % connections_->stubs.size()].get());
}

void LoadClient::CancelAll() {
  absl::MutexLock lock(&connections_->mutex);
  for (grpc::ClientContext* context : connections_->live) context->TryCancel();
}

void LoadClient::DeleteSession(const std::string& name) {
  grpc::ClientContext context;
  context.set_deadline(After(kUnarySeconds));
  v1::DeleteSessionRequest request;
  request.set_name(name);
  google::protobuf::Empty empty;
  const auto stub = v1::Sessions::NewStub(connections_->channels[0]);
  (void)stub->DeleteSession(&context, request, &empty);  // gone already is as good
}

}  // namespace vivarium::cli::bench
