"""Weights from the web, downloaded once."""

import os
import re
from urllib.parse import urlparse

from torch.hub import download_url_to_file

from fcos_core.utils.comm import get_local_rank, synchronize
from fcos_core.utils.miscellaneous import mkdir


def cache_url(url, model_dir=None, progress=True):
    """Download a file unless it is there already.

    One process per machine downloads, the others wait. A hash in the file name, as in `resnet50-19c8e357.pth`, is
    checked.

    Args:
        url (str): where the file is. A fragment (`#name`) overrides the file name.
        model_dir (str): folder of the downloads; default $TORCH_MODEL_ZOO, else $TORCH_HOME/models, else
            ~/.torch/models.
        progress (bool): show a progress bar on stderr.

    Returns:
        str: path of the local file.
    """
    if model_dir is None:
        torch_home = os.path.expanduser(os.environ.get("TORCH_HOME", "~/.torch"))
        model_dir = os.environ.get("TORCH_MODEL_ZOO", os.path.join(torch_home, "models"))
    filename = cached_filename(url)
    cached_file = os.path.join(model_dir, filename)
    if not os.path.exists(cached_file) and get_local_rank() == 0:
        mkdir(model_dir)
        digest = re.search(r"-([a-f0-9]{8,})\.", filename)
        download_url_to_file(url, cached_file, digest.group(1) if digest else None, progress)
    synchronize()
    return cached_file


def cached_filename(url):
    """File name under which `cache_url` keeps `url`.

    Legacy: the many Caffe2 files that are all called model_final.pkl get their whole path as name.
    """
    parts = urlparse(url)
    name = parts.fragment or os.path.basename(parts.path)
    return parts.path.replace("/", "_") if name == "model_final.pkl" else name
