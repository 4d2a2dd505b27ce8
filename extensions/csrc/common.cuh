// What the CUDA kernels share.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cassert>
#include <tuple>

#include "common.h"

namespace mm3dad {

// All work is queued on torch's current stream of the tensor's device; nothing here waits for the GPU.
struct Launch {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;

  explicit Launch(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &handle));
    stream = static_cast<cudaStream_t>(handle);
  }

  void check() const {
    const cudaError_t status = cudaGetLastError();
    STD_TORCH_CHECK(status == cudaSuccess, "a CUDA kernel could not be started: ", cudaGetErrorString(status));
  }
};

constexpr int kThreads = 256;

inline unsigned blocks_for(int64_t count) { return static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, 1 << 20)); }

inline void check_floating(const Tensor& tensor, int64_t dims, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, name, " must be float32 or float64");
  check_tensor(tensor, dims, type, name);
}

inline void check_clouds(const Tensor& queries, const Tensor& points) {
  check_floating(queries, 3, "queries");
  check_tensor(points, 3, queries.scalar_type(), "points");
  STD_TORCH_CHECK(queries.size(2) == 3 && points.size(2) == 3 && points.size(0) == queries.size(0), "clouds must be (B, N, 3), one batch");
  STD_TORCH_CHECK(points.size(1) >= 1 && points.size(1) < INT32_MAX, "points must have 1 to 2^31 - 2 rows");
}

}  // namespace mm3dad

#define MM3DAD_BY_TYPE(tensor, function, ...) \
  ((tensor).scalar_type() == ScalarType::Float ? function<float>(__VA_ARGS__) : function<double>(__VA_ARGS__))
