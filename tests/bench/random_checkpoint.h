// A Mamba checkpoint of random weights that lies nowhere: every layer has the same bytes, so that a
// model of any depth takes the host memory of one layer and an embedding.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "tests/support/mamba_files.h"

namespace vivarium::bench {

// The tensors of MambaTensors(spec); a layer's are those of layer 0.
class RandomCheckpoint final : public engine::Checkpoint {
 public:
  explicit RandomCheckpoint(const test::MambaSpec& spec);

  const engine::TensorView* Find(std::string_view name) const override;
  const std::map<std::string, engine::TensorView, std::less<>>& tensors() const override {
    return tensors_;
  }
  const std::map<std::string, std::string, std::less<>>& skipped() const override {
    return skipped_;
  }
  void Release(const engine::TensorView&) const override {}  // nothing is mapped
  const std::vector<std::string>& files() const override { return files_; }

 private:
  std::map<std::string, std::string> bytes_;  // by the name within a layer
  std::map<std::string, engine::TensorView, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> skipped_;
  std::vector<std::string> files_;
};

}  // namespace vivarium::bench
