#include "cli/proto_json.h"

#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/timestamp.pb.h"
#include "google/protobuf/util/time_util.h"

namespace vivarium::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// One value of a field: element `index` when the field is repeated, else the field itself (-1).
class FieldReader {
 private:
  // A member of Reflection for a single field, and its twin for an element of a repeated one.
  // (Stands first because its return type is deduced.)
  template <typename One, typename Repeated>
  auto Get(One one, Repeated repeated, int index) const {
    return index < 0 ? (reflection_.*one)(message_, field_)
                     : (reflection_.*repeated)(message_, field_, index);
  }

 public:
  FieldReader(const Message& message, const FieldDescriptor* field)
      : message_(message), reflection_(*message.GetReflection()), field_(field) {}

  Json Read(int index) const {
    switch (field_->cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32:
        return Get(&Reflection::GetInt32, &Reflection::GetRepeatedInt32, index);
      case FieldDescriptor::CPPTYPE_INT64:
        return Get(&Reflection::GetInt64, &Reflection::GetRepeatedInt64, index);
      case FieldDescriptor::CPPTYPE_UINT32:
        return Get(&Reflection::GetUInt32, &Reflection::GetRepeatedUInt32, index);
      case FieldDescriptor::CPPTYPE_UINT64:
        return Get(&Reflection::GetUInt64, &Reflection::GetRepeatedUInt64, index);
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return Get(&Reflection::GetDouble, &Reflection::GetRepeatedDouble, index);
      case FieldDescriptor::CPPTYPE_FLOAT:
        // A float is exact as a double: a reader that narrows it again gets the same bits.
        return Get(&Reflection::GetFloat, &Reflection::GetRepeatedFloat, index);
      case FieldDescriptor::CPPTYPE_BOOL:
        return Get(&Reflection::GetBool, &Reflection::GetRepeatedBool, index);
      case FieldDescriptor::CPPTYPE_STRING:
        return Get(&Reflection::GetString, &Reflection::GetRepeatedString, index);
      case FieldDescriptor::CPPTYPE_ENUM:
        return absl::AsciiStrToLower(
            Get(&Reflection::GetEnum, &Reflection::GetRepeatedEnum, index)->name());
      case FieldDescriptor::CPPTYPE_MESSAGE:
        return ToJson(index < 0 ? reflection_.GetMessage(message_, field_)
                                : reflection_.GetRepeatedMessage(message_, field_, index));
    }
    return nullptr;
  }

 private:
  const Message& message_;
  const Reflection& reflection_;
  const FieldDescriptor* field_;
};

std::string MapKey(const Json& key) {
  return key.is_string() ? key.get<std::string>() : key.dump();
}

Json FieldToJson(const Message& message, const FieldDescriptor* field) {
  const FieldReader reader(message, field);
  if (!field->is_repeated()) return reader.Read(-1);
  const int size = message.GetReflection()->FieldSize(message, field);
  if (!field->is_map()) {
    Json array = Json::array();
    for (int i = 0; i < size; ++i) array.push_back(reader.Read(i));
    return array;
  }
  Json object = Json::object();
  for (int i = 0; i < size; ++i) {
    const Message& entry = message.GetReflection()->GetRepeatedMessage(message, field, i);
    const auto* type = field->message_type();
    object[MapKey(FieldReader(entry, type->map_key()).Read(-1))] =
        FieldReader(entry, type->map_value()).Read(-1);
  }
  return object;
}

}  // namespace

Json ToJson(const Message& message) {
  using google::protobuf::util::TimeUtil;
  if (const auto* duration = dynamic_cast<const google::protobuf::Duration*>(&message)) {
    return static_cast<double>(TimeUtil::DurationToNanoseconds(*duration)) / 1e9;
  }
  if (const auto* timestamp = dynamic_cast<const google::protobuf::Timestamp*>(&message)) {
    return TimeUtil::ToString(*timestamp);
  }
  Json object = Json::object();
  const auto* descriptor = message.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (field->has_presence() && !message.GetReflection()->HasField(message, field)) continue;
    object[field->name()] = FieldToJson(message, field);
  }
  return object;
}

}  // namespace vivarium::cli
