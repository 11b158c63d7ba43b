#include "server/state_tier.h"

namespace vivarium::server {

std::string_view StateTierName(StateTier tier) {
  switch (tier) {
    case StateTier::kNone:
      return "none";
    case StateTier::kDevice:
      return "device";
    case StateTier::kHost:
      return "host";
    case StateTier::kDisk:
      return "disk";
  }
  return "unknown";
}

}  // namespace vivarium::server
