"""The command `cxr explain`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Image, Json, ReportText, make_console


def explain(
    image: Image = None,
    report: ReportText = None,
    bundle: Annotated[Path, typer.Option(help="Bundle of the model. No server is needed.")] = Path(
        "demo-output/bundle"
    ),
    label: Annotated[
        str | None, typer.Option(help="Category key to explain. Default: the top finding.")
    ] = None,
    out: Annotated[Path, typer.Option(help="PNG file for the overlay.")] = Path("explanation.png"),
    steps: Annotated[int, typer.Option(min=4, max=512, help="Number of integration steps.")] = 32,
    as_json: Json = False,
) -> None:
    """Show which pixels and words support a finding (Integrated Gradients through the whole model)."""
    from cli.inputs import read_image, read_report, require_input
    from cli.show import NOTICE, print_explanation, print_json
    from client.explain import explain as explain_case
    from client.overlay import write_overlay
    from contract.bundle import load_bundle

    require_input(image, report)
    loaded = load_bundle(bundle)
    explanation = explain_case(
        loaded, image=read_image(image), report=read_report(report), label=label, steps=steps
    )
    overlay = str(out) if write_overlay(explanation, out) else None
    if as_json:
        print_json({**explanation.to_dict(), "overlay": overlay, "notice": NOTICE})
        return
    console = make_console(False)
    print_explanation(console, explanation, overlay)
    console.print(NOTICE)
