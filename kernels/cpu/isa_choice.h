// Which instruction-set path serves this processor.
#pragma once

#include <string>
#include <string_view>

#include "kernels/cpu/op_table.h"

namespace vivarium::kernels {

// The path named `isa` ("" = the best there is here). Null with a sentence in *error when the name
// is unknown or the processor lacks it.
const OpTable* ChooseIsa(std::string_view isa, std::string* error);

}  // namespace vivarium::kernels
