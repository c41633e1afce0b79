// The part of cuda.cuh that the host runs: launches, and questions about them.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fastlstm {
namespace device {

inline void check_launch(cudaError_t error, const void* kernel, dim3 grid, dim3 block,
                         size_t shared_bytes) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call that asks would be given this error
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess) cudaGetLastError();
  const auto text = [](dim3 d) {
    return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
  };
  throw std::runtime_error(std::string("launch of ") + (name ? name : "a kernel") + ": " +
                           cudaGetErrorName(error) + ": " + cudaGetErrorString(error) + " (grid " +
                           text(grid) + ", block " + text(block) + ", " +
                           std::to_string(shared_bytes) + " bytes of shared memory)");
}

struct LaunchKind {
  bool cooperative;
  int cluster_size;
};

// What launches and questions about them tell CUDA. The configuration points into it.
class LaunchSetup {
 public:
  LaunchSetup(LaunchKind kind, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream)
      : kind_(kind) {
    config_.gridDim = grid;
    config_.blockDim = block;
    config_.dynamicSmemBytes = shared_bytes;
    config_.stream = stream;
    config_.attrs = attributes_;
    if (kind.cooperative) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    if (kind.cluster_size > 1) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(kind.cluster_size);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
  }
  LaunchSetup(const LaunchSetup&) = delete;
  void operator=(const LaunchSetup&) = delete;

  const cudaLaunchConfig_t& config() const { return config_; }

  // Lets the kernel have what is more than any kernel may.
  cudaError_t allow(const void* kernel) const {
    if (config_.dynamicSmemBytes > 48 * 1024) {
      // All there is, not what this launch takes: threads that launch the same kernel at a time
      // would take it from one another.
      int device = 0, most = 0;
      cudaError_t error = cudaGetDevice(&device);
      if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      if (error == cudaSuccess)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
      if (error != cudaSuccess) return error;
    }
    if (kind_.cluster_size <= 8) return cudaSuccess;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }

 private:
  const LaunchKind kind_;
  cudaLaunchAttribute attributes_[2];
  cudaLaunchConfig_t config_ = {};
};

template <class P>
void launch_as(LaunchKind kind, void (*kernel)(P), dim3 grid, dim3 block, size_t shared_bytes,
               cudaStream_t stream, const P& params) {
  static_assert(sizeof(P) <= 4096, "parameters of a kernel");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const void* function = reinterpret_cast<const void*>(kernel);
  const auto check = [&](cudaError_t error) {
    check_launch(error, function, grid, block, shared_bytes);
  };
  const LaunchSetup setup(kind, grid, block, shared_bytes, stream);
  check(setup.allow(function));
  P copy = params;
  void* arguments[] = {&copy};
  check(cudaLaunchKernelExC(&setup.config(), function, arguments));
}

// Starts kernel(params) on the stream. A grid with a dimension of 0 launches nothing. Throws
// std::runtime_error, with the name and the numbers, when the launch is refused; errors while the
// kernel runs are reported by a later call, as always in CUDA.
template <class P>
void launch(void (*kernel)(P), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const typename Identity<P>::type& params) {
  launch_as({false, 1}, kernel, grid, block, shared_bytes, stream, params);
}

// All blocks are resident at once, or the launch is refused.
template <class P>
void launch_cooperative(void (*kernel)(P), dim3 grid, dim3 block, size_t shared_bytes,
                        cudaStream_t stream, const typename Identity<P>::type& params) {
  launch_as({true, 1}, kernel, grid, block, shared_bytes, stream, params);
}

// Every cluster_size blocks along x, of which grid.x is a multiple, are a cluster. sm_90 and later.
template <class P>
void launch_cluster(void (*kernel)(P), dim3 grid, dim3 block, size_t shared_bytes,
                    cudaStream_t stream, const typename Identity<P>::type& params,
                    int cluster_size) {
  launch_as({false, cluster_size}, kernel, grid, block, shared_bytes, stream, params);
}

// `count`, or 0 after an error, which no later call shall be given.
inline int count_unless(cudaError_t error, int count) {
  if (error == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

// How many clusters of such blocks the current device has room for at once; 0 where it has no
// clusters, or would refuse the launch.
template <class P>
int max_active_clusters(void (*kernel)(P), int cluster_size, int threads, size_t shared_bytes) {
  int device = 0, major = 0, clusters = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  }
  if (count_unless(error, major) < 9) return 0;
  const void* function = reinterpret_cast<const void*>(kernel);
  const LaunchSetup setup({false, cluster_size}, dim3(static_cast<unsigned>(cluster_size)),
                          dim3(static_cast<unsigned>(threads)), shared_bytes, nullptr);
  error = setup.allow(function);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveClusters(&clusters, function, &setup.config());
  }
  return count_unless(error, clusters);
}

// 10 * major + minor of the architecture that the kernel was compiled for, as it would run on the
// current device; 0 where it would not.
template <class P>
int compiled_architecture(void (*kernel)(P)) {
  cudaFuncAttributes attributes = {};
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  return count_unless(error, attributes.ptxVersion);
}

}  // namespace device
}  // namespace fastlstm
