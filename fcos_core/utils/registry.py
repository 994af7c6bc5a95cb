"""A dictionary of named builders that refuses a name twice."""


def _register_generic(module_dict, module_name, module):
    """Old name of what Registry.register does: add `module` under a new name."""
    Registry._add(module_dict, module_name, module)


class Registry(dict):
    """Names and what they stand for, filled by a decorator or by a call.

    Example:
        `@BODIES.register("tiny")` above a function, or `BODIES.register("tiny", build_tiny)`; then `BODIES["tiny"]`.
    """

    def register(self, module_name, module=None):
        """Add `module` under `module_name`; without `module`, return a decorator that does it.

        Raises:
            AssertionError: the name is taken. (Legacy: code built on the older packages expects this type.)
        """
        if module is not None:
            self._add(module_name, module)
            return module

        def decorate(decorated):
            self._add(module_name, decorated)
            return decorated

        return decorate

    def _add(self, name, module):
        if name in self:
            raise AssertionError(
                "Registry.register: expected a new name, got {!r} which stands for {!r}; choose another name".format(
                    name, self[name]
                )
            )
        self[name] = module

    def __missing__(self, name):
        raise KeyError(
            "Registry: expected one of {}, got {!r}; check the spelling in the config".format(
                ", ".join(sorted(map(str, self))), name
            )
        )
