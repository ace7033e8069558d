#define INSTRUCTIONS avx512
#define REGISTER_BYTES 64
#include "kernel.hpp"

namespace trueoracle {
const Kernel KERNEL_AVX512 = TRUEORACLE_KERNEL("avx512");
}
