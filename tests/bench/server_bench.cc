// server_bench: many clients of a real server process over gRPC, verified, then timed.
//
//   server_bench [--json] [--quick] [--clients N] [--seconds S] [--long-pause-ms MS]
//                [--server-flag FLAG]...
//
// The model is mamba-130m's shape with random bf16 weights, made on the spot (--quick: the bundled
// model, a second each). A closed loop of clients: each sends a prompt of 128 tokens of its own,
// reads 128 tokens, and begins again. Two windows: the clients alone, then with one client more
// that sends prompts of 2,048 tokens, a pause apart, and reads one token of each.
//
// First, verified: what a request gives does not depend on the crowd around it.
//
// output tok/s: tokens that the clients were given within the window. TTFT: from the call to the
// first token. ITL: between two messages with tokens of a stream; a message has more than one token
// where the reader was slow, and still counts once (`merged` says how many).
// Client and server share the machine's cores.
#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <utility>
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

constexpr int kPromptTokens = 128;
constexpr int kOutputTokens = 128;
constexpr int kLongPromptTokens = 2048;

struct Options {
  int num_clients = 32;
  double seconds = 30.0;
  int long_pause_ms = 1000;
  bool quick = false;
  bool json = false;
  std::vector<std::string> server_flags;
};

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "server_bench: %s\n", what.c_str());
  std::exit(1);
}

double MillisecondsBetween(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

// The measured time: events outside don't count.
struct Window {
  Clock::time_point begin, end;

  bool Has(Clock::time_point time) const { return time >= begin && time < end; }
};

// What one client saw within the window, in milliseconds.
struct Samples {
  std::vector<double> ttft, itl;
  int64_t output_tokens = 0;
  int64_t merged_messages = 0;
  int64_t requests = 0;  // that ended

  void Append(const Samples& other) {
    ttft.insert(ttft.end(), other.ttft.begin(), other.ttft.end());
    itl.insert(itl.end(), other.itl.begin(), other.itl.end());
    output_tokens += other.output_tokens;
    merged_messages += other.merged_messages;
    requests += other.requests;
  }
};

v1::GenerateRequest MakeRequest(uint64_t seed, int num_prompt_tokens, int num_output_tokens,
                                int64_t vocab_size) {
  std::mt19937_64 random(seed);
  v1::GenerateRequest request;
  for (int i = 0; i < num_prompt_tokens; ++i) {
    request.mutable_token_ids()->add_ids(static_cast<int32_t>(random() % vocab_size));
  }
  request.set_max_tokens(num_output_tokens);
  request.mutable_stops()->set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0.0f);
  request.set_prefix_reuse(false);  // the same prompt again costs the same
  return request;
}

// One request, its events into `samples` as far as they lie in `window`; the tokens.
std::vector<int32_t> Generate(v1::Generation::Stub& stub, const v1::GenerateRequest& request,
                              const Window& window, Samples* samples) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(10));
  std::vector<int32_t> tokens;
  const Clock::time_point begin = Clock::now();
  Clock::time_point last = begin;
  const auto reader = stub.Generate(&context, request);
  bool is_finished = false;
  for (v1::GenerateResponse response; reader->Read(&response);) {
    is_finished = is_finished || response.has_finished();
    const int num_tokens = response.delta().token_ids_size();
    if (!response.has_delta() || num_tokens == 0) continue;
    const Clock::time_point now = Clock::now();
    if (window.Has(now)) {
      (tokens.empty() ? samples->ttft : samples->itl).push_back(MillisecondsBetween(last, now));
      samples->output_tokens += num_tokens;
      samples->merged_messages += num_tokens > 1 ? 1 : 0;
    }
    last = now;
    tokens.insert(tokens.end(), response.delta().token_ids().begin(),
                  response.delta().token_ids().end());
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) Die("generate: " + status.error_message());
  if (!is_finished) Die("a stream without its last message");
  if (static_cast<int>(tokens.size()) != request.max_tokens()) {
    Die("expected " + std::to_string(request.max_tokens()) + " tokens, found " +
        std::to_string(tokens.size()));
  }
  if (window.Has(last)) ++samples->requests;
  return tokens;
}

std::unique_ptr<v1::Generation::Stub> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection each
  return v1::Generation::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

// The same request alone and in a crowd of others: the same tokens.
void Verify(const std::string& address, int64_t vocab_size) {
  const Window never = {};
  const v1::GenerateRequest request = MakeRequest(1, kPromptTokens, 16, vocab_size);
  Samples ignored;
  const std::vector<int32_t> alone = Generate(*Connect(address), request, never, &ignored);
  std::vector<std::vector<int32_t>> crowd(8);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < crowd.size(); ++i) {
    threads.emplace_back([&, i] {
      const bool is_same = i == crowd.size() / 2;
      Samples unused;
      crowd[i] = Generate(
          *Connect(address),
          is_same ? request : MakeRequest(100 + i, 64 + static_cast<int>(i) * 31, 24, vocab_size),
          never, &unused);
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (crowd[crowd.size() / 2] != alone) Die("a request's tokens depend on its neighbours");
}

// One window: `num_clients` in a closed loop, and the one with long prompts if asked for. The first
// second is left out, so that all are under way.
Samples Measure(const std::string& address, const Options& options, int64_t vocab_size,
                bool with_long_prompts, Samples* long_samples) {
  const Clock::time_point now = Clock::now();
  const auto warm_up = std::chrono::milliseconds(options.quick ? 100 : 3000);
  const Window window = {
      now + warm_up,
      now + warm_up + std::chrono::milliseconds(static_cast<int64_t>(1000 * options.seconds))};
  std::vector<Samples> samples(static_cast<size_t>(options.num_clients));
  std::vector<std::thread> threads;
  for (int i = 0; i < options.num_clients; ++i) {
    threads.emplace_back([&, i] {
      const auto stub = Connect(address);
      for (uint64_t round = 0; Clock::now() < window.end; ++round) {
        const uint64_t seed = 1000 + static_cast<uint64_t>(i) + round * 1000;
        Generate(*stub, MakeRequest(seed, kPromptTokens, kOutputTokens, vocab_size), window,
                 &samples[static_cast<size_t>(i)]);
      }
    });
  }
  if (with_long_prompts) {
    threads.emplace_back([&] {
      const auto stub = Connect(address);
      for (uint64_t round = 0; Clock::now() < window.end; ++round) {
        Generate(*stub, MakeRequest(round, kLongPromptTokens, 1, vocab_size), window, long_samples);
        std::this_thread::sleep_for(std::chrono::milliseconds(options.long_pause_ms));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Samples all;
  for (const Samples& each : samples) all.Append(each);
  return all;
}

nlohmann::ordered_json Summary(const Samples& samples, double seconds) {
  nlohmann::ordered_json out = {
      {"output_tokens_per_second", static_cast<double>(samples.output_tokens) / seconds},
      {"requests", samples.requests},
      {"merged_messages", samples.merged_messages}};
  for (const auto& [name, values] :
       {std::pair{"ttft_ms", &samples.ttft}, std::pair{"itl_ms", &samples.itl}}) {
    for (const double percent : {50.0, 90.0, 99.0, 99.9}) {
      char label[16];
      std::snprintf(label, sizeof(label), "p%g", percent);
      out[name][label] = Percentile(*values, percent);
    }
    out[name]["count"] = values->size();
  }
  return out;
}

void PrintRow(const std::string& what, const nlohmann::ordered_json& row) {
  const auto at = [&](const char* name, const char* percent) {
    return row[name][percent].get<double>();
  };
  std::printf(
      "%-22s %8.0f tok/s  TTFT p50 %7.0f p99 %7.0f ms  ITL p50 %6.1f p99 %6.1f p99.9 %6.1f"
      " ms (%.1fx)  merged %ld\n",
      what.c_str(), row["output_tokens_per_second"].get<double>(), at("ttft_ms", "p50"),
      at("ttft_ms", "p99"), at("itl_ms", "p50"), at("itl_ms", "p99"), at("itl_ms", "p99.9"),
      at("itl_ms", "p99.9") / std::max(at("itl_ms", "p50"), 1e-9),
      row["merged_messages"].get<long>());
}

int Run(const Options& options) {
  test::TempDir dir;
  test::ServerProcessOptions server_options;
  if (!options.quick) server_options.model_dir = WriteMamba130m(dir.path());
  server_options.args = {"--max-slots", std::to_string(options.num_clients + 1)};
  for (const std::string& flag : options.server_flags) server_options.args.push_back(flag);
  const auto server = test::ServerProcess::Start(server_options);
  if (!server.ok()) Die(std::string(server.status().message()));
  const std::string& address = (*server)->address();

  const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  v1::Model model;
  grpc::ClientContext context;
  const grpc::Status status = v1::Models::NewStub(channel)->GetModel(&context, {}, &model);
  if (!status.ok()) Die("model: " + status.error_message());

  Verify(address, model.vocab_size());
  Samples long_samples;
  const Samples alone = Measure(address, options, model.vocab_size(), false, &long_samples);
  const Samples mixed = Measure(address, options, model.vocab_size(), true, &long_samples);
  nlohmann::ordered_json out = {{"numerics", model.numerics_id()},
                                {"clients", options.num_clients},
                                {"seconds", options.seconds},
                                {"clients_alone", Summary(alone, options.seconds)},
                                {"with_long_prompts", Summary(mixed, options.seconds)},
                                {"long_prompts", Summary(long_samples, options.seconds)}};
  if (options.json) {
    std::printf("%s\n", out.dump().c_str());
    return 0;
  }
  std::printf("%s, %d clients, %d tokens in, %d out, windows of %.0f s\n",
              model.numerics_id().c_str(), options.num_clients, kPromptTokens, kOutputTokens,
              options.seconds);
  PrintRow("clients alone", out["clients_alone"]);
  PrintRow("with long prompts", out["with_long_prompts"]);
  std::printf("%-22s %8ld of %d tokens, TTFT p50 %.0f ms\n", "long prompts",
              static_cast<long>(long_samples.requests), kLongPromptTokens,
              Percentile(long_samples.ttft, 50.0));
  return 0;
}

}  // namespace
}  // namespace vivarium::bench

int main(int argc, char** argv) {
  vivarium::bench::Options options;
  CLI::App app("Many clients of a real server over gRPC: verified, then timed.");
  app.add_option("--clients", options.num_clients, "Streams at once")->check(CLI::Range(1, 1000));
  CLI::Option* seconds = app.add_option("--seconds", options.seconds, "Of each window")
                             ->check(CLI::Range(0.1, 3600.0));
  app.add_option("--long-pause-ms", options.long_pause_ms, "Between two long prompts")
      ->check(CLI::Range(0, 600000));
  app.add_option("--server-flag", options.server_flags, "Further flag of serve; may be repeated");
  app.add_flag("--quick", options.quick, "The bundled model, a second each");
  app.add_flag("--json", options.json, "Print one JSON object");
  CLI11_PARSE(app, argc, argv);
  if (options.quick && seconds->count() == 0) options.seconds = 1.0;
  return vivarium::bench::Run(options);
}
