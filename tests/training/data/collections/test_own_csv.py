import pytest

from contract.errors import ConfigError, InputError
from training.data.collections.table import build_collection_table
from training.data.openi import read_collection, write_table

MAPPING = """
name = "A lab"
[columns]
image = "file"
patient = "who"
study = "visit"
view = "side"
split = "part"
impression = "text"
[values]
absent = ["0", "no"]
[[labels]]
label = "Herz"
category = "cardiac"
[[labels]]
label = "Erguss"
category = "pleural"
if_absent = "unknown"
reason = "Scars are not labelled."
[[labels]]
label = "Alter"
reason = "Not a finding."
[[labels]]
label = "Ohne"
category = "normal"
"""
CSV = """file,who,visit,side,part,text,Herz,Erguss,Alter,Ohne
a/1.png,p1,v1,PA,train,Large heart.,1,0,,
a/2.png,p1,v1,LATERAL,train,Large heart.,1,0,,
b/1.png,p2,v2,AP,dev,,-1,,,
b/3.png,p3,v3,,,Clear.,no,0,,1
"""
LISTED = """
[columns]
image = "file"
patient = "who"
labels = "found"
separator = ";"
[[labels]]
label = "Herz"
category = "cardiac"
[[labels]]
label = "Erguss"
category = "pleural"
"""


@pytest.fixture
def write(write_files):
    def write_both(mapping=MAPPING, text=CSV):
        source = write_files({"map.toml": mapping, "list.csv": text})
        return source / "list.csv", source / "map.toml"

    return write_both


def test_columns_of_labels(write, draw_images, tmp_path):
    source, mapping = write(text=CSV.replace("dev", "val"))
    images = draw_images("a/1.png", "a/2.png", "b/1.png", "b/4.png")
    table = build_collection_table(source, "csv", images, mapping=mapping)
    rows = {row["study_id"]: row for row in table.to_pylist()}
    assert [(row["patient_id"], row["split"]) for row in rows.values()] == [
        ("p1", "train"),
        ("p2", "validation"),
        ("p3", None),
    ]
    assert rows["v1"]["image_ids"] == ["a/1.png", "a/2.png"]
    assert rows["v1"]["image_paths"][0] == str(images / "a/1.png")
    assert rows["v1"]["views"] == ["PA", "LATERAL"]
    assert (rows["v1"]["labels"], rows["v1"]["impression"]) == (["cardiac"], "Large heart.")
    assert {"pleural", "infection"} < set(rows["v1"]["unknown_labels"])
    assert not {"normal", "cardiac"} & set(rows["v1"]["unknown_labels"])
    assert not rows["v2"]["labelled"]
    assert (rows["v3"]["labels"], "cardiac" in rows["v3"]["unknown_labels"]) == (["normal"], False)
    write_table(table, tmp_path / "t.parquet")
    assert read_collection(tmp_path / "t.parquet") == "A lab"


def test_a_list_of_labels(write):
    source, mapping = write(LISTED, "file,who,found\na.png,p1,Herz;Erguss\nb.png,p1,Herz\nc.png,p2,\n")
    rows = build_collection_table(source, "csv", None, mapping=mapping).to_pylist()
    assert [row["study_id"] for row in rows] == ["a", "b", "c"]
    assert [row["labels"] for row in rows] == [["cardiac", "pleural"], ["cardiac"], []]
    assert ["pleural" in row["unknown_labels"] for row in rows] == [False, False, False]
    assert [row["labelled"] for row in rows] == [True, True, False]
    source, mapping = write(LISTED, "file,who,found\na.png,p1,Lunge\n")
    with pytest.raises(InputError, match=r"line 2, column 'found' names 'Lunge', which the mapping does not"):
        build_collection_table(source, "csv", None, mapping=mapping)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("train,Large heart.,1,0,,\na/2", "train,Large heart.,2,0,,\na/2"),
            "line 2, column 'Herz' holds '2', which is none",
        ),
        (("b/3.png,p3", "../b/3.png,p3"), r"line 5, column 'file' is not a path below"),
        (
            ("a/2.png,p1", "a/2.png,p9"),
            "line 3, column 'visit' names a study whose other rows have another patient",
        ),
        (("LATERAL,train", "LATERAL,test"), "whose other rows have another split"),
        (("a/2.png", "a/1.png"), "line 3, column 'file' names an image that an earlier row has"),
        (("dev", "later"), "line 4, column 'part' is 'later' instead of"),
        (("file,who", "file,wer"), "line 1: there is no column 'who'"),
        (("b/3.png,p3,v3,,,", "b/3.png,p1,v3,,test,"), "puts studies of one patient into different parts"),
    ],
)
def test_a_row_that_the_mapping_does_not_know(change, message, write):
    assert change[0] in CSV
    source, mapping = write(text=CSV.replace("dev", "val") if change[0] != "dev" else CSV)
    source.write_text(source.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        build_collection_table(source, "csv", None, mapping=mapping)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[columns]", "[columns"), "is not valid TOML"),
        (('patient = "who"\n', ""), r"columns\.patient is missing"),
        (("[columns]", "[columnen]"), "mapping has no 'columnen'"),
        (('view = "side"', 'vew = "side"'), "columns has no 'vew'"),
        (("absent =", "absend ="), "values has no 'absend'"),
        (('category = "cardiac"', 'category = "heart"'), "'heart' is none of the categories"),
        (('reason = "Not a finding."', 'reason = ""'), "needs a reason"),
        (('patient = "who"', "patient = 3"), "must be text"),
        (('label = "Herz"', 'labl = "Herz"'), "labels has no 'labl'"),
    ],
)
def test_a_mapping_that_is_not_usable(change, message, write):
    assert change[0] in MAPPING
    source, mapping = write(MAPPING.replace(*change))
    with pytest.raises(ConfigError, match=message):
        build_collection_table(source, "csv", None, mapping=mapping)


def test_a_mapping_belongs_to_csv(write, tmp_path):
    source, mapping = write()
    for name, given in (("csv", None), ("nih14", mapping)):
        with pytest.raises(
            ConfigError, match="--mapping needs --format csv, and --format csv needs --mapping"
        ):
            build_collection_table(source, name, None, mapping=given)
    with pytest.raises(ConfigError, match="Cannot read the mapping"):
        build_collection_table(source, "csv", None, mapping=tmp_path / "none.toml")
