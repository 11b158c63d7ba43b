// How --help looks: one blank line between groups, plain value names, defaults in the sentence.
#pragma once

#include <CLI/App.hpp>
#include <CLI/Formatter.hpp>
#include <string>
#include <utility>

namespace vivarium::cli {

class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() {
    column_width(34);
    label("OPTIONS", "FLAGS");
    label("SUBCOMMAND", "COMMAND");
    label("Positionals", "Arguments");
    label("Options", "Flags");
  }

  // Groups are apart by the blank line that each begins with; CLI11 adds a second one.
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override {
    std::string text = CLI::Formatter::make_help(app, std::move(name), mode);
    for (size_t at; (at = text.find("\n\n\n")) != std::string::npos;) text.erase(at, 1);
    return text;
  }
  // Only the value's name: CLI11 would add ranges, defaults and exclusions in its own terms.
  std::string make_option_opts(const CLI::Option* option) const override {
    if (!option->get_option_text().empty()) return " " + option->get_option_text();
    if (option->get_type_size() == 0 || option->get_positional()) return "";
    return " " + ValueName(option->get_type_name());
  }
  std::string make_option_desc(const CLI::Option* option) const override {
    const std::string& text = option->get_description();
    const std::string value = option->get_default_str();
    return value.empty() || option->get_type_size() == 0 ? text : text + " (" + value + ")";
  }

 private:
  // Validators append ":RANGE" to the name; "HOST:PORT" is a name of its own.
  static std::string ValueName(const std::string& type_name) {
    return type_name == "HOST:PORT" ? type_name : type_name.substr(0, type_name.find(':'));
  }
};

}  // namespace vivarium::cli
