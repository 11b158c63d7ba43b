// The lines that kill_writer prints and kill_test reads, one operation each:
//   "+ <operation>" before it is begun, "= <operation>" once the store has acknowledged it.
// Operations:
//   "save NUMBER PARENT SESSION"  a new state, PARENT 0 = none (else a fork); SESSION "-" = no move
//   "delete NUMBER"
//   "move NUMBER SESSION"         a session's head goes to a state that is there
//   "checkpoint NUMBER"           a copy, CheckpointDirectory(directory, NUMBER)
//   "backup NUMBER"               one more in the set BackupSetDirectory(directory)
//   "ready"                       the store is open
#pragma once

#include <cstdint>
#include <string>

#include "statestore/rocksdb_store.h"
#include "tests/statestore/state_samples.h"

namespace vivarium::statestore {

// Small buffers: flushes, log switches and compactions happen within a round. States of
// every kind.
inline RocksDbOptions KillOptions() {
  RocksDbOptions options;
  options.chunk_bytes = kMixedChunkBytes;
  options.disk_reserve_bytes = 0;
  options.write_buffer_bytes = 64 << 10;
  options.min_file_bytes = kMixedFileBytes;
  return options;
}

inline std::string CheckpointDirectory(const std::string& directory, uint64_t number) {
  return directory + ".checkpoint" + std::to_string(number);
}
inline std::string BackupSetDirectory(const std::string& directory) {
  return directory + ".backups";
}

struct KillOperation {
  std::string kind;
  uint64_t number = 0;
  uint64_t parent = 0;
  std::string session;
};

}  // namespace vivarium::statestore
