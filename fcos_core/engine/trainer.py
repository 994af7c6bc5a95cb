"""The training loop."""

import contextlib
import datetime
import logging
import time

import torch

from fcos_core.engine.guards import (
    LossGuard,
    StopSignals,
    TrainingInterrupted,
    log_stop,
    refuse_nonfinite_parameters,
    refuse_nothing_to_do,
)
from fcos_core.engine.precision import Precision
from fcos_core.engine.report import TrainingReport
from fcos_core.utils.comm import all_gather, get_rank, get_world_size, reduce_dict
from fcos_core.utils.rng import get_rng_state, set_rng_state


def reduce_loss_dict(loss_dict):
    """Mean of each loss over all processes, for logging; with one process the same dictionary."""
    with torch.no_grad():
        return reduce_dict(loss_dict)


def do_train(
    model,
    data_loader,
    optimizer,
    scheduler,
    checkpointer,
    device,
    checkpoint_period,
    arguments,
    *,
    precision=None,
    clip_gradients=0.0,
    accumulate=1,
    channels_last=False,
    report=None,
    test_period=0,
    run_test=None
):
    """Train until the data loader ends, writing checkpoints `model_<iteration>` and at the end `model_final`.

    The host waits for the GPU only where a line is printed or a checkpoint written.

    Args:
        model (nn.Module): `model(images, targets)` returns a dictionary of scalar losses; may be wrapped in DDP.
        data_loader: gives `(images, targets, image_ids)`; its length counts the batches of the whole run, also those
            before `arguments["iteration"]`, which it leaves out.
        optimizer, scheduler: stepped once per iteration, in this order.
        checkpointer (Checkpointer): saves; its folder also takes the batch of a non-finite loss.
        device (torch.device): where batches go.
        checkpoint_period (int): iterations between checkpoints.
        arguments (dict): "iteration" = iterations that are done; is kept up to date. All entries go into the
            checkpoints. "rng" and "scaler", if a checkpoint brought them, are restored.
        precision (Precision): default float32.
        clip_gradients (float): largest total norm of the gradients, 0: off.
        accumulate (int): batches per iteration, whose losses are averaged.
        channels_last (bool): convert the images to that memory format; the model is the caller's to convert.
        report (TrainingReport): log lines and curves; default: log lines only.
        test_period (int): iterations between calls of `run_test`, 0: none.
        run_test (callable): `run_test(model)` returns {data set: {metric: value}} for the report.

    Raises:
        NothingToTrainError: no iterations are left.
        NonFiniteLossError: a loss became NaN or infinite.
        TrainingInterrupted: SIGTERM or Ctrl-C; a checkpoint is written.
    """
    logger = logging.getLogger("fcos_core.trainer")
    start_iter, max_iter = arguments["iteration"], len(data_loader) // accumulate
    refuse_nothing_to_do(start_iter, max_iter)
    precision = precision or Precision("", device)
    report = report or TrainingReport(max_iter)
    image_name = getattr(getattr(data_loader, "dataset", None), "image_name", None)

    def save(name):
        guard.drain()
        refuse_nonfinite_parameters(model, arguments["iteration"])
        sampler = dict(arguments.get("sampler", {}), batches=arguments["iteration"] * accumulate)
        states = {"scaler": precision.state_dict(), "rng": all_gather(get_rng_state()), "sampler": sampler}
        checkpointer.save(name, **dict(arguments, **states))

    logger.info(f"Start training: iteration {start_iter + 1} to {max_iter}")
    start_time = time.time()
    model.train()
    with StopSignals() as stop, report:
        guard = LossGuard(device, checkpointer.save_dir, stop, image_name)
        batches = iter(data_loader)  # inside StopSignals: forked workers inherit the handlers and survive Ctrl-C
        _restore(arguments, precision)  # after iter(), which draws a random number

        for iteration in range(start_iter + 1, max_iter + 1):
            iteration_start, data_time, totals = time.time(), 0.0, {}
            for micro in range(accumulate):
                tick = time.time()
                batch = _next_batch(batches, stop, iteration)
                data_time += time.time() - tick
                if batch is None:
                    break
                images, targets = _to_device(batch, device, channels_last)
                with _gradients_stay_here(model, micro < accumulate - 1):
                    with precision.autocast():
                        losses = model(images, targets)
                    guard.watch(iteration, losses, batch)
                    precision.backward(sum(losses.values()) / accumulate)
                for name, loss in losses.items():
                    totals[name] = totals.get(name, 0) + loss.detach() / accumulate
            if batch is None:
                break

            norm = precision.clip(optimizer, clip_gradients)
            if norm is not None:
                guard.watch(iteration, {"gradient norm": norm}, batch)
            lr = optimizer.param_groups[0]["lr"]
            precision.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            arguments["iteration"] = iteration

            if report.is_due(iteration):
                guard.drain()
            report.iteration(iteration, totals, lr, data_time, time.time() - iteration_start)
            if guard.stop_signal():
                break
            if iteration % checkpoint_period == 0:
                save(f"model_{iteration:07d}")
            if test_period and iteration % test_period == 0 and iteration < max_iter:
                report.results(iteration, _test_aside(run_test, model))

        if arguments["iteration"] < max_iter:
            save(f"model_{arguments['iteration']:07d}")
            log_stop(stop.requested or guard.stop_signal(), arguments["iteration"])
            raise TrainingInterrupted(128 + (stop.requested or guard.stop_signal()))
        save("model_final")
        seconds, done = time.time() - start_time, max_iter - start_iter
        logger.info(f"Total training time: {datetime.timedelta(seconds=int(seconds))} ({seconds / done:.4f} s / it)")


def _restore(arguments, precision):
    """Take the states that a checkpoint brought out of `arguments` and put them where they belong."""
    precision.load_state_dict(arguments.pop("scaler", None))
    states = arguments.pop("rng", None)
    if states is None:
        return
    if len(states) == get_world_size():
        set_rng_state(states[get_rank()])
    else:
        logging.getLogger("fcos_core.trainer").warning(
            f"The checkpoint comes from {len(states)} processes, this run has {get_world_size()}: its random states "
            "do not fit and are not restored"
        )


def _next_batch(batches, stop, iteration):
    """The next batch, or None if a signal has ended the processes that load the data, too."""
    try:
        return next(batches)
    except StopIteration:
        raise RuntimeError(
            f"do_train: expected as many batches as len(data_loader) says, got no more at iteration {iteration}; "
            "the loader must leave out only what arguments['iteration'] says is done"
        ) from None
    except (RuntimeError, OSError, EOFError):  # a worker was ended, or the pipe to it broke
        if stop.requested and get_world_size() == 1:
            return None
        raise


def _to_device(batch, device, channels_last):
    images, targets, _ = batch
    images = images.to(device, non_blocking=True)
    if channels_last:
        images.tensors = images.tensors.contiguous(memory_format=torch.channels_last)
    return images, [target.to(device, non_blocking=True) for target in targets]


def _gradients_stay_here(model, stay):
    """Context in which DDP does not exchange gradients: only the last of the accumulated batches needs to."""
    return model.no_sync() if stay and hasattr(model, "no_sync") else contextlib.nullcontext()


def _test_aside(run_test, model):
    """Run a test in the middle of the training, without a trace in the random states or the mode of the model."""
    states = get_rng_state()
    results = run_test(model)
    set_rng_state(states)
    model.train()
    return results
