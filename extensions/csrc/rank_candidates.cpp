// flags: -ffp-contract=off
// The k nearest among a few candidates of each query, by distances that are taken directly: a product form has lost the digits of small ones.

#include "common.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace mm3dad {
namespace rank_candidates_ {

template <typename T>
struct Candidate {
  T distance;
  int64_t index;

  bool operator<(const Candidate& other) const {
    return distance < other.distance || (distance == other.distance && index < other.index);
  }
};

template <typename T>
inline __attribute__((always_inline)) T measure_(const T* a, const T* b, int64_t width) {
  constexpr int64_t lanes = 64 / sizeof(T);
  T sums[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes)
#pragma omp simd
    for (int64_t k = 0; k < lanes; ++k) sums[k] += (a[i + k] - b[i + k]) * (a[i + k] - b[i + k]);
  for (int64_t k = 0; i < width; ++i, ++k) sums[k] += (a[i] - b[i]) * (a[i] - b[i]);
  for (int64_t half = lanes / 2; half > 0; half /= 2)
    for (int64_t k = 0; k < half; ++k) sums[k] += sums[k + half];
  return std::sqrt(sums[0]);
}

// target_clones does not go with templates, so the versions are named.
MM3DAD_CLONES float measure(const float* a, const float* b, int64_t width) { return measure_(a, b, width); }
MM3DAD_CLONES double measure(const double* a, const double* b, int64_t width) { return measure_(a, b, width); }

template <typename T>
void rank(const Tensor& queries, const Tensor& points, const Tensor& approximate, const Tensor& index, const Tensor& slack, int64_t k,
          Tensor& distances, Tensor& indices, int64_t threads) {
  const int64_t count = queries.size(0), width = queries.size(1), kept = approximate.size(1);
  const T *query = queries.const_data_ptr<T>(), *point = points.const_data_ptr<T>(), *guess = approximate.const_data_ptr<T>();
  const T* room = slack.const_data_ptr<T>();
  const int64_t* from = index.const_data_ptr<int64_t>();
  T* to = distances.mutable_data_ptr<T>();
  int64_t* to_index = indices.mutable_data_ptr<int64_t>();
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> order(kept);
    std::vector<Candidate<T>> found;
#pragma omp for schedule(static)
    for (int64_t q = 0; q < count; ++q) {
      const T* own = guess + q * kept;
      std::copy(own, own + kept, order.begin());
      std::nth_element(order.begin(), order.begin() + (k - 1), order.end());
      // Whatever is two roundings beyond the k-th cannot be among the k nearest: its distance need not be taken.
      const T limit = order[k - 1] + 2 * room[q];
      found.clear();
      for (int64_t i = 0; i < kept; ++i) {
        const int64_t row = from[q * kept + i];
        if (own[i] <= limit) found.push_back({measure(query + q * width, point + row * width, width), row});
      }
      std::sort(found.begin(), found.end());
      for (int64_t i = 0; i < k; ++i) to[q * k + i] = found[i].distance, to_index[q * k + i] = found[i].index;
    }
  }
}

}  // namespace rank_candidates_

// `approximate` (Q, M) and `index` (Q, M): squared distances, each off by at most `slack` (Q,), and the rows they belong to.
std::tuple<Tensor, Tensor> rank_candidates(const Tensor& queries, const Tensor& points, const Tensor& approximate, const Tensor& index,
                                           const Tensor& slack, int64_t k, int64_t threads) {
  const ScalarType type = queries.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "queries must be float32 or float64");
  check_tensor(queries, 2, type, "queries");
  check_tensor(points, 2, type, "points");
  check_tensor(approximate, 2, type, "approximate");
  check_tensor(index, 2, ScalarType::Long, "index");
  check_tensor(slack, 1, type, "slack");
  const int64_t count = queries.size(0), kept = approximate.size(1);
  STD_TORCH_CHECK(points.size(1) == queries.size(1), "queries and points must have one width");
  STD_TORCH_CHECK(approximate.size(0) == count && index.size(0) == count && slack.size(0) == count, "all must have one row per query");
  STD_TORCH_CHECK(index.size(1) == kept && k >= 1 && k <= kept, "k must be 1 to the number of candidates");
  const int64_t* rows = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count * kept; ++i) STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < points.size(0), "index has a row out of range");
  Tensor distances = torch::stable::new_empty(queries, {count, k});
  Tensor indices = torch::stable::new_empty(index, {count, k});
  if (type == ScalarType::Float)
    rank_candidates_::rank<float>(queries, points, approximate, index, slack, k, distances, indices, threads);
  else
    rank_candidates_::rank<double>(queries, points, approximate, index, slack, k, distances, indices, threads);
  return {distances, indices};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def(
      "rank_candidates(Tensor queries, Tensor points, Tensor approximate, Tensor index, Tensor slack, int k, int threads) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("rank_candidates", TORCH_BOX(&mm3dad::rank_candidates)); }
