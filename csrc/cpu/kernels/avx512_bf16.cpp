// The kernels for AVX-512 with bfloat16 products, for bfloat16 weights.
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")
// GCC 12 warns of its own _mm512_undefined_ps() (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#define FASTLSTM_LANES_AVX512
#define FASTLSTM_LANES_BF16
#include "instantiate.inl"

namespace fastlstm {
namespace cpu {
const Kernels<float>* avx512_bf16() { return kernels<F32x16>(); }
}  // namespace cpu
}  // namespace fastlstm
#else
#include "kernels.h"
namespace fastlstm {
namespace cpu {
const Kernels<float>* avx512_bf16() { return nullptr; }
}  // namespace cpu
}  // namespace fastlstm
#endif
