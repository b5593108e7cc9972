"""The ONNX operators that TensorRT 10 supports, and their data types.

The source is the operator support document of onnx-tensorrt, release 10.6:
https://github.com/onnx/onnx-tensorrt/blob/release/10.6-GA/docs/operators.md. According to its change log, 10.5 supports
the same operators. The container's release is newer (`export.tensorrt.operators.RELEASE`), so its own parser decides
when a plan is built. Operators that the document marks "N" are not in the table. `ImageScaler`, `ParametricSoftplus`,
`ScaledTanh` and `Scatter` are not in it either, because no opset of the parser has them.
"""

from typing import Final

FLOATS: Final = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_HALVES: Final = frozenset({"FLOAT", "FLOAT16"})  # operators that are plugins have no BFLOAT16
_INTEGERS: Final = frozenset({"INT32", "INT64"})
_BOOL: Final = frozenset({"BOOL"})
_NUMBERS: Final = FLOATS | _INTEGERS
_ANY: Final = _NUMBERS | _BOOL

OLDEST_OPSET: Final = 9
NEWEST_OPSETS: Final = (
    ((10, 6), 22),
    ((10, 0), 20),
    ((0,), 17),
)  # first release -> the newest opset that it reads

_GROUPS: Final[tuple[tuple[frozenset[str], str], ...]] = (
    (
        FLOATS,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh "
        "CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization HardSigmoid HardSwish Hardmax InstanceNormalization IsInf LRN LSTM LayerNormalization "
        "LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu Pow "
        "QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize Round "
        "Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample",
    ),
    (_HALVES, "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"),
    (frozenset({"FLOAT"}), "STFT"),
    (
        _NUMBERS,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod "
        "Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare Relu ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ),
    (FLOATS | _INTEGERS | frozenset({"INT8"}), "Gelu"),
    (
        _ANY,
        "BlackmanWindow Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND "
        "HammingWindow HannWindow Identity If Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile "
        "Transpose Trilu Unsqueeze Where",
    ),
    (_ANY | frozenset({"UINT8"}), "Cast CastLike"),
    (frozenset({"INT8", "INT4", "FLOAT8E4M3FN"}), "DequantizeLinear"),
    (_BOOL, "And Not Or Xor"),
)

DATA_TYPES: Final[dict[str, frozenset[str]]] = {
    name: types for types, names in _GROUPS for name in names.split()
}

# The parser reads these, but the shape of their result depends on the data. Such a plan cannot run a batch of requests,
# and Triton cannot allocate its buffers.
DATA_DEPENDENT: Final = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression", "Loop", "Scan"})

# Operator -> (input, its name) that must be a constant of the graph.
CONSTANT_INPUTS: Final[dict[str, tuple[int, str]]] = {
    **{f"Reduce{kind}": (1, "axes") for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min")},
    **{f"Reduce{kind}": (1, "axes") for kind in ("Prod", "Sum", "SumSquare")},
    "CumSum": (1, "axis"),
    "OneHot": (1, "depth"),
    "Squeeze": (1, "axes"),
    "Unsqueeze": (1, "axes"),
    "Dropout": (2, "training_mode"),
}

# Operator -> attribute -> its only supported value.
FIXED_ATTRIBUTES: Final[dict[str, dict[str, object]]] = {
    "TopK": {"sorted": 1},
    "LSTM": {"input_forget": 0, "layout": 0},
    "ScatterND": {"reduction": "none"},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": "stretch"},
}
REFUSED_ATTRIBUTES: Final[dict[str, frozenset[str]]] = {
    "Constant": frozenset({"sparse_value", "value_string", "value_strings"}),
}
NO_DILATIONS: Final = frozenset({"AveragePool", "MaxPool", "LpPool"})  # each must be 1
ONE_OUTPUT: Final = frozenset({"LayerNormalization", "MaxPool"})  # only their first output is supported
