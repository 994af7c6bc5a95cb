"""What tests of CUDA kernels share: marks, streams, synchronisation, graphs and memory."""

import contextlib

import pytest
import torch


def needs_cuda(test):
    """Mark a test that has nothing to do without a GPU."""
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


@contextlib.contextmanager
def no_sync():
    """Raise where torch waits for the GPU."""
    if not hasattr(torch.cuda, "set_sync_debug_mode"):
        pytest.skip("set_sync_debug_mode came with torch 1.10")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_side_stream(function, *tensors):
    """Result of function(*tensors) on a stream of its own, where the tensors get their values late.

    What runs on another stream finds zeros.
    """
    late = [torch.zeros_like(tensor).detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50000000)  # cycles, about 30 ms
        for empty, tensor in zip(late, tensors):
            empty.data.copy_(tensor.detach())
        result = function(*late)
    stream.synchronize()
    return result


def replayed(function, first, second):
    """Result of function(*second) from a CUDA graph that was captured with other values, `first`."""
    if not hasattr(torch.cuda, "graph"):
        pytest.skip("CUDA graphs came with torch 1.10")
    inputs = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in first]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*inputs)
    for tensor, value in zip(inputs, second):
        tensor.data.copy_(value.detach())
    graph.replay()
    torch.cuda.synchronize()
    return result


def peak_bytes(function):
    """Most memory that a call takes beyond what was taken before it, its result included."""
    function()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
