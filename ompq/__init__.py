"""What the stages of the OMPQ toolkit share, and what a Python user meets first.

Networks:   load_network (by name, with weights)    trace (layers, groups, blocks)    Network
            NetworkGraph
Images:     DATASETS    make_loader    Loader    calibration_images    Preprocess    preprocess_for
            choose_preprocess
Bits:       Assignment    uniform    assign    resolve (a list, a file, a published scheme)
Results:    evaluate    Accuracy    save_quantized    load_quantized    export_network
Scripts:    Parser    add_run_options    run_script    interruptible_imports    resolve_device
            seed_everything    save_state
Errors:     OmpqError, one line that says what was wrong, where, and what to do
"""

from typing import TYPE_CHECKING

from ompq._face import attach

if TYPE_CHECKING:
    from ompq.artifact import load_quantized, save_quantized
    from ompq.assignment import Assignment, assign, resolve, uniform
    from ompq.data import (
        DATASETS,
        Loader,
        calibration_images,
        choose_preprocess,
        make_loader,
        preprocess_for,
    )
    from ompq.errors import OmpqError
    from ompq.evaluation import Accuracy, evaluate
    from ompq.export import export_network
    from ompq.files import save_state
    from ompq.graph import NetworkGraph, trace
    from ompq.options import Parser, add_run_options
    from ompq.preprocess import Preprocess
    from ompq.runtime import resolve_device, seed_everything
    from ompq.script import interruptible_imports, run_script
    from ompq.zoo import Network, load_network

__version__ = "0.1.0"

__all__ = [
    "DATASETS",
    "Accuracy",
    "Assignment",
    "Loader",
    "Network",
    "NetworkGraph",
    "OmpqError",
    "Parser",
    "Preprocess",
    "add_run_options",
    "assign",
    "calibration_images",
    "choose_preprocess",
    "evaluate",
    "export_network",
    "interruptible_imports",
    "load_network",
    "load_quantized",
    "make_loader",
    "preprocess_for",
    "resolve",
    "resolve_device",
    "run_script",
    "save_quantized",
    "save_state",
    "seed_everything",
    "trace",
    "uniform",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ompq.artifact": "load_quantized save_quantized",
        "ompq.assignment": "Assignment assign resolve uniform",
        "ompq.data": "DATASETS Loader calibration_images choose_preprocess make_loader "
        "preprocess_for",
        "ompq.errors": "OmpqError",
        "ompq.evaluation": "Accuracy evaluate",
        "ompq.export": "export_network",
        "ompq.files": "save_state",
        "ompq.graph": "NetworkGraph trace",
        "ompq.options": "Parser add_run_options",
        "ompq.preprocess": "Preprocess",
        "ompq.runtime": "resolve_device seed_everything",
        "ompq.script": "interruptible_imports run_script",
        "ompq.zoo": "Network load_network",
    },
)
