// resume_bench: going on from a saved thread against reading it again, by the thread's length.
//
//   resume_bench [--tokens N,...] [--samples N] [--quick] [--json] [--svg FILE]
//
// A real server over gRPC, with mamba-130m's shape and random bf16 weights (--quick: the bundled
// model and short threads). Of each thread: the time to its first token when all of it is read
// ("recompute"), and when its state is resumed from a slot of the device, from host memory and from
// the durable store (the server restarted in between; the page cache is warm). From the call to the
// first token at the client, so with one step of decode (the floor, measured as the time per token
// of a running stream) in each.
//
// First, verified: every tier is the one that was meant, restores every token, and gives the same
// tokens with the same log-probability bits; for threads of up to kMaxVerified tokens these are
// those of a stream that was never interrupted.
#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "tests/bench/mamba_130m.h"
#include "tests/bench/percentile.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_dir.h"
#include "vivarium/v1/generation.grpc.pb.h"
#include "vivarium/v1/server.grpc.pb.h"

namespace vivarium::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr int kOutputTokens = 4;
constexpr int kMaxVerified = 20'000;

struct Options {
  std::vector<int> tokens = {1'000, 10'000, 100'000};
  int samples = 20;
  bool quick = false;
  bool json = false;
  std::string svg;
};

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "resume_bench: %s\n", what.c_str());
  std::exit(1);
}

struct Answer {
  double first_token_ms = 0;
  double token_ms = 0;  // between the others
  v1::Started started;
  std::string state_id;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
};

Answer Generate(const std::string& address, v1::GenerateRequest request, int num_tokens) {
  request.set_max_tokens(num_tokens);
  request.set_prefix_reuse(false);
  request.mutable_stops()->set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0.0f);
  request.mutable_sampling()->set_logprobs(0);
  const auto stub =
      v1::Generation::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  Answer answer;
  const Clock::time_point begin = Clock::now();
  Clock::time_point first = begin, last = begin;
  const auto reader = stub->Generate(&context, request);
  for (v1::GenerateResponse response; reader->Read(&response);) {
    if (response.has_started()) answer.started = response.started();
    if (response.has_finished()) answer.state_id = response.finished().state().id();
    const v1::Delta& delta = response.delta();
    if (delta.token_ids_size() == 0) continue;
    last = Clock::now();
    if (answer.tokens.empty()) first = last;
    answer.tokens.insert(answer.tokens.end(), delta.token_ids().begin(), delta.token_ids().end());
    for (const v1::Logprobs& one : delta.logprobs()) answer.logprobs.push_back(one.logprob());
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) Die("generate: " + status.error_message());
  const auto ms = [](Clock::duration time) {
    return std::chrono::duration<double, std::milli>(time).count();
  };
  answer.first_token_ms = ms(first - begin);
  if (num_tokens > 1) answer.token_ms = ms(last - first) / (num_tokens - 1);
  return answer;
}

v1::GenerateRequest Resume(const std::string& state_id) {
  v1::GenerateRequest request;
  request.set_state_id(state_id);
  return request;
}

struct Thread {
  int num_tokens = 0;
  v1::GenerateRequest request;  // from nothing
  std::string state_id;
  double recompute_ms = 0;
  Answer expected;  // of a resumption
  std::vector<double> device_ms, host_ms, disk_ms;
};

// Reads the thread and saves it with the first token after it, which is pending; resumes it.
void Read(const std::string& address, int64_t vocab_size, Thread* thread) {
  std::mt19937_64 random(static_cast<uint64_t>(thread->num_tokens));
  for (int i = 0; i < thread->num_tokens; ++i) {
    thread->request.mutable_token_ids()->add_ids(
        static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size)));
  }
  v1::GenerateRequest saving = thread->request;
  saving.mutable_save()->set_at_end(true);
  const Answer read = Generate(address, saving, 1);
  thread->recompute_ms = read.first_token_ms;
  thread->state_id = read.state_id;
  thread->expected = Generate(address, Resume(thread->state_id), kOutputTokens);
  if (thread->num_tokens <= kMaxVerified) {
    Answer whole = Generate(address, thread->request, 1 + kOutputTokens);
    whole.tokens.erase(whole.tokens.begin());
    whole.logprobs.erase(whole.logprobs.begin());
    if (whole.tokens != thread->expected.tokens || whole.logprobs != thread->expected.logprobs) {
      Die("a resumed thread of " + std::to_string(thread->num_tokens) +
          " tokens differs from one that was never interrupted");
    }
  }
}

std::vector<double> Measure(const std::string& address, const Options& options,
                            const Thread& thread, v1::StateTier tier) {
  std::vector<double> times_ms;
  for (int i = 0; i < options.samples; ++i) {
    const Answer answer = Generate(address, Resume(thread.state_id), kOutputTokens);
    if (answer.started.state_tier() != tier) {
      Die("expected the state from " + v1::StateTier_Name(tier) + ", it came from " +
          v1::StateTier_Name(answer.started.state_tier()));
    }
    if (answer.started.restored_tokens() != static_cast<uint64_t>(thread.num_tokens)) {
      Die("restored " + std::to_string(answer.started.restored_tokens()) + " tokens of " +
          std::to_string(thread.num_tokens));
    }
    if (answer.tokens != thread.expected.tokens || answer.logprobs != thread.expected.logprobs) {
      Die("other bits from " + v1::StateTier_Name(tier));
    }
    times_ms.push_back(answer.first_token_ms);
  }
  return times_ms;
}

Json Row(const Thread& thread) {
  Json row = {{"tokens", thread.num_tokens}, {"recompute_ms", thread.recompute_ms}};
  for (const auto& [name, times] :
       {std::pair{"device", &thread.device_ms}, std::pair{"host", &thread.host_ms},
        std::pair{"disk", &thread.disk_ms}}) {
    row[name] = {{"p50_ms", Percentile(*times, 50)}, {"p99_ms", Percentile(*times, 99)}};
  }
  row["recompute_over_disk"] = thread.recompute_ms / Percentile(thread.disk_ms, 50);
  return row;
}

// Both axes logarithmic: time to the first token over the thread's length.
std::string Plot(const Json& rows) {
  constexpr double kWidth = 560, kHeight = 320, kLeft = 60, kBottom = 40;
  const auto x = [&](double tokens) {
    return kLeft + (std::log10(tokens) - 2) / 4 * (kWidth - 140);
  };
  const auto y = [&](double ms) {
    return kHeight - kBottom - std::log10(std::max(ms, 1.0)) / 6 * (kHeight - kBottom - 20);
  };
  std::string svg =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 560 320\" "
      "font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"560\" height=\"320\" "
      "fill=\"white\"/>\n";
  const auto text = [&](double at_x, double at_y, const std::string& what) {
    svg += "<text x=\"" + std::to_string(at_x) + "\" y=\"" + std::to_string(at_y) + "\">" + what +
           "</text>\n";
  };
  for (int power = 0; power <= 6; ++power) {
    const double at = y(std::pow(10, power));
    svg += "<path stroke=\"#ddd\" d=\"M" + std::to_string(kLeft) + " " + std::to_string(at) +
           "H480\"/>\n";
    text(4, at + 4,
         power < 3 ? std::to_string(static_cast<int>(std::pow(10, power))) + " ms"
                   : std::to_string(static_cast<int>(std::pow(10, power - 3))) + " s");
  }
  for (int power = 2; power <= 6; ++power) {
    text(x(std::pow(10, power)) - 10, kHeight - 22, "10^" + std::to_string(power));
  }
  text(180, kHeight - 6, "tokens of the thread; time to its next token");
  const char* const colors[] = {"#c0392b", "#2980b9", "#27ae60", "#8e44ad"};
  const char* const names[] = {"recompute", "disk", "host", "device"};
  for (int i = 0; i < 4; ++i) {
    std::string points;
    double last_y = 0, last_x = 0;
    for (const Json& row : rows) {
      const double ms =
          i == 0 ? row["recompute_ms"].get<double>() : row[names[i]]["p50_ms"].get<double>();
      last_x = x(row["tokens"].get<double>());
      last_y = y(ms);
      points += std::to_string(last_x) + "," + std::to_string(last_y) + " ";
    }
    svg += std::string("<polyline fill=\"none\" stroke-width=\"2\" stroke=\"") + colors[i] +
           "\" points=\"" + points + "\"/>\n<g fill=\"" + colors[i] + "\">";
    text(last_x + 6, i == 0 ? last_y : last_y - 24 + 12 * i, names[i]);
    svg += "</g>\n";
  }
  return svg + "</svg>\n";
}

int Run(const Options& options) {
  test::TempDir dir;
  test::ServerProcessOptions server_options;
  server_options.store_dir = dir.path() + "/store";
  if (!options.quick) server_options.model_dir = WriteMamba130m(dir.path());
  server_options.args = {"--max-slots", "4"};
  const auto server = test::ServerProcess::Start(server_options);
  if (!server.ok()) Die(std::string(server.status().message()));
  v1::Model model;
  grpc::ClientContext context;
  const auto channel =
      grpc::CreateChannel((*server)->address(), grpc::InsecureChannelCredentials());
  const grpc::Status status = v1::Models::NewStub(channel)->GetModel(&context, {}, &model);
  if (!status.ok()) Die("model: " + status.error_message());

  std::vector<Thread> threads(options.tokens.size());
  for (size_t i = 0; i < threads.size(); ++i) {
    threads[i].num_tokens = options.tokens[i];
    Read((*server)->address(), model.vocab_size(), &threads[i]);
    threads[i].device_ms = Measure((*server)->address(), options, threads[i], v1::TIER_DEVICE);
  }
  // A host cache, after one look at the disk; then none. No slots kept: all are new to the server.
  const auto restart = [&](const std::string& cache_bytes) {
    const absl::Status restarted =
        (*server)->Restart({"--max-slots", "4", "--state-cache-bytes", cache_bytes});
    if (!restarted.ok()) Die(std::string(restarted.message()));
  };
  restart("1000000000");
  for (Thread& thread : threads) {
    Generate((*server)->address(), Resume(thread.state_id), 1);
    thread.host_ms = Measure((*server)->address(), options, thread, v1::TIER_HOST);
  }
  restart("0");
  for (Thread& thread : threads) {
    Generate((*server)->address(), Resume(thread.state_id), 1);
    thread.disk_ms = Measure((*server)->address(), options, thread, v1::TIER_DISK);
  }
  const double token_ms = Generate((*server)->address(), Resume(threads[0].state_id), 32).token_ms;

  Json out = {{"numerics", model.numerics_id()},
              {"state_bytes", model.state_bytes()},
              {"token_ms", token_ms},
              {"threads", Json::array()}};
  for (const Thread& thread : threads) out["threads"].push_back(Row(thread));
  if (!options.svg.empty()) std::ofstream(options.svg) << Plot(out["threads"]);
  if (options.json) {
    std::printf("%s\n", out.dump().c_str());
    return 0;
  }
  std::printf("%s, a state of %.1f MB; one step of decode (the floor): %.2f ms\n",
              model.numerics_id().c_str(), static_cast<double>(model.state_bytes()) / 1e6,
              token_ms);
  std::printf("%9s %12s %18s %18s %18s %10s\n", "tokens", "recompute", "device p50/p99",
              "host p50/p99", "disk p50/p99", "x of disk");
  for (const Json& row : out["threads"]) {
    std::printf("%9d %9.0f ms", row["tokens"].get<int>(), row["recompute_ms"].get<double>());
    for (const char* tier : {"device", "host", "disk"}) {
      std::printf("  %6.1f / %5.1f ms", row[tier]["p50_ms"].get<double>(),
                  row[tier]["p99_ms"].get<double>());
    }
    std::printf(" %9.0fx\n", row["recompute_over_disk"].get<double>());
  }
  return 0;
}

}  // namespace
}  // namespace vivarium::bench

int main(int argc, char** argv) {
  vivarium::bench::Options options;
  CLI::App app("Resuming a saved thread against reading it again: verified, then timed.");
  auto* tokens = app.add_option("--tokens", options.tokens, "Lengths of the threads, with commas")
                     ->delimiter(',')
                     ->check(CLI::Range(2, 1 << 20));
  auto* samples = app.add_option("--samples", options.samples, "Resumptions from each tier")
                      ->check(CLI::Range(1, 10'000));
  app.add_option("--svg", options.svg, "Draw it there");
  app.add_flag("--quick", options.quick, "The bundled model, short threads");
  app.add_flag("--json", options.json, "Print one JSON object");
  CLI11_PARSE(app, argc, argv);
  if (options.quick && tokens->count() == 0) options.tokens = {40, 400};
  if (options.quick && samples->count() == 0) options.samples = 2;
  return vivarium::bench::Run(options);
}
