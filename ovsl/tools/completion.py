"""`ovsl completion`: a script that completes the words of the `ovsl` command in bash and zsh.

The script is text that is made once: the parsers import torch, and a program that is asked at every TAB would answer
after seconds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from string import Template
from typing import Literal

from ovsl.help import VERBS, method_names
from ovsl.progress import progress
from ovsl.shipped import PREFIX, shipped_configurations

Shell = Literal["bash", "zsh"]

SCRIPT = Template(r"""# Completion of ovsl's words: put it where your shell finds it, see `ovsl completion --help`.
_ovsl() {
  local line word before match known="" cut=""
  line="${COMP_LINE:0:$$COMP_POINT}"
  word="${line##* }"
  before="${line%"$$word"}"
  case "$$before" in
    *" -c " | *" --config ") known="$configurations" ;;
    *" --model ") known="$methods" ;;
    *)
      set -- $$before
      case "$$2" in
        "") known="$commands" ;;
$options
      esac ;;
  esac
  # Bash completes only what is behind the last colon or equals sign.
  [ -z "$$BASH_VERSION" ] || cut="${word%"${word##*[:=]}"}"
  COMPREPLY=()
  for match in $$known; do
    case "$$match" in "$$word"*) COMPREPLY+=("${match#"$$cut"}") ;; esac
  done
}
$start
complete -o bashdefault -o default -F _ovsl ovsl
""")
START = {
    "bash": ":",
    "zsh": "whence compdef >/dev/null || { autoload -Uz compinit && compinit; }\n"
    "autoload -Uz bashcompinit && bashcompinit",
}


def main(args: Sequence[str]) -> None:
    """`ovsl completion bash`."""
    from ovsl.parsing import Parser

    parser = Parser(
        prog="ovsl completion",
        description="Print a script that completes verbs, options, methods and shipped configurations. For bash: "
        "ovsl completion bash > ~/.local/share/bash-completion/completions/ovsl; for zsh: ovsl completion zsh > "
        "~/.ovsl.zsh, and 'source ~/.ovsl.zsh' in ~/.zshrc. Make it again after an update.",
    )
    parser.add_argument("shell", type=Shell, help="bash or zsh.")
    print(script(parser.parse_args(list(args)).shell), end="")


def script(shell: Shell) -> str:
    """Make the script.

    Args:
        shell: Who reads it.
    """
    from ovsl.__main__ import TOOLS

    commands = [*VERBS, *TOOLS]
    options = {command: command_options(command) for command in progress(commands, "Reading options")}
    return SCRIPT.safe_substitute(
        commands=" ".join(commands),
        methods=" ".join(method_names()),
        configurations=" ".join(PREFIX + name for name in shipped_configurations()),
        options="\n".join(f'        {command}) known="{" ".join(words)}" ;;' for command, words in options.items()),
        start=START[shell],
    )


def command_options(command: str) -> list[str]:
    """Names of the options of a verb or tool, `--run_dir`; of a verb also those of every method and of its data."""
    from ovsl.__main__ import main as run
    from ovsl.parsing import class_options

    help = io.StringIO()
    with redirect_stdout(help), suppress(SystemExit):
        run([command, "--help", "all"] if command in VERBS else [command, "--help"])
    found = re.findall(r"^  (?:-\w [A-Z_]+, )?(--[a-z][\w.]*)", help.getvalue(), re.MULTILINE)
    if command in VERBS:
        data = "PredictionData" if command == "predict" else "SegmentationDataModule"
        owners = {"model": [f"ovsl.methods.{name}" for name in method_names()], "data": [f"ovsl.data.{data}"]}
        for group, classes in owners.items():
            found += [f"--{group}.{option}" for owner in classes for option in class_options(owner)]
    return sorted(set(found))
