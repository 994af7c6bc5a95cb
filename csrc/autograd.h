// Torch's custom autograd functions, for the .cpp files of operators: after compat.h, which decides how much of
// torch its headers bring.
#pragma once

#include "compat.h"

#include <torch/csrc/autograd/custom_function.h>
