#include "tests/bench/mamba_130m.h"

#include <filesystem>

#include "tests/bench/shape_spec.h"
#include "tests/support/mamba_files.h"
#include "tests/support/test_environment.h"

namespace vivarium::bench {

std::string WriteMamba130m(const std::string& parent) {
  test::MambaSpec spec = SpecOf(*FindShape("130m"));
  spec.stated_vocab_size = 50277;  // the tokenizer's: the rest is padding
  std::string directory = parent + "/mamba-130m-shape";
  std::filesystem::create_directory(directory);
  test::WriteMambaModel(spec, directory);
  std::filesystem::copy(test::RootDir() + "/tests/data/tokenizer/neox/tokenizer.json",
                        directory + "/tokenizer.json");
  return directory;
}

}  // namespace vivarium::bench
