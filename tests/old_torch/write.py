"""Writes this folder's files; run once with each torch: `python write.py DIR`.

torch 1.4.0 (Python 3.7), 1.13.1 and 2.0.1 (3.8), 2.6.0 (3.11), as pip installs them.
"""

import sys
from collections import OrderedDict

import numpy as np
import torch

FORMS = {"zip": True, "legacy": False}


def content():
    """What checkpoints have: many dtypes, views, ties, parameters, NumPy's numbers, attributes."""
    table = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(
        table=table,
        tied=table,
        row=table[1],
        turned=torch.arange(6.0).reshape(2, 3).t(),
        scalar=torch.tensor(2.5, dtype=torch.float64),
        empty=torch.zeros(0, 3),
        half=torch.arange(3).half(),
        flags=torch.tensor([True, False, True]),
        bytes=torch.arange(5, dtype=torch.uint8),
        small=torch.arange(-2, 1, dtype=torch.int8),
        short=torch.arange(-2, 1, dtype=torch.int16),
        int=torch.arange(3, dtype=torch.int32),
        long=torch.tensor([-(2**62)]),
        brain=torch.arange(3.0).bfloat16(),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    state._metadata = OrderedDict([("", {"version": 1})])
    return {
        "model": state,
        "model_args": {"n_layer": 2, "bias": False, "dropout": 0.0, "name": "é", "init": None},
        "best_val_loss": np.float32(2.5),
        "steps": np.arange(3),
        "iter_num": 70000,
        "run": {"betas": (0.9, 0.95), "sizes": [1, -(2**40)], 7: ("a", "b", "c", "d")},
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    for name, is_zip in FORMS.items():
        path = "{}/{}-{}.pt".format(sys.argv[1], torch.__version__.split("+")[0], name)
        torch.save(content(), path, _use_new_zipfile_serialization=is_zip)
