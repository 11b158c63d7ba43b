#include "engine/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/mamba_files.h"
#include "tests/support/temp_dir.h"
#include "tests/support/torch_files.h"

namespace vivarium::engine {
namespace {

using test::MambaSpec;
using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;

constexpr char kIndex[] = "model.safetensors.index.json";

std::string Error(const std::string& directory) {
  const auto checkpoint = Checkpoint::Open(directory);
  return checkpoint.ok() ? "OK" : std::string(checkpoint.status().message());
}

void ExpectTensors(const Checkpoint& checkpoint, const MambaSpec& spec) {
  const std::vector<test::RandomTensor> tensors = MambaTensors(spec);
  EXPECT_EQ(checkpoint.tensors().size(), tensors.size());
  for (const test::RandomTensor& tensor : tensors) {
    const TensorView* view = checkpoint.Find(tensor.name);
    ASSERT_NE(view, nullptr) << tensor.name;
    EXPECT_EQ(view->shape, tensor.shape);
    EXPECT_EQ(view->dtype, tensor.dtype);
    const std::string expected = test::EncodeValues(tensor.Values(), tensor.dtype);
    ASSERT_EQ(view->data.size(), expected.size());
    EXPECT_EQ(std::memcmp(view->data.data(), expected.data(), expected.size()), 0);
    EXPECT_EQ(test::ReadFile(view->file).compare(view->file_offset, expected.size(), expected), 0);
  }
  EXPECT_EQ(checkpoint.Find("no.such.tensor"), nullptr);
}

TEST(CheckpointTest, OpensOneFileAndShards) {
  for (const int num_shards : {1, 2, 5}) {
    MambaSpec spec;
    spec.num_shards = num_shards;
    const TempDir directory;
    WriteMambaModel(spec, directory.path());
    const auto checkpoint = Checkpoint::Open(directory.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    ExpectTensors(**checkpoint, spec);
    EXPECT_EQ((*checkpoint)->files().size(), static_cast<size_t>(num_shards));
  }
}

TEST(CheckpointTest, OpensATorchFile) {
  for (const kernels::DType dtype :
       {kernels::DType::kF32, kernels::DType::kBF16, kernels::DType::kF16}) {
    MambaSpec spec;
    spec.dtype = dtype;
    const TempDir directory;
    test::WriteFile(directory.File("pytorch_model.bin"), test::MakeTorchFile(MambaTensors(spec)));
    const auto checkpoint = Checkpoint::Open(directory.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    ExpectTensors(**checkpoint, spec);
  }
}

TEST(CheckpointTest, PrefersSafetensorsAndReportsItsFaults) {
  const MambaSpec spec;
  const TempDir directory;
  WriteMambaModel(spec, directory.path());
  test::WriteFile(directory.File("pytorch_model.bin"), "not a torch file");
  EXPECT_EQ(Error(directory.path()), "OK");
  // A bad file is an error, never a reason to try the next.
  test::WriteFile(directory.File("pytorch_model.bin"), test::MakeTorchFile(MambaTensors(spec)));
  test::WriteFile(directory.File("model.safetensors"), "bad");
  EXPECT_THAT(Error(directory.path()), HasSubstr("model.safetensors: header length"));
}

TEST(CheckpointTest, SaysWhenThereIsNothing) {
  const TempDir directory;
  const auto checkpoint = Checkpoint::Open(directory.path());
  EXPECT_TRUE(absl::IsNotFound(checkpoint.status()));
  EXPECT_THAT(Error(directory.path()),
              AllOf(HasSubstr(directory.path()), HasSubstr("model.safetensors"),
                    HasSubstr("pytorch_model.bin")));
  EXPECT_TRUE(absl::IsNotFound(Checkpoint::Open(directory.File("absent")).status()));
}

TEST(CheckpointTest, RefusesWhatIsNoRegularFile) {
  const TempDir directory;
  ASSERT_EQ(mkfifo(directory.File("model.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(Error(directory.path()), HasSubstr("expected a regular file"));  // and doesn't hang
  std::filesystem::remove(directory.File("model.safetensors"));
  std::filesystem::create_directory(directory.File("model.safetensors"));
  EXPECT_THAT(Error(directory.path()), HasSubstr("expected a regular file"));
}

class IndexTest : public testing::Test {
 protected:
  void SetUp() override {
    MambaSpec spec;
    spec.num_shards = 2;
    WriteMambaModel(spec, directory_.path());
    index_ = nlohmann::json::parse(test::ReadFile(directory_.File(kIndex)));
  }
  std::string ErrorOf(const nlohmann::json& index) {
    test::WriteFile(directory_.File(kIndex), index.dump());
    return Error(directory_.path());
  }

  TempDir directory_;
  nlohmann::json index_;
};

TEST_F(IndexTest, TensorsMustLieWhereItSays) {
  auto swapped = index_;
  swapped["weight_map"]["backbone.norm_f.weight"] = "shard-0.safetensors";
  EXPECT_THAT(ErrorOf(swapped),
              AllOf(HasSubstr("tensor 'backbone.norm_f.weight'"), HasSubstr("shard-0.safetensors'"),
                    HasSubstr("found it in " + directory_.path())));
  auto more = index_;
  more["weight_map"]["ghost"] = "shard-0.safetensors";
  EXPECT_THAT(ErrorOf(more), AllOf(HasSubstr("tensor 'ghost'"), HasSubstr("in no shard")));
  auto fewer = index_;
  fewer["weight_map"].erase("backbone.norm_f.weight");
  EXPECT_THAT(ErrorOf(fewer),
              AllOf(HasSubstr("tensor 'backbone.norm_f.weight'"), HasSubstr("found no entry")));
  EXPECT_EQ(ErrorOf(index_), "OK");
}

TEST_F(IndexTest, ShardsMustBeFilesBesideIt) {
  std::filesystem::copy(directory_.File("shard-0.safetensors"), directory_.File("model0"));
  for (const char* shard : {"../x", "/etc/passwd", "a/b", "", ".", ".."}) {
    auto index = index_;
    index["weight_map"]["backbone.norm_f.weight"] = shard;
    EXPECT_THAT(ErrorOf(index), HasSubstr("the name of a file in the same directory")) << shard;
  }
  auto number = index_;
  number["weight_map"]["backbone.norm_f.weight"] = 7;
  EXPECT_THAT(ErrorOf(number), HasSubstr("found 7"));
  auto absent = index_;
  absent["weight_map"]["backbone.norm_f.weight"] = "shard-9.safetensors";
  EXPECT_THAT(ErrorOf(absent), HasSubstr("the shard 'shard-9.safetensors', found no such file"));
  auto copied = index_;  // the same tensors twice
  copied["weight_map"]["ghost"] = "model0";
  EXPECT_THAT(ErrorOf(copied), HasSubstr("in one file only"));
}

TEST_F(IndexTest, MustHaveAWeightMap) {
  EXPECT_THAT(ErrorOf(nlohmann::json::object()), HasSubstr("weight_map: expected an object"));
  EXPECT_THAT(ErrorOf({{"weight_map", 3}}), HasSubstr("found 3"));
  EXPECT_THAT(ErrorOf({{"weight_map", nlohmann::json::object()}}), HasSubstr("1 to 4096 shards"));
  nlohmann::json many;
  for (int i = 0; i < 4097; ++i) {
    many["weight_map"]["t" + std::to_string(i)] = "s" + std::to_string(i);
  }
  EXPECT_THAT(ErrorOf(many), HasSubstr("found 4097"));
}

}  // namespace
}  // namespace vivarium::engine
