#include "statestore/record_frame.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "statestore/byte_codec.h"

namespace vivarium::statestore {

std::string Frame(const FrameKind& kind, std::string_view body) {
  std::string bytes;
  bytes.reserve(kFrameHeaderBytes + body.size() + kFrameChecksumBytes);
  bytes.append(kind.magic);
  ByteWriter writer(&bytes);
  writer.Number<uint32_t>(kind.version);
  bytes.append(body);
  writer.Number<uint64_t>(Checksum(bytes));
  return bytes;
}

absl::StatusOr<std::string_view> Unframe(const FrameKind& kind, std::string_view bytes) {
  const std::string name(kind.name);
  if (bytes.size() < kFrameHeaderBytes + kFrameChecksumBytes) {
    return absl::DataLossError(absl::StrCat(name, " of ", bytes.size(), " bytes, expected ",
                                            kFrameHeaderBytes + kFrameChecksumBytes, " or more"));
  }
  const std::string_view framed = bytes.substr(0, bytes.size() - kFrameChecksumBytes);
  const auto expected = ByteReader(bytes.substr(framed.size())).Number<uint64_t>();
  if (const uint64_t found = Checksum(framed); found != expected) {
    return absl::DataLossError(absl::StrFormat("%s of %d bytes: checksum %016x, expected %016x",
                                               name, bytes.size(), found, expected));
  }
  if (framed.substr(0, kind.magic.size()) != kind.magic) {
    return absl::DataLossError(absl::StrCat(name, ": starts with \"",
                                            absl::CHexEscape(std::string(framed.substr(0, 4))),
                                            "\", expected \"", std::string(kind.magic), "\""));
  }
  const auto version = ByteReader(framed.substr(kind.magic.size())).Number<uint32_t>();
  if (version > kind.version) {
    return absl::UnimplementedError(absl::StrCat(name, ": format version ", version,
                                                 ", this program knows up to ", kind.version));
  }
  if (version == 0) return absl::InvalidArgumentError(absl::StrCat(name, ": format version 0"));
  return framed.substr(kFrameHeaderBytes);
}

uint32_t FrameVersion(std::string_view bytes) {
  return ByteReader(bytes.substr(kFrameHeaderBytes - sizeof(uint32_t))).Number<uint32_t>();
}

}  // namespace vivarium::statestore
