"""The epsilon of batch norms.

Our batch norm of constant statistics divides by sqrt(variance), everyone else by sqrt(variance + 1e-5). So the epsilon
is added to the variance on the way in, and subtracted on the way out, in double precision: what comes back is bit for
bit what went out.
"""

import collections

import torch

EPSILON = 1e-5


def fold_epsilon(variance):
    """Variance [C] that divided by without an epsilon gives the same."""
    return (variance.double() + EPSILON).to(variance.dtype)


def unfold_epsilon(state, counts_batches):
    """Take the epsilon out of the batch norms of constant statistics.

    A variance that is not above the epsilon cannot lose it; it becomes 1, and the factor of the norm changes instead.

    Args:
        state (dict[str, Tensor]): our names. A norm without `num_batches_tracked` has constant statistics.
        counts_batches (bool): add `num_batches_tracked` where it is missing.

    Returns:
        OrderedDict: a copy, with the other tensors as they are.
    """
    result = collections.OrderedDict(state)
    for name in [name for name in state if name.endswith(".running_var")]:
        norm = name[: -len(".running_var")]
        if norm + ".num_batches_tracked" in state:
            continue
        variance = state[name].double()
        small = variance <= EPSILON
        factor = torch.where(small, variance.rsqrt(), torch.ones_like(variance))
        if bool(small.any()):
            weight = state[norm + ".weight"]
            result[norm + ".weight"] = (weight.double() * factor).to(weight.dtype)
        variance = torch.where(small, torch.ones_like(variance), variance) - EPSILON
        result[name] = variance.to(state[name].dtype)
        if counts_batches:
            result[norm + ".num_batches_tracked"] = torch.tensor(0, dtype=torch.int64)
    return result
