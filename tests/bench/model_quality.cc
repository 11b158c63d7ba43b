// model_quality --server HOST:PORT [--json]: how good the served model is, measured through the
// server: recall of told facts (tests/data/recall) by Generate, and bits per byte of held-out
// stories (tests/data/stories) by Score. Needs a server of the bundled model.
#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/e2e/grpc_client.h"
#include "tests/support/test_environment.h"

namespace vivarium {
namespace {

constexpr char kEndOfText[] = "<|endoftext|>";
constexpr int kAnswerTokens = 24;

struct Tally {
  int right = 0;
  int asked = 0;
};

// The expected value as a whole word.
bool Contains(const std::string& answer, const std::string& expected) {
  for (size_t at = answer.find(expected); at != std::string::npos;
       at = answer.find(expected, at + 1)) {
    const size_t end = at + expected.size();
    const bool begins = at == 0 || !std::isalnum(static_cast<unsigned char>(answer[at - 1]));
    const bool ends =
        end == answer.size() || !std::isalnum(static_cast<unsigned char>(answer[end]));
    if (begins && ends) return true;
  }
  return false;
}

// By group: asked after so many tokens, as the file says.
std::map<std::string, Tally> MeasureRecall(GrpcClient* client, const std::string& path) {
  std::map<std::string, Tally> tallies;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const auto dialogue = nlohmann::json::parse(line);
    v1::GenerateRequest request;
    for (const auto& message : dialogue["messages"]) {
      v1::ChatMessage* out = request.mutable_chat()->add_messages();
      out->set_role(message["role"]);
      out->set_content(message["content"]);
    }
    request.set_max_tokens(kAnswerTokens);
    request.mutable_sampling()->set_temperature(0.0f);
    const Generated generated = client->Generate(request);
    if (!generated.status.ok()) {
      std::cerr << "generate: " << generated.status.error_message() << "\n";
      std::exit(1);
    }
    const bool far = dialogue["distance_tokens"].get<int>() >= 400;
    Tally& tally = tallies[dialogue["group"].get<std::string>() +
                           (far ? " at 400+ tokens" : " at 200+ tokens")];
    ++tally.asked;
    tally.right += Contains(generated.text, dialogue["expected"]) ? 1 : 0;
  }
  return tallies;
}

// Bits of all tokens of each story and its closing end of text, by bytes of the stories.
double MeasureBitsPerByte(GrpcClient* client, const std::string& path) {
  std::ifstream in(path);
  std::stringstream whole;
  whole << in.rdbuf();
  double nats = 0.0;
  size_t bytes = 0;
  std::string story;
  for (std::string line; std::getline(whole, line);) {
    if (line != kEndOfText) {
      story += (story.empty() ? "" : "\n") + line;
      continue;
    }
    v1::TokenizeRequest tokenize;
    tokenize.set_text(story);
    v1::TokenizeResponse tokens;
    grpc::ClientContext tokenize_context;
    grpc::Status status = client->generation->Tokenize(&tokenize_context, tokenize, &tokens);
    v1::ScoreRequest score;
    score.mutable_token_ids()->add_ids(0);  // <|endoftext|> of the bundled model
    for (const int32_t id : tokens.token_ids()) score.mutable_token_ids()->add_ids(id);
    score.mutable_token_ids()->add_ids(0);
    v1::ScoreResponse scores;
    grpc::ClientContext score_context;
    if (status.ok()) status = client->generation->Score(&score_context, score, &scores);
    if (!status.ok()) {
      std::cerr << "score: " << status.error_message() << "\n";
      std::exit(1);
    }
    nats -= scores.scores(0).total_logprob();
    bytes += story.size();
    story.clear();
  }
  return nats / std::log(2.0) / static_cast<double>(bytes);
}

int Main(int argc, char** argv) {
  CLI::App app("How good the served model is: recall and bits per byte, through the server.");
  std::string server = "127.0.0.1:50051";
  std::string data = test::RootDir() + "/tests/data";
  bool json = false;
  app.add_option("--server", server, "HOST:PORT of a server of the bundled model");
  app.add_option("--data", data, "the folder with recall/ and stories/");
  app.add_flag("--json", json, "print one JSON object");
  CLI11_PARSE(app, argc, argv);
  GrpcClient client(server);
  const double bits_per_byte = MeasureBitsPerByte(&client, data + "/stories/heldout.txt");
  const std::map<std::string, Tally> recall = MeasureRecall(&client, data + "/recall/recall.jsonl");
  if (json) {
    nlohmann::json out = {{"bits_per_byte", bits_per_byte}};
    for (const auto& [group, tally] : recall) {
      out["recall"][group] = {{"right", tally.right}, {"asked", tally.asked}};
    }
    std::cout << out.dump() << "\n";
    return 0;
  }
  std::printf("held-out stories  %.4f bits per byte\n", bits_per_byte);
  for (const auto& [group, tally] : recall) {
    std::printf("recall  %-32s %3d of %3d  %.0f %%\n", group.c_str(), tally.right, tally.asked,
                100.0 * tally.right / tally.asked);
  }
  return 0;
}

}  // namespace
}  // namespace vivarium

int main(int argc, char** argv) { return vivarium::Main(argc, argv); }
