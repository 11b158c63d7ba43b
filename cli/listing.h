// Whole lists, page by page, and how states look in tables.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <string>
#include <vector>

#include "cli/client.h"
#include "google/protobuf/timestamp.pb.h"
#include "vivarium/v1/sessions.pb.h"
#include "vivarium/v1/states.pb.h"

namespace vivarium::cli {

inline constexpr size_t kMaxListed = 1'000'000;

// The states that `request` asks for (its paging fields are overwritten), newest first, at most
// `limit` of them.
grpc::Status ListStates(Client& client, v1::ListStatesRequest request, size_t limit,
                        std::vector<v1::State>* states);
grpc::Status ListSessions(Client& client, size_t limit, std::vector<v1::Session>* sessions);

// "now", "5 min ago", "in 3 h", "2024-05-01"; "-" when absent.
std::string FormatWhen(const google::protobuf::Timestamp& when);
// "a=1 b=2"; pinned and dropped states and snapshots say so first.
std::string FormatLabels(const v1::State& state);

// One state, a field a line.
std::string DescribeState(const v1::State& state);
// What was said, a paragraph per turn: "> " before what the client gave.
std::string FormatTranscript(const v1::State& state);

}  // namespace vivarium::cli
