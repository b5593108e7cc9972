"""The options that choose stored cases, which `cxr search` and `cxr index list` share."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client import SearchOptions

Names = list[str] | None
ExcludedStudies = Annotated[Names, typer.Option("--exclude", help="Study id to leave out. Repeatable.")]
ExcludedCases = Annotated[Names, typer.Option("--exclude-case", help="Case id to leave out. Repeatable.")]
WithAny = Annotated[
    Names, typer.Option("--with-any", help="Only cases with one of these labels. Repeatable.")
]
WithAll = Annotated[
    Names, typer.Option("--with-all", help="Only cases with all of these labels. Repeatable.")
]
Without = Annotated[
    Names, typer.Option("--without", help="Only cases with none of these labels. Repeatable.")
]
CaseViews = Annotated[
    Names,
    typer.Option(
        "--case-view",
        help="Only cases whose first image has this view: PA, AP, FRONTAL, LATERAL. Repeatable.",
    ),
]
CaseKinds = Annotated[
    Names,
    typer.Option(
        "--case-kind",
        help="Only cases indexed from this: study (image and report), image, text. Repeatable.",
    ),
]


def make_options(
    with_any: Names,
    with_all: Names,
    without: Names,
    case_view: Names,
    case_kind: Names,
    exclude_case: Names,
    **others: Any,
) -> "SearchOptions":
    """Return the options that were given; `others` are further fields of `client.SearchOptions`."""
    from client import SearchOptions

    return SearchOptions(
        labels_any=tuple(with_any or ()),
        labels_all=tuple(with_all or ()),
        labels_none=tuple(without or ()),
        views=tuple(case_view or ()),
        embedding_kinds=tuple(case_kind or ()),
        exclude_ids=tuple(exclude_case or ()),
        **others,
    )
