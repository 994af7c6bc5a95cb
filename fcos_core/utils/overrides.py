"""Old hooks of a class: code for the predecessors overrides methods that the batched code has no need to call."""


def overridden(instance, base, *names):
    """Tell whether the class of `instance` has methods of one of these names that are not those of `base`, if any."""
    return any(getattr(type(instance), name, None) is not getattr(base, name, None) for name in names)


def refuse_overridden(instance, base, name, instead):
    """Raise if a method is overridden that nothing calls, rather than leave it out of the results without a word.

    Args:
        instance, base: see `overridden`.
        name (str): of the method.
        instead (str): the method to override.

    Raises:
        TypeError: it is overridden.
    """
    if overridden(instance, base, name):
        raise TypeError(
            "{0}: expected {1} not to be overridden, got {2}.{1}; nothing calls it any more, override {3}".format(
                base.__name__, name, type(instance).__name__, instead
            )
        )
