"""Train a float network on a small data set, for where no checkpoint is at hand."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ompq.data import DATASETS, Loader, choose_preprocess, make_loader
from ompq.errors import OmpqError
from ompq.evaluation import evaluate
from ompq.files import check_writable, save_state
from ompq.graph import trace
from ompq.options import Parser, add_run_options
from ompq.runtime import progress, resolve_device, seed_everything
from ompq.script import run_script
from ompq.zoo import load_network

OPTIMIZERS = ("sgd", "adamw")


def build_parser() -> Parser:
    """Build the parser of all options of the script."""
    parser = Parser(prog="train_float.py", description=__doc__)
    group = parser.add_argument_group("training")
    group.add_argument("--model", required=True, metavar="NAME", help="network to train")
    group.add_argument("--dataset", choices=list(DATASETS), required=True, help="images")
    group.add_argument("--data", type=Path, help="folder of the data set, where it needs one")
    group.add_argument("--epochs", type=int, default=3, help="passes over the training images")
    group.add_argument("--batch_size", type=int, default=128, help="images per step")
    group.add_argument("--lr", type=float, default=0.1, help="highest learning rate")
    group.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="sgd", help="adamw suits transformers"
    )
    add_run_options(parser, "float_output")
    return parser


def train_float(
    network: nn.Module,
    loader: Loader,
    epochs: int,
    device: torch.device,
    *,
    learning_rate: float = 0.1,
    weight_decay: float = 5e-4,
    optimizer_name: str = "sgd",
) -> nn.Module:
    """Train a network in place on the cross entropy of its predictions.

    The learning rate goes through one cycle, step by step.

    Args:
        network: Network to train.
        loader: Loader of the training images and their labels.
        epochs: Number of passes over the images.
        device: Device that computes.
        learning_rate: Highest learning rate of the cycle.
        weight_decay: Weight decay of all parameters.
        optimizer_name: "sgd", with Nesterov's momentum of 0.9, or "adamw".

    Returns:
        The network, on `device`, in evaluation mode.
    """
    network = network.to(device).train()
    parameters = network.parameters()
    optimizer: torch.optim.Optimizer
    if optimizer_name == "adamw":
        optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)
    else:
        optimizer = torch.optim.SGD(
            parameters, learning_rate, momentum=0.9, weight_decay=weight_decay, nesterov=True
        )
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for epoch in progress(range(epochs), "training the float network", epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            loss = cross_entropy(network(images.to(device)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def run(arguments: argparse.Namespace) -> None:
    """Train a network, evaluate it, and save its weights as `MODEL.pth`.

    Args:
        arguments: Command line of `build_parser`.
    """
    device = resolve_device(arguments.device)
    preprocess = choose_preprocess(arguments.dataset, load_network(arguments.model))
    train = make_loader(
        arguments.dataset,
        arguments.data,
        "train",
        preprocess,
        arguments.batch_size,
        augment=True,
        shuffle=True,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    seed_everything(arguments.seed)
    check_writable(arguments.output_dir)
    module = load_network(arguments.model, num_classes=train.num_classes).module
    side = preprocess.input_size
    # Or says why it cannot run.
    outputs = trace(module, (preprocess.channels, side, side)).num_outputs
    if outputs < train.num_classes:
        raise OmpqError(
            f"{arguments.model} tells {outputs} classes of the {train.num_classes} of "
            f"{arguments.dataset}; it has to take `num_classes`"
        )
    train_float(
        module,
        train,
        arguments.epochs,
        device,
        learning_rate=arguments.lr,
        optimizer_name=arguments.optimizer,
    )
    test = make_loader(arguments.dataset, arguments.data, "val", preprocess, 256)
    accuracy = evaluate(module, test, device)
    file, _, factory = arguments.model.rpartition(":")
    name = factory if file.endswith(".py") else arguments.model.replace(":", "_").replace("/", "_")
    file = arguments.output_dir / f"{name}.pth"
    save_state(file, module.state_dict())
    print(f"top-1 {accuracy.top1:.2f} % of {accuracy.count} images; written to {file}")


if __name__ == "__main__":
    run_script(build_parser, run)
