// ServeFlags: a server's options from flags and a config file, for `serve` and `config check`.
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "server/server_options.h"

namespace vivarium::cli {

// Precedence: flags, then the file, then defaults.
struct ServeFlags {
  server::ServerOptions options;
  std::string config_file;

  void Declare(CLI::App* app);
  // After the parse of `app`: takes in the config file, fills in the defaults of model and store,
  // checks everything. The problems found, each a sentence; none = `options` can be used.
  std::vector<std::string> Resolve(CLI::App* app);
};

}  // namespace vivarium::cli
