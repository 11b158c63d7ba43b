// Names of gRPC's status codes.
#pragma once

namespace vivarium::cli {

// "NOT_FOUND" for 5; "UNKNOWN" for numbers that gRPC doesn't have.
const char* CodeName(int code);

}  // namespace vivarium::cli
