"""The dense heads.  The name is historical: checkpoints call their parameters ``rpn.head.*``."""
