#include "cli/app.h"

int main(int argc, char** argv) { return vivarium::cli::RunVivarium(argc, argv); }
