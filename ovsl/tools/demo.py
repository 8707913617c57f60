"""`ovsl demo`: a page in the browser that labels photos with any words."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from ovsl.api import LoadedMethod, load
from ovsl.data.image_files import find_images
from ovsl.demo.server import LOOPBACK, listen, serve
from ovsl.errors import InputError
from ovsl.progress import busy
from ovsl.tools.models import model_parser, trained_model

DESCRIPTION = """Open a page: drop a photo, type words, and see what a method finds, or two side by side.

The method is a run (--run_dir runs/mine), a configuration (-c METHOD.yaml), or options (--model MaskCLIP ...); without
any, MaskCLIP on the shipped toy CLIP. The page answers to this machine alone and asks no other one for anything."""
DEFAULT = "ovsl:methods/maskclip"
MOST_SAMPLES = 24


def main(args: Sequence[str]) -> None:
    """`ovsl demo [--run_dir RUN | -c METHOD.yaml] [--compare SOURCE ...] [--samples FOLDER] [--port 7860]`."""
    parser = model_parser("ovsl demo", DESCRIPTION, required=False)
    parser.add_argument(
        "--compare",
        nargs="+",
        type=str,
        default=[],
        help="Methods to set beside it: run directories, checkpoints, or configuration files (ovsl:methods/sclip).",
    )
    parser.add_argument("--samples", type=str | None, default=None, help="Photos to offer: a file or a folder.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to serve at: this machine alone.")
    parser.add_argument("--port", type=int, default=7860, help="Port; 0 takes a free one.")
    config = parser.parse_args(list(args))
    if importlib.util.find_spec("gradio") is None:
        raise InputError("The page needs Gradio: pip install 'ovsl[demo]'.")
    taken = listen(config.host, config.port)
    samples = [(str(path), "") for path in find_images([config.samples])[0][:MOST_SAMPLES]] if config.samples else []
    with busy("Loading"):
        if config.model is not None:
            methods = [(config.run_dir or "command line", LoadedMethod(trained_model(parser, config)).to())]
        else:
            source = config.ckpt_path or config.run_dir or DEFAULT
            methods = [(source, load(source))]
        methods += [(source, load(source)) for source in config.compare]
    if config.host not in LOOPBACK:
        print(f"Whoever reaches {config.host} can use the page.")
    serve(by_title(methods), samples, taken, config.host)


def by_title(methods: Sequence[tuple[str, LoadedMethod]]) -> dict[str, LoadedMethod]:
    """Name methods by their titles, those of one title also by where they came from.

    Args:
        methods: Sources and what was loaded from them.
    """
    titles = [method.module.title for _, method in methods]
    return {
        title if titles.count(title) == 1 else f"{title}, {source}": method
        for title, (source, method) in zip(titles, methods, strict=True)
    }
