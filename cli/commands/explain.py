"""The command `cxr explain`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Image, Json, ReportText, make_console
from cli.signing import RequireSignature
from contract.errors import ConfigError


def explain(
    image: Image = None,
    report: ReportText = None,
    bundle: Annotated[Path, typer.Option(help="Bundle of the model. No server is needed.")] = Path(
        "demo-output/bundle"
    ),
    finding: Annotated[
        list[str] | None,
        typer.Option(
            "--finding",
            "--label",
            help="Category key to explain; repeatable. Default: each finding that reaches its threshold.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="integrated_gradients, grad_cam, occlusion, attention, rollout or shapley; repeatable. Default: the "
            "map that passed the checks of this bundle (`cxr evaluate explain`)."
        ),
    ] = None,
    further: Annotated[
        list[Path] | None,
        typer.Option(
            help="Further image of the same study; repeatable, at most 3. The model reads all images together, and "
            "each is explained while the others stay as they are. The first image should be the frontal one."
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="Image baseline of Integrated Gradients: black, grey, blurred or uniform; repeatable, then the mean. "
            "Default: black, with which the maps are checked."
        ),
    ] = None,
    hit: Annotated[
        str | None,
        typer.Option(
            help="Study id of a search hit: explain why the case is similar to it. Needs --table, where the files of "
            "the hit are found."
        ),
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Studies table that holds the study of --hit.")] = None,
    out: Annotated[Path, typer.Option(help="PNG file for the overlay.")] = Path("explanation.png"),
    maps: Annotated[
        Path | None,
        typer.Option(
            help="Directory for each map at the full resolution of the image, and all values (maps.npz)."
        ),
    ] = None,
    dicom: Annotated[
        Path | None,
        typer.Option(
            help="Directory for DICOM objects of the image's study: Secondary Capture, Structured Report and, for each "
            "map that may be shown, outlines (Presentation State). The image must be DICOM. Of several images, the "
            "objects are those of the first."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=4, max=512, help="Number of integration steps.", show_default="as many as needed"),
    ] = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Show which pixels and words support a finding, through the whole model, or why a search hit is similar."""
    from cli.explain import explain_case, explain_similarity
    from cli.inputs import read_image, read_report, require_input
    from contract.bundle import load_bundle
    from contract.signatures import TrustedKeys

    require_input(image, report)
    if (hit is None) != (table is None):
        raise ConfigError(
            "--hit needs --table, and --table needs --hit: the table tells where the hit's files are."
        )
    if further and (image is None or hit):
        raise ConfigError("--further needs an image, and no --hit: a similarity is of one image.")
    loaded, console = load_bundle(bundle, trust=TrustedKeys.find(require_signature)), make_console(as_json)
    case = read_image(image), read_report(report)
    if hit is not None and table is not None:
        if finding or method or baseline or maps or dicom:
            raise ConfigError(
                "--hit explains a similarity: give it without --finding, --method, --baseline, --maps and --dicom."
            )
        explain_similarity(console, loaded, case, hit, table, out=out, steps=steps, as_json=as_json)
        return
    explain_case(
        console,
        loaded,
        case,
        findings=finding,
        further=further or [],
        methods=method,
        baselines=baseline or ["black"],
        out=out,
        maps=maps,
        dicom=dicom,
        steps=steps,
        as_json=as_json,
    )
