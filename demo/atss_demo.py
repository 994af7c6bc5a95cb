"""As fcos_demo.py, with the model of ATSS."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from fcos_demo import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(config_file="configs/atss/atss_R_50_FPN_1x.yaml", weights="ATSS_R_50_FPN_1x.pth"))
