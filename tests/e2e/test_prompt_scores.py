"""Findings in free words against the running stack."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.evaluate import ServedPredictor
from contract.embedding import take_joint
from contract.errors import InputError
from contract.prompts import average_prompts, make_prompts
from training.data.rows import get_image, get_report
from training.evaluation.plan import Case


@pytest.fixture(scope="module")
def row(trained):
    return next(row for row in trained.test_rows if row["image_paths"] and row["findings"])


def test_findings_are_scored_against_image_study_and_report(client, row):
    image, report = get_image(row).read_bytes(), get_report(row)
    findings = ["rib fracture", "pleural effusion", "cardiomegaly", "a tortuous aorta"]
    for given in ({"image": image}, {"image": image, "report": report}, {"report": report}):
        prediction = client.predict(**given)
        scores = client.score_findings(findings, prediction)
        assert [score.finding for score in scores] == findings
        assert all(0 < score.score < 1 for score in scores)
        assert len({score.score for score in scores}) == len(findings)


def test_batched_sentences_are_those_asked_one_by_one(client, row):
    """Many sentences in one request = each of them alone, as the evaluation asks them."""
    prediction = client.predict(get_image(row).read_bytes())
    scores = client.score_findings(["pleural effusion", "scoliosis of the spine"], prediction)
    for score in scores:
        prompts = make_prompts(score.finding)
        for side, found in (
            (prompts.present, score.similarity_present),
            (prompts.absent, score.similarity_absent),
        ):
            predictor = ServedPredictor(client)
            asked = predictor.ask([Case("prompt", text=text) for text in side])
            sentences, case = (
                take_joint(values, predictor.label_part)
                for values in (asked.embeddings, prediction.embedding)
            )
            assert found == pytest.approx(float(average_prompts(sentences) @ case), abs=1e-4)


def test_a_sentence_scores_for_what_it_says_after_any_training(client):
    """A report's own words lie nearest to themselves, so the side that repeats them wins."""
    stated = client.predict(report="There is pleural effusion.")
    denied = client.predict(report="There is no pleural effusion.")
    [yes], [no] = (client.score_findings(["pleural effusion"], case) for case in (stated, denied))
    assert yes.score > no.score


@pytest.mark.parametrize("finding", ["胸水", "", "ж" * 201])
def test_bad_findings_are_refused(client, row, finding):
    with pytest.raises(InputError, match="finding"):
        client.score_findings([finding], client.predict(report=get_report(row)))


def test_command(stack, row):
    arguments = (
        "predict",
        str(get_image(row)),
        "--finding",
        "rib fracture",
        "--finding",
        "Pleural effusion.",
    )
    ended = CliRunner().invoke(app, [*arguments, "--triton", stack.triton_url, "--json"])
    assert ended.exit_code == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert [score["finding"] for score in told["finding_scores"]] == ["rib fracture", "Pleural effusion"]
    assert np.isfinite([score["score"] for score in told["finding_scores"]]).all()


def test_logs_hold_no_finding(stack, client, row):
    client.score_findings(["axolotl opacity"], client.predict(report=get_report(row)))
    text = "".join(path.read_text(errors="replace") for path in Path(stack.log_dir).glob("*.log"))
    assert text
    assert "axolotl" not in text
