#include "cli/state_transfer.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/output_file.h"
#include "cli/proto_json.h"
#include "cli/safetensors.h"
#include "cli/server_command.h"
#include "statestore/state_export.h"

namespace vivarium::cli {
namespace {

constexpr uint64_t kMaxStateBytes = uint64_t{64} << 30;
constexpr size_t kImportPieceBytes = size_t{1} << 20;

statestore::ImportOptions AnySize() {
  statestore::ImportOptions options;
  options.max_slot_bytes = kMaxStateBytes;
  return options;
}

class StatesExportCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("export", "Write a state to a file");
    app->add_option("ID", id_, "The state")->required();
    app->add_option("--out", out_, "The file; it appears when it is whole")
        ->type_name("FILE")
        ->required();
    app->add_option("--format", format_,
                    "vivarium (complete, verified, can be imported) or safetensors (for Python)")
        ->type_name("FORMAT")
        ->check(CLI::IsMember({"vivarium", "safetensors"}))
        ->capture_default_str();
    json_.Declare(app, "what was written");
    connection_.Declare(app);
    return app;
  }

  int RunWith(Client& client) override {
    v1::GetStateRequest get;
    get.set_id(id_);
    v1::State state;
    grpc::Status status = client.Do(client.states(), &v1::States::Stub::GetState, get, &state);
    if (!status.ok()) return client.Fail(status);

    auto file = OutputFile::Create(out_);
    if (!file.ok()) return FailLocally(file.status());
    uint64_t bytes = 0;
    absl::Status written;
    status = Receive(client, state, file->get(), &bytes, &written);
    if (!written.ok()) return FailLocally(written);
    if (!status.ok()) return client.Fail(status);
    if (is_safetensors()) {
      bytes = 0;
      const auto saved = importer_.Finish();
      written = saved.ok() ? WriteSafetensors(*saved, file->get(), &bytes) : saved.status();
      if (!written.ok()) return FailLocally(written);
    }
    if (written = (*file)->Finish(); !written.ok()) return FailLocally(written);
    if (json_.json) {
      PrintJson({{"state_id", id_}, {"file", out_}, {"bytes", bytes}});
    } else {
      PrintLine(absl::StrCat("wrote ", out_, ", ", FormatBytes(bytes)));
    }
    return kExitOk;
  }

 private:
  grpc::Status Receive(Client& client, const v1::State& state, OutputFile* file, uint64_t* bytes,
                       absl::Status* written) {
    v1::ExportStateRequest request;
    request.set_id(id_);
    const auto call = client.NewCall();
    const auto reader = client.states().ExportState(call->context(), request);
    Progress progress("exporting", state.size_bytes());
    v1::ExportStateResponse response;
    while (reader->Read(&response)) {
      *written = is_safetensors() ? importer_.Push(response.data()) : file->Write(response.data());
      if (!written->ok()) {
        call->context()->TryCancel();
        break;
      }
      *bytes += response.data().size();
      progress.Advance(response.data().size());
    }
    return reader->Finish();
  }

  bool is_safetensors() const { return format_ == "safetensors"; }

  std::string id_, out_;
  std::string format_ = "vivarium";
  statestore::StateImporter importer_{AnySize()};  // for safetensors
  JsonFlag json_;
};

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

class StatesImportCommand : public ServerCommand {
 public:
  CLI::App* Declare(CLI::App* parent) override {
    CLI::App* app = parent->add_subcommand("import", "Take in a state from a file, as a new state");
    app->add_option("FILE", file_, "What export wrote")->required();
    app->add_option("--session", session_, "Also make this session, with the state as its head")
        ->type_name("NAME");
    labels_.Declare(app, "Label of the state; may be repeated");
    json_.Declare(app, "the new state's id");
    connection_.Declare(app);
    return app;
  }

  int Prepare() override {
    std::error_code error;
    input_bytes_ = std::filesystem::file_size(file_, error);
    input_.reset(error ? nullptr : std::fopen(file_.c_str(), "rb"));
    if (input_ != nullptr) return kExitOk;
    return Fail(kExitLocalError, absl::StrCat("cannot open ", file_, ": ",
                                              error ? error.message() : std::strerror(errno)));
  }

  int RunWith(Client& client) override {
    v1::State state;
    bool is_read = true;
    const grpc::Status status = Send(client, &state, &is_read);
    if (!is_read) return Fail(kExitLocalError, absl::StrCat("cannot read ", file_));
    if (!status.ok()) return client.Fail(status);
    if (json_.json) {
      PrintJson({{"state_id", state.id()}, {"state", ToJson(state)}});
    } else {
      PrintLine(
          absl::StrCat("imported ", state.id(), ", ", FormatCount(state.position()), " tokens"));
    }
    return kExitOk;
  }

 private:
  grpc::Status Send(Client& client, v1::State* state, bool* is_read) const {
    const auto call = client.NewCall();
    const auto writer = client.states().ImportState(call->context(), state);
    v1::ImportStateRequest request;
    request.mutable_metadata()->set_session(session_);
    labels_.Fill(request.mutable_metadata()->mutable_labels());
    bool is_open = writer->Write(request);
    Progress progress("importing", input_bytes_);
    std::string piece;
    while (is_open) {
      piece.resize(kImportPieceBytes);
      const size_t size = std::fread(piece.data(), 1, piece.size(), input_.get());
      if (size == 0) break;
      piece.resize(size);
      request.set_data(piece);
      is_open = writer->Write(request);
      progress.Advance(size);
    }
    *is_read = std::ferror(input_.get()) == 0;
    if (!*is_read) call->context()->TryCancel();
    writer->WritesDone();
    return writer->Finish();
  }

  std::string file_, session_;
  std::unique_ptr<std::FILE, CloseFile> input_;
  uint64_t input_bytes_ = 0;
  LabelFlags labels_;
  JsonFlag json_;
};

}  // namespace

std::unique_ptr<Command> MakeStatesExportCommand() {
  return std::make_unique<StatesExportCommand>();
}

std::unique_ptr<Command> MakeStatesImportCommand() {
  return std::make_unique<StatesImportCommand>();
}

}  // namespace vivarium::cli
