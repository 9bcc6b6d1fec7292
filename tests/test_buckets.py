"""Buckets keep the area and come near the picture's shape; crops lie within the picture."""
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypernetworks.buckets import AREA_TOLERANCE, MAX_ASPECT, Bucket, bucket_of, buckets, crop_of

SIZES = st.integers(1, 6000)


@settings(deadline=None)
@given(st.integers(16, 2048), st.integers(8, 512), st.sampled_from([8, 16]))
def test_buckets_keep_to_the_area_the_step_and_the_aspect(resolution, step, factor):
    square, *oblong = buckets(resolution, step, factor)
    assert square.width == square.height and square.width % factor == 0 and abs(square.width - resolution) <= factor / 2
    assert len(set(oblong)) == len(oblong) and {Bucket(one.height, one.width) for one in oblong} == set(oblong)
    for bucket in oblong:
        assert bucket.width % factor == bucket.height % factor == 0
        assert bucket.width % (-(-step // factor) * factor) == 0
        assert 1 < max(bucket.width, bucket.height) / min(bucket.width, bucket.height) <= MAX_ASPECT
        assert abs(bucket.width * bucket.height / square.width**2 - 1) <= AREA_TOLERANCE


def test_the_square_is_exactly_the_resolution_also_where_the_step_does_not_divide_it():
    assert buckets(128, 64) == (Bucket(128, 128),)
    assert buckets(500, 64)[0] == Bucket(496, 496)
    assert bucket_of(640, 480, 512, 64) == Bucket(576, 448)
    assert bucket_of(427, 640, 512, 64) == Bucket(384, 640)
    assert bucket_of(5000, 100, 512, 64) == Bucket(768, 384)


@given(SIZES, SIZES, st.sampled_from([128, 512, 768]), st.sampled_from([32, 64]))
def test_a_picture_gets_the_bucket_of_the_nearest_shape(width, height, resolution, step):
    bucket = bucket_of(width, height, resolution, step)

    def misfit(one: Bucket) -> float:
        return abs(numpy.log(one.width / one.height) - numpy.log(width / height))

    assert misfit(bucket) <= min(map(misfit, buckets(resolution, step))) + 1e-9


@given(SIZES, SIZES, st.integers(0, 63), st.booleans())
def test_a_crop_lies_within_the_resized_picture_and_keeps_its_shape(width, height, crop, flip):
    bucket = bucket_of(width, height, 256, 64)
    place = crop_of(width, height, bucket, crop, flip)
    assert 0 <= place.left <= place.width - bucket.width and 0 <= place.top <= place.height - bucket.height
    assert abs(place.width - width * place.scale) <= 0.5 or place.width == bucket.width
    assert abs(place.height - height * place.scale) <= 0.5 or place.height == bucket.height
    straight = crop_of(width, height, bucket, crop)
    assert place.left == (place.width - bucket.width - straight.left if flip else straight.left)


@pytest.mark.parametrize("size", [(512, 512), (451, 300), (427, 640)])
def test_the_first_crop_is_the_centre_and_all_others_differ(size):
    bucket = bucket_of(*size, 256, 64)
    centre = crop_of(*size, bucket)
    assert (
        abs(2 * centre.left - (centre.width - bucket.width)) <= 1 and abs(2 * centre.top - (centre.height - bucket.height)) <= 1
    )
    assert centre.width == bucket.width or centre.height == bucket.height
    places = [crop_of(*size, bucket, crop) for crop in range(1, 17)]
    assert len({(place.left, place.top) for place in places}) == 16
    for sizes in (
        [place.left / (place.width - bucket.width) for place in places],
        [place.top / (place.height - bucket.height) for place in places],
    ):
        assert min(sizes) < 0.1 and max(sizes) > 0.8 and abs(sum(sizes) / 16 - 0.5) < 0.1
