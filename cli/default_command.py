"""A command group with a default command, which needs no name: `cxr train TABLE`, `cxr export BUNDLE`."""

import copy
from typing import Any, ClassVar

from typer.core import TyperGroup


class DefaultCommandGroup(TyperGroup):
    """A group that runs its default command if the first argument is not a command's name."""

    default: ClassVar[str] = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the default command's name if the arguments name no command."""
        if args and args[0] not in self.commands:
            wants_help = any(name in args for name in ctx.help_option_names)
            args = ["--help"] if wants_help else [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Leave the default command's name out of the usage line, because users do not type it."""
        name, command, rest = super().resolve_command(ctx, args)
        return (
            "" if name == self.default else name,
            command,
            rest,
        )

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the arguments of the default command, and the other commands below them."""
        command, group = self.commands[self.default], copy.copy(self)
        group.help, group.params, group.subcommand_metavar = command.help, command.params, ""
        TyperGroup.format_help(group, ctx, formatter)
