// Neighbours: other streams on a server, one after the other on each of a few connections.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/grpc_client.h"

namespace vivarium {

// Runs for as long as it lives. The model must have at least 100 token ids.
class Neighbours {
 public:
  Neighbours(const std::string& address, int count) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this, address, i] {
        GrpcClient client(address);
        while (!stop_) {
          v1::GenerateRequest request;
          for (int id = 4; id <= 9 + i; ++id) request.mutable_token_ids()->add_ids(id);
          request.set_max_tokens(20 + 7 * i);
          request.mutable_sampling()->set_seed(i);
          request.mutable_stops()->set_ignore_eos(true);
          EXPECT_TRUE(client.Generate(request).status.ok());
        }
      });
    }
  }
  ~Neighbours() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
  }
  Neighbours(const Neighbours&) = delete;
  Neighbours& operator=(const Neighbours&) = delete;

 private:
  std::atomic<bool> stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace vivarium
