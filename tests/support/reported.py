"""Files of runs as the commands write them, small, for reports to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GROUPS: list[dict[str, Any]] = [
    {
        "layers": ["stem"],
        "bits": 8,
        "act_bits": 8,
        "params": 100,
        "ops": 5000,
        "shapes": [[4, 1, 5, 5]],
        "in_list": False,
    },
    {
        "layers": ["body.a", "body.<b>"],
        "bits": 3,
        "act_bits": 8,
        "params": 2000,
        "ops": 90000,
        "shapes": [[8, 4, 3, 3], [8, 4, 1, 1]],
        "prices": {"2": 0.5, "3": 0.25, "4": 0.125},
        "in_list": True,
    },
    {
        "layers": ["head"],
        "bits": 2,
        "act_bits": 4,
        "params": 300,
        "ops": 600,
        "shapes": [[10, 8]],
        "prices": {"2": 0.75, "3": 0.0625, "4": 0.03125},
        "in_list": True,
    },
]
SIZE = (100 * 8 + 2000 * 3 + 300 * 2 + 32 * 50) / 8 / 2**20
CONFIG = {
    "format": "ompq-bit-config/1",
    "model": "net.py:make",
    "groups": GROUPS,
    "model_size_mb": SIZE,
    "float_size_mb": 4 * 2450 / 2**20,
    "bops_g": 0.0123,
    "seed": 3,
    "command": "ompq-bits --arch net.py:make",
    "metric": "kl",
    "estimator": "exact",
    "parameters": {"total": 2450, "quantized": 2400},
    "float_layers": {"norm": "LayerNorm stays in float"},
    "timing": {"total": 1.5},
    "versions": {"torch": "2.14.1"},
}
BLOCK = {
    "name": "body",
    "layers": ["body.a", "body.<b>"],
    "iterations": 20,
    "loss_before": 0.5,
    "loss_after": 0.125,
    "kept": "reconstruction",
    "act_iterations": 0,
    "act_loss_before": None,
    "act_loss_after": None,
    "act_kept": "",
    "seconds": 1.25,
}
RESULTS = {
    "format": "ompq-ptq-results/1",
    "top1_fp32": 91.73,
    "top1_before": 80.5,
    "top1": 91.25,
    "agreement": 97.5,
    "num_eval": 400,
    "model_size_mb": SIZE,
    "float_size_mb": 4 * 2450 / 2**20,
    "bops_g": 0.0123,
    "seconds": 12.5,
    "blocks": [BLOCK],
    "tuning": {"iterations": 5, "before": 0.25, "after": 0.125},
    "allocation": GROUPS,
    "arguments": {"model": "net.py:make", "seed": 3, "bit_cfg": None},
    "versions": {"torch": "2.14.1"},
}
FRONT = {
    "format": "ompq-sweep/1",
    "model": "net.py:make",
    "points": [
        {"model_size_mb": 0.5, "value": 0.25, "knee": False, "bits": [2, 2]},
        {"model_size_mb": 0.625, "value": 0.125, "knee": True, "bits": [3, 2]},
        {"model_size_mb": 0.75, "value": 0.0625, "knee": False, "bits": [4, 3]},
    ],
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgAB"
    "SK+kcQAAAABJRU5ErkJggg=="
)
CHANGES = {
    "format": "ompq-changes/1",
    "num_images": 400,
    "changed": 9,
    "repaired": 2,
    "broken": 4,
    "labelled": True,
    "images": [{"index": 7, "label": 1, "float": 1, "quantized": 0, "picture": PIXEL}],
    "class_names": ["cat", "<dog>"],
}
DEBUG = {
    "format": "ompq-debug/1",
    "layers": [
        {
            "name": name,
            "bits": 3,
            "act_bits": 8,
            "weight": 12.5,
            "given": None,
            "own": own,
            "output": 9.25,
            "clipped": 0.0125,
            "dead_channels": 1,
            "hint": "more bits",
        }
        for name, own in (("stem", 30.5), ("body.a", 10.25), ("head", None))
    ],
}
COMPARISON = {
    "format": "ompq-comparison/1",
    "arguments": {"model": "net.py:make"},
    "rows": [
        {
            "method": "kl",
            "budget_mb": 0.5,
            "size_mb": 0.4375,
            "kl": 0.03125,
            "agreement": 97.5,
            "top1": None,
        }
    ],
    "correlations": [{"method": "kl", "rho": 0.875, "low": 0.75, "high": 0.9375, "passes": 12.0}],
}
HISTORY = [
    {"step": 0, "epoch": 0, "loss": None, "top1": 12.5, "top5": 50.0},
    {"step": 24, "epoch": 1, "loss": 0.625, "top1": 87.5, "top5": 99.0},
]
FILES = {
    "bit_config.json": CONFIG,
    "results.json": RESULTS,
    "sweep.json": FRONT,
    "changes.json": CHANGES,
    "debug.json": DEBUG,
    "compare.json": COMPARISON,
}


def fill(folder: Path, *names: str) -> Path:
    """Write some of the files, or all, into a folder."""
    folder.mkdir(exist_ok=True)
    for name in names or FILES:
        (folder / name).write_text(json.dumps(FILES[name]))
    return folder
