// An operator and its gradient as one node of the graph of autograd.
//
// torch::autograd::Function does that too, but as templates of a thousand lines, instantiated for each operator and
// its list of arguments: half of the seconds that an operator took to compile. Here they are instantiated in
// autograd.cpp alone, for a function that takes tensors and a closure with whatever else the operator needs.
#pragma once

#include "compat.h"

#include <c10/util/FunctionRef.h>  // that of 1.7 relies on what compat.h includes

#include <initializer_list>
#include <string>
#include <vector>

namespace torch {
namespace autograd {
struct AutogradContext;
}
}  // namespace torch

namespace fcos_core {

using OptionalTensor = c10::optional<at::Tensor>;
using Variables = std::vector<at::Tensor>;

// What a forward pass leaves for the backward pass.
class Context {
 public:
  explicit Context(torch::autograd::AutogradContext& context) : context_(context) {}

  // Inputs and outputs; an undefined one comes back undefined. Those changed in place in between are refused.
  void save_for_backward(Variables tensors);
  Variables get_saved_variables() const;

  // Anything else, by name.
  c10::IValue& data(const char* name);
  bool has(const char* name) const;
  void forget(const char* name);

  // Of outputs, during the forward pass.
  void mark_non_differentiable(const Variables& outputs);
  // Whether outputs that had no gradient come with zeros (as they do unless told otherwise) or undefined.
  void set_materialize_grads(bool value);

 private:
  torch::autograd::AutogradContext& context_;
};

// Computes the outputs, below autograd.
using Forward = c10::function_ref<Variables(Context&)>;
// Turns gradients of the outputs into those of the inputs, as many as there are inputs, undefined where there is none.
using Backward = Variables (*)(Context&, const Variables& grads);

// The operators, so that graphs, profiles and anomaly mode name the one that they speak of.
#define FCOS_FOR_DIFFERENTIABLE(X) \
  X(DeformConv)                    \
  X(DeformPsroiPooling)            \
  X(GroupNormRelu)                 \
  X(IouLoss)                       \
  X(RoiAlign)                      \
  X(RoiPool)                       \
  X(SigmoidFocalLoss)

#define FCOS_DECLARE(Op) struct Op;
FCOS_FOR_DIFFERENTIABLE(FCOS_DECLARE)
#undef FCOS_DECLARE

// Runs `forward` and, if an input requires gradients, records it with `backward`, which has to be the same function
// at each call. At most six inputs; one that is missing or undefined has no gradient.
template <typename Op>
Variables differentiable(std::initializer_list<OptionalTensor> inputs, Forward forward,
                         Backward backward);

// Runs `forward`, the backward pass of the operator `name`, whose outputs have no gradient themselves. That is refused
// aloud when it is asked for; without a node the result would silently lack a graph.
Variables differentiable_once(const char* name, std::initializer_list<OptionalTensor> inputs,
                              c10::function_ref<Variables()> forward);

}  // namespace fcos_core
