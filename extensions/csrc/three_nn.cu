// flags: -fmad=false
// The three nearest centres of each query: a thread per query, centres by the tile through shared memory, ties by the lowest index.

#include "common.cuh"

namespace mm3dad {
namespace {

template <typename T>
__global__ void search_kernel(const T* __restrict__ queries, const T* __restrict__ points, int64_t count, int total, T* __restrict__ squared,
                              int64_t* __restrict__ index) {
  __shared__ T tile[3 * kThreads];
  const int64_t batch = blockIdx.y, query = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  points += batch * total * 3;
  T x = 0, y = 0, z = 0;
  if (query < count) {
    const T* place = queries + (batch * count + query) * 3;
    x = place[0], y = place[1], z = place[2];
  }
  const T infinity = static_cast<T>(INFINITY);
  T d0 = infinity, d1 = infinity, d2 = infinity;
  int i0 = 0, i1 = 0, i2 = 0;
  for (int first = 0; first < total; first += kThreads) {
    const int size = min(kThreads, total - first);
    for (int i = threadIdx.x; i < 3 * size; i += kThreads) tile[i] = points[3 * static_cast<int64_t>(first) + i];
    __syncthreads();
    for (int i = 0; i < size; ++i) {
      const T u = tile[3 * i] - x, v = tile[3 * i + 1] - y, w = tile[3 * i + 2] - z;
      const T d = u * u + v * v + w * w;
      // Rows come in ascending order, so that strict comparisons keep the lowest index in front.
      if (d < d0) {
        d2 = d1, i2 = i1, d1 = d0, i1 = i0, d0 = d, i0 = first + i;
      } else if (d < d1) {
        d2 = d1, i2 = i1, d1 = d, i1 = first + i;
      } else if (d < d2) {
        d2 = d, i2 = first + i;
      }
    }
    __syncthreads();
  }
  if (query >= count) return;
  const int64_t at = (batch * count + query) * 3;
  squared[at] = d0, squared[at + 1] = d1, squared[at + 2] = d2;
  index[at] = i0, index[at + 1] = i1, index[at + 2] = i2;
}

template <typename T>
std::tuple<Tensor, Tensor> search(const Tensor& queries, const Tensor& points) {
  const int64_t batch = queries.size(0), count = queries.size(1);
  Tensor squared = torch::stable::new_empty(queries, {batch, count, 3});
  Tensor index = torch::stable::new_empty(queries, {batch, count, 3}, ScalarType::Long);
  if (batch * count == 0) return {squared, index};
  const Launch launch(queries);
  const dim3 grid(static_cast<unsigned>((count + kThreads - 1) / kThreads), static_cast<unsigned>(batch));
  search_kernel<T><<<grid, kThreads, 0, launch.stream>>>(queries.const_data_ptr<T>(), points.const_data_ptr<T>(), count,
                                                         static_cast<int>(points.size(1)), squared.mutable_data_ptr<T>(),
                                                         index.mutable_data_ptr<int64_t>());
  launch.check();
  return {squared, index};
}

}  // namespace

std::tuple<Tensor, Tensor> three_nn_cuda(const Tensor& queries, const Tensor& points, int64_t) {
  check_clouds(queries, points);
  return MM3DAD_BY_TYPE(queries, search, queries, points);
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CUDA, m) { m.impl("three_nn", TORCH_BOX(&mm3dad::three_nn_cuda)); }
