from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Case(_message.Message):
    __slots__ = ("id", "study_id", "embedding", "labels", "report", "image_ref", "view", "embedding_kind")
    ID_FIELD_NUMBER: _ClassVar[int]
    STUDY_ID_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_REF_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_KIND_FIELD_NUMBER: _ClassVar[int]
    id: str
    study_id: str
    embedding: _containers.RepeatedScalarFieldContainer[float]
    labels: _containers.RepeatedScalarFieldContainer[str]
    report: str
    image_ref: str
    view: str
    embedding_kind: str
    def __init__(self, id: _Optional[str] = ..., study_id: _Optional[str] = ..., embedding: _Optional[_Iterable[float]] = ..., labels: _Optional[_Iterable[str]] = ..., report: _Optional[str] = ..., image_ref: _Optional[str] = ..., view: _Optional[str] = ..., embedding_kind: _Optional[str] = ...) -> None: ...

class AddCasesRequest(_message.Message):
    __slots__ = ("fingerprint", "cases")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CASES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    cases: _containers.RepeatedCompositeFieldContainer[Case]
    def __init__(self, fingerprint: _Optional[str] = ..., cases: _Optional[_Iterable[_Union[Case, _Mapping]]] = ...) -> None: ...

class PackedCase(_message.Message):
    __slots__ = ("id", "study_id", "embedding", "labels", "report", "image_ref", "view", "embedding_kind")
    ID_FIELD_NUMBER: _ClassVar[int]
    STUDY_ID_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_REF_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_KIND_FIELD_NUMBER: _ClassVar[int]
    id: str
    study_id: str
    embedding: bytes
    labels: _containers.RepeatedScalarFieldContainer[str]
    report: str
    image_ref: str
    view: str
    embedding_kind: str
    def __init__(self, id: _Optional[str] = ..., study_id: _Optional[str] = ..., embedding: _Optional[bytes] = ..., labels: _Optional[_Iterable[str]] = ..., report: _Optional[str] = ..., image_ref: _Optional[str] = ..., view: _Optional[str] = ..., embedding_kind: _Optional[str] = ...) -> None: ...

class PackedAddCasesRequest(_message.Message):
    __slots__ = ("fingerprint", "cases")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CASES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    cases: _containers.RepeatedCompositeFieldContainer[PackedCase]
    def __init__(self, fingerprint: _Optional[str] = ..., cases: _Optional[_Iterable[_Union[PackedCase, _Mapping]]] = ...) -> None: ...

class AddCasesResponse(_message.Message):
    __slots__ = ("added", "replaced")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    added: int
    replaced: int
    def __init__(self, added: _Optional[int] = ..., replaced: _Optional[int] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("embedding", "labels", "text")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    embedding: _containers.RepeatedScalarFieldContainer[float]
    labels: _containers.RepeatedScalarFieldContainer[str]
    text: str
    def __init__(self, embedding: _Optional[_Iterable[float]] = ..., labels: _Optional[_Iterable[str]] = ..., text: _Optional[str] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("labels_any", "labels_all", "labels_none", "views", "embedding_kinds", "exclude_ids")
    LABELS_ANY_FIELD_NUMBER: _ClassVar[int]
    LABELS_ALL_FIELD_NUMBER: _ClassVar[int]
    LABELS_NONE_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_KINDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_IDS_FIELD_NUMBER: _ClassVar[int]
    labels_any: _containers.RepeatedScalarFieldContainer[str]
    labels_all: _containers.RepeatedScalarFieldContainer[str]
    labels_none: _containers.RepeatedScalarFieldContainer[str]
    views: _containers.RepeatedScalarFieldContainer[str]
    embedding_kinds: _containers.RepeatedScalarFieldContainer[str]
    exclude_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, labels_any: _Optional[_Iterable[str]] = ..., labels_all: _Optional[_Iterable[str]] = ..., labels_none: _Optional[_Iterable[str]] = ..., views: _Optional[_Iterable[str]] = ..., embedding_kinds: _Optional[_Iterable[str]] = ..., exclude_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("fingerprint", "queries", "k", "exclude_study_ids", "filter", "min_score", "diversity")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_STUDY_IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    queries: _containers.RepeatedCompositeFieldContainer[Query]
    k: int
    exclude_study_ids: _containers.RepeatedScalarFieldContainer[str]
    filter: Filter
    min_score: float
    diversity: float
    def __init__(self, fingerprint: _Optional[str] = ..., queries: _Optional[_Iterable[_Union[Query, _Mapping]]] = ..., k: _Optional[int] = ..., exclude_study_ids: _Optional[_Iterable[str]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., min_score: _Optional[float] = ..., diversity: _Optional[float] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("case", "score", "shared_labels", "excerpt")
    CASE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SHARED_LABELS_FIELD_NUMBER: _ClassVar[int]
    EXCERPT_FIELD_NUMBER: _ClassVar[int]
    case: Case
    score: float
    shared_labels: _containers.RepeatedScalarFieldContainer[str]
    excerpt: str
    def __init__(self, case: _Optional[_Union[Case, _Mapping]] = ..., score: _Optional[float] = ..., shared_labels: _Optional[_Iterable[str]] = ..., excerpt: _Optional[str] = ...) -> None: ...

class Hits(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("results", "options_applied", "exact")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Hits]
    options_applied: bool
    exact: bool
    def __init__(self, results: _Optional[_Iterable[_Union[Hits, _Mapping]]] = ..., options_applied: bool = ..., exact: bool = ...) -> None: ...

class GetCaseRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DeleteCasesRequest(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteCasesResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    def __init__(self, deleted: _Optional[int] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ("fingerprint",)
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    def __init__(self, fingerprint: _Optional[str] = ...) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("fingerprint", "case_count", "dimension", "index_kind", "damaged_count", "fingerprints", "vector_bytes", "code_bytes", "kinds", "store_bytes", "asked_kind", "index_state", "refusal", "approximate_count", "recall", "recall_tenth", "recall_hundredth", "recall_floor", "file_bytes")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_KIND_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    CODE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ASKED_KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_STATE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    APPROXIMATE_COUNT_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    RECALL_TENTH_FIELD_NUMBER: _ClassVar[int]
    RECALL_HUNDREDTH_FIELD_NUMBER: _ClassVar[int]
    RECALL_FLOOR_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    case_count: int
    dimension: int
    index_kind: str
    damaged_count: int
    fingerprints: _containers.RepeatedScalarFieldContainer[str]
    vector_bytes: int
    code_bytes: int
    kinds: _containers.RepeatedCompositeFieldContainer[KindCount]
    store_bytes: int
    asked_kind: str
    index_state: str
    refusal: str
    approximate_count: int
    recall: float
    recall_tenth: float
    recall_hundredth: float
    recall_floor: float
    file_bytes: int
    def __init__(self, fingerprint: _Optional[str] = ..., case_count: _Optional[int] = ..., dimension: _Optional[int] = ..., index_kind: _Optional[str] = ..., damaged_count: _Optional[int] = ..., fingerprints: _Optional[_Iterable[str]] = ..., vector_bytes: _Optional[int] = ..., code_bytes: _Optional[int] = ..., kinds: _Optional[_Iterable[_Union[KindCount, _Mapping]]] = ..., store_bytes: _Optional[int] = ..., asked_kind: _Optional[str] = ..., index_state: _Optional[str] = ..., refusal: _Optional[str] = ..., approximate_count: _Optional[int] = ..., recall: _Optional[float] = ..., recall_tenth: _Optional[float] = ..., recall_hundredth: _Optional[float] = ..., recall_floor: _Optional[float] = ..., file_bytes: _Optional[int] = ...) -> None: ...

class KindCount(_message.Message):
    __slots__ = ("embedding_kind", "case_count")
    EMBEDDING_KIND_FIELD_NUMBER: _ClassVar[int]
    CASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    embedding_kind: str
    case_count: int
    def __init__(self, embedding_kind: _Optional[str] = ..., case_count: _Optional[int] = ...) -> None: ...

class ListCasesRequest(_message.Message):
    __slots__ = ("fingerprint", "page_size", "page_token", "with_reports", "filter", "exclude_study_ids")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WITH_REPORTS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_STUDY_IDS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    page_size: int
    page_token: str
    with_reports: bool
    filter: Filter
    exclude_study_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, fingerprint: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., with_reports: bool = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., exclude_study_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ListCasesResponse(_message.Message):
    __slots__ = ("cases", "next_page_token", "fingerprint")
    CASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    cases: _containers.RepeatedCompositeFieldContainer[Case]
    next_page_token: str
    fingerprint: str
    def __init__(self, cases: _Optional[_Iterable[_Union[Case, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class BackupRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BackupPart(_message.Message):
    __slots__ = ("name", "data", "sha256", "complete", "left_out")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    data: bytes
    sha256: str
    complete: bool
    left_out: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., data: _Optional[bytes] = ..., sha256: _Optional[str] = ..., complete: bool = ..., left_out: _Optional[_Iterable[str]] = ...) -> None: ...
