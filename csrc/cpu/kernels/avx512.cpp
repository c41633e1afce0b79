// The kernels for AVX-512: 16 floats or 8 doubles, a tile of 6 rows x 4 vectors in 24 of 32
// registers.
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
// GCC 12 warns of its own _mm512_undefined_ps() (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#define FASTLSTM_LANES_AVX512
#include "instantiate.inl"

namespace fastlstm {
namespace cpu {
const Kernels<float>* avx512_f32() { return kernels<F32x16>(); }
const Kernels<double>* avx512_f64() { return kernels<F64x8>(); }
}  // namespace cpu
}  // namespace fastlstm
#else
#include "kernels.h"
namespace fastlstm {
namespace cpu {
const Kernels<float>* avx512_f32() { return nullptr; }
const Kernels<double>* avx512_f64() { return nullptr; }
}  // namespace cpu
}  // namespace fastlstm
#endif
