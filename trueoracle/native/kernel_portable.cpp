#define INSTRUCTIONS portable
#define REGISTER_BYTES 16
#include "kernel.hpp"

namespace trueoracle {
const Kernel KERNEL_PORTABLE = TRUEORACLE_KERNEL("portable");
}
