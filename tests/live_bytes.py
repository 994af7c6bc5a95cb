"""Memory of tensors on any device, without a GPU's own bookkeeping."""
import weakref

import torch


class LiveBytes(object):
    """Largest sum of bytes of all tensors that operators made and that were alive together."""

    def __new__(cls):
        from torch.utils._python_dispatch import TorchDispatchMode

        class Mode(TorchDispatchMode):
            def __init__(self):
                super().__init__()
                self.users, self.now, self.peak = {}, 0, 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                for tensor in result if isinstance(result, (tuple, list)) else [result]:
                    if isinstance(tensor, torch.Tensor):
                        self.note(tensor)
                return result

            def note(self, tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.users:
                    self.now += size
                    self.peak = max(self.peak, self.now)
                self.users[key] = self.users.get(key, 0) + 1
                weakref.finalize(tensor, self.drop, key, size)

            def drop(self, key, size):
                self.users[key] -= 1
                if not self.users[key]:
                    del self.users[key]
                    self.now -= size

        return Mode()
