// The export file: what goes out comes in again, in pieces of any size; the golden file of every
// version ever released is read back, bit for bit, forever.
#include "statestore/state_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>

#include "tests/statestore/export_files.h"
#include "tests/statestore/state_samples.h"
#include "tests/support/test_environment.h"

namespace vivarium::statestore {
namespace {

using ::testing::HasSubstr;

const std::string kGoldenV2 = test::RootDir() + "/tests/data/statestore/state_v2.vivstate";
const std::string kGoldenV3 = test::RootDir() + "/tests/data/statestore/state_v3.vivstate";
const std::string kGoldenV1 = test::RootDir() + "/tests/data/statestore/state_v1.vivstate";

// The golden state: its every byte follows from these seeds, forever.
SavedState GoldenState() {
  SavedState state = SampleState("st_01hf7yat00abcdefghjkmnpqr1", 20231114);
  state.manifest.parent_id = "st_01hf7yat00abcdefghjkmnpqr0";
  state.manifest.session = "golden";
  state.manifest.pinned = true;
  state.manifest.expires = absl::FromUnixNanos(1'900'000'000'123'456'789);
  return state;
}

TEST(StateExport, ComesBackFromPiecesOfAnySize) {
  const SavedState state = SampleState(SampleId(1), 1);
  const std::string file = ExportFile(state);
  for (size_t piece_bytes : {size_t{1}, size_t{7}, size_t{64}, size_t{1000}, file.size()}) {
    StateImporter importer({});
    for (size_t offset = 0; offset < file.size(); offset += piece_bytes) {
      ASSERT_TRUE(importer.Push(std::string_view(file).substr(offset, piece_bytes)).ok());
    }
    const absl::StatusOr<SavedState> found = importer.Finish();
    ASSERT_TRUE(found.ok()) << found.status();
    ExpectSameState(*found, state);
  }
}

TEST(StateExport, PiecesHaveTheirBoundAndTheSizeIsKnown) {
  SavedState state;
  state.manifest = SampleManifest(SampleId(1), 1);
  constexpr uint64_t kSlotBytes = (3 << 20) + 64;  // four chunks, the last a small one
  state.manifest.layout = {1,
                           kSlotBytes,
                           {{"layers.0.ssm",
                             kernels::DType::kF32,
                             {static_cast<int64_t>(kSlotBytes / 4)},
                             0,
                             kSlotBytes}}};
  state.slot = SampleSlot(state.manifest.layout, 1);
  const SavedState expected = CopyOf(state);
  StateExporter exporter(std::move(state));
  StateImporter importer({});
  uint64_t num_bytes = 0;
  int num_pieces = 0;
  for (std::string piece = exporter.NextPiece(); !piece.empty(); piece = exporter.NextPiece()) {
    EXPECT_LE(piece.size(), kMaxExportPieceBytes);
    num_bytes += piece.size();
    ++num_pieces;
    ASSERT_TRUE(importer.Push(piece).ok());
  }
  EXPECT_EQ(num_bytes, exporter.file_bytes());
  EXPECT_EQ(num_pieces, 4);
  EXPECT_EQ(exporter.NextPiece(), "");
  const absl::StatusOr<SavedState> found = importer.Finish();
  ASSERT_TRUE(found.ok()) << found.status();
  ExpectSameState(*found, expected);
}

// The numbers of the worked example in statestore/README.md.
TEST(StateExport, TheWorkedExampleHolds) {
  const std::string file = ReadFile(kGoldenV1);
  ASSERT_GT(file.size(), kExportHeaderBytes);
  const absl::StatusOr<ExportHeader> header =
      DecodeExportHeader(std::string_view(file).substr(0, kExportHeaderBytes));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->slot_bytes, 1152u);
  EXPECT_EQ(header->chunk_bytes, 1u << 20);
  EXPECT_EQ(header->num_chunks, 1u);
  EXPECT_EQ(header->file_bytes, file.size());
  EXPECT_EQ(64 + header->manifest_bytes + (32 + 1152) + 8, file.size());
}

TEST(StateExport, TheGoldenFileOfVersion1IsReadForever) {
  const std::string file = ReadFile(kGoldenV1);
  ASSERT_FALSE(file.empty());
  const absl::StatusOr<SavedState> found = ImportFile(file);
  ASSERT_TRUE(found.ok()) << found.status();
  ExpectSameState(*found, GoldenState());
}

TEST(StateExport, TheGoldenFileOfVersion2IsReadForever) {
  SavedState golden = GoldenState();
  golden.manifest.loss = {0.03125, 0.001953125};
  const std::string file = ReadFile(kGoldenV2);
  ASSERT_FALSE(file.empty());
  const absl::StatusOr<SavedState> found = ImportFile(file);
  ASSERT_TRUE(found.ok()) << found.status();
  ExpectSameState(*found, golden);
  EXPECT_EQ(found->manifest.codec, StateCodec::kRaw);
}

TEST(StateExport, TheGoldenFileOfVersion3IsReadForever) {
  SavedState golden = GoldenState();
  golden.manifest.loss = {0.03125, 0.001953125};
  golden.manifest.inherited_loss = {0.0625, 0.00390625};
  golden.manifest.is_snapshot = true;
  golden.manifest.position = 4096;
  golden.manifest.snapshots = {{"st_01hf7yat00abcdefghjkmnpqr0", 1024},
                               {"st_01hf7yat00abcdefghjkmnpqr2", 3072}};
  golden.manifest.prefix_hash = 0x0123456789abcdef;
  if (const char* out = std::getenv("VIVARIUM_WRITE_GOLDEN"); out != nullptr) {
    std::ofstream(out, std::ios::binary) << ExportFile(golden);
  }
  const std::string file = ReadFile(kGoldenV3);
  ASSERT_FALSE(file.empty());
  const absl::StatusOr<SavedState> found = ImportFile(file);
  ASSERT_TRUE(found.ok()) << found.status();
  ExpectSameState(*found, golden);
  // As long as version 3 is what we write.
  EXPECT_EQ(ExportFile(golden), file);
}

TEST(StateImport, EveryCutAndEveryTailIsRefused) {
  const std::string file = ExportFile(SampleState(SampleId(1), 1));
  for (size_t size = 0; size < file.size(); ++size) {
    const absl::Status status = ImportFile(file.substr(0, size)).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << size << ": " << status;
  }
  EXPECT_EQ(ImportFile(file + '\0').status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ImportFile(file + file).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(StateImport, OtherFilesAreNamedAsSuch) {
  const absl::Status status = ImportFile("\x89PNG and so on and on").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not an exported state"));
}

TEST(StateImport, ANewerVersionNamesBoth) {
  std::string file = ExportFile(SampleState(SampleId(1), 1));
  file[8] = 2;
  const absl::Status status = ImportFile(Resigned(file)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("version 2"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("up to 1"));
}

TEST(StateImport, NoNaNNorInfinityNorStrayPaddingComesIn) {
  for (float value :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    SavedState state = SampleState(SampleId(1), 1);
    std::memcpy(state.slot.data() + 64 + 8, &value, sizeof(value));
    const absl::Status status = ImportFile(ExportFile(state)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("layers.0.ssm"));
  }
  SavedState state = SampleState(SampleId(1), 1);
  state.slot.data()[61] = std::byte{1};
  EXPECT_EQ(ImportFile(ExportFile(state)).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(StateImport, TheModelsLayoutAndTheBoundDecide) {
  const std::string file = ExportFile(SampleState(SampleId(1), 1));
  const engine::StateLayout same = SampleLayout();
  engine::StateLayout other = SampleLayout();
  other.parts[1].name = "layers.0.other";
  ImportOptions options;
  options.expected_layout = &same;
  options.max_slot_bytes = same.slot_bytes;
  EXPECT_TRUE(ImportFile(file, options).ok());
  options.expected_layout = &other;
  EXPECT_EQ(ImportFile(file, options).status().code(), absl::StatusCode::kFailedPrecondition);
  options.max_slot_bytes = same.slot_bytes - 1;
  EXPECT_EQ(ImportFile(file, options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(StateImport, AnErrorStays) {
  StateImporter importer({});
  const absl::Status first = importer.Push(std::string(100, 'x'));
  EXPECT_FALSE(first.ok());
  EXPECT_EQ(importer.Push(ExportFile(SampleState(SampleId(1), 1))), first);
  EXPECT_EQ(importer.Finish().status(), first);
}

}  // namespace
}  // namespace vivarium::statestore
