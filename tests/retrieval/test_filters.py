"""What a search can ask for beside nearness, over gRPC; and what each hit tells of why it was found."""

import numpy as np
import pytest

from contract.proto import retrieval_pb2
from retrieval.diversity import count_candidates, diversify
from retrieval.evidence import MAX_EXCERPT_CHARS, Asked, list_words

from .both_stores import on_both_stores, on_both_stores_slowly

CASES = (
    # id, study, labels, view, kind, report
    ("a", "s1", ["normal"], "PA", "study", "The lungs are clear. The heart is normal."),
    ("b", "s1", ["pleural", "cardiac"], "AP", "study", "Heart is enlarged. Large right pleural effusion."),
    ("c", "s2", ["pleural"], "LATERAL", "image", ""),
    ("d", "s3", ["cardiac"], "", "text", "Right effusion!\nThe heart is large"),
    ("e", "s4", [], "", "", "Nothing."),
)


@pytest.fixture
def filled(sidecar, make):
    request = retrieval_pb2.AddCasesRequest(fingerprint=make.MODEL)
    for vector, (name, study, labels, view, kind, report) in zip(make.vectors(5), CASES, strict=True):
        request.cases.add(
            id=name,
            study_id=study,
            embedding=vector.tolist(),
            labels=labels,
            view=view,
            embedding_kind=kind,
            report=report,
        )
    sidecar.client.stub.AddCases(request, timeout=10)
    return sidecar


def search(sidecar, make, *, k=9, text="", labels=(), **fields):
    query = retrieval_pb2.Query(embedding=make.vectors(5)[0].tolist(), text=text, labels=labels)
    request = retrieval_pb2.SearchRequest(fingerprint=make.MODEL, queries=[query], k=k, **fields)
    return sidecar.client.stub.Search(request, timeout=10).results[0].hits


@on_both_stores_slowly
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "abcde"),
        ({"labels_any": ["pleural", "cardiac"]}, "bcd"),
        ({"labels_all": ["pleural", "cardiac"]}, "b"),
        ({"labels_none": ["pleural", "normal"]}, "de"),
        ({"labels_any": ["cardiac"], "labels_none": ["pleural"]}, "d"),
        ({"views": ["PA", "LATERAL"]}, "ac"),
        ({"embedding_kinds": ["image", "text"]}, "cd"),
        ({"exclude_ids": ["a", "e", "unknown"]}, "bcd"),
        ({"views": ["PA"], "labels_any": ["cardiac"]}, ""),
    ],
)
def test_a_filter_leaves_exactly_its_cases_in_their_order(filled, make, wanted, expected):
    order = [hit.case.id for hit in search(filled, make)]
    found = [hit.case.id for hit in search(filled, make, filter=retrieval_pb2.Filter(**wanted))]
    assert found == [name for name in order if name in expected]


@on_both_stores
def test_filters_hold_after_a_restart_and_a_replacement(filled, open_sidecar, make):
    filled.client.add(make.vectors(5)[2:3], ids=["c"], labels=["cardiac"], view="PA")
    filled.stop()
    again = open_sidecar()
    for wanted, expected in (({"labels_any": ["pleural"]}, "b"), ({"views": ["PA"]}, "ac")):
        hits = search(again, make, filter=retrieval_pb2.Filter(**wanted))
        assert sorted(hit.case.id for hit in hits) == list(expected)
    assert {hit.case.id: (hit.case.view, hit.case.embedding_kind) for hit in search(again, make)} == {
        "a": ("PA", "study"),
        "b": ("AP", "study"),
        "c": ("PA", ""),
        "d": ("", "text"),
        "e": ("", ""),
    }


@on_both_stores_slowly
def test_excluded_studies_and_a_filter_count_together(filled, make):
    wanted = retrieval_pb2.Filter(labels_any=["pleural"])
    hits = search(filled, make, exclude_study_ids=["s1"], filter=wanted)
    assert [hit.case.id for hit in hits] == ["c"]


@on_both_stores
def test_the_smallest_score_is_kept_and_what_is_below_is_not(filled, make):
    hits = search(filled, make)
    least = hits[2].score
    assert [hit.score for hit in search(filled, make, min_score=least)] == [hit.score for hit in hits[:3]]
    assert not search(filled, make, min_score=1.0, filter=retrieval_pb2.Filter(exclude_ids=["a"]))
    assert len(search(filled, make, min_score=-1.0)) == len(search(filled, make)) == 5


@on_both_stores
def test_a_hit_tells_why_it_was_found(filled, make):
    hits = {
        hit.case.id: hit
        for hit in search(filled, make, text="Right EFFUSION of the heart.", labels=["cardiac"])
    }
    assert {name: list(hit.shared_labels) for name, hit in hits.items()} == {
        "a": [],
        "b": ["cardiac"],
        "c": [],
        "d": ["cardiac"],
        "e": [],
    }
    assert {name: hit.excerpt for name, hit in hits.items()} == {
        "a": "The heart is normal.",
        "b": "Large right pleural effusion.",
        "c": "",
        "d": "Right effusion!",
        "e": "",
    }
    assert not any(hit.excerpt or hit.shared_labels for hit in search(filled, make))


@on_both_stores_slowly
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"filter": {"labels_any": ["zebra"]}}, "22 categories"),
        ({"filter": {"labels_none": [""]}}, "22 categories"),
        ({"filter": {"views": ["pa"]}}, "A view of the filter must be one of PA"),
        ({"filter": {"embedding_kinds": ["views"]}}, "must be one of study, image, text"),
        ({"filter": {"exclude_ids": [""]}}, "excluded case id is empty"),
        ({"filter": {"exclude_ids": ["a"] * 1001}}, "excludes more than 1000 cases"),
        ({"min_score": 1.01}, "it must be -1 to 1"),
        ({"min_score": float("nan")}, "it must be -1 to 1"),
        ({"diversity": -0.1}, "it must be 0 to 1"),
        ({"diversity": float("nan")}, "it must be 0 to 1"),
        ({"diversity": 0.5, "k": 101}, "with a diversity it must be 1 to 100"),
        ({"text": "r" * 20_001}, "Query 1: its text has 20001 characters"),
        ({"labels": ["zebra"]}, "Query 1: its labels must be"),
    ],
)
def test_a_bad_wish_is_refused(filled, make, expect_status, fields, message):
    if "filter" in fields:
        fields = {**fields, "filter": retrieval_pb2.Filter(**fields["filter"])}
    with expect_status("INVALID_ARGUMENT", message):
        search(filled, make, **fields)


@on_both_stores_slowly
@pytest.mark.parametrize(
    ("fields", "message"),
    [({"view": "pa"}, "Case 1: its view"), ({"embedding_kind": "all"}, "Case 1: its kind")],
)
def test_a_case_with_an_unknown_view_or_kind_is_refused(sidecar, make, expect_status, fields, message):
    with expect_status("INVALID_ARGUMENT", message):
        sidecar.client.add(make.vectors(1), **fields)
    assert sidecar.client.info().case_count == 0


def test_info_tells_memory_and_kinds(filled, make):
    info = filled.client.info()
    assert {entry.embedding_kind: entry.case_count for entry in info.kinds} == {
        "": 1,
        "image": 1,
        "study": 2,
        "text": 1,
    }
    assert (info.index_kind, info.vector_bytes, info.code_bytes) == ("flat", 5 * 4 * make.D, 0)
    assert info.store_bytes >= 4096
    filled.client.delete(["a"])
    assert {entry.embedding_kind: entry.case_count for entry in filled.client.info().kinds}["study"] == 1


@on_both_stores_slowly
def test_diverse_cases_are_the_nearest_first_and_then_others(sidecar, make):
    """Three near equal cases, then one that is a little further away and different."""
    vectors = np.zeros((5, make.D), np.float32)
    for number, (x, y) in enumerate([(0.95, 0.31), (0.94, 0.33), (0.93, 0.36), (0.90, -0.43), (0.1, -0.99)]):
        vectors[number, :2] = np.array([x, y]) / np.hypot(x, y)
    sidecar.client.add(vectors)
    query = retrieval_pb2.Query(embedding=[1.0] + [0.0] * (make.D - 1))

    def find(diversity):
        request = retrieval_pb2.SearchRequest(
            fingerprint=make.MODEL, queries=[query], k=3, diversity=diversity
        )
        return [hit.case.id for hit in sidecar.client.stub.Search(request, timeout=10).results[0].hits]

    assert find(0.0) == ["0", "1", "2"]
    assert find(0.3)[:2] == ["0", "3"]
    assert find(1.0) == ["0", "4", "3"]


def test_diversity_follows_its_definition():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(40, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.sort(vectors @ vectors[0])[::-1]
    vectors = vectors[np.argsort(-(vectors @ vectors[0]))]
    for diversity in (0.0, 0.3, 0.7, 1.0):
        chosen = [0]
        while len(chosen) < 6:
            gain = {
                place: (1 - diversity) * scores[place]
                - diversity * max(vectors[place] @ vectors[other] for other in chosen)
                for place in range(40)
                if place not in chosen
            }
            chosen.append(max(gain, key=gain.get))
        assert diversify(scores, vectors.astype(np.float32), 6, diversity) == chosen
    assert diversify(scores[:0], vectors[:0].astype(np.float32), 6, 0.5) == []
    assert (count_candidates(1), count_candidates(100)) == (50, 400)


def test_excerpts():
    asked = Asked(words=list_words("Pleural effusion, on the <b>right</b>."))
    assert asked.words == {"pleural", "effusion", "right"}
    assert asked.find_excerpt("") == ""
    assert asked.find_excerpt("The heart is normal.") == ""
    assert asked.find_excerpt("No effusion. Effusion, effusion.") == "No effusion."  # the first of equal ones
    assert (
        asked.find_excerpt('<A Label="x">Right effusion</A><B>Pleural right effusion</B>')
        == "Pleural right effusion"
    )
    long = "word " * 200 + "effusion."
    assert len(asked.find_excerpt(long)) == MAX_EXCERPT_CHARS


def test_a_sign_for_less_than_is_no_tag():
    report = "Nodule <5 mm in the right lung. Small left pneumothorax. Effusion >2 cm."
    assert (
        Asked(words=list_words("pneumothorax on the left")).find_excerpt(report) == "Small left pneumothorax."
    )
    assert {"nodule", "5", "pneumothorax"} <= list_words("nodule <5 mm, left pneumothorax >2 cm")
