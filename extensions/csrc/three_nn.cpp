// flags: -ffp-contract=off
// The three nearest centres of each query, exact in float64, ties by the lowest index.

#include "common.h"
#include "neighbors.h"

namespace mm3dad {
namespace three_nn_ {

constexpr int64_t kPool = 256;  // room of a pool; one that holds more costs more than it saves

struct Best {
  double squared[3] = {kInfinity, kInfinity, kInfinity};
  int32_t index[3] = {kNone, kNone, kNone};

  inline __attribute__((always_inline)) void offer(double value, int32_t row) {
    if (value > squared[2] || (value == squared[2] && row >= index[2])) return;
    int at = 2;
    for (; at > 0 && (value < squared[at - 1] || (value == squared[at - 1] && row < index[at - 1])); --at) {
      squared[at] = squared[at - 1];
      index[at] = index[at - 1];
    }
    squared[at] = value;
    index[at] = row;
  }
};

inline __attribute__((always_inline)) void search_leaf(const Leaves& cloud, int64_t leaf, const double* query, Best& best) {
  const int64_t first = leaf * kLeaf;
  double squared[kLeaf];
  distance_to_points(cloud, first, query, squared);
  for (int i = 0; i < kLeaf; ++i)
    if (squared[i] <= best.squared[2]) best.offer(squared[i], cloud.index[first + i]);
}

inline __attribute__((always_inline)) void search_pool(Pool& pool, const double* query, Best& best) {
  measure_pool(pool, query);
  for (int64_t i = 0; i < pool.size; ++i)
    if (pool.squared[i] <= best.squared[2]) best.offer(pool.squared[i], pool.index[i]);
}

inline __attribute__((always_inline)) void search_all(const Leaves& cloud, const double* query, double* bound, Best& best) {
  const int64_t nearest = nearest_leaf(cloud, query, bound);
  search_leaf(cloud, nearest, query, best);
  for (int64_t group = 0; group < cloud.group_count; ++group) {
    if (bound[group] > best.squared[2]) continue;
    double near[kGroup];
    distance_to_boxes(cloud.leaf, group * kGroup, kGroup, query, near);
    for (int member = 0; member < kGroup; ++member) {
      const int64_t leaf = group * kGroup + member;
      if (leaf != nearest && near[member] <= best.squared[2] && near[member] < kInfinity) search_leaf(cloud, leaf, query, best);
    }
  }
}

// Queries come along the curve: a batch of them is answered from the points near its box, within a little more than the batch before needed.
MM3DAD_CLONES void search(const Leaves& cloud, const double* queries, const uint64_t* order, int64_t count, double* squared, int64_t* index) {
  std::vector<double> bound(cloud.group_count);
  Pool pool(kPool);
  double reach = 0;
  for (int64_t first = 0; first < count; first += kBatch) {
    const int64_t last = std::min<int64_t>(count, first + kBatch);
    Box box;
    for (int64_t i = first; i < last; ++i) box.include(queries + 3 * order[i]);
    fill_pool(cloud, box, 2 * reach, bound.data(), pool);
    reach = 0;
    for (int64_t i = first; i < last; ++i) {
      const int64_t q = static_cast<int64_t>(order[i]);
      const double* query = queries + 3 * q;
      Best best;
      search_pool(pool, query, best);
      if (best.squared[2] > pool.limit) {
        best = Best();
        search_all(cloud, query, bound.data(), best);
      }
      if (best.squared[2] < kInfinity) reach = std::max(reach, best.squared[2]);
      for (int k = 0; k < 3; ++k) {
        squared[3 * q + k] = best.squared[k];
        index[3 * q + k] = best.index[k] == kNone ? 0 : best.index[k];
      }
    }
  }
}

}  // namespace three_nn_

std::tuple<Tensor, Tensor> three_nn(const Tensor& queries, const Tensor& points, int64_t threads) {
  check_tensor(queries, 3, ScalarType::Double, "queries");
  check_tensor(points, 3, ScalarType::Double, "points");
  const int64_t batch = queries.size(0), count = queries.size(1), total = points.size(1);
  STD_TORCH_CHECK(queries.size(2) == 3 && points.size(2) == 3 && points.size(0) == batch, "queries and points must be (B, N, 3)");
  STD_TORCH_CHECK(total >= 1 && total < kNone, "points must have 1 to 2^31 - 2 rows");
  Tensor squared = torch::stable::new_empty(queries, {batch, count, 3});
  Tensor index = torch::stable::new_empty(queries, {batch, count, 3}, ScalarType::Long);
  const double* from = queries.const_data_ptr<double>();
  double* to = squared.mutable_data_ptr<double>();
  int64_t* rows = index.mutable_data_ptr<int64_t>();
  constexpr int64_t block = 256;
  for (int64_t b = 0; b < batch; ++b) {
    const Leaves cloud(points.const_data_ptr<double>() + b * total * 3, total);
    const int64_t at = 3 * b * count;
    const std::vector<uint64_t> order = sort_along_curve(from + at, count);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < count; first += block) {
      three_nn_::search(cloud, from + at, &order[first], std::min(block, count - first), to + at, rows + at);
    }
  }
  return {squared, index};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) { m.def("three_nn(Tensor queries, Tensor points, int threads) -> (Tensor, Tensor)"); }

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("three_nn", TORCH_BOX(&mm3dad::three_nn)); }
