// mma and ldmatrix: the lanes of a warp meet, and the last to come computes for all.
#include "engine.h"

namespace simt {

namespace {

constexpr unsigned kWarpMask = 0xffffffffu;

struct Mma {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  float (*to_float)(uint16_t);
};

// D[16, 8] += A[16, depth] B[depth, 8], with A and B spread out to floats.
void multiply(void* const slots[32], const float (*a)[16], const float (*b)[8], int depth) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float& d = static_cast<Mma*>(slots[lane])->d[i];
      for (int k = 0; k < depth; ++k) d += a[row][k] * b[k][column];
    }
  }
}

void multiply_16bit(void* const slots[32], unsigned) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mma = *static_cast<Mma*>(slots[lane]);
    const int g = lane / 4, p = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto value = [&](uint32_t pair) {
        return mma.to_float(static_cast<uint16_t>(pair >> 16 * half));
      };
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * p + half + i / 2 * 8] = value(mma.a[i]);
      for (int i = 0; i < 2; ++i) b[2 * p + half + i * 8][g] = value(mma.b[i]);
    }
  }
  multiply(slots, a, b, 16);
}

float tf32_to_float(uint32_t bits) {
  bits &= 0xffffe000u;  // what tensor cores read of it
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

void multiply_tf32(void* const slots[32], unsigned) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mma = *static_cast<Mma*>(slots[lane]);
    const int g = lane / 4, p = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][p + i / 2 * 4] = tf32_to_float(mma.a[i]);
    for (int i = 0; i < 2; ++i) b[p + i * 4][g] = tf32_to_float(mma.b[i]);
  }
  multiply(slots, a, b, 8);
}

struct Ldmatrix {
  uint32_t* r;
  const void* row;
};

template <bool kTrans>
void load_matrices(void* const slots[32], unsigned) {
  uint16_t matrix[4][8][8];
  for (int i = 0; i < 32; ++i)
    memcpy(matrix[i / 8][i % 8], static_cast<Ldmatrix*>(slots[i])->row, 16);
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, p = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const uint32_t low = kTrans ? matrix[m][2 * p][g] : matrix[m][g][2 * p];
      const uint32_t high = kTrans ? matrix[m][2 * p + 1][g] : matrix[m][g][2 * p + 1];
      static_cast<Ldmatrix*>(slots[lane])->r[m] = low | high << 16;
    }
  }
}

}  // namespace

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, float (*to_float)(uint16_t)) {
  Mma slot{d, a, b, to_float};
  meet("mma_m16n8k16", kWarpMask, &slot, multiply_16bit);
}

void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b) {
  Mma slot{d, a, b, nullptr};
  meet("mma_m16n8k8_tf32", kWarpMask, &slot, multiply_tf32);
}

void ldmatrix_x4(uint32_t* r, const void* row, bool trans) {
  check_shared("ldmatrix_x4", row, 16);
  Ldmatrix slot{r, row};
  meet(trans ? "ldmatrix_x4_trans" : "ldmatrix_x4", kWarpMask, &slot,
       trans ? load_matrices<true> : load_matrices<false>);
}

}  // namespace simt
