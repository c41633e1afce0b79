// How the kernels of selftest.cu and faults.cu are run from Python: bytes in, bytes out, on the
// emulator or on a GPU.
#pragma once

#include <stdio.h>
#include <string.h>

#include <stdexcept>
#include <string>

#include "cuda/device/device.cuh"

namespace fastlstm {
namespace selftest {

struct Params {
  const void* in_bytes;
  void* out_bytes;    // full of 0xFF
  unsigned* counter;  // [4], zero
  size_t size_of_in;

  template <class T>
  FASTLSTM_HOST_DEVICE const T* in() const {
    return static_cast<const T*>(in_bytes);
  }
  template <class T>
  FASTLSTM_HOST_DEVICE T* out() const {
    return static_cast<T*>(out_bytes);
  }
  template <class T>
  FASTLSTM_HOST_DEVICE int count() const {
    return static_cast<int>(size_of_in / sizeof(T));
  }
};

// The blocks of a cluster are neighbours.
FASTLSTM_DEVICE int cluster_rank() { return static_cast<int>(blockIdx.x) % device::cluster_size(); }

enum class Kind { kNormal, kCooperative, kCluster4 };

struct Test {
  const char* name;
  void (*kernel)(Params);
  dim3 grid, block;
  size_t shared_bytes;
  Kind kind;
};

// ---- what differs between the two machines ----

#ifdef FASTLSTM_SIMT
inline void* allocate(size_t bytes) { return simt::guarded_alloc(bytes); }
inline void release(void* p) { simt::guarded_free(p); }
inline void copy(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }
inline void fill(void* p, int value, size_t bytes) { memset(p, value, bytes); }
inline void set_seed(uint64_t seed) { simt::set_seed(seed); }
#else
inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
inline void* allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes));
  return p;
}
inline void release(void* p) { cudaFree(p); }
// Also reports what went wrong in a kernel before.
inline void copy(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
inline void fill(void* p, int value, size_t bytes) { check(cudaMemset(p, value, bytes)); }
inline void set_seed(uint64_t) {}
#endif

class Buffer {
 public:
  Buffer(size_t bytes, int value) : data_(allocate(bytes)) {
    if (bytes > 0) fill(data_, value, bytes);
  }
  ~Buffer() { release(data_); }
  Buffer(const Buffer&) = delete;
  void operator=(const Buffer&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

inline void run(const Test& test, const void* in, size_t in_bytes, void* out, size_t out_bytes) {
  Buffer device_in(in_bytes, 0), device_out(out_bytes, 0xFF), counter(4 * sizeof(unsigned), 0);
  if (in_bytes > 0) copy(device_in.data(), in, in_bytes);
  const Params p{device_in.data(), device_out.data(), static_cast<unsigned*>(counter.data()),
                 in_bytes};
  if (test.kind == Kind::kCooperative) {
    device::launch_cooperative(test.kernel, test.grid, test.block, test.shared_bytes, nullptr, p);
  } else if (test.kind == Kind::kCluster4) {
    device::launch_cluster(test.kernel, test.grid, test.block, test.shared_bytes, nullptr, p, 4);
  } else {
    device::launch(test.kernel, test.grid, test.block, test.shared_bytes, nullptr, p);
  }
  copy(out, device_out.data(), out_bytes);
}

template <size_t kCount>
int run_by_name(const Test (&tests)[kCount], const char* name, uint64_t seed, const void* in,
                size_t in_bytes, void* out, size_t out_bytes, char* error, size_t error_bytes) {
  try {
    for (const Test& test : tests) {
      if (strcmp(test.name, name) != 0) continue;
      set_seed(seed);
      run(test, in, in_bytes, out, out_bytes);
      return 0;
    }
    throw std::runtime_error(std::string("no test ") + name);
  } catch (const std::exception& e) {
    snprintf(error, error_bytes, "%s", e.what());
    return 1;
  }
}

}  // namespace selftest
}  // namespace fastlstm

// Defines a function for Python, which returns 0, or 1 and the words of the error.
#define FASTLSTM_SELFTESTS(NAME, TESTS)                                                            \
  extern "C" int NAME(const char* name, uint64_t seed, const void* in, size_t in_bytes, void* out, \
                      size_t out_bytes, char* error, size_t error_bytes) {                         \
    return run_by_name(TESTS, name, seed, in, in_bytes, out, out_bytes, error, error_bytes);       \
  }
