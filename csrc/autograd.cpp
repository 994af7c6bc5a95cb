// Torch's custom autograd functions, instantiated for all operators, see autograd.h.
#include "autograd.h"

#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <atomic>

#include "check.h"

namespace fcos_core {

using torch::autograd::AutogradContext;
using torch::autograd::Function;

void Context::save_for_backward(Variables tensors) {
  context_.save_for_backward(std::move(tensors));
}

Variables Context::get_saved_variables() const { return context_.get_saved_variables(); }

c10::IValue& Context::data(const char* name) { return context_.saved_data[name]; }

bool Context::has(const char* name) const {
  return context_.saved_data.find(name) != context_.saved_data.end();
}

void Context::forget(const char* name) { context_.saved_data.erase(name); }

void Context::mark_non_differentiable(const Variables& outputs) {
  context_.mark_non_differentiable(outputs);
}

void Context::set_materialize_grads(bool value) { context_.set_materialize_grads(value); }

namespace {

// Torch counts the tensors among the arguments of a function when it is compiled: always this many, those beyond the
// inputs missing.
constexpr size_t kMaxInputs = 6;
// Beside them the functions below take two arguments.
constexpr size_t kArguments = kMaxInputs + 2;

std::array<OptionalTensor, kMaxInputs> padded(std::initializer_list<OptionalTensor> inputs) {
  TORCH_INTERNAL_ASSERT(inputs.size() <= kMaxInputs, "an operator has too many inputs");
  std::array<OptionalTensor, kMaxInputs> result;
  size_t i = 0;
  for (const OptionalTensor& input : inputs) {
    // 1.7 fails on one that is there but undefined
    if (input.has_value() && input->defined()) result[i] = input;
    ++i;
  }
  return result;
}

template <typename Node, typename First, typename Second>
Variables apply(std::initializer_list<OptionalTensor> inputs, First first, Second second) {
  const auto in = padded(inputs);
  return Node::apply(in[0], in[1], in[2], in[3], in[4], in[5], first, second);
}

template <typename Op>
struct Differentiable : public Function<Differentiable<Op>> {
  static Variables forward(AutogradContext* ctx, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const Forward* forward, Backward backward) {
    function.store(backward, std::memory_order_relaxed);
    Context context(*ctx);
    BelowAutograd guard;
    return (*forward)(context);
  }

  static Variables backward(AutogradContext* ctx, const Variables& grads) {
    Context context(*ctx);
    Variables results = function.load(std::memory_order_relaxed)(context, grads);
    results.resize(kArguments);
    return results;
  }

  // Not in the context, where torch looks at all that is saved.
  static std::atomic<Backward> function;
};

template <typename Op>
std::atomic<Backward> Differentiable<Op>::function{nullptr};

const char* const kOperator = "operator";

struct DifferentiableOnce : public Function<DifferentiableOnce> {
  static Variables forward(AutogradContext* ctx, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const c10::function_ref<Variables()>* forward,
                           const char* name) {
    if (name) ctx->saved_data[kOperator] = std::string(name);
    BelowAutograd guard;
    return (*forward)();
  }

  static Variables backward(AutogradContext* ctx, const Variables&) {
    FCOS_CHECK(false, ctx->saved_data[kOperator].toStringRef(), "one", "backward pass",
               "a second one through its gradient",
               "the op is differentiable once, drop create_graph=True");
  }
};

}  // namespace

template <typename Op>
Variables differentiable(std::initializer_list<OptionalTensor> inputs, Forward forward,
                         Backward backward) {
  return apply<Differentiable<Op>>(inputs, &forward, backward);
}

#define FCOS_INSTANTIATE(Op)                                                                   \
  template Variables differentiable<Op>(std::initializer_list<OptionalTensor>, Forward, Backward);
FCOS_FOR_DIFFERENTIABLE(FCOS_INSTANTIATE)
#undef FCOS_INSTANTIATE

Variables differentiable_once(const char* name, std::initializer_list<OptionalTensor> inputs,
                              c10::function_ref<Variables()> forward) {
  // the name is for a graph only
  return apply<DifferentiableOnce>(inputs, &forward, at::GradMode::is_enabled() ? name : nullptr);
}

}  // namespace fcos_core
