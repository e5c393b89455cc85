"""Train a shipped model and export it: ``python -m models.train --model capstan-tiny``.

Everything is kept under the build directory, and a second call continues where the first was stopped. If the
checkpoint has already reached the wanted number of steps, nothing is trained and the model is exported as it stands.
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from models.card import Run
from models.dataset import prepare, prepare_text
from models.evaluation import evaluate
from models.export import export
from models.network import SHAPES, Llama
from models.packages import CorpusError
from models.training import Recipe, Trainer

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build"
STEPS = {"capstan-tiny": 900, "capstan-tiny-draft": 1200}

logger = logging.getLogger("models.train")


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--model", choices=sorted(SHAPES), default="capstan-tiny", help="which shape to train")
    parser.add_argument("--steps", type=_positive, help="total optimizer steps (default: as shipped)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data order")
    parser.add_argument(
        "--teacher", choices=sorted(SHAPES), help="exported model whose distribution is learned in the decay"
    )
    parser.add_argument("--text", type=Path, nargs="+", help="plain text files instead of Debian's documentation")
    parser.add_argument("--build", type=Path, default=BUILD, help="where text and checkpoints are kept")
    parser.add_argument("--output", type=Path, default=HERE, help="where the model's directory is written")
    parser.add_argument("--threads", type=_positive, default=1, help="CPU threads")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train, evaluate and export."""
    options = arguments().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    try:
        data = prepare_text(options.build / "text", options.text) if options.text else prepare(options.build / "corpus")
    except (CorpusError, OSError, ValueError) as error:
        sys.exit(f"cannot prepare the training text: {error}")
    logger.info("%s training tokens", f"{len(data.train):,}")

    model = Llama(SHAPES[options.model])
    teacher = _exported(options.output, options.teacher) if options.teacher else None
    trainer = Trainer(model, data, Recipe(options.steps or STEPS[options.model], seed=options.seed), teacher)
    checkpoint = options.build / "train" / f"{options.model}.safetensors"
    if checkpoint.exists():
        trainer.load(checkpoint)
        logger.info("continuing at step %d", trainer.step)
    for step, loss in trainer.run(checkpoint):
        if step % 10 == 0 or step == trainer.recipe.steps:
            rate = step * trainer.recipe.batch_tokens / trainer.seconds
            logger.info("step %d of %d: loss %.3f, %.0f tokens/s", step, trainer.recipe.steps, loss, rate)

    qualities = [evaluate(model, stream, teacher) for stream in data.held_out]
    for quality in qualities:
        logger.info("held-out %s: perplexity %.2f", quality.name, quality.perplexity)
    command = shlex.join(["python", "-m", "models.train", *(sys.argv[1:] if argv is None else argv)])
    run = Run(
        name=options.model,
        command=command,
        recipe=trainer.recipe,
        num_steps=trainer.step,
        seconds=trainer.seconds,
        teacher=options.teacher or "",
        qualities=tuple(qualities),
    )
    export(options.output / options.model, model, data, run)
    logger.info("exported %s", options.output / options.model)


def _exported(directory: Path, name: str) -> Llama:
    weights = directory / name / "model.safetensors"
    if not weights.exists():
        sys.exit(f"--teacher {name}: {weights} does not exist; train {name} first")
    model = Llama(SHAPES[name])
    model.load_state_dict(load_file(weights))
    return model


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    main()
