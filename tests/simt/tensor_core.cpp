// mma: the lanes of a warp meet, and the last to come computes for all.
#include <stdlib.h>

#include <algorithm>
#include <iterator>
#include <numeric>

#include "engine.h"

namespace simt {

namespace {

struct Mma {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  float (*to_float)(uint16_t);
};

// Sums as an A100 makes them, the least exact of the GPUs from sm_80 on, so that tests do not
// flatter: of that many products at a time. The products are exact; they and the sum so far are
// aligned to the largest of them, cut off after kAlignedBits of it, added, and cut off to a float
// (Fasi, Higham, Mikaitis, Pranesh 2021, "Numerical behavior of NVIDIA tensor cores"). An H100
// takes twice as many products at a time, and one bit more.
constexpr int kProducts16Bit = 8, kProductsTf32 = 4;
constexpr int kFloatBits = 24, kAlignedBits = kFloatBits + 1;

// Of a double.
constexpr int kExponentBias = 1023, kFractionBits = 52;

uint64_t magnitude_bits(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits & ~(uint64_t{1} << 63);
}

double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + kExponentBias) << kFractionBits;
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

template <int kProducts>
float add_products(float sum, const double* a, const double* b) {
  // Exact in double, and normal or zero.
  double terms[kProducts + 1] = {sum};
  for (int k = 0; k < kProducts; ++k) terms[k + 1] = a[k] * b[k];
  // As whole numbers, infinity and NaN are the largest.
  uint64_t largest = 0;
  for (const double term : terms) largest = std::max(largest, magnitude_bits(term));
  const int exponent = static_cast<int>(largest >> kFractionBits) - kExponentBias;
  if (largest == 0) return 0;
  if (exponent > kExponentBias) {
    return static_cast<float>(std::accumulate(terms, std::end(terms), 0.0));
  }
  // A conversion to a whole number cuts off.
  const double scale = power_of_two(kAlignedBits - 1 - exponent);
  int32_t total = 0;
  for (const double term : terms) total += static_cast<int32_t>(term * scale);
  if (total == 0) return 0;
  const uint32_t magnitude = static_cast<uint32_t>(std::abs(total));
  const int excess = std::max(0, 32 - __builtin_clz(magnitude) - kFloatBits);
  const double result = (magnitude >> excess << excess) / scale;
  return static_cast<float>(total < 0 ? -result : result);
}

// D[16, 8] += A[16, kDepth] B[kDepth, 8], with A and the columns of B spread out.
template <int kDepth, int kProducts>
void multiply(void* const slots[32], const double (*a)[16], const double (*b_columns)[16]) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float& d = static_cast<Mma*>(slots[lane])->d[i];
      for (int k = 0; k < kDepth; k += kProducts) {
        d = add_products<kProducts>(d, a[row] + k, b_columns[column] + k);
      }
    }
  }
}

void multiply_16bit(void* const slots[32]) {
  double a[16][16], b_columns[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mma = *static_cast<Mma*>(slots[lane]);
    const int g = lane / 4, p = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto value = [&](uint32_t pair) {
        return mma.to_float(static_cast<uint16_t>(pair >> 16 * half));
      };
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * p + half + i / 2 * 8] = value(mma.a[i]);
      for (int i = 0; i < 2; ++i) b_columns[g][2 * p + half + i * 8] = value(mma.b[i]);
    }
  }
  multiply<16, kProducts16Bit>(slots, a, b_columns);
}

float tf32_to_float(uint32_t bits) {
  bits &= 0xffffe000u;  // what tensor cores read of it
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

void multiply_tf32(void* const slots[32]) {
  double a[16][16], b_columns[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mma = *static_cast<Mma*>(slots[lane]);
    const int g = lane / 4, p = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][p + i / 2 * 4] = tf32_to_float(mma.a[i]);
    for (int i = 0; i < 2; ++i) b_columns[g][p + i * 4] = tf32_to_float(mma.b[i]);
  }
  multiply<8, kProductsTf32>(slots, a, b_columns);
}

}  // namespace

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, float (*to_float)(uint16_t)) {
  Mma slot{d, a, b, to_float};
  meet("mma_m16n8k16", &slot, multiply_16bit);
}

void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b) {
  Mma slot{d, a, b, nullptr};
  meet("mma_m16n8k8_tf32", &slot, multiply_tf32);
}

}  // namespace simt
