#define INSTRUCTIONS avx2
#define REGISTER_BYTES 32
#include "kernel.hpp"

namespace trueoracle {
const Kernel KERNEL_AVX2 = TRUEORACLE_KERNEL("avx2");
}
