// flags: -ffinite-math-only -fno-signed-zeros
// Least squared distances of pairs of samples, read off one matrix product in both directions and in one pass.
//
// The minimum over rows and that over columns each need the whole product; taken apart they read it twice, the second time across its
// rows. Four rows are taken together, so that the column minima, which stay in the first cache, are touched once for the four.

#include "common.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace mm3dad {
namespace pair_minima_ {

template <typename T>
inline __attribute__((always_inline)) T lesser(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
inline __attribute__((always_inline)) void scan_rows(const T* product, int64_t stride, int64_t rows, int64_t width, const T* own,
                                                     const T* theirs, T* forward, T* backward) {
  constexpr T most = std::numeric_limits<T>::max();
  int64_t p = 0;
  for (; p + 4 <= rows; p += 4) {
    const T *a = product + p * stride, *b = a + stride, *c = b + stride, *d = c + stride;
    const T ua = own[p], ub = own[p + 1], uc = own[p + 2], ud = own[p + 3];
    T ma = most, mb = most, mc = most, md = most;
#pragma omp simd reduction(min : ma, mb, mc, md)
    for (int64_t q = 0; q < width; ++q) {
      const T va = a[q], vb = b[q], vc = c[q], vd = d[q], v = theirs[q];
      ma = lesser(ma, va + v);
      mb = lesser(mb, vb + v);
      mc = lesser(mc, vc + v);
      md = lesser(md, vd + v);
      backward[q] = lesser(backward[q], lesser(lesser(va + ua, vb + ub), lesser(vc + uc, vd + ud)));
    }
    forward[p] = ma + ua, forward[p + 1] = mb + ub, forward[p + 2] = mc + uc, forward[p + 3] = md + ud;
  }
  for (; p < rows; ++p) {
    const T *a = product + p * stride, ua = own[p];
    T ma = most;
#pragma omp simd reduction(min : ma)
    for (int64_t q = 0; q < width; ++q) {
      ma = lesser(ma, a[q] + theirs[q]);
      backward[q] = lesser(backward[q], a[q] + ua);
    }
    forward[p] = ma + ua;
  }
}

// target_clones does not go with templates, so the versions are named.
MM3DAD_CLONES void scan(const float* product, int64_t stride, int64_t rows, int64_t width, const float* own, const float* theirs,
                        float* forward, float* backward) {
  scan_rows(product, stride, rows, width, own, theirs, forward, backward);
}
MM3DAD_CLONES void scan(const double* product, int64_t stride, int64_t rows, int64_t width, const double* own, const double* theirs,
                        double* forward, double* backward) {
  scan_rows(product, stride, rows, width, own, theirs, forward, backward);
}

template <typename T>
void reduce(const Tensor& product, const Tensor& own, const Tensor& theirs, Tensor& forward, Tensor& backward, int64_t threads) {
  const int64_t rows = own.size(0), pairs = theirs.size(0), width = theirs.size(1), stride = pairs * width;
  const T *values = product.const_data_ptr<T>(), *row_norm = own.const_data_ptr<T>(), *column_norm = theirs.const_data_ptr<T>();
  T *by_row = forward.mutable_data_ptr<T>(), *by_column = backward.mutable_data_ptr<T>();
  std::fill(by_column, by_column + stride, std::numeric_limits<T>::max());
  // A minimum is the same in any order, so that threads may share the rows of one product.
#pragma omp parallel for num_threads(threads)
  for (int64_t thread = 0; thread < threads; ++thread) {
    const int64_t first = rows * thread / threads, last = rows * (thread + 1) / threads;
    std::vector<T> best(width);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      std::fill(best.begin(), best.end(), std::numeric_limits<T>::max());
      scan(values + first * stride + pair * width, stride, last - first, width, row_norm + first, column_norm + pair * width,
           by_row + pair * rows + first, best.data());
#pragma omp critical(mm3dad_pair_minima)
      for (int64_t q = 0; q < width; ++q) by_column[pair * width + q] = std::min(by_column[pair * width + q], best[q]);
    }
  }
  for (int64_t i = 0; i < stride; ++i) by_column[i] += column_norm[i];
}

}  // namespace pair_minima_

std::tuple<Tensor, Tensor> pair_minima(const Tensor& product, const Tensor& own, const Tensor& theirs, int64_t threads) {
  const ScalarType type = product.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "product must be float32 or float64");
  check_tensor(product, 2, type, "product");
  check_tensor(own, 1, type, "own");
  check_tensor(theirs, 2, type, "theirs");
  STD_TORCH_CHECK(product.size(0) == own.size(0) && product.size(1) == theirs.numel(), "product must be (P, K * Q)");
  Tensor forward = torch::stable::new_empty(product, {theirs.size(0), own.size(0)});
  Tensor backward = torch::stable::new_empty(product, {theirs.size(0), theirs.size(1)});
  threads = std::max<int64_t>(1, std::min(threads, own.size(0)));
  if (type == ScalarType::Float)
    pair_minima_::reduce<float>(product, own, theirs, forward, backward, threads);
  else
    pair_minima_::reduce<double>(product, own, theirs, forward, backward, threads);
  return {forward, backward};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("pair_minima(Tensor product, Tensor own, Tensor theirs, int threads) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("pair_minima", TORCH_BOX(&mm3dad::pair_minima)); }
