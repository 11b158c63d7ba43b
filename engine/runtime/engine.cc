#include "engine/runtime/engine.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/model/model.h"
#include "engine/runtime/engine_loop.h"
#include "engine/runtime/mailbox.h"
#include "engine/runtime/request_check.h"
#include "engine/runtime/sequence.h"
#include "engine/runtime/slot_plan.h"
#include "engine/runtime/state_convert.h"
#include "engine/runtime/state_pool.h"
#include "engine/runtime/token_sampler.h"
#include "engine/text/tokenizer.h"

namespace vivarium::engine {
namespace {

constexpr char kDeviceFaultPayload[] = "vivarium.engine/device_fault";

class ThreadedEngine final : public Engine {
 public:
  ThreadedEngine(Model* model, const Tokenizer* tokenizer, ModelIdentity identity,
                 const EngineOptions& options, std::unique_ptr<StatePool> pool,
                 std::unique_ptr<TokenSampler> sampler, std::vector<int32_t> eos_ids,
                 EngineEvents* events)
      : tokenizer_(tokenizer),
        events_(events),
        backend_(model->backend()),
        weight_bytes_(model->weight_bytes()),
        activation_bytes_(model->activation_bytes()),
        identity_(std::move(identity)),
        options_(options),
        layout_(model->state_layout()),
        num_ids_(sampler->num_ids()),
        eos_ids_(std::move(eos_ids)),
        mailbox_(options.max_queued_streams, options.max_queued_tokens),
        loop_(model, identity_, std::move(pool), std::move(sampler), options) {
    mailbox_.Publish(loop_.stats());
    thread_ = std::thread([this] { Run(); });
  }

  ~ThreadedEngine() override {
    mailbox_.Stop();
    thread_.join();
  }

  absl::StatusOr<StreamId> Submit(EngineRequest request,
                                  std::unique_ptr<StreamSink> sink) override {
    const RequestLimits limits{.num_ids = num_ids_,
                               .has_tokenizer = tokenizer_ != nullptr,
                               .identity = identity_,
                               .layout = layout_,
                               .options = options_};
    if (absl::Status status = CheckRequest(request, limits); !status.ok()) {
      mailbox_.CountRejected();
      return status;
    }
    if (request.source != nullptr && request.source->layout != layout_) {
      auto converted = ConvertState(request.source->layout, request.source->slot, layout_);
      if (!converted.ok()) {
        mailbox_.CountRejected();
        return converted.status();
      }
      request.source->slot = *std::move(converted);
      request.source->layout = layout_;
    }
    const StreamId id = next_id_.fetch_add(1, std::memory_order_relaxed);
    auto sequence = Sequence::Create(id, std::move(request), std::move(sink), tokenizer_, eos_ids_);
    if (!sequence.ok()) {
      mailbox_.CountRejected();
      return sequence.status();
    }
    if (absl::Status status = mailbox_.Put(*std::move(sequence)); !status.ok()) return status;
    return id;
  }

  void Cancel(StreamId id) override { mailbox_.Cancel(id); }
  void Drain(absl::Time deadline) override { mailbox_.Drain(deadline); }
  void NameHot(HotId id, const std::string& name) override { loop_.hot_states()->Name(id, name); }
  HotLease LeaseHot(const std::string& name) override { return loop_.hot_states()->Lease(name); }
  EngineStats Stats() const override {
    EngineStats stats = mailbox_.Stats();
    stats.weight_bytes = weight_bytes_;
    stats.activation_bytes = activation_bytes_;
    const kernels::MemoryInfo memory = backend_->Memory();
    stats.device_free_bytes = memory.free_bytes;
    stats.device_total_bytes = memory.total_bytes;
    return stats;
  }
  const EngineOptions& options() const override { return options_; }

 private:
  void Run() {
    backend_->BindThread();
    bool is_faulty = false;
    for (bool stop = false; !stop || !loop_.idle();) {
      Mailbox::Mail mail = mailbox_.Take(/*wait=*/loop_.idle());
      for (std::unique_ptr<Sequence>& sequence : mail.submitted) loop_.Add(std::move(sequence));
      for (const StreamId id : mail.cancelled) loop_.Finish(id, FinishReason::kCancelled);
      stop = mail.stop;
      if (stop) loop_.FinishAll(FinishReason::kCancelled);
      const absl::Time now = absl::Now();
      loop_.FinishExpired(now);
      if (now >= mail.drain_deadline) loop_.FinishAll(FinishReason::kDrained);
      if (!loop_.idle()) loop_.Step();
      // Before the streams hear of it: who submits again is refused.
      if (!loop_.fault().ok()) mailbox_.Fail(loop_.fault());
      mailbox_.Publish(loop_.stats());
      mailbox_.Forget(loop_.DeliverFinished());
      if (!loop_.fault().ok() && !std::exchange(is_faulty, true) && events_ != nullptr) {
        events_->OnFault(loop_.fault());
      }
    }
  }

  const Tokenizer* const tokenizer_;
  EngineEvents* const events_;
  kernels::Backend* const backend_;
  const uint64_t weight_bytes_, activation_bytes_;
  const ModelIdentity identity_;
  const EngineOptions options_;
  const StateLayout layout_;
  const int64_t num_ids_;
  const std::vector<int32_t> eos_ids_;
  std::atomic<StreamId> next_id_{1};
  Mailbox mailbox_;
  EngineLoop loop_;  // the engine thread's, once that runs
  std::thread thread_;
};

absl::Status CheckRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("engine option ", field, " is ", value, ", must be in [", low, ", ", high, "]"));
}

absl::Status CheckOptions(const EngineOptions& options, const Model& model) {
  const int64_t max_rows = std::min(model.max_batch_tokens(), model.max_logit_rows());
  const int64_t slots = options.max_slots;
  for (const absl::Status& status : {
           CheckRange("max_slots", slots, 1, std::min<int64_t>(kMaxSlots, max_rows)),
           CheckRange("snapshot_slots", options.snapshot_slots, 0, kMaxSnapshotSlots),
           CheckRange("max_live_streams", options.max_live_streams, slots, kMaxLiveStreams),
           CheckRange("max_queued_streams", options.max_queued_streams, 1, kMaxQueuedStreams),
           CheckRange("max_queued_tokens", options.max_queued_tokens, 1, kMaxQueuedTokens),
           CheckRange("max_num_batched_tokens", options.max_num_batched_tokens, slots,
                      model.max_batch_tokens()),
           CheckRange("prefill_chunk_tokens", options.prefill_chunk_tokens, 1, kMaxChunkTokens),
           CheckRange("prefill_tokens_beside_decode", options.prefill_tokens_beside_decode, 1,
                      kMaxChunkTokens),
           CheckRange("time_slice_tokens", options.time_slice_tokens, 1, kMaxChunkTokens),
           CheckRange("max_tokens_limit", options.max_tokens_limit, 0, kMaxStreamTokens),
           CheckRange("max_prompt_tokens",
                      static_cast<int64_t>(
                          std::min<size_t>(options.max_prompt_tokens, kMaxStreamTokens + 1)),
                      1, kMaxStreamTokens),
       }) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Token ids that model and tokenizer both know.
int64_t NumUsableIds(const Model& model, const Tokenizer* tokenizer) {
  const int64_t num_ids = std::min(model.config().vocab_size, model.config().padded_vocab_size);
  return tokenizer == nullptr ? num_ids : std::min<int64_t>(num_ids, tokenizer->vocab_size());
}

std::vector<int32_t> UsableEosIds(const Model& model, const Tokenizer* tokenizer, int64_t num_ids) {
  std::vector<int32_t> ids = model.config().eos_token_ids;
  if (ids.empty() && tokenizer != nullptr && tokenizer->eos_token_id().has_value()) {
    ids.push_back(*tokenizer->eos_token_id());
  }
  std::erase_if(ids, [num_ids](int32_t id) { return id < 0 || id >= num_ids; });
  return ids;
}

}  // namespace

absl::Status DeviceFaultError(const std::string& fault) {
  absl::Status status = absl::UnavailableError(
      absl::StrCat("the device failed (", fault, "); states that were saved before are safe"));
  status.SetPayload(kDeviceFaultPayload, absl::Cord());
  return status;
}

bool IsDeviceFault(const absl::Status& status) {
  return status.GetPayload(kDeviceFaultPayload).has_value();
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(Model* model, const Tokenizer* tokenizer,
                                                       ModelIdentity identity,
                                                       const EngineOptions& options,
                                                       EngineEvents* events) {
  EngineOptions planned = options;
  if (options.max_slots == kAutoSlots) planned.max_slots = 1;
  if (absl::Status status = CheckOptions(planned, *model); !status.ok()) return status;
  const int64_t num_ids = NumUsableIds(*model, tokenizer);
  if (num_ids < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("model and tokenizer have ", num_ids, " token ids in common, expected some"));
  }
  auto plan = PlanSlots(*model, options);
  if (!plan.ok()) return plan.status();
  planned.max_slots = plan->max_slots;
  const int32_t num_slots =
      planned.max_slots + planned.snapshot_slots + SpareSlots(*model->backend(), planned.max_slots);
  auto pool = StatePool::Create(model->backend(), model->state_layout().slot_bytes, num_slots);
  if (!pool.ok()) return pool.status();
  auto sampler = TokenSampler::Create(model->backend(), num_ids, model->config().padded_vocab_size,
                                      model->max_logit_rows());
  if (!sampler.ok()) return sampler.status();
  return std::make_unique<ThreadedEngine>(model, tokenizer, std::move(identity), planned,
                                          *std::move(pool), *std::move(sampler),
                                          UsableEosIds(*model, tokenizer, num_ids), events);
}

}  // namespace vivarium::engine
