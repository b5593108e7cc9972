"""Codes of 8 bits for each value of an embedding: a quarter of the memory to read, with a proven bound of the error.

The codes only choose candidates. The caller computes their scores from the embeddings, so that no answer depends on the
codes. A row that is not a candidate is proven to be worse than k others.

**The code.** With a mean m and a step s for each dimension, a row x has the code c = round((x - m) / s), from -127 to
127, and is read back as x' = m + s c. Its residual is r = x - x', and e = |r| is kept for each row.

**The bound.** For a query q, with q s the product of each dimension, <q, x> = <q, m> + <q s, c> + <q, r>. The query is
coded too: q s = t b + d with whole numbers b from -127 to 127, because FAISS multiplies whole numbers where the
dimension allows it. Then <q, x> = <q, m> + t <b, c> + <d, c> + <q, r>, and by Cauchy and Schwarz

    |<q, x> - <q, m> - t <b, c>| <= |d| |c| + |q| e

FAISS's <b, c> is exact below 2^24, and otherwise has relative errors of u = 2^-24 for at most D sums of float32
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1): at most 2 u (D + 8) |b| |c|, where the
factor 2 and the 8 allow for products of errors and for the few sums in float64 here. <q, m> is the same for all rows:
it changes no order.

**The choice.** With g = t <b, c>, g + bound is at least the true score less <q, m>, g - bound at most. Let l be the
k-th largest g - bound of the allowed rows. Every row with g + bound < l - 2^-20 is worse than k rows by more than the
final score's own rounding, and is left out. FAISS returns the rows with the highest g. The rows beyond them have at
most the last g that it returned, and at most the largest e and |c| of the *regular* rows. Rows with an unusually large
e, such as those outside of the range of the codes, are few, and are always candidates.
"""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MIN_ROWS: Final = 4096  # with fewer rows, a scan of the embeddings takes less than half a millisecond
_LARGEST_CODE: Final = 127
_SIGMAS: Final = 5.5  # range of the codes in standard deviations: 1 normal value in 2 * 10^7 lies outside
_HEADROOM: Final = 1.25  # range of the codes beyond the largest value that was seen
_SMALLEST_RANGE: Final = 1e-6
_SAMPLE: Final = 65_536  # rows that mean and range are computed from
_CODED_AT_ONCE: Final = 256  # rows; 1 MiB of float64 at 512 dimensions, which a cache may hold
_REGULAR: Final = 2.0  # a residual up to so many times that of nearly all rows is regular
_MAX_IRREGULAR: Final = 1 / 64  # share of the rows
_MAX_CANDIDATES: Final = 1 / 8  # share of the rows; with more, a scan of the embeddings is as fast
_SPREAD: Final = 4  # rows asked for, for each one wanted
_LEAST: Final = 512
_GROWTH: Final = 8  # of the rows asked for, when the first are not enough
_DIVIDED_FROM: Final = 16_384  # rows; starting a thread takes a tenth of a millisecond
_BLOCK: Final = 16  # FAISS multiplies whole numbers if the dimension is a multiple of it
FINAL_ROUNDING: Final = 2.0**-20  # of scores in float32, and of lengths that are not exactly 1


@dataclass(frozen=True)
class _CodedQuery:
    """A query as t b + d: `factor` t, `code` b, (D,) float32; |q|, |b| and |d|."""

    factor: float
    code: NDArray[np.float32]
    length: float
    code_length: float
    error: float


class ByteCodes:
    """The codes of all rows of an index. Only one thread at a time may use them."""

    def __init__(self, faiss: Any, sample: NDArray[np.float32]) -> None:
        """Choose mean and step. There is no row yet.

        Args:
            faiss: The FAISS module.
            sample: (N, D) float32, at least one row.
        """
        self._faiss = faiss
        rows = sample.astype(np.float64)
        mean = rows.mean(axis=0)
        rows -= mean
        reach = np.maximum(_SIGMAS * rows.std(axis=0), _HEADROOM * np.abs(rows).max(axis=0))
        self._mean = mean.astype(np.float32).astype(np.float64)
        self._step = (
            (np.maximum(reach, _SMALLEST_RANGE) / _LARGEST_CODE).astype(np.float32).astype(np.float64)
        )
        self._regular = _REGULAR * float(np.quantile(self._encode(sample)[1][0], 0.99))
        self._index = faiss.IndexScalarQuantizer(
            -(-sample.shape[1] // _BLOCK) * _BLOCK,
            faiss.ScalarQuantizer.QT_8bit_direct_signed,
            faiss.METRIC_INNER_PRODUCT,
        )
        self._errors = np.zeros((2, 0), dtype=np.float32)  # e and |c|
        self._count = 0
        self._largest = np.zeros(2)  # of the regular rows
        self._irregular: list[int] = []
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def byte_count(self) -> int:
        """Bytes of the codes and their errors."""
        return int(self._index.ntotal * self._index.code_size) + self._errors.nbytes

    @property
    def is_unfit(self) -> bool:
        """Whether so many rows are irregular that mean and step should be chosen anew."""
        return len(self._irregular) > _MAX_IRREGULAR * self._count

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add rows, (N, D) float32."""
        for start in range(0, len(vectors), _CODED_AT_ONCE):
            self._add(vectors[start : start + _CODED_AT_ONCE])

    def find(
        self, embeddings: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> list[NDArray[np.int64] | None]:
        """Return for each query all rows that may be among its k best.

        Args:
            embeddings: (Q, D) float32.
            k: At least 1.
            allowed: (rows,) bool, which rows count; None for all.

        Returns:
            For each query the rows, in no order, each once. None if there are too many for the codes to be of use.
        """
        count = self._count if allowed is None else int(np.count_nonzero(allowed))
        if count <= k:
            rows = np.arange(self._count) if allowed is None else np.flatnonzero(allowed)
            return [rows] * len(embeddings)
        irregular = np.array(self._irregular, dtype=np.int64)
        if allowed is not None:
            irregular = irregular[allowed[irregular]]
        parts = self._divide(allowed, len(embeddings))
        queries = [self._code_query(embedding) for embedding in embeddings]
        found: list[NDArray[np.int64] | None] = [None] * len(queries)
        left, size = list(range(len(queries))), min(max(_LEAST, 1 << (_SPREAD * k - 1).bit_length()), count)
        while left:
            codes = np.stack([queries[number].code for number in left])
            for number, products, rows in zip(left, *self._search(codes, size, parts), strict=True):
                found[number] = self._choose(queries[number], k, products, rows, size == count)
            left = [number for number in left if found[number] is None]
            size = min(_GROWTH * size, count)
            if size > _MAX_CANDIDATES * self._count:
                break
        if len(irregular):
            found = [None if rows is None else np.union1d(rows, irregular) for rows in found]
        return found

    def _search(
        self, codes: NDArray[np.float32], size: int, parts: list["_Part"]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (Q, size) products and rows, best first. FAISS has one thread for a query: each part gets its own."""
        if len(parts) == 1:
            products, rows = self._index.search(codes, size, params=parts[0].parameters)
            return products, rows
        self._pool = self._pool or ThreadPoolExecutor(len(parts), thread_name_prefix="codes")
        results = list(
            self._pool.map(lambda part: self._index.search(codes, size, params=part.parameters), parts)
        )
        products = np.concatenate([result[0] for result in results], axis=1)
        rows = np.concatenate([result[1] for result in results], axis=1)
        order = np.argsort(-products, axis=1, kind="stable")[:, :size]
        return np.take_along_axis(products, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _choose(
        self, query: _CodedQuery, k: int, products: NDArray[np.float32], rows: NDArray[np.int64], is_all: bool
    ) -> NDArray[np.int64] | None:
        """Return the candidates among the found rows, best product first; None if there may be others beyond them."""
        scores = query.factor * products.astype(np.float64)
        bounds = self._bound(query, self._errors[:, rows].astype(np.float64))
        least = float(np.partition(scores - bounds, len(rows) - k)[len(rows) - k]) - FINAL_ROUNDING
        if not is_all and scores[-1] + self._bound(query, self._largest) >= least:
            return None
        kept: NDArray[np.int64] = rows[scores + bounds >= least]
        return kept

    def _code_query(self, embedding: NDArray[np.float32]) -> _CodedQuery:
        query = embedding.astype(np.float64)
        scaled = query * self._step
        factor = max(float(np.abs(scaled).max()) / _LARGEST_CODE, sys.float_info.min)
        code = np.rint(scaled / factor)
        return _CodedQuery(
            factor,
            self._pad(code[None])[0],
            float(np.linalg.norm(query)),
            float(np.linalg.norm(code)),
            float(np.linalg.norm(scaled - factor * code)),
        )

    def _bound(self, query: _CodedQuery, errors: NDArray[np.float64]) -> Any:
        """Return the largest error of scores, (N,); see the top of this file. `errors` is (2, N)."""
        rounding = 2.0**-23 * (self._index.d + 8) * query.factor * query.code_length
        return query.length * errors[0] + (query.error + rounding) * errors[1] + 2.0**-40

    def _pad(self, codes: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return codes (N, D) as float32 of FAISS's dimension."""
        padded = np.zeros((len(codes), self._index.d), dtype=np.float32)
        padded[:, : codes.shape[1]] = codes
        return padded

    def _add(self, vectors: NDArray[np.float32]) -> None:
        codes, errors = self._encode(vectors)
        self._index.add(self._pad(codes))
        end = self._count + len(vectors)
        if end > self._errors.shape[1]:
            longer = np.zeros((2, max(end, 2 * self._errors.shape[1])), dtype=np.float32)
            longer[:, : self._count] = self._errors[:, : self._count]
            self._errors = longer
        self._errors[:, self._count : end] = errors
        regular = errors[0] <= self._regular
        self._irregular += (self._count + np.flatnonzero(~regular)).tolist()
        self._largest = np.maximum(self._largest, errors[:, regular].max(axis=1, initial=0.0))
        self._count = end

    def _encode(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return codes (N, D) as whole numbers, and (2, N): e and |c|, both rounded up."""
        rows = vectors - self._mean
        codes = rows / self._step
        np.rint(codes, out=codes)
        np.clip(codes, -_LARGEST_CODE, _LARGEST_CODE, out=codes)
        rows -= codes * self._step
        squares = [np.einsum("ij,ij->i", values, values) for values in (rows, codes)]
        lengths = np.sqrt(np.stack(squares)).astype(np.float32)
        # One digit of float32 is far more than the errors of float64.
        return codes, np.nextafter(lengths, np.float32(np.inf))

    def _divide(self, allowed: NDArray[np.bool_] | None, queries: int) -> list["_Part"]:
        """Return the allowed rows for FAISS; of a single query in as many parts as there are threads."""
        threads = self._faiss.omp_get_max_threads() if queries == 1 and self._count >= _DIVIDED_FROM else 1
        if threads == 1 and allowed is None:
            return [_Part(self._faiss, None, None)]
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        edges = np.linspace(0, self._count, threads + 1).astype(int).tolist()
        return [_Part(self._faiss, bits, edge) for edge in itertools.pairwise(edges)]


class _Part:
    """FAISS's parameters for the allowed rows of a range, and what must live as long as they."""

    def __init__(self, faiss: Any, bits: NDArray[np.uint8] | None, edges: tuple[int, int] | None) -> None:
        self.parameters = None
        if edges is not None:
            self._selectors = [faiss.IDSelectorRange(*edges)]
            if bits is not None:
                self._selectors.append(faiss.IDSelectorBitmap(bits))
                self._selectors.append(faiss.IDSelectorAnd(*self._selectors))
            self._bits = bits
            self.parameters = faiss.SearchParameters(sel=self._selectors[-1])


def code_rows(faiss: Any, index: Any) -> ByteCodes:
    """Return the codes of all rows of a flat FAISS index, which has at least one row."""
    step = -(-index.ntotal // _SAMPLE)
    codes = ByteCodes(faiss, index.reconstruct_batch(np.arange(0, index.ntotal, step)))
    for start in range(0, index.ntotal, _CODED_AT_ONCE):
        codes.add(index.reconstruct_n(start, min(_CODED_AT_ONCE, index.ntotal - start)))
    return codes
