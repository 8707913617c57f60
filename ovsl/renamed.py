"""Options that had another name once: what older checkpoints and runs hold is understood, what users write is told.

Files that ovsl wrote itself, checkpoints and what lies in run directories, are read under the new names. In the files
and commands of users an old name is refused with the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ovsl.configuration import read_configuration
from ovsl.errors import InputError

_PIXEL, _MASK = "pixel_decoder", "mask_decoder"

RENAMED: Mapping[str, Mapping[str, str]] = {
    "CLIPLightweight": {
        "width": "sizes.width",
        "token_width": "sizes.token_width",
        "heads": "sizes.num_heads",
        "depth": "sizes.num_layers",
        "expand": "sizes.expand_ratio",
        "ffn_ratio": "sizes.mlp_ratio",
        "position_grid": "sizes.position_grid",
        "fpn_width": "sizes.fpn_width",
        "head_width": "sizes.head_width",
    },
    "DenseCLIP": {
        "input_resolution": "sizes.image_size",
        "num_contexts": "sizes.num_contexts",
        "fpn_width": "sizes.fpn_width",
        "head_width": "sizes.head_width",
        "context_decoder.width": "sizes.context_decoder.width",
        "context_decoder.num_heads": "sizes.context_decoder.num_heads",
        "context_decoder.num_layers": "sizes.context_decoder.num_layers",
        "context_decoder.dropout": "context_dropout",
    },
    "FCCLIP": {
        **{f"{_PIXEL}.{name}": f"sizes.{_PIXEL}.{name}"
           for name in ("width", "num_heads", "num_points", "num_layers", "feed_forward")},
        **{f"{_MASK}.{name}": f"sizes.{_MASK}.{name}"
           for name in ("width", "num_queries", "num_heads", "num_layers", "feed_forward")},
    },
    "LSeg": {
        "width": "sizes.width",
        "reassemble": "sizes.reassemble",
    },
    "SAN": {
        **{f"network.{name}": f"sizes.{name}"
           for name in ("num_shallow_blocks", "fusion", "width", "num_heads", "patch_size", "image_size", "num_queries",
                        "num_mlp_layers", "hidden_width", "bias_heads", "bias_layers")},
        "network.depth": "sizes.num_layers",
        "network.embedding_width": "sizes.embedding_dimension",
        **{f"network.{name}": name for name in ("clip_scale", "supervised_blocks", "rescale_bias", "recognition")},
    },
    "TrainingFree": {"word_list": "class_names"},
    "ZegCLIP": {
        "num_prompts": "sizes.num_prompts",
        "deep_prompt_layers": "sizes.deep_prompt_layers",
        "decoder_layers": "sizes.num_layers",
        "decoder_heads": "sizes.num_heads",
        "decoder_ffn_dim": "sizes.feed_forward",
    },
}  # fmt: skip
"""Method -> old option -> new option. An option keeps its meaning and its values when it is renamed."""


def migrate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the settings of an older checkpoint or run to the options of today.

    Args:
        settings: `class_path` and `init_args` of a method.

    Returns:
        The same under today's names; a copy.
    """
    renames = of_method(settings.get("class_path"))
    options = dict(settings.get("init_args") or {})
    for old in found(options, renames):
        _put(options, renames[old], _take(options, old))
    for group in _groups(renames):
        # Emptied by the moves, or None for the defaults of its time, which today's are too.
        if group in options and not options[group]:
            del options[group]
    return {**settings, "init_args": options}


def migrate_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the identity of an older run, `model.OPTION` -> value, to the options of today."""
    renames = {f"model.{old}": f"model.{new}" for old, new in of_method(identity.get("model.class_path")).items()}
    groups = {f"model.{group}" for group in _groups(of_method(identity.get("model.class_path")))}
    current = {}
    for name, value in identity.items():
        # Dictionaries lie flat in an identity: what belongs to an option begins with its name.
        old = next((old for old in renames if name == old or name.startswith(f"{old}.")), None)
        if old is not None:
            current[renames[old] + name.removeprefix(old)] = value
        elif name not in groups:
            current[name] = value
    return current


def current_content(content: Any, file: Path) -> Any:
    """Give a configuration file the names of today if it lies in a run directory; refuse old names in any other.

    Args:
        content: What the file holds.
        file: Where it lies.

    Raises:
        InputError: With every old name and its new one.
    """
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping):
        return content
    renames = of_method(model.get("class_path"))
    old = found(model.get("init_args") or {}, renames)
    if not old:
        return content
    if (file.parent / "run.json").is_file():
        return {**content, "model": migrate(model)}
    raise _told({name: renames[name] for name in old}, str(file))


def check_command(args: Sequence[str]) -> None:
    """Refuse old names on a command line.

    Args:
        args: Arguments after `ovsl`.

    Raises:
        InputError: With every old name and its new one.
    """
    options = [arg.removeprefix("--model.").removeprefix("init_args.").split("=")[0] for arg in args
               if arg.startswith("--model.")]  # fmt: skip
    methods = _methods_of(args) or RENAMED.keys()
    renames = {old: new for method in methods for old, new in RENAMED.get(method, {}).items()}
    if told := {option: renames[option] for option in options if option in renames}:
        raise _told(told, "the command")


def of_method(class_path: Any) -> Mapping[str, str]:
    """Return the renamed options of a method, by its import path or bare name."""
    return RENAMED.get(str(class_path).rsplit(".", 1)[-1], {})


def found(options: Mapping[str, Any], renames: Mapping[str, str]) -> list[str]:
    """Name the old options that are there, dotted."""
    return [old for old in renames if _holds(options, old.split("."))]


def _methods_of(args: Sequence[str]) -> set[str]:
    """Name the methods that a command line speaks of, by itself or in its files; none where a checkpoint tells."""
    methods = set()
    for flag, value in zip(args, [*args[1:], ""], strict=True):
        name, _, given = flag.partition("=")
        given = given or value
        if name == "--model" or name == "--model.class_path":
            methods.add(given.rsplit(".", 1)[-1])
        elif name in ("-c", "--config") and Path(given).is_file():
            try:
                content = read_configuration(Path(given))
                methods.add(str(content["model"]["class_path"]).rsplit(".", 1)[-1])
            except (yaml.YAMLError, KeyError, TypeError):
                continue  # what is wrong with a file is for the real parser to say
    return methods


def _told(renames: Mapping[str, str], place: str) -> InputError:
    told = ", ".join(f"model.{old} is called model.{new} now" for old, new in renames.items())
    return InputError(f"{told}; rename {'it' if len(renames) == 1 else 'them'} in {place}.")


def _groups(renames: Mapping[str, str]) -> set[str]:
    """Old options that held others and are gone."""
    return {old.split(".")[0] for old in renames if "." in old}


def _holds(options: Any, path: Sequence[str]) -> bool:
    if not path:
        return True
    return isinstance(options, Mapping) and path[0] in options and _holds(options[path[0]], path[1:])


def _take(options: dict[str, Any], name: str) -> Any:
    first, _, rest = name.partition(".")
    if not rest:
        return options.pop(first)
    options[first] = dict(options[first])
    return _take(options[first], rest)


def _put(options: dict[str, Any], name: str, value: Any) -> None:
    first, _, rest = name.partition(".")
    if not rest:
        options[first] = value
        return
    options[first] = dict(options.get(first) or {})
    _put(options[first], rest, value)
