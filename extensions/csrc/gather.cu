// Columns of (B, C, N) features by index, alone or three at a time with weights, their gradients, and rows of (N, C).
//
// Gradients are added by atomics: their last bits may change from run to run, as the order of the sums does.

#include "common.cuh"

namespace mm3dad {
namespace {

// One thread per output (b, c, i), i fastest; `picks` columns each, all of weight 1 if `weight` is null.
template <typename T, bool kBackward>
__global__ void columns_kernel(const T* __restrict__ from, const int32_t* __restrict__ index, const T* __restrict__ weight, int64_t rows,
                               int64_t channels, int64_t count, int picks, int64_t total, T* __restrict__ to) {
  const int64_t all = rows * count, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < all; at += step) {
    const int64_t row = at / count, first = (row / channels * count + at % count) * picks;
    T sum = 0;
    for (int k = 0; k < picks; ++k) {
      const int32_t column = index[first + k];
      assert(column >= 0 && column < total);
      const T share = weight ? weight[first + k] : static_cast<T>(1);
      if constexpr (kBackward) {
        atomicAdd(to + row * total + column, share * from[at]);
      } else {
        sum += share * from[row * total + column];
      }
    }
    if constexpr (!kBackward) to[at] = sum;
  }
}

// One thread per entry (n, c) of the rows, c fastest.
template <typename T, bool kBackward>
__global__ void rows_kernel(const T* __restrict__ from, const int64_t* __restrict__ index, const T* __restrict__ weight, int64_t count, int picks,
                            int64_t width, int64_t total, T* __restrict__ to) {
  const int64_t all = count * width, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < all; at += step) {
    const int64_t first = at / width * picks, column = at % width;
    T sum = 0;
    for (int k = 0; k < picks; ++k) {
      const int64_t row = index[first + k];
      assert(row >= 0 && row < total);
      if constexpr (kBackward) {
        atomicAdd(to + row * width + column, weight[first + k] * from[at]);
      } else {
        sum += weight[first + k] * from[row * width + column];
      }
    }
    if constexpr (!kBackward) to[at] = sum;
  }
}

template <typename T, bool kBackward>
Tensor columns(const Tensor& from, const Tensor& index, const T* weight, int picks, int64_t width) {
  const int64_t batch = from.size(0), channels = from.size(1), count = index.size(1);
  const int64_t total = kBackward ? width : from.size(2);
  Tensor to = kBackward ? torch::stable::new_zeros(from, {batch, channels, total}) : torch::stable::new_empty(from, {batch, channels, count});
  const int64_t work = batch * channels * count;
  if (work == 0) return to;
  const Launch launch(from);
  columns_kernel<T, kBackward><<<blocks_for(work), kThreads, 0, launch.stream>>>(from.const_data_ptr<T>(), index.const_data_ptr<int32_t>(),
                                                                                 weight, batch * channels, channels, count, picks, total,
                                                                                 to.mutable_data_ptr<T>());
  launch.check();
  return to;
}

template <typename T, bool kBackward>
Tensor rows(const Tensor& from, const Tensor& index, const Tensor& weight, int64_t total) {
  const int64_t width = from.size(1), count = index.size(0);
  Tensor to = kBackward ? torch::stable::new_zeros(from, {total, width}) : torch::stable::new_empty(from, {count, width});
  if (count * width == 0) return to;
  const Launch launch(from);
  rows_kernel<T, kBackward><<<blocks_for(count * width), kThreads, 0, launch.stream>>>(
      from.const_data_ptr<T>(), index.const_data_ptr<int64_t>(), weight.const_data_ptr<T>(), count, static_cast<int>(index.size(1)), width, total,
      to.mutable_data_ptr<T>());
  launch.check();
  return to;
}

template <typename T>
Tensor gather(const Tensor& features, const Tensor& index) {
  return columns<T, false>(features, index, nullptr, 1, 0);
}

template <typename T>
Tensor gather_backward(const Tensor& grad, const Tensor& index, int64_t total) {
  return columns<T, true>(grad, index, nullptr, 1, total);
}

template <typename T>
Tensor interpolate(const Tensor& features, const Tensor& index, const Tensor& weight) {
  return columns<T, false>(features, index, weight.const_data_ptr<T>(), 3, 0);
}

template <typename T>
Tensor interpolate_backward(const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t total) {
  return columns<T, true>(grad, index, weight.const_data_ptr<T>(), 3, total);
}

template <typename T>
Tensor interpolate_rows(const Tensor& features, const Tensor& index, const Tensor& weight) {
  return rows<T, false>(features, index, weight, features.size(0));
}

template <typename T>
Tensor interpolate_rows_backward(const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t total) {
  return rows<T, true>(grad, index, weight, total);
}

void check_columns(const Tensor& features, const Tensor& index, int64_t dims) {
  check_floating(features, 3, "features");
  check_tensor(index, dims, ScalarType::Int, "index");
  STD_TORCH_CHECK(index.size(0) == features.size(0), "features and index must have the same batch size");
  STD_TORCH_CHECK(dims == 2 || index.size(2) == 3, "index must be (B, N, 3)");
}

void check_weights(const Tensor& features, const Tensor& index, const Tensor& weight) {
  check_tensor(weight, index.dim(), features.scalar_type(), "weight");
  for (int64_t dim = 0; dim < index.dim(); ++dim) STD_TORCH_CHECK(weight.size(dim) == index.size(dim), "index and weight must have one shape");
}

void check_rows(const Tensor& features, const Tensor& index, const Tensor& weight) {
  check_floating(features, 2, "features");
  check_tensor(index, 2, ScalarType::Long, "index");
  check_weights(features, index, weight);
}

}  // namespace

Tensor gather_cuda(const Tensor& features, const Tensor& index, int64_t) {
  check_columns(features, index, 2);
  return MM3DAD_BY_TYPE(features, gather, features, index);
}

Tensor gather_backward_cuda(const Tensor& grad, const Tensor& index, int64_t total, int64_t) {
  check_columns(grad, index, 2);
  STD_TORCH_CHECK(grad.size(2) == index.size(1), "grad and index must have the same columns");
  return MM3DAD_BY_TYPE(grad, gather_backward, grad, index, total);
}

Tensor interpolate_cuda(const Tensor& features, const Tensor& index, const Tensor& weight, int64_t) {
  check_columns(features, index, 3);
  check_weights(features, index, weight);
  return MM3DAD_BY_TYPE(features, interpolate, features, index, weight);
}

Tensor interpolate_backward_cuda(const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t total, int64_t) {
  check_columns(grad, index, 3);
  check_weights(grad, index, weight);
  STD_TORCH_CHECK(grad.size(2) == index.size(1), "grad and index must have the same columns");
  return MM3DAD_BY_TYPE(grad, interpolate_backward, grad, index, weight, total);
}

Tensor interpolate_rows_cuda(const Tensor& features, const Tensor& index, const Tensor& weight, int64_t) {
  check_rows(features, index, weight);
  return MM3DAD_BY_TYPE(features, interpolate_rows, features, index, weight);
}

Tensor interpolate_rows_backward_cuda(const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t total, int64_t) {
  check_rows(grad, index, weight);
  STD_TORCH_CHECK(grad.size(0) == index.size(0), "grad and index must have the same rows");
  return MM3DAD_BY_TYPE(grad, interpolate_rows_backward, grad, index, weight, total);
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CUDA, m) {
  m.impl("gather", TORCH_BOX(&mm3dad::gather_cuda));
  m.impl("gather_backward", TORCH_BOX(&mm3dad::gather_backward_cuda));
  m.impl("interpolate", TORCH_BOX(&mm3dad::interpolate_cuda));
  m.impl("interpolate_backward", TORCH_BOX(&mm3dad::interpolate_backward_cuda));
  m.impl("interpolate_rows", TORCH_BOX(&mm3dad::interpolate_rows_cuda));
  m.impl("interpolate_rows_backward", TORCH_BOX(&mm3dad::interpolate_rows_backward_cuda));
}
