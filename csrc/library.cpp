// Loads the library. `_ext` is an empty Python module: importing it, or loading its file with
// torch.ops.load_library, runs the static registrations of all ops. An init function has to exist
// because the Windows linker exports PyInit__ext by name.
//
// Build facts, as ops without tensors:
//   fcos_core::_built_with_torch() -> str    torch version of the headers, "1.7" for 1.7.x, "1.8" for 1.8.x
//   fcos_core::_built_with_cuda() -> bool    whether CUDA kernels are in this library
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string>

#include "compat.h"

PyMODINIT_FUNC PyInit__ext() {
  static struct PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_ext", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

namespace fcos_core {
namespace {

std::string built_with_torch() { return TORCH_VERSION; }

bool built_with_cuda() {
#ifdef WITH_CUDA
  return true;
#else
  return false;
#endif
}

}  // namespace
}  // namespace fcos_core

FCOS_LIBRARY_FRAGMENT(fcos_core, m) {
  m.def("_built_with_torch() -> str", TORCH_FN(fcos_core::built_with_torch));
  m.def("_built_with_cuda() -> bool", TORCH_FN(fcos_core::built_with_cuda));
}
