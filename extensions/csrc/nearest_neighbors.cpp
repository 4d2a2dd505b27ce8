// flags: -ffp-contract=off -fno-math-errno -fno-trapping-math
// The k nearest points of each query, nearest first (see neighbors.h).

#include "common.h"
#include "neighbors.h"

namespace mm3dad {
namespace nearest_neighbors_ {

struct Write {
  const uint64_t* order;
  int64_t k;
  double* distances;
  int64_t* indices;

  inline __attribute__((always_inline)) void operator()(int64_t i, Candidates& found) const {
    fill_buckets(found);
    sort_best(found);
    const int64_t row = static_cast<int64_t>(order[i]) * k;
    for (int64_t j = 0; j < k; ++j) {
      distances[row + j] = found.sorted[j].distance;
      indices[row + j] = found.sorted[j].index;
    }
  }
};

MM3DAD_CLONES void search(const Leaves& cloud, int64_t total, const double* queries, const uint64_t* order, int64_t count, int64_t k,
                          double* distances, int64_t* indices) {
  search_along(cloud, total, queries, order, count, k, Write{order, k, distances, indices});
}

}  // namespace nearest_neighbors_

std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& queries, const Tensor& points, int64_t k, int64_t threads) {
  check_tensor(queries, 2, ScalarType::Double, "queries");
  check_tensor(points, 2, ScalarType::Double, "points");
  const int64_t count = queries.size(0), total = points.size(0);
  STD_TORCH_CHECK(queries.size(1) == 3 && points.size(1) == 3, "queries and points must be (Q, 3) and (N, 3)");
  STD_TORCH_CHECK(k >= 1 && k <= total && total < kNone, "k must be 1 to N, and N below 2^31 - 1");
  Tensor distances = torch::stable::new_empty(queries, {count, k});
  Tensor indices = torch::stable::new_empty(queries, {count, k}, ScalarType::Long);
  const double* from = queries.const_data_ptr<double>();
  double* to = fresh_data<double>(distances);
  int64_t* rows = fresh_data<int64_t>(indices);
  const Leaves cloud(points.const_data_ptr<double>(), total);
  const std::vector<uint64_t> order = sort_along_curve(from, count);
  constexpr int64_t block = 256;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t first = 0; first < count; first += block)
    nearest_neighbors_::search(cloud, total, from, &order[first], std::min(block, count - first), k, to, rows);
  return {distances, indices};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("nearest_neighbors(Tensor queries, Tensor points, int k, int threads) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("nearest_neighbors", TORCH_BOX(&mm3dad::nearest_neighbors)); }
