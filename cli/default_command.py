"""A group of commands of which one needs no name: `cxr train TABLE`, `cxr export BUNDLE`."""

import copy
from typing import Any, ClassVar

from typer.core import TyperGroup


class DefaultCommandGroup(TyperGroup):
    """What is no other command's name is the first argument of the command named `default`."""

    default: ClassVar[str] = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command's name before arguments that name none."""
        if args and args[0] not in self.commands:
            asked = any(name in args for name in ctx.help_option_names)
            args = ["--help"] if asked else [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Leave the default command's name out of the usage line, as it is left out when typed."""
        name, command, rest = super().resolve_command(ctx, args)
        return (
            "" if name == self.default else name,
            command,
            rest,
        )

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the arguments of the command that needs no name, and the other commands below them."""
        command, shown = self.commands[self.default], copy.copy(self)
        shown.help, shown.params, shown.subcommand_metavar = command.help, command.params, ""
        TyperGroup.format_help(shown, ctx, formatter)
