// flags: -fmad=false
// The first points within a radius of each centre: a thread per centre, the cloud by the tile through shared memory.

#include "common.cuh"

namespace mm3dad {
namespace {

template <typename T>
__global__ void query_kernel(const T* __restrict__ centers, const T* __restrict__ points, int64_t queries, int total, T limit, int64_t most,
                             int64_t* __restrict__ index) {
  __shared__ T tile[3 * kThreads];
  const int64_t batch = blockIdx.y, query = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  points += batch * total * 3;
  int64_t found = query < queries ? 0 : most;
  T x = 0, y = 0, z = 0;
  if (query < queries) {
    const T* place = centers + (batch * queries + query) * 3;
    x = place[0], y = place[1], z = place[2];
    index += (batch * queries + query) * most;
  }
  for (int first = 0; first < total; first += kThreads) {
    // Also the barrier before the tile is overwritten; the block stops once all its lists are full.
    if (__syncthreads_and(found >= most)) break;
    const int size = min(kThreads, total - first);
    for (int i = threadIdx.x; i < 3 * size; i += kThreads) tile[i] = points[3 * static_cast<int64_t>(first) + i];
    __syncthreads();
    for (int i = 0; i < size && found < most; ++i) {
      const T u = tile[3 * i] - x, v = tile[3 * i + 1] - y, w = tile[3 * i + 2] - z;
      if (u * u + v * v + w * w < limit) index[found++] = first + i;
    }
  }
  if (query >= queries) return;
  const int64_t start = found ? index[0] : 0;
  for (int64_t i = found; i < most; ++i) index[i] = start;
}

template <typename T>
Tensor search(const Tensor& centers, const Tensor& points, double radius, int64_t count) {
  const int64_t batch = centers.size(0), queries = centers.size(1);
  Tensor index = torch::stable::new_empty(centers, {batch, queries, count}, ScalarType::Long);
  if (batch * queries == 0) return index;
  const Launch launch(centers);
  const dim3 grid(static_cast<unsigned>((queries + kThreads - 1) / kThreads), static_cast<unsigned>(batch));
  query_kernel<T><<<grid, kThreads, 0, launch.stream>>>(centers.const_data_ptr<T>(), points.const_data_ptr<T>(), queries,
                                                        static_cast<int>(points.size(1)), static_cast<T>(radius * radius), count,
                                                        index.mutable_data_ptr<int64_t>());
  launch.check();
  return index;
}

}  // namespace

Tensor ball_query_cuda(const Tensor& centers, const Tensor& points, double radius, int64_t count, int64_t) {
  check_clouds(centers, points);
  STD_TORCH_CHECK(count >= 1, "count must be positive");
  return MM3DAD_BY_TYPE(centers, search, centers, points, radius, count);
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CUDA, m) { m.impl("ball_query", TORCH_BOX(&mm3dad::ball_query_cuda)); }
