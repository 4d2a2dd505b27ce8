// flags: -ffp-contract=off -fno-math-errno -fno-trapping-math
// The plane of each point's neighbours, from a table of them: its middle and its normal.

#include "common.h"
#include "plane.h"

#include <vector>

namespace mm3dad {
namespace fit_planes_ {

MM3DAD_CLONES void fit(const double* points, const int64_t* table, int64_t count, int64_t first, int64_t last, const double* viewpoint,
                       double* middles, double* normals) {
  std::vector<double> spread(6 * (last - first));
  for (int64_t i = first; i < last; ++i)
    measure_spread(points, points + 1, points + 2, 3, table + i * count, count, middles + 3 * i, &spread[6 * (i - first)]);
  const double* from = points + 3 * first;
  double* to = normals + 3 * first;
  find_normals_of_rows(spread.data(), {from, from + 1, from + 2}, 3, last - first, viewpoint, {to, to + 1, to + 2});
}

}  // namespace fit_planes_

std::tuple<Tensor, Tensor> fit_planes(const Tensor& points, const Tensor& table, const Tensor& viewpoint, int64_t threads) {
  check_tensor(points, 2, ScalarType::Double, "points");
  check_tensor(table, 2, ScalarType::Long, "table");
  check_tensor(viewpoint, 1, ScalarType::Double, "viewpoint");
  const int64_t total = points.size(0), count = table.size(1);
  STD_TORCH_CHECK(points.size(1) == 3 && viewpoint.size(0) == 3 && table.size(0) == total && count >= 1, "points must be (N, 3), table (N, K)");
  const int64_t* rows = table.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < total * count; ++i) STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < total, "table has a row out of range");
  Tensor middles = torch::stable::new_empty(points, {total, 3}), normals = torch::stable::new_empty(points, {total, 3});
  const double *from = points.const_data_ptr<double>(), *view = viewpoint.const_data_ptr<double>();
  double *middle = middles.mutable_data_ptr<double>(), *to = normals.mutable_data_ptr<double>();
  constexpr int64_t block = 512;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t first = 0; first < total; first += block)
    fit_planes_::fit(from, rows, count, first, std::min(total, first + block), view, middle, to);
  return {middles, normals};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("fit_planes(Tensor points, Tensor table, Tensor viewpoint, int threads) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("fit_planes", TORCH_BOX(&mm3dad::fit_planes)); }
