// The kernels for any other processor: one lane, what the compiler makes of it.
#include "instantiate.inl"

namespace fastlstm {
namespace cpu {
const Kernels<float>* scalar_f32() { return kernels<Scalar<float>>(); }
const Kernels<double>* scalar_f64() { return kernels<Scalar<double>>(); }
}  // namespace cpu
}  // namespace fastlstm
