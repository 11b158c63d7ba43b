// StagedBackend: runs each op on another backend with operands that lie in host memory, so that the
// op tests, which fill plain arrays, run on a real device.
//
// Before an op every operand's whole extent goes to the device, between guard zones; after it, all
// of it comes back, and the guard zones are looked at. So a test sees what the op wrote, what it
// left alone between rows and slots, and, as a failure, what it wrote outside.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace vivarium::kernels {

// Owns `device`. Everything but the ops' operands (Allocate, Pack ...) is `device`'s own.
std::unique_ptr<Backend> MakeStagedBackend(std::unique_ptr<Backend> device);

}  // namespace vivarium::kernels
