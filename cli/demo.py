"""`cxr demo`: every step of the stack once, from Open-i files to an HTML page.

The phantom demo draws its radiographs; the reports demo reads the real Open-i reports, text only. Both train,
export through the parity gate, serve on the real Triton, index, predict, search and explain.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cli.cases import make_cases, make_parity_cases, make_precision_cases
from cli.console import escape
from cli.progress import Steps, TrainingBar
from cli.show import NOTICE, print_cases, print_control, print_explanation, print_metrics, print_prediction
from contract.bundle import Bundle, load_bundle, write_json
from contract.errors import ConfigError
from training.data.rows import Row, get_image, get_report, has_text, read_rows

if TYPE_CHECKING:
    from client import CxrClient
    from client.cases import SimilarCase
    from client.explanation import Explanation
    from client.prediction import Prediction
    from serving.stack import Stack

PHANTOM_SCALE = 0.125  # stored images of about 350 pixels, three times what the demo model reads
PHANTOM_SENTENCE = "Large right pleural effusion with blunting of the costophrenic angle."
REPORTS_SENTENCE = "The heart is enlarged with small bilateral pleural effusions."
MARKER = ".cxr-demo"


@dataclass
class Demo:
    """One run of the demo: its settings, its steps, and the figures that they find."""

    console: Console
    out: Path
    reports: Path | None
    studies: int
    seed: int
    steps: Steps
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> Path:
        """The studies table."""
        return self.out / "studies.parquet"

    @property
    def repository(self) -> Path:
        """The published model repository."""
        return self.out / "model_repository"

    @property
    def sentence(self) -> str:
        """The sentence to search for."""
        return REPORTS_SENTENCE if self.reports else PHANTOM_SENTENCE

    @property
    def data_note(self) -> str:
        """What the data is, in a sentence or two."""
        if self.reports:
            return "Real, de-identified reports of the Open-i collection; trained from scratch, text only."
        return "Phantom data: drawn radiographs and made-up reports. They only show that the software works."

    def run(self, *, keep: bool) -> dict[str, Any]:
        """Take every step and return the figures. With `keep`, the servers then run until Ctrl-C."""
        from client import CxrClient
        from serving.stack import Ports, Stack

        if self.reports is None:
            self._draw()
        self._read()
        bundle = self._train()
        if self.reports is not None:
            self._run_control(bundle)
        self._export(bundle)
        with Stack(
            self.repository, self.out / "store", ports=Ports.free(), log_dir=self.out / "logs"
        ) as stack:
            with self.steps.step("Start Triton and the sidecar") as step:
                stack.wait_ready()
                step.say(f"Triton {stack.triton_url}, sidecar {stack.retrieval_url}")
            with CxrClient(
                stack.triton_url, stack.retrieval_url, timeout_s=30.0, tls=False, token=""
            ) as client:
                self._index(bundle, client)
                row = self._choose_held_out(bundle)
                predictions = self._predict(client, row)
                searches = self._search(client, row)
            self._explain(bundle, row, predictions, searches)
            summary = self._summarise()
            if keep:
                self._keep(stack)
        return summary

    def _draw(self) -> None:
        from training.phantom import draw_dataset

        with self.steps.step(f"Draw {self.studies} phantom studies in Open-i's layout") as step:
            draw_dataset(
                self.out / "phantom",
                studies=self.studies,
                seed=self.seed,
                scale=PHANTOM_SCALE,
                progress=step.progress,
            )

    def _read(self) -> None:
        from training.data.openi import build_table, write_table

        phantom = self.out / "phantom"
        with self.steps.step("Read reports and images into one table") as step:
            reports, images = (self.reports, None) if self.reports else (phantom, phantom)
            table = build_table(reports, images, step.progress)
            write_table(table, self.table)
            count = sum(len(paths) for paths in table["image_paths"].to_pylist())
            step.say(f"{table.num_rows} studies, {count} images")

    def _train(self) -> Bundle:
        from training.config.toml_file import load_config
        from training.train import train

        name = "reports" if self.reports else "demo"
        with self.steps.step(f"Train the {name} model (Swin + BERT + cross-modal fusion)") as step:
            config = load_config(name, {"seed": self.seed})
            result = train(config, self.table, self.out / "bundle", watcher=TrainingBar(step.progress))
            bundle = load_bundle(result.bundle)
            step.say(f"bundle {bundle.fingerprint[:12]}")
        self.figures["metrics"] = result.metrics
        print_metrics(self.console, result.metrics)
        return bundle

    def _run_control(self, bundle: Bundle) -> None:
        from training.evaluation.control import run_table_control

        with self.steps.step("Control: TF-IDF + logistic regression on the same split"):
            control = run_table_control(self.table, bundle.path / "split.json", bundle.config["text_mode"])
        self.figures["control"] = control.to_dict()
        print_control(self.console, self.figures["metrics"], control.to_dict())

    def _export(self, bundle: Bundle) -> None:
        from export.pipeline import export

        with self.steps.step("Export to ONNX, compare with PyTorch, publish for Triton") as step:
            held_out = bundle.split["test"]
            rows = read_rows(self.table, study_ids=held_out)
            text_mode_and_size = bundle.config["text_mode"], bundle.config["sizes"]["S"]
            result = export(
                bundle,
                self.repository,
                make_parity_cases(rows, *text_mode_and_size),
                progress=step.progress,
                precision_cases=make_precision_cases(rows, held_out, *text_mode_and_size),
            )
            self.figures["parity"] = result.parity.to_dict()
            step.say(result.parity.to_sentence())

    def _index(self, bundle: Bundle, client: "CxrClient") -> None:
        part = None if self.reports else bundle.split["train"]
        rows = read_rows(self.table, study_ids=part)
        with self.steps.step("Index cases through the served model") as step:
            result = client.index(
                make_cases(rows, bundle.config["text_mode"]),
                progress=lambda done: step.progress(done, len(rows)),
            )
            warned = f", {len(result.warned)} with a warning" if result.warned else ""
            step.say(f"{result.indexed} cases, {len(result.refused)} refused{warned}")
        self.figures["indexed"] = result.indexed

    def _choose_held_out(self, bundle: Bundle) -> Row:
        """Return the first test study with a finding, readable text, and an image if the demo has images."""
        for row in read_rows(self.table, study_ids=bundle.split["test"]):
            finding = set(row["labels"]) - {"normal", "general_radiographic", "miscellaneous"}
            complete = bool(row["image_paths"]) or self.reports is not None
            if finding and complete and has_text(row, bundle.config["text_mode"]):
                return row
        raise ConfigError("The test split has no study with a finding. Draw more studies with --studies.")

    def _predict(self, client: "CxrClient", row: Row) -> dict[str, "Prediction"]:
        write_examples(self.out, row)
        image = get_image(row)
        inputs: dict[str, dict[str, Any]] = {"text": {"report": get_report(row)}}
        if image is not None:
            data = image.read_bytes()
            inputs = {
                "study": {"image": data, "report": get_report(row)},
                "image": {"image": data},
                **inputs,
            }
        with self.steps.step(f"Predict the held-out study {row['study_id']}") as step:
            predictions = {kind: client.predict(**arguments) for kind, arguments in inputs.items()}
            step.say(f"labelled: {', '.join(row['labels'])}")
        for kind, prediction in predictions.items():
            print_prediction(self.console, prediction, title=f"Findings from the {kind}", top=4)
        return predictions

    def _search(self, client: "CxrClient", row: Row) -> dict[str, Sequence["SimilarCase"]]:
        image = get_image(row)
        queries: dict[str, dict[str, Any]] = {f"the sentence “{self.sentence}”": {"report": self.sentence}}
        if image is None:
            queries = {f"the report of {row['study_id']}": {"report": get_report(row)}, **queries}
        else:
            data = image.read_bytes()
            queries = {
                f"the study {row['study_id']}": {"image": data, "report": get_report(row)},
                "its image alone": {"image": data},
                **queries,
            }
        exclude = (row["study_id"],)
        with self.steps.step("Search similar cases"):
            results: dict[str, Sequence[SimilarCase]] = {
                title: client.search(**arguments, k=5, exclude_studies=exclude)
                for title, arguments in queries.items()
            }
        for title, cases in results.items():
            print_cases(self.console, cases, title=f"Similar to {title}")
        return results

    def _explain(
        self,
        bundle: Bundle,
        row: Row,
        predictions: dict[str, "Prediction"],
        searches: dict[str, Sequence["SimilarCase"]],
    ) -> None:
        from client.explain import explain
        from client.explain.overlay import write_overlay
        from client.page import write_report_page

        image = get_image(row)
        page, overlay = self.out / "report.html", self.out / "explanation.png"
        with self.steps.step("Explain the top finding (Integrated Gradients) and write the page") as step:
            explanation: Explanation = explain(
                bundle, image=image.read_bytes() if image else None, report=get_report(row)
            )
            drawn = write_overlay(explanation, overlay)
            write_report_page(
                page,
                title=f"Study {row['study_id']}",
                data_note=self.data_note,
                predictions=predictions,
                searches=searches,
                explanation=explanation,
                truth=tuple(row["labels"]),
            )
            step.say(str(page))
        print_explanation(self.console, explanation, str(overlay) if drawn else None)

    def _summarise(self) -> dict[str, Any]:
        seconds = {step.title: round(step.seconds, 1) for step in self.steps.done}
        summary = {"data": self.data_note, "seconds": seconds, **self.figures}
        write_json(self.out / "summary.json", summary)
        total = sum(step.seconds for step in self.steps.done)
        self.console.print(
            f"[bold]Done in {total / 60:.1f} minutes.[/bold] Open {escape(self.out / 'report.html')}.",
            highlight=False,
        )
        self.console.print(f"{self.data_note} {NOTICE}", highlight=False)
        return summary

    def _keep(self, stack: "Stack") -> None:
        urls = f"--triton {stack.triton_url}"

        def say(text: str) -> None:
            self.console.print(text, markup=False, soft_wrap=True)

        say("The servers keep running until Ctrl-C. In another terminal, try:")
        say(f'  .venv/bin/cxr predict --report "{self.sentence}" {urls}')
        say(f'  .venv/bin/cxr search --report "{self.sentence}" {urls} --retrieval {stack.retrieval_url}')
        stack.wait()


def run_demo(
    console: Console, *, reports: Path | None, out: Path, keep: bool, studies: int, seed: int
) -> dict[str, Any]:
    """Run the whole path and return its figures, which are also written to `out`/summary.json.

    Raises:
        ConfigError: `out` exists and the demo did not create it, or `reports` does not exist.
    """
    if reports is not None and not reports.exists():
        raise ConfigError(f"The report file {reports} does not exist.")
    _clear(out)
    return Demo(console, out, reports, studies, seed, Steps(console, total=9)).run(keep=keep)


def _clear(out: Path) -> None:
    """Create an empty output directory. Delete an existing one only if the demo created it."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise ConfigError(
            f"{out} holds files that the demo did not create. Choose another directory with --out."
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER).touch()


def write_examples(out: Path, row: Row) -> None:
    """Write a study as the files that the README uses: report.txt, and chest.dcm if it has an image."""
    (out / "report.txt").write_text(get_report(row) + "\n", encoding="utf-8")
    image = get_image(row)
    if image is not None:
        shutil.copyfile(image, out / "chest.dcm")
