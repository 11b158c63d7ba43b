#include "engine/checkpoint/zip_archive.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/malformed.h"

namespace vivarium::engine {
namespace {

constexpr uint64_t kEndBytes = 22;
constexpr uint64_t kEntryBytes = 46;
constexpr uint64_t kLocalBytes = 30;
constexpr uint64_t kZip64LocatorBytes = 20;
constexpr uint64_t kZip64EndBytes = 56;
constexpr uint64_t kMaxCommentBytes = 0xFFFF;
constexpr uint64_t kFull16 = 0xFFFF;  // "see the zip64 record"
constexpr uint64_t kFull32 = 0xFFFFFFFF;
constexpr uint16_t kZip64ExtraTag = 1;
constexpr uint64_t kEncryptedFlag = 1;

// Little-endian reads that never leave the file.
class Bytes {
 public:
  explicit Bytes(std::span<const std::byte> bytes) : bytes_(bytes) {}

  uint64_t size() const { return bytes_.size(); }
  bool Holds(uint64_t offset, uint64_t count) const {
    return offset <= bytes_.size() && count <= bytes_.size() - offset;
  }
  // The caller has checked Holds.
  uint64_t Number(uint64_t offset, uint64_t count) const {
    uint64_t value = 0;
    for (uint64_t i = 0; i < count; ++i) {
      value |= std::to_integer<uint64_t>(bytes_[offset + i]) << (8 * i);
    }
    return value;
  }
  uint64_t U16(uint64_t offset) const { return Number(offset, 2); }
  uint64_t U32(uint64_t offset) const { return Number(offset, 4); }
  uint64_t U64(uint64_t offset) const { return Number(offset, 8); }
  bool HasSignature(uint64_t offset, uint32_t signature) const {
    return Holds(offset, 4) && U32(offset) == signature;
  }
  std::span<const std::byte> Sub(uint64_t offset, uint64_t count) const {
    return bytes_.subspan(offset, count);
  }

 private:
  const std::span<const std::byte> bytes_;
};

struct Directory {
  uint64_t num_members;
  uint64_t size_bytes;
  uint64_t offset;
};

struct Member {
  std::string name;
  uint64_t flags;
  uint64_t method;
  uint64_t stored_bytes;
  uint64_t plain_bytes;
  uint64_t local_offset;
  uint64_t entry_bytes;  // of the directory
};

class ZipReader {
 public:
  ZipReader(std::span<const std::byte> bytes, const std::string& file)
      : bytes_(bytes), file_(file) {}

  absl::StatusOr<ZipMembers> Read() const;

 private:
  absl::StatusOr<uint64_t> FindEnd() const;
  absl::StatusOr<Directory> ReadDirectory() const;
  absl::StatusOr<Directory> ReadZip64Directory(uint64_t end_offset) const;
  absl::StatusOr<Member> ReadMember(uint64_t offset, uint64_t limit) const;
  absl::Status ReadZip64Extra(uint64_t offset, uint64_t count, Member* member) const;
  absl::StatusOr<std::span<const std::byte>> MemberData(const Member& member) const;

  const Bytes bytes_;
  const std::string& file_;
};

// The end record lies at the end of the file, before a comment that reaches to the end.
absl::StatusOr<uint64_t> ZipReader::FindEnd() const {
  for (uint64_t back = kEndBytes; back <= std::min(bytes_.size(), kEndBytes + kMaxCommentBytes);
       ++back) {
    const uint64_t offset = bytes_.size() - back;
    if (bytes_.HasSignature(offset, 0x06054b50) && bytes_.U16(offset + 20) == back - kEndBytes) {
      return offset;
    }
  }
  return MalformedFile(file_, "end of the zip archive", bytes_.size(),
                       "an end-of-central-directory record",
                       "none (torch.save's old format and truncated files have none)");
}

absl::StatusOr<Directory> ZipReader::ReadDirectory() const {
  absl::StatusOr<uint64_t> end = FindEnd();
  if (!end.ok()) return end.status();
  Directory directory{bytes_.U16(*end + 10), bytes_.U32(*end + 12), bytes_.U32(*end + 16)};
  if (bytes_.U16(*end + 4) != 0 || bytes_.U16(*end + 6) != 0) {
    return MalformedFile(file_, "disk number of the zip archive", *end + 4, "0", "another");
  }
  if (directory.num_members == kFull16 || directory.size_bytes == kFull32 ||
      directory.offset == kFull32) {
    absl::StatusOr<Directory> zip64 = ReadZip64Directory(*end);
    if (!zip64.ok()) return zip64.status();
    directory = *zip64;
  }
  if (!bytes_.Holds(directory.offset, directory.size_bytes)) {
    return MalformedFile(file_, "zip directory", *end + 12,
                         absl::StrCat("it inside the file of ", bytes_.size(), " bytes"),
                         absl::StrCat(directory.size_bytes, " bytes at ", directory.offset));
  }
  if (directory.num_members > std::min(kMaxZipMembers, directory.size_bytes / kEntryBytes)) {
    return MalformedFile(
        file_, "number of members in the zip directory", *end + 10,
        absl::StrCat("at most ", std::min(kMaxZipMembers, directory.size_bytes / kEntryBytes)),
        absl::StrCat(directory.num_members));
  }
  return directory;
}

absl::StatusOr<Directory> ZipReader::ReadZip64Directory(uint64_t end_offset) const {
  if (end_offset < kZip64LocatorBytes ||
      !bytes_.HasSignature(end_offset - kZip64LocatorBytes, 0x07064b50)) {
    return MalformedFile(file_, "zip64 locator", end_offset, "one before the end record", "none");
  }
  const uint64_t offset = bytes_.U64(end_offset - kZip64LocatorBytes + 8);
  if (!bytes_.Holds(offset, kZip64EndBytes) || !bytes_.HasSignature(offset, 0x06064b50)) {
    return MalformedFile(file_, "zip64 end record", offset, "one there", "none");
  }
  return Directory{bytes_.U64(offset + 32), bytes_.U64(offset + 40), bytes_.U64(offset + 48)};
}

// The extra field holds, in this order, those of the values that are full in the entry.
absl::Status ZipReader::ReadZip64Extra(uint64_t offset, uint64_t count, Member* member) const {
  const uint64_t end = offset + count;
  while (end - offset >= 4) {
    const uint64_t tag = bytes_.U16(offset);
    uint64_t size = bytes_.U16(offset + 2);
    offset += 4;
    if (size > end - offset) break;
    if (tag != kZip64ExtraTag) {
      offset += size;
      continue;
    }
    for (uint64_t* value : {&member->plain_bytes, &member->stored_bytes, &member->local_offset}) {
      if (*value != kFull32) continue;
      if (size < 8) {
        return MalformedFile(file_, "zip64 extra field", offset, "8 more bytes",
                             absl::StrCat(size));
      }
      *value = bytes_.U64(offset);
      offset += 8;
      size -= 8;
    }
    break;
  }
  return absl::OkStatus();
}

// `limit` is the directory's end; offset <= limit, inside the file.
absl::StatusOr<Member> ZipReader::ReadMember(uint64_t offset, uint64_t limit) const {
  if (limit - offset < kEntryBytes || !bytes_.HasSignature(offset, 0x02014b50)) {
    return MalformedFile(file_, "zip directory entry", offset, "one there", "none");
  }
  const uint64_t name_bytes = bytes_.U16(offset + 28);
  const uint64_t extra_bytes = bytes_.U16(offset + 30);
  const uint64_t comment_bytes = bytes_.U16(offset + 32);
  const uint64_t entry_bytes = kEntryBytes + name_bytes + extra_bytes + comment_bytes;
  if (entry_bytes > limit - offset) {
    return MalformedFile(file_, "zip directory entry", offset,
                         absl::StrCat("at most ", limit - offset, " bytes"),
                         absl::StrCat(entry_bytes));
  }
  Member member{};
  const std::span<const std::byte> name = bytes_.Sub(offset + kEntryBytes, name_bytes);
  member.name.assign(reinterpret_cast<const char*>(name.data()), name.size());
  member.flags = bytes_.U16(offset + 8);
  member.method = bytes_.U16(offset + 10);
  member.stored_bytes = bytes_.U32(offset + 20);
  member.plain_bytes = bytes_.U32(offset + 24);
  member.local_offset = bytes_.U32(offset + 42);
  member.entry_bytes = entry_bytes;
  absl::Status status = ReadZip64Extra(offset + kEntryBytes + name_bytes, extra_bytes, &member);
  if (!status.ok()) return status;
  return member;
}

absl::StatusOr<std::span<const std::byte>> ZipReader::MemberData(const Member& member) const {
  const std::string what = absl::StrCat("zip member ", Quoted(member.name));
  const uint64_t offset = member.local_offset;
  if (member.method != 0 || (member.flags & kEncryptedFlag) != 0 ||
      member.stored_bytes != member.plain_bytes) {
    return MalformedFile(file_, what, offset, "it stored uncompressed and unencrypted",
                         absl::StrCat("method ", member.method, ", flags ", member.flags, ", ",
                                      member.stored_bytes, " bytes for ", member.plain_bytes));
  }
  if (!bytes_.Holds(offset, kLocalBytes) || !bytes_.HasSignature(offset, 0x04034b50)) {
    return MalformedFile(file_, what, offset, "a local header there", "none");
  }
  // The local header's name and extra field (torch pads to 64 bytes there) have their own lengths.
  const uint64_t data_offset =
      offset + kLocalBytes + bytes_.U16(offset + 26) + bytes_.U16(offset + 28);
  if (!bytes_.Holds(data_offset, member.plain_bytes)) {
    return MalformedFile(file_, what, data_offset,
                         absl::StrCat("its ", member.plain_bytes, " bytes inside the file"),
                         absl::StrCat("a file of ", bytes_.size(), " bytes"));
  }
  return bytes_.Sub(data_offset, member.plain_bytes);
}

absl::StatusOr<ZipMembers> ZipReader::Read() const {
  absl::StatusOr<Directory> directory = ReadDirectory();
  if (!directory.ok()) return directory.status();
  ZipMembers members;
  uint64_t offset = directory->offset;
  const uint64_t limit = directory->offset + directory->size_bytes;
  for (uint64_t i = 0; i < directory->num_members; ++i) {
    absl::StatusOr<Member> member = ReadMember(offset, limit);
    if (!member.ok()) return member.status();
    absl::StatusOr<std::span<const std::byte>> data = MemberData(*member);
    if (!data.ok()) return data.status();
    if (!members.emplace(member->name, *data).second) {
      return MalformedFile(file_, absl::StrCat("zip member ", Quoted(member->name)), offset,
                           "each name once", "it twice");
    }
    offset += member->entry_bytes;
  }
  return members;
}

}  // namespace

absl::StatusOr<ZipMembers> ReadStoredZip(std::span<const std::byte> bytes,
                                         const std::string& file) {
  return ZipReader(bytes, file).Read();
}

}  // namespace vivarium::engine
