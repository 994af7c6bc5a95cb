"""Which weights, which config and which class names a test or a demo uses.

Weights come from the command line, else from the last checkpoint of OUTPUT_DIR, else from the config. The config comes
from a yaml file, else from the checkpoint, which carries the one it was trained with. Options always win.
"""

import collections
import logging

from yacs.config import CfgNode

from fcos_core.config import load_config
from fcos_core.config.heads import HEADS, settle_head
from fcos_core.utils.checkpoint import Checkpointer, DetectronCheckpointer, find_weights, read_weights

__all__ = ["RestoredRun", "restore_run", "load_weights"]

RestoredRun = collections.namedtuple(
    "RestoredRun",
    [
        "cfg",  # modifiable
        "explicit",  # set of dotted names that the file or the options set
        "weights",  # path, URL or catalog:// name
        "categories",  # class names that the checkpoint carries, or None
    ],
)

# Weights of a classifier: a detector that has only these finds nothing.
_BACKBONE_ONLY = "ImageNetPretrained"


def restore_run(config_file="", opts=(), weights=""):
    """Put config, weights and class names together.

    Args:
        config_file (str): yaml; "" takes the config from the checkpoint.
        opts (sequence[str]): KEY VALUE pairs.
        weights (str): path, URL or catalog:// name; "" looks for MODEL.WEIGHT in ``opts``, for the last checkpoint of
            OUTPUT_DIR, and for MODEL.WEIGHT in the file.

    Returns:
        RestoredRun. Its NUM_CLASSES are those of the checkpoint unless file or options say otherwise.

    Raises:
        ValueError: no weights of a detector, or no config.
        FileNotFoundError: a file does not exist.
    """
    cfg, explicit = load_config(config_file, opts)
    weights = weights or _find(cfg, list(opts)[0::2])
    checkpoint = _read(cfg, weights)
    if not config_file:
        cfg, explicit = _config_of(checkpoint, weights, opts)
    categories = checkpoint.get("categories") or None
    if categories and not any("MODEL.{}.NUM_CLASSES".format(head) in explicit for head in HEADS):
        for head in HEADS:
            cfg.MODEL[head].NUM_CLASSES = len(categories) + 1
    cfg.MODEL.BACKBONE.PRETRAINED = False  # whatever a body would be given at first, these weights replace it
    return RestoredRun(cfg, explicit, weights, categories)


def _find(cfg, option_names):
    if "MODEL.WEIGHT" in option_names and cfg.MODEL.WEIGHT:
        return cfg.MODEL.WEIGHT
    last = Checkpointer(None, save_dir=cfg.OUTPUT_DIR)
    if last.has_checkpoint():
        return last.get_checkpoint_file()
    if not cfg.MODEL.WEIGHT or _BACKBONE_ONLY in cfg.MODEL.WEIGHT:
        raise ValueError(
            "restore_run: expected trained weights, got {} and no last_checkpoint in OUTPUT_DIR '{}'; name them: "
            "MODEL.WEIGHT path/to/model_final.pth, or OUTPUT_DIR of the training".format(
                "the ImageNet weights " + cfg.MODEL.WEIGHT if cfg.MODEL.WEIGHT else "no MODEL.WEIGHT", cfg.OUTPUT_DIR
            )
        )
    return cfg.MODEL.WEIGHT


def _read(cfg, weights):
    """The checkpoint, for its config and class names."""
    return read_weights(cfg, find_weights(cfg, weights))


def _config_of(checkpoint, weights, opts):
    text = checkpoint.get("config")
    if not text:
        raise ValueError(
            "restore_run: expected a checkpoint that carries its config, got {}, which does not; pass --config-file "
            "with the yaml file it was trained with, or convert weights of another framework with "
            "tools/convert_checkpoint.py".format(weights)
        )
    cfg, _ = load_config()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    cfg.merge_from_list(list(opts))
    settle_head(cfg, set(opts[0::2]), {"MODEL.{}_ON".format(head) for head in HEADS})
    # The checkpoint's config holds every key, so only the options are known to have been asked for.
    return cfg, set(list(opts)[0::2])


def load_weights(cfg, model, weights):
    """Take the tensors of ``weights`` into the model, all of which they must fill."""
    checkpointer = DetectronCheckpointer(cfg, model, logger=logging.getLogger("fcos_core.inference"))
    checkpointer.load(weights, resume=False, whole=True)
