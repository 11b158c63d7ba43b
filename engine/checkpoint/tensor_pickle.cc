#include "engine/checkpoint/tensor_pickle.h"

#include <bit>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/malformed.h"
#include "engine/checkpoint/tensor_table.h"

namespace vivarium::engine {
namespace {

// Values refer to each other by index into one arena, so that nothing here recurses.
using Ref = uint32_t;

struct None {};
struct Global {  // one of the allowed names: "module name"
  std::string name;
};
struct Tuple {
  std::vector<Ref> items;
};
struct Dict {
  std::vector<std::pair<Ref, Ref>> items;
};
struct Storage {
  std::string type;
  std::string key;
  int64_t count;
};
using Value =
    std::variant<None, bool, int64_t, std::string, Global, Tuple, Dict, Storage, PickledTensor>;

constexpr std::string_view kOrderedDict = "collections OrderedDict";
constexpr std::string_view kRebuildTensor = "torch._utils _rebuild_tensor_v2";
constexpr std::string_view kRebuildParameter = "torch._utils _rebuild_parameter";
constexpr std::string_view kStorageTypes[] = {
    "torch FloatStorage", "torch HalfStorage", "torch BFloat16Storage", "torch DoubleStorage",
    "torch LongStorage",  "torch IntStorage",  "torch ShortStorage",    "torch CharStorage",
    "torch ByteStorage",  "torch BoolStorage"};

bool IsStorageType(std::string_view name) {
  for (const std::string_view type : kStorageTypes) {
    if (type == name) return true;
  }
  return false;
}

bool IsAllowed(std::string_view name) {
  return name == kOrderedDict || name == kRebuildTensor || name == kRebuildParameter ||
         IsStorageType(name);
}

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const std::string& file, uint64_t base_offset)
      : bytes_(bytes), file_(file), base_offset_(base_offset) {}

  absl::StatusOr<std::map<std::string, PickledTensor>> Run();

 private:
  // Each takes what its opcode needs and reports a malformed pickle in status_.
  void Step(uint8_t opcode);
  bool StepConstant(uint8_t opcode);
  bool StepMemo(uint8_t opcode);
  bool StepContainer(uint8_t opcode);
  void StepGlobal(bool from_stack);
  void StepPersistentId();
  void StepReduce();
  void StepBuild();
  void StepSetItems(size_t num_refs);
  void RebuildTensor(const Tuple& args);

  void Fail(const std::string& expected, const std::string& found) {
    if (status_.ok()) {
      status_ = MalformedFile(file_, "pickle", base_offset_ + opcode_offset_, expected, found);
    }
  }
  std::optional<uint64_t> Number(size_t count);     // little-endian
  std::optional<std::string> Text(uint64_t count);  // the next `count` bytes
  std::optional<std::string> Line();                // to the next newline
  void Push(Value value);
  void PushRef(Ref ref) { stack_.push_back(ref); }
  std::optional<Ref> Pop();
  std::optional<std::vector<Ref>> PopToMark();
  template <typename T>
  const T* Get(Ref ref) const {
    return std::get_if<T>(&values_[ref]);
  }
  // Whole numbers of the tuple at `ref`, each >= 0.
  std::optional<std::vector<int64_t>> Extents(Ref ref) const;

  const std::span<const std::byte> bytes_;
  const std::string& file_;
  const uint64_t base_offset_;
  size_t position_ = 0;
  size_t opcode_offset_ = 0;
  bool is_stopped_ = false;
  absl::Status status_;
  std::vector<Value> values_;
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;  // heights of stack_
  std::unordered_map<uint64_t, Ref> memo_;
};

std::optional<uint64_t> Machine::Number(size_t count) {
  if (bytes_.size() - position_ < count) {
    Fail(absl::StrCat(count, " more bytes"), absl::StrCat(bytes_.size() - position_));
    return std::nullopt;
  }
  uint64_t value = 0;
  for (size_t i = 0; i < count; ++i) {
    value |= std::to_integer<uint64_t>(bytes_[position_ + i]) << (8 * i);
  }
  position_ += count;
  return value;
}

std::optional<std::string> Machine::Text(uint64_t count) {
  if (bytes_.size() - position_ < count) {
    Fail(absl::StrCat(count, " more bytes"), absl::StrCat(bytes_.size() - position_));
    return std::nullopt;
  }
  std::string text(reinterpret_cast<const char*>(bytes_.data()) + position_, count);
  position_ += count;
  return text;
}

std::optional<std::string> Machine::Line() {
  constexpr size_t kMaxLineBytes = 256;
  for (size_t size = 0; size <= kMaxLineBytes && position_ + size < bytes_.size(); ++size) {
    if (bytes_[position_ + size] != std::byte{'\n'}) continue;
    std::optional<std::string> line = Text(size);
    ++position_;
    return line;
  }
  Fail(absl::StrCat("a line of at most ", kMaxLineBytes, " bytes"), "none");
  return std::nullopt;
}

void Machine::Push(Value value) {
  if (values_.size() >= kMaxPickleValues) {
    Fail(absl::StrCat("at most ", kMaxPickleValues, " values"), "more");
    return;
  }
  values_.push_back(std::move(value));
  stack_.push_back(static_cast<Ref>(values_.size() - 1));
}

std::optional<Ref> Machine::Pop() {
  if (stack_.empty() || (!marks_.empty() && stack_.size() <= marks_.back())) {
    Fail("a value on the stack", "none");
    return std::nullopt;
  }
  const Ref ref = stack_.back();
  stack_.pop_back();
  return ref;
}

std::optional<std::vector<Ref>> Machine::PopToMark() {
  if (marks_.empty()) {
    Fail("a mark on the stack", "none");
    return std::nullopt;
  }
  std::vector<Ref> refs(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()), stack_.end());
  stack_.resize(marks_.back());
  marks_.pop_back();
  return refs;
}

std::optional<std::vector<int64_t>> Machine::Extents(Ref ref) const {
  const Tuple* tuple = Get<Tuple>(ref);
  if (tuple == nullptr) return std::nullopt;
  std::vector<int64_t> extents;
  for (const Ref item : tuple->items) {
    const int64_t* extent = Get<int64_t>(item);
    if (extent == nullptr || *extent < 0) return std::nullopt;
    extents.push_back(*extent);
  }
  return extents;
}

// Opcodes that push a constant.
bool Machine::StepConstant(uint8_t opcode) {
  switch (opcode) {
    case 'N':
      Push(None{});
      return true;
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
      Push(opcode == 0x88);
      return true;
    case 'J':  // BININT: signed
      if (auto number = Number(4)) Push(int64_t{static_cast<int32_t>(*number)});
      return true;
    case 'K':  // BININT1
    case 'M':  // BININT2
      if (auto number = Number(opcode == 'K' ? 1 : 2)) Push(static_cast<int64_t>(*number));
      return true;
    case 0x8a: {  // LONG1: length, then two's complement
      const std::optional<uint64_t> size = Number(1);
      if (size && *size > 8) Fail("a LONG1 of at most 8 bytes", absl::StrCat(*size));
      const std::optional<uint64_t> number = status_.ok() ? Number(*size) : std::nullopt;
      if (!number) return true;
      const int shift = static_cast<int>(64 - 8 * *size);
      Push(shift == 64 ? int64_t{0} : static_cast<int64_t>(*number << shift) >> shift);
      return true;
    }
    case 'X':   // BINUNICODE
    case 0x8c:  // SHORT_BINUNICODE
      if (auto size = Number(opcode == 'X' ? 4 : 1)) {
        if (auto text = Text(*size)) Push(*std::move(text));
      }
      return true;
    default:
      return false;
  }
}

bool Machine::StepMemo(uint8_t opcode) {
  switch (opcode) {
    case 'q':     // BINPUT
    case 'r':     // LONG_BINPUT
    case 0x94: {  // MEMOIZE
      const std::optional<uint64_t> index =
          opcode == 0x94 ? std::optional<uint64_t>(memo_.size()) : Number(opcode == 'q' ? 1 : 4);
      if (!index) return true;
      if (stack_.empty()) {
        Fail("a value on the stack", "none");
      } else if (memo_.size() >= kMaxPickleValues) {
        Fail(absl::StrCat("at most ", kMaxPickleValues, " remembered values"), "more");
      } else {
        memo_[*index] = stack_.back();
      }
      return true;
    }
    case 'h':    // BINGET
    case 'j': {  // LONG_BINGET
      const std::optional<uint64_t> index = Number(opcode == 'h' ? 1 : 4);
      if (!index) return true;
      const auto entry = memo_.find(*index);
      if (entry == memo_.end()) {
        Fail("a remembered value", absl::StrCat("none under ", *index));
      } else {
        PushRef(entry->second);
      }
      return true;
    }
    default:
      return false;
  }
}

bool Machine::StepContainer(uint8_t opcode) {
  switch (opcode) {
    case '(':
      if (marks_.size() >= kMaxPickleMarks) {
        Fail(absl::StrCat("at most ", kMaxPickleMarks, " open marks"), "more");
      } else {
        marks_.push_back(stack_.size());
      }
      return true;
    case ')':  // EMPTY_TUPLE
      Push(Tuple{});
      return true;
    case '}':  // EMPTY_DICT
      Push(Dict{});
      return true;
    case 't':  // TUPLE
      if (auto items = PopToMark()) Push(Tuple{*std::move(items)});
      return true;
    case 0x85:    // TUPLE1
    case 0x86:    // TUPLE2
    case 0x87: {  // TUPLE3
      std::vector<Ref> items(opcode - 0x84u);
      for (size_t i = items.size(); i > 0; --i) {
        const std::optional<Ref> item = Pop();
        if (!item) return true;
        items[i - 1] = *item;
      }
      Push(Tuple{std::move(items)});
      return true;
    }
    case 's':  // SETITEM
      StepSetItems(2);
      return true;
    case 'u':  // SETITEMS
      if (marks_.empty()) {
        Fail("a mark on the stack", "none");
      } else {
        const size_t count = stack_.size() - marks_.back();
        marks_.pop_back();
        StepSetItems(count);
      }
      return true;
    default:
      return false;
  }
}

void Machine::StepSetItems(size_t num_refs) {
  const size_t floor = marks_.empty() ? 0 : marks_.back();
  if (num_refs % 2 != 0 || stack_.size() - floor < num_refs + 1) {
    Fail("a dictionary, keys and values on the stack", "another number of values");
    return;
  }
  const size_t begin = stack_.size() - num_refs;
  Dict* dict = std::get_if<Dict>(&values_[stack_[begin - 1]]);
  if (dict == nullptr) {
    Fail("a dictionary", "another value");
    return;
  }
  for (size_t i = begin; i < stack_.size(); i += 2) {
    dict->items.emplace_back(stack_[i], stack_[i + 1]);
  }
  stack_.resize(begin);
}

void Machine::StepGlobal(bool from_stack) {
  std::string name;
  if (from_stack) {  // STACK_GLOBAL
    const std::optional<Ref> attribute = Pop();
    const std::optional<Ref> module = attribute ? Pop() : std::nullopt;
    if (!module) return;
    const std::string* parts[] = {Get<std::string>(*module), Get<std::string>(*attribute)};
    if (parts[0] == nullptr || parts[1] == nullptr) {
      Fail("the name of a global", "another value");
      return;
    }
    name = absl::StrCat(*parts[0], " ", *parts[1]);
  } else {  // GLOBAL: two lines
    const std::optional<std::string> module = Line();
    const std::optional<std::string> attribute = module ? Line() : std::nullopt;
    if (!attribute) return;
    name = absl::StrCat(*module, " ", *attribute);
  }
  if (!IsAllowed(name)) {
    Fail("only what builds tensors (OrderedDict, _rebuild_tensor_v2, torch storages)",
         absl::StrCat("a use of ", Quoted(name), ", which is refused"));
    return;
  }
  Push(Global{std::move(name)});
}

// ("storage", storage type, key, device, number of elements)
void Machine::StepPersistentId() {
  const std::optional<Ref> ref = Pop();
  if (!ref) return;
  const Tuple* tuple = Get<Tuple>(*ref);
  if (tuple != nullptr && tuple->items.size() == 5) {
    const std::string* tag = Get<std::string>(tuple->items[0]);
    const Global* type = Get<Global>(tuple->items[1]);
    const std::string* key = Get<std::string>(tuple->items[2]);
    const int64_t* count = Get<int64_t>(tuple->items[4]);
    if (tag != nullptr && *tag == "storage" && type != nullptr && IsStorageType(type->name) &&
        key != nullptr && count != nullptr && *count >= 0) {
      Push(Storage{type->name.substr(type->name.find(' ') + 1), *key, *count});
      return;
    }
  }
  Fail("a persistent id ('storage', type, key, device, count)", "another value");
}

// _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks[, metadata])
void Machine::RebuildTensor(const Tuple& args) {
  if (args.items.size() == 6 || args.items.size() == 7) {
    const Storage* storage = Get<Storage>(args.items[0]);
    const int64_t* offset = Get<int64_t>(args.items[1]);
    const std::optional<std::vector<int64_t>> shape = Extents(args.items[2]);
    const std::optional<std::vector<int64_t>> strides = Extents(args.items[3]);
    if (storage != nullptr && offset != nullptr && *offset >= 0 && shape && strides &&
        shape->size() <= kMaxTensorRank && shape->size() == strides->size()) {
      Push(PickledTensor{storage->type, storage->key, storage->count, *offset, *shape, *strides});
      return;
    }
  }
  Fail(absl::StrCat("_rebuild_tensor_v2(storage, offset, size, stride, ...) with at most ",
                    kMaxTensorRank, " dimensions"),
       "other arguments");
}

void Machine::StepReduce() {
  const std::optional<Ref> args_ref = Pop();
  const std::optional<Ref> callable_ref = args_ref ? Pop() : std::nullopt;
  if (!callable_ref) return;
  const Tuple* args = Get<Tuple>(*args_ref);
  const Global* callable = Get<Global>(*callable_ref);
  if (args == nullptr || callable == nullptr) {
    Fail("a call of an allowed global with a tuple", "other values");
  } else if (callable->name == kOrderedDict && args->items.empty()) {
    Push(Dict{});
  } else if (callable->name == kRebuildTensor) {
    RebuildTensor(Tuple(*args));
  } else if (callable->name == kRebuildParameter && !args->items.empty() &&
             Get<PickledTensor>(args->items[0]) != nullptr) {
    PushRef(args->items[0]);
  } else {
    Fail("a call that builds a tensor or an empty OrderedDict",
         absl::StrCat("a call of ", Quoted(callable->name)));
  }
}

// torch gives the state dict an attribute `_metadata`: nothing that we need.
void Machine::StepBuild() {
  const std::optional<Ref> state = Pop();
  if (!state) return;
  if (stack_.empty() || Get<Dict>(stack_.back()) == nullptr || Get<Dict>(*state) == nullptr) {
    Fail("attributes of a dictionary", "other values");
  }
}

void Machine::Step(uint8_t opcode) {
  if (StepConstant(opcode) || StepMemo(opcode) || StepContainer(opcode)) return;
  switch (opcode) {
    case 0x80: {  // PROTO
      const std::optional<uint64_t> protocol = Number(1);
      if (protocol && (*protocol < 2 || *protocol > 5)) {
        Fail("pickle protocol 2 to 5", absl::StrCat(*protocol));
      }
      return;
    }
    case 0x95:  // FRAME: a hint for readers of streams
      Number(8);
      return;
    case 'c':
      return StepGlobal(false);
    case 0x93:
      return StepGlobal(true);
    case 'Q':
      return StepPersistentId();
    case 'R':
      return StepReduce();
    case 'b':
      return StepBuild();
    case '.':
      is_stopped_ = true;
      return;
    default:
      Fail("an opcode that builds tensors",
           absl::StrCat("opcode 0x", absl::Hex(opcode, absl::kZeroPad2), ", which is refused"));
  }
}

absl::StatusOr<std::map<std::string, PickledTensor>> Machine::Run() {
  while (!is_stopped_ && status_.ok()) {
    opcode_offset_ = position_;
    if (const std::optional<uint64_t> opcode = Number(1)) Step(static_cast<uint8_t>(*opcode));
  }
  if (!status_.ok()) return status_;
  const Dict* root = stack_.size() == 1 && marks_.empty() ? Get<Dict>(stack_[0]) : nullptr;
  if (root == nullptr) {
    Fail("one dictionary of tensors as the result", "another value");
    return status_;
  }
  std::map<std::string, PickledTensor> tensors;
  for (const auto& [key, value] : root->items) {
    const std::string* name = Get<std::string>(key);
    const PickledTensor* tensor = Get<PickledTensor>(value);
    if (name == nullptr || tensor == nullptr) {
      Fail("a dictionary of names and tensors",
           name == nullptr ? "a key that is no string"
                           : absl::StrCat("a value of ", Quoted(*name), " that is no tensor"));
      return status_;
    }
    if (!tensors.emplace(*name, *tensor).second) {
      Fail("each tensor once", absl::StrCat(Quoted(*name), " twice"));
      return status_;
    }
  }
  return tensors;
}

}  // namespace

absl::StatusOr<std::map<std::string, PickledTensor>> ReadTensorPickle(
    std::span<const std::byte> bytes, const std::string& file, uint64_t base_offset) {
  if (bytes.size() > kMaxPickleBytes) {
    return MalformedFile(file, "pickle", base_offset,
                         absl::StrCat("at most ", kMaxPickleBytes, " bytes"),
                         absl::StrCat(bytes.size()));
  }
  return Machine(bytes, file, base_offset).Run();
}

}  // namespace vivarium::engine
