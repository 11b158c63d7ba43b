#include "server/replay.h"

#include <utility>

#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/delimited_message_util.h"

namespace vivarium::server {

using google::protobuf::util::ParseDelimitedFromZeroCopyStream;
using google::protobuf::util::SerializeDelimitedToZeroCopyStream;

bool ResultRecorder::HasRoomFor(size_t bytes) {
  if (overflowed_) return false;
  size_bytes_ += bytes;
  if (size_bytes_ <= kMaxRecordedBytes) return true;
  overflowed_ = true;
  Outbox without_deltas;
  for (const v1::GenerateResponse& message : outbox_.messages()) {
    if (!message.has_delta()) without_deltas.Add(message);
  }
  outbox_ = std::move(without_deltas);
  return false;
}

void ResultRecorder::AddToken(const engine::TokenEvent& event) {
  constexpr size_t kTokenBytes = 32;       // id, logprob and their framing
  constexpr size_t kTopLogprobBytes = 16;  // likewise
  const size_t bytes =
      kTokenBytes + event.text.size() + kTopLogprobBytes * event.top_logprobs.size();
  if (HasRoomFor(bytes)) outbox_.AddToken(event);
}

void ResultRecorder::AddText(const std::string& text) {
  if (HasRoomFor(text.size())) outbox_.AddText(text);
}

void ResultRecorder::Add(const v1::GenerateResponse& message) {
  if (outbox_.messages().size() < kMaxRecordedMessages) outbox_.Add(message);
}

std::string ResultRecorder::Encode(const v1::Finished& finished) const {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  for (const v1::GenerateResponse& message : outbox_.messages()) {
    SerializeDelimitedToZeroCopyStream(message, &stream);
  }
  v1::GenerateResponse last;
  *last.mutable_finished() = finished;
  SerializeDelimitedToZeroCopyStream(last, &stream);
  return bytes.substr(0, static_cast<size_t>(stream.ByteCount()));
}

absl::StatusOr<std::vector<v1::GenerateResponse>> DecodeResult(const std::string& result) {
  std::vector<v1::GenerateResponse> messages;
  google::protobuf::io::ArrayInputStream stream(result.data(), static_cast<int>(result.size()));
  for (bool clean_end = false; !clean_end;) {
    v1::GenerateResponse message;
    if (ParseDelimitedFromZeroCopyStream(&message, &stream, &clean_end)) {
      if (message.has_started()) message.mutable_started()->set_replayed(true);
      messages.push_back(std::move(message));
    } else if (!clean_end) {
      return absl::InternalError("the record of a finished request can't be read");
    }
  }
  if (messages.empty() || !messages.back().has_finished()) {
    return absl::InternalError("the record of a finished request has no end");
  }
  return messages;
}

}  // namespace vivarium::server
