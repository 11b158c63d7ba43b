// Sessions and finished requests as bytes, framed like every record (record_frame.h).
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

std::string EncodeSession(const Session& session);
// Errors as of DecodeManifest.
absl::StatusOr<Session> DecodeSession(std::string_view bytes);

std::string EncodeRequest(const std::string& tenant, const RequestRecord& request);
// DATA_LOSS besides when the record is another tenant's or another id's.
absl::StatusOr<RequestRecord> DecodeRequest(const std::string& tenant,
                                            const std::string& request_id, std::string_view bytes);

}  // namespace vivarium::statestore
