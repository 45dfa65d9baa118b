"""The structures of `decoder.cpp`, field by field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p

from torch import Tensor


class Linear(ctypes.Structure):
    """A packed weight and its bias."""

    _fields_ = (("packed", c_void_p), ("bias", c_void_p), ("inputs", c_int32), ("outputs", c_int32))


class Layer(ctypes.Structure):
    """The weights of a layer."""

    _fields_ = (
        ("qkv", Linear),
        ("attention_output", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("input_norm", c_void_p),
        ("attention_norm", c_void_p),
    )


class Decoder(ctypes.Structure):
    """The sizes and weights of a model."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in (
                "layer_count",
                "hidden",
                "heads",
                "kv_heads",
                "head_dim",
                "ffn",
                "vocabulary",
                "is_bfloat",
            )
        ),
        ("norm_epsilon", c_float),
        ("attention_scale", c_float),
        ("layers", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("head", Linear),
        ("fusion", Linear),
        ("embedding", c_void_p),
        ("embedding_size", c_int32),
    )


class Segment(ctypes.Structure):
    """One session's rows of a pass."""

    _fields_ = (
        ("cache", c_void_p),
        ("visible", c_void_p),
        ("visible_stride", c_int64),
        ("capacity", c_int32),
        ("length", c_int32),
        ("rows", c_int32),
    )


class Pass(ctypes.Structure):
    """One pass over the rows of some sessions."""

    _fields_ = (
        ("segment_count", c_int32),
        ("rows", c_int32),
        ("with_logits", c_int32),
        ("feature_size", c_int32),
        ("segments", POINTER(Segment)),
        ("token_ids", POINTER(c_int32)),
        ("positions", POINTER(c_int32)),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("read_features", c_void_p),
        ("features", c_void_p),
        ("logits", c_void_p),
    )


def address(tensor: Tensor) -> int:
    """Where a contiguous tensor's memory begins."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError("the compiled engine reads contiguous memory of the CPU")
    return tensor.data_ptr()
