"""Metadata with units, of the libraries that people have them from."""

import json
import warnings

import numpy as np
import pytest

from scratchwriter._files.metadata import encode_frame_metadata, encode_global_metadata


def of_pint(number, unit):
    return pytest.importorskip("pint").Quantity(number, unit)


def of_astropy(number, unit):
    return number * getattr(pytest.importorskip("astropy.units"), unit)


def of_unyt(number, unit):
    return pytest.importorskip("unyt").unyt_array(number, unit)


@pytest.mark.parametrize("number", [1.5, np.float32(0.5), np.arange(4.0).reshape(2, 2)])
@pytest.mark.parametrize("quantity", [of_pint, of_astropy, of_unyt])
def test_a_quantity_keeps_its_unit(quantity, number):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of these libraries, when they are imported
        value = quantity(number, "mm")
    expected = {"value": np.asarray(number).tolist(), "unit": value_unit(value)}
    assert expected["unit"] in ("mm", "millimeter")
    for text in (
        encode_frame_metadata({"width": value, "deep": [value]}),
        encode_global_metadata("mine", {"width": value, "deep": [value]}),
    ):
        assert json.loads(text) == {"width": expected, "deep": [expected]}


def value_unit(value):
    return str(value.units if hasattr(value, "units") else value.unit)
