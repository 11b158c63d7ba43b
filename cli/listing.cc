#include "cli/listing.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/output.h"

namespace vivarium::cli {
namespace {

constexpr int32_t kPageSize = 1000;

absl::Time ToTime(const google::protobuf::Timestamp& when) {
  return absl::FromUnixSeconds(when.seconds()) + absl::Nanoseconds(when.nanos());
}

std::string FormatSpan(absl::Duration span) {
  if (span < absl::Minutes(1)) return absl::StrCat(absl::ToInt64Seconds(span), " s");
  if (span < absl::Hours(1)) return absl::StrCat(absl::ToInt64Minutes(span), " min");
  if (span < absl::Hours(48)) return absl::StrCat(absl::ToInt64Hours(span), " h");
  return absl::StrCat(absl::ToInt64Hours(span) / 24, " days");
}

}  // namespace

grpc::Status ListStates(Client& client, v1::ListStatesRequest request, size_t limit,
                        std::vector<v1::State>* states) {
  request.clear_page_token();
  while (states->size() < limit) {
    request.set_page_size(
        static_cast<int32_t>(std::min<size_t>(kPageSize, limit - states->size())));
    v1::ListStatesResponse response;
    grpc::Status status =
        client.Do(client.states(), &v1::States::Stub::ListStates, request, &response);
    if (!status.ok()) return status;
    for (auto& state : *response.mutable_states()) states->push_back(std::move(state));
    if (response.next_page_token().empty()) break;
    request.set_page_token(response.next_page_token());
  }
  return grpc::Status::OK;
}

grpc::Status ListSessions(Client& client, size_t limit, std::vector<v1::Session>* sessions) {
  v1::ListSessionsRequest request;
  while (sessions->size() < limit) {
    request.set_page_size(
        static_cast<int32_t>(std::min<size_t>(kPageSize, limit - sessions->size())));
    v1::ListSessionsResponse response;
    grpc::Status status =
        client.Do(client.sessions(), &v1::Sessions::Stub::ListSessions, request, &response);
    if (!status.ok()) return status;
    for (auto& session : *response.mutable_sessions()) sessions->push_back(std::move(session));
    if (response.next_page_token().empty()) break;
    request.set_page_token(response.next_page_token());
  }
  return grpc::Status::OK;
}

std::string FormatWhen(const google::protobuf::Timestamp& when) {
  if (when.seconds() == 0 && when.nanos() == 0) return "-";
  const absl::Time time = ToTime(when);
  const absl::Duration age = absl::Now() - time;
  if (age > absl::Hours(24 * 60) || age < -absl::Hours(24 * 60)) {
    return absl::FormatTime("%Y-%m-%d", time, absl::UTCTimeZone());
  }
  if (age >= absl::ZeroDuration() && age < absl::Seconds(1)) return "now";
  return age < absl::ZeroDuration() ? absl::StrCat("in ", FormatSpan(-age))
                                    : absl::StrCat(FormatSpan(age), " ago");
}

std::string FormatLabels(const v1::State& state) {
  std::string text;
  if (state.dropped()) text += "(dropped) ";
  if (state.pinned()) text += "(pinned) ";
  if (state.snapshot()) text += "(snapshot) ";
  const std::map<std::string, std::string> sorted(state.labels().begin(), state.labels().end());
  for (const auto& [name, value] : sorted) absl::StrAppend(&text, name, "=", value, " ");
  if (!text.empty()) text.pop_back();
  return text;
}

std::string DescribeState(const v1::State& state) {
  std::string text;
  const auto line = [&text](const char* name, const std::string& value) {
    if (!value.empty()) absl::StrAppendFormat(&text, "%-12s %s\n", name, value);
  };
  line("id", state.id());
  line("parent", state.parent_id());
  line("session", state.session());
  line("position", FormatCount(state.position()) + " tokens read");
  line("pending", absl::StrCat("token ", state.pending_token()));
  line("size", FormatBytes(state.size_bytes()));
  line("codec", state.codec());
  if (state.max_absolute_error() > 0) {
    line("rounding", absl::StrCat("off by up to ", state.max_absolute_error(), ", relatively ",
                                  state.max_relative_error()));
  }
  if (state.inherited_absolute_error() > 0) {
    line("inherited", absl::StrCat("rounding of what it was computed from: by up to ",
                                   state.inherited_absolute_error(), ", relatively ",
                                   state.inherited_relative_error()));
  }
  line("created", FormatWhen(state.create_time()));
  line("expires", state.has_expire_time() ? FormatWhen(state.expire_time()) : "never");
  line("labels", FormatLabels(state));
  line("model", state.model_fingerprint());
  line("tokenizer", state.tokenizer_hash());
  line("numerics", state.numerics_id());
  return text;
}

std::string FormatTranscript(const v1::State& state) {
  std::string text;
  for (const v1::TranscriptEntry& entry : state.transcript()) {
    absl::StrAppend(&text, entry.is_output() ? "" : "> ", entry.text(), "\n");
  }
  return text;
}

}  // namespace vivarium::cli
