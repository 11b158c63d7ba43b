// The whole server: real model, engine and store, over gRPC.
#include "server/server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/server/running_server.h"
#include "tests/support/temp_dir.h"

namespace vivarium::server {
namespace {

using grpc::StatusCode;
using test::TempDir;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::SizeIs;

v1::GenerateRequest Tokens(const std::vector<int32_t>& ids, int max_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_max_tokens(max_tokens);
  request.mutable_stops()->set_ignore_eos(true);
  request.mutable_sampling()->set_logprobs(0);
  return request;
}

v1::GenerateRequest GoOn(const std::string& state_id, int max_tokens) {
  v1::GenerateRequest request = Tokens({}, max_tokens);
  request.clear_input();
  request.set_state_id(state_id);
  return request;
}

template <typename T>
std::vector<T> Joined(std::vector<T> a, const std::vector<T>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(ServerTest, GreedyContinuationsAreTheGoldenOnes) {
  RunningClient client(TestOptions(TinyMamba(), "memory:"));
  std::ifstream file(TinyMamba() + "/golden.json");
  const auto golden = nlohmann::json::parse(file);
  for (const auto& sequence : golden["sequences"]) {
    v1::GenerateRequest request = Tokens(sequence["tokens"], 32);
    request.mutable_sampling()->set_temperature(0);
    const StreamResult result = client.Generate(request);
    ASSERT_TRUE(result.status.ok()) << result.status.error_message();
    EXPECT_EQ(result.token_ids, sequence["greedy"].get<std::vector<int32_t>>());
  }
}

TEST(ServerTest, AResumeInANewServerIsBitEqualAndComputesNothingAgain) {
  const TempDir store;
  const std::vector<int32_t> prompt = {5, 17, 250, 3, 99, 140, 7};
  v1::GenerateRequest whole = Tokens(prompt, 60);
  whole.mutable_sampling()->set_seed(11);
  StreamResult expected;
  StreamResult first;
  {
    RunningClient client(TestOptions(TinyMamba(), store.path()));
    expected = client.Generate(whole);
    v1::GenerateRequest half = whole;
    half.set_max_tokens(25);
    half.set_session("s");
    first = client.Generate(half);
    ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  }
  ServerOptions options = TestOptions(TinyMamba(), store.path());
  options.threads = 1;
  options.prefill_chunk = 7;
  options.max_slots = 1;
  RunningClient client(options);
  v1::GenerateRequest rest = GoOn("", 35);
  rest.clear_source();
  rest.set_session("s");
  const StreamResult second = client.Generate(rest);
  ASSERT_TRUE(second.status.ok()) << second.status.error_message();
  EXPECT_EQ(Joined(first.token_ids, second.token_ids), expected.token_ids);
  EXPECT_EQ(Joined(first.logprobs, second.logprobs), expected.logprobs);  // every bit
  EXPECT_EQ(second.started.restored_tokens(), prompt.size() + 25 - 1);
  EXPECT_EQ(second.started.prefill_tokens(), 1u);
  // The engine's own count: one pending token, and the outputs but the last.
  EXPECT_EQ(client.Stats().consumed_tokens(), 1u + 34);
}

TEST(ServerTest, NeighboursAndTimeSharingChangeNoBit) {
  ServerOptions options = TestOptions(TinyMamba(), "memory:");
  options.max_slots = 3;
  options.time_slice_tokens = 8;
  RunningClient client(options);
  const auto request = [](int i) {
    v1::GenerateRequest r = Tokens({i + 1, 2 * i + 1, 40}, 40 + i);
    r.mutable_sampling()->set_seed(static_cast<uint64_t>(i));
    return r;
  };
  std::vector<StreamResult> alone(12);
  std::vector<StreamResult> together(12);
  for (int i = 0; i < 12; ++i) alone[i] = client.Generate(request(i));
  std::vector<std::thread> threads;
  for (int i = 0; i < 12; ++i) {
    threads.emplace_back([&, i] { together[i] = client.Generate(request(i)); });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 12; ++i) {
    ASSERT_TRUE(together[i].status.ok()) << together[i].status.error_message();
    EXPECT_EQ(together[i].token_ids, alone[i].token_ids) << i;
    EXPECT_EQ(together[i].logprobs, alone[i].logprobs) << i;
  }
}

TEST(ServerTest, ScoresAreTheLogprobsOfGeneration) {
  RunningClient client(TestOptions(TinyMamba(), "memory:"));
  v1::GenerateRequest request = Tokens({5, 6, 7}, 0);
  request.mutable_save()->set_at_end(true);
  const StreamResult read = client.Generate(request);
  ASSERT_TRUE(read.status.ok()) << read.status.error_message();
  v1::GenerateRequest go_on = GoOn(read.finished.state().id(), 10);
  const StreamResult generated = client.Generate(go_on);
  v1::ScoreRequest score;
  score.add_state_ids(read.finished.state().id());
  score.mutable_token_ids()->mutable_ids()->Assign(generated.token_ids.begin(),
                                                   generated.token_ids.end());
  grpc::ClientContext context;
  v1::ScoreResponse response;
  const grpc::Status status = client.generation->Score(&context, score, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const std::vector<float> scores(response.scores(0).logprobs().begin(),
                                  response.scores(0).logprobs().end());
  EXPECT_EQ(scores, generated.logprobs);
  EXPECT_EQ(response.scores(0).restored_tokens(), 2u);
}

TEST(ServerTest, WithoutATokenizerThereAreTokenIdsOnly) {
  RunningClient client(TestOptions(TinyMamba(), "memory:"));
  v1::GenerateRequest request;
  request.set_text("hello");
  EXPECT_EQ(client.Generate(request).status.error_code(), StatusCode::FAILED_PRECONDITION);
  const StreamResult result = client.Generate(Tokens({1, 2}, 5));
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.text, "");
  EXPECT_THAT(result.token_ids, SizeIs(5));
}

TEST(ServerTest, PlaysOutAConversationWithHistory) {
  const TempDir store;
  RunningClient client(TestOptions(StoriesModel(), store.path()));
  std::vector<std::string> answers;
  for (const char* content : {"My dog is called Biscuit.", "What is my dog called?"}) {
    v1::GenerateRequest request;
    request.set_session("talk");
    request.set_max_tokens(40);
    request.mutable_sampling()->set_temperature(0);
    auto* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(content);
    const StreamResult result = client.Generate(request);
    ASSERT_TRUE(result.status.ok()) << result.status.error_message();
    EXPECT_EQ(result.finished.reason(), v1::STOP);
    EXPECT_TRUE(result.finished.stop().has_matched_token_id());
    EXPECT_NE(result.text, "");
    answers.push_back(result.text);
  }
  grpc::ClientContext context;
  v1::GetHistoryRequest request;
  request.set_session("talk");
  v1::GetHistoryResponse history;
  ASSERT_TRUE(client.sessions->GetHistory(&context, request, &history).ok());
  ASSERT_THAT(history.states(), SizeIs(2));
  EXPECT_THAT(history.states(0).transcript(0).text(), HasSubstr("My dog is called Biscuit."));
  EXPECT_THAT(history.states(0).transcript(1).text(), HasSubstr(answers[0]));
  EXPECT_THAT(history.states(1).transcript(0).text(), HasSubstr("What is my dog called?"));
  EXPECT_THAT(history.states(1).transcript(1).text(), HasSubstr(answers[1]));
}

TEST(ServerTest, SpecialTokensInTextsMeanThemselvesOnlyWhereAllowed) {
  RunningClient client(TestOptions(StoriesModel(), "memory:"));
  const auto tokenize = [&](bool parse_special) {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("<|end|>");
    request.set_parse_special(parse_special);
    v1::TokenizeResponse response;
    EXPECT_TRUE(client.generation->Tokenize(&context, request, &response).ok());
    EXPECT_EQ(response.text(), "<|end|>");
    return response.token_ids_size();
  };
  EXPECT_EQ(tokenize(true), 1);
  EXPECT_GT(tokenize(false), 1);
}

TEST(ServerTest, StopStringsEndTheText) {
  RunningClient client(TestOptions(StoriesModel(), "memory:"));
  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  request.set_max_tokens(60);
  request.mutable_sampling()->set_temperature(0);
  const StreamResult whole = client.Generate(request);
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  const size_t middle = whole.text.find(' ', whole.text.size() / 2);
  const std::string stop = whole.text.substr(middle, 4);
  request.mutable_stops()->add_strings(stop);
  const StreamResult stopped = client.Generate(request);
  EXPECT_EQ(stopped.finished.reason(), v1::STOP);
  EXPECT_EQ(stopped.finished.stop().matched_string(), stop);
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find(stop)));
}

TEST(ServerTest, ADrainChecksPointsAndTheSuccessorGoesOn) {
  const TempDir store;
  v1::GenerateRequest request = Tokens({9, 8, 7}, 1 << 20);
  request.set_session("s");
  request.mutable_sampling()->set_seed(4);
  StreamResult drained;
  {
    RunningClient client(TestOptions(TinyMamba(), store.path()));
    std::thread reader([&] { drained = client.Generate(request); });
    while (client.Stats().output_tokens() < 20) absl::SleepFor(absl::Milliseconds(1));
    grpc::ClientContext context;
    v1::DrainRequest drain;
    drain.mutable_deadline()->set_nanos(1);
    google::protobuf::Empty empty;
    ASSERT_TRUE(client.admin->Drain(&context, drain, &empty).ok());
    client.server->WaitUntilDrained();
    reader.join();
    EXPECT_FALSE(client.Generate(Tokens({1}, 1)).status.ok());  // the port is closed
  }
  ASSERT_TRUE(drained.status.ok()) << drained.status.error_message();
  EXPECT_EQ(drained.finished.reason(), v1::DRAINED);
  ASSERT_GE(drained.token_ids.size(), 20u);
  RunningClient client(TestOptions(TinyMamba(), store.path()));
  const StreamResult rest = client.Generate(GoOn(drained.finished.state().id(), 10));
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  request.clear_session();
  request.set_max_tokens(static_cast<int32_t>(drained.token_ids.size()) + 10);
  const StreamResult expected = client.Generate(request);
  EXPECT_EQ(Joined(drained.token_ids, rest.token_ids), expected.token_ids);
  EXPECT_EQ(Joined(drained.logprobs, rest.logprobs), expected.logprobs);
}

TEST(ServerTest, BackupsOpenAsStores) {
  const TempDir dir;
  ServerOptions options = TestOptions(TinyMamba(), dir.File("store"));
  options.backups_dir = dir.File("backups");
  std::string backup;
  {
    RunningClient client(options);
    v1::GenerateRequest request = Tokens({1, 2}, 3);
    request.set_session("s");
    ASSERT_TRUE(client.Generate(request).status.ok());
    grpc::ClientContext context;
    v1::BackupRequest backup_request;
    backup_request.set_name("monday");
    v1::BackupResponse response;
    const grpc::Status status = client.admin->Backup(&context, backup_request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    backup = response.directory();
    grpc::ClientContext again;
    EXPECT_FALSE(client.admin->Backup(&again, backup_request, &response).ok());
  }
  RunningClient client(TestOptions(TinyMamba(), backup));
  v1::GenerateRequest request = GoOn("", 2);
  request.clear_source();
  request.set_session("s");
  const StreamResult result = client.Generate(request);
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.started.restored_tokens(), 4u);
}

// What a plain HTTP client gets.
std::string HttpGet(const std::string& address, const std::string& path) {
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
    if (send(fd, request.data(), request.size(), 0) > 0) {
      char buffer[4096];
      for (ssize_t n = 0; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, n);
    }
  }
  close(fd);
  return answer;
}

TEST(ServerTest, ToldNothingItChoosesItsSlotsAndSaysWhatItHolds) {
  ServerOptions options = TestOptions(TinyMamba(), "memory:");
  options.max_slots = ServerOptions().max_slots;
  RunningClient client(options);
  const v1::Stats stats = client.Stats();
  EXPECT_GE(stats.max_slots(), 1);
  EXPECT_LE(stats.max_slots(), stats.device() == "cpu" ? 64 : options.max_live_streams);
  EXPECT_GE(stats.pool_bytes(), static_cast<uint64_t>(stats.max_slots()) * stats.slot_bytes());
  EXPECT_GT(stats.weight_bytes(), 0u);
  EXPECT_GT(stats.activation_bytes(), 0u);
  EXPECT_GT(stats.device_free_bytes(), 0u);
  EXPECT_GT(stats.device_total_bytes(), stats.device_free_bytes());
  EXPECT_GT(stats.rss_bytes(), 0u);
  grpc::ClientContext context;
  v1::Model model;
  ASSERT_TRUE(client.models->GetModel(&context, {}, &model).ok());
  EXPECT_EQ(model.max_slots(), stats.max_slots());
  EXPECT_TRUE(client.Generate(Tokens({1, 2, 3}, 4)).status.ok());
}

TEST(ServerTest, MetricsAreOnAPortOfTheirOwn) {
  const TempDir store;
  ServerOptions options = TestOptions(TinyMamba(), store.path());
  options.metrics_listen = "127.0.0.1:0";
  RunningClient client(options);
  v1::GenerateRequest request = Tokens({1, 2}, 3);
  request.set_session("s");
  ASSERT_TRUE(client.Generate(request).status.ok());
  const std::string text = HttpGet(client.server->metrics_address(), "/metrics");
  EXPECT_THAT(text, HasSubstr("200 OK"));
  EXPECT_THAT(text, HasSubstr("vivarium_engine_consumed_tokens_total 4"));
  EXPECT_THAT(text, HasSubstr("vivarium_store_commit_seconds_count 1"));
  EXPECT_THAT(text, HasSubstr("vivarium_time_to_first_token_seconds_count 1"));
  EXPECT_THAT(text, HasSubstr("vivarium_generate_sources_total{source=\"new_session\"} 1"));
  for (const char* name : {"weight", "activation", "pool", "device_free", "device_total"}) {
    EXPECT_THAT(text, ContainsRegex(absl::StrCat("\nvivarium_", name, "_bytes [1-9]"))) << name;
  }
}

TEST(ServerTest, WhatCannotStartSaysWhy) {
  const TempDir dir;
  const auto start = [](const ServerOptions& options) { return Server::Start(options).status(); };
  ServerOptions options = TestOptions(dir.File("absent"), "memory:");
  EXPECT_TRUE(absl::IsNotFound(start(options))) << start(options);
  options = TestOptions(TinyMamba(), "memory:");
  options.listen = "0.0.0.0:0";
  EXPECT_TRUE(absl::IsFailedPrecondition(start(options)));
  options = TestOptions(TinyMamba(), "memory:");
  options.device = "tpu";
  EXPECT_THAT(std::string(start(options).message()), HasSubstr("tpu"));
  options = TestOptions(TinyMamba(), "memory:");
  options.chat_format = "esperanto";
  EXPECT_THAT(std::string(start(options).message()), HasSubstr("esperanto"));
  RunningClient client(TestOptions(TinyMamba(), dir.File("store")));
  options = TestOptions(TinyMamba(), "memory:");
  options.listen = client.server->address();
  EXPECT_TRUE(absl::IsUnavailable(start(options))) << start(options);
  options = TestOptions(TinyMamba(), dir.File("store"));  // already open
  EXPECT_TRUE(absl::IsFailedPrecondition(start(options))) << start(options);
}

// One message there and one back, as bytes: for services whose stubs Debian does not package.
std::string CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                    const std::string& message) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto await = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  EXPECT_TRUE(await());
  const grpc::Slice slice(message);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  EXPECT_TRUE(await());
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  EXPECT_TRUE(await());
  grpc::Slice bytes;
  EXPECT_TRUE(response.DumpToSingleSlice(&bytes).ok());
  grpc::Status status;
  call->Finish(&status, nullptr);
  EXPECT_TRUE(await());
  EXPECT_TRUE(status.ok()) << status.error_message();
  return {reinterpret_cast<const char*>(bytes.begin()), bytes.size()};
}

TEST(ServerTest, HealthAndReflectionAnswer) {
  RunningClient client(TestOptions(TinyMamba(), "memory:"));
  // HealthCheckResponse{status: SERVING}
  EXPECT_EQ(CallRaw(client.channel, "/grpc.health.v1.Health/Check", ""), "\x08\x01");
  // ServerReflectionRequest{list_services: "*"}
  EXPECT_THAT(
      CallRaw(client.channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              "\x3a\x01*"),
      HasSubstr("vivarium.v1.Generation"));
}

}  // namespace
}  // namespace vivarium::server
