// flags: -ffp-contract=off -fno-math-errno -fno-trapping-math
// The plane of each point's neighbours, from a table of them: its middle and its normal.

#include "common.h"
#include "plane.h"

namespace mm3dad {
namespace fit_planes_ {

MM3DAD_CLONES void fit(const double* points, const int64_t* table, int64_t count, int64_t first, int64_t last, const double* viewpoint,
                       double* middles, double* normals) {
  for (int64_t i = first; i < last; i += kSideBySide) {
    double spread[6][kSideBySide] = {{0}}, place[3][kSideBySide] = {{0}}, normal[3][kSideBySide];
    const int64_t lanes = std::min<int64_t>(kSideBySide, last - i);
    for (int64_t l = 0; l < lanes; ++l) {
      double own[6];
      measure_spread(points, points + 1, points + 2, 3, table + (i + l) * count, count, middles + 3 * (i + l), own);
      for (int a = 0; a < 6; ++a) spread[a][l] = own[a];
      for (int a = 0; a < 3; ++a) place[a][l] = points[3 * (i + l) + a];
    }
    find_normals(spread, place, viewpoint, normal);
    for (int64_t l = 0; l < lanes; ++l)
      for (int a = 0; a < 3; ++a) normals[3 * (i + l) + a] = normal[a][l];
  }
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
