// The report of a load test for a browser: one file, no script, nothing fetched.
#pragma once

#include <string>

#include "cli/output.h"

namespace vivarium::cli::bench {

// Of a summary (summary.h).
std::string RenderReport(const Json& summary);

}  // namespace vivarium::cli::bench
