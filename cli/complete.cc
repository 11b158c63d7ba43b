#include "cli/complete.h"

#include "cli/output.h"

namespace vivarium::cli {

void PrintCompletions(const CLI::App& root, const std::vector<std::string>& words) {
  const CLI::App* app = &root;
  for (const std::string& word : words) {
    const CLI::App* next = nullptr;
    for (const CLI::App* child : app->get_subcommands([](const CLI::App*) { return true; })) {
      if (!word.empty() && child->get_name() == word) next = child;
    }
    if (next == nullptr) break;  // flags and arguments of `app` from here on
    app = next;
  }
  for (const CLI::App* child : app->get_subcommands([](const CLI::App*) { return true; })) {
    if (!child->get_name().empty()) {
      PrintLine(child->get_name() + "\t" + child->get_description());
    }
  }
  for (const CLI::Option* option : app->get_options()) {
    for (const std::string& name : option->get_lnames()) {
      PrintLine("--" + name + "\t" + option->get_description());
    }
  }
}

}  // namespace vivarium::cli
