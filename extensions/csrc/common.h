// What the kernels share: the macro for several instruction sets, and checks at the door.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

// One build runs everywhere and uses what the processor has: the loader picks the best of these versions of a function.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MM3DAD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MM3DAD_CLONES
#endif

namespace mm3dad {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The Python side checks and explains; these only keep a direct call of torch.ops.mm3dad from reading wild memory.
inline void check_tensor(const Tensor& tensor, int64_t dims, ScalarType type, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == dims, name, " must have ", dims, " dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype for this kernel");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

// A fresh tensor of many megabytes costs more in page faults than in arithmetic; pages of 2 MB make them rare. Only a hint.
template <typename T>
T* fresh_data(Tensor& tensor) {
  T* data = tensor.mutable_data_ptr<T>();
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + tensor.numel() * sizeof(T)) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace mm3dad
