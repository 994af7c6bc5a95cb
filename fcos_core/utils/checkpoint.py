"""Checkpoints: written whole or not at all, and read without running foreign code.

Two different things are called loading. To *start from weights* means to take the tensors of some file into the model,
and nothing else. To *resume* means to go on with this very run: model, optimizer, scheduler and whatever else was
saved, such as the iteration. `Checkpointer.load` resumes if its folder has a checkpoint, else starts from weights.
"""

import glob
import logging
import os

import torch

from fcos_core.utils.c2_model_loading import load_c2_format
from fcos_core.utils.imports import import_file
from fcos_core.utils.miscellaneous import mkdir, write_atomically
from fcos_core.utils.model_serialization import load_state_dict
from fcos_core.utils.model_zoo import cache_url
from fcos_core.utils.safe_pickle import CorruptFileError, load_pickle, load_torch_file
from fcos_core.utils.weight_matching import check_config, fit_weights
from fcos_core.utils.weights_formats import interpret

_LAST = "last_checkpoint"
# What a run needs to go on, and weights for others do not.
_SOLVER_KEYS = ("optimizer", "scheduler", "scaler", "iteration", "rng", "sampler")


def read_checkpoint(path, unsafe=None):
    """Read a checkpoint file as a dictionary, on the CPU.

    Args:
        path (str): a file of `Checkpointer.save`, of the older packages or of another framework, or a bare state dict;
            a `.safetensors` file if that package is installed.
        unsafe (bool): also build objects of foreign classes; default: whether the environment variable
            FCOS_CORE_UNSAFE_PICKLE is 1.

    Returns:
        dict: with the key "model" (state dict) and whatever else the file holds: "iteration", "categories" (list of
        class names), "config" (yaml text), ...

    Raises:
        UnsafeFileError: the file holds more than tensors and plain types.
        CorruptFileError: it is truncated or damaged.
    """
    loaded = _load_safetensors(path) if path.endswith(".safetensors") else load_torch_file(path, unsafe)
    if not isinstance(loaded, dict) or "model" in loaded:
        return loaded if isinstance(loaded, dict) else {"model": loaded}
    if isinstance(loaded.get("state_dict"), dict):  # mmdetection
        return dict(loaded, model=loaded["state_dict"])
    return {"model": loaded}


def _load_safetensors(path):
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError(
            f"read_checkpoint: expected the package safetensors for {path}, got none; pip install safetensors"
        ) from None
    return load_file(path)


def read_weights(cfg, path):
    """Read any file that MODEL.WEIGHT may name: those of `read_checkpoint`, Caffe2 weights, or a `.pkl` of detectron2.

    Args:
        cfg (CfgNode): for Caffe2 weights, MODEL.BACKBONE.CONV_BODY and MODEL.RESNETS.STAGE_WITH_DCN are read.
        path (str): the file.

    Returns:
        dict: as of `read_checkpoint`; Caffe2 weights with our names.
    """
    if not path.endswith(".pkl"):
        return read_checkpoint(path)
    data = load_pickle(path)
    blobs = data.get("blobs", data)
    if isinstance(data.get("model"), dict):
        arrays = data["model"]
        return dict(data, model={name: torch.as_tensor(array) for name, array in arrays.items()})
    return dict(load_c2_format(cfg, path), group_norm=any(name.endswith("_gn_s") for name in blobs))


def remove_solver_states(path):
    """Write a copy of a checkpoint with the model but without what only the training needs.

    Args:
        path (str): the checkpoint.

    Returns:
        (str, list[str]): path of the copy, `<name>_wo_solver_states<ext>` beside it, and the keys that were left out.
    """
    checkpoint = read_checkpoint(path)
    removed = [key for key in _SOLVER_KEYS if key in checkpoint]
    for key in removed:
        del checkpoint[key]
    base, extension = os.path.splitext(path)
    target = base + "_wo_solver_states" + extension
    write_atomically(target, lambda stream: torch.save(checkpoint, stream))
    return target, removed


class Checkpointer(object):
    """Saves and loads a model with its optimizer and scheduler.

    Args:
        model (nn.Module): may be wrapped in DistributedDataParallel; the files never carry its prefix.
        optimizer, scheduler: objects with `state_dict` and `load_state_dict`, or None.
        save_dir (str): folder of the checkpoints; empty: nothing is saved and there is nothing to resume.
        save_to_disk (bool): whether this process writes; one process should.
        logger (logging.Logger): default: the one of this module.
    """

    def __init__(self, model, optimizer=None, scheduler=None, save_dir="", save_to_disk=None, logger=None):
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.save_dir = save_dir
        self.save_to_disk = save_to_disk
        self.logger = logger or logging.getLogger(__name__)

    def save(self, name, **kwargs):
        """Write `<save_dir>/<name>.pth` and make it the one to resume from.

        Args:
            name (str): file name without folder and ending.
            **kwargs: more entries, of tensors and plain types.
        """
        if not (self.save_dir and self.save_to_disk):
            return
        data = {"model": _unwrap(self.model).state_dict()}
        if self.optimizer is not None:
            data["optimizer"] = self.optimizer.state_dict()
        if self.scheduler is not None:
            data["scheduler"] = self.scheduler.state_dict()
        data.update(kwargs)

        mkdir(self.save_dir)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        write_atomically(path, lambda stream: torch.save(data, stream))
        self.tag_last_checkpoint(path)

    def load(self, f=None, resume=None, skip_mismatched=False, whole=False):
        """Resume from `save_dir` if it has a checkpoint; otherwise start from the weights `f`.

        Args:
            f (str): weights to start from: a file, a URL or a `catalog://` name; empty: none.
            resume (bool): None decides as above. True restores everything from `f`. False takes only the model
                tensors of `f`, whatever is in `save_dir`.
            skip_mismatched (bool): when starting from weights, leave tensors of another shape as they are, with a
                warning, instead of raising; for fine-tuning on other classes.
            whole (bool): every tensor of a detector must be in the file; for testing.

        Returns:
            dict: after resuming, what the checkpoint holds beside model, optimizer and scheduler; else empty.
        """
        if resume is None and self.has_checkpoint():
            path, checkpoint = self._read_newest()
            return self._restore(path, checkpoint)
        if not f:
            self.logger.info("No checkpoint and no weights to start from: the model keeps its initial values")
            return {}
        checkpoint = self._load_file(f)
        if resume:
            return self._restore(f, checkpoint)
        self.logger.info(f"Starting from the weights {f} (model tensors only)")
        self._take(checkpoint, f, skip_mismatched, whole)
        return {}

    def has_checkpoint(self):
        """Whether `save_dir` holds something to resume."""
        return bool(self.save_dir) and os.path.exists(os.path.join(self.save_dir, _LAST))

    def get_checkpoint_file(self):
        """Path of the checkpoint to resume from, "" if there is none.

        If the recorded path is gone because the folder was moved, the file of that name in `save_dir` is meant.
        """
        try:
            with open(os.path.join(self.save_dir, _LAST), "r") as stream:
                recorded = stream.read().strip()
        except IOError:
            return ""
        moved = os.path.join(self.save_dir, os.path.basename(recorded))
        return moved if not os.path.exists(recorded) and os.path.exists(moved) else recorded

    def tag_last_checkpoint(self, last_filename):
        """Record the path of the checkpoint to resume from."""
        write_atomically(os.path.join(self.save_dir, _LAST), lambda stream: stream.write(last_filename.encode("utf-8")))

    def _read_newest(self):
        """The newest readable checkpoint: the recorded one, or with a warning one that was written before it."""
        newest = self.get_checkpoint_file()
        others = [path for path in glob.glob(os.path.join(self.save_dir, "*.pth")) if not _same_file(path, newest)]
        others = [path for path in others if not path.endswith("_wo_solver_states.pth")]
        for path in [newest] + sorted(others, key=lambda path: (os.path.getmtime(path), path), reverse=True):
            try:
                checkpoint = read_checkpoint(path)
            except (CorruptFileError, IOError) as error:
                self.logger.warning(f"Cannot resume from {path or '(no path)'} ({error}); trying the one before it")
                continue
            if path == newest or "iteration" in checkpoint:
                return path, checkpoint
        raise CorruptFileError(
            f"Checkpointer.load: expected a readable checkpoint in {self.save_dir}, got none; delete {_LAST} there to "
            "start anew"
        )

    def _restore(self, path, checkpoint):
        self.logger.info(f"Resuming from {path}")
        checkpoint = dict(checkpoint)
        self._take(checkpoint, path, skip_mismatched=False, whole=True)
        del checkpoint["model"]
        for key in ("optimizer", "scheduler"):
            state, target = checkpoint.pop(key, None), getattr(self, key)
            if state is not None and target is not None:
                target.load_state_dict(state)
        return checkpoint

    def _load_file(self, f):
        return read_checkpoint(f)

    def _take(self, checkpoint, source, skip_mismatched, whole):
        """Take the tensors of a checkpoint into the model; returns the MatchReport."""
        return load_state_dict(_unwrap(self.model), checkpoint["model"], skip_mismatched, self.logger)


class DetectronCheckpointer(Checkpointer):
    """A `Checkpointer` of detectors: it also knows `catalog://` names, URLs, and the files of other frameworks, and
    refuses weights that do not belong to the model or to its config.

    Args:
        cfg (CfgNode): PATHS_CATALOG, MODEL and INPUT are read. The others as for `Checkpointer`.

    Attributes:
        report (MatchReport): of the last load; all names of both sides.
    """

    def __init__(self, cfg, model, optimizer=None, scheduler=None, save_dir="", save_to_disk=None, logger=None):
        super(DetectronCheckpointer, self).__init__(model, optimizer, scheduler, save_dir, save_to_disk, logger)
        self.cfg = cfg.clone()
        self.report = None

    def _load_file(self, f):
        return read_weights(self.cfg, find_weights(self.cfg, f, self.logger))

    def _take(self, checkpoint, source, skip_mismatched, whole):
        model, allow = _unwrap(self.model), self.cfg.MODEL.ALLOW_WEIGHT_MISMATCH
        weights = interpret(checkpoint, model_state=model.state_dict())
        check_config(self.cfg, weights, allow, source, self.logger)
        self.report = fit_weights(model, weights, skip_mismatched, whole, allow, source, self.logger)
        return self.report


def find_weights(cfg, name, logger=None):
    """Local path of weights, downloaded if need be.

    Args:
        cfg (CfgNode): PATHS_CATALOG is read.
        name (str): a path, an http(s) URL, or `catalog://NAME` for an entry of the class ModelCatalog.

    Returns:
        str: path of a file.
    """
    logger = logger or logging.getLogger(__name__)
    if name.startswith("catalog://"):
        # under a name of its own: the package's module of that file name has other users
        catalog = import_file("fcos_core.config.paths_catalog_of_the_config", cfg.PATHS_CATALOG)
        resolved = catalog.ModelCatalog.get(name[len("catalog://") :])
        logger.info(f"{name} points to {resolved}")
        name = resolved
    if name.startswith("http"):
        cached = cache_url(name)
        logger.info(f"{name} is cached in {cached}")
        name = cached
    if not os.path.isfile(name):
        raise FileNotFoundError(
            f"find_weights: expected the weights to be a file, got {name}, which does not exist; check MODEL.WEIGHT"
        )
    return name


def _unwrap(model):
    """The model inside DistributedDataParallel or DataParallel."""
    wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


def _same_file(path, other):
    return os.path.abspath(path) == os.path.abspath(other)
