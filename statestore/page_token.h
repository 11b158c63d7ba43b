// Page tokens: opaque to clients, checked when they come back. A token is good for the list that
// it came from (kind, tenant, filter), at any time, in either store.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "statestore/state_store.h"

namespace vivarium::statestore {

// What a list was asked for; equal for equal questions only.
std::string StatesListScope(const std::string& tenant, const StateFilter& filter);
std::string SessionsListScope(const std::string& tenant);

// A token that goes on after the item `last_key`.
std::string EncodePageToken(std::string_view scope, std::string_view last_key);
// The item's key, "" for the empty token. INVALID_ARGUMENT for a token that no store made, or made
// for another list.
absl::StatusOr<std::string> DecodePageToken(std::string_view scope, const std::string& token);

}  // namespace vivarium::statestore
