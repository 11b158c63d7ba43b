// What `vivarium` exits with. Scripts rely on these numbers: they are in `vivarium --help`.
#pragma once

namespace vivarium::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitServerError = 1;    // the server answered with an error
inline constexpr int kExitUsage = 2;          // wrong flags, arguments or config file
inline constexpr int kExitCannotConnect = 3;  // no server there, or the connection broke
inline constexpr int kExitLocalError = 4;   // a file, model, device, store or port on this machine
inline constexpr int kExitDeviceFault = 5;  // `serve`: the device failed; start the server again
inline constexpr int kExitWorse = 6;        // `bench compare`: a figure got worse
inline constexpr int kExitInterrupted = 130;  // Ctrl-C

}  // namespace vivarium::cli
