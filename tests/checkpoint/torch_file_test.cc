#include "engine/checkpoint/torch_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "engine/checkpoint/tensor_pickle.h"
#include "tests/support/torch_files.h"

namespace vivarium::engine {
namespace {

using test::MakePickle;
using test::PickleEntry;
using test::PickleGlobal;
using test::PickleInt;
using test::PickleText;
using testing::AllOf;
using testing::HasSubstr;

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::vector<test::RandomTensor> Tensors() {
  return {{"a", kernels::DType::kF32, {2, 3}, 0.0f, 1.0f, false, 1},
          {"b", kernels::DType::kBF16, {4}, 0.0f, 1.0f, false, 2},
          {"c", kernels::DType::kF16, {1, 5}, 0.0f, 1.0f, false, 3}};
}

std::string Error(const std::string& file) {
  const absl::StatusOr<TensorTable> table = ParseTorchFile(Bytes(file), "p.bin");
  if (table.ok()) return "OK";
  EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(table.status().message());
}

std::string FileWithPickle(std::string pickle) {
  return test::MakeZip(TorchMembers(Tensors(), std::move(pickle)), false);
}
std::string PickleError(std::string pickle) { return Error(FileWithPickle(std::move(pickle))); }

// The error of a file whose first entry was changed.
template <typename Change>
std::string EntryError(Change change) {
  std::vector<PickleEntry> entries = TorchEntries(Tensors());
  change(&entries[0]);
  return PickleError(MakePickle(entries));
}

TEST(TorchFileTest, ReadsPlainAndZip64Archives) {
  for (const bool zip64 : {false, true}) {
    const std::string file =
        test::MakeZip(TorchMembers(Tensors(), MakePickle(TorchEntries(Tensors()))), zip64);
    const absl::StatusOr<TensorTable> table = ParseTorchFile(Bytes(file), "p.bin");
    ASSERT_TRUE(table.ok()) << table.status();
    ASSERT_EQ(table->tensors.size(), 3u);
    for (const test::RandomTensor& tensor : Tensors()) {
      const TensorView& view = table->tensors.at(tensor.name);
      EXPECT_EQ(view.dtype, tensor.dtype);
      EXPECT_EQ(view.shape, tensor.shape);
      const std::string expected = test::EncodeValues(tensor.Values(), tensor.dtype);
      ASSERT_EQ(view.data.size(), expected.size());
      EXPECT_EQ(std::memcmp(view.data.data(), expected.data(), expected.size()), 0);
      EXPECT_EQ(file.compare(view.file_offset, expected.size(), expected), 0);
    }
  }
}

TEST(TorchFileTest, TensorsMayShareAStorageAndBePartsOfIt) {
  std::vector<PickleEntry> entries = TorchEntries(Tensors());
  PickleEntry part = entries[0];
  part.name = "part";
  part.offset = 2;
  part.shape = {4};
  part.strides = {1};
  entries.push_back(part);
  const std::string file = FileWithPickle(MakePickle(entries));
  const absl::StatusOr<TensorTable> table = ParseTorchFile(Bytes(file), "p.bin");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->tensors.at("part").data.data(), table->tensors.at("a").data.data() + 8);
  EXPECT_EQ(table->tensors.at("part").data.size(), 16u);
}

TEST(TorchFileTest, OtherDTypesAreSkipped) {
  std::vector<PickleEntry> entries = TorchEntries(Tensors());
  entries[0].storage_type = "torch LongStorage";
  const std::string file = FileWithPickle(MakePickle(entries));
  const absl::StatusOr<TensorTable> table = ParseTorchFile(Bytes(file), "p.bin");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->skipped.at("a"), "LongStorage");
  EXPECT_EQ(table->tensors.size(), 2u);
}

TEST(TorchFileTest, RefusesTensorsThatLeaveTheirStorage) {
  EXPECT_THAT(EntryError([](PickleEntry* e) { e->offset = 1; }),
              AllOf(HasSubstr("p.bin: tensor 'a' at byte"),
                    HasSubstr("shape [2, 3] from element 1"), HasSubstr("found 6 elements")));
  EXPECT_THAT(EntryError([](PickleEntry* e) { e->offset = INT64_MAX; }), HasSubstr("inside its"));
  EXPECT_THAT(EntryError([](PickleEntry* e) { e->shape = {2, 4}; }), HasSubstr("inside its"));
  EXPECT_THAT(EntryError([](PickleEntry* e) {
                e->shape = {int64_t{1} << 40, int64_t{1} << 40};
              }),
              HasSubstr("inside its"));
  EXPECT_THAT(EntryError([](PickleEntry* e) { e->storage_count = 7; }),
              HasSubstr("storage '0' at byte"));
  EXPECT_THAT(EntryError([](PickleEntry* e) { e->storage_count = INT64_MAX; }),
              HasSubstr("storage '0' at byte"));
  EXPECT_THAT(EntryError([](PickleEntry* e) { e->storage_key = "99"; }),
              HasSubstr("a zip member for storage '99', found none"));
  EXPECT_THAT(EntryError([](PickleEntry* e) {
                e->strides = {1, 2};
              }),
              HasSubstr("contiguous strides for shape [2, 3], found [1, 2]"));
  EXPECT_THAT(EntryError([](PickleEntry* e) { e->strides = {3}; }),
              HasSubstr("_rebuild_tensor_v2"));
  EXPECT_THAT(EntryError([](PickleEntry* e) {
                e->shape = {-2, 3};
              }),
              HasSubstr("_rebuild_tensor_v2"));
  EXPECT_THAT(EntryError([](PickleEntry* e) { e->offset = -1; }), HasSubstr("_rebuild_tensor_v2"));
  EXPECT_THAT(EntryError([](PickleEntry* e) {
                e->shape = std::vector<int64_t>(9, 1);
                e->strides = e->shape;
              }),
              HasSubstr("at most 8 dimensions"));
  EXPECT_EQ(EntryError([](PickleEntry* e) {  // a stride of one element means nothing
              e->shape = {2, 1, 3};
              e->strides = {3, 77, 1};
            }),
            "OK");
}

TEST(TorchFileTest, RefusesPicklesThatWouldRunCode) {
  const std::string os_system =
      "\x80\x02" + PickleGlobal("os", "system") + "(" + PickleText("true") + "tR.";
  EXPECT_THAT(PickleError(os_system), AllOf(HasSubstr("a use of 'os system', which is refused"),
                                            HasSubstr("pickle at byte")));
  EXPECT_THAT(PickleError("\x80\x04" + PickleText("builtins") + PickleText("eval") + "\x93."),
              HasSubstr("a use of 'builtins eval'"));
  EXPECT_THAT(PickleError("\x80\x02" + PickleGlobal("torch._utils", "_rebuild_tensor_v3") + "."),
              HasSubstr("is refused"));
  EXPECT_THAT(PickleError("\x80\x02" + PickleGlobal("torch", "FloatStorage") + ")R."),
              HasSubstr("a call of 'torch FloatStorage'"));
  for (const char opcode : {'i', 'o', '\x81', '\x92', 'P', 'S', 'I', 'F', '0', '2', 'e', '\x82'}) {
    EXPECT_THAT(PickleError(std::string("\x80\x02") + opcode), HasSubstr("which is refused"));
  }
}

TEST(TorchFileTest, RefusesPicklesThatFail) {
  const std::string dict = PickleGlobal("collections", "OrderedDict") + ")R";
  EXPECT_THAT(PickleError(""), HasSubstr("expected 1 more bytes, found 0"));
  EXPECT_THAT(PickleError("\x80\x02."), HasSubstr("one dictionary of tensors"));
  EXPECT_THAT(PickleError("\x80\x02}"), HasSubstr("1 more bytes"));
  EXPECT_THAT(PickleError("\x80\x01}."), HasSubstr("expected pickle protocol 2 to 5, found 1"));
  EXPECT_THAT(PickleError("\x80\x02}}."), HasSubstr("one dictionary of tensors"));
  EXPECT_THAT(PickleError("\x80\x02(}."), HasSubstr("one dictionary of tensors"));
  EXPECT_THAT(PickleError("\x80\x02}X\xff\xff\xff\xff."), HasSubstr("4294967295 more bytes"));
  EXPECT_THAT(PickleError("\x80\x02s."), HasSubstr("a dictionary, keys and values"));
  EXPECT_THAT(PickleError("\x80\x02NNNs."), HasSubstr("expected a dictionary, found another"));
  EXPECT_THAT(PickleError("\x80\x02}(Nu."), HasSubstr("keys and values"));
  EXPECT_THAT(PickleError("\x80\x02u."), HasSubstr("a mark"));
  EXPECT_THAT(PickleError("\x80\x02t."), HasSubstr("a mark"));
  EXPECT_THAT(PickleError("\x80\x02(\x85."), HasSubstr("a value on the stack, found none"));
  EXPECT_THAT(PickleError("\x80\x02q\x01."), HasSubstr("a value on the stack, found none"));
  EXPECT_THAT(PickleError("\x80\x02h\x07."), HasSubstr("none under 7"));
  EXPECT_THAT(PickleError("\x80\x02NQ."), HasSubstr("a persistent id"));
  EXPECT_THAT(PickleError("\x80\x02NNR."), HasSubstr("a call of an allowed global"));
  EXPECT_THAT(PickleError("\x80\x02N}b."), HasSubstr("attributes of a dictionary"));
  EXPECT_THAT(PickleError("\x80\x02" + dict + "(" + PickleText("a") + PickleInt(1) + "u."),
              HasSubstr("a value of 'a' that is no tensor"));
  EXPECT_THAT(PickleError("\x80\x02}" + PickleInt(1) + PickleInt(1) + "s."),
              HasSubstr("a key that is no string"));
  EXPECT_THAT(PickleError("\x80\x02"
                          "c" +
                          std::string(300, 'm') + "\nx\n."),
              HasSubstr("a line of at most 256 bytes"));
  std::vector<PickleEntry> twice = TorchEntries(Tensors());
  twice[1].name = "a";
  EXPECT_THAT(PickleError(MakePickle(twice)), HasSubstr("'a' twice"));
}

TEST(TorchFileTest, BoundsThePickle) {
  const auto with_values = [](size_t count) {
    // `count` values and the dictionary itself, thrown into one tuple that the dictionary ignores.
    return "\x80\x02}"
           "}" +
           PickleText("k") + "(" + std::string(count - 4, 'N') + "tsb.";
  };
  EXPECT_EQ(PickleError(with_values(kMaxPickleValues)), "OK");
  EXPECT_THAT(PickleError(with_values(kMaxPickleValues + 1)),
              HasSubstr("at most 2097152 values, found more"));
  const auto with_memo = [](size_t count) {
    return "\x80\x02}" + std::string(count, '\x94') + ".";
  };
  EXPECT_EQ(PickleError(with_memo(kMaxPickleValues)), "OK");
  EXPECT_THAT(PickleError(with_memo(kMaxPickleValues + 1)), HasSubstr("remembered values"));
  const auto with_marks = [](size_t count) {
    return "\x80\x02}}" + PickleText("k") + std::string(count, '(') + std::string(count, 't') +
           "sb.";
  };
  EXPECT_EQ(PickleError(with_marks(kMaxPickleMarks)), "OK");
  EXPECT_THAT(PickleError(with_marks(kMaxPickleMarks + 1)), HasSubstr("at most 64 open marks"));
  EXPECT_THAT(PickleError(std::string(kMaxPickleBytes + 1, 'N')),
              HasSubstr("expected at most 33554432 bytes, found 33554433"));
}

TEST(TorchFileTest, RefusesBadArchives) {
  const std::string good = test::MakeTorchFile(Tensors());
  EXPECT_EQ(Error(good), "OK");
  for (size_t size = 0; size < good.size(); ++size) {
    ASSERT_NE(Error(good.substr(0, size)), "OK") << size;
  }
  EXPECT_THAT(Error("\x80\x02"
                    "old format"),
              HasSubstr("an end-of-central-directory record"));
  const std::vector<test::ZipMember> members =
      TorchMembers(Tensors(), MakePickle(TorchEntries(Tensors())));
  std::vector<test::ZipMember> changed = members;
  changed.push_back(changed[0]);
  EXPECT_THAT(Error(test::MakeZip(changed, false)), HasSubstr("each name once, found it twice"));
  changed = members;
  changed.push_back({"other/data.pkl", "."});
  EXPECT_THAT(Error(test::MakeZip(changed, false)), HasSubstr("one '.../data.pkl', found 2"));
  changed = members;
  changed[0].name = "archive/data.pk";
  EXPECT_THAT(Error(test::MakeZip(changed, false)), HasSubstr("found 0"));
  changed = members;
  changed[1].data = "big";
  EXPECT_THAT(Error(test::MakeZip(changed, false)), HasSubstr("byte order at byte"));
}

TEST(TorchFileTest, RefusesCompressedAndMisplacedMembers) {
  const std::string good = test::MakeTorchFile(Tensors());
  const size_t entry = good.find("PK\x01\x02");
  ASSERT_NE(entry, std::string::npos);
  const auto with = [&](size_t offset, char byte) {
    std::string file = good;
    file[entry + offset] = byte;
    return Error(file);
  };
  EXPECT_THAT(with(10, 8), AllOf(HasSubstr("stored uncompressed"), HasSubstr("method 8")));
  EXPECT_THAT(with(8, 1), HasSubstr("unencrypted"));
  EXPECT_THAT(with(20, 1), HasSubstr("stored uncompressed"));
  EXPECT_THAT(with(45, 0x7f), HasSubstr("expected a local header there, found none"));
  EXPECT_THAT(with(0, 'Q'), HasSubstr("zip directory entry at byte"));
  EXPECT_THAT(with(29, 0x7f), HasSubstr("zip directory entry at byte"));
}

}  // namespace
}  // namespace vivarium::engine
