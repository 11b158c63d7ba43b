// The lines that kill_writer prints and kill_test reads, one operation each:
//   "+ <operation>" before it is begun, "= <operation>" once the store has acknowledged it.
// Operations: "save NUMBER PARENT SESSION" (PARENT 0 = none; SESSION "-" = no head move),
// "delete NUMBER", "ready".
#pragma once

#include <cstdint>
#include <string>

#include "statestore/rocksdb_store.h"

namespace vivarium::statestore {

// Small buffers: flushes, log switches and compactions happen within a round.
inline RocksDbOptions KillOptions() {
  RocksDbOptions options;
  options.chunk_bytes = 256;
  options.disk_reserve_bytes = 0;
  options.write_buffer_bytes = 64 << 10;
  return options;
}

struct KillOperation {
  std::string kind;
  uint64_t number = 0;
  uint64_t parent = 0;
  std::string session;
};

}  // namespace vivarium::statestore
