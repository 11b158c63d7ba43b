// The tree's own rules: layers, includes, sizes. See README.md, "The tree".
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace vivarium {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxLineColumns = 100;
constexpr size_t kMaxFileLines = 600;
constexpr size_t kMaxFunctionLines = 70;
constexpr size_t kMaxKernelFunctionLines = 120;

struct SourceFile {
  std::string path;  // relative to the root
  std::vector<std::string> lines;
};

std::vector<std::string> ReadLines(const fs::path& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

bool HasSuffix(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() && text.ends_with(suffix);
}

// Every source file of the project's folders; build trees are beside them, not inside.
const std::vector<SourceFile>& Sources() {
  static const auto* const kSources = [] {
    auto* sources = new std::vector<SourceFile>;
    const fs::path root(VIVARIUM_SOURCE_DIR);
    for (const char* folder : {"kernels", "engine", "statestore", "server", "cli", "tests"}) {
      for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
        const std::string path = fs::relative(entry.path(), root).string();
        for (const char* suffix : {".h", ".cc", ".cu", ".cuh"}) {
          if (HasSuffix(path, suffix)) sources->push_back({path, ReadLines(entry.path())});
        }
      }
    }
    std::sort(sources->begin(), sources->end(),
              [](const auto& a, const auto& b) { return a.path < b.path; });
    return sources;
  }();
  return *kSources;
}

std::string TopFolder(const std::string& path) { return path.substr(0, path.find('/')); }

// The files that `file` includes in quotes (ours) or in angle brackets (others').
std::vector<std::string> Includes(const SourceFile& file, char open) {
  static const std::regex kInclude(R"re(^\s*#\s*include\s*(["<])([^">]+)[">])re");
  std::vector<std::string> includes;
  for (const std::string& line : file.lines) {
    std::smatch match;
    if (std::regex_search(line, match, kInclude) && match[1].str()[0] == open) {
      includes.push_back(match[2]);
    }
  }
  return includes;
}

bool IsOurs(const std::string& include) {
  static const std::set<std::string> kFolders = {"kernels", "engine", "statestore",
                                                 "server",  "cli",    "tests"};
  return kFolders.contains(TopFolder(include));
}

bool StartsWithAny(const std::string& text, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return text.starts_with(prefix); });
}

TEST(Tidy, FindsTheTree) { EXPECT_GT(Sources().size(), 10u); }

TEST(Tidy, ALayerIncludesItselfAndTheLayersBelow) {
  const std::map<std::string, std::vector<std::string>> allowed = {
      {"kernels", {"kernels/"}},
      {"engine", {"engine/", "kernels/"}},
      {"statestore", {"statestore/", "engine/runtime/state.h"}},
      {"server", {"server/", "statestore/", "engine/", "kernels/"}},
      {"cli", {"cli/", "server/", "statestore/", "engine/", "kernels/"}},
  };
  for (const SourceFile& file : Sources()) {
    const auto rule = allowed.find(TopFolder(file.path));
    if (rule == allowed.end()) continue;
    for (const std::string& include : Includes(file, '"')) {
      if (IsOurs(include)) {
        EXPECT_TRUE(StartsWithAny(include, rule->second)) << file.path << " includes " << include;
      }
    }
  }
}

TEST(Tidy, OurIncludesAreRootRelative) {
  const fs::path root(VIVARIUM_SOURCE_DIR);
  for (const SourceFile& file : Sources()) {
    for (const std::string& include : Includes(file, '"')) {
      EXPECT_TRUE(!IsOurs(include) || fs::exists(root / include))
          << file.path << " includes \"" << include << "\", which does not exist";
      EXPECT_TRUE(IsOurs(include) || !fs::exists((root / file.path).parent_path() / include))
          << file.path << " includes \"" << include << "\" by a relative path";
    }
  }
}

TEST(Tidy, LibrariesStayInTheirFolders) {
  struct Rule {
    std::vector<std::string> headers;  // prefixes
    std::vector<std::string> folders;  // where they may be included
  };
  const std::vector<Rule> rules = {
      {{"cuda", "cub/", "cublas"}, {"kernels/cuda/", "tests/"}},
      {{"rocksdb/"}, {"statestore/rocksdb", "tests/"}},
      {{"grpc", "google/protobuf", "google/rpc", "vivarium/v1/"}, {"server/", "cli/", "tests/"}},
      {{"spdlog/", "prometheus/"}, {"server/", "cli/", "tests/"}},
      {{"CLI/"}, {"cli/", "tests/"}},
      {{"absl/", "nlohmann/"}, {"engine/", "statestore/", "server/", "cli/", "tests/"}},
  };
  for (const SourceFile& file : Sources()) {
    std::vector<std::string> includes = Includes(file, '<');
    for (const std::string& include : Includes(file, '"')) includes.push_back(include);
    for (const std::string& include : includes) {
      for (const Rule& rule : rules) {
        if (StartsWithAny(include, rule.headers) && !IsOurs(include)) {
          EXPECT_TRUE(StartsWithAny(file.path, rule.folders))
              << file.path << " includes " << include;
        }
      }
    }
  }
}

TEST(Tidy, OnlyServerAndCliReadTheEnvironment) {
  for (const SourceFile& file : Sources()) {
    if (StartsWithAny(file.path, {"server/", "cli/", "tests/"})) continue;
    for (const std::string& line : file.lines) {
      EXPECT_EQ(line.find("getenv("), std::string::npos) << file.path << ": " << line;
      EXPECT_EQ(line.find("std::cout"), std::string::npos) << file.path << ": " << line;
      EXPECT_EQ(line.find("std::cerr"), std::string::npos) << file.path << ": " << line;
    }
  }
}

TEST(Tidy, NoCyclesBetweenFiles) {
  std::map<std::string, std::vector<std::string>> graph;
  for (const SourceFile& file : Sources()) graph[file.path] = Includes(file, '"');
  std::set<std::string> done;
  std::vector<std::string> path;
  const std::function<void(const std::string&)> visit = [&](const std::string& node) {
    if (done.contains(node) || !graph.contains(node)) return;
    const auto seen = std::find(path.begin(), path.end(), node);
    if (seen != path.end()) {
      ADD_FAILURE() << "include cycle: "
                    << testing::PrintToString(std::vector<std::string>(seen, path.end()));
      return;
    }
    path.push_back(node);
    for (const std::string& next : graph[node]) visit(next);
    path.pop_back();
    done.insert(node);
  };
  for (const auto& [file, includes] : graph) visit(file);
}

TEST(Tidy, FilesAndLinesAreShort) {
  for (const SourceFile& file : Sources()) {
    EXPECT_LE(file.lines.size(), kMaxFileLines) << file.path;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      EXPECT_LE(file.lines[i].size(), kMaxLineColumns + 20)  // bytes: room for UTF-8 in strings
          << file.path << ":" << i + 1;
    }
  }
}

// A function at namespace level begins on an unindented line and ends with "}" in column 0.
TEST(Tidy, FunctionsFitAScreen) {
  for (const SourceFile& file : Sources()) {
    if (!HasSuffix(file.path, ".cc") && !HasSuffix(file.path, ".cu")) continue;
    const size_t limit =
        file.path.starts_with("kernels/") ? kMaxKernelFunctionLines : kMaxFunctionLines;
    size_t begin = 0;
    bool is_function = false;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const std::string& line = file.lines[i];
      if (line.empty()) continue;
      if (line == "}") {
        EXPECT_TRUE(!is_function || i - begin + 1 <= limit)
            << file.path << ":" << begin + 1 << ": function of " << i - begin + 1 << " lines";
        is_function = false;
      } else if (line[0] != ' ' && line[0] != '}' && line[0] != '#' && line[0] != '/') {
        begin = i;
        is_function = !StartsWithAny(line, {"namespace", "class", "struct", "enum", "template"}) &&
                      line.find('(') != std::string::npos;
      }
    }
  }
}

TEST(Tidy, NamesSayWhatIsInside) {
  static const std::regex kVague(R"((^|/|_)(util|utils|common|helper|helpers|misc)(_|/|\.|$))");
  for (const SourceFile& file : Sources()) {
    EXPECT_FALSE(std::regex_search(file.path, kVague)) << file.path;
  }
}

TEST(Tidy, NoLeftovers) {
  for (const SourceFile& file : Sources()) {
    if (file.path.starts_with("tests/tidy/")) continue;
    static const std::regex kLeftover(R"(\b(TODO|FIXME|XXX|HACK)\b)");
    for (const std::string& line : file.lines) {
      EXPECT_FALSE(std::regex_search(line, kLeftover)) << file.path << ": " << line;
      EXPECT_TRUE(line.empty() || (line.back() != ' ' && line.back() != '\t'))
          << file.path << ": trailing white space";
    }
  }
}

TEST(Tidy, EveryFolderExplainsItself) {
  for (const char* folder : {".", "proto", "kernels", "engine", "statestore", "server", "cli",
                             "models", "deploy", "tests"}) {
    EXPECT_TRUE(fs::exists(fs::path(VIVARIUM_SOURCE_DIR) / folder / "README.md")) << folder;
  }
}

// Relative links in the folders' READMEs lead somewhere.
TEST(Tidy, LinksResolve) {
  static const std::regex kLink(R"(\]\(([^)#]+)(#[^)]*)?\))");
  const fs::path root(VIVARIUM_SOURCE_DIR);
  for (const char* folder : {".", "proto", "kernels", "engine", "statestore", "server", "cli",
                             "models", "deploy", "tests"}) {
    const fs::path readme = root / folder / "README.md";
    for (const std::string& line : ReadLines(readme)) {
      for (std::sregex_iterator it(line.begin(), line.end(), kLink), end; it != end; ++it) {
        const std::string target = (*it)[1];
        if (target.starts_with("http")) continue;
        EXPECT_TRUE(fs::exists(readme.parent_path() / target)) << readme << ": " << target;
      }
    }
  }
}

}  // namespace
}  // namespace vivarium
