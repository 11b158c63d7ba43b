#include "statestore/record_codec.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "statestore/byte_codec.h"
#include "statestore/record_frame.h"
#include "statestore/state_id.h"
#include "statestore/state_validation.h"

namespace vivarium::statestore {
namespace {

constexpr FrameKind kSessionFrame = {"session record", "VSES", 1};
constexpr FrameKind kRequestFrame = {"request record", "VREQ", 1};
constexpr size_t kMinHeadBytes = 4;

int64_t ToNanos(absl::Time time) {
  return time == absl::InfiniteFuture() ? std::numeric_limits<int64_t>::max()
                                        : absl::ToUnixNanos(time);
}

absl::Time FromNanos(int64_t nanos) {
  return nanos == std::numeric_limits<int64_t>::max() ? absl::InfiniteFuture()
                                                      : absl::FromUnixNanos(nanos);
}

absl::Status Malformed(const FrameKind& kind, const ByteReader& reader) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(kind.name), ": malformed before byte ",
                                                 reader.offset(), " of its body, ",
                                                 reader.remaining(), " bytes left"));
}

}  // namespace

std::string EncodeSession(const Session& session) {
  std::string body;
  ByteWriter writer(&body);
  writer.String(session.tenant);
  writer.String(session.name);
  writer.String(session.head);
  writer.Number<uint32_t>(static_cast<uint32_t>(session.recent_heads.size()));
  for (const StateId& id : session.recent_heads) writer.String(id);
  writer.String(session.etag);
  writer.Number<int64_t>(ToNanos(session.created));
  writer.Number<int64_t>(ToNanos(session.updated));
  return Frame(kSessionFrame, body);
}

absl::StatusOr<Session> DecodeSession(std::string_view bytes) {
  absl::StatusOr<std::string_view> body = Unframe(kSessionFrame, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  Session session;
  session.tenant = reader.String(kMaxTenantBytes);
  session.name = reader.String(kMaxSessionNameBytes);
  session.head = reader.String(kStateIdChars);
  const uint32_t num_heads = reader.Count(kDefaultHeadHistory, kMinHeadBytes);
  for (uint32_t i = 0; i < num_heads; ++i) {
    session.recent_heads.push_back(reader.String(kStateIdChars));
  }
  session.etag = reader.String(kUlidChars);
  session.created = FromNanos(reader.Number<int64_t>());
  session.updated = FromNanos(reader.Number<int64_t>());
  if (!reader.ok() || reader.remaining() != 0) return Malformed(kSessionFrame, reader);
  absl::Status status = ValidateTenant(session.tenant);
  if (status.ok()) status = ValidateSessionName(session.name);
  if (status.ok()) status = ValidateStateId(session.head);
  if (!status.ok()) return status;
  return session;
}

std::string EncodeRequest(const std::string& tenant, const RequestRecord& request) {
  std::string body;
  ByteWriter writer(&body);
  writer.String(tenant);
  writer.String(request.request_id);
  writer.String(request.request_hash);
  writer.String(request.result);
  writer.Number<int64_t>(ToNanos(request.expires));
  return Frame(kRequestFrame, body);
}

absl::StatusOr<RequestRecord> DecodeRequest(const std::string& tenant,
                                            const std::string& request_id, std::string_view bytes) {
  absl::StatusOr<std::string_view> body = Unframe(kRequestFrame, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  RequestRecord request;
  const std::string found_tenant = reader.String(kMaxTenantBytes);
  request.request_id = reader.String(kMaxRequestIdBytes);
  request.request_hash = reader.String(kMaxRequestHashBytes);
  request.result = reader.String(kMaxRequestResultBytes);
  request.expires = FromNanos(reader.Number<int64_t>());
  if (!reader.ok() || reader.remaining() != 0) return Malformed(kRequestFrame, reader);
  if (found_tenant != tenant || request.request_id != request_id) {
    return absl::DataLossError("request record: it belongs to another tenant or request id");
  }
  return request;
}

}  // namespace vivarium::statestore
