// Columns of (B, C, N) features by index, alone or three at a time with weights, and the gradients of both; also rows of (N, C).
//
// A gradient is added up by the thread that owns its row or its columns, in the order of the outputs: the same for any number of threads.

#include "common.h"

#include <algorithm>
#include <cstring>

namespace mm3dad {
namespace gather_ {

template <typename T>
void pick(const T* row, const int32_t* index, int64_t count, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = row[index[i]];
}

template <typename T>
void pick_backward(const T* grad, const int32_t* index, int64_t count, T* row) {
  for (int64_t i = 0; i < count; ++i) row[index[i]] += grad[i];
}

template <typename T>
void mix(const T* row, const int32_t* index, const T* weight, int64_t count, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i)
    out[i] = weight[3 * i] * row[index[3 * i]] + weight[3 * i + 1] * row[index[3 * i + 1]] + weight[3 * i + 2] * row[index[3 * i + 2]];
}

template <typename T>
void mix_backward(const T* grad, const int32_t* index, const T* weight, int64_t count, T* row) {
  for (int64_t i = 0; i < count; ++i)
    for (int k = 0; k < 3; ++k) row[index[3 * i + k]] += weight[3 * i + k] * grad[i];
}

// target_clones does not go with templates, so the versions are named.
MM3DAD_CLONES void mix_row(const float* features, const int64_t* index, const float* weight, int64_t picks, int64_t width, float* out) {
  const float *a = features + index[0] * width, *b = features + index[picks > 1 ? 1 : 0] * width, *c = features + index[picks - 1] * width;
  const float u = weight[0], v = picks > 1 ? weight[1] : 0, w = picks > 2 ? weight[2] : 0;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = u * a[i] + v * b[i] + w * c[i];
}
MM3DAD_CLONES void mix_row(const double* features, const int64_t* index, const double* weight, int64_t picks, int64_t width, double* out) {
  const double *a = features + index[0] * width, *b = features + index[picks > 1 ? 1 : 0] * width, *c = features + index[picks - 1] * width;
  const double u = weight[0], v = picks > 1 ? weight[1] : 0, w = picks > 2 ? weight[2] : 0;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = u * a[i] + v * b[i] + w * c[i];
}

MM3DAD_CLONES void add_row(const float* grad, float weight, int64_t width, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] += weight * grad[i];
}
MM3DAD_CLONES void add_row(const double* grad, double weight, int64_t width, double* out) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] += weight * grad[i];
}

void check_index(const int32_t* index, int64_t count, int64_t total) {
  int32_t low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, index[i]);
    high = std::max(high, index[i]);
  }
  STD_TORCH_CHECK(low >= 0 && high < total, "an index is out of range: must lie in 0 to ", total - 1, ", got ", low, " to ", high);
}

template <typename T>
Tensor gather(const Tensor& features, const Tensor& index, int64_t threads) {
  const int64_t batch = features.size(0), channels = features.size(1), total = features.size(2), count = index.size(1);
  Tensor out = torch::stable::new_empty(features, {batch, channels, count});
  const T* from = features.const_data_ptr<T>();
  const int32_t* columns = index.const_data_ptr<int32_t>();
  T* to = fresh_data<T>(out);
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < batch * channels; ++row) pick(from + row * total, columns + row / channels * count, count, to + row * count);
  return out;
}

template <typename T>
Tensor gather_backward(const Tensor& grad, const Tensor& index, int64_t total, int64_t threads) {
  const int64_t batch = grad.size(0), channels = grad.size(1), count = grad.size(2);
  Tensor out = torch::stable::new_zeros(grad, {batch, channels, total});
  const T* from = grad.const_data_ptr<T>();
  const int32_t* columns = index.const_data_ptr<int32_t>();
  T* to = fresh_data<T>(out);
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < batch * channels; ++row)
    pick_backward(from + row * count, columns + row / channels * count, count, to + row * total);
  return out;
}

template <typename T>
Tensor interpolate(const Tensor& features, const Tensor& index, const Tensor& weight, int64_t threads) {
  const int64_t batch = features.size(0), channels = features.size(1), total = features.size(2), count = index.size(1);
  Tensor out = torch::stable::new_empty(features, {batch, channels, count});
  const T *from = features.const_data_ptr<T>(), *share = weight.const_data_ptr<T>();
  const int32_t* columns = index.const_data_ptr<int32_t>();
  T* to = fresh_data<T>(out);
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < batch * channels; ++row) {
    const int64_t at = row / channels * count * 3;
    mix(from + row * total, columns + at, share + at, count, to + row * count);
  }
  return out;
}

template <typename T>
Tensor interpolate_backward(const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t total, int64_t threads) {
  const int64_t batch = grad.size(0), channels = grad.size(1), count = grad.size(2);
  Tensor out = torch::stable::new_zeros(grad, {batch, channels, total});
  const T *from = grad.const_data_ptr<T>(), *share = weight.const_data_ptr<T>();
  const int32_t* columns = index.const_data_ptr<int32_t>();
  T* to = fresh_data<T>(out);
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < batch * channels; ++row) {
    const int64_t at = row / channels * count * 3;
    mix_backward(from + row * count, columns + at, share + at, count, to + row * total);
  }
  return out;
}

template <typename T>
Tensor interpolate_rows(const Tensor& features, const Tensor& index, const Tensor& weight, int64_t threads) {
  const int64_t width = features.size(1), count = index.size(0), picks = index.size(1);
  Tensor out = torch::stable::new_empty(features, {count, width});
  const T *from = features.const_data_ptr<T>(), *share = weight.const_data_ptr<T>();
  const int64_t* rows = index.const_data_ptr<int64_t>();
  T* to = fresh_data<T>(out);
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < count; ++n) mix_row(from, rows + n * picks, share + n * picks, picks, width, to + n * width);
  return out;
}

template <typename T>
Tensor interpolate_rows_backward(const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t total, int64_t threads) {
  const int64_t width = grad.size(1), count = index.size(0), picks = index.size(1);
  Tensor out = torch::stable::new_zeros(grad, {total, width});
  const T *from = grad.const_data_ptr<T>(), *share = weight.const_data_ptr<T>();
  const int64_t* rows = index.const_data_ptr<int64_t>();
  T* to = fresh_data<T>(out);
  constexpr int64_t block = 128;  // columns of one thread
#pragma omp parallel for num_threads(threads)
  for (int64_t first = 0; first < width; first += block) {
    const int64_t part = std::min(block, width - first);
    for (int64_t n = 0; n < count; ++n)
      for (int64_t k = 0; k < picks; ++k)
        add_row(from + n * width + first, share[n * picks + k], part, to + rows[n * picks + k] * width + first);
  }
  return out;
}

// float or double, whichever the features are.
void check_features(const Tensor& features, int64_t dims) {
  const ScalarType type = features.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "features must be float32 or float64");
  check_tensor(features, dims, type, "features");
}

void check_columns(const Tensor& features, const Tensor& index, int64_t dims, int64_t total) {
  check_features(features, 3);
  check_tensor(index, dims, ScalarType::Int, "index");
  STD_TORCH_CHECK(index.size(0) == features.size(0), "features and index must have the same batch size");
  check_index(index.const_data_ptr<int32_t>(), index.numel(), total);
}

void check_weights(const Tensor& features, const Tensor& index, const Tensor& weight) {
  check_tensor(weight, index.dim(), features.scalar_type(), "weight");
  for (int64_t dim = 0; dim < index.dim(); ++dim) STD_TORCH_CHECK(weight.size(dim) == index.size(dim), "index and weight must have one shape");
}

void check_rows(const Tensor& features, const Tensor& index, const Tensor& weight, int64_t total) {
  check_features(features, 2);
  check_tensor(index, 2, ScalarType::Long, "index");
  check_weights(features, index, weight);
  STD_TORCH_CHECK(index.size(1) >= 1 && index.size(1) <= 3, "index must have 1 to 3 columns");
  const int64_t* rows = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i) STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < total, "an index is out of range: ", rows[i]);
}

}  // namespace gather_

#define MM3DAD_BY_TYPE(tensor, function, ...) \
  ((tensor).scalar_type() == ScalarType::Float ? function<float>(__VA_ARGS__) : function<double>(__VA_ARGS__))

Tensor gather(const Tensor& features, const Tensor& index, int64_t threads) {
  gather_::check_columns(features, index, 2, features.size(2));
  return MM3DAD_BY_TYPE(features, gather_::gather, features, index, threads);
}

Tensor gather_backward(const Tensor& grad, const Tensor& index, int64_t total, int64_t threads) {
  gather_::check_columns(grad, index, 2, total);
  STD_TORCH_CHECK(grad.size(2) == index.size(1), "grad and index must have the same columns");
  return MM3DAD_BY_TYPE(grad, gather_::gather_backward, grad, index, total, threads);
}

Tensor interpolate(const Tensor& features, const Tensor& index, const Tensor& weight, int64_t threads) {
  gather_::check_columns(features, index, 3, features.size(2));
  gather_::check_weights(features, index, weight);
  STD_TORCH_CHECK(index.size(2) == 3, "index must be (B, N, 3)");
  return MM3DAD_BY_TYPE(features, gather_::interpolate, features, index, weight, threads);
}

Tensor interpolate_backward(const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t total, int64_t threads) {
  gather_::check_columns(grad, index, 3, total);
  gather_::check_weights(grad, index, weight);
  STD_TORCH_CHECK(index.size(2) == 3 && grad.size(2) == index.size(1), "index must be (B, N, 3) and grad (B, C, N)");
  return MM3DAD_BY_TYPE(grad, gather_::interpolate_backward, grad, index, weight, total, threads);
}

Tensor interpolate_rows(const Tensor& features, const Tensor& index, const Tensor& weight, int64_t threads) {
  gather_::check_rows(features, index, weight, features.size(0));
  return MM3DAD_BY_TYPE(features, gather_::interpolate_rows, features, index, weight, threads);
}

Tensor interpolate_rows_backward(const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t total, int64_t threads) {
  gather_::check_rows(grad, index, weight, total);
  STD_TORCH_CHECK(grad.size(0) == index.size(0), "grad and index must have the same rows");
  return MM3DAD_BY_TYPE(grad, gather_::interpolate_rows_backward, grad, index, weight, total, threads);
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("gather(Tensor features, Tensor index, int threads) -> Tensor");
  m.def("gather_backward(Tensor grad, Tensor index, int total, int threads) -> Tensor");
  m.def("interpolate(Tensor features, Tensor index, Tensor weight, int threads) -> Tensor");
  m.def("interpolate_backward(Tensor grad, Tensor index, Tensor weight, int total, int threads) -> Tensor");
  m.def("interpolate_rows(Tensor features, Tensor index, Tensor weight, int threads) -> Tensor");
  m.def("interpolate_rows_backward(Tensor grad, Tensor index, Tensor weight, int total, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) {
  m.impl("gather", TORCH_BOX(&mm3dad::gather));
  m.impl("gather_backward", TORCH_BOX(&mm3dad::gather_backward));
  m.impl("interpolate", TORCH_BOX(&mm3dad::interpolate));
  m.impl("interpolate_backward", TORCH_BOX(&mm3dad::interpolate_backward));
  m.impl("interpolate_rows", TORCH_BOX(&mm3dad::interpolate_rows));
  m.impl("interpolate_rows_backward", TORCH_BOX(&mm3dad::interpolate_rows_backward));
}
