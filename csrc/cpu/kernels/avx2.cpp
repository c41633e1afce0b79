// The kernels for AVX2 with FMA: 8 floats or 4 doubles, a tile of 3 rows x 4 vectors in 12 of 16
// registers.
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2,fma")
#define FASTLSTM_LANES_AVX2
#include "instantiate.inl"

namespace fastlstm {
namespace cpu {
const Kernels<float>* avx2_f32() { return kernels<F32x8>(); }
const Kernels<double>* avx2_f64() { return kernels<F64x4>(); }
}  // namespace cpu
}  // namespace fastlstm
#else
#include "kernels.h"
namespace fastlstm {
namespace cpu {
const Kernels<float>* avx2_f32() { return nullptr; }
const Kernels<double>* avx2_f64() { return nullptr; }
}  // namespace cpu
}  // namespace fastlstm
#endif
