"""Where the yaml files of the package are."""
import os


def find_config(name):
    """Path of a yaml file of this package.

    Args:
        name (str): relative to configs/, for example "fcos/fcos_R_50_FPN_1x.yaml".

    Returns:
        str: in a clone the file beside the package, in an installation from a wheel the one inside of it.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for folder in (os.path.join(package, "configs"), os.path.join(os.path.dirname(package), "configs")):
        path = os.path.join(folder, *name.split("/"))
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(
        "find_config: expected the name of a yaml file of this package, got {}; they are in configs/".format(name)
    )
