#include "tests/bench/mamba_130m.h"

#include <filesystem>

#include "tests/support/mamba_files.h"
#include "tests/support/test_environment.h"

namespace vivarium::bench {

std::string WriteMamba130m(const std::string& parent) {
  test::MambaSpec spec;
  spec.num_layers = 24;
  spec.d_model = 768;
  spec.d_inner = 1536;
  spec.d_state = 16;
  spec.dt_rank = 48;
  spec.vocab_size = 50280;
  spec.stated_vocab_size = 50277;  // the tokenizer's: the rest is padding
  spec.dtype = kernels::DType::kBF16;
  const std::string directory = parent + "/mamba-130m-shape";
  std::filesystem::create_directory(directory);
  test::WriteMambaModel(spec, directory);
  std::filesystem::copy(test::RootDir() + "/tests/data/tokenizer/neox/tokenizer.json",
                        directory + "/tokenizer.json");
  return directory;
}

}  // namespace vivarium::bench
