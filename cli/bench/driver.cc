#include "cli/bench/driver.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace vivarium::cli::bench {
namespace {

constexpr double kReportSeconds = 0.25;
constexpr double kRetrySeconds = 0.01;
constexpr double kErrorPauseSeconds = 0.1;

double ProcessCpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

int64_t Nanoseconds(double seconds) { return static_cast<int64_t>(seconds * 1e9); }

}  // namespace

Driver::Driver(const LoadOptions& options, LoadClient* client, Workload* workload,
               std::function<void(const LoadProgress&)> on_progress)
    : options_(options),
      client_(client),
      workload_(workload),
      on_progress_(std::move(on_progress)),
      random_(options.seed),
      arrivals_(options.arrivals) {}

Clock::time_point Driver::At(double seconds) const {
  return start_ +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

LoadResult Driver::Run() {
  start_ = Clock::now();
  next_report_ = start_;
  cpu_at_start_ = ProcessCpuSeconds();
  ScheduleFirst();
  while (true) {
    TakeResults();
    const auto now = Clock::now();
    SendDue(now);
    Report(now);
    if (IsOver(now)) break;
    Wait(now);
  }
  return Finish();
}

void Driver::Stop() {
  stop_ = true;
  client_->CancelAll();
  absl::MutexLock lock(&mutex_);
  ended_.Signal();
}

bool Driver::MayAddRoot(Clock::time_point at) const {
  return !stop_ && num_sent_ + jobs_.size() < kMaxRecords &&
         (options_.requests == 0 || num_roots_ < options_.requests) &&
         (options_.duration_seconds <= 0 || at < At(options_.duration_seconds));
}

void Driver::ScheduleFirst() {
  if (options_.kind != LoadKind::kClosed) {
    ScheduleOpen();
    return;
  }
  for (int user = 0; user < options_.users; ++user) {
    const auto at = At(options_.stagger_seconds * user / std::max(options_.users, 1));
    if (MayAddRoot(at)) AddRoot(at, user);
  }
}

// Keeps one future arrival in the queue. Its request is made when it is due.
void Driver::ScheduleOpen() {
  double at_s = 0;
  if (options_.kind == LoadKind::kTrace) {
    has_more_arrivals_ = num_roots_ < workload_->trace().size();
    if (!has_more_arrivals_) return;
    at_s = workload_->trace()[num_roots_].at_s / options_.trace_speed;
  } else {
    at_s = arrivals_.Next();
  }
  has_more_arrivals_ = MayAddRoot(At(at_s));
  if (has_more_arrivals_) AddRoot(At(at_s), -1);
}

void Driver::AddRoot(Clock::time_point at, int user) {
  Job job{at, at, {}, user, num_roots_};
  job.spec.group = static_cast<int64_t>(num_roots_);
  job.spec.retries = -1;  // not made yet: see Send
  ++tree_sizes_[num_roots_];
  ++num_roots_;
  jobs_.push(std::move(job));
}

void Driver::SendDue(Clock::time_point now) {
  const auto max_in_flight = static_cast<size_t>(options_.max_in_flight);
  while (!waiting_.empty() && in_flight_.size() < max_in_flight) {
    Job job = std::move(waiting_.front());
    waiting_.pop_front();
    Send(std::move(job));
  }
  while (!jobs_.empty() && jobs_.top().at <= now) {
    Job job = jobs_.top();
    jobs_.pop();
    const bool is_arrival = options_.kind != LoadKind::kClosed && job.spec.retries < 0;
    if (in_flight_.size() < max_in_flight) {
      Send(std::move(job));
    } else if (waiting_.size() < kMaxWaiting) {
      waiting_.push_back(std::move(job));
    } else {
      ++result_.dropped;
      TreeEnded(job.tree, job.user, 0);
    }
    if (is_arrival) ScheduleOpen();
  }
}

void Driver::Send(Job job) {
  if (stop_) {
    TreeEnded(job.tree, job.user, 0);
    return;
  }
  if (job.spec.retries < 0) {
    job.spec = options_.kind == LoadKind::kTrace
                   ? workload_->OfTraceRow(static_cast<size_t>(job.spec.group))
                   : workload_->Next();
  }
  const uint64_t index = num_sent_++;
  in_flight_[index] = {job.user, job.tree};
  client_->Start(std::move(job.spec), index, start_, job.scheduled, [this](CallResult result) {
    absl::MutexLock lock(&mutex_);
    results_.push_back(std::move(result));
    ended_.Signal();
  });
}

void Driver::TakeResults() {
  std::vector<CallResult> results;
  {
    absl::MutexLock lock(&mutex_);
    results.swap(results_);
  }
  for (CallResult& result : results) Take(std::move(result));
}

void Driver::Take(CallResult result) {
  const auto found = in_flight_.find(result.record.index);
  const InFlight call = found->second;
  in_flight_.erase(found);
  if (workload_->IsToBeRetried(result) && !stop_ && !is_cancelled_) {
    Retry(result, call);
    return;
  }
  Note(result);
  if (!stop_ && !is_cancelled_) {
    const auto now = Clock::now();
    for (CallSpec& spec : workload_->Follow(result)) {
      ++tree_sizes_[call.tree];
      jobs_.push({now, now, std::move(spec), call.user, call.tree});
    }
  }
  // Users that meet an error come back a little later, as clients should: a server that refuses at
  // once isn't asked in a busy loop.
  TreeEnded(call.tree, call.user, result.record.ok() ? 0 : kErrorPauseSeconds);
}

void Driver::Retry(const CallResult& result, const InFlight& call) {
  ++result_.retries;
  CallSpec spec = result.spec;
  ++spec.retries;
  const auto now = Clock::now();
  jobs_.push({now + std::chrono::duration_cast<Clock::duration>(
                        std::chrono::duration<double>(kRetrySeconds)),
              At(result.record.scheduled_s), std::move(spec), call.user, call.tree});
}

void Driver::TreeEnded(uint64_t tree, int user, double pause_seconds) {
  const auto size = tree_sizes_.find(tree);
  if (--size->second > 0) return;
  tree_sizes_.erase(size);
  if (user < 0) return;
  const double think = std::uniform_real_distribution<double>(
      options_.think_min_seconds,
      std::max(options_.think_max_seconds, options_.think_min_seconds))(random_);
  const auto at = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(think + pause_seconds));
  if (MayAddRoot(at)) AddRoot(at, user);
}

void Driver::Note(const CallResult& result) {
  const CallRecord& record = result.record;
  const double window_end = options_.duration_seconds > 0 ? options_.duration_seconds : 1e300;
  const bool is_in_window =
      record.scheduled_s >= options_.warmup_seconds && record.scheduled_s < window_end;
  const bool counts = is_in_window && !record.is_slow_reader;
  if (!record.ok()) ++num_errors_;
  if (record.output_tokens > 0) all_ttft_.Record(Nanoseconds(record.ttft_s()));
  for (size_t i = 0; i < result.arrivals.size(); ++i) {
    const auto& [at_s, num_tokens] = result.arrivals[i];
    if (i > 0) {
      const int64_t gap = Nanoseconds(at_s - result.arrivals[i - 1].at_s);
      all_itl_.Record(gap);
      if (counts) result_.itl.Record(gap);
    }
    if (at_s >= options_.warmup_seconds && at_s < window_end) {
      result_.window_output_tokens += num_tokens;
    }
    const auto second = static_cast<size_t>(std::max(at_s, 0.0));
    if (second >= kMaxTimelineSeconds) continue;
    if (second >= result_.tokens_per_second.size()) result_.tokens_per_second.resize(second + 1);
    result_.tokens_per_second[second] += num_tokens;
  }
  result_.records.push_back(record);
}

void Driver::Wait(Clock::time_point now) {
  auto until = next_report_;
  if (!jobs_.empty()) until = std::min(until, jobs_.top().at);
  if (until <= now) return;
  absl::MutexLock lock(&mutex_);
  if (!results_.empty() || stop_) return;
  ended_.WaitWithTimeout(&mutex_, absl::FromChrono(until - now));
}

bool Driver::IsOver(Clock::time_point now) {
  if (stop_ && in_flight_.empty()) return true;
  if (in_flight_.empty() && waiting_.empty() && jobs_.empty()) return true;
  const bool is_sending = options_.duration_seconds <= 0 || now < At(options_.duration_seconds);
  if (!is_sending && !is_cancelled_ &&
      now >= At(options_.duration_seconds + options_.grace_seconds)) {
    is_cancelled_ = true;
    waiting_.clear();
    jobs_ = {};
    client_->CancelAll();
  }
  return false;
}

void Driver::Report(Clock::time_point now) {
  if (now < next_report_) return;
  next_report_ = now + std::chrono::duration_cast<Clock::duration>(
                           std::chrono::duration<double>(kReportSeconds));
  LoadProgress progress;
  progress.elapsed_s = SecondsBetween(start_, now);
  progress.in_flight = in_flight_.size();
  progress.waiting = waiting_.size();
  progress.done = result_.records.size();
  progress.errors = num_errors_;
  progress.output_tokens = client_->tokens_received();
  if (options_.duration_seconds > 0) {
    progress.done_share = progress.elapsed_s / options_.duration_seconds;
  }
  const uint64_t total = options_.requests > 0 ? options_.requests : workload_->trace().size();
  if (total > 0) {
    progress.done_share = std::max(progress.done_share,
                                   static_cast<double>(progress.done) / static_cast<double>(total));
  }
  progress.done_share = std::min(progress.done_share, 1.0);
  progress.ttft_p50_ms = all_ttft_.Quantile(0.5) / 1e6;
  progress.ttft_p99_ms = all_ttft_.Quantile(0.99) / 1e6;
  progress.itl_p50_ms = all_itl_.Quantile(0.5) / 1e6;
  progress.itl_p99_ms = all_itl_.Quantile(0.99) / 1e6;
  on_progress_(progress);
}

LoadResult Driver::Finish() {
  result_.wall_s = SecondsBetween(start_, Clock::now());
  result_.client_cpu_s = ProcessCpuSeconds() - cpu_at_start_;
  result_.was_stopped = stop_;
  result_.hit_record_bound = num_sent_ >= kMaxRecords;
  result_.window_start_s = options_.warmup_seconds;
  double last_end = 0;
  for (const CallRecord& record : result_.records) last_end = std::max(last_end, record.end_s);
  result_.window_end_s = last_end;
  if (options_.duration_seconds > 0) {
    result_.window_end_s = std::min(options_.duration_seconds, last_end);
  }
  return std::move(result_);
}

}  // namespace vivarium::cli::bench
