"""`erniekit completion`: scripts that complete commands, keys and files in a shell."""

HELP = "print shell completion for bash, zsh or fish"
USAGE = """usage: erniekit completion bash|zsh|fish

  bash  source <(erniekit completion bash)          in ~/.bashrc
  zsh   source <(erniekit completion zsh)           in ~/.zshrc, after compinit
  fish  erniekit completion fish | source           in ~/.config/fish/config.fish"""

SHELLS = ("bash", "zsh", "fish")
_ACTIONS = {
    "config": ("check", "show", "reference"),
    "data": ("preview",),
    "models": ("list", "show", "get"),
    "plan": ("search", "published"),
    "recipes": ("list", "copy"),
    "completion": SHELLS,
}

_BASH = """_erniekit() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=( $(compgen -W "{commands}" -- "$word") )
    return
  fi
  case "${{COMP_WORDS[1]}}" in
    help) COMPREPLY=( $(compgen -W "{commands}" -- "$word") ); return ;;
{actions}
  esac
  case "$word" in
    --*) COMPREPLY=( $(compgen -W "{options}" -- "$word") ) ;;
    *) COMPREPLY=( $(compgen -f -- "$word") $(compgen -W "{keys}" -- "$word") ) ;;
  esac
  case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2>/dev/null ;; esac
}}
complete -o filenames -F _erniekit erniekit
"""

_ZSH = """#compdef erniekit
autoload -U +X bashcompinit && bashcompinit
"""

_FISH_COMMAND = "complete -c erniekit -n __fish_use_subcommand -f -a {name} -d '{line}'"
_FISH_ACTION = "complete -c erniekit -n '__fish_seen_subcommand_from {name}' -f -a '{words}'"
_FISH_KEYS = "complete -c erniekit -n 'not __fish_use_subcommand' -a '{keys}'"
_FISH_OPTION = "complete -c erniekit -n 'not __fish_use_subcommand' -l {key} -x -d '{line}'"


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    import sys

    from erniekit.errors import ConfigError

    if len(argv) != 1 or argv[0] not in SHELLS:
        raise ConfigError(
            f"erniekit completion needs one of {', '.join(SHELLS)}; {' '.join(argv) or 'nothing'} was given"
        )
    sys.stdout.write(script(argv[0]))
    return 0


def script(shell: str) -> str:
    """The completion script of bash, zsh (which runs bash's) or fish."""
    if shell == "fish":
        return _fish()
    return (_ZSH if shell == "zsh" else "") + _bash()


def _bash() -> str:
    from erniekit.cli.commands import COMMANDS
    from erniekit.config.keys import declared_keys

    actions = "\n".join(
        f'    {name}) [ "$COMP_CWORD" -eq 2 ] && '
        f'{{ COMPREPLY=( $(compgen -W "{" ".join(words)}" -- "$word") ); return; }} ;;'
        for name, words in _ACTIONS.items()
    )
    return _BASH.format(
        commands=" ".join(COMMANDS),
        actions=actions,
        options=" ".join(["--help", *(f"--{key}" for key in declared_keys())]),
        keys=" ".join(f"{key}=" for key in declared_keys()),
    )


def _fish() -> str:
    from erniekit.cli.commands import COMMANDS
    from erniekit.config.fields import rule_of
    from erniekit.config.keys import declared_keys

    lines = [_FISH_COMMAND.format(name=name, line=_quoted(line)) for name, (_, line) in COMMANDS.items()]
    lines += [_FISH_ACTION.format(name=name, words=" ".join(words)) for name, words in _ACTIONS.items()]
    lines.append(_FISH_KEYS.format(keys=" ".join(f"{key}=" for key in declared_keys())))
    lines += [
        _FISH_OPTION.format(key=key, line=_quoted(rule_of(declared).help))
        for key, declared in declared_keys().items()
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
