// The mean and the spread of groups of rows, without gathering the rows first: a group's rows stay in the nearest cache for both passes.

#include "common.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mm3dad {
namespace row_statistics_ {

MM3DAD_CLONES void measure(const float* values, int64_t width, const int64_t* rows, int64_t count, double* work, float* out) {
  double *mean = work, *square = work + width;
  std::fill(work, work + 2 * width, 0.0);
  for (int64_t i = 0; i < count; ++i) {
    const float* row = values + rows[i] * width;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) mean[c] += row[c];
  }
  for (int64_t c = 0; c < width; ++c) mean[c] /= count;
  for (int64_t i = 0; i < count; ++i) {
    const float* row = values + rows[i] * width;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) square[c] += (row[c] - mean[c]) * (row[c] - mean[c]);
  }
  for (int64_t c = 0; c < width; ++c) {
    out[c] = static_cast<float>(mean[c]);
    out[width + c] = static_cast<float>(std::sqrt(square[c] / (count - 1)));
  }
}

}  // namespace row_statistics_

Tensor row_statistics(const Tensor& values, const Tensor& index, int64_t threads) {
  check_tensor(values, 2, ScalarType::Float, "values");
  check_tensor(index, 2, ScalarType::Long, "index");
  const int64_t total = values.size(0), width = values.size(1), groups = index.size(0), count = index.size(1);
  STD_TORCH_CHECK(count >= 2, "index must be (G, K) with K >= 2");
  const int64_t* rows = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < groups * count; ++i) STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < total, "index has a row out of range");
  Tensor out = torch::stable::new_empty(values, {groups, 2 * width});
  const float* from = values.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> work(2 * width);
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; ++g)
      row_statistics_::measure(from, width, rows + g * count, count, work.data(), to + 2 * g * width);
  }
  return out;
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) { m.def("row_statistics(Tensor values, Tensor index, int threads) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("row_statistics", TORCH_BOX(&mm3dad::row_statistics)); }
